package agent

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// probe is one packet to the server.
type probe struct {
	family   int
	from     string // client or other
	protocol string // tcp, udp or icmp
	port     uint16 // of the server; of ICMP the type
	source   uint16 // port; of ICMP the identifier
}

func (p probe) String() string {
	return fmt.Sprintf("IPv%d %s %d from %s", p.family, p.protocol, p.port, p.from)
}

func (p probe) is(protocol string, ports ...uint16) bool {
	return p.protocol == protocol && (len(ports) == 0 || slices.Contains(ports, p.port))
}

// matrixRules are lists of ingress rules, and what they let in.
var matrixRules = []struct {
	rules string
	want  func(p probe) bool
}{
	{``, func(probe) bool { return false }},
	{`{"action":"Allow"}`, func(probe) bool { return true }},
	{`{"action":"Deny"}`, func(probe) bool { return false }},
	{`{"action":"Allow","protocol":"TCP"}`, func(p probe) bool { return p.is("tcp") }},
	{`{"action":"Allow","protocol":17}`, func(p probe) bool { return p.is("udp") }},
	{`{"action":"Allow","protocol":"ICMP"}`, func(p probe) bool { return p.is("icmp") && p.family == 4 }},
	{`{"action":"Allow","protocol":"ICMPv6"}`, func(p probe) bool { return p.is("icmp") && p.family == 6 }},
	{`{"action":"Allow","notProtocol":"TCP"}`, func(p probe) bool { return !p.is("tcp") }},
	{`{"action":"Allow","ipVersion":6}`, func(p probe) bool { return p.family == 6 }},
	{`{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}`, func(p probe) bool { return p.is("tcp", 80) }},
	{`{"action":"Allow","protocol":"TCP","destination":{"ports":[53,"400:8080"]}}`, func(p probe) bool { return p.is("tcp", 53, 443, 8080) }},
	{`{"action":"Allow","protocol":"UDP","destination":{"notPorts":["1:80"]}}`, func(p probe) bool { return p.is("udp", 443, 8080) }},
	{`{"action":"Allow","protocol":"TCP","source":{"ports":["10000:39999"]}}`, func(p probe) bool { return p.is("tcp") }},
	{`{"action":"Allow","protocol":"TCP","source":{"notPorts":["10000:39999"]}}`, func(probe) bool { return false }},
	{`{"action":"Allow","protocol":"ICMP","icmp":{"type":8}}`, func(p probe) bool { return p.family == 4 && p.is("icmp", 8) }},
	{`{"action":"Allow","protocol":"ICMP","icmp":{"type":13,"code":0}}`, func(p probe) bool { return p.family == 4 && p.is("icmp", 13) }},
	{`{"action":"Allow","protocol":"ICMP","icmp":{"type":8,"code":1}}`, func(probe) bool { return false }},
	{`{"action":"Allow","protocol":"ICMPv6","icmp":{"type":128,"code":0}}`, func(p probe) bool { return p.family == 6 && p.is("icmp", 128) }},
	{`{"action":"Allow","protocol":"ICMPv6","notICMP":{"type":128}}`, func(p probe) bool { return p.family == 6 && p.is("icmp", 139) }},
	{`{"action":"Allow","source":{"nets":["10.65.0.2/32","fd00:65::2/128"]}}`, func(p probe) bool { return p.from == "client" }},
	{`{"action":"Allow","source":{"nets":["10.65.0.4/30"]}}`, func(p probe) bool { return p.family == 4 && p.from == "other" }},
	{`{"action":"Allow","source":{"notNets":["10.65.0.2/31","fd00:65::4/126"]}}`, func(p probe) bool { return (p.family == 4) == (p.from == "other") }},
	{`{"action":"Allow","destination":{"nets":["0.0.0.0/0"]}}`, func(p probe) bool { return p.family == 4 }},
	{`{"action":"Allow","destination":{"notNets":["10.65.0.3","fd00:65::77"]}}`, func(p probe) bool { return p.family == 6 }},
	{`{"action":"Allow","source":{"selector":"role == \"client\""}}`, func(p probe) bool { return p.from == "client" }},
	{`{"action":"Allow","source":{"notSelector":"role == \"client\""}}`, func(p probe) bool { return p.from == "other" }},
	{`{"action":"Allow","source":{"selector":"net == \"set\""}}`, func(p probe) bool { return p.from == "other" }},
	{
		`{"action":"Allow","protocol":"TCP","source":{"selector":"has(role)","notNets":["fd00:65::/64","10.99.0.0/16"]},"destination":{"ports":[80,443]}}`,
		func(p probe) bool { return p.family == 4 && p.is("tcp", 80, 443) },
	},
	// Promise S6: allow and deny are final, later rules are not looked at.
	{`{"action":"Deny","protocol":"TCP","destination":{"ports":[80]}},{"action":"Allow"}`, func(p probe) bool { return !p.is("tcp", 80) }},
	{
		`{"action":"Allow","protocol":"TCP"},{"action":"Deny","protocol":"TCP","destination":{"ports":[80]}},{"action":"Allow","protocol":"UDP"}`,
		func(p probe) bool { return p.is("tcp") || p.is("udp") },
	},
	{
		`{"action":"Log"},{"action":"Deny","source":{"selector":"role == \"other\""}},{"action":"Allow","protocol":"UDP"}`,
		func(p probe) bool { return p.from == "client" && p.is("udp") },
	},
	{`{"action":"Pass","protocol":"TCP"},{"action":"Allow"}`, func(p probe) bool { return !p.is("tcp") }},
}

