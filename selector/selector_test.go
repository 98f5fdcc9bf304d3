package selector

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parse(t testing.TB, s string) *Selector {
	t.Helper()
	sel, err := Parse(s)
	if err != nil {
		t.Fatalf("Parse(%q): %v", s, err)
	}
	return sel
}

func TestParseCanonical(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "all()"},
		{" \t ", "all()"},
		{"all()", "all()"},
		{"all( \t)", "all()"},
		{"global( )", "global()"},
		{"has(a)", "has(a)"},
		{"has( a\t)", "has(a)"},
		{"a=='b'", `a == "b"`},
		{`a=="b"`, `a == "b"`},
		{"a == ''", `a == ""`},
		{`a == 'x"y'`, `a == 'x"y'`},
		{`a == "x'y"`, `a == "x'y"`},
		{`a == "x\"`, `a == "x\"`}, // no escapes
		{"a == \"x\ny\"", "a == \"x\ny\""},
		{"a\t!=\t'b'", `a != "b"`},
		{"a contains'b'", `a contains "b"`},
		{"a startswith 'b'", `a starts with "b"`},
		{"a starts \t with 'b'", `a starts with "b"`},
		{"a endswith 'b'", `a ends with "b"`},
		{"a ends  with'b'", `a ends with "b"`},
		{"a in{}", "a in {}"},
		{"a in { 'b' , \"a\" , 'b', }", `a in {"a", "b"}`},
		{"a notin {'x'}", `a not in {"x"}`},
		{"a not  in {'x'}", `a not in {"x"}`},
		{"a not in {'x'}&&b=='y'||has(c)", `(a not in {"x"} && b == "y") || has(c)`},
		{"has(a)&&(has(b)||has(c))", "has(a) && (has(b) || has(c))"},
		{"has(a)&&(has(b)&&has(c))", "has(a) && has(b) && has(c)"},
		{"((has(a)))", "has(a)"},
		{"! has(a)", "!has(a)"},
		{"!!has(a)", "has(a)"},
		{"!!!a=='b'", `!a == "b"`},
		{"!(!has(a))", "has(a)"},
		{"!(has(a)||has(b))&&has(c)", "!(has(a) || has(b)) && has(c)"},
		{"in == 'x'", `in == "x"`},
		{"in" + " in {'x'}", "in" + ` in {"x"}`},
		{"has == 'x'", `has == "x"`},
		{"all != 'x'", `all != "x"`},
		{"global contains 'x'", `global contains "x"`},
		{"not in {'x'}", `not in {"x"}`}, // the label not
		{"not notin {'x'}", "not" + ` not in {"x"}`},
		{"has(has)", "has(has)"},
		{"9._/-Z == 'x'", `9._/-Z == "x"`},
		{strings.Repeat("a", 512) + "=='x'", strings.Repeat("a", 512) + ` == "x"`},
	} {
		s := parse(t, c.in)
		if got := s.String(); got != c.want {
			t.Errorf("Parse(%q) prints %s, want %s", c.in, got, c.want)
		}
		checkCanonical(t, s)
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a", "offset 1: expected ==, !=, in, not in, contains, starts with or ends with, found the end"},
		{"a = 'b'", "offset 2: expected =="},
		{"a not 'b'", "offset 2: expected =="},
		{"a starts 'b'", "offset 2: expected =="},
		{"a == b", `offset 5: expected a quoted string, found "b"`},
		{"a == 'b", "offset 7: expected the closing ', found the end"},
		{`a == "b'`, `offset 8: expected the closing ", found the end`},
		{"a in 'b'", "offset 5: expected {"},
		{"a in {'b'", "offset 9: expected }"},
		{"a in {'b' 'c'}", "offset 10: expected }"},
		{"a in {,}", "offset 6: expected a quoted string or }"},
		{"a in {'b',,}", "offset 10: expected a quoted string or }"},
		{"has(a", "offset 5: expected )"},
		{"has()", "offset 4: expected a label"},
		{"has (a)", "offset 4: expected ==, !=, in, not in, contains, starts with or ends with"},
		{"all ()", "offset 4: expected ==, !=, in, not in, contains, starts with or ends with"},
		{"all(a)", "offset 4: expected )"},
		{"(all()", "offset 6: expected )"},
		{"all())", "offset 5: expected &&, || or the end"},
		{"all() & all()", "offset 6: expected &&, || or the end"},
		{"all() &&", "offset 8: expected a label, has(), all(), global(), ! or (, found the end"},
		{"|| all()", "offset 0: expected a label"},
		{"!", "offset 1: expected a label"},
		{"()", "offset 1: expected a label"},
		{"all()\n", "offset 5: expected &&, || or the end"},
		{"\u00e9 == 'x'", "offset 0: expected a label"},
		{strings.Repeat("a", 513) + "=='x'", "offset 0: expected a label of at most 512 bytes"},
	} {
		s, err := Parse(c.in)
		if err == nil {
			t.Errorf("Parse(%q) = %s, want an error", c.in, s)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%q): %v, want %s", c.in, err, c.want)
		}
	}
}

