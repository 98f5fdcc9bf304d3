package calc_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/calc"
	"tortie/desired"
)

var testOptions = calc.Options{Host: "h1", WorkloadPrefixes: []string{"cali", "tap"}, HostsInside: true, SourceSpoofing: true}

// seed is printed with every failure; TORTIE_TEST_SEED repeats a run.
func seed(t *testing.T) uint64 {
	if s := os.Getenv("TORTIE_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return rand.Uint64()
}

// run is a random history under way.
type run struct {
	gen   generator
	calc  *calc.Calc
	state *desired.State
	world world
	taken []step
}

func newRun(seed uint64) *run {
	return &run{
		gen:  generator{Rand: rand.New(rand.NewPCG(seed, 0))},
		calc: calc.New(testOptions), state: desired.New(), world: world{},
	}
}

// steps takes up to n random steps.
func (r *run) steps(n int) {
	for range 1 + r.gen.IntN(n) {
		s := r.gen.step()
		s.do(r.calc, r.state)
		r.world.apply(s)
		r.taken = append(r.taken, s)
	}
}

func (r *run) flush() {
	r.calc.Flush(r.state)
	r.taken = append(r.taken, step{})
}

// log is what happened so far.
func (r *run) log() string {
	var b strings.Builder
	for _, s := range r.taken {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// TestHistories compares, after every flush of 10,000 random histories, the
// state with one that is computed from scratch, and the keys that are dirty
// with what changed.
func TestHistories(t *testing.T) {
	start := seed(t)
	histories := 10_000
	if testing.Short() {
		histories = 500
	}
	for h := range histories {
		s := start + uint64(h)
		r := newRun(s)
		for range 1 + r.gen.IntN(8) {
			r.steps(5)
			before := rows(r.state)
			r.state.ClearDirty()
			r.flush()
			want := oracleState(testOptions, r.world)
			if diff := cmp.Diff(text(want), text(r.state)); diff != "" {
				t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n(-want +got):\n%s", s, r.log(), diff)
			}
			if diff := cmp.Diff(expectedDirty(before, r.state), dirtyRows(r.state)); diff != "" {
				t.Fatalf("TORTIE_TEST_SEED=%d\n%s\ndirty keys (-want +got):\n%s", s, r.log(), diff)
			}
		}
	}
}

// expectedDirty is what differs from before, and the programs of which a set
// came or went.
func expectedDirty(before map[string]string, d *desired.State) []string {
	after := rows(d)
	dirty := map[string]bool{}
	for row, v := range before {
		if w, ok := after[row]; !ok || v != w {
			dirty[row] = true
		}
	}
	for row := range after {
		if _, ok := before[row]; !ok {
			dirty[row] = true
		}
	}
	for id, p := range d.Programs.All() {
		for set := range setsOf(p) {
			for _, family := range []uint8{4, 6} {
				for _, ranges := range []bool{false, true} {
					k := desired.SetKey{ID: set, Family: family, Ranges: ranges}
					places := k
					places.Ports = true
					if dirty[rowSet(k)] || dirty[rowSet(places)] {
						dirty[rowProgram(id)] = true
					}
				}
			}
		}
	}
	out := make([]string, 0, len(dirty))
	for row := range dirty {
		out = append(out, row)
	}
	slices.Sort(out)
	if len(out) == 0 {
		return nil
	}
	return out
}

func setsOf(p desired.Program) map[desired.SetID]bool {
	out := map[desired.SetID]bool{}
	for _, st := range slices.Concat(p.Stages, p.Trial) {
		for _, r := range st.Rules {
			for _, id := range []desired.SetID{
				r.Source.Set, r.Source.NotSet, r.Source.Named, r.Source.NotNamed,
				r.Destination.Set, r.Destination.NotSet, r.Destination.Named, r.Destination.NotNamed,
			} {
				if id != 0 {
					out[id] = true
				}
			}
		}
	}
	return out
}

// TestReplays replays random histories in other orders and batches.
func TestReplays(t *testing.T) {
	start := seed(t)
	for h := range 200 {
		s := start + uint64(h)
		g := generator{Rand: rand.New(rand.NewPCG(s, 0))}
		var steps []step
		for range 30 {
			steps = append(steps, g.step())
			if g.oneIn(4) {
				steps = append(steps, step{})
			}
		}
		steps = append(steps, step{})
		want := text(oracleState(testOptions, worldAfter(steps)))
		for name, replay := range replays(steps, s) {
			c, d := calc.New(testOptions), desired.New()
			for _, st := range replay {
				st.do(c, d)
			}
			if diff := cmp.Diff(want, text(d)); diff != "" {
				t.Fatalf("TORTIE_TEST_SEED=%d, %s (-want +got):\n%s", s, name, diff)
			}
		}
	}
}
