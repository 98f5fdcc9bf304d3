package calc

import (
	"tortie/api"
	"tortie/compile"
	"tortie/desired"
	"tortie/selector"
)

// translated has the rules of a policy or profile as far as they are needed.
type translated struct {
	dirs [2]struct {
		done      bool
		rules     []desired.Rule
		selectors map[desired.SetID]*selector.Selector
	}
}

// translate fills in one direction, if it is not done yet.
func (t *translated) translate(owner api.Key, dir int, rules []api.Rule) {
	r := &t.dirs[dir]
	if r.done {
		return
	}
	r.done = true
	r.selectors = map[desired.SetID]*selector.Selector{}
	id := func(s *selector.Selector) desired.SetID {
		if s == nil {
			return 0
		}
		id := compile.SetID(s.String())
		r.selectors[id] = s
		return id
	}
	sets := make([]compile.Sets, len(rules))
	for i := range rules {
		if rules[i].Never {
			continue
		}
		src, okSrc := resolve(owner.Namespace, &rules[i].Source)
		dst, okDst := resolve(owner.Namespace, &rules[i].Destination)
		if !okSrc || !okDst {
			sets[i].Never = true
			continue
		}
		sets[i] = compile.Sets{
			Source: id(src.in), NotSource: id(src.notIn),
			Destination: id(dst.in), NotDestination: id(dst.notIn),
		}
	}
	r.rules = compile.Rules(owner, directions[dir], rules, sets)
}

// sides has the two selectors of one end of a rule, nil for none.
type sides struct{ in, notIn *selector.Selector }

// resolve combines the selectors of one end of a rule of a policy in the given
// namespace. It returns false if a selector could not be read, which matches
// nothing; a rule that denies was decoded without it.
func resolve(namespace string, e *api.EntityRule) (sides, bool) {
	in, ok1 := expr(e.Selector)
	ns, ok2 := expr(e.NamespaceSelector)
	notIn, ok3 := expr(e.NotSelector)
	var out sides
	if !ok1 || !ok2 || !ok3 {
		return out, false
	}
	if e.Selector.Text != "" || e.NamespaceSelector.Text != "" {
		out.in = selector.And(inNamespaces(namespace, e.NamespaceSelector.Text != "", ns), in)
	}
	if e.NotSelector.Text != "" {
		out.notIn = notIn
	}
	return out, true
}

// inNamespaces says which namespaces a rule means: those that its namespace
// selector names, else the policy's own, if it has one.
func inNamespaces(own string, given bool, s *selector.Selector) *selector.Selector {
	switch {
	case !given && own == "":
		return selector.All()
	case !given:
		return selector.Equal(api.LabelNamespace, own)
	case s.String() == "all()":
		return has(api.LabelNamespace)
	case s.String() == "global()":
		return parse("!has(" + api.LabelNamespace + ")")
	default:
		return s.WithPrefix(api.LabelPrefixNamespace)
	}
}

// use is how a program uses a selector: whether a connection that it allows
// can become forbidden by an address that joins, and by one that leaves.
type use struct {
	selector *selector.Selector
	used     bool
	joins    bool
	leaves   bool
}

// countUses notes how the rules of p use the selectors in uses, and drops
// those that they do not use.
func countUses(p desired.Program, uses map[desired.SetID]use) {
	note := func(id desired.SetID, joins, leaves bool) {
		if id == 0 {
			return
		}
		u := uses[id]
		u.used, u.joins, u.leaves = true, u.joins || joins, u.leaves || leaves
		uses[id] = u
	}
	for _, st := range p.Stages {
		for i := range st.Rules {
			r := &st.Rules[i]
			// Pass leads on to rules that may allow or deny.
			allows := r.Verdict == desired.Allow || r.Verdict == desired.Next
			denies := r.Verdict == desired.Deny || r.Verdict == desired.Next
			for _, p := range []*desired.Peer{&r.Source, &r.Destination} {
				note(p.Set, denies, allows)
				note(p.NotSet, allows, denies)
			}
		}
	}
	for id, u := range uses {
		if !u.used {
			delete(uses, id)
		}
	}
}

// selectorUse is a selector that programs use.
type selectorUse struct {
	selector *selector.Selector
	programs set[*program]
	followed bool   // since an earlier Flush
	ranges   [2]int // members that are ranges, IPv4 and IPv6
}

func (c *Calc) setUses(g *program, uses map[desired.SetID]use) {
	old := g.uses
	g.uses = uses
	for id, u := range uses {
		s := c.selectors[id]
		if s == nil {
			s = &selectorUse{selector: u.selector, programs: set[*program]{}}
			c.selectors[id] = s
			c.dirty.selectors.add(id)
		}
		s.programs.add(g)
	}
	for id := range old {
		if _, still := uses[id]; !still {
			delete(c.selectors[id].programs, g)
			c.dirty.selectors.add(id)
		}
	}
}

// flushSelectors begins to follow selectors that are used now, and ends to
// follow those that are not any more.
func (c *Calc) flushSelectors(d *desired.State) {
	for id := range c.dirty.selectors {
		s := c.selectors[id]
		used := len(s.programs) > 0
		if used {
			c.index.SetSelector(uint64(id), s.selector)
		} else {
			c.index.DeleteSelector(uint64(id))
		}
		for _, family := range families {
			c.setSet(d, desired.SetKey{ID: id, Family: family}, used)
		}
	}
}

var families = [2]uint8{4, 6}

// setSet makes a set be there or not. Every program that names its selector
// has to be written anew where that changes.
func (c *Calc) setSet(d *desired.State, k desired.SetKey, there bool) {
	s := c.selectors[k.ID]
	changed := there && d.Sets.Set(k, desired.Set{Selector: s.selector.String()}) || !there && d.Sets.Delete(k)
	if changed {
		for g := range s.programs {
			d.Programs.Touch(g.id)
		}
	}
}

// flushMembers takes over what changed in the members of sets. It reports
// whether that may forbid what was allowed.
func (c *Calc) flushMembers(d *desired.State) (tightened bool) {
	ranged := set[desired.SetKey]{}
	for ch := range c.index.Changes() {
		id := desired.SetID(ch.Selector)
		s := c.selectors[id]
		k := desired.SetKey{ID: id, Family: 6, Ranges: !ch.Prefix.IsSingleIP()}
		if ch.Prefix.Addr().Is4() {
			k.Family = 4
		}
		m := desired.Member{Set: k, Prefix: ch.Prefix}
		n := 1
		if ch.Add {
			d.Members.Set(m, struct{}{})
		} else {
			d.Members.Delete(m)
			n = -1
		}
		if k.Ranges {
			s.ranges[k.Family/6] += n
			ranged.add(k)
		}
		tightened = tightened || s.followed && s.tightensBy(id, ch.Add)
	}
	for k := range ranged {
		c.setSet(d, k, c.selectors[k.ID].ranges[k.Family/6] > 0)
	}
	for id := range c.dirty.selectors {
		if s := c.selectors[id]; len(s.programs) > 0 {
			s.followed = true
		} else {
			delete(c.selectors, id)
		}
	}
	clear(c.dirty.selectors)
	return tightened
}

// tightensBy reports whether an address that joins the set, or leaves it, can
// make a connection forbidden.
func (s *selectorUse) tightensBy(id desired.SetID, join bool) bool {
	for g := range s.programs {
		if u := g.uses[id]; join && u.joins || !join && u.leaves {
			return true
		}
	}
	return false
}
