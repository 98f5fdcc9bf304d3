package compile

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"tortie/desired"
)

// style is how rules are drawn: how many of ten name ports, sets and prefixes.
type style struct {
	ports, sets, nets int
	turned            bool // the destination is named more often
}

// dispatchRule is a random rule for both ends' ports, nets and sets.
func (r random) dispatchRule(s style) desired.Rule {
	out := desired.Rule{
		Verdict:  []desired.Verdict{desired.Allow, desired.Allow, desired.Deny, desired.Deny, desired.Next, desired.Log}[r.IntN(6)],
		Family:   []int{0, 0, 4, 6}[r.IntN(4)],
		Protocol: []uint8{0, 6, 6, 6, 17, 1, 58, 47}[r.IntN(8)],
	}
	if out.Protocol == 0 {
		out.NotProtocol = []uint8{0, 6, 17, 1, 47}[r.IntN(5)]
	}
	if slices.Contains(ported, out.Protocol) || out.Protocol == 0 && r.IntN(8) == 0 {
		if r.IntN(10) < s.ports {
			out.Destination.Ports = r.ports()
		}
		if r.IntN(10) == 0 {
			out.Source.Ports = r.ports()
		}
		if r.IntN(4) == 0 {
			out.Destination.NotPorts = r.ports()
		}
		if r.IntN(10) == 0 {
			out.Source.Named, out.Source.NotNamed = desired.SetID(r.IntN(4)), desired.SetID(r.IntN(3))
			out.Destination.Named, out.Destination.NotNamed = desired.SetID(r.IntN(3)), desired.SetID(r.IntN(4))
		}
	}
	if !needsPorts(&out) && (out.Protocol == 0 || out.Protocol == 1 || out.Protocol == 58) && r.IntN(2) == 0 {
		out.ICMP = r.icmp()
		out.NotICMP = r.icmp()
		if out.ICMP != nil || out.NotICMP != nil {
			out.NotProtocol = 0
		}
	}
	ends := []*desired.Peer{&out.Source, &out.Destination}
	if s.turned {
		slices.Reverse(ends)
	}
	for _, p := range ends {
		if r.IntN(10) < s.sets {
			p.Set = desired.SetID(r.IntN(4))
			p.NotSet = desired.SetID(r.IntN(3) * r.IntN(4) / 2)
		}
		if r.IntN(10) < s.nets && out.Family != 0 {
			p.Nets, p.NotNets = r.prefixes(out.Family), r.prefixes(out.Family)
		}
		s.sets, s.nets = s.sets/3, s.nets/3
	}
	return out
}

// netRule is one that looks at little but one end's prefixes.
func (r random) netRule(turned bool) desired.Rule {
	out := desired.Rule{Verdict: desired.Verdict(r.IntN(4)), Family: []int{4, 6}[r.IntN(2)], Protocol: []uint8{0, 6, 6, 17}[r.IntN(4)]}
	p := peerOf(&out, turned)
	if p.Nets = r.prefixes(out.Family); r.IntN(8) == 0 {
		p.NotNets = r.prefixes(out.Family)
	}
	if r.IntN(8) == 0 {
		p.NotSet = 1
	}
	return out
}

func (r random) ports() (out []desired.PortRange) {
	for range 1 + r.IntN(2) {
		first := uint16(r.IntN(6) * 13107)
		out = append(out, desired.PortRange{Min: first, Max: first + uint16(r.IntN(3))*100})
	}
	slices.SortFunc(out, func(a, b desired.PortRange) int { return int(a.Min) - int(b.Min) })
	return slices.CompactFunc(out, func(a, b desired.PortRange) bool { return a.Max >= b.Min })
}

func (r random) icmp() *desired.ICMP {
	if r.IntN(2) == 0 {
		return nil
	}
	return &desired.ICMP{Type: uint8(r.IntN(2)), Code: r.IntN(3) - 1}
}

