package analysis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// Finding is something in policy that has no effect, or not the one that it
// seems to have.
type Finding struct {
	Check   string  `json:"check"`
	Object  api.Key `json:"object"`
	Field   string  `json:"field,omitempty"`
	Message string  `json:"message"`
}

// The checks.
const (
	CheckMissingTier    = "missing-tier"    // a policy's tier does not exist
	CheckMissingProfile = "missing-profile" // an endpoint's profile does not exist
	CheckSelectsNothing = "selects-nothing" // a policy applies to no endpoint
	CheckMatchesNothing = "matches-nothing" // a rule matches no packet at all
	CheckNotItsEndpoint = "not-its-packets" // a rule matches packets, but none of the endpoints that its policy selects
	CheckRedundant      = "redundant"       // what a rule matches has been decided before, the same way
	CheckContradicted   = "contradicted"    // or the other way
	CheckUnreachable    = "unreachable"     // or in some other way or several
	CheckOrderTie       = "order-tie"       // two policies decide differently, and only their names say which comes first
)

// use is what is known of a rule where it applies.
type use struct {
	matches, reached bool
	before           map[string]api.Action // what decides first, if nothing reaches it
}

// Lint examines a state.
func Lint(objects []api.Object) ([]Finding, error) {
	u := newUniverse(objects)
	uses, ties := u.uses()
	found := ties
	for key, o := range u.sites[0].objects {
		switch o := o.(type) {
		case *api.Policy:
			if o.Kind == api.KindNetworkPolicy || o.Kind == api.KindGlobalNetworkPolicy {
				found = append(found, u.lintPolicy(o, uses)...)
			}
		case *api.Profile:
			for _, dir := range []api.Direction{api.Ingress, api.Egress} {
				for _, r := range u.rulesOf(o, dir) {
					found = append(found, u.lintMatch(r)...)
				}
			}
		case *api.WorkloadEndpoint:
			found = append(found, u.lintProfiles(key, o.Spec.Profiles)...)
		case *api.HostEndpoint:
			found = append(found, u.lintProfiles(key, o.Spec.Profiles)...)
		}
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(a.Object.Compare(b.Object), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Message, b.Message))
	})
	return found, u.space.Err()
}

func (u *universe) lintProfiles(key api.Key, profiles []string) []Finding {
	var found []Finding
	for i, name := range profiles {
		if u.sites[0].objects[api.Key{Kind: api.KindProfile, Name: name}] == nil && name != api.DefaultAllowProfile {
			found = append(found, Finding{CheckMissingProfile, key, fmt.Sprintf("spec.profiles[%d]", i), fmt.Sprintf("there is no profile %s", name)})
		}
	}
	return found
}

func (u *universe) lintPolicy(p *api.Policy, uses map[explain.RuleRef]*use) []Finding {
	var found []Finding
	key := p.Key()
	tier := cmp.Or(p.Spec.Tier, api.DefaultTier)
	if u.sites[0].objects[api.Key{Kind: api.KindTier, Name: tier}] == nil {
		found = append(found, Finding{CheckMissingTier, key, "spec.tier", fmt.Sprintf("there is no tier %s: the policy comes after all tiers that there are", tier)})
	}
	atHosts := u.appliesToHosts(key)
	if !atHosts && !u.appliesToWorkloads(key) {
		found = append(found, Finding{CheckSelectsNothing, key, "spec", "the policy applies to no endpoint"})
	}
	for _, dir := range []api.Direction{api.Ingress, api.Egress} {
		for _, r := range u.rulesOf(p, dir) {
			if own := u.lintMatch(r); len(own) > 0 {
				found = append(found, own...)
			} else if seen := uses[r.ref]; seen != nil && !seen.reached && !atHosts {
				found = append(found, lintUse(r, seen))
			}
		}
	}
	return found
}

// appliesToHosts reports whether a policy is one of some host endpoint. What its
// rules do to the host's own traffic nobody looks at here.
func (u *universe) appliesToHosts(key api.Key) bool {
	s := u.sites[0]
	for k, o := range s.objects {
		if _, ok := o.(*api.HostEndpoint); !ok {
			continue
		}
		for _, kind := range explain.Kinds {
			for _, dir := range []api.Direction{api.Ingress, api.Egress} {
				for _, stage := range s.StagesOf(k, dir, kind) {
					if slices.ContainsFunc(stage.Policies, func(p *api.Policy) bool { return p.Key() == key }) {
						return true
					}
				}
			}
		}
	}
	return false
}

// appliesToWorkloads reports whether a policy is in some workload's program.
func (u *universe) appliesToWorkloads(key api.Key) bool {
	for _, p := range u.programs {
		for _, t := range p.tiers {
			if slices.ContainsFunc(t.policies, func(one policy) bool { return one.key == key }) {
				return true
			}
		}
	}
	return false
}

// lintMatch says why a rule matches no packet, whoever it applies to.
func (u *universe) lintMatch(r *rule) []Finding {
	var src, dst, both, traffic bool
	var why string
	for version := range r.traffic {
		var from, to []*group
		for _, g := range u.groups {
			if g.version != 4+2*version {
				continue
			}
			if g.sites[0].is[r.src.id] {
				from = append(from, g)
			}
			if g.sites[0].is[r.dst.id] {
				to = append(to, g)
			}
		}
		src, dst = src || len(from) > 0, dst || len(to) > 0
		traffic = traffic || !r.traffic[version].IsEmpty()
		for _, g := range from {
			if both = both || slices.ContainsFunc(to, func(h *group) bool { return !u.match(0, r, g, h).IsEmpty() }); both {
				return nil
			}
		}
	}
	switch {
	case !traffic:
		why = "its IP version, protocol, ports or ICMP types exclude each other, or could not be read"
	case !src:
		why = "its source " + r.src.why()
	case !dst:
		why = "its destination " + r.dst.why()
	default:
		why = "no source and destination that it means have an IP version, protocol and port in common"
	}
	return []Finding{{CheckMatchesNothing, r.ref.Policy, field(r.ref), "the rule matches no packet: " + why}}
}

