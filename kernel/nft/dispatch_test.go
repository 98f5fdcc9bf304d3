package nft

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tortie/compile"
	"tortie/desired"
)

// randomRules are rules that mix protocols, ports, ranges, nets, sets and
// negations. Set 1 has the sender, set 2 has not.
func randomRules(r *rand.Rand, count int) []desired.Rule {
	portRanges := func() (out []desired.PortRange) {
		for first := r.IntN(40); first < 100 && len(out) < 3; first += 20 + r.IntN(60) {
			out = append(out, desired.PortRange{Min: uint16(5000 + first), Max: uint16(5000 + first + r.IntN(10))})
		}
		return out
	}
	rules := make([]desired.Rule, count)
	for i := range rules {
		rule := desired.Rule{
			ID:       fmt.Sprintf("GlobalNetworkPolicy//p/Ingress/%d", i),
			Verdict:  []desired.Verdict{desired.Allow, desired.Deny, desired.Deny, desired.Next, desired.Log}[r.IntN(5)],
			Protocol: []uint8{17, 17, 17, 6, 0}[r.IntN(5)],
		}
		if r.IntN(4) > 0 {
			rule.Destination.Ports = portRanges()
		} else {
			rule.Destination.NotPorts = portRanges()
			rule.Source.Set = 2
		}
		switch r.IntN(5) {
		case 0:
			rule.Family, rule.Source.Nets = 4, prefixes([]string{"10.65.0.0/16", "10.66.0.0/16"}[r.IntN(2)], "192.0.2.0/24")
		case 1:
			rule.Family, rule.Source.NotNets = 6, prefixes([]string{"fd00::/16", "fd01::/16"}[r.IntN(2)])
		case 2:
			rule.Source.Set = desired.SetID(1 + r.IntN(2))
		case 3:
			rule.Source.NotSet = desired.SetID(1 + r.IntN(2))
		}
		rules[i] = rule
	}
	return rules
}

// wideRules are rules of which most match every port, from prefixes about the
// sender, and from outside sets that are told apart before that.
func wideRules(r *rand.Rand, count int) []desired.Rule {
	rules := randomRules(r, count)
	for i := range rules {
		if r.IntN(6) == 0 {
			continue
		}
		rule := desired.Rule{ID: rules[i].ID, Verdict: rules[i].Verdict, Protocol: []uint8{0, 17, 17, 6}[r.IntN(4)], Family: []int{4, 6}[r.IntN(2)]}
		sender := map[int]string{4: "10.65.0.1", 6: "fd00::1"}[rule.Family]
		near := netip.MustParseAddr(sender)
		for range r.IntN(24) {
			near = near.Next()
		}
		rule.Source.Nets = []netip.Prefix{netip.PrefixFrom(near, near.BitLen()-r.IntN(3)).Masked()}
		if r.IntN(3) == 0 {
			rule.Source.NotSet = desired.SetID(1 + r.IntN(2))
		}
		rules[i] = rule
	}
	return rules
}

// passes evaluates stages for a UDP datagram of the sender in the plain order.
func passes(stages []desired.Stage, source netip.Addr, port uint16) bool {
	for _, s := range stages {
		verdict := s.End
		for i := range s.Rules {
			if r := &s.Rules[i]; r.Verdict != desired.Log && meets(r, source, port) {
				verdict = r.Verdict
				break
			}
		}
		if verdict != desired.Next {
			return verdict == desired.Allow
		}
	}
	return false
}

func meets(r *desired.Rule, source netip.Addr, port uint16) bool {
	has := func(ranges []desired.PortRange) bool {
		return slices.ContainsFunc(ranges, func(p desired.PortRange) bool { return p.Min <= port && port <= p.Max })
	}
	in := func(nets []netip.Prefix) bool {
		return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(source) })
	}
	d, s := &r.Destination, &r.Source
	return (r.Protocol == 0 || r.Protocol == 17) && (r.Family == 0 || (r.Family == 4) == source.Is4()) &&
		(len(d.Ports) == 0 || has(d.Ports)) && !has(d.NotPorts) &&
		(len(s.Nets) == 0 || in(s.Nets)) && !in(s.NotNets) && s.Set != 2 && s.NotSet != 1
}

// Real datagrams to every port are judged by programs that lead by port, set and
// address as the rules in their order judge them, and a change of one rule is
// written.
func TestDispatchedProgram(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand, int) []desired.Rule{"ports": randomRules, "wide": wideRules} {
		t.Run(name, func(t *testing.T) { testDispatchedProgram(t, draw) })
	}
}

func testDispatchedProgram(t *testing.T, draw func(*rand.Rand, int) []desired.Rule) {
	const first, count = 4995, 115
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	_, a, b, st := pair(t)
	tb := open(t)
	addSet(st, 1, a.v4.String()+"/32", a.v6.String()+"/128")
	addSet(st, 2, "192.0.2.7/32", "2001:db8::7/128", "198.51.100.0/24")
	b.Run(t, "nft", "add table inet seen; "+
		"add set inet seen four { type inet_service; size 1024; flags dynamic; }; add set inet seen six { type inet_service; size 1024; flags dynamic; }; "+
		"add chain inet seen in { type filter hook prerouting priority 0; }; "+
		"add rule inet seen in meta nfproto ipv4 meta l4proto udp update @four { udp dport }; add rule inet seen in meta nfproto ipv6 meta l4proto udp update @six { udp dport }")
	stages := []compile.Stage{
		{Name: "a", Policies: [][]desired.Rule{draw(r, 90)}, End: desired.Next},
		{Name: "b", Policies: [][]desired.Rule{draw(r, 40)}, End: desired.Deny},
	}
	for round := range 6 {
		program := compile.Program(stages)
		if round == 0 && (len(program.Stages[0].Dispatch) == 0 || len(program.Stages[1].Dispatch) == 0) {
			t.Fatal("nothing is led by port")
		}
		st.Programs.Set(b.endpoint().Ingress, program)
		st.Tightened = true
		if res := apply(t, tb, st); !res.Bumped {
			bump(t, tb)
		}
		st.Tightened = false
		settled(t, tb, st)
		for name, addr := range map[string][2]netip.Addr{"four": {a.v4, b.v4}, "six": {a.v6, b.v6}} {
			b.Run(t, "nft", "flush set inet seen "+name)
			var want []string
			a.Do(func() {
				for port := uint16(first); port < first+count; port++ {
					c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr[1], port)))
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = c.Write([]byte("x")) // a refusal of the port before is none of this one
					_ = c.Close()
					if passes(program.Stages, addr[0], port) {
						want = append(want, strconv.Itoa(int(port)))
					}
				}
			})
			var got []string
			for limit := time.Now().Add(5 * time.Second); !slices.Equal(got, want) && time.Now().Before(limit); {
				got = regexp.MustCompile(`\b[45]\d{3}\b`).FindAllString(strings.Join(strings.Split(b.Run(t, "nft", "list", "set", "inet", "seen", name), "elements")[1:], ""), -1)
				slices.Sort(got)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, round %d, %s: ports %s passed, want %s\n%v", seed, round, name, got, want, program)
			}
		}
		rules := stages[round%2].Policies[0]
		rules[r.IntN(len(rules))] = draw(r, 1)[0]
	}
}
