package compile

import (
	"net/netip"

	"tortie/desired"
)

// region is where all conditions of a rule hold, and the addresses of both ends
// are in sets more: what else is known of a connection. It is used to find out
// which conditions of other rules need not be looked at. All answers err towards
// looking: false means that it is not known.
type region struct {
	desired.Rule
	source, destination desired.SetID // 0 for none
}

// implies says that all of what the region has meets the rule's conditions.
func (a *region) implies(b *desired.Rule) bool {
	return (b.Family == 0 || a.Family == b.Family) &&
		(b.Protocol == 0 || a.Protocol == b.Protocol) && (b.NotProtocol == 0 || a.NotProtocol == b.NotProtocol) &&
		(b.ICMP == nil || a.ICMP != nil && icmpWithin(a.ICMP, b.ICMP)) &&
		(b.NotICMP == nil || a.NotICMP != nil && icmpWithin(b.NotICMP, a.NotICMP) || a.ICMP != nil && icmpDisjoint(a.ICMP, b.NotICMP)) &&
		peerImplies(&a.Source, a.source, &b.Source) && peerImplies(&a.Destination, a.destination, &b.Destination)
}

func peerImplies(a *desired.Peer, also desired.SetID, b *desired.Peer) bool {
	return (b.Set == 0 || a.Set == b.Set || also == b.Set) && (b.NotSet == 0 || a.NotSet == b.NotSet) &&
		(b.Named == 0 || a.Named == b.Named) && (b.NotNamed == 0 || a.NotNamed == b.NotNamed) &&
		netKind.implies(a.Nets, a.NotNets, b.Nets, b.NotNets) && portKind.implies(a.Ports, a.NotPorts, b.Ports, b.NotPorts)
}

// excludes says that nothing of what the region has meets the rule's conditions.
func (a *region) excludes(b *desired.Rule) bool {
	return a.Family != 0 && b.Family != 0 && a.Family != b.Family ||
		a.Protocol != 0 && (b.Protocol != 0 && a.Protocol != b.Protocol || a.Protocol == b.NotProtocol) ||
		b.Protocol != 0 && a.NotProtocol == b.Protocol ||
		a.ICMP != nil && (b.ICMP != nil && icmpDisjoint(a.ICMP, b.ICMP) || b.NotICMP != nil && icmpWithin(a.ICMP, b.NotICMP)) ||
		a.NotICMP != nil && b.ICMP != nil && icmpWithin(b.ICMP, a.NotICMP) ||
		peerExcludes(&a.Source, a.source, &b.Source) || peerExcludes(&a.Destination, a.destination, &b.Destination)
}

func peerExcludes(a *desired.Peer, also desired.SetID, b *desired.Peer) bool {
	return b.NotSet != 0 && (a.Set == b.NotSet || also == b.NotSet) || b.Set != 0 && a.NotSet == b.Set ||
		b.NotNamed != 0 && a.Named == b.NotNamed || b.Named != 0 && a.NotNamed == b.Named ||
		netKind.excludes(a.Nets, a.NotNets, b.Nets, b.NotNets) || portKind.excludes(a.Ports, a.NotPorts, b.Ports, b.NotPorts)
}

func icmpWithin(a, b *desired.ICMP) bool { return a.Type == b.Type && (b.Code < 0 || a.Code == b.Code) }

func icmpDisjoint(a, b *desired.ICMP) bool {
	return a.Type != b.Type || a.Code >= 0 && b.Code >= 0 && a.Code != b.Code
}

// kind is how lists of prefixes or port ranges compare. A condition is a list
// of which one must have the value, if there is any, and one of which none may.
type kind[T any] struct {
	within, overlap func(a, b T) bool
}

var (
	netKind = kind[netip.Prefix]{
		within:  func(a, b netip.Prefix) bool { return b.Bits() <= a.Bits() && b.Overlaps(a) },
		overlap: netip.Prefix.Overlaps,
	}
	portKind = kind[desired.PortRange]{
		within:  func(a, b desired.PortRange) bool { return b.Min <= a.Min && a.Max <= b.Max },
		overlap: func(a, b desired.PortRange) bool { return a.Min <= b.Max && b.Min <= a.Max },
	}
)

func (k kind[T]) withinOne(a T, list []T) bool {
	for _, b := range list {
		if k.within(a, b) {
			return true
		}
	}
	return false
}

func (k kind[T]) apart(a, b []T) bool {
	for _, x := range a {
		for _, y := range b {
			if k.overlap(x, y) {
				return false
			}
		}
	}
	return true
}

func (k kind[T]) implies(a, aNot, b, bNot []T) bool {
	if len(b) > 0 {
		if len(a) == 0 {
			return false
		}
		for _, x := range a {
			if !k.withinOne(x, b) {
				return false
			}
		}
	}
	for _, y := range bNot {
		if !k.withinOne(y, aNot) && (len(a) == 0 || !k.apart(a, []T{y})) {
			return false
		}
	}
	return true
}

func (k kind[T]) excludes(a, aNot, b, bNot []T) bool {
	return len(a) > 0 && len(b) > 0 && k.apart(a, b) || k.allWithin(a, bNot) || k.allWithin(b, aNot)
}

// allWithin is false if a has no condition.
func (k kind[T]) allWithin(a, b []T) bool {
	for _, x := range a {
		if !k.withinOne(x, b) {
			return false
		}
	}
	return len(a) > 0
}

