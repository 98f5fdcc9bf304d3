package calc

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"tortie/api"
	"tortie/selector"
)

// policy is a policy that is enforced on endpoints, or would be if it selected
// one; or a staged one, which is tried.
type policy struct {
	key      api.Key
	about    api.Key         // the policy that a staged one is about; else its own key
	spec     *api.PolicySpec // nil: it is gone
	selector *selector.Selector
	tier     *tier
	tie      string // orders policies of equal order
	reselect bool   // its selector changed
	reorder  bool   // its place changed

	places   []place // in candidates
	locals   set[*local]
	rules    translated
	programs set[*program]
}

// tier is a tier, or the place of one that policies name and that is missing.
type tier struct {
	name     string
	spec     *api.TierSpec // nil: missing
	policies set[*policy]
}

func (c *Calc) tier(name string) *tier {
	t := c.tiers[name]
	if t == nil {
		t = &tier{name: name, policies: set[*policy]{}}
		c.tiers[name] = t
	}
	return t
}

func (c *Calc) forgetTier(t *tier) {
	if t.spec == nil && len(t.policies) == 0 && c.tiers[t.name] == t {
		delete(c.tiers, t.name)
	}
}

// SetTier sets a tier; nil means that it is gone.
func (c *Calc) SetTier(k api.Key, t *api.Tier) {
	if t == nil && c.tiers[k.Name] == nil {
		return
	}
	r := c.tier(k.Name)
	r.spec = nil
	if t != nil {
		r.spec = &t.Spec
	}
	c.dirty.tiers.add(r)
}

// Tierless returns the policies whose tier does not exist, with its name.
func (c *Calc) Tierless() map[api.Key]string {
	found := map[api.Key]string{}
	for name, t := range c.tiers {
		for p := range t.policies {
			if t.spec == nil && p.spec != nil {
				found[p.key] = name
			}
		}
	}
	return found
}

// SetPolicy sets a policy, or a staged one; nil means that it is gone. Staged
// ones that are not to be tried count as gone, and those of policy that acts
// before connection tracking or address translation.
func (c *Calc) SetPolicy(k api.Key, p *api.Policy) {
	acts := p != nil && (!k.IsStaged() || p.Spec.Tried() && !p.Spec.DoNotTrack && !p.Spec.PreDNAT)
	r := c.policies[k]
	if r == nil {
		if !acts {
			return
		}
		r = &policy{key: k, about: k.Unstaged(), locals: set[*local]{}, programs: set[*program]{}}
		r.tie = r.about.Name + "/" + k.Namespace + "/" + string(r.about.Kind)
		c.policies[k] = r
	}
	c.dirty.policies.add(r)
	if !acts {
		r.spec, r.reselect, r.reorder = nil, true, true
		return
	}
	old := r.spec
	r.spec = &p.Spec
	name := cmp.Or(p.Spec.Tier, api.DefaultTier)
	if r.tier == nil || r.tier.name != name {
		c.leaveTier(r)
		r.tier = c.tier(name)
		r.tier.policies.add(r)
		r.reorder = true
	}
	r.reselect = r.reselect || old == nil || old.StagedAction != r.spec.StagedAction || !sameSelection(old, r.spec)
	r.reorder = r.reorder || old == nil || old.StagedAction != r.spec.StagedAction || order(old.Order) != order(r.spec.Order) || !slices.Equal(old.Types, r.spec.Types) ||
		old.ApplyOnForward != r.spec.ApplyOnForward
	if old != nil && (old.DoNotTrack != r.spec.DoNotTrack || old.PreDNAT != r.spec.PreDNAT) {
		r.reselect, r.reorder = true, true
	}
}

func (c *Calc) leaveTier(p *policy) {
	if p.tier != nil {
		delete(p.tier.policies, p)
		c.forgetTier(p.tier)
		p.tier = nil
	}
}

func sameSelection(a, b *api.PolicySpec) bool {
	return sameSelector(a.Selector, b.Selector) && sameSelector(a.NamespaceSelector, b.NamespaceSelector) &&
		sameSelector(a.ServiceAccountSelector, b.ServiceAccountSelector)
}

func sameSelector(a, b api.Selector) bool {
	return a.Text == b.Text && (a.Err == nil) == (b.Err == nil)
}

func order(o *float64) float64 {
	if o == nil {
		return math.Inf(1)
	}
	return *o
}

// staged reports a policy that is tried, not enforced.
func (p *policy) staged() bool { return p.key != p.about }

// applies reports whether the policy has a say in a direction.
func (p *policy) applies(dir int) bool {
	return len(p.spec.Types) == 0 || slices.Contains(p.spec.Types, directions[dir])
}

