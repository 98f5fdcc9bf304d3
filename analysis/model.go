package analysis

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// site is one state of the objects.
type site struct {
	*explain.Cluster
	objects  map[api.Key]api.Object
	networks map[netip.Prefix][]*api.WorkloadEndpoint // by each address and range of theirs
}

// universe is all that is known of the states that are compared.
type universe struct {
	space    *space.Space
	sites    []*site
	keys     []api.Key // of all endpoints in any of them
	entities map[string]*entity
	rules    map[ruleList][]*rule
	programs map[string]*program
	cuts     cuts
	groups   []*group
	named    map[namedPorts]space.Set
}

// entity is what a rule of a policy in a namespace says of one end. Rules that
// say the same share one.
type entity struct {
	id        int
	namespace string
	api.EntityRule
	any   bool // it says nothing of the address
	named bool // it names ports
}

// rule is a rule with the traffic that it matches in IPv4 and IPv6, whatever
// the addresses, but for named ports.
type rule struct {
	ref      explain.RuleRef
	action   api.Action
	src, dst *entity
	traffic  [2]space.Set
}

// ruleList names the rules of an object in a direction.
type ruleList struct {
	owner api.Object
	dir   api.Direction
}

// program is what an endpoint's policy is in a direction. Endpoints with the
// same share one, in all states.
type program struct {
	id       int
	tiers    []tier // those with policies that apply
	profiles []*rule
	bare     bool // there is neither policy nor profile
}

type tier struct {
	name     string
	pass     bool
	policies []policy
}

type policy struct {
	key   api.Key
	order *float64
	rules []*rule
}

func newUniverse(states ...[]api.Object) *universe {
	u := &universe{
		space: space.New(0), entities: map[string]*entity{}, rules: map[ruleList][]*rule{}, programs: map[string]*program{},
		cuts: newCuts(), named: map[namedPorts]space.Set{},
	}
	keys := map[api.Key]bool{}
	for _, objects := range states {
		s := &site{explain.New(), map[api.Key]api.Object{}, map[netip.Prefix][]*api.WorkloadEndpoint{}}
		for _, o := range objects {
			s.Put(o)
			s.objects[o.Key()] = o
			if w, ok := o.(*api.WorkloadEndpoint); ok {
				keys[o.Key()] = true
				for _, p := range w.Spec.IPNetworks.Prefixes {
					s.networks[p] = append(s.networks[p], w)
				}
			}
			u.rulesOf(o, api.Ingress)
			u.rulesOf(o, api.Egress)
		}
		u.sites = append(u.sites, s)
	}
	u.keys = slices.SortedFunc(maps.Keys(keys), api.Key.Compare)
	u.group()
	return u
}

// rulesOf returns the rules of a policy or profile.
func (u *universe) rulesOf(o api.Object, dir api.Direction) []*rule {
	k := ruleList{o, dir}
	if list, ok := u.rules[k]; ok {
		return list
	}
	var ingress, egress []api.Rule
	switch o := o.(type) {
	case *api.Policy:
		if o.Kind == api.KindNetworkPolicy || o.Kind == api.KindGlobalNetworkPolicy {
			ingress, egress = o.Spec.Ingress, o.Spec.Egress
		}
	case *api.Profile:
		ingress, egress = o.Spec.Ingress, o.Spec.Egress
	}
	if dir == api.Egress {
		ingress = egress
	}
	var list []*rule
	for i := range ingress {
		list = append(list, u.rule(explain.RuleRef{Policy: o.Key(), Direction: dir, Index: i}, &ingress[i]))
	}
	u.rules[k] = list
	return list
}

func (u *universe) rule(ref explain.RuleRef, r *api.Rule) *rule {
	out := &rule{ref: ref, action: r.Action, src: u.entity(ref.Policy.Namespace, &r.Source), dst: u.entity(ref.Policy.Namespace, &r.Destination)}
	for at := range out.traffic {
		out.traffic[at] = u.traffic(r, 4+2*at)
	}
	u.cuts.rule(r)
	return out
}

func (u *universe) entity(namespace string, e *api.EntityRule) *entity {
	text, err := json.Marshal(e)
	k := fmt.Sprintf("%s %s %v", namespace, text, err)
	if known := u.entities[k]; known != nil {
		return known
	}
	isNamed := func(p api.Port) bool { return p.Name != "" }
	created := &entity{
		id: len(u.entities), namespace: namespace, EntityRule: *e,
		named: slices.ContainsFunc(e.Ports, isNamed) || slices.ContainsFunc(e.NotPorts, isNamed),
	}
	created.any = created.onlyPorts()
	u.entities[k] = created
	return created
}

func (e *entity) onlyPorts() bool {
	return e.Selector.IsZero() && e.NotSelector.IsZero() && e.NamespaceSelector.IsZero() && e.ServiceAccounts == nil && e.Services == nil &&
		e.Nets.IsZero() && e.NotNets.IsZero()
}

// program returns what applies to an endpoint of a site.
func (u *universe) program(s *site, w *api.WorkloadEndpoint, dir api.Direction) *program {
	var k strings.Builder
	fmt.Fprint(&k, dir)
	p := &program{id: len(u.programs), bare: len(w.Spec.Profiles) == 0}
	for _, stage := range s.Stages(w.Key(), dir) {
		if len(stage.Policies) == 0 {
			continue
		}
		p.bare = false
		t := tier{name: stage.Tier, pass: stage.Pass}
		fmt.Fprintf(&k, "\ntier %s %v", t.name, t.pass)
		for _, o := range stage.Policies {
			t.policies = append(t.policies, policy{o.Key(), o.Spec.Order, u.rulesOf(o, dir)})
			fmt.Fprintf(&k, " %p", o)
		}
		p.tiers = append(p.tiers, t)
	}
	for _, name := range w.Spec.Profiles {
		key := api.Key{Kind: api.KindProfile, Name: name}
		o, ok := s.objects[key].(*api.Profile)
		fmt.Fprintf(&k, "\nprofile %s %p", name, o)
		switch {
		case name == api.DefaultAllowProfile: // it is built in
			p.profiles = append(p.profiles, u.rule(explain.RuleRef{Policy: key, Direction: dir}, &api.Rule{Action: api.Allow}))
		case ok:
			p.profiles = append(p.profiles, u.rulesOf(o, dir)...)
		}
	}
	if known := u.programs[k.String()]; known != nil {
		return known
	}
	u.programs[k.String()] = p
	return p
}

// orderedAlike reports whether nothing but their names says which of two
// policies of a tier comes first.
func orderedAlike(a, b policy) bool {
	if a.order == nil || b.order == nil {
		return a.order == b.order
	}
	return cmp.Compare(*a.order, *b.order) == 0
}
