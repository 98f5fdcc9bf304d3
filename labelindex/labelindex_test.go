package labelindex

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tortie/api"
	"tortie/selector"
)

func wep(name string) api.Key {
	return api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "openstack", Name: name}
}

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func sel(t testing.TB, s string) *selector.Selector {
	t.Helper()
	parsed, err := selector.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// text takes the changes of an index as sorted lines.
func text(x *Index) []string {
	var lines []string
	for c := range x.Changes() {
		sign := "-"
		if c.Add {
			sign = "+"
		}
		lines = append(lines, fmt.Sprintf("%d %s%s", c.Selector, sign, c.Prefix))
	}
	slices.Sort(lines)
	return lines
}

func expect(t *testing.T, x *Index, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, text(x)); diff != "" {
		t.Fatalf("changes, -want +got\n%s", diff)
	}
	if more := text(x); more != nil {
		t.Fatalf("changes are delivered again: %v", more)
	}
}

// Promise S8: membership follows the labels of endpoints by itself.
func TestMembershipFollowsLabels(t *testing.T) {
	x := New()
	web, db := map[string]string{"role": "web"}, map[string]string{"role": "db"}
	x.SetItem(wep("a"), web, prefixes("10.0.0.1/32", "fd00::1/128"))
	x.SetItem(wep("b"), db, prefixes("10.0.0.2/32", "fd00::2/128"))
	expect(t, x)
	x.SetSelector(1, sel(t, "role == 'web'"))
	x.SetSelector(2, sel(t, "has(role)"))
	expect(t, x, "1 +10.0.0.1/32", "1 +fd00::1/128",
		"2 +10.0.0.1/32", "2 +10.0.0.2/32", "2 +fd00::1/128", "2 +fd00::2/128")
	x.SetItem(wep("b"), web, prefixes("10.0.0.2/32", "fd00::2/128"))
	expect(t, x, "1 +10.0.0.2/32", "1 +fd00::2/128")
	x.SetItem(wep("a"), db, prefixes("10.0.0.1/32", "fd00::9/128"))
	expect(t, x, "1 -10.0.0.1/32", "1 -fd00::1/128", "2 +fd00::9/128", "2 -fd00::1/128")
	x.SetItem(wep("a"), web, prefixes("10.0.0.1/32"))
	x.SetItem(wep("a"), db, prefixes("fd00::9/128", "10.0.0.1/32", "10.0.0.1/32"))
	expect(t, x)
	x.DeleteItem(wep("a"))
	x.DeleteItem(wep("nobody"))
	x.DeleteSelector(1)
	expect(t, x, "1 -10.0.0.2/32", "1 -fd00::2/128", "2 -10.0.0.1/32", "2 -fd00::9/128")
	x.DeleteSelector(1)
	expect(t, x)
}

func TestSelectorComesAndGoes(t *testing.T) {
	x := New()
	x.SetItem(wep("a"), map[string]string{"r": "x"}, prefixes("10.0.0.1/32", "10.1.0.0/16", "fd00::1/128", "fd01::/64"))
	x.SetSelector(1, sel(t, "r == 'x'"))
	x.DeleteSelector(1)
	expect(t, x)
	x.SetSelector(1, sel(t, "r == 'x'"))
	x.SetSelector(1, sel(t, "r == 'x'"))
	expect(t, x, "1 +10.0.0.1/32", "1 +10.1.0.0/16", "1 +fd00::1/128", "1 +fd01::/64")
	x.DeleteSelector(1)
	x.SetItem(wep("a"), map[string]string{"r": "x"}, prefixes("10.0.0.2/32", "10.2.0.0/16", "fd00::1/128", "fd01::/64"))
	x.SetSelector(1, sel(t, "r == 'x'"))
	expect(t, x, "1 +10.0.0.2/32", "1 +10.2.0.0/16", "1 -10.0.0.1/32", "1 -10.1.0.0/16")
	x.SetItem(wep("a"), map[string]string{"r": "x"}, prefixes("10.0.0.3/32", "10.3.0.0/16"))
	x.DeleteSelector(1)
	expect(t, x, "1 -10.0.0.2/32", "1 -10.2.0.0/16", "1 -fd00::1/128", "1 -fd01::/64")
}

