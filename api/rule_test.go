package api

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tortie/selector"
)

func decodeRule(t testing.TB, text string) (Rule, []Problem) {
	t.Helper()
	o, problems, err := Decode(Root+"globalnetworkpolicies/p", []byte(`{"spec":{"ingress":[`+text+`]}}`))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return o.(*Policy).Spec.Ingress[0], problems
}

// What the stages that enforce policy see of a rule: the fields that are left,
// and whether it matches at all.
func TestDecodedRules(t *testing.T) {
	for _, c := range []struct{ stored, want string }{
		{`{"action":"Allow"}`, `{"action":"Allow"}`},
		{`{"action":"allow","protocol":"6","destination":{"ports":[22,"80:81"]}}`, `{"action":"Allow","protocol":6,"destination":{"ports":[22,"80:81"]}}`},
		{`{"action":"Log","source":{},"destination":null,"icmp":null}`, `{"action":"Log"}`},
		{`{"action":"Allow","protocol":136,"destination":{"ports":[100]}}`, `{"action":"Allow","protocol":136,"destination":{"ports":[100]}}`},
		// One of several in a positive list.
		{`{"action":"Allow","source":{"nets":["10.0.0.0/8","x"]}}`, `{"action":"Allow","source":{"nets":["10.0.0.0/8","x"]}} problem`},
		{`{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"http",0]}}`, `{"action":"Allow","protocol":"TCP","destination":{"ports":[80,"http"]}} problem`},
		{`{"action":"Deny","source":{"nets":["10.0.0.0/8","x"]}}`, `{"action":"Deny"} problem`},
		{`{"action":"Deny","protocol":"TCP","destination":{"ports":[80,"http"]}}`, `{"action":"Deny","protocol":"TCP","destination":{"ports":[80,"http"]}}`},
		{`{"action":"Allow","destination":{"ports":["http"]}}`, `{"action":"Allow","destination":{"ports":["http"]}}`},
		{`{"action":"Allow","destination":{"ports":["http",80]}}`, `never problem`},
		{`{"action":"Allow","protocol":"ICMP","destination":{"ports":["http"]}}`, `never problem`},
		{`{"action":"Deny","protocol":"ICMP","destination":{"ports":["http"]}}`, `{"action":"Deny","protocol":"ICMP"} problem`},
		// All of a positive list, one of a negative one.
		{`{"action":"Pass","source":{"nets":["x"]}}`, `never problem`},
		{`{"action":"Allow","source":{"nets":"10.0.0.0/8"}}`, `never problem`},
		{`{"action":"Allow","source":{"notNets":["10.0.0.0/8","x"]}}`, `never problem`},
		{`{"action":"Deny","source":{"notNets":["10.0.0.0/8","x"]}}`, `{"action":"Deny","source":{"notNets":["10.0.0.0/8"]}} problem`},
		{`{"action":"Log","protocol":"TCP","destination":{"notPorts":[80,"http"]}}`, `{"action":"Log","protocol":"TCP","destination":{"notPorts":[80,"http"]}}`},
		{`{"action":"Allow","protocol":"TCP","destination":{"notPorts":[80,"a b"]}}`, `never problem`},
		// Single values.
		{`{"action":"Allow","ipVersion":5}`, `never problem`},
		{`{"action":"Allow","ipVersion":"4"}`, `never problem`},
		{`{"action":"Deny","ipVersion":5}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","protocol":"GRE"}`, `never problem`},
		{`{"action":"Deny","protocol":"GRE","destination":{"ports":[5]}}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","notProtocol":0}`, `never problem`},
		{`{"action":"Deny","notProtocol":0}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","source":{"selector":"a =="}}`, `never problem`},
		{`{"action":"Allow","source":{"notSelector":5}}`, `never problem`},
		{`{"action":"Allow","destination":{"namespaceSelector":"("}}`, `never problem`},
		{`{"action":"Deny","source":{"selector":"a ==","notSelector":5,"namespaceSelector":"("}}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","source":5}`, `never problem`},
		{`{"action":"Deny","source":5}`, `{"action":"Deny"} problem`},
		// An unknown action.
		{`{"action":"Permit","ipVersion":4}`, `{"action":"Deny","ipVersion":4} problem`},
		{`{}`, `{"action":"Deny"} problem`},
		{`7`, `{"action":"Deny"} problem`},
		{`null`, `{"action":"Deny"} problem`},
		// ICMP, and what it needs.
		{`{"action":"Allow","protocol":"ICMP","icmp":{"type":8,"code":0}}`, `{"action":"Allow","protocol":"ICMP","icmp":{"type":8,"code":0}}`},
		{`{"action":"Allow","protocol":58,"notICMP":{"type":254}}`, `{"action":"Allow","protocol":58,"notICMP":{"type":254}}`},
		{`{"action":"Allow","protocol":"ICMP","icmp":{"type":255}}`, `never problem`},
		{`{"action":"Allow","protocol":"ICMP","icmp":{"code":0}}`, `never problem`},
		{`{"action":"Allow","protocol":"ICMP","icmp":{"type":"8"}}`, `never problem`},
		{`{"action":"Allow","protocol":"ICMP","notICMP":{}}`, `never problem`},
		{`{"action":"Allow","icmp":{"type":8}}`, `never problem`},
		{`{"action":"Deny","protocol":"TCP","icmp":{"type":8}}`, `{"action":"Deny","protocol":"TCP"} problem`},
		{`{"action":"Deny","protocol":"ICMP","icmp":{"type":8,"code":256}}`, `{"action":"Deny","protocol":"ICMP"} problem`},
		// Ports, and what they need; so writes the Neutron driver ICMP given by number.
		{`{"action":"Allow","protocol":"1","destination":{"ports":["3:4"]}}`, `never problem`},
		{`{"action":"Allow","protocol":"58","destination":{"ports":["129:None"]}}`, `never problem`},
		{`{"action":"Allow","destination":{"ports":[80]}}`, `never problem`},
		{`{"action":"Deny","source":{"notPorts":[80]}}`, `{"action":"Deny"} problem`},
		// What is not built, unknown or given twice.
		{`{"action":"Allow","http":{"methods":["GET"]}}`, `never problem`},
		{`{"action":"Allow","source":{"serviceAccounts":{"names":["a"]}}}`, `{"action":"Allow","source":{"serviceAccounts":{"names":["a"]}}}`},
		{`{"action":"Allow","source":{"serviceAccounts":{}}}`, `never problem`},
		{`{"action":"Allow","source":{"serviceAccounts":{"names":["a"],"selector":"a =="}}}`, `never problem`},
		{`{"action":"Deny","source":{"serviceAccounts":{"names":["a"],"selector":"a =="}}}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","destination":{"services":{"name":"a"}}}`, `never problem`},
		{`{"action":"Deny","http":{},"source":{"serviceAccounts":{}},"destination":{"services":{}}}`, `{"action":"Deny"} problem`},
		{`{"action":"Allow","domains":["a"]}`, `never problem`},
		{`{"action":"Allow","source":{"domains":["a"]}}`, `never problem`},
		{`{"action":"Deny","source":{"domains":["a"],"nets":["fd00::/8"]}}`, `{"action":"Deny","source":{"nets":["fd00::/8"]}} problem`},
		{`{"action":"Allow","ipVersion":4,"ipVersion":6}`, `never problem`},
		{`{"action":"Allow","source":{"nets":["10.0.0.0/8"]},"source":{}}`, `never problem`},
		{`{"action":"Allow","Source":{"Nets":["10.0.0.0/8"]}}`, `{"action":"Allow","source":{"nets":["10.0.0.0/8"]}}`},
		{`{"action":"Allow","metadata":{"annotations":{"a":"b"}}}`, `{"action":"Allow","metadata":{"annotations":{"a":"b"}}}`},
	} {
		rule, problems := decodeRule(t, c.stored)
		type fields Rule
		text, err := json.Marshal(fields(rule))
		if err != nil {
			t.Fatal(err)
		}
		got := string(text)
		if rule.Never {
			got = "never"
		}
		if len(problems) > 0 {
			got += " problem"
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.stored, got, c.want)
		}
	}
}

