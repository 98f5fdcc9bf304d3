package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/internal/nstest"
)

func counter(t testing.TB, tb *Tables, name string) uint64 {
	t.Helper()
	cs, err := tb.Counters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return cs[name].Packets
}

// count receives until all n are accounted for: they arrived, or a counter has
// them. It returns how many arrived.
func (l *listener) count(t testing.TB, tb *Tables, name string, from, n uint64) (got uint64) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		select {
		case <-l.got:
			got++
			continue
		default:
		}
		if over := counter(t, tb, name) - from; got+over >= n {
			return got
		} else if time.Now().After(deadline) {
			t.Fatalf("%d packets arrived and %s has %d, want %d together", got, name, over, n)
		}
	}
}

// burst sends n datagrams of one connection.
func burst(t testing.TB, from *workload, source, to netip.Addr, port uint16, n int) {
	t.Helper()
	var c *net.UDPConn
	var err error
	from.Do(func() {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range n {
		if _, err := c.Write([]byte("x")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// A packet rate counts what policy allowed, of connections that it knows too,
// and nobody else's.
func TestPacketRate(t *testing.T) {
	const n, rate, most = 60, 5, 10
	limits := desired.Limits{PacketRate: rate, PacketBurst: most}
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		for _, ingress := range []bool{true, false} {
			_, a, b, st := pair(t)
			tb := open(t)
			apply(t, tb, st)
			if text, err := tb.Dump(context.Background()); err != nil || strings.Contains(text, "chain "+chainControls) {
				t.Fatalf("a host without limits has the chain, %v:\n%s", err, text)
			}
			to, from := listen(t, b.NS, addr(b), openPort), listen(t, a.NS, addr(a), openPort)
			c := desired.Controls{Index: b.index, Ingress: limits}
			name := b.name
			if !ingress {
				c, name = desired.Controls{Index: a.index, Egress: limits}, a.name
			}
			st.Controls.Set(name, c)
			apply(t, tb, st)
			settled(t, tb, st)
			burst(t, a, addr(a), addr(b), closedPort, n) // policy drops it: it costs nothing
			waitCounter(t, tb, counterUnmatched, n)
			start := time.Now()
			burst(t, a, addr(a), addr(b), openPort, n)
			got := to.count(t, tb, counterRate, 0, n)
			if limit := most + uint64(rate*time.Since(start).Seconds()) + 1; got < most || got > limit {
				t.Errorf("%d of %d packets arrived, want %d to %d", got, n, most, limit)
			}
			// The other way there is no limit.
			before := counter(t, tb, counterRate)
			burst(t, b, addr(b), addr(a), openPort, n)
			if got := from.count(t, tb, counterRate, before, n); got != n {
				t.Errorf("%d of %d packets arrived the other way", got, n)
			}
			// It changes at run time,
			c.Ingress.PacketRate, c.Ingress.PacketBurst, c.Egress.PacketRate, c.Egress.PacketBurst = 10000, 10000, 10000, 10000
			st.Controls.Set(name, c)
			apply(t, tb, st)
			settled(t, tb, st)
			burst(t, a, addr(a), addr(b), openPort, n)
			if got := to.count(t, tb, counterRate, before, n); got != n {
				t.Errorf("%d of %d packets arrived when the limit was raised", got, n)
			}
			// and leaves nothing behind.
			st.Controls.Delete(name)
			apply(t, tb, st)
			settled(t, tb, st)
			if text, err := tb.Dump(context.Background()); err != nil || strings.Contains(text, "chain "+chainControls) {
				t.Errorf("without limits, %v:\n%s", err, text)
			}
		}
	})
}

// What policy knows already is limited from the first limit on, and what has
// none does not get to the chain of limits, whatever others have.
func TestControlsOfKnownConnections(t *testing.T) {
	const n = 50
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		host, a, b, st := pair(t)
		c := addWorkload(t, host, "tap3", 3)
		st.Interfaces.Set(c.name, c.endpoint())
		st.Programs.Set(c.endpoint().Ingress, profile(allowOpen(17)))
		tb := open(t)
		apply(t, tb, st)
		free, limited := converse(t, a.NS, b.NS, addr(a), addr(b)), converse(t, c.NS, a.NS, addr(c), addr(a))
		upload := func(n int) {
			for range n {
				free.upload("free")
				_, _ = limited.client.Write([]byte("limited"))
			}
		}
		st.Controls.Set(c.name, desired.Controls{Index: c.index, Egress: desired.Limits{PacketRate: 1, PacketBurst: 1}})
		st.Tightened = true
		if res := apply(t, tb, st); !res.Bumped {
			t.Errorf("%+v: the epoch was not bumped", res)
		}
		st.Tightened = false
		settled(t, tb, st)
		host.Run(t, "nft", "insert rule inet tortie "+chainControls+" counter")
		start := time.Now()
		upload(n)
		waitCounter(t, tb, counterRate, uint64(n-2-int(time.Since(start).Seconds())))
		seen := func() string { return host.Run(t, "nft", "list", "chain", "inet", "tortie", chainControls) }
		for !strings.Contains(seen(), fmt.Sprintf("counter packets %d ", n)) {
			if time.Since(start) > timeout {
				t.Fatalf("of %d packets with a limit and as many without, the chain of limits saw:\n%s", n, seen())
			}
		}
		// It stays limited when it is judged again,
		tb.Resync()
		apply(t, tb, st)
		bump(t, tb)
		before := counter(t, tb, counterRate)
		upload(5)
		waitCounter(t, tb, counterRate, before+2)
		// and is free without a limit.
		st.Controls.Delete(c.name)
		apply(t, tb, st)
		settled(t, tb, st)
		before = counter(t, tb, counterRate)
		upload(5)
		_, _ = limited.client.Write([]byte("last"))
		buf := make([]byte, 100)
		_ = limited.server.SetReadDeadline(time.Now().Add(timeout))
		for got := ""; got != "last"; {
			k, _, err := limited.server.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatal(err)
			}
			got = string(buf[:k])
		}
		if cut := counter(t, tb, counterRate) - before; cut != 0 {
			t.Errorf("%d packets were cut without a limit", cut)
		}
	})
}