func TestSharedAddress(t *testing.T) {
	x := New()
	web := map[string]string{"role": "web"}
	for _, name := range []string{"a", "b", "c"} {
		x.SetItem(wep(name), web, prefixes("10.0.0.1/32", "fd00::1/128"))
	}
	x.SetItem(wep("d"), map[string]string{"role": "db"}, prefixes("10.0.0.1/32", "fd00::1/128"))
	x.SetSelector(1, sel(t, "role == 'web'"))
	expect(t, x, "1 +10.0.0.1/32", "1 +fd00::1/128")
	x.DeleteItem(wep("a"))
	x.SetItem(wep("b"), nil, prefixes("10.0.0.1/32", "fd00::1/128"))
	expect(t, x)
	x.SetSelector(2, sel(t, "!has(x)"))
	expect(t, x, "2 +10.0.0.1/32", "2 +fd00::1/128")
	x.DeleteItem(wep("c"))
	expect(t, x, "1 -10.0.0.1/32", "1 -fd00::1/128")
	x.DeleteItem(wep("b"))
	expect(t, x)
	x.DeleteItem(wep("d"))
	expect(t, x, "2 -10.0.0.1/32", "2 -fd00::1/128")
}

func TestBrokenOffIterationDeliversNothing(t *testing.T) {
	x := New()
	x.SetSelector(1, selector.All())
	x.SetItem(wep("a"), nil, prefixes("10.0.0.1/32", "10.0.0.2/32", "fd00::/8"))
	for range x.Changes() {
		break
	}
	expect(t, x, "1 +10.0.0.1/32", "1 +10.0.0.2/32", "1 +fd00::/8")
}

func TestRanges(t *testing.T) {
	x := New()
	x.SetSelector(1, selector.All())
	put := func(name string, ps ...string) { x.SetItem(wep(name), nil, prefixes(ps...)) }
	put("a", "10.0.0.0/24", "fd00::/64")
	expect(t, x, "1 +10.0.0.0/24", "1 +fd00::/64")
	put("b", "10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24", "fd00::/65", "10.0.0.7/32", "10.0.0.9/24")
	expect(t, x, "1 +10.0.0.7/32", "1 +10.0.1.0/24") // single addresses are apart from ranges
	x.DeleteItem(wep("a"))
	expect(t, x, "1 +fd00::/65", "1 -fd00::/64") // b has 10.0.0.9/24, which is 10.0.0.0/24
}

func TestRangesNested(t *testing.T) {
	x := New()
	x.SetSelector(1, selector.All())
	put := func(name string, ps ...string) { x.SetItem(wep(name), nil, prefixes(ps...)) }
	put("fine", "10.0.0.0/26", "10.0.0.64/26", "192.0.2.0/24", "2001:db8::/48", "fd00::/64")
	expect(t, x, "1 +10.0.0.0/26", "1 +10.0.0.64/26", "1 +192.0.2.0/24", "1 +2001:db8::/48", "1 +fd00::/64")
	put("wide", "10.0.0.0/8", "2001:db8::/32")
	expect(t, x, "1 +10.0.0.0/8", "1 +2001:db8::/32", "1 -10.0.0.0/26", "1 -10.0.0.64/26", "1 -2001:db8::/48")
	put("all", "0.0.0.0/0", "::/0")
	expect(t, x, "1 +0.0.0.0/0", "1 +::/0", "1 -10.0.0.0/8", "1 -192.0.2.0/24", "1 -2001:db8::/32", "1 -fd00::/64")
	put("all2", "0.0.0.0/0", "::/0")
	x.DeleteItem(wep("wide"))
	x.DeleteItem(wep("all"))
	expect(t, x)
	put("all2", "::/0")
	expect(t, x, "1 +10.0.0.0/26", "1 +10.0.0.64/26", "1 +192.0.2.0/24", "1 -0.0.0.0/0")
	x.DeleteItem(wep("all2"))
	expect(t, x, "1 +2001:db8::/48", "1 +fd00::/64", "1 -::/0")
}

