package compile

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tortie/desired"
)

// dispatchRule is a random rule for both ends' ports, nets and sets.
func (r random) dispatchRule() desired.Rule {
	ports := func() (out []desired.PortRange) {
		for range r.IntN(3) {
			first := uint16(r.IntN(6) * 13107)
			out = append(out, desired.PortRange{Min: first, Max: first + uint16(r.IntN(3))*100})
		}
		slices.SortFunc(out, func(a, b desired.PortRange) int { return int(a.Min) - int(b.Min) })
		return slices.CompactFunc(out, func(a, b desired.PortRange) bool { return a.Max >= b.Min })
	}
	out := desired.Rule{
		Verdict:  []desired.Verdict{desired.Allow, desired.Deny, desired.Next, desired.Log}[r.IntN(4)],
		Family:   []int{0, 0, 4, 6}[r.IntN(4)],
		Protocol: []uint8{0, 6, 6, 17, 1}[r.IntN(5)],
	}
	if out.Protocol == 0 {
		out.NotProtocol = []uint8{0, 6, 17}[r.IntN(3)]
	}
	if out.Protocol != 1 {
		out.Destination.Ports = ports()
		out.Destination.NotPorts = ports()
		if r.IntN(8) == 0 {
			out.Source.Ports = ports()
		}
	}
	if out.Family == 4 && r.IntN(2) == 0 {
		out.Source.Nets = []netip.Prefix{netip.MustParsePrefix([]string{"10.0.0.0/8", "10.0.0.0/16"}[r.IntN(2)])}
	}
	if r.IntN(3) > 0 {
		out.Source.Set = desired.SetID(r.IntN(4))
		out.Source.NotSet = desired.SetID(r.IntN(3))
	}
	if out.Protocol != 1 && r.IntN(3) == 0 {
		out.Source.Named, out.Source.NotNamed = desired.SetID(r.IntN(4)), desired.SetID(r.IntN(3))
		out.Destination.Named, out.Destination.NotNamed = desired.SetID(r.IntN(3)), desired.SetID(r.IntN(4))
	}
	return out
}

// connection is one that dispatched rules are asked about.
type connection struct {
	packet
	source uint16 // port; packet's is that of the destination
	sets   int    // bits: of which sets the source is a member
	from   int    // bits: in which sets of named ports the source is
	to     int    // and the destination
}

// meets says whether the connection has the rule's conditions; with known set
// protocol and destination port are known to be right.
func (c connection) meets(r *desired.Rule, known bool) bool {
	bare := *r
	bare.Source.Ports, bare.Source.NotPorts = r.Destination.Ports, r.Destination.NotPorts
	if known {
		bare.Protocol, bare.NotProtocol, bare.Source.Ports, bare.Source.NotPorts = 0, 0, nil, nil
	}
	from := func(p desired.PortRange) bool { return p.Min <= c.source && c.source <= p.Max }
	is := func(bits int, in, notIn desired.SetID) bool {
		return (in == 0 || bits>>in&1 == 1) && (notIn == 0 || bits>>notIn&1 == 0)
	}
	return matches(&bare, c.packet) &&
		(len(r.Source.Ports) == 0 || slices.ContainsFunc(r.Source.Ports, from)) && !slices.ContainsFunc(r.Source.NotPorts, from) &&
		is(c.sets, r.Source.Set, r.Source.NotSet) && is(c.from, r.Source.Named, r.Source.NotNamed) && is(c.to, r.Destination.Named, r.Destination.NotNamed)
}

// decide returns the rule that decides, or -1, and the Log rules met before.
func (c connection) decide(rules []desired.Rule, list []int, known bool) (by int, logged []int) {
	for _, i := range list {
		switch {
		case !c.meets(&rules[i], known):
		case rules[i].Verdict == desired.Log:
			logged = append(logged, i)
		default:
			return i, logged
		}
	}
	return -1, logged
}

// TestDispatch: the list that a connection is led to decides as the whole does,
// by the same verdict, and logs the same.
func TestDispatch(t *testing.T) {
	start := rand.Uint64()
	led := 0
	for seed := start; seed < start+300; seed++ {
		r := random{rand.New(rand.NewPCG(seed, 1))}
		var rules []desired.Rule
		for range mostListed + 1 + r.IntN(60) {
			rules = append(rules, r.dispatchRule())
		}
		all := make([]int, len(rules))
		for i := range all {
			all[i] = i
		}
		for _, d := range dispatch(rules) {
			if d.Starts[0] != 0 || !slices.IsSorted(d.Starts) || len(d.Starts) != len(d.Lists) {
				t.Fatalf("seed %d: starts %d, %d lists", seed, d.Starts, len(d.Lists))
			}
			for range 300 {
				c := connection{packet: allPackets()[r.IntN(60)], source: uint16(r.IntN(65536)), sets: r.IntN(16), from: r.IntN(16), to: r.IntN(16)}
				c.proto = d.Protocol
				c.port = uint16(r.IntN(6)*13107 + r.IntN(402) - 1)
				at, exact := slices.BinarySearch(d.Starts, c.port)
				if !exact {
					at--
				}
				by, logged := c.decide(rules, all, false)
				fast, fastLogged := c.decide(rules, d.Lists[at], true)
				if (by < 0) != (fast < 0) || by >= 0 && rules[by].Verdict != rules[fast].Verdict || by != fast || !slices.Equal(logged, fastLogged) {
					t.Fatalf("seed %d: %+v: rule %d decides after %d, dispatched rule %d after %d", seed, c, by, logged, fast, fastLogged)
				}
				led++
			}
		}
	}
	if led < 10000 {
		t.Errorf("only %d connections were led anywhere", led)
	}
}
