package compile

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/desired"
)

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// Sets names the selectors of one rule, 0 for none.
type Sets struct {
	Source, NotSource           desired.SetID
	Destination, NotDestination desired.SetID

	// Where the named ports of the four lists are.
	SourcePorts, NotSourcePorts           desired.SetID
	DestinationPorts, NotDestinationPorts desired.SetID

	Never bool // a selector that the rule needs can match nothing
}

// Rules translates the rules of one direction of a policy or profile; sets has
// an element for each rule. Rules that can match nothing are left out. A rule
// with prefixes of both families, or with named ports beside others, gives
// several rules with one identity.
func Rules(owner api.Key, dir api.Direction, rules []api.Rule, sets []Sets) []desired.Rule {
	out := make([]desired.Rule, 0, len(rules))
	prefix := idPrefix(owner, dir)
	for i := range rules {
		if rules[i].Never || sets[i].Never {
			continue
		}
		out = appendRule(out, prefix+strconv.Itoa(i), &rules[i], sets[i])
	}
	return out
}

// idPrefix is how the identities of an owner's rules in one direction begin.
func idPrefix(owner api.Key, dir api.Direction) string {
	return string(owner.Kind) + "/" + owner.Namespace + "/" + owner.Name + "/" + string(dir) + "/"
}

// appendRule appends what one rule is with its ports as numbers, and as names.
func appendRule(out []desired.Rule, id string, r *api.Rule, s Sets) []desired.Rule {
	base := desired.Rule{
		ID:          id,
		Verdict:     verdict(r.Action),
		Protocol:    r.Protocol.Number,
		NotProtocol: r.NotProtocol.Number,
		ICMP:        icmp(r.ICMP),
		NotICMP:     icmp(r.NotICMP),
		Note:        note(r.Metadata),
	}
	sources := peers(&r.Source, [4]desired.SetID{s.Source, s.NotSource, s.SourcePorts, s.NotSourcePorts})
	destinations := peers(&r.Destination, [4]desired.SetID{s.Destination, s.NotDestination, s.DestinationPorts, s.NotDestinationPorts})
	for _, base.Source = range sources {
		for _, base.Destination = range destinations {
			out = appendFamilies(out, base, r)
		}
	}
	return out
}

// appendFamilies appends what a rule whose peers are known is in each family, or
// in both at once.
func appendFamilies(out []desired.Rule, base desired.Rule, r *api.Rule) []desired.Rule {
	if !consistent(&base, r) {
		return out
	}
	if base.Protocol != 0 {
		base.NotProtocol = 0
	}
	v4, v6 := families(r)
	if v4 && v6 && !hasNets(r) {
		return append(out, base)
	}
	if v4 {
		out = appendFamily(out, base, 4, r)
	}
	if v6 {
		out = appendFamily(out, base, 6, r)
	}
	return out
}

func verdict(a api.Action) desired.Verdict {
	switch a {
	case api.Allow:
		return desired.Allow
	case api.Pass:
		return desired.Next
	case api.Log:
		return desired.Log
	default:
		return desired.Deny
	}
}

// icmp returns nil for a match of any type, which is no condition.
func icmp(m *api.ICMP) *desired.ICMP {
	if m == nil || m.Type == nil {
		return nil
	}
	out := &desired.ICMP{Type: uint8(*m.Type), Code: -1}
	if m.Code != nil {
		out.Code = *m.Code
	}
	return out
}

// note is what the annotations of a rule say, in the order of their names.
func note(m *api.RuleMetadata) string {
	if m == nil {
		return ""
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m.Annotations)) {
		parts = append(parts, k+"="+m.Annotations[k])
	}
	return strings.Join(parts, " ")
}

// peers gives what together are one end of a rule: the ports that are numbers
// and those that are named are apart, and no port is in both. sets are those of
// the selectors and of the named ports.
func peers(e *api.EntityRule, sets [4]desired.SetID) []desired.Peer {
	p := desired.Peer{Set: sets[0], NotSet: sets[1], Ports: ports(e.Ports), NotPorts: ports(e.NotPorts), NotNamed: sets[3]}
	if sets[2] == 0 {
		return []desired.Peer{p}
	}
	named := p
	named.Named, named.Ports = sets[2], nil
	if len(p.Ports) == 0 {
		return []desired.Peer{named}
	}
	named.NotPorts = ports(slices.Concat(e.NotPorts, e.Ports))
	return []desired.Peer{p, named}
}