// dialTCP connects from a workload; the caller closes.
func dialTCP(from *workload, to netip.Addr) (c net.Conn, err error) {
	from.Do(func() { c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, openPort).String(), timeout) })
	return c, err
}

// serveTCP accepts connections and closes each when its peer does.
func serveTCP(t testing.TB, w *workload, addr netip.Addr) {
	t.Helper()
	var l net.Listener
	var err error
	w.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, openPort).String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
}

// Of both families together, so many connections are open at a time: one more
// is refused at once, until one has closed. A comparison, and a new process,
// forget none.
func TestConnectionLimit(t *testing.T) {
	for _, ingress := range []bool{true, false} {
		_, a, b, st := pair(t)
		tb := open(t)
		if ingress {
			st.Controls.Set(b.name, desired.Controls{Index: b.index, Ingress: desired.Limits{Connections: 3}})
		} else {
			st.Controls.Set(a.name, desired.Controls{Index: a.index, Egress: desired.Limits{Connections: 3}})
		}
		apply(t, tb, st)
		serveTCP(t, b, b.v4)
		serveTCP(t, b, b.v6)
		serveTCP(t, a, a.v4)
		var open []net.Conn
		for _, to := range []netip.Addr{b.v4, b.v6, b.v4} {
			c, err := dialTCP(a, to)
			if err != nil {
				t.Fatalf("connection %d: %v", len(open)+1, err)
			}
			defer func() { _ = c.Close() }()
			open = append(open, c)
		}
		for _, to := range []netip.Addr{b.v4, b.v6} {
			if _, err := dialTCP(a, to); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("one more to %s: %v, want it refused", to, err)
			}
		}
		settled(t, tb, st)
		if _, err := dialTCP(a, b.v6); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("one more after a restart: %v, want it refused", err)
		}
		if n := counter(t, tb, counterCount); n != 3 {
			t.Errorf("%d are counted, want 3", n)
		}
		// Neither other protocols nor the other direction nor what is open are touched.
		l := listen(t, b.NS, b.v6, openPort)
		send(t, a.NS, a.v6, b.v6, openPort, "UDP")
		l.wait(t, "UDP")
		if c, err := dialTCP(b, a.v4); err != nil {
			t.Errorf("the other way: %v", err)
		} else {
			_ = c.Close()
		}
		for _, c := range open {
			_ = c.SetDeadline(time.Now().Add(timeout))
			if _, err := fmt.Fprint(c, "x"); err != nil {
				t.Errorf("an open connection: %v", err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("an open connection: %v", err)
			}
		}
		_ = open[0].Close()
		// Each refused attempt is counted for a tick of the kernel's clock or two,
		// so they are not made as fast as can be.
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(timeout); ; {
			c, err := dialTCP(a, b.v6)
			if err == nil {
				_ = c.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("when one has closed: %v", err)
			}
			<-tick.C
		}
		st.Controls.Delete(a.name)
		st.Controls.Delete(b.name)
		apply(t, tb, st)
		settled(t, tb, st)
		for range 4 {
			c, err := dialTCP(a, b.v4)
			if err != nil {
				t.Fatalf("without a limit: %v", err)
			}
			defer func() { _ = c.Close() }()
		}
	}
}

