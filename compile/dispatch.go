package compile

import (
	"maps"
	"net/netip"
	"slices"

	"tortie/desired"
)

const (
	// mostListed is how many rules a connection may be compared with one after the
	// other; for more it is led to those that can match it.
	mostListed = 8

	// mostBeside is how many rules for all ports are repeated beside those for one.
	mostBeside = 16

	// mostRepeated is in how many lists a rule may be, on average: the kernel looks
	// at all of them whenever a verdict changes. Where sets or addresses lead to
	// too much, rules are compared one after the other.
	mostRepeated = 64
	mostSplit    = 16
	mostByNet    = 4
)

// ported are the protocols that have ports: TCP, UDP, DCCP, SCTP and UDP-Lite.
var ported = []uint8{6, 17, 33, 132, 136}

// dispatch makes the lists that decide as the rules do, one after the other: for
// each protocol that a rule names, and for all others. There are none for few
// rules.
func dispatch(rules []desired.Rule) (led []desired.Dispatch, others *desired.List) {
	if len(rules) <= mostListed {
		return nil, nil
	}
	named := map[uint8]bool{}
	for i := range rules {
		for _, p := range protocolsOf(&rules[i]) {
			named[p] = true
		}
	}
	for _, proto := range slices.Sorted(maps.Keys(named)) {
		can := ofProtocol(rules, proto)
		d := desired.Dispatch{Protocol: proto}
		b := byPort{tree: tree{proto: proto}, wide: can}
		if slices.Contains(ported, proto) && len(can) > mostListed {
			b.wide, b.narrow = nil, nil
			for _, r := range can {
				if len(r.Destination.Ports) > 0 {
					b.narrow = append(b.narrow, r)
				} else {
					b.wide = append(b.wide, r)
				}
			}
		}
		b.wide = reduce(b.wide)
		if len(b.narrow) == 0 || !b.lists(&d) {
			t := tree{proto: proto}
			d.Starts, d.Lists = nil, []*desired.List{t.list(reduce(can))}
		}
		led = append(led, d)
	}
	var rest []numbered
	for i, r := range rules {
		if len(protocolsOf(&r)) == 0 || r.NotProtocol != 0 && !needsPorts(&r) && r.ICMP == nil && r.NotICMP == nil {
			r.NotProtocol = 0 // it has a list of its own
			rest = append(rest, numbered{r, i})
		}
	}
	return led, (&tree{}).list(reduce(rest))
}

// protocolsOf are those that have to be told apart because of the rule.
func protocolsOf(r *desired.Rule) (out []uint8) {
	switch {
	case r.Protocol != 0:
		return []uint8{r.Protocol}
	case r.ICMP != nil || r.NotICMP != nil:
		out = append(out, protoICMP, protoICMPv6)
	case needsPorts(r):
		out = append(out, ported...)
	}
	if r.NotProtocol != 0 {
		out = append(out, r.NotProtocol)
	}
	return out
}

// needsPorts says that the rule matches only protocols that have ports.
func needsPorts(r *desired.Rule) bool {
	of := func(p *desired.Peer) bool { return len(p.Ports)+len(p.NotPorts) > 0 || p.Named != 0 || p.NotNamed != 0 }
	return of(&r.Source) || of(&r.Destination)
}

// ofProtocol are the rules that can match it, without that condition.
func ofProtocol(rules []desired.Rule, proto uint8) (out []numbered) {
	for i, r := range rules {
		if r.Protocol != 0 && r.Protocol != proto || r.NotProtocol == proto {
			continue
		}
		if r.Protocol == 0 && (r.ICMP != nil || r.NotICMP != nil) {
			family := map[uint8]int{protoICMP: 4, protoICMPv6: 6}[proto]
			if family == 0 || r.Family == 10-family {
				continue
			}
			r.Family = family
		}
		if needsPorts(&r) && !slices.Contains(ported, proto) {
			continue
		}
		r.Protocol, r.NotProtocol = 0, 0
		out = append(out, numbered{r, i})
	}
	return out
}

// tree makes lists of rules of one protocol, 0 for those that no rule names.
type tree struct {
	proto uint8
	size  int // steps in all lists made
}

// steps are rules as they stand in a list: what looks at ports or ICMP types
// says of which protocol.
func (t *tree) steps(rules []numbered) []desired.Step {
	out := make([]desired.Step, 0, len(rules))
	for _, r := range rules {
		if needsPorts(&r.Rule) || r.ICMP != nil || r.NotICMP != nil {
			r.Protocol = t.proto
		}
		out = append(out, desired.Step{Rule: r.Rule})
	}
	t.size += len(out)
	return out
}

