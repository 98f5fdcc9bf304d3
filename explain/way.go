package explain

import (
	"maps"
	"net/netip"
	"slices"

	"tortie/api"
)

// Way is what is known of a connection's way beside its packet.
type Way struct {
	From, To api.Key              // endpoints with the addresses of the packet; the zero key is whatever has the address
	Via      map[string]Interface // by which it leaves a host or comes to it; else it is worked out
}

// Connection says what becomes of a connection between whatever has its
// addresses. Of several endpoints with an address, or with the smallest range
// that it is in, the one on the sender's host receives; else, and for the
// sender, the one with the lowest key counts. An address that none has may be a
// host's: that of a host endpoint that expects it, or of a Node.
func (c *Cluster) Connection(p Packet) Result { return c.Along(Way{}, p) }

// place is one end of a connection: a workload, a host, or the outside.
type place struct {
	workload api.Key
	host     string
	via      *Interface // of a host, by which it is reached
}

func (p place) side() Side { return Side{Workload: p.workload} }

func (p place) isWorkload() bool { return p.workload != (api.Key{}) }

func (p place) isOutside() bool { return !p.isWorkload() && p.host == "" }

// ownHost is the host that the end itself is, if it is one.
func (p place) ownHost() string {
	if p.isWorkload() {
		return ""
	}
	return p.host
}

// shares reports whether both are at one host.
func (p place) shares(o place) bool { return !p.isOutside() && !o.isOutside() && p.host == o.host }

// Along is Connection for a way of which more is known.
//
// A connection to an external address is judged as one to what that leads to,
// by the host that knows: the one of the endpoint. Policy there sees the source
// as it comes from another host.
func (c *Cluster) Along(w Way, p Packet) Result {
	p = p.unmapped()
	from := c.places(w.From, p.Src)[0]
	to := c.places(w.To, p.Dst)
	sent, received := p, p
	if k, internal, ok := c.Floating(p.Dst); ok && (w.To == api.Key{} || w.To == k) {
		to, received.Dst = []place{{workload: k, host: c.Host(k)}}, internal
		if from.shares(to[0]) {
			sent.Dst = internal
		}
	}
	dest := to[max(0, slices.IndexFunc(to, from.shares))]
	var r Result
	if from.shares(dest) {
		if from.isWorkload() || dest.isWorkload() { // else it is the host's own
			r = c.Cross(Crossing{Host: from.host, In: from.side(), Out: dest.side(), Came: p, Judged: sent})
		}
	} else {
		came := p
		if !from.isOutside() {
			r = c.Cross(Crossing{Host: from.host, In: from.side(), Out: c.uplink(w, from), Came: p, Judged: sent})
			if c.endpoints[from.workload] != nil && !dest.isOutside() {
				came = c.Leaves(from.workload, p)
				received.Src, received.SrcPort = came.Src, came.SrcPort
			}
		}
		if !dest.isOutside() {
			at := c.Cross(Crossing{Host: dest.host, In: c.uplink(w, dest), Out: dest.side(), Came: came, Judged: received})
			r.Entering, r.Destination = at.Entering, at.Destination
		}
	}
	r.conclude()
	r.FromHost, r.ToHost = from.ownHost(), dest.ownHost()
	if sent != p {
		r.Sent = &sent
	}
	if received != p {
		r.Received = &received
	}
	return r
}

// places are what has an address or is known; at least one, which may be the
// outside.
func (c *Cluster) places(known api.Key, a netip.Addr) []place {
	keys := []api.Key{known}
	if known == (api.Key{}) {
		keys = c.ownersOf(a)
	}
	if h := c.hosts[known]; h != nil {
		return []place{{host: h.Spec.Node, via: interfaceOf(h)}}
	}
	var list []place
	for _, k := range keys {
		list = append(list, place{workload: k, host: c.Host(k)})
	}
	if len(list) == 0 {
		list = append(list, c.hostAt(a))
	}
	return list
}

