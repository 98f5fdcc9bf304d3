package calc

import (
	"slices"

	"tortie/api"
	"tortie/compile"
	"tortie/desired"
)

// The directions, as indices.
const (
	ingress = iota
	egress
)

var directions = [2]api.Direction{api.Ingress, api.Egress}

// program is what judges local endpoints with equal lists of policies and
// profiles, in one direction.
type program struct {
	id       desired.ProgramID
	dir      int
	refs     int // endpoints
	policies []*policy
	profiles []*profile
	uses     map[desired.SetID]use
}

// flushOrder gives each endpoint the programs of its ordered list of policies.
func (c *Calc) flushOrder() {
	for l := range c.dirty.order {
		if !l.bound {
			c.assign(l, ingress, nil)
			c.assign(l, egress, nil)
			continue
		}
		all := make([]*policy, 0, len(l.policies))
		for p := range l.policies {
			all = append(all, p)
		}
		slices.SortFunc(all, comparePolicies)
		for dir := range directions {
			c.assign(l, dir, c.program(l, dir, all))
		}
	}
	clear(c.dirty.order)
}

// program returns the program for an endpoint with the given policies, new if
// need be.
func (c *Calc) program(l *local, dir int, all []*policy) *program {
	var policies []*policy
	var keys []api.Key
	for _, p := range all {
		if p.applies(dir) {
			policies = append(policies, p)
			keys = append(keys, p.key)
		}
	}
	id := compile.ProgramID(directions[dir], keys, l.profiles)
	if g := c.programs[id]; g != nil {
		return g
	}
	g := &program{id: id, dir: dir, policies: policies}
	c.programs[id] = g
	for _, p := range policies {
		p.programs.add(g)
	}
	for _, name := range l.profiles {
		f := c.profile(name)
		f.programs.add(g)
		g.profiles = append(g.profiles, f)
	}
	c.dirty.programs.add(g)
	return g
}

// assign changes the program of an endpoint; nil is none.
func (c *Calc) assign(l *local, dir int, g *program) {
	old := l.programs[dir]
	if old == g {
		return
	}
	l.programs[dir] = g
	c.dirty.interfaces.add(l.iface)
	if g != nil {
		g.refs++
	}
	if old != nil {
		if old.refs--; old.refs == 0 {
			c.dirty.programs.add(old)
		}
	}
}

// flushPrograms compiles programs whose contents may have changed and drops
// those that nobody uses. It reports whether one forbids what it allowed.
func (c *Calc) flushPrograms(d *desired.State) (tightened bool) {
	for g := range c.dirty.programs {
		if g.refs == 0 {
			c.dropProgram(g)
			d.Programs.Delete(g.id)
			continue
		}
		v, uses := c.build(g)
		old, ok := d.Programs.Get(g.id)
		tightened = tightened || ok && !compile.Loosens(old, v)
		d.Programs.Set(g.id, v)
		c.setUses(g, uses)
	}
	clear(c.dirty.programs)
	return tightened
}

func (c *Calc) dropProgram(g *program) {
	delete(c.programs, g.id)
	for _, p := range g.policies {
		if delete(p.programs, g); len(p.programs) == 0 {
			p.rules = translated{}
		}
	}
	for _, f := range g.profiles {
		if delete(f.programs, g); len(f.programs) == 0 {
			f.rules = translated{}
		}
		c.forgetProfile(f)
	}
	c.setUses(g, nil)
}

// build compiles a program, and says which selectors it uses how.
func (c *Calc) build(g *program) (desired.Program, map[desired.SetID]use) {
	var stages []compile.Stage
	uses := map[desired.SetID]use{}
	add := func(t *translated, owner api.Key, rules []api.Rule) {
		t.translate(owner, g.dir, rules)
		last := &stages[len(stages)-1]
		last.Policies = append(last.Policies, t.dirs[g.dir].rules)
		for id, s := range t.dirs[g.dir].selectors {
			uses[id] = use{selector: s}
		}
	}
	for i, p := range g.policies {
		if i == 0 || p.tier != g.policies[i-1].tier {
			stages = append(stages, compile.Stage{
				Name: p.tier.name, End: p.tier.end(),
				EndID: compile.EndID(api.Key{Kind: api.KindTier, Name: p.tier.name}, directions[g.dir]),
			})
		}
		rules := p.spec.Ingress
		if g.dir == egress {
			rules = p.spec.Egress
		}
		add(&p.rules, p.key, rules)
	}
	stages = append(stages, compile.Stage{
		Name:  compile.ProfileStage,
		EndID: compile.EndID(api.Key{Kind: api.KindProfile}, directions[g.dir]),
	})
	for _, f := range g.profiles {
		if f.spec == nil {
			continue
		}
		rules := f.spec.Ingress
		if g.dir == egress {
			rules = f.spec.Egress
		}
		add(&f.rules, api.Key{Kind: api.KindProfile, Name: f.name}, rules)
	}
	v := compile.Program(stages)
	countUses(v, uses)
	return v, uses
}

func (t *tier) end() desired.Verdict {
	if t.spec != nil && t.spec.DefaultAction == api.Pass {
		return desired.Next
	}
	return desired.Deny
}
