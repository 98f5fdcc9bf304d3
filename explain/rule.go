package explain

import (
	"net/netip"
	"slices"

	"tortie/api"
)

// Protocols by number.
const (
	protoICMP   = 1
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
	addr   netip.Addr
	port   uint16
	labels []map[string]string // of all that has the address
}

func (c *Cluster) newEvaluation(p Packet, d *Decision) *evaluation {
	return &evaluation{
		cluster:  c,
		packet:   p,
		src:      end{p.Src, p.SrcPort, c.labelSets(p.Src)},
		dst:      end{p.Dst, p.DstPort, c.labelSets(p.Dst)},
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
	if !matchNets(r, at.addr) || !e.matchPorts(r, at.port) {
		return false
	}
	if given(r.Selector) || given(r.NamespaceSelector) {
		if !slices.ContainsFunc(at.labels, func(labels map[string]string) bool {
			return inNamespaces(namespace, r.NamespaceSelector, labels) && matches(r.Selector, labels)
		}) {
			return false
		}
	}
	// What a negated selector names is in any namespace.
	if given(r.NotSelector) {
		return r.NotSelector.Err == nil && !slices.ContainsFunc(at.labels, func(labels map[string]string) bool {
			return matches(r.NotSelector, labels)
		})
	}
	return true
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

func (e *evaluation) matchPorts(r *api.EntityRule, port uint16) bool {
	if len(r.Ports) == 0 && len(r.NotPorts) == 0 {
		return true
	}
	if !(api.Protocol{Number: e.packet.Protocol}).HasPorts() {
		return false
	}
	return (len(r.Ports) == 0 || hasPort(r.Ports, port)) && !hasPort(r.NotPorts, port)
}

// hasPort reports whether a list has a port. Named ports are not built: they
// are none.
func hasPort(ports []api.Port, port uint16) bool {
	return slices.ContainsFunc(ports, func(p api.Port) bool {
		return p.Name == "" && p.Bad == "" && p.Min <= port && port <= max(p.Min, p.Max)
	})
}
