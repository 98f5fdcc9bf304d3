package explain

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// surroundings are the objects that say how addresses are translated.
type surroundings struct {
	pools    map[string]*api.IPPool
	nodes    map[string]*api.Node
	settings map[string]*api.FelixConfiguration

	addresses map[string]*api.HostAddressesSpec // that hosts have, as they say
}

func newSurroundings() surroundings {
	return surroundings{map[string]*api.IPPool{}, map[string]*api.Node{}, map[string]*api.FelixConfiguration{}, map[string]*api.HostAddressesSpec{}}
}

// raw is what FelixConfigurations say of a parameter on a host; that of the
// host counts before that of all.
func (s *surroundings) raw(host, name string) json.RawMessage {
	for _, of := range []string{"node." + host, "default"} {
		if r := s.settings[of]; r != nil {
			for k, raw := range r.Spec {
				if strings.EqualFold(k, name) && string(raw) != "null" {
					return raw
				}
			}
		}
	}
	return nil
}

// setting is that of a parameter that is a text.
func (s *surroundings) setting(host, name string) (text string) {
	if json.Unmarshal(s.raw(host, name), &text) != nil {
		return ""
	}
	return text
}

// Floating returns the endpoint that an external address belongs to, and the
// address of its own that it leads to. Of several that claim it, that is the
// one with the lowest key. What is some endpoint's own address is no external
// one.
func (c *Cluster) Floating(external netip.Addr) (key api.Key, internal netip.Addr, ok bool) {
	if len(c.owners[only(external)]) > 0 {
		return key, internal, false
	}
	for _, k := range c.claims[external] {
		if internal, ok := c.leadsTo(k, external); ok {
			return k, internal, true
		}
	}
	return key, internal, false
}

// leadsTo returns the address of its own that an endpoint's external address
// leads to: the first that is well-formed.
func (c *Cluster) leadsTo(k api.Key, external netip.Addr) (netip.Addr, bool) {
	w := c.endpoints[k]
	if w.Spec.Orchestrator != "openstack" && !strings.EqualFold(c.around.setting(c.Host(k), "floatingIPs"), "Enabled") {
		return netip.Addr{}, false
	}
	for _, n := range w.Spec.IPNATs {
		internal := n.InternalIP.Unmap()
		if n.ExternalIP.Unmap() == external && internal.Is4() == external.Is4() && slices.Contains(w.Spec.IPNetworks.Prefixes, only(internal)) {
			return internal, true
		}
	}
	return netip.Addr{}, false
}

// externals returns the external addresses that an endpoint names, each once.
func externals(w *api.WorkloadEndpoint) []netip.Addr {
	var list []netip.Addr
	for _, n := range w.Spec.IPNATs {
		if a := n.ExternalIP.Unmap(); a.IsValid() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// Leaves returns a packet of an endpoint as it leaves its host for another, with
// the source that it has there: that is translated if it is a single address of a
// workload there, whoever sends from it. Of the ports that the host may choose
// from it takes the first: which one it will be nobody knows.
func (c *Cluster) Leaves(from api.Key, p Packet) Packet {
	host := c.Host(from)
	owners := c.owners[only(p.Src)]
	i := slices.IndexFunc(owners, func(k api.Key) bool { return c.Host(k) == host })
	inside := c.inside(host, p.Src.Is4())
	if i < 0 || contains(inside, p.Dst) {
		return p
	}
	var external netip.Addr
	for _, a := range externals(c.endpoints[owners[i]]) {
		k, internal, ok := c.Floating(a)
		if ok && k == owners[i] && internal == p.Src && (!external.IsValid() || a.Less(external)) {
			external = a
		}
	}
	switch {
	case external.IsValid() && len(inside) > 0:
		p.Src = external
	case c.masquerades(p.Src):
		p.Src = c.address(host, p.Src.Is4())
		if ports := c.natPorts(host); p.SrcPort != 0 && (p.SrcPort < ports.Min || p.SrcPort > ports.Max) {
			p.SrcPort = ports.Min
		}
	}
	return p
}

// natPorts are the ports from which natOutgoing takes one.
func (c *Cluster) natPorts(host string) (ports api.Port) {
	if json.Unmarshal(c.around.raw(host, "natPortRange"), &ports) != nil || ports.Max == 0 {
		return api.Port{Min: 32768, Max: 60999}
	}
	return ports
}

// inside are the prefixes of a family to which a host translates no source.
func (c *Cluster) inside(host string, is4 bool) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range c.around.pools {
		if n, err := api.ParsePrefix(p.Spec.CIDR); err == nil && n.Addr().Is4() == is4 {
			list = append(list, n)
		}
	}
	if strings.EqualFold(c.around.setting(host, "natOutgoingExclusions"), "IPPoolsAndHostIPs") {
		for name := range c.around.nodes {
			if a := c.nodeAddress(name, is4); a.IsValid() {
				list = append(list, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return list
}

// masquerades reports whether an address is in a pool that says so.
func (c *Cluster) masquerades(a netip.Addr) bool {
	for _, p := range c.around.pools {
		if n, err := api.ParsePrefix(p.Spec.CIDR); err == nil && p.Spec.NATOutgoing && n.Contains(a) {
			return true
		}
	}
	return false
}

// address is the one of a host with which workloads leave it: the one that is
// set, else that of its Node, else nobody knows.
func (c *Cluster) address(host string, is4 bool) netip.Addr {
	if a, err := netip.ParseAddr(c.around.setting(host, "natOutgoingAddress")); err == nil && a.Unmap().Is4() == is4 {
		return a.Unmap()
	}
	if a := c.nodeAddress(host, is4); a.IsValid() {
		return a
	}
	if is4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (c *Cluster) nodeAddress(host string, is4 bool) netip.Addr {
	n := c.around.nodes[host]
	if n == nil || n.Spec.BGP == nil {
		return netip.Addr{}
	}
	text := n.Spec.BGP.IPv6Address
	if is4 {
		text = n.Spec.BGP.IPv4Address
	}
	text, _, _ = strings.Cut(text, "/")
	a, err := netip.ParseAddr(text)
	if err != nil || a.Unmap().Is4() != is4 {
		return netip.Addr{}
	}
	return a.Unmap()
}