// flushPolicies finds out which policies select which local endpoints.
func (c *Calc) flushPolicies() {
	for t := range c.dirty.tiers {
		for p := range t.policies {
			c.touchPrograms(p)
			for l := range p.locals {
				c.dirty.order.add(l)
			}
		}
		c.forgetTier(t)
	}
	clear(c.dirty.tiers)
	for p := range c.dirty.policies {
		p.rules = translated{}
		c.touchPrograms(p)
		if p.reselect {
			c.candidates.remove(p)
			if p.selector = c.selection(p); p.selector != nil {
				c.candidates.add(p)
			}
		}
		if p.reorder {
			c.reorder(p)
		}
	}
	// What is new is matched from the endpoints' side, the rest, from that of
	// the policies.
	for l := range c.dirty.locals {
		c.matchLocal(l)
		c.dirty.order.add(l)
	}
	for p := range c.dirty.policies {
		if p.reselect {
			for _, l := range c.locals {
				if !c.dirty.locals.has(l) && p.match(l) != p.locals.has(l) {
					p.toggle(l)
					c.dirty.order.add(l)
				}
			}
		}
		p.reselect, p.reorder = false, false
		if p.spec == nil {
			c.leaveTier(p)
			delete(c.policies, p.key)
		}
	}
	clear(c.dirty.policies)
	clear(c.dirty.locals)
}

// reorder looks again at the order of policies where p is in it, and where the
// one is that a staged p would replace.
func (c *Calc) reorder(p *policy) {
	for l := range p.locals {
		c.dirty.order.add(l)
	}
	if about := c.policies[p.about]; p.staged() && about != nil {
		for l := range about.locals {
			c.dirty.order.add(l)
		}
	}
}

func (c *Calc) touchPrograms(p *policy) {
	for g := range p.programs {
		c.dirty.programs.add(g)
	}
}

func (p *policy) match(l *local) bool {
	switch {
	case !l.bound || p.selector == nil:
		return false
	case l.host == nil && (p.spec.DoNotTrack || p.spec.PreDNAT):
		return false // these are for the host's own endpoints
	}
	return p.selector.Match(l.labels)
}

func (p *policy) toggle(l *local) {
	if p.locals.has(l) {
		delete(p.locals, l)
		delete(l.policies, p)
	} else {
		p.locals.add(l)
		l.policies.add(p)
	}
}

// matchLocal finds the policies that select an endpoint.
func (c *Calc) matchLocal(l *local) {
	for p := range l.policies {
		if !p.match(l) {
			p.toggle(l)
		}
	}
	if l.bound {
		c.candidates.of(l.labels, func(p *policy) {
			if !p.locals.has(l) && p.match(l) {
				p.toggle(l)
			}
		})
	}
}

// selection returns the selector of the endpoints that a policy applies to, or
// nil if there can be none.
func (c *Calc) selection(p *policy) *selector.Selector {
	if p.spec == nil || p.spec.StagedAction == api.StagedDelete {
		return nil
	}
	s, ok := expr(p.spec.Selector)
	if !ok {
		return nil
	}
	if p.key.Namespace != "" {
		s = selector.And(s, selector.Equal(api.LabelNamespace, p.key.Namespace))
	} else if n := p.spec.NamespaceSelector; n.Text != "" {
		e, ok := expr(n)
		if !ok {
			return nil
		}
		s = selector.And(s, selector.And(has(api.LabelNamespace), e.WithPrefix(api.LabelPrefixNamespace)))
	}
	if a := p.spec.ServiceAccountSelector; a.Text != "" {
		e, ok := expr(a)
		if !ok {
			return nil
		}
		s = selector.And(s, selector.And(has(api.LabelServiceAccount), e.WithPrefix(api.LabelPrefixServiceAccount)))
	}
	return s
}

// expr returns the expression of a selector, and false if it could not be
// read.
func expr(s api.Selector) (*selector.Selector, bool) {
	switch {
	case s.Err != nil:
		return nil, false
	case s.Expr == nil:
		return selector.All(), true
	default:
		return s.Expr, true
	}
}

// has returns the selector has(label).
func has(label string) *selector.Selector { return parse("has(" + label + ")") }

// parse parses a selector that is written in this package.
func parse(text string) *selector.Selector {
	s, err := selector.Parse(text)
	if err != nil {
		panic("calc: " + err.Error())
	}
	return s
}

// compareTiers orders tiers: those that exist before others, by order, by name.
func compareTiers(a, b *tier) int {
	if (a.spec == nil) != (b.spec == nil) {
		if b.spec == nil {
			return -1
		}
		return 1
	}
	if a.spec != nil {
		if c := cmp.Compare(order(a.spec.Order), order(b.spec.Order)); c != 0 {
			return c
		}
	}
	return strings.Compare(a.name, b.name)
}

func comparePolicies(a, b *policy) int {
	if a.tier != b.tier {
		return compareTiers(a.tier, b.tier)
	}
	return cmp.Or(cmp.Compare(order(a.spec.Order), order(b.spec.Order)), strings.Compare(a.tie, b.tie), a.key.Compare(b.key))
}
