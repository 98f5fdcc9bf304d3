package explain

import (
	"net/netip"
	"slices"

	"tortie/api"
)

// Section is one tier, or the profiles, as an endpoint goes through them: the
// rules of its policies in one list.
type Section struct {
	Tier  string // "" for the profiles, which come last and deny what they do not allow
	End   api.Action
	Rules []Resolved

	Dialled bool // they see what the connection was opened to, before it was translated
}

// Resolved is a rule with what its selectors mean by now.
type Resolved struct {
	Ref                 RuleRef
	Rule                *api.Rule
	Source, Destination Meant
}

// Meant is what the selectors of one end of a rule mean.
type Meant struct {
	Selective bool           // only Holders are meant; else they are all that there are
	Holders   []Holder       //
	Not       []netip.Prefix // what a negated selector names
	Never     bool           // it could not be read: nothing is meant
}

// Holder is something that has addresses, and may give ports names.
type Holder struct {
	Nets  []netip.Prefix
	Ports []api.NamedPort
}

// HostsOn returns the host endpoints of a host, lowest key first.
func (c *Cluster) HostsOn(host string) []api.Key {
	return c.hostsThat(func(h *api.HostEndpoint) bool { return h.Spec.Node == host })
}

// On returns the endpoints of a host, lowest key first.
func (c *Cluster) On(host string) []*api.WorkloadEndpoint {
	var list []*api.WorkloadEndpoint
	for key, w := range c.endpoints {
		if c.Host(key) == host {
			list = append(list, w)
		}
	}
	slices.SortFunc(list, func(a, b *api.WorkloadEndpoint) int { return a.Key().Compare(b.Key()) })
	return list
}

// Sections returns what Endpoint goes through, for those who ask about all
// packets at once.
func (c *Cluster) Sections(key api.Key, dir api.Direction) []Section {
	w := c.endpoints[key]
	if w == nil {
		return nil
	}
	known := c.allHolders()
	list := c.sections(known, key, dir, Normal)
	last := Section{End: api.Deny}
	for _, name := range w.Spec.Profiles {
		owner := api.Key{Kind: api.KindProfile, Name: name}
		if name == api.DefaultAllowProfile {
			known.add(&last, owner, dir, []api.Rule{{Action: api.Allow}})
		} else if p := c.profiles[name]; p != nil {
			known.add(&last, owner, dir, rulesOf(dir, p.Spec.Ingress, p.Spec.Egress))
		}
	}
	return append(list, last)
}

// SectionsThrough are those that a connection that passes through a host goes
// through at a host endpoint, but for policy that does not track.
func (c *Cluster) SectionsThrough(key api.Key, dir api.Direction) []Section {
	known := c.allHolders()
	early := c.sections(known, key, dir, PreDNAT)
	for i := range early {
		early[i].End, early[i].Dialled = api.Pass, true
	}
	return slices.Concat(early, c.sections(known, key, dir, Forward), []Section{{End: api.Allow}})
}

func (c *Cluster) sections(known allHolders, key api.Key, dir api.Direction, kind Kind) []Section {
	var list []Section
	for _, st := range c.StagesOf(key, dir, kind) {
		s := Section{Tier: st.Tier, End: api.Deny}
		if st.Pass || len(st.Policies) == 0 {
			s.End = api.Pass
		}
		for _, p := range st.Policies {
			known.add(&s, p.Key(), dir, rulesOf(dir, p.Spec.Ingress, p.Spec.Egress))
		}
		list = append(list, s)
	}
	return list
}

func rulesOf(dir api.Direction, ingress, egress []api.Rule) []api.Rule {
	if dir == api.Egress {
		return egress
	}
	return ingress
}

// add adds rules of a policy or profile to a section.
func (all allHolders) add(s *Section, owner api.Key, dir api.Direction, rules []api.Rule) {
	for i := range rules {
		r := &rules[i]
		s.Rules = append(s.Rules, Resolved{RuleRef{owner, dir, i}, r, all.meant(owner.Namespace, &r.Source), all.meant(owner.Namespace, &r.Destination)})
	}
}

// labelled is a holder and its labels.
type labelled struct {
	Holder
	labels map[string]string
}

type allHolders []labelled

func (c *Cluster) allHolders() allHolders {
	var list allHolders
	for _, w := range c.endpoints {
		list = append(list, labelled{Holder{networks(w), w.Spec.Ports}, c.endpointLabels(w)})
	}
	for key, h := range c.hosts {
		var nets []netip.Prefix
		for _, a := range c.Addresses(key) {
			nets = append(nets, only(a))
		}
		list = append(list, labelled{Holder{nets, h.Spec.Ports}, c.hostLabels(h)})
	}
	for _, s := range c.sets {
		list = append(list, labelled{Holder{Nets: s.Spec.Nets.Prefixes}, c.setLabels(s)})
	}
	return list
}

// meant does for all addresses what matchEnd does for one.
func (all allHolders) meant(namespace string, r *api.EntityRule) Meant {
	m := Meant{Selective: given(r.Selector) || given(r.NamespaceSelector) || r.ServiceAccounts != nil, Never: r.NotSelector.Err != nil}
	named := slices.ContainsFunc(slices.Concat(r.Ports, r.NotPorts), func(p api.Port) bool { return p.Name != "" })
	for _, h := range all {
		if m.Selective && inNamespaces(namespace, r.NamespaceSelector, h.labels) && matches(r.Selector, h.labels) && inAccounts(r.ServiceAccounts, h.labels) ||
			!m.Selective && named {
			m.Holders = append(m.Holders, h.Holder)
		}
		if given(r.NotSelector) && matches(r.NotSelector, h.labels) {
			m.Not = append(m.Not, h.Nets...)
		}
	}
	return m
}
