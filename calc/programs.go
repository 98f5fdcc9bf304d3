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
	trial    []*policy // with staged ones in force
	tries    bool      // and that is something else
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
	var policies, trial []*policy
	differ := false
	for _, p := range all {
		if !p.applies(dir) {
			continue
		}
		replaced := !p.staged() && slices.ContainsFunc(p.key.Staged(), func(k api.Key) bool { return c.policies[k] != nil })
		differ = differ || replaced || p.staged()
		if !p.staged() {
			policies = append(policies, p)
		}
		if !replaced {
			trial = append(trial, p)
		}
	}
	id := compile.ProgramID(directions[dir], keysOf(policies), l.profiles)
	if differ {
		id = compile.TrialID(id, keysOf(trial))
	}
	if g := c.programs[id]; g != nil {
		return g
	}
	g := &program{id: id, dir: dir, policies: policies, trial: trial, tries: differ}
	c.programs[id] = g
	for _, p := range slices.Concat(policies, trial) {
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

func keysOf(policies []*policy) []api.Key {
	keys := make([]api.Key, 0, len(policies))
	for _, p := range policies {
		keys = append(keys, p.key)
	}
	return keys
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
// those that nobody uses. It reports whether one forbids what it allowed, and
// what each was before.
func (c *Calc) flushPrograms(d *desired.State) (tightened bool, former map[desired.ProgramID]desired.Program) {
	former = map[desired.ProgramID]desired.Program{}
	for g := range c.dirty.programs {
		old, ok := d.Programs.Get(g.id)
		if ok {
			former[g.id] = old
		}
		if g.refs == 0 {
			c.dropProgram(g)
			d.Programs.Delete(g.id)
			continue
		}
		v, uses := c.build(g)
		tightened = tightened || ok && !compile.Loosens(old, v)
		d.Programs.Set(g.id, v)
		c.setUses(g, uses)
	}
	clear(c.dirty.programs)
	return tightened, former
}

func (c *Calc) dropProgram(g *program) {
	delete(c.programs, g.id)
	for _, p := range slices.Concat(g.policies, g.trial) {
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
	uses := map[desired.SetID]use{}
	v := compile.Program(g.stages(uses, g.policies, false))
	if g.tries {
		v.Trial = compile.Program(g.stages(uses, g.trial, true)).Stages
	}
	countUses(v, uses)
	return v, uses
}

// stages are those of the policies and of the profiles, in force or for a
// trial. It adds the selectors that rules name.
func (g *program) stages(uses map[desired.SetID]use, policies []*policy, trial bool) []compile.Stage {
	var stages []compile.Stage
	endID := compile.EndID
	if trial {
		endID = compile.TrialEndID
	}
	add := func(t *translated, owner api.Key, rules []api.Rule) {
		t.translate(owner, g.dir, rules)
		translated := t.dirs[g.dir].rules
		if trial && !owner.IsStaged() {
			translated = compile.InForce(translated)
		}
		last := &stages[len(stages)-1]
		last.Policies = append(last.Policies, translated)
		for id, s := range t.dirs[g.dir].selectors {
			uses[id] = use{selector: s}
		}
	}
	for i, p := range policies {
		if i == 0 || p.tier != policies[i-1].tier {
			stages = append(stages, compile.Stage{
				Name: p.tier.name, End: p.tier.end(),
				EndID: endID(api.Key{Kind: api.KindTier, Name: p.tier.name}, directions[g.dir]),
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
		EndID: endID(api.Key{Kind: api.KindProfile}, directions[g.dir]),
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
	return stages
}

func (t *tier) end() desired.Verdict {
	if t.spec != nil && t.spec.DefaultAction == api.Pass {
		return desired.Next
	}
	return desired.Deny
}
