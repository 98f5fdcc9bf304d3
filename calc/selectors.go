package calc

import (
	"slices"

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
		selectors map[desired.SetID]named
	}
}

// named is a selector or, with names, the places of the ports of those names
// that what it selects has.
type named struct {
	*selector.Selector
	names []string
}

func (n named) text() string {
	if len(n.names) > 0 {
		return compile.PortSetText(n.String(), n.names)
	}
	return n.String()
}

// translate fills in one direction, if it is not done yet.
func (t *translated) translate(owner api.Key, dir int, rules []api.Rule) {
	r := &t.dirs[dir]
	if r.done {
		return
	}
	r.done = true
	r.selectors = map[desired.SetID]named{}
	keep := func(n named) desired.SetID {
		id := compile.SetID(n.text())
		r.selectors[id] = n
		return id
	}
	id := func(s *selector.Selector) desired.SetID {
		if s == nil {
			return 0
		}
		return keep(named{Selector: s})
	}
	places := func(s *selector.Selector, ports []api.Port) desired.SetID {
		names := portNames(ports)
		if len(names) == 0 {
			return 0
		}
		if s == nil {
			s = selector.All()
		}
		return keep(named{s, names})
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
			SourcePorts: places(src.in, rules[i].Source.Ports), NotSourcePorts: places(src.in, rules[i].Source.NotPorts),
			DestinationPorts: places(dst.in, rules[i].Destination.Ports), NotDestinationPorts: places(dst.in, rules[i].Destination.NotPorts),
		}
	}
	r.rules = compile.Rules(owner, directions[dir], rules, sets)
}

// portNames are the names in a list of ports, sorted and without repeats.
func portNames(ports []api.Port) []string {
	var names []string
	for _, p := range ports {
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
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
	account, ok4 := inAccounts(e.ServiceAccounts)
	var out sides
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return out, false
	}
	if e.Selector.Text != "" || e.NamespaceSelector.Text != "" || e.ServiceAccounts != nil {
		out.in = selector.And(inNamespaces(namespace, e.NamespaceSelector.Text != "", ns), selector.And(account, in))
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

// inAccounts says which service accounts a rule means: those of the given
// names, those that have the selected labels.
func inAccounts(m *api.ServiceAccountMatch) (*selector.Selector, bool) {
	if m == nil {
		return selector.All(), true
	}
	s, ok := expr(m.Selector)
	if !ok {
		return nil, false
	}
	out := has(api.LabelServiceAccount)
	if len(m.Names) > 0 {
		out = selector.In(api.LabelServiceAccount, m.Names)
	}
	return selector.And(out, s.WithPrefix(api.LabelPrefixServiceAccount)), true
}

// use is how a program uses a selector: whether a connection that it allows
// can become forbidden by an address that joins, and by one that leaves.
type use struct {
	selector named
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
	for _, st := range p.Trial { // forbids nothing
		for i := range st.Rules {
			for _, p := range []*desired.Peer{&st.Rules[i].Source, &st.Rules[i].Destination} {
				for _, id := range []desired.SetID{p.Set, p.NotSet, p.Named, p.NotNamed} {
					note(id, false, false)
				}
			}
		}
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
				note(p.Named, denies, allows)
				note(p.NotNamed, allows, denies)
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
	selector named
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
		used, ports := len(s.programs) > 0, len(s.selector.names) > 0
		switch {
		case used && ports:
			c.ports.SetSelector(uint64(id), s.selector.Selector, s.selector.names)
		case used:
			c.index.SetSelector(uint64(id), s.selector.Selector)
		case ports:
			c.ports.DeleteSelector(uint64(id))
		default:
			c.index.DeleteSelector(uint64(id))
		}
		for _, family := range families {
			c.setSet(d, desired.SetKey{ID: id, Family: family, Ports: ports}, used)
		}
	}
}

var families = [2]uint8{4, 6}

// setSet makes a set be there or not. Every program that names its selector
// has to be written anew where that changes.
func (c *Calc) setSet(d *desired.State, k desired.SetKey, there bool) {
	s := c.selectors[k.ID]
	changed := there && d.Sets.Set(k, desired.Set{Selector: s.selector.text()}) || !there && d.Sets.Delete(k)
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
	take := func(m desired.Member, add bool) {
		k := &m.Set
		k.Family, k.Ranges = 6, !m.Prefix.IsSingleIP()
		if m.Prefix.Addr().Is4() {
			k.Family = 4
		}
		s := c.selectors[k.ID]
		n := 1
		if add {
			d.Members.Set(m, struct{}{})
		} else {
			d.Members.Delete(m)
			n = -1
		}
		if k.Ranges {
			s.ranges[k.Family/6] += n
			ranged.add(*k)
		}
		tightened = tightened || s.followed && s.tightensBy(k.ID, add)
	}
	for ch := range c.index.Changes() {
		take(desired.Member{Set: desired.SetKey{ID: desired.SetID(ch.Selector)}, Prefix: ch.Prefix}, ch.Add)
	}
	for ch := range c.ports.Changes() {
		take(desired.Member{
			Set: desired.SetKey{ID: desired.SetID(ch.Selector), Ports: true}, Prefix: ch.Prefix, Protocol: ch.Protocol, Port: ch.Port,
		}, ch.Add)
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
