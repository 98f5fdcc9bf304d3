package calc

import (
	"net/netip"
	"slices"
	"strings"

	"tortie/compile"
	"tortie/desired"
)

// routeMetric is the metric of routes to local endpoints.
const routeMetric = 1024

// iface is an interface that exists, or that endpoints name.
type iface struct {
	name   string
	host   *HostInterface // nil: it does not exist
	claims set[*local]    // the endpoints that name it
	bound  *local         // the one of them that has it

	neighbours set[desired.NeighbourKey] // as last written
}

func (c *Calc) iface(name string) *iface {
	i := c.interfaces[name]
	if i == nil {
		i = &iface{name: name, claims: set[*local]{}, neighbours: set[desired.NeighbourKey]{}}
		c.interfaces[name] = i
	}
	return i
}

// SetInterface says what the host knows of an interface; nil means that it
// does not exist.
func (c *Calc) SetInterface(name string, h *HostInterface) {
	if h == nil && c.interfaces[name] == nil {
		return
	}
	i := c.iface(name)
	i.host = h
	c.dirty.hosts = c.dirty.hosts || c.isHost(name)
	c.dirty.interfaces.add(name)
}

func (c *Calc) claim(l *local) {
	c.iface(l.iface).claims.add(l)
	c.dirty.bindings.add(l.iface)
}

func (c *Calc) unclaim(l *local) {
	if i := c.interfaces[l.iface]; i != nil && i.claims.has(l) {
		delete(i.claims, l)
		l.bound = false
		c.touchNATs(l)
		c.dirty.bindings.add(l.iface)
		for _, p := range l.nets {
			c.dirty.nets.add(p)
		}
	}
}

// flushBindings decides which endpoint has an interface: of those that name
// it, if it may be a workload's at all, the one with the lowest key.
func (c *Calc) flushBindings() {
	for name := range c.dirty.bindings {
		i := c.interfaces[name]
		c.dirty.interfaces.add(name)
		if i == nil {
			continue
		}
		i.bound = nil
		refusal := c.refusal(name)
		if refusal == "" {
			i.bound = lowest(i.claims)
		}
		for l := range i.claims {
			unbound := refusal
			if refusal == "" && l != i.bound {
				unbound = "interface " + name + " belongs to " + i.bound.key.String()
			}
			if bound := l == i.bound; l.bound != bound {
				l.bound = bound
				c.dirty.locals.add(l)
				c.touchNATs(l)
				for _, p := range l.nets {
					c.dirty.nets.add(p)
				}
			}
			l.unbound = unbound
			c.dirty.statuses.add(l.key)
		}
	}
	clear(c.dirty.bindings)
}

// refusal says why no endpoint can have an interface of that name, or nothing.
func (c *Calc) refusal(name string) string {
	if name == "" {
		return "it names no interface"
	}
	for _, p := range c.opts.WorkloadPrefixes {
		if strings.HasPrefix(name, p) {
			return ""
		}
	}
	return "interface " + name + " has none of the prefixes of workload interfaces"
}

func lowest(locals set[*local]) *local {
	var low *local
	for l := range locals {
		if low == nil || l.key.Compare(low.key) < 0 {
			low = l
		}
	}
	return low
}

// flushNets decides which local endpoint an address or range belongs to: of
// those that have their interface, else of all, the one with the lowest key. A
// range that is in another, or has addresses of others in it, is by itself.
func (c *Calc) flushNets() {
	for p := range c.dirty.nets {
		winner := c.owner(p)
		old := c.winners[p]
		c.dirty.routes.add(p)
		if old == winner {
			continue
		}
		if old != nil {
			c.touchNATs(old)
			c.dirty.interfaces.add(old.iface)
		}
		if winner == nil {
			delete(c.winners, p)
			continue
		}
		c.winners[p] = winner
		c.touchNATs(winner)
		c.dirty.interfaces.add(winner.iface)
	}
	clear(c.dirty.nets)
}

// owner returns the local endpoint that an address or range belongs to, or nil,
// and marks the status of all that have it.
func (c *Calc) owner(p netip.Prefix) *local {
	var winner *local
	for l := range c.having[p] {
		c.dirty.statuses.add(l.key)
		if winner == nil || l.bound && !winner.bound ||
			l.bound == winner.bound && l.key.Compare(winner.key) < 0 {
			winner = l
		}
	}
	return winner
}

