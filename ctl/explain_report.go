package ctl

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"tortie/api"
	"tortie/explain"
)

// Explanation is what explain -o json and -o yaml print of a connection.
type Explanation struct {
	Verdict  api.Action      `json:"verdict"` // Allow, or Deny if it is denied in a family
	Summary  string          `json:"summary"` // the last line of the text
	Families []FamilyVerdict `json:"families"`
	Problems []ObjectProblem `json:"problems,omitempty"` // fields of what applies that are not in force
}

// FamilyVerdict is what becomes of the connection in one family: beside its own
// fields there are verdict, source and destination, as in explain.Result. An
// end that is outside is absent.
type FamilyVerdict struct {
	IPVersion int            `json:"ipVersion"`
	Port      string         `json:"port"` // as asked
	Packet    explain.Packet `json:"packet"`
	explain.Result
	Summary string          `json:"summary"`
	Staged  *explain.Result `json:"staged,omitempty"` // what it would be with staged policies in force, where they concern it
}

// with adds what the staged policies would make of it.
func (f FamilyVerdict) with(staged explain.Result) FamilyVerdict {
	if !reflect.DeepEqual(f.Result, staged) {
		f.Staged = &staged
	}
	return f
}

// stagedText says what the staged policies would change.
func (f FamilyVerdict) stagedText() string {
	same := func(a, b *explain.Decision) bool {
		return a == b || a != nil && b != nil && a.Verdict == b.Verdict && a.Reason == b.Reason
	}
	if same(f.Source, f.Staged.Source) && same(f.Destination, f.Staged.Destination) {
		return "staged policies would not change that"
	}
	text := "with staged policies in force: " + summary(*f.Staged)
	if f.Staged.Verdict != api.Allow {
		return text
	}
	var by []string
	for _, d := range []*explain.Decision{f.Staged.Source, f.Staged.Destination} {
		if d != nil && d.Rule != nil {
			by = append(by, ruleText(*d.Rule))
		}
	}
	return text + " by " + strings.Join(by, " and ")
}

// ObjectProblem is a field that is not in force.
type ObjectProblem struct {
	Object api.Key `json:"object"`
	Field  string  `json:"field"`
	Value  string  `json:"value,omitempty"`
	Reason string  `json:"reason"`
}

// EffectivePolicy is what explain -o json and -o yaml print of an endpoint.
type EffectivePolicy struct {
	Endpoint  api.Key           `json:"endpoint"`
	Host      string            `json:"host"`
	Addresses []netip.Addr      `json:"addresses,omitempty"`
	Labels    map[string]string `json:"labels"` // as selectors see them
	Ingress   DirectionPolicy   `json:"ingress"`
	Egress    DirectionPolicy   `json:"egress"`
	Problems  []ObjectProblem   `json:"problems,omitempty"` // fields that are not in force
}

// DirectionPolicy is what applies in one direction, in order: the tiers, then
// the profiles.
type DirectionPolicy struct {
	Tiers    []TierPolicies `json:"tiers,omitempty"`
	Profiles []PolicyInUse  `json:"profiles,omitempty"`
	Staged   []PolicyInUse  `json:"staged,omitempty"` // staged policies that select it
}

// TierPolicies is a tier with its policies that apply.
type TierPolicies struct {
	Tier          string        `json:"tier"`
	Missing       bool          `json:"missing,omitempty"` // there is no such Tier
	Order         *float64      `json:"order,omitempty"`
	DefaultAction api.Action    `json:"defaultAction"` // Deny or Pass; it counts where a policy applies
	Policies      []PolicyInUse `json:"policies,omitempty"`
}

// PolicyInUse is a policy or profile that applies.
type PolicyInUse struct {
	Policy  api.Key  `json:"policy"`
	Missing bool     `json:"missing,omitempty"` // there is no such Profile
	Order   *float64 `json:"order,omitempty"`
	Rules   int      `json:"rules"` // how many, in this direction
}

