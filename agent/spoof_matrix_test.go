package agent

import (
	"fmt"
	"maps"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostLinkLocal is the host's link-local address on every guest's link.
const hostLinkLocal = "fe80::ecee:eeff:feee:eeee"

// forged is a frame that a guest may send, and what becomes of it.
type forged struct {
	name    string
	mac     net.HardwareAddr // from another MAC than its own
	kind    uint16           // Ethernet's type
	payload []byte
	counter string // which counts it as refused; "": none, since the kernel or nobody refuses it
}

// forgeries are all that a guest can claim to be in the two families, as seen
// from the thief: another guest, the gateway, nobody, a router, a DHCP server.
// With fixed, the thief's endpoint has a MAC.
func (s *scenario) forgeries(thief *wire, fixed bool) (all []forged) {
	mac, _ := net.ParseMAC(s.server.mac)
	ip := func(name, counter string, from, to string, protocol uint8, payload []byte) {
		p := ipPacket(from, to, protocol, payload)
		if protocol == unix.IPPROTO_ICMPV6 {
			p[7] = 255
		}
		all = append(all, forged{name: name, kind: etherType(p), payload: p, counter: counter})
	}
	fromMAC := func(m net.HardwareAddr) {
		all[len(all)-1].name += " from another MAC"
		all[len(all)-1].mac = m
	}
	data := func() []byte { return udpSegment(4000, 9000, "forged") }
	const udp, icmp, icmp6 = unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	sources := map[int][]string{
		4: {s.client.v4, s.server.v4, "10.65.9.9", "203.0.113.5", "169.254.1.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"},
		6: {s.client.v6, s.server.v6, "fd00:65::99", "2001:db8::5", hostLinkLocal, "fe80::bad", "::", "::ffff:10.65.0.1"},
	}
	for _, f := range families {
		to := s.server.addr(f)
		for _, from := range sources[f] {
			ip("UDP from "+from, "spoofed", from, to, udp, data())
			ip("TCP from "+from, "spoofed", from, to, unix.IPPROTO_TCP, tcpSegment(4000, 80, 1, 0, tcpRST))
			ip("UDP to the host from "+from, "spoofed", from, map[int]string{4: "169.254.1.1", 6: hostLinkLocal}[f], udp, data())
			// With priority, in no VLAN.
			tagged := ipPacket(from, to, udp, data())
			all = append(all, forged{name: "tagged UDP from " + from, kind: 0x8100, payload: append([]byte{0x60, 0, byte(etherType(tagged) >> 8), byte(etherType(tagged))}, tagged...), counter: "spoofed"})
		}
		ip("another's address", "spoofed", s.server.addr(f), s.client.addr(f), udp, data())
		fromMAC(mac)
		if fixed {
			ip("its own address", "spoofed", s.other.addr(f), to, udp, data())
			fromMAC(mac)
		}
	}
	ip("redirect by the gateway", "spoofed", "169.254.1.1", s.server.v4, icmp, append(icmpMessage(5, 1, 0, 0), ipPacket(s.server.v4, "192.0.2.1", udp, data())...))
	ip("redirect by the gateway", "spoofed", hostLinkLocal, s.server.v6, icmp6, redirect(s.other.v6))
	ip("redirect", "invalid", s.other.v6, s.server.v6, icmp6, redirect(s.other.v6))
	ip("router advertisement", "spoofed", "fe80::bad", "ff02::1", icmp6, routerAdvert())
	ip("router advertisement by the gateway", "spoofed", hostLinkLocal, "ff02::1", icmp6, routerAdvert())
	ip("router advertisement", "invalid", s.other.v6, "ff02::1", icmp6, routerAdvert())
	ip("router advertisement", "invalid", s.other.v6, s.server.v6, icmp6, routerAdvert())
	ip("listener query", "spoofed", "fe80::bad", "ff02::1", icmp6, append([]byte{130, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...))
	answer4, answer6 := func() []byte { return udpSegment(67, 68, "offer") }, func() []byte { return udpSegment(547, 546, "advertise") }
	for _, from := range []string{s.other.v4, "169.254.1.1", "0.0.0.0"} {
		for _, to := range []string{"255.255.255.255", s.server.v4} {
			ip("DHCP answer from "+from+" to "+to, "spoofed", from, to, udp, answer4())
		}
	}
	for _, from := range []string{s.other.v6, "fe80::bad", hostLinkLocal} {
		for _, to := range []string{"ff02::1", s.server.v6} {
			ip("DHCPv6 answer from "+from+" to "+to, "spoofed", from, to, udp, answer6())
		}
	}
	// The kernel refuses to route what has no source.
	ip("DHCP request to another guest", "", "0.0.0.0", s.server.v4, udp, udpSegment(68, 67, "forged"))
	return append(append(all, s.neighbourForgeries(thief, mac, fixed)...), s.honest(thief)...)
}

// neighbourForgeries are claims of addresses and of MACs.
func (s *scenario) neighbourForgeries(thief *wire, mac net.HardwareAddr, fixed bool) (all []forged) {
	arp := func(name string, ether, sender net.HardwareAddr, op byte, from, to string) {
		all = append(all, forged{name: "ARP: " + name, mac: ether, kind: unix.ETH_P_ARP, payload: arpMessage(op, sender, from, to), counter: "arp/spoofed"})
	}
	for _, from := range []string{s.server.v4, s.client.v4, "169.254.1.1", "203.0.113.5", "255.255.255.255"} {
		for op := byte(1); op <= 2; op++ {
			arp(fmt.Sprintf("%d of %s", op, from), nil, thief.mac, op, from, "169.254.1.1")
			arp(fmt.Sprintf("%d gratuitous of %s", op, from), nil, thief.mac, op, from, from)
			arp(fmt.Sprintf("%d of %s, MAC and all", op, from), mac, mac, op, from, from)
		}
	}
	if fixed {
		arp("another sender in the message", nil, mac, 1, s.other.v4, "169.254.1.1")
		arp("another sender of the frame", mac, thief.mac, 1, s.other.v4, "169.254.1.1")
		arp("another MAC", mac, mac, 2, s.other.v4, s.other.v4)
		arp("a probe of another MAC", mac, mac, 1, "0.0.0.0", s.server.v4)
	}
	nd := func(name, counter, from, to string, message []byte) {
		p := neighbourPacket(from, to, message)
		all = append(all, forged{name: "ND: " + name, kind: unix.ETH_P_IPV6, payload: p, counter: counter})
	}
	for _, target := range []string{s.server.v6, s.client.v6, "2001:db8::5"} {
		for _, from := range []string{s.other.v6, "fe80::bad", "::", target} {
			for _, m := range []net.HardwareAddr{thief.mac, mac} {
				nd(fmt.Sprintf("%s says that %s is at %s", from, target, m), "spoofed", from, "ff02::1", neighbourMessage(true, m, target))
			}
		}
		nd("solicitation by "+target, "spoofed", target, hostLinkLocal, neighbourMessage(false, thief.mac, hostLinkLocal))
		nd("solicitation by "+target+" to all", "spoofed", target, "ff02::1:ffee:eeee", neighbourMessage(false, mac, hostLinkLocal))
	}
	// What is its own, at the MAC of another: nothing refuses it, and where its
	// MAC is known it changes nothing; see the end of the test.
	if fixed {
		nd("its own address at another MAC", "", s.other.v6, "ff02::1", neighbourMessage(true, mac, s.other.v6))
		nd("solicitation from another MAC", "", s.other.v6, hostLinkLocal, neighbourMessage(false, mac, hostLinkLocal))
	}
	return all
}

// honest is what must not be refused.
func (s *scenario) honest(thief *wire) (all []forged) {
	add := func(name string, kind uint16, payload []byte) {
		all = append(all, forged{name: "honest: " + name, kind: kind, payload: payload})
	}
	add("ARP", unix.ETH_P_ARP, arpMessage(1, thief.mac, s.other.v4, "169.254.1.1"))
	add("gratuitous ARP", unix.ETH_P_ARP, arpMessage(1, thief.mac, s.other.v4, s.other.v4))
	add("ARP probe", unix.ETH_P_ARP, arpMessage(1, thief.mac, "0.0.0.0", s.other.v4))
	add("solicitation", unix.ETH_P_IPV6, neighbourPacket(s.other.v6, "ff02::1:ffee:eeee", neighbourMessage(false, thief.mac, hostLinkLocal)))
	add("advertisement", unix.ETH_P_IPV6, neighbourPacket(s.other.v6, "ff02::1", neighbourMessage(true, thief.mac, s.other.v6)))
	add("detection of duplicates", unix.ETH_P_IPV6, neighbourPacket("::", "ff02::1:ff00:3", append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, net.ParseIP(s.other.v6)...)))
	add("router solicitation", unix.ETH_P_IPV6, neighbourPacket("fe80::bad", "ff02::2", []byte{133, 0, 0, 0, 0, 0, 0, 0}))
	add("DHCP request", unix.ETH_P_IP, ipPacket("0.0.0.0", "255.255.255.255", unix.IPPROTO_UDP, udpSegment(68, 67, "discover")))
	add("DHCPv6 request", unix.ETH_P_IPV6, ipPacket("fe80::bad", "ff02::1:2", unix.IPPROTO_UDP, udpSegment(546, 547, "solicit")))
	return all
}

func routerAdvert() []byte {
	b := []byte{134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	// A prefix to make addresses of: 2001:db8:bad::/64.
	return append(append(b, 3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0), net.ParseIP("2001:db8:bad::")...)
}

// redirect says that the next hop to 2001:db8::1 is target.
func redirect(target string) []byte {
	return append(append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, net.ParseIP(target)...), net.ParseIP("2001:db8::1")...)
}

// forgeriesRefused reads the counters of frames that are refused.
func (s *scenario) forgeriesRefused() map[string]int {
	s.t.Helper()
	page, err := s.show("/show/kernel")
	if err != nil {
		s.t.Fatal(err)
	}
	counts := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^counter (spoofed|arp/spoofed|invalid) packets (\d+)`).FindAllStringSubmatch(page, -1) {
		counts[m[1]], _ = strconv.Atoi(m[2])
	}
	return counts
}

// Each forged frame is refused by the check that is for it, whatever policy
// allows; none comes out at another guest, and none changes the host's routes,
// addresses and neighbours.
//
// Promise C1: a matrix of what a workload can claim to be, in IP, ARP, neighbour
// discovery and MACs.
func TestSpoofMatrix(t *testing.T) {
	for _, fixed := range []bool{true, false} {
		t.Run(map[bool]string{true: "mac", false: "any-mac"}[fixed], func(t *testing.T) {
			s := newScenario(t)
			s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, allow))
			s.put(policyOf("clients"), policyDoc("clients", `role in {"client", "other"}`, allow, allow))
			s.revision = s.put(s.other.key, s.other.endpoint(`{"role":"other"}`))
			if fixed {
				s.revision = s.put(s.other.key, s.other.bound(`{"role":"other"}`))
			}
			s.run()
			thief, server, client := s.wire(s.other), s.wire(s.server), s.wire(s.client)
			host := func() string {
				out := s.ns.Run(t, "ip", "route") + s.ns.Run(t, "ip", "-6", "route") + s.ns.Run(t, "ip", "-o", "addr")
				for _, g := range []*guest{s.server, s.client} {
					for _, f := range families {
						out += s.ns.Run(t, "ip", "neigh", "show", "to", g.addr(f))
					}
				}
				return out + s.ns.Run(t, "ip", "neigh", "show", "nud", "permanent")
			}
			before := host()
			want, n := s.forgeriesRefused(), 0
			for _, f := range s.forgeries(thief, fixed) {
				from := thief.mac
				if f.mac != nil {
					from = f.mac
				}
				thief.sendFrom(from, f.kind, f.payload)
				if f.counter != "" {
					n++
					want[f.counter]++
				}
				var got map[string]int
				s.await(f.name+" to be refused", func() bool {
					got = s.forgeriesRefused()
					return got[f.counter] >= want[f.counter]
				})
				if !maps.Equal(got, want) {
					t.Fatalf("%s: counters are %v, want %v", f.name, got, want)
				}
			}
			if n < 100 {
				t.Errorf("only %d frames were to be refused", n)
			}
			for _, f := range families { // behind all of them, what is delivered
				thief.packet(ipPacket(s.other.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4000, 9000, "honest")))
				thief.packet(ipPacket(s.other.addr(f), s.client.addr(f), unix.IPPROTO_UDP, udpSegment(4000, 9000, "honest")))
			}
			for _, w := range []*wire{server, client} {
				for range families {
					w.await("what is honest", func(b []byte) bool {
						if strings.HasSuffix(string(b), "honest") {
							return true
						}
						// The host's own questions, and its answers to what was honest, may come.
						if b[12] == 8 && b[13] == 0 || strings.Contains(string(b), "forged") {
							t.Errorf("delivered: %q", b)
						}
						return false
					})
				}
			}
			if after := host(); after != before {
				t.Errorf("the host was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

// A guest that was asked by its address answers DHCP: renewals of a lease go to
// the server's.
func TestAskedDHCPServer(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, allow))
	s.revision = s.put(policyOf("clients"), policyDoc("clients", `role in {"client", "other"}`, allow, allow))
	s.run()
	asks, answers := s.wire(s.client), s.wire(s.server)
	for f, ports := range map[int][2]uint16{4: {68, 67}, 6: {546, 547}} {
		asks.packet(ipPacket(s.client.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(ports[0], ports[1], "renew")))
		answers.await("the request", func(b []byte) bool { return strings.HasSuffix(string(b), "renew") })
		answers.packet(ipPacket(s.server.addr(f), s.client.addr(f), unix.IPPROTO_UDP, udpSegment(ports[1], ports[0], "ack")))
		asks.await("the answer", func(b []byte) bool { return strings.HasSuffix(string(b), "ack") })
	}
}
