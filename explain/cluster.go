package explain

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// Cluster is the objects that policy is made of. Create it with New.
type Cluster struct {
	endpoints map[api.Key]*api.WorkloadEndpoint
	hosts     map[api.Key]*api.HostEndpoint
	policies  map[api.Key]*api.Policy
	staged    map[api.Key]*api.Policy
	tiers     map[string]*api.Tier
	profiles  map[string]*api.Profile
	sets      map[api.Key]*api.NetworkSet
	owners    map[netip.Prefix][]api.Key // endpoints by address and range, lowest key first
	claims    map[netip.Addr][]api.Key   // and by the external addresses that they name
	around    surroundings
}

// New returns an empty cluster.
func New() *Cluster {
	return &Cluster{
		endpoints: map[api.Key]*api.WorkloadEndpoint{},
		hosts:     map[api.Key]*api.HostEndpoint{},
		policies:  map[api.Key]*api.Policy{},
		staged:    map[api.Key]*api.Policy{},
		tiers:     map[string]*api.Tier{},
		profiles:  map[string]*api.Profile{},
		sets:      map[api.Key]*api.NetworkSet{},
		owners:    map[netip.Prefix][]api.Key{},
		claims:    map[netip.Addr][]api.Key{},
		around:    newSurroundings(),
	}
}

// Put adds or replaces an object. Kinds that policy does not
// depend on are ignored. Staged policies count only in Staged.
func (c *Cluster) Put(obj api.Object) {
	switch o := obj.(type) {
	case *api.WorkloadEndpoint:
		c.Delete(o.Key())
		c.endpoints[o.Key()] = o
		for _, p := range networks(o) {
			enter(c.owners, p, o.Key())
		}
		for _, a := range externals(o) {
			enter(c.claims, a, o.Key())
		}
	case *api.HostEndpoint:
		c.hosts[o.Key()] = o
	case *api.HostAddresses:
		c.around.addresses[o.Meta.Name] = &o.Spec
	case *api.Policy:
		if o.Kind == api.KindNetworkPolicy || o.Kind == api.KindGlobalNetworkPolicy {
			c.policies[o.Key()] = o
		} else if o.Key().IsStaged() {
			c.staged[o.Key()] = o
		}
	case *api.KubernetesPolicy:
		c.staged[o.Key()] = api.AsPolicy(o)
	case *api.Tier:
		c.tiers[o.Meta.Name] = o
	case *api.Profile:
		if o.Meta.Name != api.DefaultAllowProfile { // it is built in
			c.profiles[o.Meta.Name] = o
		}
	case *api.NetworkSet:
		c.sets[o.Key()] = o
	case *api.IPPool:
		c.around.pools[o.Meta.Name] = o
	case *api.Node:
		c.around.nodes[o.Meta.Name] = o
	case *api.FelixConfiguration:
		c.around.settings[o.Meta.Name] = o
	}
}

// only is an address as a prefix.
func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func enter[T comparable](index map[T][]api.Key, p T, k api.Key) {
	index[p] = append(index[p], k)
	slices.SortFunc(index[p], api.Key.Compare)
}

func leave[T comparable](index map[T][]api.Key, p T, k api.Key) {
	index[p] = slices.DeleteFunc(index[p], func(other api.Key) bool { return other == k })
	if len(index[p]) == 0 {
		delete(index, p)
	}
}

// Delete removes an object, if it is there.
func (c *Cluster) Delete(key api.Key) {
	switch key.Kind {
	case api.KindWorkloadEndpoint:
		w, ok := c.endpoints[key]
		if !ok {
			return
		}
		delete(c.endpoints, key)
		for _, p := range networks(w) {
			leave(c.owners, p, key)
		}
		for _, a := range externals(w) {
			leave(c.claims, a, key)
		}
	case api.KindHostEndpoint:
		delete(c.hosts, key)
	case api.KindHostAddresses:
		delete(c.around.addresses, key.Name)
	case api.KindIPPool:
		delete(c.around.pools, key.Name)
	case api.KindNode:
		delete(c.around.nodes, key.Name)
	case api.KindFelixConfiguration:
		delete(c.around.settings, key.Name)
	case api.KindTier:
		delete(c.tiers, key.Name)
	case api.KindProfile:
		delete(c.profiles, key.Name)
	default:
		delete(c.policies, key)
		delete(c.staged, key)
		delete(c.sets, key)
	}
}

// Staged returns the cluster as it would be with its staged policies in force:
// each in the place of the policy of its name, if there is one, or that deleted.
// Keys of staged policies stay what they are. It is not to be changed, and is
// right until c is.
func (c *Cluster) Staged() *Cluster {
	out := *c
	out.policies = maps.Clone(c.policies)
	for k, p := range c.staged {
		if !p.Spec.Tried() || p.Spec.DoNotTrack || p.Spec.PreDNAT {
			continue
		}
		delete(out.policies, k.Unstaged())
		if p.Spec.StagedAction != api.StagedDelete {
			out.policies[k] = p
		}
	}
	return &out
}

// Owners returns the endpoints with an address, lowest key first. An address
// that none has belongs to those with the smallest range that it is in.
func (c *Cluster) Owners(a netip.Addr) []api.Key { return slices.Clone(c.ownersOf(a.Unmap())) }

func (c *Cluster) ownersOf(a netip.Addr) []api.Key {
	for p := only(a); p.Bits() > 0; {
		if keys := c.owners[p]; keys != nil {
			return keys
		}
		p, _ = a.Prefix(p.Bits() - 1)
	}
	return nil
}