// world is the reference: what an index was told, and what it delivered.
type world struct {
	items     map[api.Key]thing
	selectors map[uint64]*selector.Selector
	delivered map[uint64]map[netip.Prefix]bool
}

type thing struct {
	labels   map[string]string
	prefixes []netip.Prefix
}

func newWorld() *world {
	return &world{map[api.Key]thing{}, map[uint64]*selector.Selector{}, map[uint64]map[netip.Prefix]bool{}}
}

// members computes what a selector selects from nothing.
func (w *world) members(s *selector.Selector) map[netip.Prefix]bool {
	all := map[netip.Prefix]bool{}
	for _, it := range w.items {
		if s.Match(it.labels) {
			for _, p := range it.prefixes {
				all[p.Masked()] = true
			}
		}
	}
	members := map[netip.Prefix]bool{}
	for p := range all {
		covered := false
		for q := range all {
			covered = covered || !p.IsSingleIP() && q.Bits() < p.Bits() && q.Overlaps(p)
		}
		if !covered {
			members[p] = true
		}
	}
	return members
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatalf(string, ...any)
}

// check applies the changes and compares the outcome with the reference.
func (w *world) check(t failer, x *Index) {
	t.Helper()
	type member struct {
		id uint64
		p  netip.Prefix
	}
	seen := map[member]bool{}
	for c := range x.Changes() {
		if w.delivered[c.Selector] == nil {
			w.delivered[c.Selector] = map[netip.Prefix]bool{}
		}
		m := member{c.Selector, c.Prefix}
		if seen[m] || w.delivered[c.Selector][c.Prefix] == c.Add {
			t.Fatalf("void change %v, seen before: %v", c, seen[m])
		}
		seen[m] = true
		if c.Add {
			w.delivered[c.Selector][c.Prefix] = true
		} else if delete(w.delivered[c.Selector], c.Prefix); len(w.delivered[c.Selector]) == 0 {
			delete(w.delivered, c.Selector)
		}
	}
	want := map[uint64]map[netip.Prefix]bool{}
	for id, s := range w.selectors {
		if m := w.members(s); len(m) > 0 {
			want[id] = m
		}
	}
	if !maps.EqualFunc(want, w.delivered, maps.Equal[map[netip.Prefix]bool, map[netip.Prefix]bool]) {
		t.Fatalf("delivered %v, want %v", w.delivered, want)
	}
}

var historySelectors = []string{
	"all()", "!all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "b == 'x'", "a == 'x' && b == 'y'",
	"a in {'x', 'y'}", "a in {}", "a not in {'x'}", "a == 'x' || b == 'x'", "has(a) && has(c)",
	"a starts with 'x' && has(b)", "a == 'x' || a == 'z'", "c == 'never'", "has(never)",
}

var historyPrefixes = []string{
	"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00::1/128", "fd00::2/128", "0.0.0.0/0", "::/0", "::/128", "0.0.0.0/32",
	"10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.0.0/31", "10.0.0.77/30", "10.128.0.0/9",
	"fd00::/8", "fd00::/64", "fd00::/65", "fd00:0:0:0:8000::/65", "fd00::/127", "2001:db8::/33", "2001:db8:8000::/33",
	"::ffff:10.0.0.1/128", "::ffff:10.0.0.0/120", "128.0.0.0/1", "8000::/1",
}