func TestMatch(t *testing.T) {
	labels := map[string]string{"a": "foobar", "e": "", "q": `x"y`}
	for _, c := range []struct {
		in   string
		want bool
	}{
		{"", true},
		{"all()", true},
		{"global()", true},
		{"!all()", false},
		{"has(a)", true},
		{"has(e)", true},
		{"has(z)", false},
		{"a == 'foobar'", true},
		{"a == 'foo'", false},
		{"z == ''", false},
		{"e == ''", true},
		{"a != 'foobar'", false},
		{"a != 'x'", true},
		{"z != 'x'", true},
		{"z != ''", true},
		{"a contains 'oba'", true},
		{"a contains ''", true},
		{"a contains 'x'", false},
		{"z contains ''", false},
		{"a starts with 'foo'", true},
		{"a starts with 'bar'", false},
		{"z starts with ''", false},
		{"a ends with 'bar'", true},
		{"a ends with 'foo'", false},
		{"z ends with ''", false},
		{"a in {'x', 'foobar'}", true},
		{"a in {'x', 'y'}", false},
		{"a in {}", false},
		{"z in {''}", false},
		{"a not in {'x', 'foobar'}", false},
		{"a not in {'x'}", true},
		{"a not in {}", true},
		{"z not in {'x'}", true},
		{`q == 'x"y'`, true},
		{"!has(z) && has(a)", true},
		{"!(has(z) || has(a))", false},
		{"has(z) && has(a) || has(e)", true}, // && binds tighter
		{"has(e) || has(a) && has(z)", true},
		{"(has(e) || has(a)) && has(z)", false},
		{"!has(z) || has(z)", true}, // ! binds to one operation
		{"!a == 'x'", true},
		{"!!has(z)", false},
	} {
		if got := parse(t, c.in).Match(labels); got != c.want {
			t.Errorf("%q matches: %v, want %v", c.in, got, c.want)
		}
	}
	if !parse(t, "a != 'x'").Match(nil) || parse(t, "has(a)").Match(nil) {
		t.Error("no labels at all: not as for an absent label")
	}
}

func TestCombine(t *testing.T) {
	a, b := parse(t, "has(a) || has(b)"), parse(t, "has(c) && has(d)")
	for _, c := range []struct {
		got  *Selector
		want string
	}{
		{All(), "all()"},
		{And(a, b), "(has(a) || has(b)) && has(c) && has(d)"},
		{And(b, b), "has(c) && has(d) && has(c) && has(d)"},
		{And(All(), a), "has(a) || has(b)"},
		{And(a, All()), "has(a) || has(b)"},
		{And(parse(t, "global()"), b), "global() && has(c) && has(d)"},
		{Equal("n", "v"), `n == "v"`},
		{Equal("n", `v"`), `n == 'v"'`},
		{Equal("n", `v"'`), "n in {}"},
		{parse(t, "!(a == 'x' || has(b)) && all()").WithPrefix("pcns."), `!(pcns.a == "x" || has(pcns.b)) && all()`},
		{parse(t, "a in {'x'}").WithPrefix("p."), `p.a in {"x"}`},
	} {
		if c.got.String() != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
		checkCanonical(t, c.got)
	}
	if a.String() != "has(a) || has(b)" || b.String() != "has(c) && has(d)" {
		t.Errorf("And changed its arguments: %s, %s", a, b)
	}
}

