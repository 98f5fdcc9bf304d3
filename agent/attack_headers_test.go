package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forbidden is what no frame may carry that is delivered.
const forbidden = "forbidden"

// crafted are frames of one guest, s.other, none of which policy lets pass.
type crafted struct {
	s    *scenario
	f    int // the family
	host string
	all  []forged
}

func (c *crafted) add(name string, kind uint16, payload []byte) {
	c.all = append(c.all, forged{name: fmt.Sprintf("IPv%d: %s", c.f, name), kind: kind, payload: payload})
}

// ip adds a packet to an address; headers are IPv4's options, or IPv6's
// extension headers, the first of which is of the type next.
func (c *crafted) ip(name, to string, next uint8, headers, payload []byte) []byte {
	from, dest := netip.MustParseAddr(c.s.other.addr(c.f)), netip.MustParseAddr(to)
	var p []byte
	if c.f == 4 {
		p = ip4Packet(from, dest, next, headers, payload)
	} else {
		p = ip6Packet(from, dest, next, slices.Concat(headers, payload))
	}
	c.add(name, etherType(p), p)
	return p
}

// udp is a datagram to the port that is closed, with its checksum.
func (c *crafted) udp(to string) []byte {
	return carried(ipPacket(c.s.other.addr(c.f), to, unix.IPPROTO_UDP, udpSegment(4000, 9001, forbidden)))
}

// options of IPv4, and a source route by the host to the server and, since it
// is last, by the server to the host.
func (c *crafted) options() {
	server := netip.MustParseAddr(c.s.server.v4).AsSlice()
	host := netip.MustParseAddr(c.host).AsSlice()
	for name, o := range map[string][]byte{
		"record route": {7, 7, 4, 0, 0, 0, 0, 0}, "timestamp": {68, 8, 5, 0, 0, 0, 0, 0}, "router alert": {148, 4, 0, 0},
		"no operation": {1, 1, 1, 1}, "option of no length": {7, 0, 0, 0}, "option beyond the header": {7, 40, 4, 0}, "CIPSO": {134, 6, 0, 0, 0, 1, 0, 0},
	} {
		c.ip("option "+name, c.s.server.v4, unix.IPPROTO_UDP, o, c.udp(c.s.server.v4))
	}
	for name, kind := range map[string]byte{"loose": 131, "strict": 137} {
		c.ip(name+" source route by the host", c.host, unix.IPPROTO_UDP, append([]byte{kind, 7, 4}, append(server, 0)...), c.udp(c.s.server.v4))
		c.ip(name+" source route to the host", c.s.server.v4, unix.IPPROTO_UDP, append([]byte{kind, 7, 4}, append(host, 0)...), c.udp(c.host))
	}
}

// extensions are IPv6's headers before the datagram.
func (c *crafted) extensions() {
	const udp = unix.IPPROTO_UDP
	to, server := c.s.server.v6, netip.MustParseAddr(c.s.server.v6).AsSlice()
	pad := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	for name, next := range map[string]byte{"hop by hop": 0, "destination options": 60, "mobility": 135, "HIP": 139, "shim6": 140, "experiment": 253, "nothing next": 59, "authentication": 51} {
		c.ip(name, to, next, pad(udp), c.udp(to))
		c.ip(name+" twice", to, next, append(pad(next), pad(udp)...), c.udp(to))
		c.ip("destination options and "+name, to, 60, append(pad(next), pad(udp)...), c.udp(to))
	}
	c.ip("home address", to, 60, append([]byte{udp, 2, 201, 16}, append(server, 1, 2, 0, 0)...), c.udp(to))
	c.ip("jumbogram", to, 0, []byte{udp, 0, 194, 4, 0, 1, 0, 0}, c.udp(to))
	c.ip("router alert", to, 0, []byte{udp, 0, 5, 2, 0, 0, 1, 0}, c.udp(to))
	many := bytes.Repeat(pad(60), 30)
	c.ip("30 headers", to, 60, append(many, pad(udp)...), c.udp(to))
	for _, kind := range []byte{0, 2, 3, 4, 253} {
		for left := range byte(2) {
			route := append([]byte{udp, 2, kind, left, 0, 0, 0, 0}, server...)
			c.ip(fmt.Sprintf("route of type %d by the host, %d left", kind, left), c.host, 43, route, c.udp(to))
			route = append([]byte{udp, 2, kind, left, 0, 0, 0, 0}, netip.MustParseAddr(c.host).AsSlice()...)
			c.ip(fmt.Sprintf("route of type %d to the host, %d left", kind, left), to, 43, route, c.udp(c.host))
		}
	}
	// Fragments of one piece, in each other, and with what is next said twice.
	piece := func(next byte) []byte { return []byte{next, 0, 0, 0, 0, 0, 0, 7} }
	c.ip("fragment in a fragment", to, 44, append(piece(44), piece(udp)...), c.udp(to))
	c.ip("fragment after options", to, 60, append(pad(44), piece(udp)...), c.udp(to))
	c.ip("fragment before hop by hop", to, 44, append(piece(0), pad(udp)...), c.udp(to))
}

