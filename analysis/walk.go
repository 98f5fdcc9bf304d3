package analysis

import (
	"fmt"
	"strings"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// step is a rule, or the end of a tier or of all, on the way of the traffic
// between two groups through the policy of one of them.
type step struct {
	tier   string // "" for the profiles and after them
	rule   *rule  // nil for an end
	action api.Action
	all    space.Set // what the rule matches
	set    space.Set // and of that what reaches it
}

// walk goes through a program from its begin to its end.
func (u *universe) walk(i int, p *program, from, to *group, visit func(step)) {
	rest := u.space.All()
	list := func(tier string, rules []*rule) (passed space.Set) {
		passed = u.space.None()
		for _, r := range rules {
			all := u.match(i, r, from, to)
			s := step{tier, r, r.action, all, all.And(rest)}
			visit(s)
			if r.action != api.Log {
				rest = rest.Minus(s.set)
			}
			if r.action == api.Pass {
				passed = passed.Or(s.set)
			}
		}
		return passed
	}
	for _, t := range p.tiers {
		passed := u.space.None()
		for _, one := range t.policies {
			passed = passed.Or(list(t.name, one.rules))
		}
		if t.pass {
			rest = rest.Or(passed)
			continue
		}
		visit(step{t.name, nil, api.Deny, rest, rest})
		rest = passed
	}
	rest = list("", p.profiles).Or(rest) // nothing comes after a rule of a profile that passes
	visit(step{"", nil, api.Deny, rest, rest})
}

// outcome is what becomes of some traffic at one end, and why.
type outcome struct {
	allow bool
	why   reason
	set   space.Set
}

// reason is a rule or what else decides at one end.
type reason struct {
	end  string // source or destination
	rule explain.RuleRef
	text string // "" of a rule
}

// decide returns what becomes of the traffic between two groups at the end of
// one, nil if that is outside and decides nothing.
func (u *universe) decide(i int, dir api.Direction, from, to *group) []outcome {
	local, end := to, "destination"
	if dir == api.Egress {
		local, end = from, "source"
	}
	v := local.sites[i]
	switch {
	case local.outside:
		return []outcome{{true, reason{end: end, text: "outside"}, u.space.All()}}
	case !v.present:
		return []outcome{{false, reason{end: end, text: "no endpoint with this address"}, u.space.All()}}
	}
	p := v.ingress
	if dir == api.Egress {
		p = v.egress
	}
	var list []outcome
	u.walk(i, p, from, to, func(s step) {
		if s.set.IsEmpty() || s.action == api.Log || s.rule != nil && s.action == api.Pass {
			return
		}
		o := outcome{s.action == api.Allow, reason{end: end}, s.set}
		switch {
		case s.rule != nil:
			o.why.rule = s.rule.ref
		case s.tier != "":
			o.why.text = "end of tier " + s.tier
		case p.bare:
			o.why.text = "no policy and no profile"
		default:
			o.why.text = "no profile matched"
		}
		list = append(list, o)
	})
	return list
}

// cause is the reason for people and programs.
func (r reason) cause() Cause {
	c := Cause{End: r.end, Reason: r.text}
	if r.text == "" {
		c.Rule, c.Reason = &r.rule, ruleText(r.rule)
	}
	return c
}

func ruleText(r explain.RuleRef) string {
	return fmt.Sprintf("%s %s rule %d", r.Policy, strings.ToLower(string(r.Direction)), r.Index)
}