// flushInterfaces writes the interfaces and their neighbours. It reports
// whether something that was allowed may be forbidden now: an endpoint is
// judged by other programs, or an address is judged where it was not before.
// That includes an address that nobody had: connections to it may have been
// allowed when there was no endpoint to ask. It includes the first limit of an
// endpoint, too.
// former has programs as they were before this Flush.
func (c *Calc) flushInterfaces(d *desired.State, former map[desired.ProgramID]desired.Program) (tightened bool) {
	loosens := func(old, v desired.ProgramID) bool {
		if old == v {
			return true
		}
		was, ok := former[old]
		if !ok {
			was, ok = d.Programs.Get(old)
		}
		is, _ := d.Programs.Get(v)
		return ok && compile.Enforces(old) == compile.Enforces(v) && compile.Loosens(was, is)
	}
	for name := range c.dirty.interfaces {
		i := c.interfaces[name]
		var shown bool
		if i != nil && i.host != nil && i.bound != nil {
			v := c.shown(i)
			old, ok := d.Interfaces.Get(name)
			tightened = tightened || gains(old, v) || c.leavesInRange(old, v) || ok && (old.Endpoint != v.Endpoint || !loosens(old.Ingress, v.Ingress) || !loosens(old.Egress, v.Egress))
			d.Interfaces.Set(name, v)
			c.setNeighbours(d, i, v)
			tightened = setControls(d, name, v.Index, i.bound) || tightened
			shown = true
		}
		if i != nil {
			if i.bound != nil {
				c.dirty.statuses.add(i.bound.key)
				for _, p := range i.bound.nets {
					c.dirty.routes.add(p)
				}
				for _, a := range c.translation.claimed[i.bound.key] {
					c.dirty.routes.add(only(a))
				}
			}
			if !shown {
				c.setNeighbours(d, i, desired.Interface{})
			}
			if i.host == nil && len(i.claims) == 0 {
				delete(c.interfaces, name)
			}
		}
		if !shown {
			old, _ := d.Interfaces.Get(name)
			tightened = c.leavesInRange(old, desired.Interface{}) || tightened
			d.Interfaces.Delete(name)
			d.Controls.Delete(name)
		}
	}
	clear(c.dirty.interfaces)
	return tightened
}

func (c *Calc) shown(i *iface) desired.Interface {
	l := i.bound
	v := desired.Interface{
		Endpoint: l.key,
		Index:    i.host.Index,
		MAC:      l.mac.Addr,
		HasMAC:   l.mac.Set,
		Ingress:  l.programs[ingress].id,
		Egress:   l.programs[egress].id,
	}
	for _, p := range c.won(l) {
		if p.IsSingleIP() {
			v.Addrs = append(v.Addrs, p.Addr())
		} else {
			v.Ranges = append(v.Ranges, p)
		}
	}
	slices.SortFunc(v.Addrs, netip.Addr.Compare)
	if c.opts.SourceSpoofing {
		v.Spoofed = slices.Clone(l.spoofed)
		slices.SortFunc(v.Spoofed, netip.Prefix.Compare)
		v.Spoofed = slices.Compact(v.Spoofed)
	}
	return v
}

// leavesInRange reports whether old, which v replaces, has an address or range
// that v lacks and that is in a range of another: that one's policy counts now.
func (c *Calc) leavesInRange(old, v desired.Interface) bool {
	left := set[netip.Prefix]{}
	for _, p := range old.Ranges {
		left.add(p)
	}
	for _, a := range old.Addrs {
		left.add(only(a))
	}
	for _, p := range v.Ranges {
		delete(left, p)
	}
	for _, a := range v.Addrs {
		delete(left, only(a))
	}
	for p := range left {
		if c.inRange(p) {
			return true
		}
	}
	return false
}

// gains reports whether v, which replaces old if there was one, has an address
// that was not its own.
func gains(old, v desired.Interface) bool {
	had := map[netip.Addr]bool{}
	for _, a := range old.Addrs {
		had[a] = true
	}
	for _, a := range v.Addrs {
		if !had[a] {
			return true
		}
	}
	return slices.ContainsFunc(v.Ranges, func(p netip.Prefix) bool { return !slices.Contains(old.Ranges, p) })
}

// setNeighbours makes the neighbours of an interface what v calls for; there
// are none while the interface is down, since the kernel drops them then.
func (c *Calc) setNeighbours(d *desired.State, i *iface, v desired.Interface) {
	want := set[desired.NeighbourKey]{}
	if i.host != nil && i.host.Up && i.bound != nil {
		if v.HasMAC {
			for _, a := range v.Addrs {
				k := desired.NeighbourKey{Interface: i.name, Addr: a}
				want.add(k)
				d.Neighbours.Set(k, desired.Neighbour{Index: v.Index, MAC: v.MAC})
			}
		}
		if g := i.bound.gateway6; g.IsValid() {
			k := desired.NeighbourKey{Interface: i.name, Addr: g, Proxy: true}
			want.add(k)
			d.Neighbours.Set(k, desired.Neighbour{Index: v.Index})
		}
	}
	for k := range i.neighbours {
		if !want.has(k) {
			d.Neighbours.Delete(k)
		}
	}
	i.neighbours = want
}

// flushRoutes writes the routes to local endpoints, by their own addresses and
// ranges and by external addresses. There is none while the interface is down:
// the kernel would refuse it. It reports whether one went that is in a range of
// another endpoint: connections go there now, and were not judged for it.
func (c *Calc) flushRoutes(d *desired.State) (tightened bool) {
	for p := range c.dirty.routes {
		k := desired.RouteKey{Prefix: p, Metric: routeMetric}
		l := c.winners[p]
		if p.IsSingleIP() {
			c.setMasquerade(d, p.Addr())
			if l == nil {
				l = c.translation.floating[p.Addr()]
			}
		}
		if l != nil && l.bound {
			if h := c.interfaces[l.iface].host; h != nil && h.Up {
				d.Routes.Set(k, desired.Route{Interface: l.iface, Index: h.Index})
				continue
			}
		}
		tightened = d.Routes.Delete(k) && c.inRange(p) || tightened
	}
	clear(c.dirty.routes)
	return tightened
}

// inRange reports whether an address or range is in a local endpoint's range.
func (c *Calc) inRange(p netip.Prefix) bool {
	for bits := p.Bits() - 1; bits > 0; bits-- {
		if c.winners[netip.PrefixFrom(p.Addr(), bits).Masked()] != nil {
			return true
		}
	}
	return false
}