// prefix is one of few addresses' networks, so that many overlap.
func (r random) prefix(family int) netip.Prefix {
	edges := []byte{0, 0, 1, 127, 255}
	b := make([]byte, map[int]int{4: 4, 6: 16}[family])
	for i := range 4 {
		b[i*len(b)/4] = edges[r.IntN(len(edges))]
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, (2+r.IntN(7))*len(b)).Masked()
}

func (r random) prefixes(family int) (out []netip.Prefix) {
	for range r.IntN(3) {
		out = append(out, r.prefix(family))
	}
	return out
}

// address is one at an edge of a prefix, or next to it.
func (r random) address(family int) netip.Addr {
	n := r.prefix(family)
	a := []netip.Addr{n.Addr(), n.Addr().Prev(), lastOf(n), lastOf(n).Next()}[r.IntN(4)]
	if !a.IsValid() {
		return n.Addr()
	}
	return a
}

// place is one end of a connection.
type place struct {
	addr  netip.Addr
	port  uint16
	sets  int // bits: of which sets it is a member
	named int // bits: in which sets of named ports it is
}

func (e place) meets(p *desired.Peer, hasPorts bool) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(n netip.Prefix) bool { return n.Contains(e.addr) })
	}
	has := func(list []desired.PortRange) bool {
		return slices.ContainsFunc(list, func(q desired.PortRange) bool { return q.Min <= e.port && e.port <= q.Max })
	}
	if len(p.Ports)+len(p.NotPorts) > 0 && !hasPorts || (p.Named != 0 || p.NotNamed != 0) && !hasPorts {
		return false
	}
	return (len(p.Nets) == 0 || in(p.Nets)) && !in(p.NotNets) && (len(p.Ports) == 0 || has(p.Ports)) && !has(p.NotPorts) &&
		(p.Set == 0 || e.sets>>p.Set&1 == 1) && (p.NotSet == 0 || e.sets>>p.NotSet&1 == 0) &&
		(p.Named == 0 || e.named>>p.Named&1 == 1) && (p.NotNamed == 0 || e.named>>p.NotNamed&1 == 0)
}

// connection is one that lists are asked about.
type connection struct {
	family   int
	proto    uint8
	from, to place
	icmp     desired.ICMP
}

func (r random) connection() connection {
	c := connection{family: []int{4, 6}[r.IntN(2)], proto: []uint8{6, 6, 6, 17, 33, 1, 58, 47, 50}[r.IntN(9)]}
	c.icmp = desired.ICMP{Type: uint8(r.IntN(2)), Code: r.IntN(2)}
	for _, e := range []*place{&c.from, &c.to} {
		*e = place{addr: r.address(c.family), port: uint16(r.IntN(6)*13107 + r.IntN(402) - 1), sets: r.IntN(16), named: r.IntN(16)}
	}
	return c
}

// meets says whether the connection has the rule's conditions, by what the
// fields of a rule say.
func (c connection) meets(r *desired.Rule) bool {
	proto := r.Protocol
	if proto == 0 && (r.ICMP != nil || r.NotICMP != nil) {
		proto = map[int]uint8{4: 1, 6: 58}[c.family]
	}
	is := func(m *desired.ICMP) bool {
		return c.icmp.Type == m.Type && (m.Code < 0 || c.icmp.Code == m.Code)
	}
	hasPorts := slices.Contains(ported, c.proto)
	return (r.Family == 0 || r.Family == c.family) && (proto == 0 || proto == c.proto) && (r.NotProtocol == 0 || r.NotProtocol != c.proto) &&
		(r.ICMP == nil || is(r.ICMP)) && (r.NotICMP == nil || !is(r.NotICMP)) &&
		c.from.meets(&r.Source, hasPorts) && c.to.meets(&r.Destination, hasPorts)
}

// decide returns the rule that decides, or "", and the Log rules met before.
func (c connection) decide(rules []desired.Rule) (by string, logged []string) {
	for i := range rules {
		switch r := &rules[i]; {
		case !c.meets(r):
		case r.Verdict == desired.Log:
			logged = append(logged, r.ID)
		default:
			return r.ID, logged
		}
	}
	return "", logged
}