// probes are all packets of one round; each is of a connection of its own.
func probes(next *uint16) (all []probe) {
	for _, family := range families {
		for _, from := range []string{"client", "other"} {
			for _, protocol := range []string{"tcp", "udp"} {
				for _, port := range []uint16{53, 80, 443, 8080} {
					all = append(all, probe{family: family, from: from, protocol: protocol, port: port})
				}
			}
			for _, typ := range map[int][]uint16{4: {8, 13}, 6: {128, 139}}[family] {
				all = append(all, probe{family: family, from: from, protocol: "icmp", port: typ})
			}
		}
	}
	for i := range all {
		*next++
		all[i].source = *next
	}
	return all
}

func (p probe) packet(from, to *guest) []byte {
	source, dest := from.addr(p.family), to.addr(p.family)
	switch {
	case p.protocol == "tcp":
		return ipPacket(source, dest, unix.IPPROTO_TCP, tcpSegment(p.source, p.port, 1, 0, tcpSYN))
	case p.protocol == "udp":
		return ipPacket(source, dest, unix.IPPROTO_UDP, udpSegment(p.source, p.port, "probe"))
	case p.family == 4:
		return ipPacket(source, dest, unix.IPPROTO_ICMP, icmpMessage(byte(p.port), 0, p.source, 1))
	default:
		return ipPacket(source, dest, unix.IPPROTO_ICMPV6, icmpMessage(byte(p.port), 0, p.source, 1))
	}
}

// sourceOf is the source port or identifier of a frame that may be a probe.
func sourceOf(f []byte) uint16 {
	transport, protocol := 34, byte(0)
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_IP:
		protocol = f[23]
	case unix.ETH_P_IPV6:
		transport, protocol = 54, f[20]
	}
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		return binary.BigEndian.Uint16(f[transport:])
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return binary.BigEndian.Uint16(f[transport+4:])
	}
	return 0
}

// Each matcher of a rule, in IPv4 and IPv6, lets exactly those packets in that
// it should, and each packet that it does not is counted.
//
// Promise S5: rules match protocol, nets, ports, ICMP type and code, and
// membership. Promise S3: what nothing matches is dropped, and counted.
func TestRuleMatrix(t *testing.T) {
	s := newScenario(t)
	s.put(apiKey("GlobalNetworkSet", "set"), `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"set","labels":{"net":"set"}},"spec":{"nets":["10.65.0.4/30","fd00:65::4"]}}`)
	// Packets that are always let in, so that it is known that all have come.
	const fence = 7777
	first := strings.Replace(policyDoc("fence", `role == "server"`, fmt.Sprintf(`{"action":"Allow","protocol":"UDP","destination":{"ports":[%d]}}`, fence), ""), `"order":100`, `"order":1`, 1)
	s.put(policyOf("fence"), first)
	s.run()
	sender := map[string]*wire{"client": s.wire(s.client), "other": s.wire(s.other)}
	guest := map[string]*guest{"client": s.client, "other": s.other}
	receiver := s.wire(s.server)
	next := uint16(10000)
	for _, c := range matrixRules {
		s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, c.rules, allow)))
		round := probes(&next)
		unmatched := s.counter("unmatched")
		denied, missing := 0, map[uint16]bool{}
		for _, p := range round {
			sender[p.from].packet(p.packet(guest[p.from], s.server))
			if missing[p.source] = c.want(p); !missing[p.source] {
				delete(missing, p.source)
				denied++
			}
		}
		for _, family := range families {
			for from, w := range sender {
				next++
				p := probe{family: family, protocol: "udp", port: fence, source: next}
				missing[next] = true
				w.packet(p.packet(guest[from], s.server))
			}
		}
		arrived := map[uint16]bool{}
		receiver.await(fmt.Sprintf("what %s allows", c.rules), func(f []byte) bool {
			n := sourceOf(f)
			arrived[n] = true
			delete(missing, n)
			return len(missing) == 0
		})
		receiver.all(func(f []byte) { arrived[sourceOf(f)] = true })
		for _, p := range round {
			if arrived[p.source] && !c.want(p) {
				t.Errorf("%s: %s was let in", c.rules, p)
			}
		}
		// What a rule drops is no business of this counter; the end of all is.
		if !strings.Contains(c.rules, `"Deny"`) && !strings.Contains(c.rules, `"Pass"`) {
			s.counts("unmatched", unmatched+denied)
		}
	}
}