func TestUsesGlobal(t *testing.T) {
	for in, want := range map[string]bool{
		"":                             false,
		"all()":                        false,
		"global == 'x'":                false,
		"a == 'global()'":              false,
		"global()":                     true,
		"!global()":                    true,
		"has(a) && (b=='c'||global())": true,
	} {
		if got := parse(t, in).UsesGlobal(); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestRequirements(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []Requirement
	}{
		{"", nil},
		{"global()", nil},
		{"!has(a)", nil},
		{"a != 'x'", nil},
		{"has(a)", []Requirement{{"a", nil}}},
		{"a == 'x'", []Requirement{{"a", []string{"x"}}}},
		{"!a != 'x'", []Requirement{{"a", []string{"x"}}}},
		{"a in {'y','x'}", []Requirement{{"a", []string{"x", "y"}}}},
		{"!(a not in {'x'})", []Requirement{{"a", []string{"x"}}}},
		{"a in {}", []Requirement{{"a", []string{}}}},
		{"a contains 'x' && b starts with 'y' && c ends with 'z'", []Requirement{{"a", nil}, {"b", nil}, {"c", nil}}},
		{"has(a) && a == 'x' && b != 'y'", []Requirement{{"a", []string{"x"}}}},
		{"a in {'x','y'} && a in {'y','z'}", []Requirement{{"a", []string{"y"}}}},
		{"a == 'x' && a == 'y'", []Requirement{{"a", []string{}}}},
		{"a == 'x' || b == 'y'", nil},
		{"a == 'x' || a == 'y'", []Requirement{{"a", []string{"x", "y"}}}},
		{"a == 'x' || has(a)", []Requirement{{"a", nil}}},
		{"a in {} || a in {}", []Requirement{{"a", []string{}}}},
		{"(a == 'x' && has(b)) || (a == 'y' && has(b) && has(c))", []Requirement{{"a", []string{"x", "y"}}, {"b", nil}}},
		{"!(a != 'x' || !has(b))", []Requirement{{"a", []string{"x"}}, {"b", nil}}},
		{"!(a != 'x' && a != 'y')", []Requirement{{"a", []string{"x", "y"}}}},
	} {
		if diff := cmp.Diff(c.want, parse(t, c.in).Requirements()); diff != "" {
			t.Errorf("%q: -want +got\n%s", c.in, diff)
		}
	}
}

// TestDepth checks that nesting has a bound, that it lies above what fits in
// 1024 bytes, and that long input without nesting has none.
func TestDepth(t *testing.T) {
	nest := func(n int) string { return strings.Repeat("(", n) + "has(a)" + strings.Repeat(")", n) }
	parse(t, nest((1024-len("has(a)"))/2))
	if _, err := Parse(nest(maxDepth + 1)); err == nil || !strings.Contains(err.Error(), "nested") {
		t.Errorf("too deep: %v", err)
	}
	if _, err := Parse(strings.Repeat("(", 10_000_000)); err == nil {
		t.Error("ten million parentheses are accepted")
	}
	long := parse(t, strings.Repeat("!", 1_000_000)+"has(a)"+strings.Repeat(" && has(a)", 100_000))
	if !long.Match(map[string]string{"a": ""}) {
		t.Error("the long selector does not match")
	}
}

// checkCanonical holds that s, its text, and what the text parses to are one.
func checkCanonical(t *testing.T, s *Selector) {
	t.Helper()
	again, err := Parse(s.String())
	if err != nil {
		t.Fatalf("canonical text %s does not parse: %v", s, err)
	}
	if diff := cmp.Diff(s, again, cmp.AllowUnexported(Selector{}, node{})); diff != "" {
		t.Fatalf("canonical text %s parses to another selector, -want +got\n%s", s, diff)
	}
}

// checkRequirements holds that labels, if matched, meet all requirements.
func checkRequirements(t *testing.T, s *Selector, labels map[string]string) {
	t.Helper()
	if !s.Match(labels) {
		return
	}
	for _, r := range s.Requirements() {
		v, ok := labels[r.Label]
		met := ok && r.Values == nil
		for _, w := range r.Values {
			met = met || ok && v == w
		}
		if !met {
			t.Fatalf("%s matches %v, which does not meet %v", s, labels, r)
		}
	}
}