// A limit that has nothing to count stays, also where the kernel removes what
// counts nothing: elements of a set that count connections.
func TestIdleConnectionLimit(t *testing.T) {
	host, a, _, st := pair(t)
	tb := open(t)
	st.Controls.Set(a.name, desired.Controls{Index: a.index, Egress: desired.Limits{Connections: 3}})
	apply(t, tb, st)
	host.Run(t, "nft", "add table inet other; add set inet other s { type mark; flags dynamic; }; add element inet other s { 7 ct count over 3 }")
	deadline := time.Now().Add(timeout)
	for strings.Contains(host.Run(t, "nft", "list", "set", "inet", "other", "s"), "elements") {
		if time.Now().After(deadline) {
			t.Fatal("the kernel keeps what counts nothing")
		}
	}
	settled(t, tb, st)
}

// trafficClass receives a datagram, and says what the byte with the code point
// was and who sent it. Bad header checksums do not get there.
func trafficClass(t testing.TB, c *net.UDPConn) (byte, netip.AddrPort) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	oob := make([]byte, 64)
	_, n, _, sender, err := c.ReadMsgUDPAddrPort(make([]byte, 16), oob)
	if err != nil {
		t.Fatal(err)
	}
	ms, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(ms) != 1 {
		t.Fatalf("control messages %v, %v", ms, err)
	}
	return ms[0].Data[0], sender
}

func listenRaw(t testing.TB, w *workload, addr netip.Addr) (l *net.UDPConn) {
	t.Helper()
	var err error
	w.Do(func() { l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, openPort))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	setOption(t, l, addr, unix.IP_RECVTOS, unix.IPV6_RECVTCLASS, 1)
	return l
}

func setOption(t testing.TB, c *net.UDPConn, addr netip.Addr, v4, v6, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		if addr.Is4() {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, v4, value)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, v6, value)
		}
	})
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
}

// sendClass sends a datagram with a traffic class of the workload's own.
func sendClass(t testing.TB, from *workload, source, to netip.Addr, class byte) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	var err error
	from.Do(func() {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, openPort)))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	setOption(t, c, source, unix.IP_TOS, unix.IPV6_TCLASS, int(class))
	setOption(t, c, source, unix.IP_RECVTOS, unix.IPV6_RECVTCLASS, 1)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return c
}

// Each packet that an endpoint sends, answers too, has its code point on the
// wire, and the congestion bits of the sender; nobody else's packet is changed.
func TestDSCP(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		tb := open(t)
		apply(t, tb, st)
		const ect1 = 1
		const own = 10<<2 | ect1
		at := map[*workload]*net.UDPConn{}
		for _, w := range []*workload{a, b} {
			at[w] = listenRaw(t, w, addr(w))
			setOption(t, at[w], addr(w), unix.IP_TOS, unix.IPV6_TCLASS, own)
		}
		expect := func(from, to *workload, want, answer byte) {
			t.Helper()
			c := sendClass(t, from, addr(from), addr(to), own)
			got, sender := trafficClass(t, at[to])
			if _, err := at[to].WriteToUDPAddrPort([]byte("y"), sender); err != nil {
				t.Fatal(err)
			}
			if back, _ := trafficClass(t, c); got != want || back != answer {
				t.Errorf("%#x arrived, and %#x as the answer, want %#x and %#x", got, back, want, answer)
			}
		}
		expect(a, b, own, own)
		for _, dscp := range []uint8{46, 0, 63, 8} {
			st.Controls.Set(a.name, desired.Controls{Index: a.index, Mark: true, DSCP: dscp})
			apply(t, tb, st)
			settled(t, tb, st)
			expect(a, b, dscp<<2|ect1, own)
			expect(b, a, own, dscp<<2|ect1)
		}
		st.Controls.Set(b.name, desired.Controls{Index: b.index, Mark: true, DSCP: 34})
		apply(t, tb, st)
		settled(t, tb, st)
		expect(a, b, 8<<2|ect1, 34<<2|ect1)
		expect(b, a, 34<<2|ect1, 8<<2|ect1)
		st.Controls.Delete(a.name)
		apply(t, tb, st)
		settled(t, tb, st)
		expect(a, b, own, 34<<2|ect1)
		expect(b, a, 34<<2|ect1, own)
	})
}