// add takes up the answer for one family.
func (x *Explanation) add(c *cluster, f FamilyVerdict) {
	if f.Verdict != api.Allow {
		x.Verdict = f.Verdict
	}
	x.Families = append(x.Families, f)
	for _, d := range []*explain.Decision{f.Source, f.Destination} {
		if d != nil {
			x.Problems = addProblems(x.Problems, c.concerning(c.endpoint(d.Endpoint), d.Direction))
		}
	}
	same, each := true, make([]string, 0, len(x.Families))
	for _, f := range x.Families {
		same = same && f.Summary == x.Families[0].Summary
		each = append(each, fmt.Sprintf("IPv%d: %s", f.IPVersion, f.Summary))
	}
	if x.Summary = f.Summary; !same {
		x.Summary = strings.Join(each, "; ")
	}
}

// summary says in a line what becomes of a connection. A packet that its
// source's host drops is not seen by another.
func summary(r explain.Result) string {
	d, host := r.Source, "the source's host"
	if d == nil || d.Verdict == api.Allow {
		d, host = r.Destination, "the destination's host"
	}
	switch {
	case d == nil || d.Verdict == api.Allow:
		return "allowed"
	case d.Rule != nil:
		return fmt.Sprintf("denied by %s at %s", ruleText(*d.Rule), host)
	case d.Tier != "":
		return fmt.Sprintf("denied by the default action of tier %s at %s", d.Tier, host)
	}
	return fmt.Sprintf("denied at %s: %s", host, d.Reason)
}

// effective returns what applies to an endpoint.
func (c *cluster) effective(w *api.WorkloadEndpoint) *EffectivePolicy {
	key := w.Key()
	return &EffectivePolicy{
		Endpoint: key, Host: c.Host(key), Addresses: c.Addresses(key), Labels: c.Labels(key),
		Ingress: c.direction(w, api.Ingress), Egress: c.direction(w, api.Egress),
		Problems: addProblems(c.concerning(w, api.Ingress), c.concerning(w, api.Egress)),
	}
}

func (c *cluster) direction(w *api.WorkloadEndpoint, dir api.Direction) DirectionPolicy {
	count := func(ingress, egress []api.Rule) int {
		if dir == api.Egress {
			return len(egress)
		}
		return len(ingress)
	}
	var out DirectionPolicy
	for _, s := range c.Stages(w.Key(), dir) {
		t := TierPolicies{Tier: s.Tier, Missing: !s.Exists, DefaultAction: api.Deny}
		if tier, ok := c.objects[api.Key{Kind: api.KindTier, Name: s.Tier}].(*api.Tier); ok {
			t.Order = tier.Spec.Order
		}
		if s.Pass {
			t.DefaultAction = api.Pass
		}
		for _, p := range s.Policies {
			t.Policies = append(t.Policies, PolicyInUse{Policy: p.Key(), Order: p.Spec.Order, Rules: count(p.Spec.Ingress, p.Spec.Egress)})
		}
		out.Tiers = append(out.Tiers, t)
	}
	for _, s := range c.Staged().Stages(w.Key(), dir) {
		for _, p := range s.Policies {
			if p.Key().IsStaged() {
				out.Staged = append(out.Staged, PolicyInUse{Policy: p.Key(), Order: p.Spec.Order, Rules: count(p.Spec.Ingress, p.Spec.Egress)})
			}
		}
	}
	for _, name := range w.Spec.Profiles {
		use := PolicyInUse{Policy: api.Key{Kind: api.KindProfile, Name: name}}
		if p, ok := c.objects[use.Policy].(*api.Profile); name == api.DefaultAllowProfile {
			use.Rules = 1 // it is built in
		} else if use.Missing = !ok; ok {
			use.Rules = count(p.Spec.Ingress, p.Spec.Egress)
		}
		out.Profiles = append(out.Profiles, use)
	}
	return out
}
