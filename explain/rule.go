package explain

import (
	"net/netip"
	"slices"

	"tortie/api"
)

// Protocols by number.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// evaluation is one packet on its way through the policy of one endpoint.
type evaluation struct {
	cluster  *Cluster
	packet   Packet
	src, dst end
	decision *Decision
}

// end is one end of the packet.
type end struct {
	addr    netip.Addr
	port    uint16
	holders []holder
}

func (c *Cluster) newEvaluation(p Packet, d *Decision) *evaluation {
	return &evaluation{
		cluster:  c,
		packet:   p,
		src:      end{p.Src, p.SrcPort, c.holders(p.Src)},
		dst:      end{p.Dst, p.DstPort, c.holders(p.Dst)},
		decision: d,
	}
}

// match reports whether a rule of a policy in a namespace, which is "" for
// those in none, matches the packet.
func (e *evaluation) match(namespace string, r *api.Rule) bool {
	p := e.packet
	switch {
	case r.Never:
		return false
	case r.IPVersion != 0 && r.IPVersion != family(p.Dst):
		return false
	case !isNone(r.Protocol) && !e.isProtocol(r.Protocol):
		return false
	case !isNone(r.NotProtocol) && r.NotProtocol.Number == p.Protocol:
		return false
	case r.ICMP != nil && !e.isICMP(r.ICMP):
		return false
	case r.NotICMP != nil && e.isICMP(r.NotICMP):
		return false
	}
	return e.matchEnd(namespace, &r.Source, e.src) && e.matchEnd(namespace, &r.Destination, e.dst)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

func isNone(p api.Protocol) bool { return p.Number == 0 && p.Text == "" && p.Bad == "" }

// isProtocol reports whether the packet has a protocol. ICMP is of IPv4 alone,
// ICMPv6 of IPv6.
func (e *evaluation) isProtocol(p api.Protocol) bool {
	switch p.Number {
	case 0: // it could not be read
		return false
	case protoICMP:
		return e.packet.Protocol == protoICMP && family(e.packet.Dst) == 4
	case protoICMPv6:
		return e.packet.Protocol == protoICMPv6 && family(e.packet.Dst) == 6
	}
	return p.Number == e.packet.Protocol
}

func (e *evaluation) isICMP(m *api.ICMP) bool {
	p := e.packet
	if p.Protocol != protoICMP && p.Protocol != protoICMPv6 {
		return false
	}
	return (m.Type == nil || *m.Type == int(p.ICMPType)) && (m.Code == nil || *m.Code == int(p.ICMPCode))
}

// matchEnd reports whether one end of the packet meets all that a rule says
// of it.
func (e *evaluation) matchEnd(namespace string, r *api.EntityRule, at end) bool {
	// Of those that have the address, the ones that the rule is about.
	selective := given(r.Selector) || given(r.NamespaceSelector) || r.ServiceAccounts != nil
	var meant []holder
	for _, h := range at.holders {
		if !selective || inNamespaces(namespace, r.NamespaceSelector, h.labels) && matches(r.Selector, h.labels) &&
			inAccounts(r.ServiceAccounts, h.labels) {
			meant = append(meant, h)
		}
	}
	if !matchNets(r, at.addr) || !e.matchPorts(r, at.port, meant) || selective && len(meant) == 0 {
		return false
	}
	// What a negated selector names is in any namespace.
	if given(r.NotSelector) {
		return r.NotSelector.Err == nil && !slices.ContainsFunc(at.holders, func(h holder) bool {
			return matches(r.NotSelector, h.labels)
		})
	}
	return true
}

// inAccounts reports whether labels are those of something that runs as one of
// the service accounts that a rule means.
func inAccounts(m *api.ServiceAccountMatch, labels map[string]string) bool {
	if m == nil {
		return true
	}
	name, ok := labels[api.LabelServiceAccount]
	return ok && (len(m.Names) == 0 || slices.Contains(m.Names, name)) &&
		matches(prefixed(m.Selector, api.LabelPrefixServiceAccount), labels)
}

// matchNets reports whether an address is in the nets of a rule and outside
// the negated ones. A rule that names nets is about their families: where one
// of its lists has none of the packet's, it says nothing of the packet.
func matchNets(r *api.EntityRule, a netip.Addr) bool {
	if len(r.NotNets.Bad) > 0 || len(r.Nets.Bad) > 0 && len(r.Nets.Prefixes) == 0 {
		return false
	}
	for _, list := range [][]netip.Prefix{r.Nets.Prefixes, r.NotNets.Prefixes} {
		if len(list) > 0 && !slices.ContainsFunc(list, func(p netip.Prefix) bool { return family(p.Addr()) == family(a) }) {
			return false
		}
	}
	return (len(r.Nets.Prefixes) == 0 || contains(r.Nets.Prefixes, a)) && !contains(r.NotNets.Prefixes, a)
}

// matchPorts reports whether the port of one end is one that the rule means.
// A named port is one that those meant name so, for the packet's protocol.
func (e *evaluation) matchPorts(r *api.EntityRule, port uint16, meant []holder) bool {
	if len(r.Ports) == 0 && len(r.NotPorts) == 0 {
		return true
	}
	if !(api.Protocol{Number: e.packet.Protocol}).HasPorts() {
		return false
	}
	has := func(ports []api.Port) bool {
		return slices.ContainsFunc(ports, func(p api.Port) bool {
			if p.Name != "" {
				return slices.ContainsFunc(meant, func(h holder) bool { return h.names(p.Name, e.packet.Protocol, port) })
			}
			return p.Bad == "" && p.Min <= port && port <= max(p.Min, p.Max)
		})
	}
	return (len(r.Ports) == 0 || has(r.Ports)) && !has(r.NotPorts)
}

// names reports whether an endpoint gives a port of a protocol a name.
func (h holder) names(name string, protocol uint8, port uint16) bool {
	return slices.ContainsFunc(h.ports, func(p api.NamedPort) bool {
		return p.Name == name && p.Protocol.Number == protocol && p.Port == port && port != 0
	})
}