// both is what is in a list and in another, of which an empty one has all.
func (k kind[T]) both(a, b []T) []T {
	if len(a) == 0 {
		return b
	}
	var out []T
	for _, x := range a {
		for _, y := range b {
			switch {
			case k.within(x, y):
				out = append(out, x)
			case k.within(y, x):
				out = append(out, y)
			case k.overlap(x, y): // of ports only: more than is in both, which errs towards looking
				out = append(out, x)
			}
		}
	}
	return out
}

// given is the rule without the conditions that hold in the region, and false
// if it matches nothing there.
func (a *region) given(r desired.Rule) (desired.Rule, bool) {
	if a.excludes(&r) {
		return r, false
	}
	if a.implies(&desired.Rule{Protocol: r.Protocol}) {
		r.Protocol = 0
	}
	if a.implies(&desired.Rule{NotProtocol: r.NotProtocol}) {
		r.NotProtocol = 0
	}
	peerGiven(&a.Source, a.source, &r.Source)
	peerGiven(&a.Destination, a.destination, &r.Destination)
	switch {
	case looks(&r) && r.Family == 0:
		r.Family = a.Family // no need to look in both
	case !looks(&r) && r.Family == a.Family:
		r.Family = 0
	}
	return r, true
}

func peerGiven(a *desired.Peer, also desired.SetID, b *desired.Peer) {
	if b.Set == a.Set || b.Set == also {
		b.Set = 0
	}
	if b.NotSet == a.NotSet {
		b.NotSet = 0
	}
	if b.Named == a.Named {
		b.Named = 0
	}
	if b.NotNamed == a.NotNamed {
		b.NotNamed = 0
	}
	if netKind.implies(a.Nets, a.NotNets, b.Nets, nil) {
		b.Nets = nil
	}
	if netKind.implies(a.Nets, a.NotNets, nil, b.NotNets) {
		b.NotNets = nil
	}
	if portKind.implies(a.Ports, a.NotPorts, b.Ports, nil) {
		b.Ports = nil
	}
	if portKind.implies(a.Ports, a.NotPorts, nil, b.NotPorts) {
		b.NotPorts = nil
	}
}

// looks says that the rule looks at addresses, whose family must be known.
func looks(r *desired.Rule) bool {
	return looksAt(&r.Source) || looksAt(&r.Destination) || (r.ICMP != nil || r.NotICMP != nil) && r.Protocol == 0
}

func looksAt(p *desired.Peer) bool {
	return len(p.Nets)+len(p.NotNets) > 0 || p.Set != 0 || p.NotSet != 0 || p.Named != 0 || p.NotNamed != 0
}

// negation is a kind of negated condition of one end.
type negation struct {
	of       func(*desired.Peer) bool
	drop     func(*desired.Peer)
	opposite func(*desired.Peer) desired.SetID // instead of it; what it had to be outside of, where that is a set
}

var negations = []negation{
	{
		of:       func(p *desired.Peer) bool { return p.NotSet != 0 },
		drop:     func(p *desired.Peer) { p.NotSet = 0 },
		opposite: func(p *desired.Peer) desired.SetID { return p.NotSet },
	},
	{
		of:       func(p *desired.Peer) bool { return len(p.NotNets) > 0 },
		drop:     func(p *desired.Peer) { p.NotNets = nil },
		opposite: func(p *desired.Peer) desired.SetID { p.Nets = netKind.both(p.Nets, p.NotNets); return 0 },
	},
	{
		of:       func(p *desired.Peer) bool { return len(p.NotPorts) > 0 },
		drop:     func(p *desired.Peer) { p.NotPorts = nil },
		opposite: func(p *desired.Peer) desired.SetID { p.Ports = portKind.both(p.Ports, p.NotPorts); return 0 },
	},
}

// numbered is a rule, or what is left of it, with its place.
type numbered struct {
	desired.Rule
	at int
}

// reduce leaves out rules that no connection can reach, because all that they
// match an earlier one decides or it contradicts itself, and negated conditions that do not matter,
// because it decides what they leave out. Conditions on ports are of rules for
// protocols that have them.
func reduce(rules []numbered) []numbered {
	out := make([]numbered, 0, len(rules))
	var closed fams // of which all connections are decided
	for _, r := range rules {
		all := region{Rule: r.Rule}
		if famsOf(&r.Rule)&^closed == 0 || all.excludes(&r.Rule) || decided(&all, out) {
			continue
		}
		for _, n := range negations {
			if n.of(&r.Source) {
				left := region{Rule: r.Rule}
				left.source = n.opposite(&left.Source)
				if n.drop(&left.Source); decided(&left, out) {
					n.drop(&r.Source)
				}
			}
			if n.of(&r.Destination) {
				left := region{Rule: r.Rule}
				left.destination = n.opposite(&left.Destination)
				if n.drop(&left.Destination); decided(&left, out) {
					n.drop(&r.Destination)
				}
			}
		}
		out = append(out, r)
		if r.Verdict != desired.Log && unconditional(&r.Rule) {
			closed |= famsOf(&r.Rule)
		}
	}
	return out
}

// mostCompared is with how many earlier rules one is compared, so that
// thousands of rules do not take seconds.
const mostCompared = 256

// decided says that one of the rules decides all connections of the region.
func decided(a *region, rules []numbered) bool {
	for i := range rules[:min(len(rules), mostCompared)] {
		if rules[i].Verdict != desired.Log && a.implies(&rules[i].Rule) {
			return true
		}
	}
	return false
}

// within is what is left of the rules in the region.
func (a *region) within(rules []numbered) []numbered {
	out := make([]numbered, 0, len(rules))
	for _, r := range rules {
		if left, ok := a.given(r.Rule); ok {
			out = append(out, numbered{left, r.at})
		}
	}
	return out
}
