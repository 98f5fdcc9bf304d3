package table

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func sameInt(a, b int) bool { return a == b }

func sortedKeys(seq func(func(string) bool)) []string {
	return slices.Sorted(seq)
}

func TestTableRemembersChangedKeys(t *testing.T) {
	tab := New[string](sameInt)
	steps := []struct {
		name  string
		do    func() bool
		want  bool
		dirty []string
	}{
		{"a new key", func() bool { return tab.Set("a", 1) }, true, []string{"a"}},
		{"another", func() bool { return tab.Set("b", 1) }, true, []string{"a", "b"}},
		{"clear", func() bool { tab.Clear(); return true }, true, nil},
		{"an equal value", func() bool { return tab.Set("a", 1) }, false, nil},
		{"another value", func() bool { return tab.Set("a", 2) }, true, []string{"a"}},
		{"clear one key", func() bool { tab.ClearKey("a"); return true }, true, nil},
		{"delete what is not there", func() bool { return tab.Delete("x") }, false, nil},
		{"delete", func() bool { return tab.Delete("b") }, true, []string{"b"}},
		{"touch", func() bool { tab.Touch("a"); return true }, true, []string{"a", "b"}},
	}
	for _, s := range steps {
		if got := s.do(); got != s.want {
			t.Errorf("%s: changed = %v", s.name, got)
		}
		if diff := cmp.Diff(s.dirty, sortedKeys(tab.Dirty())); diff != "" {
			t.Errorf("%s: dirty keys (-want +got):\n%s", s.name, diff)
		}
		if tab.DirtyLen() != len(s.dirty) {
			t.Errorf("%s: DirtyLen = %d", s.name, tab.DirtyLen())
		}
	}
	if diff := cmp.Diff(map[string]int{"a": 2}, maps.Collect(tab.All())); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	if v, ok := tab.Get("a"); v != 2 || !ok || tab.Len() != 1 {
		t.Errorf("Get = %d, %v; Len = %d", v, ok, tab.Len())
	}
}

func TestIterationStops(t *testing.T) {
	tab := New[string](sameInt)
	d := NewDelta[string](sameInt)
	for _, k := range []string{"a", "b", "c"} {
		tab.Set(k, 1)
		d.Want(k, 1)
	}
	n := 0
	for range tab.All() {
		n++
		break
	}
	for range tab.Dirty() {
		n++
		break
	}
	for range d.Pending() {
		n++
		break
	}
	if n != 3 {
		t.Errorf("%d iterations", n)
	}
}

// A delta's pending keys are those under which the two sides differ, whatever
// happened before.
func TestDeltaPending(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := NewDelta[string](sameInt)
		want, have := map[string]int{}, map[string]int{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			k := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key")
			v := rapid.IntRange(0, 2).Draw(t, "value")
			switch rapid.IntRange(0, 4).Draw(t, "operation") {
			case 0:
				d.Want(k, v)
				want[k] = v
			case 1:
				d.Unwant(k)
				delete(want, k)
			case 2:
				d.Have(k, v)
				have[k] = v
			case 3:
				d.Gone(k)
				delete(have, k)
			case 4:
				have = map[string]int{k: v}
				d.ReadBack(have)
			}
			var differ []string
			for _, k := range []string{"a", "b", "c", "d"} {
				w, wanted := want[k]
				h, there := have[k]
				if wanted != there || w != h {
					differ = append(differ, k)
				}
				if got, ok := d.Wanted(k); got != w || ok != wanted {
					t.Fatalf("Wanted(%s) = %d, %v", k, got, ok)
				}
				if got, ok := d.There(k); got != h || ok != there {
					t.Fatalf("There(%s) = %d, %v", k, got, ok)
				}
			}
			if diff := cmp.Diff(differ, sortedKeys(d.Pending())); diff != "" {
				t.Fatalf("pending keys (-want +got):\n%s", diff)
			}
			if d.PendingLen() != len(differ) {
				t.Fatalf("PendingLen = %d", d.PendingLen())
			}
		}
	})
}

// A writer may settle keys while it works through them.
func TestDeltaSettle(t *testing.T) {
	d := NewDelta[int](sameInt)
	for i := range 100 {
		d.Want(i, i)
	}
	for k := range d.Pending() {
		v, _ := d.Wanted(k)
		if k%10 != 0 { // every tenth fails
			d.Have(k, v)
		}
	}
	if d.PendingLen() != 10 {
		t.Errorf("%d keys pending, want 10", d.PendingLen())
	}
}
