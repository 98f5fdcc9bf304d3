package nft

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/compile"
	"tortie/desired"
)

// TestMemo: what is remembered is what would be made, for the same sets, and not
// more than so much is.
func TestMemo(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	var m memo
	ranges := false
	how := carrying{events: true, has: func(k desired.SetKey) bool { return !k.Ranges || ranges }}
	render := func(p desired.Program, how carrying) string {
		t.Helper()
		chains, err := renderProgram("p", p, how)
		if err != nil {
			t.Fatal(err)
		}
		var b []byte
		for _, c := range chains {
			b = fmt.Appendf(b, "chain %s\n", c.name)
			for i := range c.rules {
				b = append(c.rules[i].appendText(append(b, '\t')), '\n')
			}
		}
		return string(b)
	}
	var cache compile.Cache
	shared := compile.Stage{Name: "many", End: desired.Deny, EndID: "end", Policies: [][]desired.Rule{randomRules(r, 200)}}
	var parts []*compile.Part // that of the stage is remembered as long as somebody has it
	for i := range 30 {
		own := compile.Stage{Name: "own", End: desired.Next, Policies: [][]desired.Rule{randomRules(r, 3)}}
		for j := range own.Policies[0] {
			own.Policies[0][j].Protocol = 6 // so that all of the rest gets to the other
		}
		p, now := cache.Program([]compile.Stage{own, shared})
		parts = append(parts[:0:0], now...)
		ranges = i/5%2 == 1
		remembering := how
		remembering.memo = &m
		if diff := cmp.Diff(render(p, how), render(p, remembering)); diff != "" {
			t.Fatalf("round %d (-made +remembered):\n%s", i, diff)
		}
		if len(m.stages) != 1 || len(parts) != 2 {
			t.Fatalf("round %d: %d stages are remembered, %d parts", i, len(m.stages), len(parts))
		}
	}
	remembering := how
	remembering.memo = &m
	for range 60 {
		p := compile.Program([]compile.Stage{{Name: "many", End: desired.Deny, Policies: [][]desired.Rule{randomRules(r, 150)}}})
		render(p, remembering)
	}
	sum := 0
	for _, e := range m.stages {
		sum += e.Value.(memorized).stage.size()
	}
	if m.rules != sum || sum > mostRemembered || len(m.stages) < 10 || len(m.stages) != m.recent.Len() {
		t.Errorf("%d rules of %d stages are remembered, counted as %d", sum, len(m.stages), m.rules)
	}
}
