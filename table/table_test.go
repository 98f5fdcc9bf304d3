package table

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		{"clear again", func() bool { tab.Clear(); return true }, true, nil},
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
	for _, k := range []string{"a", "b", "c"} {
		tab.Set(k, 1)
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
	if n != 2 {
		t.Errorf("%d iterations", n)
	}
}
