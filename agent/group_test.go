package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// groupRule is a rule of a security group as Neutron's driver writes it, and a
// packet that it is the first to match. One that matches nothing has none.
type groupRule struct {
	rule   string
	from   *guest
	family int
	number uint8
	data   []byte
}

// groupRules are one of each type that Neutron has; the server and the client
// are of group A, the other is of group B.
func (s *scenario) groupRules() (ingress, egress []groupRule) {
	net := func(g *guest, family int) string {
		return fmt.Sprintf("%s/%d", g.addr(family), map[int]int{4: 32, 6: 128}[family])
	}
	tcp := func(port uint16) []byte { return tcpSegment(5000, port, 1, 0, tcpSYN) }
	udp := func(port uint16) []byte { return udpSegment(5000, port, "x") }
	icmp := func(typ, code byte) []byte { return icmpMessage(typ, code, 1, 1) }
	other := []byte("no ports here")
	return []groupRule{
		{`"ipVersion":4,"protocol":6,"destination":{"ports":[80]}`, s.other, 4, 6, tcp(80)},
		{`"ipVersion":6,"protocol":6,"destination":{"ports":["8000:8010"]}`, s.other, 6, 6, tcp(8010)},
		{`"ipVersion":4,"protocol":17,"destination":{"ports":[53]},"source":{"nets":["` + net(s.client, 4) + `"]}`, s.client, 4, 17, udp(53)},
		{`"ipVersion":6,"protocol":17,"source":{"nets":["` + net(s.other, 6) + `"]}`, s.other, 6, 17, udp(9)},
		{`"ipVersion":4,"protocol":6,"destination":{"ports":[5432]},"source":{"selector":"has(sg.projectcalico.org/openstack-B)"}`, s.other, 4, 6, tcp(5432)},
		{`"ipVersion":4,"protocol":"ICMP","icmp":{"type":8,"code":0}`, s.other, 4, 1, icmp(8, 0)},
		{`"ipVersion":4,"protocol":"ICMP","icmp":{"type":8}`, s.other, 4, 1, icmp(8, 1)},
		{`"ipVersion":4,"protocol":"ICMP"`, s.other, 4, 1, icmp(13, 0)},
		{`"ipVersion":6,"protocol":"ICMPv6","icmp":{"type":128}`, s.other, 6, 58, icmp(128, 0)},
		{`"ipVersion":6,"protocol":"58","destination":{"ports":["129:None"]}`, nil, 0, 0, nil},
		{`"ipVersion":4,"protocol":132,"destination":{"ports":["100:200"]}`, s.other, 4, 132, sctpInit(5000, 150)},
		{`"ipVersion":4,"protocol":112`, s.other, 4, 112, other},
		{`"ipVersion":6,"protocol":"200"`, s.other, 6, 200, other},
		{`"ipVersion":4,"source":{"selector":"has(sg.projectcalico.org/openstack-A)"}`, s.client, 4, 6, tcp(7)},
		{`"ipVersion":6,"source":{"selector":"has(sg.projectcalico.org/openstack-A)"}`, s.client, 6, 6, tcp(7)},
	}, []groupRule{
		{`"ipVersion":4,"protocol":6,"destination":{"nets":["` + net(s.client, 4) + `"],"ports":[443]}`, s.server, 4, 6, tcp(443)},
		{`"ipVersion":4,"protocol":17,"destination":{"selector":"has(sg.projectcalico.org/openstack-A)","ports":["1:1024"]}`, s.server, 4, 17, udp(1024)},
		{`"ipVersion":6,"protocol":6,"destination":{"nets":["` + net(s.client, 6) + `"],"ports":[25]}`, s.server, 6, 6, tcp(25)},
		{`"ipVersion":4`, s.server, 4, 6, tcp(444)},
		{`"ipVersion":6`, s.server, 6, 17, udp(25)},
	}
}

// groupMisses are packets to the server that no rule of its group matches.
func (s *scenario) groupMisses() []groupRule {
	return []groupRule{
		{"", s.other, 4, 6, tcpSegment(6000, 81, 1, 0, tcpSYN)},
		{"", s.other, 6, 6, tcpSegment(6000, 80, 1, 0, tcpSYN)},
		{"", s.other, 6, 6, tcpSegment(6000, 8011, 1, 0, tcpSYN)},
		{"", s.other, 4, 17, udpSegment(6000, 53, "x")},
		{"", s.other, 6, 58, icmpMessage(139, 0, 1, 1)},
		{"", s.other, 4, 132, sctpInit(6000, 99)},
		{"", s.other, 4, 113, []byte("none")},
		{"", s.other, 4, 200, []byte("none")},
	}
}

