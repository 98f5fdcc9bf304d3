package calc

import (
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/desired"
)

// translation is what there is to know of address translation.
type translation struct {
	claims   map[netip.Addr]map[api.Key]claim // of all hosts, by external address
	claimed  map[api.Key][]netip.Addr         // the same, by endpoint
	floating map[netip.Addr]*local            // external addresses that are in force here
	external map[netip.Addr]set[netip.Addr]   // the same, by the internal address
	pools    map[api.Key]pool                 //
	hosts    map[api.Key][]netip.Prefix       // addresses of hosts
}

func newTranslation() translation {
	return translation{
		claims: map[netip.Addr]map[api.Key]claim{}, claimed: map[api.Key][]netip.Addr{},
		floating: map[netip.Addr]*local{}, external: map[netip.Addr]set[netip.Addr]{},
		pools: map[api.Key]pool{}, hosts: map[api.Key][]netip.Prefix{},
	}
}

// claim is an endpoint's well-formed claim of an external address.
type claim struct {
	internal netip.Addr
	always   bool // whether or not floating addresses are turned on
}

type pool struct {
	prefix   netip.Prefix
	outgoing bool
}

// orchestratorOpenStack has floating addresses without being told so.
const orchestratorOpenStack = "openstack"

// setNATs takes over which external addresses an endpoint claims, nil if none.
// What is wrong with the others is returned.
func (c *Calc) setNATs(k api.Key, w *api.WorkloadEndpoint, addrs []netip.Addr) (faults []string) {
	n := &c.translation
	if w == nil && n.claimed[k] == nil {
		return nil
	}
	old := map[netip.Addr]claim{}
	for _, a := range n.claimed[k] {
		old[a] = n.claims[a][k]
	}
	next := map[netip.Addr]claim{}
	if w != nil {
		for _, nat := range w.Spec.IPNATs {
			external, internal := nat.ExternalIP.Unmap(), nat.InternalIP.Unmap()
			fault := natFault(nat, addrs)
			if _, twice := next[external]; fault == "" && twice {
				fault = "external address " + external.String() + " is given twice: the first counts"
			}
			if fault != "" {
				faults = append(faults, fault)
				continue
			}
			next[external] = claim{internal, w.Spec.Orchestrator == orchestratorOpenStack}
		}
	}
	delete(n.claimed, k)
	for a := range old {
		if next[a] != old[a] {
			delete(n.claims[a], k)
			if len(n.claims[a]) == 0 {
				delete(n.claims, a)
			}
			c.dirty.floating.add(a)
		}
	}
	for a, v := range next {
		n.claimed[k] = append(n.claimed[k], a)
		if old[a] != v {
			if n.claims[a] == nil {
				n.claims[a] = map[api.Key]claim{}
			}
			n.claims[a][k] = v
			c.dirty.floating.add(a)
		}
	}
	slices.SortFunc(n.claimed[k], netip.Addr.Compare)
	return faults
}

// natFault says what is wrong with an external address by itself. A field that
// could not be read has been reported.
func natFault(nat api.IPNAT, addrs []netip.Addr) string {
	external, internal := nat.ExternalIP.Unmap(), nat.InternalIP.Unmap()
	switch {
	case !external.IsValid() || !internal.IsValid():
		return "an external address lacks one of its two addresses"
	case external.Is4() != internal.Is4():
		return "external address " + external.String() + ": the internal address " + internal.String() + " is of the other family"
	case !slices.Contains(addrs, internal):
		return "external address " + external.String() + ": the internal address " + internal.String() + " is not its own"
	}
	return ""
}

// touchNATs looks again at the external addresses of a local endpoint.
func (c *Calc) touchNATs(l *local) {
	for _, a := range c.translation.claimed[l.key] {
		c.dirty.floating.add(a)
	}
}

// claimant is the endpoint that an external address belongs to: the one with
// the lowest key, of any host. An address that is some endpoint's own is
// nobody's external one.
func (c *Calc) claimant(a netip.Addr) (k api.Key, cl claim, ok bool) {
	if c.holder(a) != (api.Key{}) {
		return k, cl, false
	}
	for key, v := range c.translation.claims[a] {
		if (v.always || c.opts.FloatingIPs) && (!ok || key.Compare(k) < 0) {
			k, cl, ok = key, v, true
		}
	}
	return k, cl, ok
}

// holder is the endpoint with the lowest key that has an address as its own.
func (c *Calc) holder(a netip.Addr) (k api.Key) {
	for key := range c.workloads.owners(a) {
		if k == (api.Key{}) || key.Compare(k) < 0 {
			k = key
		}
	}
	return k
}

