package explain

import (
	"cmp"
	"math"
	"slices"

	"tortie/api"
	"tortie/selector"
)

// Stage is one tier, as it concerns an endpoint in a direction.
type Stage struct {
	Tier     string
	Exists   bool          // there is a Tier object of this name
	Pass     bool          // what none of the policies decides goes on to the next tier
	Policies []*api.Policy // that apply, in order; a tier without any is gone past
}

// Stages returns all tiers, in the order in which they are gone through. There
// are none for an endpoint that does not exist.
func (c *Cluster) Stages(key api.Key, dir api.Direction) []Stage {
	return c.StagesOf(key, dir, Normal)
}

// StagesOf are those of one kind of policy. Workloads have normal policy alone.
func (c *Cluster) StagesOf(key api.Key, dir api.Direction, kind Kind) []Stage {
	labels := c.Labels(key)
	if labels == nil || kind != Normal && c.hosts[key] == nil {
		return nil
	}
	byTier := map[string][]*api.Policy{}
	for name := range c.tiers {
		byTier[name] = nil
	}
	for _, p := range c.policies {
		if applies(p, dir, kind) && selects(p, labels) {
			tier := cmp.Or(p.Spec.Tier, api.DefaultTier)
			byTier[tier] = append(byTier[tier], p)
		}
	}
	var stages []Stage
	for name, policies := range byTier {
		slices.SortFunc(policies, comparePolicies)
		t := c.tiers[name]
		stages = append(stages, Stage{name, t != nil, t != nil && t.Spec.DefaultAction == api.Pass, policies})
	}
	slices.SortFunc(stages, func(a, b Stage) int { return c.compareTiers(a.Tier, b.Tier) })
	return stages
}

// applies reports whether a policy is of a kind, and for a direction.
func applies(p *api.Policy, dir api.Direction, kind Kind) bool {
	of := Normal
	switch s := p.Spec; {
	case s.DoNotTrack:
		of = Untracked
	case s.PreDNAT:
		of = PreDNAT
	case kind == Forward && s.ApplyOnForward:
		of = Forward
	}
	if kind != of || kind == PreDNAT && dir == api.Egress {
		return false
	}
	return len(p.Spec.Types) == 0 || slices.Contains(p.Spec.Types, dir)
}

// selects reports whether a policy selects an endpoint with these labels. A
// policy in a namespace selects endpoints of it, one with a selector of
// namespaces or service accounts those that have one and inherit its labels.
func selects(p *api.Policy, labels map[string]string) bool {
	if !matches(p.Spec.Selector, labels) {
		return false
	}
	_, hasNamespace := labels[api.LabelNamespace]
	_, hasAccount := labels[api.LabelServiceAccount]
	if p.Key().Unstaged().Kind == api.KindNetworkPolicy {
		if labels[api.LabelNamespace] != p.Meta.Namespace {
			return false
		}
	} else if s := p.Spec.NamespaceSelector; given(s) {
		if !hasNamespace || !matches(prefixed(s, api.LabelPrefixNamespace), labels) {
			return false
		}
	}
	s := p.Spec.ServiceAccountSelector
	return !given(s) || hasAccount && matches(prefixed(s, api.LabelPrefixServiceAccount), labels)
}

// given reports whether a selector was written at all.
func given(s api.Selector) bool { return s.Text != "" || s.Expr != nil || s.Err != nil }

// matches reports whether a selector matches labels. One that was not given
// matches all, one that could not be read nothing.
func matches(s api.Selector, labels map[string]string) bool {
	switch {
	case s.Err != nil:
		return false
	case s.Expr == nil:
		return true
	}
	return s.Expr.Match(labels)
}

func prefixed(s api.Selector, prefix string) api.Selector {
	if s.Expr == nil {
		return s
	}
	return api.Selector{Expr: s.Expr.WithPrefix(prefix)}
}

// comparePolicies orders the policies of a tier: by order, those without one
// last, then by name, namespace and kind, read as one string.
func comparePolicies(a, b *api.Policy) int {
	tie := func(p *api.Policy) string {
		k := p.Key().Unstaged()
		return k.Name + "/" + k.Namespace + "/" + string(k.Kind)
	}
	return cmp.Or(cmp.Compare(orderOf(a.Spec.Order), orderOf(b.Spec.Order)), cmp.Compare(tie(a), tie(b)), a.Key().Compare(b.Key()))
}

// compareTiers orders tiers: by order, those without one last, then by name;
// tiers that do not exist come after all that do.
func (c *Cluster) compareTiers(a, b string) int {
	rank := func(name string) (missing int, order float64) {
		if t := c.tiers[name]; t != nil {
			return 0, orderOf(t.Spec.Order)
		}
		return 1, 0
	}
	missingA, orderA := rank(a)
	missingB, orderB := rank(b)
	return cmp.Or(cmp.Compare(missingA, missingB), cmp.Compare(orderA, orderB), cmp.Compare(a, b))
}

func orderOf(o *float64) float64 {
	if o == nil {
		return math.Inf(1)
	}
	return *o
}

// inNamespaces reports whether labels are those of something in the namespaces
// that a rule means: those that its namespace selector selects, else those of
// the policy's own namespace, if it has one.
func inNamespaces(own string, s api.Selector, labels map[string]string) bool {
	namespace, has := labels[api.LabelNamespace]
	if !given(s) {
		return own == "" || has && namespace == own
	}
	if s.Expr == nil {
		return matches(s, labels)
	}
	switch s.Expr.String() {
	case selector.All().String():
		return has
	case "global()":
		return !has
	}
	return matches(prefixed(s, api.LabelPrefixNamespace), labels)
}
