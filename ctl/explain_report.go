package ctl

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
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
	Shared  []SharedAddress `json:"shared,omitempty"`
}

// SharedAddress is an address of an end that another endpoint has as well.
type SharedAddress struct {
	Address  netip.Addr `json:"address"`
	Endpoint api.Key    `json:"endpoint"` // the other
	Host     string     `json:"host"`     // of the other
}

// shared are the other endpoints with an address of an endpoint.
func (c *cluster) shared(of api.Key, addrs ...netip.Addr) (list []SharedAddress) {
	for _, a := range addrs {
		for _, key := range c.Owners(a) {
			if key != of {
				list = append(list, SharedAddress{a, key, c.Host(key)})
			}
		}
	}
	return list
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
	same := slices.EqualFunc(f.Decisions(), f.Staged.Decisions(), func(a, b *explain.Decision) bool {
		return a.Verdict == b.Verdict && a.Reason == b.Reason
	})
	if same {
		return "staged policies would not change that"
	}
	text := "with staged policies in force: " + summary(*f.Staged)
	if f.Staged.Verdict != api.Allow {
		return text
	}
	var by []string
	for _, d := range f.Staged.Decisions() {
		if d.Rule != nil {
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
	Interface string            `json:"interface,omitempty"` // of a host endpoint
	Addresses []netip.Addr      `json:"addresses,omitempty"`
	Shared    []SharedAddress   `json:"shared,omitempty"` // addresses that others have as well
	Labels    map[string]string `json:"labels"`           // as selectors see them
	Ingress   DirectionPolicy   `json:"ingress"`
	Egress    DirectionPolicy   `json:"egress"`
	Problems  []ObjectProblem   `json:"problems,omitempty"` // fields that are not in force
}

// DirectionPolicy is what applies in one direction, in order: the tiers, then
// the profiles.
type DirectionPolicy struct {
	Untracked []TierPolicies `json:"doNotTrack,omitempty"` // of host endpoints, before the rest
	PreDNAT   []TierPolicies `json:"preDNAT,omitempty"`
	Tiers     []TierPolicies `json:"tiers,omitempty"`
	Profiles  []PolicyInUse  `json:"profiles,omitempty"`
	Forward   []TierPolicies `json:"applyOnForward,omitempty"` // of host endpoints, instead of tiers and profiles, of what passes through
	Staged    []PolicyInUse  `json:"staged,omitempty"`         // staged policies that select it
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
	if d := f.Source; d != nil {
		f.Shared = c.shared(d.Endpoint, f.Packet.Src)
	}
	if d, to := f.Destination, f.Packet.Dst; d != nil {
		if f.Received != nil {
			to = f.Received.Dst
		}
		f.Shared = append(f.Shared, c.shared(d.Endpoint, to)...)
	}
	x.Families = append(x.Families, f)
	for _, d := range f.Decisions() {
		if d.Endpoint != (api.Key{}) {
			x.Problems = addProblems(x.Problems, c.concerning(d.Endpoint, d.Direction))
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
	all := r.Decisions()
	i := slices.IndexFunc(all, func(d *explain.Decision) bool { return d.Verdict != api.Allow })
	if i < 0 {
		return "allowed"
	}
	d, host := all[i], "the source's host"
	if d == r.Destination || d == r.Entering {
		host = "the destination's host"
	}
	switch {
	case d.Rule != nil:
		return fmt.Sprintf("denied by %s at %s", ruleText(*d.Rule), host)
	case d.Tier != "":
		return fmt.Sprintf("denied by the default action of tier %s at %s", d.Tier, host)
	}
	return fmt.Sprintf("denied at %s: %s", host, d.Reason)
}

// effective returns what applies to an endpoint.
func (c *cluster) effective(key api.Key) *EffectivePolicy {
	host, of, ok := c.Interface(key)
	if !ok {
		host = c.Host(key)
	}
	e := &EffectivePolicy{
		Endpoint: key, Host: host, Addresses: c.Addresses(key), Labels: c.Labels(key),
		Ingress: c.direction(key, api.Ingress), Egress: c.direction(key, api.Egress),
		Problems: addProblems(c.concerning(key, api.Ingress), c.concerning(key, api.Egress)),
	}
	e.Shared = c.shared(key, e.Addresses...)
	if h, ok := c.objects[key].(*api.HostEndpoint); ok {
		e.Interface = cmp.Or(of.Name, h.Spec.InterfaceName, "that with one of the addresses")
	}
	return e
}

func (c *cluster) direction(key api.Key, dir api.Direction) DirectionPolicy {
	var out DirectionPolicy
	out.Tiers = c.tiers(key, dir, explain.Normal)
	for kind, tiers := range map[explain.Kind]*[]TierPolicies{explain.Untracked: &out.Untracked, explain.PreDNAT: &out.PreDNAT, explain.Forward: &out.Forward} {
		*tiers = slices.DeleteFunc(c.tiers(key, dir, kind), func(t TierPolicies) bool { return len(t.Policies) == 0 })
	}
	for _, s := range c.Staged().Stages(key, dir) {
		for _, p := range s.Policies {
			if p.Key().IsStaged() {
				out.Staged = append(out.Staged, inUse(p, dir))
			}
		}
	}
	for _, name := range c.profiles(key) {
		use := PolicyInUse{Policy: api.Key{Kind: api.KindProfile, Name: name}}
		if p, ok := c.objects[use.Policy].(*api.Profile); name == api.DefaultAllowProfile {
			use.Rules = 1 // it is built in
		} else if use.Missing = !ok; ok {
			use.Rules = ruleCount(dir, p.Spec.Ingress, p.Spec.Egress)
		}
		out.Profiles = append(out.Profiles, use)
	}
	return out
}

func ruleCount(dir api.Direction, ingress, egress []api.Rule) int {
	if dir == api.Egress {
		return len(egress)
	}
	return len(ingress)
}

func inUse(p *api.Policy, dir api.Direction) PolicyInUse {
	return PolicyInUse{Policy: p.Key(), Order: p.Spec.Order, Rules: ruleCount(dir, p.Spec.Ingress, p.Spec.Egress)}
}

// tiers are those with policy of a kind, and those without.
func (c *cluster) tiers(key api.Key, dir api.Direction, kind explain.Kind) (list []TierPolicies) {
	for _, s := range c.StagesOf(key, dir, kind) {
		t := TierPolicies{Tier: s.Tier, Missing: !s.Exists, DefaultAction: api.Deny}
		if tier, ok := c.objects[api.Key{Kind: api.KindTier, Name: s.Tier}].(*api.Tier); ok {
			t.Order = tier.Spec.Order
		}
		if s.Pass || kind == explain.Untracked || kind == explain.PreDNAT {
			t.DefaultAction = api.Pass
		}
		for _, p := range s.Policies {
			t.Policies = append(t.Policies, inUse(p, dir))
		}
		list = append(list, t)
	}
	return list
}