// Interface returns the interface that a host endpoint is about, and its host.
func (c *Cluster) Interface(key api.Key) (host string, i Interface, ok bool) {
	h := c.hosts[key]
	if h == nil {
		return "", i, false
	}
	return h.Spec.Node, *interfaceOf(h), true
}

// interfaceOf is the interface that a host endpoint is about.
func interfaceOf(h *api.HostEndpoint) *Interface {
	i := &Interface{}
	if h.Spec.InterfaceName != api.AnyInterface {
		i.Name = h.Spec.InterfaceName
	}
	for _, ip := range h.Spec.ExpectedIPs {
		if a := ip.Unmap(); a.IsValid() {
			i.Addrs = append(i.Addrs, a)
		}
	}
	return i
}

// reported returns the addresses that an interface of a host has, or all of a
// host's, as it says.
func (c *Cluster) reported(host, name string) (list []netip.Addr) {
	if r := c.around.addresses[host]; r != nil {
		for _, i := range r.Interfaces {
			if i.Name == name || name == api.AnyInterface {
				list = append(list, addressesOf(i)...)
			}
		}
	}
	return list
}

func addressesOf(i api.InterfaceAddresses) (list []netip.Addr) {
	for _, ip := range i.Addresses {
		if a := ip.Unmap(); a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

// having is the interface of a host that has one of some addresses, as it says;
// nil if it does not.
func (c *Cluster) having(host string, addrs []netip.Addr) *Interface {
	if r := c.around.addresses[host]; r != nil {
		for _, i := range r.Interfaces {
			if own := addressesOf(i); slices.ContainsFunc(own, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
				return &Interface{i.Name, own}
			}
		}
	}
	return nil
}

// KnownBy returns the host endpoints that are known by an address, lowest key
// first.
func (c *Cluster) KnownBy(a netip.Addr) []api.Key {
	a = a.Unmap()
	return c.hostsThat(func(h *api.HostEndpoint) bool { return c.isKnownBy(h, a) })
}

// hostAt is the host that has an address, else the outside.
func (c *Cluster) hostAt(a netip.Addr) place {
	for _, host := range slices.Sorted(maps.Keys(c.around.addresses)) {
		if i := c.having(host, []netip.Addr{a}); i != nil {
			return place{host: host, via: i}
		}
	}
	if keys := c.KnownBy(a); len(keys) > 0 {
		h := c.hosts[keys[0]]
		return place{host: h.Spec.Node, via: interfaceOf(h)}
	}
	var names []string
	for name := range c.around.nodes {
		if c.nodeAddress(name, a.Is4()) == a {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return place{}
	}
	return place{host: slices.Min(names)}
}

// uplink is the interface by which a connection leaves the host of an end or
// comes to it. Where that is not known it is taken to be the one that the end's
// address names, else the one that has an address of the host's Node, else that
// of the host endpoint that expects one, else of the first host endpoint that
// names one.
func (c *Cluster) uplink(w Way, at place) Side {
	if i, ok := w.Via[at.host]; ok {
		return Side{Interface: &i}
	}
	if at.via != nil {
		return Side{Interface: at.via}
	}
	i := &Interface{Addrs: c.HostAddresses(at.host)}
	if known := c.having(at.host, i.Addrs); known != nil {
		return Side{Interface: known}
	}
	of := func(test func(*api.HostEndpoint) bool) []api.Key {
		return c.hostsThat(func(h *api.HostEndpoint) bool { return h.Spec.Node == at.host && test(h) })
	}
	keys := of(func(h *api.HostEndpoint) bool {
		return slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return expects(h, a) })
	})
	if len(keys) == 0 {
		keys = of(func(h *api.HostEndpoint) bool {
			return h.Spec.InterfaceName != "" && h.Spec.InterfaceName != api.AnyInterface
		})
	}
	if len(keys) > 0 {
		i = interfaceOf(c.hosts[keys[0]])
	}
	return Side{Interface: i}
}

// HostAddresses returns the addresses that the Node of a host has.
func (c *Cluster) HostAddresses(host string) (list []netip.Addr) {
	for _, is4 := range []bool{true, false} {
		if a := c.nodeAddress(host, is4); a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}
