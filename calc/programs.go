package calc

import (
	"slices"
	"strings"

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

// What an endpoint has programs for: besides the directions, for a host
// endpoint alone, what passes through the host and what is not to be tracked.
const (
	forwardIn = iota + 2
	forwardOut
	untrackedIn
	untrackedOut
	purposes
)

// direction is the one in which programs for a purpose judge.
func direction(purpose int) int { return purpose % 2 }

// program is what judges local endpoints with equal lists of policies and
// profiles, for one purpose.
type program struct {
	id       desired.ProgramID
	dir      int
	purpose  int
	host     bool
	refs     int // endpoints
	policies []*policy
	trial    []*policy // with staged ones in force
	tries    bool      // and that is something else
	profiles []*profile
	uses     map[desired.SetID]use
	parts    []*compile.Part // that it is made of
}

// flushOrder gives each endpoint the programs of its ordered list of policies.
func (c *Calc) flushOrder() {
	for l := range c.dirty.order {
		if !l.bound {
			for purpose := range purposes {
				c.assign(l, purpose, nil)
			}
			continue
		}
		all := make([]*policy, 0, len(l.policies))
		for p := range l.policies {
			all = append(all, p)
		}
		slices.SortFunc(all, comparePolicies)
		if l.host != nil {
			c.assignHost(l, all)
			continue
		}
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
	return c.add(&program{id: id, dir: dir, purpose: dir, policies: policies, trial: trial, tries: differ}, l.profiles)
}

// add returns the program of that ID, which g is if there is none yet.
func (c *Calc) add(g *program, profiles []string) *program {
	if g := c.programs[g.id]; g != nil {
		return g
	}
	c.programs[g.id] = g
	for _, p := range slices.Concat(g.policies, g.trial) {
		p.programs.add(g)
	}
	for _, name := range profiles {
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
func (c *Calc) assign(l *local, purpose int, g *program) {
	old := l.programs[purpose]
	if old == g {
		return
	}
	l.programs[purpose] = g
	if l.host == nil {
		c.dirty.interfaces.add(l.iface)
	}
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
	var v desired.Program
	v, g.parts = c.parts.Program(g.stages(uses, g.policies, false))
	v.Host = g.host
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
		if i == 0 || p.tier != policies[i-1].tier || p.view() != policies[i-1].view() {
			stages = append(stages, compile.Stage{
				Name: p.tier.name, View: p.view(), End: p.end(),
				EndID: endID(api.Key{Kind: api.KindTier, Name: p.tier.name}, directions[g.dir]),
			})
		}
		rules := p.spec.Ingress
		if g.dir == egress {
			rules = p.spec.Egress
		}
		add(&p.rules, p.key, rules)
		last := &stages[len(stages)-1]
		last.Who = append(last.Who, p.who())
	}
	stages = append(stages, g.lastStage(endID))
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

// who says which endpoints a policy is for.
func (p *policy) who() string {
	s := p.spec
	return strings.Join([]string{p.key.Namespace, s.Selector.Text, s.NamespaceSelector.Text, s.ServiceAccountSelector.Text}, "\x00")
}

func (t *tier) end() desired.Verdict {
	if t.spec != nil && t.spec.DefaultAction == api.Pass {
		return desired.Next
	}
	return desired.Deny
}