// Addresses returns the single addresses of an endpoint. Those of a host endpoint
// are the ones that it expects or, if it expects none, those of its interface.
func (c *Cluster) Addresses(key api.Key) []netip.Addr {
	var list []netip.Addr
	if w := c.endpoints[key]; w != nil {
		for _, p := range networks(w) {
			if p.IsSingleIP() {
				list = append(list, p.Addr())
			}
		}
	}
	if h := c.hosts[key]; h != nil {
		if list = interfaceOf(h).Addrs; len(h.Spec.ExpectedIPs) == 0 {
			list = c.reported(h.Spec.Node, h.Spec.InterfaceName)
		}
	}
	return list
}

// Select returns the workload endpoints that a selector selects, lowest key first.
func (c *Cluster) Select(s api.Selector) []api.Key {
	var keys []api.Key
	for key, w := range c.endpoints {
		if matches(s, c.endpointLabels(w)) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, api.Key.Compare)
	return keys
}

// SelectHosts returns the host endpoints that a selector selects, lowest key first.
func (c *Cluster) SelectHosts(s api.Selector) []api.Key {
	return c.hostsThat(func(h *api.HostEndpoint) bool { return matches(s, c.hostLabels(h)) })
}

// Labels returns the labels that selectors see on an endpoint, nil if there is
// no such endpoint.
func (c *Cluster) Labels(key api.Key) map[string]string {
	if w := c.endpoints[key]; w != nil {
		return c.endpointLabels(w)
	}
	if h := c.hosts[key]; h != nil {
		return c.hostLabels(h)
	}
	return nil
}

// networks returns the addresses and ranges of an endpoint, each once.
func networks(w *api.WorkloadEndpoint) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range w.Spec.IPNetworks.Prefixes {
		if !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// endpointLabels returns the labels that selectors see on an endpoint: its own,
// those of its profiles, and those that say what it is.
func (c *Cluster) endpointLabels(w *api.WorkloadEndpoint) map[string]string {
	labels := c.labels(w.Meta.Labels, w.Spec.Profiles)
	labels[api.LabelNamespace] = w.Meta.Namespace
	if w.Spec.Orchestrator != "" {
		labels[api.LabelOrchestrator] = w.Spec.Orchestrator
	}
	if w.Spec.ServiceAccountName != "" {
		labels[api.LabelServiceAccount] = w.Spec.ServiceAccountName
	}
	return labels
}

// hostLabels returns the labels that selectors see on a host endpoint, which is
// in no namespace.
func (c *Cluster) hostLabels(h *api.HostEndpoint) map[string]string {
	labels := c.labels(h.Meta.Labels, h.Spec.Profiles)
	delete(labels, api.LabelNamespace)
	return labels
}

// isKnownBy reports whether rules know a host endpoint by an address.
func (c *Cluster) isKnownBy(h *api.HostEndpoint, a netip.Addr) bool {
	if len(h.Spec.ExpectedIPs) > 0 {
		return expects(h, a)
	}
	return slices.Contains(c.reported(h.Spec.Node, h.Spec.InterfaceName), a)
}

// expects reports whether a host endpoint expects its interface to have an address.
func expects(h *api.HostEndpoint, a netip.Addr) bool {
	return slices.ContainsFunc(h.Spec.ExpectedIPs, func(ip api.IP) bool { return ip.Unmap() == a })
}

// setLabels returns the labels that selectors see on a network set. One in a
// namespace has the labels of the namespace, which a profile carries; one that
// is not cannot claim to be.
func (c *Cluster) setLabels(s *api.NetworkSet) map[string]string {
	if s.Meta.Namespace == "" {
		labels := c.labels(s.Meta.Labels, nil)
		delete(labels, api.LabelNamespace)
		return labels
	}
	labels := c.labels(s.Meta.Labels, []string{"kns." + s.Meta.Namespace})
	labels[api.LabelNamespace] = s.Meta.Namespace
	return labels
}

// labels joins labels with those that profiles apply. Its own win, then those
// of the profiles in order. Labels with certain prefixes can only be inherited.
func (c *Cluster) labels(own map[string]string, profiles []string) map[string]string {
	labels := map[string]string{}
	for _, name := range slices.Backward(profiles) {
		if p := c.profiles[name]; p != nil {
			maps.Copy(labels, p.Spec.LabelsToApply)
		}
	}
	for k, v := range own {
		if !strings.HasPrefix(k, api.LabelPrefixNamespace) && !strings.HasPrefix(k, api.LabelPrefixServiceAccount) {
			labels[k] = v
		}
	}
	return labels
}

// holder is something that has an address: its labels, and the ports that it
// has names for.
type holder struct {
	labels map[string]string
	ports  []api.NamedPort
}

// holders returns all that has an address, in a range too: an address that
// several have is a member of whatever selects one of them.
func (c *Cluster) holders(a netip.Addr) []holder {
	var list []holder
	for bits := a.BitLen(); bits > 0; bits-- {
		p, _ := a.Prefix(bits)
		for _, key := range c.owners[p] {
			w := c.endpoints[key]
			list = append(list, holder{c.endpointLabels(w), w.Spec.Ports})
		}
	}
	for _, h := range c.hosts {
		if c.isKnownBy(h, a) {
			list = append(list, holder{c.hostLabels(h), h.Spec.Ports})
		}
	}
	for _, s := range c.sets {
		if contains(s.Spec.Nets.Prefixes, a) {
			list = append(list, holder{labels: c.setLabels(s)})
		}
	}
	return list
}

func contains(nets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
}
