package verify

import (
	"net/netip"
	"slices"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// intent works out what policy allows, over all headers.
type intent struct {
	*space.Space
	dst netip.Addr // if valid, the destination that policy sees, whatever the header's
}

// allowed are the headers that an endpoint's policy of one direction allows.
func (n *intent) allowed(sections []explain.Section) space.Set {
	allowed, left := n.None(), n.All()
	for _, s := range sections {
		on := n.None() // to the next section
		sees := n
		if s.Dialled {
			sees = &intent{Space: n.Space}
		}
		for i := range s.Rules {
			r := &s.Rules[i]
			hit := sees.match(r).And(left)
			switch r.Rule.Action {
			case api.Log:
				continue
			case api.Pass:
				on = on.Or(hit)
			case api.Allow:
				allowed = allowed.Or(hit)
			}
			left = left.Minus(hit)
		}
		switch s.End {
		case api.Pass:
			on = on.Or(left)
		case api.Allow:
			allowed = allowed.Or(left)
		}
		left = on
	}
	return allowed
}

// match are the headers that a rule matches.
func (n *intent) match(r *explain.Resolved) space.Set {
	rule := r.Rule
	if rule.Never {
		return n.None()
	}
	set := n.All()
	if rule.IPVersion == 4 || rule.IPVersion == 6 {
		set = n.IP(rule.IPVersion)
	} else if rule.IPVersion != 0 {
		return n.None()
	}
	if p := rule.Protocol; p.Number != 0 || p.Text != "" || p.Bad != "" {
		switch p.Number {
		case 0:
			return n.None()
		case 1:
			set = set.And(n.IP(4))
		case 58:
			set = set.And(n.IP(6))
		}
		set = set.And(n.Proto(p.Number))
	}
	if p := rule.NotProtocol; p.Number != 0 {
		set = set.Minus(n.Proto(p.Number))
	}
	if rule.ICMP != nil {
		set = set.And(n.icmp(rule.ICMP))
	}
	if rule.NotICMP != nil {
		set = set.Minus(n.icmp(rule.NotICMP))
	}
	source := n.end(&rule.Source, r.Source, space.SrcAddr, space.SrcPort)
	return set.And(source).And(n.end(&rule.Destination, r.Destination, space.DstAddr, space.DstPort))
}

func (n *intent) icmp(m *api.ICMP) space.Set {
	set := n.Proto(1, 58)
	for f, v := range map[space.Field]*int{space.ICMPType: m.Type, space.ICMPCode: m.Code} {
		if v != nil && (*v < 0 || *v > 255) {
			return n.None()
		} else if v != nil {
			set = set.And(n.ICMP(f, uint8(*v)))
		}
	}
	return set
}

// in are the headers whose address, as policy sees it, is in any of some nets.
func (n *intent) in(f space.Field, nets []netip.Prefix) space.Set {
	if f != space.DstAddr || !n.dst.IsValid() {
		return n.Nets(f, nets)
	}
	if slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(n.dst) }) {
		return n.All()
	}
	return n.None()
}

// end are the headers one end of which is as a rule says.
func (n *intent) end(r *api.EntityRule, m explain.Meant, addr, port space.Field) space.Set {
	if m.Never || len(r.NotNets.Bad) > 0 || len(r.Nets.Bad) > 0 && len(r.Nets.Prefixes) == 0 {
		return n.None()
	}
	set := n.All()
	for _, list := range [][]netip.Prefix{r.Nets.Prefixes, r.NotNets.Prefixes} {
		if len(list) == 0 {
			continue
		}
		versions := n.None() // a rule that names nets is about their families
		for _, p := range list {
			versions = versions.Or(n.IP(map[bool]int{true: 4, false: 6}[p.Addr().Is4()]))
		}
		set = set.And(versions)
	}
	if len(r.Nets.Prefixes) > 0 {
		set = set.And(n.in(addr, r.Nets.Prefixes))
	}
	set = set.Minus(n.in(addr, r.NotNets.Prefixes)).Minus(n.in(addr, m.Not))
	if m.Selective {
		var nets []netip.Prefix
		for _, h := range m.Holders {
			nets = append(nets, h.Nets...)
		}
		set = set.And(n.in(addr, nets))
	}
	if len(r.Ports)+len(r.NotPorts) == 0 {
		return set
	}
	set = set.And(n.HasPorts()).Minus(n.ports(r.NotPorts, m, addr, port))
	if len(r.Ports) > 0 {
		set = set.And(n.ports(r.Ports, m, addr, port))
	}
	return set
}

// ports are the headers whose port is in a list, by number or by name.
func (n *intent) ports(list []api.Port, m explain.Meant, addr, port space.Field) space.Set {
	set := n.None()
	for _, p := range list {
		switch {
		case p.Name != "":
			for _, h := range m.Holders {
				for _, named := range h.Ports {
					if named.Name == p.Name && named.Port != 0 {
						set = set.Or(n.in(addr, h.Nets).And(n.Proto(named.Protocol.Number)).And(n.Ports(port, named.Port, named.Port)))
					}
				}
			}
		case p.Bad == "":
			set = set.Or(n.Ports(port, p.Min, max(p.Min, p.Max)))
		}
	}
	return set
}