// walk is decide by lists.
func (c connection) walk(l *desired.List) (by string, logged []string) {
	for l != nil {
		var to *desired.List
		for i := range l.Steps {
			s := &l.Steps[i]
			if !c.meets(&s.Rule) {
				continue
			}
			if to = s.To; to != nil {
				break
			}
			if s.Verdict != desired.Log {
				return s.ID, logged
			}
			logged = append(logged, s.ID)
		}
		switch {
		case to != nil:
			l = to
		case l.Addresses != nil:
			l = byAddress(l.Addresses, c)
		default:
			l = l.Rest
		}
	}
	return "", logged
}

// byAddress is the list of the last start that is not above the address.
func byAddress(a *desired.Addresses, c connection) (to *desired.List) {
	addr := c.from.addr
	if a.Destination {
		addr = c.to.addr
	}
	for i, start := range a.Starts {
		if start.Is4() == addr.Is4() && start.Compare(addr) <= 0 {
			to = a.Lists[i]
		}
	}
	return to
}

// first is the list that a connection begins with.
func (c connection) first(led []desired.Dispatch, others *desired.List) (to *desired.List) {
	for _, d := range led {
		if d.Protocol != c.proto {
			continue
		}
		to = d.Lists[0]
		for i, start := range d.Starts {
			if start <= c.to.port {
				to = d.Lists[i]
			}
		}
		return to
	}
	return others
}

// TestDispatch: the lists decide as the rules do, one after the other, by the
// same rule, and log the same.
func TestDispatch(t *testing.T) {
	start := rand.Uint64()
	styles := []style{{9, 6, 6, false}, {5, 4, 4, true}, {3, 8, 2, true}, {3, 2, 8, false}, {1, 6, 6, false}, {5, 0, 9, false}, {3, 0, 9, true}}
	seen := map[string]int{}
	for seed := start; seed < start+1200; seed++ {
		r := random{rand.New(rand.NewPCG(seed, 1))}
		var rules []desired.Rule
		for i := range mostListed + 1 + r.IntN(120) {
			rule := r.dispatchRule(styles[seed%uint64(len(styles))])
			if seed%8 > 5 && r.IntN(10) > 0 {
				rule = r.netRule(seed%2 == 0)
			}
			rule.ID = strconv.Itoa(i)
			rules = append(rules, rule)
		}
		led, others := dispatch(rules)
		for _, d := range led {
			if len(d.Starts) > 0 && (d.Starts[0] != 0 || !slices.IsSorted(d.Starts) || len(d.Starts) != len(d.Lists)) {
				t.Fatalf("seed %d: starts %d, %d lists", seed, d.Starts, len(d.Lists))
			}
			for _, l := range d.Lists {
				shapes(l, seen)
			}
		}
		for range 500 {
			c := r.connection()
			by, logged := c.decide(rules)
			fast, fastLogged := c.walk(c.first(led, others))
			if by != fast || !slices.Equal(logged, fastLogged) {
				t.Fatalf("seed %d: %+v: rule %q decides after %s, in lists rule %q after %s", seed, c, by, logged, fast, fastLogged)
			}
		}
	}
	for _, shape := range []string{"leads", "source", "destination", "rest"} {
		if seen[shape] < 5 {
			t.Errorf("only %d lists have %s", seen[shape], shape)
		}
	}
}

// shapes counts what lists are made of.
func shapes(l *desired.List, seen map[string]int) {
	if l == nil {
		return
	}
	for _, s := range l.Steps {
		if s.To != nil {
			seen["leads"]++
			shapes(s.To, seen)
		}
	}
	if a := l.Addresses; a != nil {
		seen[map[bool]string{false: "source", true: "destination"}[a.Destination]]++
	}
	if l.Rest != nil {
		seen["rest"]++
		shapes(l.Rest, seen)
	}
}