// protocols that are neither TCP, UDP nor a question of ICMP.
func (c *crafted) protocols() {
	to := c.s.server.addr(c.f)
	inner := ipPacket(c.s.client.addr(c.f), to, unix.IPPROTO_UDP, udpSegment(4000, 9000, forbidden))
	for _, protocol := range []byte{0, 1, 2, 4, 33, 41, 47, 50, 51, 58, 59, 89, 94, 103, 112, 132, 136, 137, 253, 255} {
		c.ip(fmt.Sprintf("protocol %d", protocol), to, protocol, nil, c.udp(to))
		for _, dest := range []string{to, c.host} {
			c.ip(fmt.Sprintf("protocol %d with the client's packet to %s", protocol, dest), dest, protocol, nil, inner)
		}
	}
	icmp, types := byte(unix.IPPROTO_ICMP), []byte{0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 40, 255}
	if c.f == 6 {
		icmp, types = unix.IPPROTO_ICMPV6, []byte{1, 2, 3, 4, 128, 129, 130, 133, 134, 135, 136, 137, 138, 139, 140, 141, 143, 151, 153, 255}
	}
	for _, typ := range types {
		m := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(to).AsSlice()...)
		p := ipPacket(c.s.other.addr(c.f), to, icmp, append(m, forbidden...))
		c.add(fmt.Sprintf("ICMP of type %d", typ), etherType(p), p)
		if c.f == 6 {
			p = slices.Clone(p)
			p[7] = 255
			c.add(fmt.Sprintf("ICMP of type %d, a neighbour's", typ), etherType(p), p)
		}
	}
	for _, flags := range []byte{0, 1, 2, 3, 4, 6, 0x10, 0x12, 0x14, 0x29, 0x3f, 0xff} {
		for _, size := range []byte{0, 0x40, 0x50, 0xf0} {
			p := ipPacket(c.s.other.addr(c.f), to, unix.IPPROTO_TCP, append(tcpSegment(4000, 9001, 1, 1, flags), forbidden...))
			carried(p)[12] = size
			c.add(fmt.Sprintf("TCP with flags %#x and offset %#x", flags, size), etherType(p), p)
		}
	}
}

// lengths that do not agree.
func (c *crafted) lengths() {
	to := c.s.server.addr(c.f)
	whole := func() []byte {
		return ipPacket(c.s.other.addr(c.f), to, unix.IPPROTO_UDP, udpSegment(4000, 9001, forbidden))
	}
	for _, n := range []int{0, 7, 8, 9, 200, 65535} {
		p := whole()
		binary.BigEndian.PutUint16(carried(p)[4:], uint16(n))
		c.add(fmt.Sprintf("UDP of length %d", n), etherType(p), p)
		p, at := whole(), 2
		if c.f == 6 {
			at = 4
		}
		binary.BigEndian.PutUint16(p[at:], uint16(n))
		if c.f == 4 {
			sum4(p)
		}
		c.add(fmt.Sprintf("IP of length %d", n), etherType(p), p)
		c.add(fmt.Sprintf("and %d bytes more", n%1000), etherType(p), append(whole(), make([]byte, n%1000)...))
	}
	for n := range 28 {
		c.add(fmt.Sprintf("%d bytes", n), etherType(whole()), whole()[:n])
	}
	if c.f == 4 {
		for _, ihl := range []byte{0, 4, 6, 15} {
			p := whole()
			p[0] = 0x40 | ihl
			c.add(fmt.Sprintf("%d words of header", ihl), unix.ETH_P_IP, p)
		}
	}
	c.add("as the other family", etherType(whole())^unix.ETH_P_IP^unix.ETH_P_IPV6, whole())
}

