package compile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/desired"
)

func nets(list ...string) api.Nets { return api.ParseNets(list...) }

func protocol(n uint8) api.Protocol { return api.Protocol{Number: n} }

func ptr(n int) *int { return &n }

func port(min, max uint16) api.Port { return api.Port{Min: min, Max: max} }

// text is the rules as they are shown, without what all have.
func text(rules []desired.Rule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, strings.Replace(r.String(), "id=NetworkPolicy/ns/p/Ingress/", "#", 1))
	}
	return out
}

// TestRules translates one rule a case.
//
// Promise S5: rules match on protocol, CIDR, port, ICMP type and code, and
// group membership, in IPv4 and IPv6.
func TestRules(t *testing.T) {
	entity := func(e api.EntityRule) api.Rule { return api.Rule{Action: api.Allow, Source: e} }
	cases := []struct {
		name string
		rule api.Rule
		sets Sets
		want []string
	}{
		{"no condition", api.Rule{Action: api.Allow}, Sets{}, []string{"allow #0"}},
		{"deny", api.Rule{Action: api.Deny}, Sets{}, []string{"deny #0"}},
		{"pass", api.Rule{Action: api.Pass}, Sets{}, []string{"next #0"}},
		{"log", api.Rule{Action: api.Log}, Sets{}, []string{"log #0"}},
		{"never", api.Rule{Action: api.Allow, Never: true}, Sets{}, nil},
		{"unreadable selector", api.Rule{Action: api.Allow}, Sets{Never: true}, nil},
		{"ip version 4", api.Rule{Action: api.Allow, IPVersion: 4}, Sets{}, []string{"allow ipv4 #0"}},
		{"ip version 6", api.Rule{Action: api.Allow, IPVersion: 6}, Sets{}, []string{"allow ipv6 #0"}},
		{"tcp", api.Rule{Action: api.Allow, Protocol: protocol(6)}, Sets{}, []string{"allow proto=6 #0"}},
		{"icmp is of ipv4", api.Rule{Action: api.Allow, Protocol: protocol(1)}, Sets{}, []string{"allow ipv4 proto=1 #0"}},
		{"icmpv6 is of ipv6", api.Rule{Action: api.Allow, Protocol: protocol(58)}, Sets{}, []string{"allow ipv6 proto=58 #0"}},
		{"icmp in ipv6", api.Rule{Action: api.Allow, Protocol: protocol(1), IPVersion: 6}, Sets{}, nil},
		{"icmp type", api.Rule{Action: api.Allow, Protocol: protocol(1), ICMP: &api.ICMP{Type: ptr(8)}}, Sets{}, []string{"allow ipv4 proto=1 icmp=8 #0"}},
		{"icmp type and code", api.Rule{Action: api.Allow, Protocol: protocol(58), ICMP: &api.ICMP{Type: ptr(1), Code: ptr(4)}}, Sets{}, []string{"allow ipv6 proto=58 icmp=1/4 #0"}},
		{"any icmp type", api.Rule{Action: api.Allow, Protocol: protocol(58), ICMP: &api.ICMP{}}, Sets{}, []string{"allow ipv6 proto=58 #0"}},
		{"not an icmp type", api.Rule{Action: api.Allow, Protocol: protocol(1), NotICMP: &api.ICMP{Type: ptr(8)}}, Sets{}, []string{"allow ipv4 proto=1 not-icmp=8 #0"}},
		{"icmp contradiction", api.Rule{Action: api.Allow, Protocol: protocol(1), ICMP: &api.ICMP{Type: ptr(8), Code: ptr(0)}, NotICMP: &api.ICMP{Type: ptr(8)}}, Sets{}, nil},
		{"not a protocol", api.Rule{Action: api.Allow, NotProtocol: protocol(6)}, Sets{}, []string{"allow not-proto=6 #0"}},
		{"another is implied", api.Rule{Action: api.Allow, Protocol: protocol(17), NotProtocol: protocol(6)}, Sets{}, []string{"allow proto=17 #0"}},
		{"protocol contradiction", api.Rule{Action: api.Allow, Protocol: protocol(6), NotProtocol: protocol(6)}, Sets{}, nil},

		{"nets of IPv4", entity(api.EntityRule{Nets: nets("10.0.0.0/8")}), Sets{}, []string{"allow ipv4 from=10.0.0.0/8 #0"}},
		{"nets of IPv6", entity(api.EntityRule{Nets: nets("fd00::/8")}), Sets{}, []string{"allow ipv6 from=fd00::/8 #0"}},
		{"nets of both", entity(api.EntityRule{Nets: nets("fd00::/8", "10.0.0.1")}), Sets{}, []string{"allow ipv4 from=10.0.0.1 #0", "allow ipv6 from=fd00::/8 #0"}},
		{"nets of both, one version", api.Rule{Action: api.Deny, IPVersion: 6, Destination: api.EntityRule{Nets: nets("fd00::/8", "10.0.0.1")}}, Sets{}, []string{"deny ipv6 to=fd00::/8 #0"}},
		{"nets of different families", api.Rule{Action: api.Allow, Source: api.EntityRule{Nets: nets("10.0.0.1")}, Destination: api.EntityRule{Nets: nets("fd00::1")}}, Sets{}, nil},
		{"negated nets of IPv4", entity(api.EntityRule{NotNets: nets("10.0.0.0/8")}), Sets{}, []string{"allow ipv4 from-not=10.0.0.0/8 #0"}},
		{"all of IPv4", entity(api.EntityRule{Nets: nets("0.0.0.0/0", "10.0.0.0/8")}), Sets{}, []string{"allow ipv4 #0"}},
		{"all of IPv6", entity(api.EntityRule{Nets: nets("::/0")}), Sets{}, []string{"allow ipv6 #0"}},
		{"nothing of IPv4", entity(api.EntityRule{NotNets: nets("0.0.0.0/0", "fd00::/8")}), Sets{}, []string{"allow ipv6 from-not=fd00::/8 #0"}},
		{"nets within nets", entity(api.EntityRule{Nets: nets("10.1.0.0/16", "10.0.0.0/8", "10.1.2.3", "10.1.0.0/16", "11.0.0.0/8")}), Sets{}, []string{"allow ipv4 from=10.0.0.0/8,11.0.0.0/8 #0"}},
		{"nets within negated nets", entity(api.EntityRule{Nets: nets("10.1.0.0/16", "11.0.0.0/8"), NotNets: nets("10.0.0.0/8")}), Sets{}, []string{"allow ipv4 from=11.0.0.0/8 from-not=10.0.0.0/8 #0"}},
		{"all nets within negated nets", entity(api.EntityRule{Nets: nets("10.1.0.0/16"), NotNets: nets("10.0.0.0/8")}), Sets{}, nil},

		{"ports", api.Rule{Action: api.Allow, Protocol: protocol(6), Destination: api.EntityRule{Ports: []api.Port{port(443, 443), port(80, 80), port(81, 90), port(85, 100)}}}, Sets{}, []string{"allow proto=6 to-ports=80:100,443 #0"}},
		{"port without a maximum", api.Rule{Action: api.Allow, Protocol: protocol(6), Destination: api.EntityRule{Ports: []api.Port{port(80, 0)}}}, Sets{}, []string{"allow proto=6 to-ports=80 #0"}},
		{"no port is left", api.Rule{Action: api.Allow, Protocol: protocol(6), Destination: api.EntityRule{Ports: []api.Port{{Name: "http"}}}}, Sets{}, nil},
		{"negated ports", api.Rule{Action: api.Allow, Protocol: protocol(17), Source: api.EntityRule{NotPorts: []api.Port{port(53, 53), port(67, 68)}}}, Sets{}, []string{"allow proto=17 from-not-ports=53,67:68 #0"}},
		{"negated all ports", api.Rule{Action: api.Allow, Protocol: protocol(17), Source: api.EntityRule{NotPorts: []api.Port{port(0, 65535)}}}, Sets{}, nil},
		{"ports within negated ports", api.Rule{Action: api.Allow, Protocol: protocol(17), Source: api.EntityRule{Ports: []api.Port{port(80, 80)}, NotPorts: []api.Port{port(1, 1024)}}}, Sets{}, nil},

		{"sets", api.Rule{Action: api.Allow}, Sets{Source: 1, NotSource: 2, Destination: 3, NotDestination: 4}, []string{"allow from-set=0000000000000001 from-not-set=0000000000000002 to-set=0000000000000003 to-not-set=0000000000000004 #0"}},
		{"set contradiction", api.Rule{Action: api.Allow}, Sets{Source: 1, NotSource: 1}, nil},
	}
	for _, c := range cases {
		got := text(Rules(api.Key{Kind: api.KindNetworkPolicy, Namespace: "ns", Name: "p"}, api.Ingress, []api.Rule{c.rule}, []Sets{c.sets}))
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// A rule keeps the number that it has in the policy.
func TestRuleIdentity(t *testing.T) {
	rules := []api.Rule{{Action: api.Allow, Never: true}, {Action: api.Allow, Protocol: protocol(6)}, {Action: api.Deny}}
	got := Rules(api.Key{Kind: api.KindProfile, Name: "kns.a"}, api.Egress, rules, make([]Sets, 3))
	want := []string{"allow proto=6 id=Profile//kns.a/Egress/1", "deny id=Profile//kns.a/Egress/2"}
	if diff := cmp.Diff(want, text(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestIdentities(t *testing.T) {
	p := func(name string) api.Key { return api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name} }
	ids := map[desired.ProgramID]string{}
	for name, id := range map[string]desired.ProgramID{
		"nothing, in":       ProgramID(api.Ingress, nil, nil),
		"nothing, out":      ProgramID(api.Egress, nil, nil),
		"ab":                ProgramID(api.Ingress, []api.Key{p("a"), p("b")}, nil),
		"ba":                ProgramID(api.Ingress, []api.Key{p("b"), p("a")}, nil),
		"a":                 ProgramID(api.Ingress, []api.Key{p("a")}, nil),
		"a with profile b":  ProgramID(api.Ingress, []api.Key{p("a")}, []string{"b"}),
		"profiles a, b":     ProgramID(api.Ingress, nil, []string{"a", "b"}),
		"profiles b, a":     ProgramID(api.Ingress, nil, []string{"b", "a"}),
		"profile ab":        ProgramID(api.Ingress, nil, []string{"ab"}),
		"another namespace": ProgramID(api.Ingress, []api.Key{{Kind: api.KindNetworkPolicy, Namespace: "n", Name: "a"}}, nil),
	} {
		if other, ok := ids[id]; ok {
			t.Errorf("%s and %s are both %s", name, other, id)
		}
		if len(id) > 20 {
			t.Errorf("%s is too long for the name of a chain", id)
		}
		ids[id] = name
	}
	same := func() desired.ProgramID { return ProgramID(api.Ingress, []api.Key{p("a")}, []string{"x"}) }
	if a, b := same(), same(); a != b {
		t.Error("equal lists have different programs")
	}
	if a, b := SetID("has(a)"), SetID("has(b)"); a == b || a == 0 || a != SetID("has(a)") {
		t.Errorf("set identifiers %v and %v", a, b)
	}
}

func rule(v desired.Verdict, change ...func(*desired.Rule)) desired.Rule {
	r := desired.Rule{Verdict: v}
	for _, f := range change {
		f(&r)
	}
	return r
}

func family(n int) func(*desired.Rule)    { return func(r *desired.Rule) { r.Family = n } }
func proto(n uint8) func(*desired.Rule)   { return func(r *desired.Rule) { r.Protocol = n } }
func named(id string) func(*desired.Rule) { return func(r *desired.Rule) { r.ID = id } }

func programText(p desired.Program) string {
	var b strings.Builder
	for _, st := range p.Stages {
		fmt.Fprintf(&b, "%s:", st.Name)
		for _, r := range st.Rules {
			fmt.Fprintf(&b, " [%s]", r)
		}
		fmt.Fprintf(&b, " else %s\n", st.End)
	}
	return b.String()
}

// TestProgram joins stages.
//
// Promises S3 and S6: what nothing decides is denied; after a verdict later
// rules are not looked at.
func TestProgram(t *testing.T) {
	type list = [][]desired.Rule
	cases := []struct {
		name   string
		stages []Stage
		want   string
	}{
		{"nothing denies", nil, ""},
		{
			"one tier",
			[]Stage{{Name: "t", Policies: list{{rule(desired.Allow, proto(6))}, {rule(desired.Log), rule(desired.Deny, proto(17))}}}},
			"t: [allow proto=6] [log] [deny proto=17] else deny\n",
		},
		{"a tier that denies the rest ends it", []Stage{
			{Name: "t", Policies: list{{rule(desired.Allow, proto(6))}}},
			{Name: ProfileStage, Policies: list{{rule(desired.Allow)}}},
		}, "t: [allow proto=6] else deny\n"},
		{"a tier that passes", []Stage{
			{Name: "t", Policies: list{{rule(desired.Allow, proto(6))}}, End: desired.Next},
			{Name: ProfileStage, Policies: list{{rule(desired.Allow)}}},
		}, "t: [allow proto=6] else next\nprofiles: [allow] else deny\n"},
		{"a rule that passes", []Stage{
			{Name: "t", Policies: list{{rule(desired.Next, proto(6))}}},
			{Name: "u", Policies: list{{rule(desired.Allow)}}, End: desired.Next},
		}, "t: [next proto=6] else deny\nu: [allow] else deny\n"},
		{"passing to nowhere is denying", []Stage{
			{Name: "t", Policies: list{{rule(desired.Next, proto(6)), rule(desired.Allow, proto(17))}}, End: desired.Next},
		}, "t: [deny proto=6] [allow proto=17] else deny\n"},
		{"what follows an unconditional verdict", []Stage{
			{Name: "t", Policies: list{{rule(desired.Log), rule(desired.Allow)}, {rule(desired.Deny, proto(6))}}, End: desired.Next},
			{Name: "u", Policies: list{{rule(desired.Deny)}}},
		}, "t: [log] [allow] else deny\n"},
		{"in one family", []Stage{
			{Name: "t", Policies: list{{rule(desired.Next, family(4)), rule(desired.Allow, family(4), proto(6)), rule(desired.Deny, proto(17))}}},
			{Name: "u", Policies: list{{rule(desired.Allow, family(6)), rule(desired.Allow)}}},
		}, "t: [next ipv4] [deny ipv6 proto=17] else deny\nu: [allow ipv4] else deny\n"},
	}
	for _, c := range cases {
		if diff := cmp.Diff(c.want, programText(Program(c.stages))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// packet is what random rules tell apart.
type packet struct {
	v6    bool
	proto uint8
	addr  netip.Addr
	port  uint16
}

func allPackets() []packet {
	var out []packet
	for _, a := range []string{"10.0.0.1", "10.1.0.1", "192.0.2.1", "fd00::1", "fd01::1"} {
		addr := netip.MustParseAddr(a)
		for _, proto := range []uint8{1, 6, 17, 58} {
			for _, port := range []uint16{22, 80, 8080} {
				out = append(out, packet{addr.Is6(), proto, addr, port})
			}
		}
	}
	return out
}

// means reports whether a rule of a policy matches a packet, by its words.
func means(r *api.Rule, p packet) bool {
	family := 4
	if p.v6 {
		family = 6
	}
	isProto := func(q api.Protocol) bool {
		return q.Number == p.proto && (q.Number != protoICMP || !p.v6) && (q.Number != protoICMPv6 || p.v6)
	}
	e := r.Source
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(p.addr) })
	}
	knows := func(list []netip.Prefix) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Addr().Is6() == p.v6 })
	}
	has := func(list []api.Port) bool {
		return slices.ContainsFunc(list, func(q api.Port) bool { return q.Min <= p.port && p.port <= q.Max })
	}
	return (r.IPVersion == 0 || r.IPVersion == family) &&
		(r.Protocol.Number == 0 || isProto(r.Protocol)) && r.NotProtocol.Number != p.proto &&
		knows(e.Nets.Prefixes) && knows(e.NotNets.Prefixes) &&
		(len(e.Nets.Prefixes) == 0 || in(e.Nets.Prefixes)) && !in(e.NotNets.Prefixes) &&
		(len(e.Ports) == 0 || has(e.Ports)) && !has(e.NotPorts)
}

// matches reports whether a translated rule matches a packet.
func matches(r *desired.Rule, p packet) bool {
	family := 4
	if p.v6 {
		family = 6
	}
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(p.addr) })
	}
	has := func(list []desired.PortRange) bool {
		return slices.ContainsFunc(list, func(q desired.PortRange) bool { return q.Min <= p.port && p.port <= q.Max })
	}
	e := &r.Source
	return (r.Family == 0 || r.Family == family) &&
		(r.Protocol == 0 || r.Protocol == p.proto) && (r.NotProtocol == 0 || r.NotProtocol != p.proto) &&
		(len(e.Nets) == 0 || in(e.Nets)) && !in(e.NotNets) &&
		(len(e.Ports) == 0 || has(e.Ports)) && !has(e.NotPorts)
}