// why says why an entity is no address.
func (e *entity) why() string {
	if e.Selector.IsZero() && e.NamespaceSelector.IsZero() && e.ServiceAccounts == nil && e.NotSelector.IsZero() {
		return "is no address: its nets and notNets exclude each other"
	}
	return "is no address: no endpoint and no network set is what it selects"
}

func field(r explain.RuleRef) string {
	return fmt.Sprintf("spec.%s[%d]", strings.ToLower(string(r.Direction)), r.Index)
}

// lintUse says why nothing reaches a rule that matches something.
func lintUse(r *rule, seen *use) Finding {
	f := Finding{CheckNotItsEndpoint, r.ref.Policy, field(r.ref), "the rule matches no packet of the endpoints that its policy selects"}
	if !seen.matches {
		return f
	}
	var names []string
	same, opposite := true, true
	for name, action := range seen.before {
		names = append(names, name)
		same = same && action == r.action
		opposite = opposite && (action == api.Allow && r.action == api.Deny || action == api.Deny && r.action == api.Allow)
	}
	slices.Sort(names)
	switch by := strings.Join(names, "; "); {
	case same:
		f.Check, f.Message = CheckRedundant, "all that the rule matches has been decided before, the same way: "+by
	case opposite:
		f.Check, f.Message = CheckContradicted, "all that the rule matches has been decided before, the other way: "+by
	default:
		f.Check, f.Message = CheckUnreachable, "all that the rule matches has been decided before: "+by
	}
	return f
}

// uses walks through all policy with all traffic.
func (u *universe) uses() (map[explain.RuleRef]*use, []Finding) {
	uses := map[explain.RuleRef]*use{}
	ties := map[Finding]bool{}
	for _, pass := range []func(*program, *group, *group){
		func(p *program, from, to *group) { u.useOf(p, from, to, uses) },
		func(p *program, from, to *group) { u.blockers(p, from, to, uses) },
		func(p *program, from, to *group) { u.ties(p, from, to, ties) },
	} {
		for _, a := range u.groups {
			if a.outside {
				continue
			}
			for _, b := range u.groups {
				if a.version == b.version {
					pass(a.sites[0].ingress, b, a)
					pass(a.sites[0].egress, a, b)
				}
			}
		}
	}
	var list []Finding
	for f := range ties {
		list = append(list, f)
	}
	return uses, list
}

func (u *universe) useOf(p *program, from, to *group, uses map[explain.RuleRef]*use) {
	u.walk(0, p, from, to, func(s step) {
		if s.rule == nil {
			return
		}
		seen := uses[s.rule.ref]
		if seen == nil {
			seen = &use{before: map[string]api.Action{}}
			uses[s.rule.ref] = seen
		}
		seen.matches = seen.matches || !s.all.IsEmpty()
		seen.reached = seen.reached || !s.set.IsEmpty()
	})
}

// blockers finds what decides before rules that nothing reaches.
func (u *universe) blockers(p *program, from, to *group, uses map[explain.RuleRef]*use) {
	var before []step
	u.walk(0, p, from, to, func(s step) {
		if s.rule != nil && !uses[s.rule.ref].reached && !s.all.IsEmpty() {
			for _, b := range before {
				// What passed in a tier of its own comes to the next.
				passed := b.rule != nil && b.action == api.Pass && b.tier != s.tier
				if passed || b.set.And(s.all).IsEmpty() {
					continue
				}
				name := "end of tier " + b.tier
				if b.rule != nil {
					name = string(b.action) + " of " + ruleText(b.rule.ref)
				}
				uses[s.rule.ref].before[name] = b.action
			}
		}
		if s.action != api.Log && !s.set.IsEmpty() {
			before = append(before, s)
		}
	})
}

// ties finds policies of the same order that decide differently on what
// reaches them.
func (u *universe) ties(p *program, from, to *group, ties map[Finding]bool) {
	reach := map[explain.RuleRef]space.Set{}
	u.walk(0, p, from, to, func(s step) {
		if s.rule != nil && s.action != api.Log {
			reach[s.rule.ref] = s.set
		}
	})
	for _, t := range p.tiers {
		for i, a := range t.policies {
			for _, b := range t.policies[i+1:] {
				if !orderedAlike(a, b) {
					continue
				}
				f := Finding{CheckOrderTie, b.key, "spec.order", fmt.Sprintf("%v has the same order, comes first by its name alone, and decides otherwise on some packets", a.key)}
				if !ties[f] && u.differ(a, b, from, to, reach) {
					ties[f] = true
				}
			}
		}
	}
}

// differ reports whether a later policy would decide otherwise on something
// that an earlier one decides.
func (u *universe) differ(a, b policy, from, to *group, reach map[explain.RuleRef]space.Set) bool {
	for _, x := range a.rules {
		if x.action == api.Log {
			continue
		}
		rest := reach[x.ref]
		for _, y := range b.rules {
			if y.action == api.Log {
				continue
			}
			hit := rest.And(u.match(0, y, from, to))
			if !hit.IsEmpty() && y.action != x.action {
				return true
			}
			rest = rest.Minus(hit)
		}
	}
	return false
}