// An element that another hand changed is set right.
func TestRepairControls(t *testing.T) {
	host, a, _, st := pair(t)
	tb := openLimited(t, 50)
	st.Controls.Set(a.name, desired.Controls{Index: a.index, Mark: true, DSCP: 46, Egress: desired.Limits{PacketRate: 7, PacketBurst: 8, Connections: 9}})
	apply(t, tb, st)
	settled(t, tb, st)
	for _, cmd := range []string{
		"flush set inet tortie " + setRateFrom,
		"flush set arp tortie " + setHostRate,
		fmt.Sprintf("delete element inet tortie %s { %d }", mapCountFrom, a.index),
		"flush chain inet tortie dscp-46",
		"flush chain inet tortie " + countChain(mapCountFrom, a.index),
		"flush chain inet tortie " + chainControls,
		"flush chain inet tortie " + chainJudge,
		"flush chain inet tortie " + chainSettle,
		"flush set inet tortie " + setControlled,
		"flush chain inet tortie " + limitsOf + chainHostControls,
		"delete chain inet tortie " + chainHostControls,
		"add chain inet tortie dscp-9",
	} {
		host.Run(t, "nft", cmd)
		tb.Resync()
		if res := apply(t, tb, st); res.Writes == 0 || !res.Repaired {
			t.Errorf("%s: %+v, want it undone", cmd, res)
		}
		settled(t, tb, st)
	}
	if out := host.Run(t, "nft", "list", "set", "inet", "tortie", setRateFrom); !strings.Contains(out, "limit rate over 7/second burst 8 packets") {
		t.Errorf("nft shows:\n%s", out)
	}
}

func openLimited(t testing.TB, rate int) *Tables {
	t.Helper()
	tb, err := Open(Options{WorkloadPrefixes: testPrefixes, HostAction: HostReturn, HostRate: rate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tb.Close() })
	return tb
}

// packet is an Ethernet frame to the host with a header and a payload whose
// checksum is at the given place.
func packet(w *workload, hostMAC [6]byte, to netip.Addr, proto byte, payload []byte, sum int) []byte {
	from := w.v4
	b := append(hostMAC[:], w.mac[:]...)
	if to.Is6() {
		from = w.v6
	}
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, proto, byte(len(payload)>>8), byte(len(payload)))
	if to.Is4() && proto == unix.IPPROTO_ICMP {
		pseudo = nil
	}
	binary.BigEndian.PutUint16(payload[sum:], nstest.Checksum(append(pseudo, payload...)))
	if to.Is4() {
		h := []byte{0x45, 0, 0, byte(20 + len(payload)), 0, 0, 0, 0, 64, proto, 0, 0}
		h = append(append(h, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], nstest.Checksum(h))
		return append(append(append(b, 8, 0), h...), payload...)
	}
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), proto, 255)
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), payload...)
}

// flood sends a frame again and again, until it is told to stop, but at most so
// often. It returns how often it did, once it has stopped.
func (w *workload) flood(b []byte, most int, stop *atomic.Bool) (sent func() (int, error)) {
	n := 0
	var err error
	done := w.Go(func() {
		in, ierr := net.InterfaceByName("eth0")
		fd, serr := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err = errors.Join(ierr, serr); err != nil {
			return
		}
		defer func() { _ = unix.Close(fd) }()
		for n < most && !stop.Load() {
			if err = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: in.Index}); err != nil {
				return
			}
			n++
		}
	})
	return func() (int, error) { <-done; return n, err }
}