// packet is what the reference matcher of this test matches.
type packet struct {
	version, protocol, icmpType, icmpCode int
	src, dst                              netip.Addr
	srcPort, dstPort                      uint16
	srcLabels, dstLabels                  map[string]string
}

func (r *Rule) matches(p packet) bool {
	if r.Never || r.IPVersion != 0 && r.IPVersion != p.version || r.Protocol.Number != 0 && int(r.Protocol.Number) != p.protocol ||
		r.NotProtocol.Number != 0 && int(r.NotProtocol.Number) == p.protocol {
		return false
	}
	icmp := func(c *ICMP) bool {
		return (c.Type == nil || *c.Type == p.icmpType) && (c.Code == nil || *c.Code == p.icmpCode)
	}
	return (r.ICMP == nil || icmp(r.ICMP)) && (r.NotICMP == nil || !icmp(r.NotICMP)) &&
		r.Source.matches(p.src, p.srcPort, p.srcLabels) && r.Destination.matches(p.dst, p.dstPort, p.dstLabels)
}

func (e *EntityRule) matches(a netip.Addr, port uint16, labels map[string]string) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	has := func(list []Port) bool {
		return slices.ContainsFunc(list, func(p Port) bool { return p.Min <= port && port <= p.Max })
	}
	selects := func(s *selector.Selector) bool { return s == nil || s.Match(labels) }
	return (len(e.Nets.Prefixes) == 0 || in(e.Nets.Prefixes)) && !in(e.NotNets.Prefixes) &&
		(len(e.Ports) == 0 || has(e.Ports)) && !has(e.NotPorts) &&
		selects(e.Selector.Expr) && selects(e.NamespaceSelector.Expr) && (e.NotSelector.Expr == nil || !e.NotSelector.Expr.Match(labels))
}

