package calc

import (
	"maps"
	"net/netip"
	"strings"

	"tortie/api"
)

// namespaceProfile begins the name of the profile that carries the labels of a
// namespace.
const namespaceProfile = "kns."

// inheritor is a workload endpoint or network set whose labels depend on
// profiles. Of one without profiles nothing is kept.
type inheritor struct {
	key      api.Key
	own      map[string]string // its own labels and those derived from its spec
	profiles []string
	prefixes []netip.Prefix
	ports    []api.NamedPort
}

// profile is a profile, or the place of one that is named and missing.
type profile struct {
	name       string
	spec       *api.ProfileSpec // nil: missing
	relabel    bool             // the labels that it applies changed
	inheritors set[*inheritor]
	rules      translated
	programs   set[*program]
}

// profile returns the record of a profile, new if need be.
func (c *Calc) profile(name string) *profile {
	p := c.profiles[name]
	if p == nil {
		p = &profile{name: name, inheritors: set[*inheritor]{}, programs: set[*program]{}}
		c.profiles[name] = p
	}
	return p
}

// forgetProfile drops the record of a missing profile that nothing names.
func (c *Calc) forgetProfile(p *profile) {
	if p.spec == nil && len(p.inheritors) == 0 && len(p.programs) == 0 && c.profiles[p.name] == p {
		delete(c.profiles, p.name)
	}
}

// SetProfile sets a profile; nil means that it is gone. The profile that is
// built in cannot be set.
func (c *Calc) SetProfile(k api.Key, p *api.Profile) {
	if k.Name == api.DefaultAllowProfile {
		return
	}
	if p == nil && c.profiles[k.Name] == nil {
		return
	}
	r := c.profile(k.Name)
	old := r.labels()
	r.spec = nil
	if p != nil {
		r.spec = &p.Spec
	}
	r.relabel = r.relabel || !maps.Equal(old, r.labels())
	c.dirty.profiles.add(r)
}

func (p *profile) labels() map[string]string {
	if p == nil || p.spec == nil {
		return nil
	}
	return p.spec.LabelsToApply
}

// SetNetworkSet sets a NetworkSet or GlobalNetworkSet; nil means that it is
// gone.
func (c *Calc) SetNetworkSet(k api.Key, s *api.NetworkSet) {
	if s == nil {
		c.disinherit(k)
		c.deleteItem(k)
		return
	}
	i := &inheritor{key: k, own: ownLabels(s.Meta.Labels), prefixes: s.Spec.Nets.Prefixes}
	delete(i.own, api.LabelNamespace)
	if k.Namespace != "" {
		i.own[api.LabelNamespace] = k.Namespace
		i.profiles = []string{namespaceProfile + k.Namespace}
	}
	c.inherit(i)
	c.setItem(i)
}

// setItem gives the indexes what they are to know of an endpoint of another
// host, or of a network set.
func (c *Calc) setItem(i *inheritor) {
	labels := c.effective(i.own, i.profiles)
	c.index.SetItem(i.key, labels, i.prefixes)
	c.ports.SetItem(i.key, labels, i.prefixes, i.ports)
}

func (c *Calc) deleteItem(k api.Key) {
	c.index.DeleteItem(k)
	c.ports.DeleteItem(k)
}

// ownLabels copies labels, without those that can only be inherited.
func ownLabels(labels map[string]string) map[string]string {
	own := make(map[string]string, len(labels)+3)
	for k, v := range labels {
		if !strings.HasPrefix(k, api.LabelPrefixNamespace) && !strings.HasPrefix(k, api.LabelPrefixServiceAccount) {
			own[k] = v
		}
	}
	return own
}

// effective returns the labels that selectors see: own ones first, then those
// that the profiles apply, the first profile before the next.
func (c *Calc) effective(own map[string]string, profiles []string) map[string]string {
	labels := own
	for _, name := range profiles {
		for k, v := range c.profiles[name].labels() {
			if _, ok := labels[k]; ok {
				continue
			}
			if len(labels) == len(own) {
				labels = maps.Clone(own)
			}
			labels[k] = v
		}
	}
	return labels
}

// inherit notes that i depends on its profiles; it replaces what was known
// under its key.
func (c *Calc) inherit(i *inheritor) {
	for _, name := range i.profiles {
		c.profile(name).inheritors.add(i)
	}
	c.disinherit(i.key)
	if len(i.profiles) > 0 {
		c.inheritors[i.key] = i
	}
}

func (c *Calc) disinherit(k api.Key) {
	i := c.inheritors[k]
	if i == nil {
		return
	}
	delete(c.inheritors, k)
	for _, name := range i.profiles {
		if p := c.profiles[name]; p != nil {
			delete(p.inheritors, i)
			c.forgetProfile(p)
		}
	}
}

// flushProfiles passes changed profiles on to what has them.
func (c *Calc) flushProfiles() {
	for p := range c.dirty.profiles {
		for i := range p.inheritors {
			l := c.locals[i.key]
			if l != nil {
				c.dirty.statuses.add(i.key)
			}
			switch {
			case !p.relabel:
			case l != nil:
				c.dirty.locals.add(l)
			default:
				c.setItem(i)
			}
		}
		p.relabel = false
		p.rules = translated{}
		for g := range p.programs {
			c.dirty.programs.add(g)
		}
		c.forgetProfile(p)
	}
	clear(c.dirty.profiles)
}
