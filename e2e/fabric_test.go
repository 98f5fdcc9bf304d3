package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/lab"
	"tortie/store"
)

var (
	hostNet4  = netip.MustParsePrefix("192.0.2.0/24")
	endpoint4 = netip.MustParsePrefix("10.65.0.0/16")
	endpoint6 = netip.MustParsePrefix("fd00:65::/32")
	hostSide  = [6]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

func isEndpoint(a netip.Addr) bool { return endpoint4.Contains(a) || endpoint6.Contains(a) }

// findings are what captures found, each once.
type findings struct {
	sync.Mutex
	seen map[string]int
}

func (f *findings) add(format string, args ...any) {
	f.Lock()
	defer f.Unlock()
	if f.seen == nil {
		f.seen = map[string]int{}
	}
	f.seen[fmt.Sprintf(format, args...)]++
}

// capture looks at frames until the test ends; what it finds fails the test.
func (s *site) capture(t *testing.T, where string, look func(lab.Frame, *findings)) (end func()) {
	t.Helper()
	var found findings
	frames := 0
	c, err := s.Capture(where, func(f lab.Frame) { frames++; look(f, &found) })
	if err != nil {
		t.Fatal(err)
	}
	return ending(t, func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if frames == 0 {
			t.Errorf("%s: no frame was seen", where)
		}
		for what, n := range found.seen {
			t.Errorf("%s: %s (%d times in %d frames)", where, what, n, frames)
		}
	})
}

// datagram is of a length that nothing else has.
var datagram = bytes.Repeat([]byte("tortie"), 111)

// Promise D1: no encapsulation: a packet is on the wire as the workload sent it, byte for byte, but for its hop limit.
// Promise L2: the fabric sees the hosts' addresses only.
// Promise L3: endpoints come and go, and the fabric learns no address anew.
// Promise L4: no broadcast of an endpoint enters the fabric; ARP is between hosts.
func testWire(t *testing.T, s *site) {
	known := map[[6]byte]bool{s.mac(t, "fabric", "br0"): true}
	for _, h := range s.Hosts() {
		known[s.mac(t, h.Name, "eth0")] = true
		known[s.mac(t, "fabric", h.Name)] = true // the port may speak MLD
	}
	from, to := s.find(t, "web-1"), s.find(t, "app-1")
	var whole4, whole6 int
	end := s.capture(t, "fabric", func(f lab.Frame, found *findings) {
		source, dest := f.MACs()
		if !known[source] || !known[dest] && dest[0]&1 == 0 {
			found.add("a frame from %x to %x", source, dest)
		}
		a, b := f.Addrs()
		switch {
		case f.EtherType() == unix.ETH_P_ARP:
			for _, at := range []int{28, 38} {
				if ip := netip.AddrFrom4([4]byte(f.Data[at : at+4])); !hostNet4.Contains(ip) {
					found.add("ARP about %s", ip)
				}
			}
		case !a.IsValid():
			found.add("a frame of type %#x", f.EtherType())
		case isEndpoint(a) != isEndpoint(b):
			found.add("a packet from %s to %s", a, b)
		case isEndpoint(a) && dest[0]&1 != 0:
			found.add("a broadcast of %s", a)
		case !isEndpoint(a) && f.Protocol() != unix.IPPROTO_TCP && f.Protocol() != unix.IPPROTO_ICMPV6 && f.Protocol() != unix.IPPROTO_HOPOPTS:
			found.add("protocol %d between hosts %s and %s", f.Protocol(), a, b) // a tunnel would be one
		case f.Protocol() == unix.IPPROTO_UDP && bytes.HasSuffix(f.Data, datagram):
			switch {
			case a == from.IPv4 && b == to.IPv4 && len(f.Data) == 14+20+8+len(datagram) && f.Data[14+8] == 63:
				whole4++
			case a == from.IPv6 && b == to.IPv6 && len(f.Data) == 14+40+8+len(datagram) && f.Data[14+7] == 63:
				whole6++
			default:
				found.add("the datagram in a frame of %d bytes from %s to %s", len(f.Data), a, b)
			}
		}
	})
	fdb := s.learned(t)
	s.send(t, from.Name, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.IPv4, 9999)), datagram)
	s.send(t, from.Name, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.IPv6, 9999)), datagram)
	s.noise(t, from.Name)
	s.matrix(t, lab.MatrixOptions{})
	e := s.endpoint(t, "db-1", role("db-1"))
	for range 5 {
		if err := s.write(store.Op{Path: e.Key().Path(), Delete: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Enforce(s.ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	s.settle(t)
	end()
	if whole4 == 0 || whole6 == 0 {
		t.Errorf("the datagram was seen whole %d times by IPv4, %d times by IPv6", whole4, whole6)
	}
	if now := s.learned(t); now != fdb {
		t.Errorf("the bridge knows\n%sbefore\n%s", now, fdb)
	}
}

// learned is which addresses the bridge has seen, and at which ports.
func (s *site) learned(t *testing.T) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(s.sh(t, "fabric", "bridge", "fdb", "show", "br", "br0")) {
		if !strings.Contains(line, "permanent") {
			lines = append(lines, line)
		}
	}
	if len(lines) != len(s.Hosts()) {
		t.Errorf("the bridge has learned %d addresses, want one for each host:\n%s", len(lines), strings.Join(lines, ""))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// send sends one datagram from a workload.
func (s *site) send(t *testing.T, from string, to net.Addr, b []byte) {
	t.Helper()
	err := s.In(from, func() error {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			errControl := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1) })
			if errControl != nil {
				return errControl
			}
			return err
		}}
		c, err := config.ListenPacket(s.ctx, "udp", ":0")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.WriteTo(b, to)
		return err
	})
	if err != nil {
		t.Fatalf("send from %s to %s: %v", from, to, err)
	}
}