// frames around the datagram.
func (c *crafted) frames() {
	p := ipPacket(c.s.other.addr(c.f), c.s.server.addr(c.f), unix.IPPROTO_UDP, udpSegment(4000, 9001, forbidden))
	kind := binary.BigEndian.AppendUint16(nil, etherType(p))
	for _, outer := range []uint16{0x8100, 0x88a8, 0x9100} {
		for _, vlan := range []byte{0, 1, 5} {
			c.add(fmt.Sprintf("in VLAN %d of %#x", vlan, outer), outer, slices.Concat([]byte{0x60, vlan}, kind, p))
			c.add(fmt.Sprintf("in VLAN 0 in VLAN %d of %#x", vlan, outer), outer, slices.Concat([]byte{0, vlan, 0x81, 0, 0, 0}, kind, p))
		}
	}
	c.add("in LLC", uint16(len(p)+3), append([]byte{6, 6, 3}, p...))
	c.add("in SNAP", uint16(len(p)+8), slices.Concat([]byte{0xaa, 0xaa, 3, 0, 0, 0}, kind, p))
	c.add("in PPPoE", 0x8864, slices.Concat([]byte{0x11, 0, 0, 1, 0, byte(len(p) + 2), 0, map[int]byte{4: 0x21, 6: 0x57}[c.f]}, p))
	c.add("in MPLS", 0x8847, append([]byte{0, 0, 1, 64}, p...))
	c.add("as a loop", 0x9000, p)
}

// places that are the host, many, or nobody.
func (c *crafted) places() {
	places := map[int][]string{
		4: {"255.255.255.255", "224.0.0.1", "224.0.0.251", "239.1.1.1", "192.0.2.255", "192.0.2.0", "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.1.1", "10.65.0.255"},
		6: {"ff01::1", "ff02::1", "ff02::2", "ff05::1", "ff0e::1", "::1", "::", "::ffff:10.65.0.3", "::10.65.0.3", "::ffff:192.0.2.2", hostLinkLocal, "fe80::ff:fe00:3", "fec0::1"},
	}[c.f]
	for _, to := range append(places, c.host) {
		// The closed port of each, and what serves addresses, which other ports do not.
		for _, ports := range [][2]uint16{{4000, 9001}, {67, 9001}, {68, 9001}, {546, 9001}, {53, 9001}} {
			p := ip16(c.s.other.addr(c.f), to, ports)
			c.add(fmt.Sprintf("from port %d to %s", ports[0], to), etherType(p), p)
		}
		if c.f == 6 {
			continue
		}
		c.add("with a source route, to "+to, unix.ETH_P_IP, ip4Packet(netip.MustParseAddr(c.s.other.v4), netip.MustParseAddr(to), unix.IPPROTO_UDP,
			append([]byte{131, 7, 4}, append(netip.MustParseAddr(c.s.server.v4).AsSlice(), 0)...), c.udp(to)))
	}
}

// ip16 is a datagram, to an address that is of IPv6 though it says it is of IPv4.
func ip16(from, to string, ports [2]uint16) []byte {
	payload := udpSegment(ports[0], ports[1], forbidden)
	if netip.MustParseAddr(to).Is4() {
		return ipPacket(from, to, unix.IPPROTO_UDP, payload)
	}
	p := ip6Packet(netip.MustParseAddr(from), netip.MustParseAddr("2001:db8::9"), unix.IPPROTO_UDP, carried(ipPacket(from, to, unix.IPPROTO_UDP, payload)))
	b := netip.MustParseAddr(to).As16()
	copy(p[24:], b[:])
	return p
}

// ears are sockets of the host on the closed port, at any address.
func (s *scenario) ears() *net.UDPConn {
	s.t.Helper()
	return s.udp(&guest{ns: s.ns, v6: "::"}, 6, 9001)
}