// ports returns the numeric ports as disjoint ranges in ascending order.
func ports(in []api.Port) []desired.PortRange {
	var out []desired.PortRange
	for _, p := range in {
		if p.Name == "" && p.Bad == "" {
			out = append(out, desired.PortRange{Min: p.Min, Max: max(p.Min, p.Max)})
		}
	}
	slices.SortFunc(out, func(a, b desired.PortRange) int { return int(a.Min) - int(b.Min) })
	merged := out[:0]
	for _, r := range out {
		if n := len(merged); n > 0 && int(r.Min) <= int(merged[n-1].Max)+1 {
			merged[n-1].Max = max(merged[n-1].Max, r.Max)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// consistent reports whether some connection can match the rule, as far as the
// conditions that do not depend on the family say.
func consistent(r *desired.Rule, from *api.Rule) bool {
	if r.Protocol != 0 && r.Protocol == r.NotProtocol {
		return false
	}
	if r.ICMP != nil && r.NotICMP != nil && r.ICMP.Type == r.NotICMP.Type &&
		(r.NotICMP.Code < 0 || r.NotICMP.Code == r.ICMP.Code) {
		return false
	}
	return consistentPeer(&r.Source, &from.Source) && consistentPeer(&r.Destination, &from.Destination)
}

func consistentPeer(p *desired.Peer, from *api.EntityRule) bool {
	if p.Set != 0 && p.Set == p.NotSet {
		return false
	}
	// A list of ports of which none is left matches no port.
	if len(from.Ports) > 0 && len(p.Ports) == 0 && p.Named == 0 || p.Named != 0 && p.Named == p.NotNamed {
		return false
	}
	for _, not := range p.NotPorts {
		inside := func(r desired.PortRange) bool { return not.Min <= r.Min && r.Max <= not.Max }
		if inside(desired.PortRange{Min: 0, Max: 65535}) || len(p.Ports) > 0 && !slices.ContainsFunc(p.Ports, func(r desired.PortRange) bool { return !inside(r) }) {
			return false
		}
	}
	return true
}

func netLists(r *api.Rule) [4][]netip.Prefix {
	return [4][]netip.Prefix{
		r.Source.Nets.Prefixes, r.Source.NotNets.Prefixes,
		r.Destination.Nets.Prefixes, r.Destination.NotNets.Prefixes,
	}
}

func hasNets(r *api.Rule) bool {
	for _, l := range netLists(r) {
		if len(l) > 0 {
			return true
		}
	}
	return false
}

// families reports in which families the rule applies: those that ipVersion
// and the protocol permit and of which each of its lists of prefixes, the
// negated ones too, has one.
func families(r *api.Rule) (v4, v6 bool) {
	v4, v6 = r.IPVersion != 6, r.IPVersion != 4
	switch r.Protocol.Number {
	case protoICMP:
		v6 = false
	case protoICMPv6:
		v4 = false
	}
	for _, l := range netLists(r) {
		if len(l) > 0 {
			v4 = v4 && slices.ContainsFunc(l, func(p netip.Prefix) bool { return p.Addr().Is4() })
			v6 = v6 && slices.ContainsFunc(l, func(p netip.Prefix) bool { return !p.Addr().Is4() })
		}
	}
	return v4, v6
}

// appendFamily appends base with the prefixes of one family, if with those it
// can match at all.
func appendFamily(out []desired.Rule, base desired.Rule, family int, r *api.Rule) []desired.Rule {
	base.Family = family
	for _, side := range []struct {
		to   *desired.Peer
		from *api.EntityRule
	}{{&base.Source, &r.Source}, {&base.Destination, &r.Destination}} {
		nets, ok := netsOf(side.from, family)
		if !ok {
			return out
		}
		side.to.Nets, side.to.NotNets = nets[0], nets[1]
	}
	return append(out, base)
}

// netsOf returns the prefixes and negated prefixes of one family that are a
// condition, and false if nothing can meet them.
func netsOf(e *api.EntityRule, family int) (nets [2][]netip.Prefix, ok bool) {
	pos, not := covers(e.Nets.Prefixes, family), covers(e.NotNets.Prefixes, family)
	excluded := func(p netip.Prefix) bool {
		return slices.ContainsFunc(not, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
	}
	if len(pos) > 0 {
		if pos = slices.DeleteFunc(pos, excluded); len(pos) == 0 {
			return nets, false
		}
		if pos[0].Bits() == 0 {
			pos = nil
		}
	}
	if len(not) > 0 && not[0].Bits() == 0 {
		return nets, false
	}
	return [2][]netip.Prefix{pos, not}, true
}

// covers returns the prefixes of one family, sorted, without those that lie
// within another.
func covers(in []netip.Prefix, family int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		if p.Addr().Is4() == (family == 4) {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	kept := out[:0]
	for _, p := range out {
		if n := len(kept); n == 0 || !kept[n-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}
