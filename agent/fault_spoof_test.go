package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/api"
)

// counter reads one of the kernel's named counters.
func (h *testHost) counter(name string) int {
	h.t.Helper()
	page, err := h.show("/show/kernel")
	if err != nil {
		h.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^counter ` + name + ` packets (\d+)`).FindStringSubmatch(page)
	if m == nil {
		h.t.Fatalf("no counter %s", name)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// counts waits until a counter has reached a number, and fails the test if it
// is beyond it.
func (h *testHost) counts(name string, want int) {
	h.t.Helper()
	h.await(fmt.Sprintf("counter %s to be %d", name, want), func() bool { return h.counter(name) >= want })
	if n := h.counter(name); n != want {
		h.t.Errorf("counter %s is %d, want %d", name, n, want)
	}
}

// echo writes on a connection and reads it back.
func echo(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(timeout))
	b := make([]byte, len(text))
	_, err := io.WriteString(c, text)
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err != nil || string(b) != text {
		t.Fatalf("echo of %q: %q, %v", text, b, err)
	}
}

// A workload that uses the address of another, within the very connection that
// the other has open, or to end it, gets nothing delivered; it does not matter
// which MAC it does so from, nor what the kernel's own filter thinks.
//
// Promise C1: no workload can use a source address that is not its own, in IPv4
// and in IPv6. Promise C11: the check is in raw prerouting for both families.
func TestSpoofInsideConnection(t *testing.T) {
	s := newScenario(t)
	s.run()
	s.serve(s.server)
	// Whatever passes, passes our own check.
	s.ns.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.cali3.rp_filter=0")
	thief, sniffer := s.wire(s.other), s.wire(s.server)
	macs := map[string]net.HardwareAddr{"its own MAC": thief.mac}
	macs["the client's MAC"], _ = net.ParseMAC(s.client.mac)
	want := s.counter("spoofed")
	for i, family := range families {
		client, server := s.client.addr(family), s.server.addr(family)
		ip := []string{"ip", "ip6"}[i]
		resets := s.meter(s.server, fmt.Sprintf("%s saddr %s tcp flags & rst == rst", ip, client))
		backResets := s.meter(s.client, fmt.Sprintf("%s saddr %s tcp flags & rst == rst", ip, server))
		stolen := s.meter(s.server, fmt.Sprintf("%s saddr %s udp length 99", ip, client))
		udp := s.stream(s.client, s.server, family, 9000, 500)
		udp.flows()
		c, err := s.client.dial(server, timeout)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		port := uint16(c.LocalAddr().(*net.TCPAddr).Port)
		echo(t, c, "before")
		// The numbers that the next segment of each side has.
		go func() { _, _ = io.WriteString(c, "mark") }()
		segment := tcpOf(sniffer.await("a segment of the client", func(f []byte) bool {
			tcp := tcpOf(f)
			return tcp != nil && binary.BigEndian.Uint16(tcp) == port && strings.HasSuffix(string(f), "mark")
		}))
		seq, ack := binary.BigEndian.Uint32(segment[4:])+4, binary.BigEndian.Uint32(segment[8:])+4
		_, _ = io.ReadFull(c, make([]byte, 4))
		for _, mac := range macs {
			for _, p := range [][]byte{
				ipPacket(client, server, unix.IPPROTO_TCP, tcpSegment(port, 80, seq, ack, tcpRST)),
				ipPacket(client, server, unix.IPPROTO_TCP, tcpSegment(port, 80, seq, ack, tcpRST|tcpACK)),
				ipPacket(server, client, unix.IPPROTO_TCP, tcpSegment(80, port, ack, seq, tcpRST|tcpACK)),
				ipPacket(client, server, unix.IPPROTO_UDP, udpSegment(udp.from(), 9000, strings.Repeat("x", 91))),
				ipPacket(client, server, unix.IPPROTO_UDP, udpSegment(1234, 9000, strings.Repeat("x", 91))),
				ipPacket(server, s.other.addr(family), unix.IPPROTO_UDP, udpSegment(9000, 9000, "to itself")),
			} {
				thief.sendFrom(mac, etherType(p), p)
				want++
			}
		}
		s.counts("spoofed", want)
		for what, n := range map[string]int{"resets to the server": resets(), "resets to the client": backResets(), "datagrams": stolen()} {
			if n != 0 {
				t.Errorf("IPv%d: %d spoofed %s were delivered", family, n, what)
			}
		}
		echo(t, c, "after")
		udp.complete()
		// The same from who may send it is delivered, and counted.
		s.wire(s.client).packet(ipPacket(client, server, unix.IPPROTO_UDP, udpSegment(1234, 9000, strings.Repeat("x", 91))))
		s.await("the client's own", func() bool { return stolen() == 1 })
		if out := s.ns.Run(t, "conntrack", "-f", fmt.Sprintf("ipv%d", family), "-L", "-p", "tcp", "--sport", fmt.Sprint(port)); !strings.Contains(out, "ESTABLISHED") {
			t.Errorf("the connection is not as it was: %s", out)
		}
	}
	// One that has a MAC cannot use its own address from another.
	client := s.wire(s.client)
	for _, family := range families {
		p := ipPacket(s.client.addr(family), s.server.addr(family), unix.IPPROTO_UDP, udpSegment(1, 9, "own address"))
		client.sendFrom(thief.mac, etherType(p), p)
		want++
	}
	s.counts("spoofed", want)
}

// tcpOf is the TCP segment of a frame, or nil.
func tcpOf(f []byte) []byte {
	switch {
	case len(f) >= 54 && f[12] == 0x08 && f[13] == 0 && f[23] == unix.IPPROTO_TCP:
		return f[34:]
	case len(f) >= 74 && f[12] == 0x86 && f[13] == 0xdd && f[20] == unix.IPPROTO_TCP:
		return f[54:]
	}
	return nil
}

// from is the port that the stream comes from.
func (s *stream) from() uint16 { return uint16(s.tx.LocalAddr().(*net.UDPAddr).Port) }

// Claims by ARP and neighbour discovery to have another's address change
// nothing in the host's tables.
//
// Promise C1: in ARP and in neighbour discovery as well.
func TestSpoofedNeighbour(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, _ := s.streams()
	thief := s.wire(s.other)
	// The other and the gateway know each other, so that both tables have
	// entries that could be changed.
	victim := s.guest() // like the thief it may use any MAC
	s.settle(s.put(victim.key, victim.endpoint(`{"role":"server"}`)))
	s.status(victim, api.StatusUp) // its interface may be seen later than its endpoint
	toVictim := []*stream{s.stream(s.client, victim, 4, 9020, rate), s.stream(s.client, victim, 6, 9021, rate)}
	for _, v := range toVictim {
		v.flows()
	}
	spoofed, arp := s.counter("spoofed"), s.counter("arp/spoofed")
	for _, target := range []*guest{s.server, victim, s.client} {
		for _, m := range [][]byte{
			arpMessage(1, thief.mac, target.v4, target.v4), // gratuitous
			arpMessage(2, thief.mac, target.v4, "169.254.1.1"),
			arpMessage(1, thief.mac, target.v4, "169.254.1.1"),
		} {
			thief.send(unix.ETH_P_ARP, m)
			arp++
		}
		for _, p := range [][]byte{
			neighbourPacket(target.v6, "ff02::1", neighbourMessage(true, thief.mac, target.v6)),
			neighbourPacket("fe80::bad", "ff02::1", neighbourMessage(true, thief.mac, target.v6)),
			neighbourPacket(target.v6, "fe80::ecee:eeff:feee:eeee", neighbourMessage(false, thief.mac, "fe80::ecee:eeff:feee:eeee")),
		} {
			thief.packet(p)
			spoofed++
		}
	}
	s.counts("arp/spoofed", arp)
	s.counts("spoofed", spoofed)
	for _, target := range []*guest{s.server, victim, s.client} {
		for _, family := range families {
			out := s.ns.Run(t, "ip", "neigh", "show", "to", target.addr(family))
			if strings.Contains(out, s.other.iface) || strings.Contains(out, s.other.mac) {
				t.Errorf("the host believes: %s", out)
			}
		}
	}
	for _, a := range append(allowed, toVictim...) {
		a.complete()
	}
}