// history drives an index and the reference through random changes.
func history(t *rapid.T) {
	x, w := New(), newWorld()
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	value := rapid.SampledFrom([]string{"x", "y", "z"})
	label := rapid.SampledFrom([]string{"a", "b", "c"})
	steps := rapid.IntRange(1, 60).Draw(t, "steps")
	for range steps {
		switch rapid.IntRange(0, 9).Draw(t, "step") {
		case 0, 1, 2, 3:
			it := thing{labels: rapid.MapOfN(label, value, 0, 3).Draw(t, "labels")}
			for _, s := range rapid.SliceOfN(rapid.SampledFrom(historyPrefixes), 0, 5).Draw(t, "prefixes") {
				it.prefixes = append(it.prefixes, netip.MustParsePrefix(s))
			}
			k := wep(name.Draw(t, "name"))
			w.items[k] = it
			x.SetItem(k, it.labels, it.prefixes)
		case 4:
			k := wep(name.Draw(t, "name"))
			delete(w.items, k)
			x.DeleteItem(k)
		case 5, 6:
			i := rapid.IntRange(0, len(historySelectors)-1).Draw(t, "selector")
			s, err := selector.Parse(historySelectors[i])
			if err != nil {
				t.Fatal(err)
			}
			w.selectors[uint64(i)] = s
			x.SetSelector(uint64(i), s)
		case 7:
			i := uint64(rapid.IntRange(0, len(historySelectors)-1).Draw(t, "selector"))
			delete(w.selectors, i)
			x.DeleteSelector(i)
		default:
			w.check(t, x)
		}
	}
	w.check(t, x)
	for k := range w.items {
		x.DeleteItem(k)
		delete(w.items, k)
	}
	for id := range w.selectors {
		x.DeleteSelector(id)
		delete(w.selectors, id)
	}
	w.check(t, x)
	checkEmpty(t, x)
}

// checkEmpty looks into an index from which everything was deleted.
func checkEmpty(t failer, x *Index) {
	t.Helper()
	counts := []int{
		len(x.items.all) - len(x.items.free), len(x.groups.all) - len(x.groups.free),
		len(x.groups.keys.all) - len(x.groups.keys.free), len(x.groups.pairs.all) - len(x.groups.pairs.free),
		len(x.slots.all) - len(x.slots.free), len(x.byKey), len(x.groups.bySet), len(x.groups.byName),
		len(x.groups.byPair), len(x.byID), len(x.requires.byValue), len(x.requires.byLabel), len(x.requires.always),
		len(x.holders.v4), len(x.holders.v6), len(x.holders.more),
		len(x.touched), len(x.turning), len(x.reranged), x.delivered,
	}
	if slices.Max(counts) != 0 || slices.Min(counts) != 0 {
		t.Fatalf("left behind: %v", counts)
	}
}

// Promise S8: at rest the members equal those of a computation from nothing.
func TestRandomHistory(t *testing.T) { rapid.Check(t, history) }

func FuzzHistory(f *testing.F) { f.Fuzz(rapid.MakeFuzz(history)) }

func TestNothingLeft(t *testing.T) {
	x := New()
	x.SetSelector(1, sel(t, "a == 'x' || b in {'y'}"))
	x.SetSelector(2, sel(t, "a in {'x', 'y'}"))
	x.SetSelector(3, sel(t, "has(b)"))
	for i := range 100 {
		p := prefixes(fmt.Sprintf("10.0.0.%d/32", i/2), fmt.Sprintf("10.%d.0.0/16", i/2), fmt.Sprintf("fd00::%x/128", i/2))
		x.SetItem(wep(fmt.Sprint(i)), map[string]string{"a": "x", "b": fmt.Sprint(i % 7)}, p)
	}
	if got := len(text(x)); got != 3*150 {
		t.Fatalf("%d changes, want 450", got)
	}
	for id := range uint64(4) {
		x.DeleteSelector(id)
	}
	for i := range 100 {
		x.DeleteItem(wep(fmt.Sprint(i)))
	}
	if got := len(text(x)); got != 3*150 {
		t.Fatalf("%d changes back, want 450", got)
	}
	checkEmpty(t, x)
}