// flushFloating decides which external addresses lead to which local endpoints.
func (c *Calc) flushFloating(d *desired.State) {
	n := &c.translation
	internals := set[netip.Addr]{}
	for a := range c.dirty.floating {
		c.dirty.routes.add(only(a))
		for k := range n.claims[a] {
			if c.locals[k] != nil {
				c.dirty.statuses.add(k)
			}
		}
		if was, ok := d.Floating.Get(a); ok {
			delete(n.external[was], a)
			internals.add(was)
		}
		k, cl, ok := c.claimant(a)
		l := c.locals[k]
		if !ok || l == nil || !l.bound || c.winners[only(cl.internal)] != l {
			delete(n.floating, a)
			d.Floating.Delete(a)
			continue
		}
		n.floating[a] = l
		d.Floating.Set(a, cl.internal)
		if n.external[cl.internal] == nil {
			n.external[cl.internal] = set[netip.Addr]{}
		}
		n.external[cl.internal].add(a)
		internals.add(cl.internal)
	}
	for a := range internals {
		c.setExternal(d, a)
	}
	clear(c.dirty.floating)
}

// setExternal chooses the address with which a local one reaches outside: of
// several, the lowest.
func (c *Calc) setExternal(d *desired.State, internal netip.Addr) {
	var low netip.Addr
	for a := range c.translation.external[internal] {
		if !low.IsValid() || a.Less(low) {
			low = a
		}
	}
	if low.IsValid() {
		d.External.Set(internal, low)
		return
	}
	delete(c.translation.external, internal)
	d.External.Delete(internal)
}

// natErrors says which claims of a local endpoint are not in force, though
// there is nothing wrong with them as such.
func (c *Calc) natErrors(l *local) (errs []string, warning string) {
	for _, a := range c.translation.claimed[l.key] {
		if cl := c.translation.claims[a][l.key]; !cl.always && !c.opts.FloatingIPs {
			warning = "its external addresses are not in force: FloatingIPs is Disabled"
			continue
		}
		owner := c.holder(a)
		if k, _, ok := c.claimant(a); ok && k != l.key {
			owner = k
		}
		if owner != (api.Key{}) {
			errs = append(errs, "external address "+a.String()+" belongs to "+owner.String())
		}
	}
	return errs, warning
}

// SetPool sets an IP pool; nil means that it is gone.
func (c *Calc) SetPool(k api.Key, p *api.IPPool) {
	next := pool{}
	if p != nil {
		if prefix, err := api.ParsePrefix(p.Spec.CIDR); err == nil {
			next = pool{prefix.Masked(), p.Spec.NATOutgoing}
		}
	}
	if c.translation.pools[k] == next {
		return
	}
	if c.translation.pools[k] = next; !next.prefix.IsValid() {
		delete(c.translation.pools, k)
	}
	c.dirty.pools = true
}

// SetNode sets a host of the cluster; nil means that it is gone.
func (c *Calc) SetNode(k api.Key, node *api.Node) {
	var addrs []netip.Prefix
	if node != nil && node.Spec.BGP != nil {
		for _, text := range []string{node.Spec.BGP.IPv4Address, node.Spec.BGP.IPv6Address} {
			text, _, _ = strings.Cut(text, "/")
			if a, err := api.ParseAddr(text); err == nil {
				addrs = append(addrs, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if slices.Equal(c.translation.hosts[k], addrs) {
		return
	}
	if c.translation.hosts[k] = addrs; len(addrs) == 0 {
		delete(c.translation.hosts, k)
	}
	c.dirty.pools = true
}

// flushPools writes what counts as inside: all pools, disabled ones too, and
// the hosts if they are to.
func (c *Calc) flushPools(d *desired.State) {
	if !c.dirty.pools {
		return
	}
	c.dirty.pools = false
	inside := set[netip.Prefix]{}
	for _, p := range c.translation.pools {
		inside.add(p.prefix)
	}
	if c.opts.HostsInside {
		for _, addrs := range c.translation.hosts {
			for _, p := range addrs {
				inside.add(p)
			}
		}
	}
	for p := range d.Inside.All() {
		if !inside.has(p) {
			d.Inside.Delete(p)
		}
	}
	for p := range inside {
		d.Inside.Set(p, struct{}{})
	}
	for p := range c.winners {
		c.dirty.routes.add(p)
	}
}

// setMasquerade decides whether a local address reaches outside with the
// host's.
func (c *Calc) setMasquerade(d *desired.State, a netip.Addr) {
	if l := c.winners[only(a)]; l != nil && l.bound {
		for _, p := range c.translation.pools {
			if p.outgoing && p.prefix.Contains(a) {
				d.Masquerade.Set(a, struct{}{})
				return
			}
		}
	}
	d.Masquerade.Delete(a)
}
