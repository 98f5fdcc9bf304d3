package compile

import (
	"slices"

	"tortie/desired"
)

// Loosens reports whether every connection that old allows is certain to be
// allowed by v too, so that what was judged before need not be judged again.
// It may report false where that is so, never true where it is not.
func Loosens(old, v desired.Program) bool {
	return slices.EqualFunc(old.Stages, v.Stages, func(a, b desired.Stage) bool {
		return (a.End == b.End || b.End == desired.Next) && loosens(a.Rules, b.Rules)
	})
}

// loosens compares the rules of one stage. A new Allow rule takes connections
// only from rules that it is more liberal than, and a connection that was
// allowed never met a Deny rule that is gone.
func loosens(old, v []desired.Rule) bool {
	for len(old) > 0 || len(v) > 0 {
		switch {
		case len(old) > 0 && len(v) > 0 && old[0].Same(v[0]):
			old, v = old[1:], v[1:]
		case len(v) > 0 && (v[0].Verdict == desired.Allow || v[0].Verdict == desired.Log):
			v = v[1:]
		case len(old) > 0 && (old[0].Verdict == desired.Deny || old[0].Verdict == desired.Log):
			old = old[1:]
		default:
			return false
		}
	}
	return true
}
