package selector

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// labelSets has the label sets that tests match against.
func labelSets() []map[string]string {
	sets := []map[string]string{nil}
	for _, a := range []string{"", "x", "y", "xy"} {
		sets = append(sets, map[string]string{"a": a})
		for _, b := range []string{"", "x"} {
			sets = append(sets, map[string]string{"a": a, "b": b}, map[string]string{"b": b, "c": a})
		}
	}
	return sets
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "all()", "a == 'x' && !(b in {'x', \"y\",} || c starts with 'z')", "has(a)||global()",
		"a not in {} && b contains '' && !!c ends with 'q'", "((has(a)", "a == 'x\"'", "not in {'in'}",
	} {
		f.Add(s)
	}
	sets := labelSets()
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			return
		}
		checkCanonical(t, s)
		for _, labels := range sets {
			checkRequirements(t, s, labels)
		}
		if both := And(s, Equal("zz", in)); both.Match(map[string]string{"a": "x"}) {
			t.Fatalf("%s matches without label zz", both)
		}
	})
}

// expr is a selector written out by hand: its text and its meaning.
type expr struct {
	text string
	mean func(map[string]string) bool
}

// genExpr draws a selector, fully parenthesised, with its meaning built beside
// it from the truth tables.
func genExpr(t *rapid.T, depth int) expr {
	kind := rapid.IntRange(0, 13).Draw(t, "kind")
	if depth == 0 {
		kind %= 10
	}
	label := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "label")
	value := rapid.SampledFrom([]string{"", "x", "y", "xy"}).Draw(t, "value")
	other := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "other")
	on := func(text string, absent bool, present func(v string) bool) expr {
		return expr{text, func(l map[string]string) bool {
			if v, ok := l[label]; ok {
				return present(v)
			}
			return absent
		}}
	}
	has := func(v, part string, at int) bool {
		return len(v) >= at+len(part) && at >= 0 && v[at:at+len(part)] == part
	}
	switch kind {
	case 0:
		return expr{"all()", func(map[string]string) bool { return true }}
	case 1:
		return on("has("+label+")", false, func(string) bool { return true })
	case 2, 3:
		return on(fmt.Sprintf("%s == '%s'", label, value), false, func(v string) bool { return v == value })
	case 4:
		return on(fmt.Sprintf("%s != '%s'", label, value), true, func(v string) bool { return v != value })
	case 5:
		return on(fmt.Sprintf("%s in {'%s','%s'}", label, value, other), false, func(v string) bool { return v == value || v == other })
	case 6:
		return on(fmt.Sprintf("%s not in {'%s','%s'}", label, value, other), true, func(v string) bool { return v != value && v != other })
	case 7:
		return on(fmt.Sprintf("%s starts with '%s'", label, value), false, func(v string) bool { return has(v, value, 0) })
	case 8:
		return on(fmt.Sprintf("%s ends with '%s'", label, value), false, func(v string) bool { return has(v, value, len(v)-len(value)) })
	case 9:
		return on(fmt.Sprintf("%s contains '%s'", label, other), false, func(v string) bool { return has(v, other, 0) || has(v, other, 1) })
	}
	x := genExpr(t, depth-1)
	switch kind {
	case 10:
		return expr{"!(" + x.text + ")", func(l map[string]string) bool { return !x.mean(l) }}
	case 11:
		y := genExpr(t, depth-1)
		return expr{"(" + x.text + ") || (" + y.text + ")", func(l map[string]string) bool { return x.mean(l) || y.mean(l) }}
	default:
		y := genExpr(t, depth-1)
		return expr{"(" + x.text + ") && (" + y.text + ")", func(l map[string]string) bool { return x.mean(l) && y.mean(l) }}
	}
}

// TestMeaning holds random selectors against meanings built beside them.
func TestMeaning(t *testing.T) {
	sets := labelSets()
	rapid.Check(t, func(rt *rapid.T) {
		e := genExpr(rt, 4)
		s := parse(t, e.text)
		for _, labels := range sets {
			if got := s.Match(labels); got != e.mean(labels) {
				rt.Fatalf("%s (%s) matches %v: %v", e.text, s, labels, got)
			}
		}
	})
}

// TestRequirementsHold holds that whatever random selectors match meets their
// requirements, and that their canonical text is stable.
func TestRequirementsHold(t *testing.T) {
	sets := labelSets()
	rapid.Check(t, func(rt *rapid.T) {
		s := parse(t, genExpr(rt, 4).text)
		checkCanonical(t, s)
		for _, labels := range sets {
			checkRequirements(t, s, labels)
		}
	})
}

const benchText = `projectcalico.org/namespace == "openstack" && (role in {"db", "web"} || !has(tier)) && app starts with "shop"`

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(benchText); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	s := parse(b, benchText)
	labels := map[string]string{"projectcalico.org/namespace": "openstack", "role": "web", "app": "shop-front"}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Match(labels) {
			b.Fatal("no match")
		}
	}
}