func randomPacket(rng *rand.Rand) packet {
	p := packet{
		version: 4, protocol: []int{1, 6, 17, 58}[rng.IntN(4)], icmpType: rng.IntN(3), icmpCode: rng.IntN(2),
		srcPort: uint16(1 + rng.IntN(4)), dstPort: uint16(1 + rng.IntN(4)),
	}
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(4))}) }
	if rng.IntN(2) == 0 {
		p.version = 6
		addr = func() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(rng.IntN(4))}) }
	}
	labels := func() map[string]string { return map[string]string{"a": fmt.Sprint(rng.IntN(3))} }
	p.src, p.dst, p.srcLabels, p.dstLabels = addr(), addr(), labels(), labels()
	return p
}

func randomRule(rng *rand.Rand) map[string]any {
	one := func() bool { return rng.IntN(3) == 0 }
	protocol := []any{"TCP", 6.0, "UDP", "ICMP", "58"}[rng.IntN(5)]
	rule := map[string]any{"action": []any{"Allow", "Pass", "Log", "Deny"}[rng.IntN(4)]}
	if one() {
		rule["ipVersion"] = []any{4.0, 6.0}[rng.IntN(2)]
	}
	if one() {
		rule["notProtocol"] = "UDP"
	}
	ports := protocol == "TCP" || protocol == 6.0 || protocol == "UDP"
	if rng.IntN(3) > 0 {
		rule["protocol"] = protocol
		if !ports && one() {
			rule["icmp"] = map[string]any{"type": float64(rng.IntN(3)), "code": 0.0}
		}
		if !ports && one() {
			rule["notICMP"] = map[string]any{"type": float64(rng.IntN(3))}
		}
	} else {
		ports = false
	}
	for _, name := range []string{"source", "destination"} {
		end := map[string]any{}
		for _, list := range []string{"nets", "notNets"} {
			if one() {
				end[list] = []any{fmt.Sprintf("10.0.0.%d/31", rng.IntN(4)), fmt.Sprintf("fd00::%d", rng.IntN(4))}
			}
		}
		for _, list := range []string{"ports", "notPorts"} {
			if ports && one() {
				end[list] = []any{float64(1 + rng.IntN(4)), "2:3"}
			}
		}
		for _, s := range []string{"selector", "notSelector", "namespaceSelector"} {
			if one() {
				end[s] = fmt.Sprintf("a == '%d'", rng.IntN(3))
			}
		}
		if len(end) > 0 {
			rule[name] = end
		}
	}
	return rule
}