// noise has a workload send broadcasts and multicasts, ARP for addresses of
// others and neighbour solicitations among them.
func (s *site) noise(t *testing.T, from string) {
	t.Helper()
	fd := -1
	var index int
	err := s.In(from, func() (err error) {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		index = i.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	own, all := s.mac(t, from, "eth0"), [6]byte{255, 255, 255, 255, 255, 255}
	w := s.find(t, from)
	for _, other := range append(s.Workloads(), lab.Workload{IPv4: netip.MustParseAddr("192.0.2.1")}) {
		b := binary.BigEndian.AppendUint16(append(all[:], own[:]...), unix.ETH_P_ARP)
		b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // who has
		b = append(append(b, own[:]...), w.IPv4.AsSlice()...)
		b = append(append(b, 0, 0, 0, 0, 0, 0), other.IPv4.AsSlice()...)
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"255.255.255.255:67", "224.0.0.251:5353", "[ff02::1%eth0]:5353", "[ff05::2%eth0]:5353"} {
		at, err := net.ResolveUDPAddr("udp", strings.Replace(to, "eth0", fmt.Sprint(index), 1))
		if err != nil {
			t.Fatal(err)
		}
		s.send(t, from, at, []byte("noise"))
	}
}

// Promise I1: the host is the first and the last router of a workload, also
// between two of the same host.
// Promise F13: no ARP, no broadcast passes from workload to workload.
func testRouter(t *testing.T, s *site) {
	a, b := s.find(t, "web-1"), s.find(t, "db-2")
	if a.Host != b.Host {
		t.Fatalf("%s and %s are on two hosts", a.Name, b.Name)
	}
	packets := 0
	end := s.capture(t, b.Name, func(f lab.Frame, found *findings) {
		if f.Outgoing {
			return
		}
		source, _ := f.MACs()
		if source != hostSide {
			found.add("a frame from %x, not from the host", source)
		}
		switch from, _ := f.Addrs(); {
		case from == a.IPv4 && f.Data[14+8] == 63, from == a.IPv6 && f.Data[14+7] == 63:
			packets++
		case from == a.IPv4, from == a.IPv6:
			found.add("a packet from %s that was not routed once", from)
		}
	})
	s.noise(t, a.Name)
	m := s.matrix(t, lab.MatrixOptions{From: []string{a.Name}, To: []string{b.Name}})
	end()
	if m.Reached() != len(m.Cells) || packets == 0 {
		t.Errorf("%d packets arrived; %s", packets, m)
	}
}

// Promise D2: the host is a workload's next hop, even of one that takes
// all others for its neighbours.
func testWeirdGuest(t *testing.T, s *site) {
	const guest = "web-1"
	s.sh(t, guest, "ip", "route", "add", "10.65.0.0/16", "dev", "eth0")
	m := s.matrix(t, lab.MatrixOptions{From: []string{guest}})
	neighbours := s.sh(t, guest, "ip", "-4", "neigh", "show", "dev", "eth0")
	s.sh(t, guest, "ip", "route", "del", "10.65.0.0/16", "dev", "eth0")
	s.sh(t, guest, "ip", "neigh", "flush", "dev", "eth0")
	if m.Reached() != len(m.Cells) {
		t.Errorf("%s", m)
	}
	for _, w := range s.Workloads() {
		if w.Name != guest && !strings.Contains(neighbours, w.IPv4.String()+" lladdr ee:ee:ee:ee:ee:ee") {
			t.Errorf("%s takes %s to be elsewhere than on its host:\n%s", guest, w.Name, neighbours)
		}
	}
}

// Promise D7: nothing else is in the way of packets.
func testHooks(t *testing.T, s *site) {
	for _, h := range s.Hosts() {
		var tables, hooks []string
		for line := range strings.Lines(s.sh(t, h.Name, "nft", "list", "ruleset")) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "table ") {
				tables = append(tables, strings.TrimSuffix(line, " {"))
			}
			if strings.HasPrefix(line, "type ") && strings.Contains(line, " hook ") {
				f := strings.Fields(line)
				hooks = append(hooks, f[3])
			}
		}
		same(t, "tables of "+h.Name, tables, []string{"table arp tortie", "table inet tortie"})
		// The last two limit what a workload asks of its host, by IP and by ARP.
		same(t, "hooks of "+h.Name, hooks, []string{"prerouting", "input", "forward", "output", "input", "input", "input"})
		for line := range strings.Lines(s.sh(t, h.Name, "tc", "qdisc", "show")) {
			if !strings.HasPrefix(line, "qdisc noqueue ") {
				t.Errorf("%s: %s", h.Name, line)
			}
		}
		if links := s.sh(t, h.Name, "ip", "-details", "link", "show"); strings.Contains(links, "xdp") || strings.Contains(links, "master") {
			t.Errorf("%s has a bridge or a program on a link:\n%s", h.Name, links)
		}
	}
}

// Promise F16: policy is enforced at the first and at the last hop.
// Promise D6: the two hosts' rules are one behind the other.
func testBothEnds(t *testing.T, s *site) {
	s.examples(t)
	for _, w := range []string{"web-1", "db-1"} { // what db-1 sends to web-1 neither end permits
		host := s.find(t, w).Host
		s.kill(t, host, lab.Agent)
		if err := s.DropTables(host); err != nil {
			t.Fatal(err)
		}
		denied := s.attempt(t, "db-1", "web-1")
		wait(700 * time.Millisecond)
		denied()
		s.start(t, host, lab.Agent)
		s.settle(t)
	}
	s.matrix(t, lab.MatrixOptions{})
}
