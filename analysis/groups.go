package analysis

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// group is addresses of one family that are alike to all policy, in all sites:
// those of endpoints with the same policy, or those outside.
type group struct {
	version int // of IP
	addr    netip.Addr
	members []string // endpoints, or ranges outside
	outside bool
	sites   []view
}

// view is a group at one site.
type view struct {
	present         bool // its endpoints are there and have the addresses
	ingress, egress *program
	is              []bool // by entity: the address is what it says
	ports           string // its named ports, as far as rules see them
}

// group finds the groups.
func (u *universe) group() {
	byText := map[string]*group{}
	enter := func(g *group, member string) {
		k := g.text()
		if byText[k] == nil {
			byText[k] = g
			u.groups = append(u.groups, g)
		}
		byText[k].members = append(byText[k].members, member)
	}
	programs := map[endpointAt][2]*program{}
	for i, s := range u.sites {
		for _, key := range u.keys {
			if w, ok := s.objects[key].(*api.WorkloadEndpoint); ok {
				programs[endpointAt{i, key}] = [2]*program{u.program(s, w, api.Ingress), u.program(s, w, api.Egress)}
				u.cuts.names(w.Spec.Ports)
			}
		}
	}
	for _, at := range u.places() {
		g := u.look(at.addr)
		if len(at.owners) == 0 {
			g.outside = true
			enter(g, at.String())
		}
		for _, key := range at.owners {
			own := &group{version: g.version, addr: g.addr, sites: slices.Clone(g.sites)}
			for i, s := range u.sites {
				if slices.Contains(s.Owners(at.addr), key) {
					p := programs[endpointAt{i, key}]
					own.sites[i].present, own.sites[i].ingress, own.sites[i].egress = true, p[0], p[1]
				}
			}
			enter(own, at.names[key])
		}
	}
}

// endpointAt is an endpoint at a site.
type endpointAt struct {
	site int
	key  api.Key
}

// look says what an address is to all entities.
func (u *universe) look(a netip.Addr) *group {
	g := &group{version: version(a), addr: a, sites: make([]view, len(u.sites))}
	for i, s := range u.sites {
		v := &g.sites[i]
		v.is = make([]bool, len(u.entities))
		ends := s.Ends(a, a)
		for _, e := range u.entities {
			one := e.EntityRule
			one.Ports, one.NotPorts = nil, nil
			v.is[e.id] = e.any || ends.Match(e.namespace, &api.Rule{Source: one}, explain.Packet{})
		}
		var seen strings.Builder
		for _, e := range u.sortedEntities() {
			if e.named && v.is[e.id] {
				fmt.Fprint(&seen, e.id, u.namedBy(s, a, e, e.Ports), u.namedBy(s, a, e, e.NotPorts))
			}
		}
		v.ports = seen.String()
	}
	return g
}

func (u *universe) sortedEntities() []*entity {
	list := make([]*entity, len(u.entities))
	for _, e := range u.entities {
		list[e.id] = e
	}
	return list
}

func version(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 4
	}
	return 6
}

// text is the same for groups that are one.
func (g *group) text() string {
	var b strings.Builder
	fmt.Fprint(&b, g.version, g.outside)
	for _, v := range g.sites {
		fmt.Fprint(&b, v.present)
		if v.present {
			fmt.Fprint(&b, v.ingress.id, " ", v.egress.id)
		}
		for _, is := range v.is {
			b.WriteByte(map[bool]byte{true: '+', false: '-'}[is])
		}
		b.WriteString(v.ports)
	}
	return b.String()
}

// steady reports whether two sites see the addresses alike.
func (g *group) steady() bool {
	a, b := g.sites[0], g.sites[1]
	return a.present == b.present && a.ports == b.ports && slices.Equal(a.is, b.is)
}

// port is a port of a protocol.
type port struct {
	protocol uint8
	number   uint16
}

// namedBy returns the ports that names in a list mean at an address.
func (u *universe) namedBy(s *site, a netip.Addr, e *entity, list []api.Port) []port {
	var found []port
	ends := s.Ends(a, a)
	for _, w := range s.holders(a) {
		for _, p := range w.Spec.Ports {
			one := e.EntityRule
			one.NotPorts, one.Ports = nil, []api.Port{{Name: p.Name}}
			at := port{p.Protocol.Number, p.Port}
			if p.Name != "" && slices.ContainsFunc(list, func(l api.Port) bool { return l.Name == p.Name }) && !slices.Contains(found, at) &&
				ends.Match(e.namespace, &api.Rule{Source: one}, explain.Packet{Protocol: at.protocol, SrcPort: at.number}) {
				found = append(found, at)
			}
		}
	}
	return found
}

// namedPorts is what an entity that names ports says of a group.
type namedPorts struct {
	site   int
	group  *group
	entity *entity
	field  space.Field
}

// portsAt is the traffic to (or, of SrcPort, from) the ports that an entity
// means at a group.
func (u *universe) portsAt(i int, g *group, e *entity, f space.Field) space.Set {
	k := namedPorts{i, g, e, f}
	set, ok := u.named[k]
	if !ok {
		set = u.ports(&e.EntityRule, f, func(list []api.Port) space.Set {
			named := u.space.None()
			for _, p := range u.namedBy(u.sites[i], g.addr, e, list) {
				named = named.Or(u.space.Proto(p.protocol).And(u.space.Ports(f, p.number, p.number)))
			}
			return named
		})
		u.named[k] = set
	}
	return set
}

// match is the traffic from one group to another that a rule matches.
func (u *universe) match(i int, r *rule, from, to *group) space.Set {
	if !from.sites[i].is[r.src.id] || !to.sites[i].is[r.dst.id] {
		return u.space.None()
	}
	set := r.traffic[from.version/6]
	if r.src.named {
		set = set.And(u.portsAt(i, from, r.src, space.SrcPort))
	}
	if r.dst.named {
		set = set.And(u.portsAt(i, to, r.dst, space.DstPort))
	}
	return set
}