// Whatever happens to one field of a rule, one that allows does not match
// more, and one that denies does not match less.
func TestDamagedRuleNeverWidens(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	matched, closed := 0, 0
	for range 20000 {
		rule := randomRule(rng)
		good, err := json.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		damage(rng, rule)
		bad, err := json.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		before, problems := decodeRule(t, string(good))
		if len(problems) > 0 || before.Never {
			t.Fatalf("%s: %v", good, problems)
		}
		after, problems := decodeRule(t, string(bad))
		if len(problems) == 0 {
			t.Fatalf("%s: nothing is reported", bad)
		}
		if before.Action == Deny && after.Action != Deny || after.Action != before.Action && after.Action != Deny {
			t.Fatalf("%s: %s became %s", bad, before.Action, after.Action)
		}
		if after.Never {
			closed++
		}
		for range 20 {
			p := randomPacket(rng)
			was, is := before.matches(p), after.matches(p)
			if was {
				matched++
			}
			switch {
			case before.Action == Deny && was && !is:
				t.Fatalf("%s\n%s\nno longer denies %+v", good, bad, p)
			case after.Action != Deny && is && !was:
				t.Fatalf("%s\n%s\nmatches also %+v", good, bad, p)
			}
		}
	}
	if matched < 1000 || closed < 1000 {
		t.Errorf("the test tests nothing: %d matches, %d rules closed", matched, closed)
	}
}

// What is left of a policy that cannot be read in full.
func TestDamagedPolicyFailsClosed(t *testing.T) {
	for spec, want := range map[string]string{
		`{"ingress":5,"egress":"x"}`:                              `[{"action":"Deny"}]|[{"action":"Deny"}]|[]`,
		`{"ingress":null,"types":["ingress"]}`:                    `null|null|[Ingress]`,
		`{"types":["Ingress","Both"]}`:                            `null|null|[]`,
		`{"types":"Ingress"}`:                                     `null|null|[]`,
		`{"types":["Egress",7]}`:                                  `null|null|[]`,
		`{"ingress":[{"action":"Allow"},[]],"types":["INGRESS"]}`: `[{"action":"Allow"},[]]|null|[Ingress]`,
	} {
		o, _, err := Decode(Root+"globalnetworkpolicies/p", []byte(`{"spec":`+spec+`}`))
		if err != nil {
			t.Error(err)
			continue
		}
		s := o.(*Policy).Spec
		ingress, err1 := json.Marshal(s.Ingress)
		egress, err2 := json.Marshal(s.Egress)
		if got := fmt.Sprintf("%s|%s|%v", ingress, egress, s.Types); err1 != nil || err2 != nil || got != want {
			t.Errorf("%s: got %s, want %s", spec, got, want)
		}
	}
	for _, field := range []string{"selector", "namespaceSelector", "serviceAccountSelector"} {
		for _, value := range []string{`"a =="`, `5`, `["all()"]`} {
			o, problems, err := Decode(Root+"globalnetworkpolicies/p", []byte(`{"spec":{"`+field+`":`+value+`}}`))
			if err != nil || len(problems) != 1 || problems[0].Field != "spec."+field {
				t.Fatalf("%s: %v, %v", field, problems, err)
			}
			s := o.(*Policy).Spec
			bad := map[string]Selector{"selector": s.Selector, "namespaceSelector": s.NamespaceSelector, "serviceAccountSelector": s.ServiceAccountSelector}[field]
			if bad.Err == nil || bad.Expr != nil || bad.IsZero() {
				t.Errorf("%s: %s: %+v", field, value, bad)
			}
		}
	}
	o, _, err := Decode(Root+"tiers/t", []byte(`{"spec":{"defaultAction":"pass","order":"x"}}`))
	if s := o.(*Tier).Spec; err != nil || s.DefaultAction != Deny || s.Order != nil {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestOrders(t *testing.T) {
	for text, want := range map[string]string{"10": "10", "10.5": "10.5", `"10"`: "10", "null": "none", "1e400": "none", `"NaN"`: "none", "true": "none", "-1": "-1"} {
		o, _, err := Decode(Root+"globalnetworkpolicies/p", []byte(`{"spec":{"order":`+text+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		got := "none"
		if order := o.(*Policy).Spec.Order; order != nil {
			got = strings.TrimSuffix(fmt.Sprint(*order), ".0")
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}