// list makes one of reduced rules: in each family what is in a set goes its own
// way, and what is in none is led by its address.
func (t *tree) list(rules []numbered) *desired.List {
	if len(rules) <= mostListed {
		return &desired.List{Steps: t.steps(rules)}
	}
	four, six := region{Rule: desired.Rule{Family: 4}}, region{Rule: desired.Rule{Family: 6}}
	t.size += 2
	return &desired.List{
		Steps: []desired.Step{{Rule: four.Rule, To: t.bySet(reduce(four.within(rules)), 4)}},
		Rest:  t.bySet(reduce(six.within(rules)), 6),
	}
}

// bySet leads what is in a set that a rule names to what is left of the rules
// then. After the last one no rule looks at a set.
func (t *tree) bySet(rules []numbered, family int) *desired.List {
	if len(rules) <= mostListed {
		return &desired.List{Steps: t.steps(rules)}
	}
	before := t.size
	out := &desired.List{}
	left := rules
	for _, is := range setsOf(rules, family) {
		isNot := region{Rule: is}
		isNot.Source.Set, isNot.Source.NotSet = 0, is.Source.Set
		isNot.Destination.Set, isNot.Destination.NotSet = 0, is.Destination.Set
		in := reduce((&region{Rule: is}).within(left))
		out.Steps = append(out.Steps, desired.Step{Rule: is, To: t.byNet(in, family)})
		left = isNot.within(left)
		if t.size-before > mostSplit*len(rules) {
			t.size = before
			return t.byNet(rules, family)
		}
	}
	t.size += len(out.Steps)
	last := t.byNet(reduce(left), family)
	out.Steps, out.Addresses = append(out.Steps, last.Steps...), last.Addresses
	return out
}

// setsOf are the conditions to be in one of the sets that the rules name.
func setsOf(rules []numbered, family int) (out []desired.Rule) {
	type key struct {
		set         desired.SetID
		destination bool
	}
	seen := map[key]bool{{0, false}: true, {0, true}: true}
	for i := range rules {
		for _, k := range []key{
			{rules[i].Source.Set, false},
			{rules[i].Source.NotSet, false},
			{rules[i].Destination.Set, true},
			{rules[i].Destination.NotSet, true},
		} {
			if seen[k] {
				continue
			}
			seen[k] = true
			is := desired.Rule{Family: family}
			if k.destination {
				is.Destination.Set = k.set
			} else {
				is.Source.Set = k.set
			}
			out = append(out, is)
		}
	}
	return out
}

// byNet leads by the address of that end on whose prefixes more rules depend,
// unless the lists that this takes are much longer than one.
func (t *tree) byNet(rules []numbered, family int) *desired.List {
	if out := t.addresses(rules, family); len(rules) > mostListed && out != nil {
		return &desired.List{Addresses: out}
	}
	return &desired.List{Steps: t.steps(rules)}
}

func (t *tree) addresses(rules []numbered, family int) *desired.Addresses {
	count := [2]int{}
	for i := range rules {
		count[0] += len(rules[i].Source.Nets) + len(rules[i].Source.NotNets)
		count[1] += len(rules[i].Destination.Nets) + len(rules[i].Destination.NotNets)
	}
	out := &desired.Addresses{Destination: count[1] > count[0]}
	if count == [2]int{} {
		return nil
	}
	size := 0
	var before []numbered
	for _, a := range addressStarts(rules, family, out.Destination) {
		at := region{Rule: desired.Rule{Family: family}}
		*peerOf(&at.Rule, out.Destination) = desired.Peer{Nets: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}}
		list := reduce(at.within(rules))
		if len(out.Lists) > 0 && slices.EqualFunc(list, before, same) {
			continue
		}
		if size += 1 + len(list); size > mostByNet*len(rules) {
			return nil
		}
		before = list
		out.Starts, out.Lists = append(out.Starts, a), append(out.Lists, &desired.List{Steps: t.steps(list)})
	}
	return out
}

func same(a, b numbered) bool { return a.at == b.at && a.Same(b.Rule) }

func peerOf(r *desired.Rule, destination bool) *desired.Peer {
	if destination {
		return &r.Destination
	}
	return &r.Source
}

// addressStarts are the addresses of a family at which what can match changes.
func addressStarts(rules []numbered, family int, destination bool) []netip.Addr {
	out := []netip.Addr{netip.IPv6Unspecified()}
	if family == 4 {
		out[0] = netip.IPv4Unspecified()
	}
	for i := range rules {
		p := peerOf(&rules[i].Rule, destination)
		for _, n := range slices.Concat(p.Nets, p.NotNets) {
			if n = n.Masked(); n.Addr().Is4() == (family == 4) {
				out = append(out, n.Addr())
				if after := lastOf(n).Next(); after.IsValid() {
					out = append(out, after)
				}
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// lastOf is the last address of a prefix.
func lastOf(n netip.Prefix) netip.Addr {
	b := n.Addr().AsSlice()
	for i := n.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
