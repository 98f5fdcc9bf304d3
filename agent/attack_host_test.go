package agent

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What doNotTrack policy of the host allows gets no further than to the host:
// neither by an external address, which is not translated then but is routed to
// the workload: nobody can say that it is there; nor from a workload, whose
// neighbour discovery is not tracked.
//
// Promise C2: what goes to an endpoint must pass its ingress policy.
func TestAttackUntracked(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	s.set(policyOf("outside"), "")
	s.set(s.server.key, s.server.floating())
	s.set(policyOf("u"), onHosts("u", `"doNotTrack":true,"applyOnForward":true,"types":["Ingress","Egress"],"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`))
	s.batch(s.server.ns, "addr add "+external[4]+"/32 dev lo", "addr add "+external[6]+"/128 dev eth0 nodad") // it takes that for itself
	out, thief, client, server := s.wire(s.out), s.wire(s.other), s.wire(s.client), s.wire(s.server)
	out.to(s.ns, "up0")
	for _, name := range []string{"up0", "*"} {
		s.set(hostKey("h"), hostDoc("h", `"interfaceName":"`+name+`"`))
		for _, f := range families {
			for _, to := range []string{external[f], s.server.addr(f)} {
				for _, port := range []uint16{80, 9001} {
					out.packet(ipPacket(s.out.addr(f), to, unix.IPPROTO_UDP, udpSegment(4000, port, forbidden)))
					out.packet(ipPacket(s.out.addr(f), to, unix.IPPROTO_TCP, append(tcpSegment(4000, port, 1, 1, tcpSYN), forbidden...)))
					out.packet(ipPacket(s.out.addr(f), to, unix.IPPROTO_TCP, append(tcpSegment(4000, port, 1, 1, tcpACK), forbidden...)))
				}
				if f == 4 {
					continue
				}
				for typ := byte(130); typ <= 143; typ++ {
					m := append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(to).AsSlice()...)
					out.packet(ipPacket(s.out.addr(f), to, unix.IPPROTO_ICMPV6, append(m, forbidden...)))
					thief.packet(ipPacket(s.other.addr(f), to, unix.IPPROTO_ICMPV6, append(m, forbidden...)))
				}
			}
			for range 2 { // behind what came by either interface
				client.packet(ipPacket(s.client.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4000, 9000, "honest")))
				server.await("what is honest", func(b []byte) bool {
					if bytes.Contains(b, []byte(forbidden)) {
						t.Errorf("IPv%d, endpoint for %s: delivered: %q", f, name, b)
					}
					return bytes.HasSuffix(b, []byte("honest"))
				})
			}
		}
	}
}

// What the host serves to itself alone stays that, though workloads may reach
// the host and the host takes such addresses from outside, as kube-proxy has it.
//
// Promise C10: what reaches the host is what was meant to.
func TestAttackLoopback(t *testing.T) {
	s := newScenarioOn(t, func(h *testHost) { h.env = []string{"FELIX_DEFAULTENDPOINTTOHOSTACTION=Accept"} })
	s.outside()
	s.ns.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", "net.ipv4.conf.default.route_localnet=1", "net.ipv4.conf."+s.other.iface+".route_localnet=1")
	s.run()
	ears, thief := s.ears(), s.wire(s.other)
	for _, to := range []string{"127.0.0.1", "127.1.2.3", "127.255.255.255"} {
		thief.packet(ipPacket(s.other.v4, to, unix.IPPROTO_UDP, udpSegment(4000, 9001, forbidden)))
	}
	for _, to := range []string{"::1", "::ffff:127.0.0.1"} {
		thief.packet(ip16(s.other.v6, to, [2]uint16{4000, 9001}))
	}
	thief.packet(ipPacket(s.other.v4, "192.0.2.2", unix.IPPROTO_UDP, udpSegment(4000, 9001, "end")))
	s.hears(ears, "end")
}