// A security group is one policy, and each of its rules, whatever its type, is
// one rule of ours, by which those packets pass that it is about and no others.
// One that its writer damaged lets nothing pass and harms no other.
//
// Promise S10: a security group is one object, its rules are its rules.
func TestSecurityGroup(t *testing.T) {
	s := newScenario(t)
	groups := func(name string) string {
		return fmt.Sprintf(`{"sg.projectcalico.org/openstack-%s":"x","role":"none"}`, name)
	}
	s.put(s.client.key, s.client.bound(groups("A")))
	s.put(s.other.key, s.other.bound(groups("B")))
	s.put(s.server.key, s.server.bound(groups("A")))
	s.delete(policyOf("servers"))
	s.delete(policyOf("clients"))
	s.put(policyOf("free"), strings.Replace(policyDoc("free", `has(sg.projectcalico.org/openstack-B)`, allow, allow), `"order":100`, `"order":90`, 1))
	ingress, egress := s.groupRules()
	list := func(rules []groupRule) string {
		var out []string
		for _, r := range rules {
			out = append(out, `{"action":"Allow",`+r.rule+`}`)
		}
		return strings.Join(out, ",")
	}
	key := apiKey("NetworkPolicy", "ossg.default.A")
	key.Namespace = "test"
	s.revision = s.put(key, fmt.Sprintf(`{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"ossg.default.A","namespace":"test"},`+
		`"spec":{"selector":"has(sg.projectcalico.org/openstack-A)","ingress":[%s],"egress":[%s]}}`, list(ingress), list(egress)))
	s.run()
	wires := map[*guest]*wire{s.client: s.wire(s.client), s.other: s.wire(s.other), s.server: s.wire(s.server)}
	arrived := s.meter(s.server, "ether saddr "+hostMAC+" ip6 saddr fd00:65::/64")
	arrived4 := s.meter(s.server, "ether saddr "+hostMAC+" ip saddr 10.65.0.0/24")
	sent := func(r groupRule, to *guest) {
		wires[r.from].packet(ipPacket(r.from.addr(r.family), to.addr(r.family), r.number, r.data))
	}
	misses, unmatched := s.groupMisses(), s.counter("unmatched")
	for _, m := range misses {
		sent(m, s.server)
	}
	s.counts("unmatched", unmatched+len(misses))
	want, hits, hits6 := map[string]uint64{}, 0, 0
	for i, r := range ingress {
		if r.from != nil {
			sent(r, s.server)
			want[fmt.Sprintf("NetworkPolicy/test/ossg.default.A/Ingress/%d", i)]++
			hits++
			hits6 += (r.family - 4) / 2
		}
	}
	s.await("what the group allows", func() bool { return arrived()+arrived4() >= hits })
	if got, got4 := arrived(), arrived4(); got != hits6 || got4 != hits-hits6 {
		t.Errorf("%d and %d packets arrived, want %d and %d", got, got4, hits6, hits-hits6)
	}
	for i, r := range egress {
		sent(r, s.client)
		want[fmt.Sprintf("NetworkPolicy/test/ossg.default.A/Egress/%d", i)]++
	}
	// The client is of the group as well: its own packets left by these rules,
	// and the server's came to it by those.
	for rule, n := range map[string]uint64{"Egress/1": 1, "Egress/3": 1, "Egress/4": 1, "Ingress/13": 3, "Ingress/14": 2} {
		want["NetworkPolicy/test/ossg.default.A/"+rule] += n
	}
	ofGroup := func() map[string]uint64 {
		got := s.counted()
		for id := range got {
			if !strings.Contains(id, "ossg") {
				delete(got, id)
			}
		}
		return got
	}
	sum := func(of map[string]uint64) (n uint64) {
		for _, c := range of {
			n += c
		}
		return n
	}
	s.await("each to be counted", func() bool { return sum(ofGroup()) >= sum(want) })
	if diff := cmp.Diff(want, ofGroup()); diff != "" {
		t.Errorf("by rule (-want +got):\n%s", diff)
	}
	if text, err := s.show("/show/problems"); err != nil || !strings.Contains(text, "ossg.default.A") || !strings.Contains(text, "ingress[9]") || strings.Count(text, "ossg.default.A") > 2 {
		t.Errorf("problems: %v\n%s", err, text)
	}
}
