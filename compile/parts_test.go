package compile

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"tortie/desired"
)

// among gives a stage random policies of a few owners.
func (r random) among(s *Stage, prefix string) {
	for i := 0; len(s.Policies) < 4+r.IntN(8); i++ {
		who := strconv.Itoa(r.IntN(4))
		for range 1 + r.IntN(3) {
			var rules []desired.Rule
			for range r.IntN(50) {
				rule := r.dispatchRule(style{5, 4, 4, false})
				if rule.Verdict == desired.Next && r.IntN(40) > 0 {
					rule.Verdict = desired.Deny // else hardly a stage could be split
				}
				rule.ID = prefix + strconv.Itoa(i) + "/" + strconv.Itoa(len(rules))
				rules = append(rules, rule)
			}
			s.Policies, s.Who = append(s.Policies, rules), append(s.Who, who)
			i++
		}
	}
}

// through returns what decides on a connection that goes through a program, and
// what is logged.
func (c connection) through(p desired.Program) (by string, logged []string) {
	for i := range p.Stages {
		s := &p.Stages[i]
		one, more := c.decide(s.Rules)
		if len(s.Dispatch) > 0 {
			one, more = c.walk(c.first(s.Dispatch, s.Others))
		}
		logged = append(logged, more...)
		if one == "" {
			if s.End != desired.Next {
				return s.EndID, logged
			}
			continue
		}
		at := slices.IndexFunc(s.Rules, func(r desired.Rule) bool { return r.ID == one })
		if s.Rules[at].Verdict != desired.Next {
			return one, logged
		}
	}
	return "", logged
}

// TestParts: a stage that is made in parts decides as one that is not, by the same
// rule; and a program has the parts that it had, but for those that changed.
func TestParts(t *testing.T) {
	var cache Cache
	split, again := 0, 0
	start := rand.Uint64()
	for seed := start; seed < start+150; seed++ {
		r := random{rand.New(rand.NewPCG(seed, 2))}
		stages := []Stage{{Name: "a", End: desired.Next, EndID: "a/end"}, {Name: "b", End: desired.Deny, EndID: "b/end"}}
		r.among(&stages[0], "a")
		r.among(&stages[1], "b")
		whole := slices.Clone(stages)
		for i := range whole {
			whole[i].Who = nil
		}
		want := Program(whole)
		for range 2 {
			got, parts := cache.Program(stages)
			if len(parts) > 2*mostParts {
				t.Fatalf("seed %d: %d parts", seed, len(parts))
			}
			split += len(got.Stages) - len(want.Stages)
			for range 200 {
				c := r.connection()
				by, logged := c.through(want)
				inParts, partsLogged := c.through(got)
				if by != inParts || !slices.Equal(logged, partsLogged) {
					t.Fatalf("seed %d: %+v: %q decides after %s, in parts %q after %s", seed, c, by, logged, inParts, partsLogged)
				}
			}
			// One policy changes: the other stage, and other parts of its own, stay.
			at := r.IntN(len(stages[0].Policies))
			stages[0].Policies = slices.Clone(stages[0].Policies)
			stages[0].Policies[at] = slices.Clone(stages[0].Policies[at])
			whole[0].Policies = stages[0].Policies
			want = Program(whole)
			_, next := cache.Program(stages)
			for _, p := range next {
				if slices.Contains(parts, p) {
					again++
				}
			}
			runtime.KeepAlive(parts)
		}
	}
	if split < 100 || again < 300 {
		t.Errorf("stages were split %d times, parts used again %d times", split, again)
	}
	for range 10 { // what nobody has is forgotten
		runtime.GC()
		_, _ = cache.Program([]Stage{{Name: "c", Policies: [][]desired.Rule{{rule(desired.Allow)}}}})
	}
	cache.limit = 0
	_, kept := cache.Program([]Stage{{Name: "d", Policies: [][]desired.Rule{{rule(desired.Allow)}}}})
	if n := len(cache.parts); n > 2 {
		t.Errorf("%d parts are remembered", n)
	}
	runtime.KeepAlive(kept)
}