// Promise C5: one workload's flood of what the host answers by itself is cut,
// and counted; another's DHCP, ARP, neighbour discovery and ping go on.
func TestHostRate(t *testing.T) {
	host, a, b, st := pair(t)
	const rate, least, most = 50, 1000, 200_000
	tb := openLimited(t, rate)
	apply(t, tb, st)
	settled(t, tb, st)
	in := running(t, host, a.name)
	hostMAC := [6]byte(in.HardwareAddr)
	gateway, gateway6 := netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)
	host.Run(t, "ip", "addr", "add", "fd99::1/128", "dev", "lo")
	local(t, host, "lo", "fd99::1")
	host6 := netip.MustParseAddr("fd99::1")
	lease := map[netip.Addr]*listener{gateway: listen(t, host, gateway, 67), host6: listen(t, host, host6, 547)}
	datagram := func(from, to uint16) []byte {
		b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
		return append(b, 0, 10, 0, 0, 'h', 'i')
	}
	solicit := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, gateway6.AsSlice()...)
	for _, c := range []struct {
		what, counter string
		frame         []byte
	}{
		{"ARP", "arp/" + counterHostRate, arpRequest(a.mac, a.mac, a.v4, gateway)},
		{"echo", counterHostRate, packet(a, hostMAC, gateway, 1, []byte{8, 0, 0, 0, 0, 1, 0, 1}, 2)},
		{"echo, IPv6", counterHostRate, packet(a, hostMAC, host6, 58, []byte{128, 0, 0, 0, 0, 1, 0, 1}, 2)},
		{"neighbour solicitation", counterHostRate, packet(a, hostMAC, gateway6, 58, solicit, 2)},
		{"DHCP", counterHostRate, packet(a, hostMAC, gateway, 17, datagram(68, 67), 6)},
		{"DHCPv6", counterHostRate, packet(a, hostMAC, host6, 17, datagram(546, 547), 6)},
		{"DNS", counterHostRate, packet(a, hostMAC, gateway, 17, datagram(5353, 53), 6)},
		{"DNS, IPv6", counterHostRate, packet(a, hostMAC, host6, 17, datagram(5353, 53), 6)},
	} {
		before, start := counter(t, tb, c.counter), time.Now()
		var stop atomic.Bool
		sent := a.flood(c.frame, most, &stop)
		waitCounter(t, tb, c.counter, before+1) // it has begun to be cut
		wellBehaved(t, b, lease)
		waitCounter(t, tb, c.counter, before+least)
		stop.Store(true)
		n, err := sent()
		if err != nil {
			t.Fatal(err)
		}
		// No more than twice the rate at once, and the rate from then on.
		passed := uint64(2*rate+rate*time.Since(start).Seconds()) + 1
		if uint64(n) > passed {
			waitCounter(t, tb, c.counter, before+uint64(n)-passed)
		}
		t.Logf("%s: %d sent in %s, %d cut", c.what, n, time.Since(start), counter(t, tb, c.counter)-before)
	}
	// What a workload sends elsewhere, and TCP to the host, is not concerned.
	before := counter(t, tb, counterHostRate)
	l := listen(t, b.NS, b.v4, openPort)
	burst(t, a, a.v4, b.v4, openPort, 4*rate)
	if got := l.count(t, tb, counterHostRate, before, 4*rate); got != 4*rate {
		t.Errorf("%d of %d packets between workloads passed", got, 4*rate)
	}
}

// wellBehaved has a workload find its gateways, ping the host and ask it for a
// lease.
func wellBehaved(t testing.TB, w *workload, lease map[netip.Addr]*listener) {
	t.Helper()
	for _, via := range []string{gateway4, gateway6} {
		w.Run(t, "ip", "neigh", "del", via, "dev", "eth0")
	}
	for host, l := range lease {
		for range 5 {
			ping(t, w.NS, host, true)
		}
		from, source := uint16(68), w.v4
		if host.Is6() {
			from, source = 546, w.v6
		}
		var c *net.UDPConn
		var err error
		w.Do(func() {
			c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, from)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, map[uint16]uint16{68: 67, 546: 547}[from])))
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("request"))
		_ = c.Close()
		for got, limit := "", time.After(timeout); !strings.HasPrefix(got, "request"); { // not the flood's
			select {
			case got = <-l.got:
			case <-limit:
				t.Fatalf("the request from %s did not arrive", source)
			}
		}
	}
}