func allows(p desired.Program, k packet) bool {
	for _, st := range p.Stages {
		v := st.End
		for i := range st.Rules {
			if r := &st.Rules[i]; r.Verdict != desired.Log && matches(r, k) {
				v = r.Verdict
				break
			}
		}
		if v != desired.Next {
			return v == desired.Allow
		}
	}
	return false
}

type random struct{ *rand.Rand }

func (r random) rule() api.Rule {
	pick := func(list ...string) api.Nets {
		var out []string
		for range r.IntN(3) {
			out = append(out, list[r.IntN(len(list))])
		}
		return nets(out...)
	}
	ports := func() []api.Port {
		all := []api.Port{port(22, 22), port(80, 80), port(1, 1024), port(23, 8080), port(0, 65535)}
		return all[:r.IntN(2)*r.IntN(6)]
	}
	out := api.Rule{
		Action:    []api.Action{api.Allow, api.Allow, api.Deny, api.Pass, api.Log}[r.IntN(5)],
		IPVersion: []int{0, 0, 0, 4, 6}[r.IntN(5)],
	}
	if r.IntN(2) == 0 {
		out.Protocol = protocol([]uint8{1, 6, 17, 58}[r.IntN(4)])
	}
	if r.IntN(4) == 0 {
		out.NotProtocol = protocol([]uint8{6, 17}[r.IntN(2)])
	}
	if r.IntN(2) == 0 {
		out.Source.Nets = pick("10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "0.0.0.0/0", "fd00::/16", "fd00::1", "::/0")
		out.Source.NotNets = pick("10.0.0.0/16", "10.0.0.1", "192.0.2.0/24", "fd00::/16", "0.0.0.0/0")
	}
	if r.IntN(3) == 0 {
		out.Source.Ports, out.Source.NotPorts = ports(), ports()
	}
	return out
}

// stages returns random tiers, each as policies of rules.
func (r random) stages() (tiers [][][]api.Rule, ends []desired.Verdict) {
	for range r.IntN(4) {
		var tier [][]api.Rule
		for range 1 + r.IntN(2) {
			var policy []api.Rule
			for range r.IntN(4) {
				policy = append(policy, r.rule())
			}
			tier = append(tier, policy)
		}
		tiers = append(tiers, tier)
		ends = append(ends, []desired.Verdict{desired.Deny, desired.Next}[r.IntN(2)])
	}
	return tiers, ends
}

func compiled(tiers [][][]api.Rule, ends []desired.Verdict) desired.Program {
	var stages []Stage
	for i, tier := range tiers {
		st := Stage{Name: fmt.Sprint(i), End: ends[i]}
		for j, policy := range tier {
			st.Policies = append(st.Policies, Rules(api.Key{Name: fmt.Sprint(j)}, api.Ingress, policy, make([]Sets, len(policy))))
		}
		stages = append(stages, st)
	}
	return Program(stages)
}

// reference evaluates policies in the words of the data model.
func reference(tiers [][][]api.Rule, ends []desired.Verdict, p packet) bool {
next:
	for i, tier := range tiers {
		for _, policy := range tier {
			for j := range policy {
				if !means(&policy[j], p) {
					continue
				}
				switch policy[j].Action {
				case api.Allow:
					return true
				case api.Deny:
					return false
				case api.Pass:
					continue next
				case api.Log:
				}
			}
		}
		if ends[i] == desired.Deny {
			return false
		}
	}
	return false
}

// TestProgramKeepsMeaning compares random programs with the policies they come
// from, on all packets.
func TestProgramKeepsMeaning(t *testing.T) {
	start := rand.Uint64()
	allowed := 0
	for i := range uint64(5000) {
		r := random{rand.New(rand.NewPCG(start+i, 0))}
		tiers, ends := r.stages()
		prog := compiled(tiers, ends)
		for _, p := range allPackets() {
			got, want := allows(prog, p), reference(tiers, ends, p)
			if got != want {
				t.Fatalf("seed %d: %+v: the program says %v, the policies %v\n%s%+v", start+i, p, got, want, programText(prog), tiers)
			}
			if got {
				allowed++
			}
		}
		for _, st := range prog.Stages {
			for i := range st.Rules {
				checkFamily(t, &st.Rules[i])
			}
		}
	}
	if allowed < 1000 {
		t.Errorf("only %d packets were allowed: that tests little", allowed)
	}
}

func checkFamily(t *testing.T, r *desired.Rule) {
	t.Helper()
	for _, p := range slices.Concat(r.Source.Nets, r.Source.NotNets) {
		if p.Addr().Is4() != (r.Family == 4) || r.Family == 0 {
			t.Fatalf("%s: a prefix of another family", r)
		}
	}
}

// TestLoosens checks on random changes that what Loosens calls more liberal
// forbids nothing that was allowed.
func TestLoosens(t *testing.T) {
	start := rand.Uint64()
	loose := 0
	for i := range uint64(20000) {
		r := random{rand.New(rand.NewPCG(start+i, 0))}
		tiers, ends := r.stages()
		old := compiled(tiers, ends)
		for range 1 + r.IntN(2) {
			mutate(r, tiers, ends)
		}
		v := compiled(tiers, ends)
		if !Loosens(old, v) {
			continue
		}
		loose++
		for _, p := range allPackets() {
			if allows(old, p) && !allows(v, p) {
				t.Fatalf("seed %d: %+v is forbidden now\n%s\n%s", start+i, p, programText(old), programText(v))
			}
		}
	}
	if loose < 1000 {
		t.Errorf("only %d changes were more liberal: that tests little", loose)
	}
}

// mutate inserts, deletes or replaces a rule, or changes the end of a tier.
func mutate(r random, tiers [][][]api.Rule, ends []desired.Verdict) {
	if len(tiers) == 0 {
		return
	}
	i := r.IntN(len(tiers))
	policy := &tiers[i][r.IntN(len(tiers[i]))]
	switch n := r.IntN(4); {
	case n == 0:
		*policy = slices.Insert(slices.Clone(*policy), r.IntN(len(*policy)+1), r.rule())
	case n == 1 && len(*policy) > 0:
		j := r.IntN(len(*policy))
		*policy = slices.Delete(slices.Clone(*policy), j, j+1)
	case n == 2 && len(*policy) > 0:
		*policy = slices.Clone(*policy)
		(*policy)[r.IntN(len(*policy))] = r.rule()
	case n == 3:
		ends[i] = desired.Next - ends[i]
	}
}

// Named ports beside others are rules of their own, of which no two match one
// connection; annotations are kept for people.
func TestNamedPorts(t *testing.T) {
	r := api.Rule{Action: api.Allow, Protocol: protocol(6), Metadata: &api.RuleMetadata{Annotations: map[string]string{"b": "2", "a": "1"}}}
	r.Destination.Ports = []api.Port{port(80, 80), {Name: "http"}}
	r.Destination.NotPorts = []api.Port{port(22, 22), {Name: "ssh"}}
	got := text(Rules(api.Key{Kind: "P", Name: "p"}, api.Ingress, []api.Rule{r}, []Sets{{DestinationPorts: 1, NotDestinationPorts: 2}}))
	want := []string{
		`allow proto=6 to-ports=80 to-not-ports=22 to-not-named=0000000000000002 id=P//p/Ingress/0 note="a=1 b=2"`,
		`allow proto=6 to-not-ports=22,80 to-named=0000000000000001 to-not-named=0000000000000002 id=P//p/Ingress/0 note="a=1 b=2"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What is both named and not to be can be no port.
	r.Destination.Ports = r.Destination.Ports[1:]
	if got := Rules(api.Key{}, api.Ingress, []api.Rule{r}, []Sets{{DestinationPorts: 1, NotDestinationPorts: 1}}); len(got) != 0 {
		t.Errorf("got %v", text(got))
	}
}

// Known cases of what is more liberal.
func TestLoosensCases(t *testing.T) {
	prog := func(rules ...desired.Rule) desired.Program {
		return desired.Program{Stages: []desired.Stage{{Name: "t", Rules: rules, End: desired.Deny}}}
	}
	a, b := rule(desired.Allow, proto(6), named("1")), rule(desired.Allow, proto(17), named("2"))
	deny, next := rule(desired.Deny, proto(1)), rule(desired.Next, proto(1))
	renamed := rule(desired.Allow, proto(6), named("9"))
	cases := []struct {
		name   string
		old, v desired.Program
		want   bool
	}{
		{"equal", prog(a, b), prog(a, b), true},
		{"an allow rule comes", prog(a), prog(b, a), true},
		{"an allow rule goes", prog(a, b), prog(a), false},
		{"a deny rule comes", prog(a), prog(deny, a), false},
		{"a deny rule goes", prog(deny, a), prog(a), true},
		{"a pass rule comes", prog(a), prog(next, a), false},
		{"a pass rule goes", prog(next, a), prog(a), false},
		{"a log rule comes", prog(a), prog(rule(desired.Log), a), true},
		{"a rule has another number", prog(a), prog(renamed), true},
		{"a rule changes", prog(a), prog(b), false},
		{"a stage comes at the end", prog(a), desired.Program{Stages: append(prog(a).Stages, prog(b).Stages...)}, true},
		{"a stage comes before", prog(a), desired.Program{Stages: append(prog(b).Stages, prog(a).Stages...)}, false},
		{"a stage goes", desired.Program{Stages: append(prog(a).Stages, prog(b).Stages...)}, prog(a), false},
	}
	for _, c := range cases {
		if got := Loosens(c.old, c.v); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
