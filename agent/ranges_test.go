package agent

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/api"
)

// pairRanges are those of TestAddressPairs, as addresses of the guest in them.
var pairRanges = map[int]string{4: "10.99.0.7", 6: "fd99::7"}

// paired is an endpoint as OpenStack's driver writes one whose address pairs
// are ranges.
func (g *guest) paired(labels string) string {
	return strings.Replace(g.bound(labels), `"ipNetworks":[`, `"allowedIps":["10.99.0.0/24/32","fd99::/64/128"],"ipNetworks":["10.99.0.0/24/32","fd99::/64/128",`, 1)
}

// Address pairs of OpenStack that are ranges, as its driver writes them: the
// endpoint stays in force, sends from any address in them, is reached there by
// its policy, is a member by them of what selects it, answers for them by ARP
// and neighbour discovery, and is in force as before when they go.
//
// Pain 20: elsewhere an address pair that is a range costs the endpoint all.
func TestAddressPairs(t *testing.T) {
	s := newScenario(t)
	s.run()
	_, denied := s.streams()
	s.revision = s.put(s.client.key, s.client.paired(`{"role":"client"}`))
	s.settle(s.put(s.server.key, s.server.paired(`{"role":"server"}`))) // which has the same ones: the client has them
	s.settle(s.put(s.server.key, s.server.bound(`{"role":"server"}`)))
	for f, p := range map[int]string{4: "10.99.0.0/24", 6: "fd99::/64"} {
		if out := s.ns.Run(t, "ip", fmt.Sprintf("-%d", f), "route", "show", p); !strings.Contains(out, "dev "+s.client.iface) {
			t.Fatalf("the route to %s: %s", p, out)
		}
	}
	client, other, server := s.wire(s.client), s.wire(s.other), s.wire(s.server)
	spoofed, arp := s.counter("spoofed"), s.counter("arp/spoofed")
	for f, own := range pairRanges {
		s.client.ns.Run(t, "ip", "addr", "add", own, "dev", "eth0", "nodad")
		// Fresh connections from the range reach the server, which allows clients.
		client.packet(ipPacket(own, s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4001, 9000, "from the range")))
		server.await("a datagram from the range", func(b []byte) bool { return strings.HasSuffix(string(b), "from the range") })
		// What another sends from it is refused.
		other.packet(ipPacket(own, s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4002, 9000, "spoofed")))
		spoofed++
		// It is reached there once its policy allows it, and the host finds it.
		server.packet(ipPacket(s.server.addr(f), own, unix.IPPROTO_UDP, udpSegment(4003, 9001, "to the range")))
		client.await("a datagram to the range", func(b []byte) bool { return strings.HasSuffix(string(b), "to the range") })
	}
	other.send(unix.ETH_P_ARP, arpMessage(1, other.mac, pairRanges[4], pairRanges[4]))
	other.packet(neighbourPacket(s.other.v6, "ff02::1", neighbourMessage(true, other.mac, pairRanges[6])))
	s.counts("arp/spoofed", arp+1)
	s.counts("spoofed", spoofed+1)
	server.all(func(b []byte) {
		if strings.HasSuffix(string(b), "spoofed") {
			t.Error("a datagram from another's range was delivered")
		}
	})
	for _, d := range denied {
		d.never()
	}
	s.settle(s.put(s.client.key, s.client.bound(`{"role":"client"}`)))
	for f, own := range pairRanges {
		client.packet(ipPacket(own, s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4001, 9000, "late")))
		if out := s.ns.Run(t, "ip", fmt.Sprintf("-%d", f), "route", "show", "proto", "80"); strings.Contains(out, "99") {
			t.Errorf("routes to the ranges are left: %s", out)
		}
	}
	s.counts("spoofed", spoofed+3)
}

// Other sources that an endpoint is allowed count once WorkloadSourceSpoofing
// is Any, and no longer when it is not; what they are used for is judged. A
// link-local address is never one of them.
func TestOtherSources(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, `{"action":"Allow","protocol":"UDP","destination":{"ports":[9000]}}`, allow))
	doc := strings.Replace(s.other.bound(`{"role":"other"}`), `"ipNetworks"`, `"allowSpoofedSourcePrefixes":["198.51.100.0/24","::/0"],"ipNetworks"`, 1)
	s.revision = s.put(s.other.key, doc)
	s.run()
	felix := apiKey(api.KindFelixConfiguration, "default")
	spoofing := func(v string) {
		s.settle(s.put(felix, `{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"workloadSourceSpoofing":"`+v+`"}}`))
	}
	other, server := s.wire(s.other), s.wire(s.server)
	sources := map[int]string{4: "198.51.100.9", 6: "2001:db8::9"}
	spoofed, port := s.counter("spoofed"), uint16(5000)
	send := func(f int, source string, to uint16, text string) {
		port++
		other.packet(ipPacket(source, s.server.addr(f), unix.IPPROTO_UDP, udpSegment(port, to, text)))
	}
	for f, source := range sources {
		send(f, source, 9000, "refused")
	}
	s.counts("spoofed", spoofed+2)
	spoofing("Any")
	unmatched := s.counter("unmatched")
	for f, source := range sources {
		send(f, source, 9001, "denied")
		send(f, source, 9000, "allowed")
		server.await("a datagram from another source", func(b []byte) bool {
			if strings.HasSuffix(string(b), "refused") || strings.HasSuffix(string(b), "denied") {
				t.Errorf("IPv%d: %q was delivered", f, b)
			}
			return strings.HasSuffix(string(b), "allowed")
		})
	}
	s.counts("unmatched", unmatched+2)
	send(6, "fe80::9", 9000, "link-local")
	s.counts("spoofed", spoofed+3)
	spoofing("Disabled")
	for f, source := range sources {
		send(f, source, 9000, "late")
	}
	s.counts("spoofed", spoofed+5)
	server.all(func(b []byte) {
		if strings.HasSuffix(string(b), "late") || strings.HasSuffix(string(b), "link-local") {
			t.Errorf("%q was delivered", b)
		}
	})
}