// What policy forbids stays out whatever headers it has, wherever it says it
// goes, on a host that is as trusting as sysctls can make it; what policy allows
// passes with the same headers.
//
// Promise C2: no packet gets past policy by its headers. Promise C10: nor to the host.
func TestAttackHeaders(t *testing.T) {
	s := newScenario(t)
	s.outside()
	s.serveAll(t)
	s.run()
	ears := s.ears()
	guest := s.wire(s.other)
	others := []*wire{s.wire(s.server), s.wire(s.client)}
	for _, f := range families {
		c := &crafted{s: s, f: f, host: map[int]string{4: "192.0.2.2", 6: "2001:db8::2"}[f]}
		if f == 4 {
			c.options()
		} else {
			c.extensions()
		}
		c.protocols()
		c.lengths()
		c.frames()
		c.places()
		for i, a := range c.all {
			guest.send(a.kind, a.payload)
			if i%50 != 49 && i != len(c.all)-1 {
				continue
			}
			for n, w := range others { // what is honest comes behind
				to := []string{s.server.addr(f), s.client.addr(f)}[n]
				guest.packet(ipPacket(s.other.addr(f), to, unix.IPPROTO_UDP, udpSegment(4000, 9000, "honest")))
				w.await("what is honest after "+a.name, func(b []byte) bool {
					if bytes.Contains(b, []byte(forbidden)) {
						t.Errorf("delivered to %d, one up to %q: %.100q", n, a.name, b)
					}
					return bytes.HasSuffix(b, []byte("honest"))
				})
			}
		}
		t.Logf("IPv%d: %d frames", f, len(c.all))
		// With the same headers what is allowed arrives.
		next, headers := byte(unix.IPPROTO_UDP), []byte{148, 4, 0, 0}
		if f == 6 {
			next, headers = 60, []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}
		}
		guest.packet(c.ip("allowed", s.server.addr(f), next, headers, carried(ipPacket(s.other.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4000, 9000, "allowed")))))
		others[0].await("what is allowed", func(b []byte) bool { return bytes.HasSuffix(b, []byte("allowed")) })
	}
	s.silent(ears)
}

// silent fails the test if the host has heard anything.
func (s *scenario) silent(ears *net.UDPConn) {
	s.t.Helper()
	// What the host says to itself comes behind.
	said := s.udp(&guest{ns: s.ns, v6: "::1"}, 6, 0)
	if _, err := said.WriteToUDPAddrPort([]byte("end"), netip.MustParseAddrPort("[::1]:9001")); err != nil {
		s.t.Fatal(err)
	}
	s.hears(ears, "end")
}

// hears fails the test if the host hears anything before a text.
func (s *scenario) hears(ears *net.UDPConn, last string) {
	s.t.Helper()
	_ = ears.SetReadDeadline(time.Now().Add(timeout))
	for b := make([]byte, 2000); ; {
		n, from, err := ears.ReadFromUDPAddrPort(b)
		if err != nil {
			s.t.Fatal(err)
		}
		if string(b[:n]) == last {
			return
		}
		s.t.Errorf("the host heard %q from %s", b[:n], from)
	}
}

// serveAll makes the host as trusting as it can be, and lets the other reach
// one port of the server and of the client.
func (s *scenario) serveAll(t *testing.T) {
	t.Helper()
	var set []string
	for name, value := range map[string]string{
		"net.ipv4.conf.%s.accept_source_route": "1", "net.ipv6.conf.%s.accept_source_route": "1", "net.ipv4.conf.%s.route_localnet": "1",
		"net.ipv4.conf.%s.bc_forwarding": "1", "net.ipv6.conf.%s.seg6_enabled": "1", "net.ipv6.conf.%s.rpl_seg_enabled": "1", "net.ipv4.conf.%s.rp_filter": "0",
		"net.ipv6.conf.%s.proxy_ndp": "1", "net.ipv4.conf.%s.accept_local": "1",
	} {
		for _, of := range []string{"all", "default", s.other.iface} {
			if n := fmt.Sprintf(name, of); s.hasSysctl(n) {
				set = append(set, n+"="+value)
			}
		}
	}
	s.ns.Run(t, "sysctl", append([]string{"-qw"}, set...)...)
	ports := strings.Replace(allow, `"}`, `","protocol":"UDP","destination":{"ports":[9000]}}`, 1)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, ports, allow))
	s.put(policyOf("clients"), policyDoc("clients", `role == "client"`, ports, allow))
	s.revision = s.put(policyOf("other"), policyDoc("other", `role == "other"`, ports, allow))
}

func (s *scenario) hasSysctl(name string) bool {
	_, err := s.ns.Try("sysctl", "-n", name)
	return err == nil
}
