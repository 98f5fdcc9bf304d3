package compile

import (
	"slices"

	"tortie/desired"
)

// Loosens reports whether every connection that old allows is certain to be
// allowed by v too, so that what was judged before need not be judged again.
// It may report false where that is so, never true where it is not.
func Loosens(old, v desired.Program) bool {
	// Stages that v adds at its end decide what old denied.
	if len(v.Stages) < len(old.Stages) {
		return false
	}
	return slices.EqualFunc(old.Stages, v.Stages[:len(old.Stages)], func(a, b desired.Stage) bool {
		return a.View == b.View && (a.End == b.End || a.End == desired.Deny && b.End == desired.Next) && loosens(a.Rules, b.Rules)
	})
}

// loosens compares the rules of one stage. Two changes are more liberal: an
// Allow rule that comes, and a Deny rule that goes, which no connection that
// was allowed ever met. Log rules decide nothing.
func loosens(old, v []desired.Rule) bool {
	for len(v) > 0 {
		// Up to where v goes on like old, only Deny rules may have gone.
		i := 0
		for i < len(old) && !old[i].Same(v[0]) && mayGo(old[i]) {
			i++
		}
		switch {
		case i < len(old) && old[i].Same(v[0]):
			old, v = old[i+1:], v[1:]
		case v[0].Verdict == desired.Allow || v[0].Verdict == desired.Log:
			v = v[1:]
		default:
			return false
		}
	}
	return !slices.ContainsFunc(old, func(r desired.Rule) bool { return !mayGo(r) })
}

func mayGo(r desired.Rule) bool { return r.Verdict == desired.Deny || r.Verdict == desired.Log }
