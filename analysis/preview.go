package analysis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// Change is connections that are allowed before or after a change, not both.
// All of From can open them to all of To; an endpoint's to itself, which no
// host sees, are not looked at where they alone would change.
type Change struct {
	Effect     string   `json:"effect"` // gained or lost
	IPVersions []int    `json:"ipVersions"`
	From       []string `json:"from"` // endpoints as NAMESPACE/NAME, or ranges of addresses that no endpoint has
	To         []string `json:"to"`
	Traffic    []string `json:"traffic"` // of each protocol, its ports; after "all but", what it is not
	By         Cause    `json:"by"`      // what decides after the change
	Before     Cause    `json:"before"`  // and before, at the same end
}

// Effects of a change.
const (
	Gained = "gained"
	Lost   = "lost"
)

// Cause is what decides.
type Cause struct {
	End    string           `json:"end"`            // source or destination: whose policy it is
	Rule   *explain.RuleRef `json:"rule,omitempty"` // nil if no rule decides
	Reason string           `json:"reason"`         // the rule in words, or what else decides
}

// row is a change before it is joined with others.
type row struct {
	lost       bool
	by, before reason
	set        space.Set
	version    int // 46 for both
	from, to   string
}

// Preview returns what changes from one state to another, lost connections
// first.
func Preview(before, after []api.Object) ([]Change, error) {
	u := newUniverse(before, after)
	pairs := map[row][]int{} // without to: the groups to which, by number
	for n, from := range u.groups {
		for m, to := range u.groups {
			if from.version == to.version && (!from.outside || !to.outside) && !u.unchanged(from, to) {
				u.compare(from, to, func(r row) {
					r.from = fmt.Sprint(n)
					pairs[r] = append(pairs[r], m)
				})
			}
		}
	}
	changes := u.changes(pairs)
	return changes, u.space.Err()
}

// unchanged reports that what decides between two groups is the same before
// and after.
func (u *universe) unchanged(from, to *group) bool {
	return from.steady() && to.steady() && from.sites[0].egress == from.sites[1].egress && to.sites[0].ingress == to.sites[1].ingress
}

// compare finds what changes between two groups.
func (u *universe) compare(from, to *group, found func(row)) {
	var ends [2][2][]outcome // by site and end
	var allowed [2]space.Set
	for i := range ends {
		ends[i] = [2][]outcome{u.decide(i, api.Egress, from, to), u.decide(i, api.Ingress, from, to)}
		allowed[i] = u.allowed(ends[i][0]).And(u.allowed(ends[i][1]))
	}
	for _, lost := range []bool{true, false} {
		open, shut := 1, 0 // where it is allowed, and where not
		if lost {
			open, shut = 0, 1
		}
		changed := allowed[open].Minus(allowed[shut])
		for end := range 2 {
			for _, denies := range ends[shut][end] {
				if denies.allow {
					continue
				}
				part := changed.And(denies.set)
				changed = changed.Minus(part)
				for _, allows := range ends[open][end] {
					set := part.And(allows.set)
					if set.IsEmpty() {
						continue
					}
					r := row{lost: lost, by: allows.why, before: denies.why, set: set, version: from.version}
					if lost {
						r.by, r.before = r.before, r.by
					}
					found(r)
				}
			}
		}
	}
}

func (u *universe) allowed(list []outcome) space.Set {
	set := u.space.None()
	for _, o := range list {
		if o.allow {
			set = set.Or(o.set)
		}
	}
	return set
}

// changes joins rows that differ in one thing alone: first groups that reach
// the same, then IP versions.
func (u *universe) changes(pairs map[row][]int) []Change {
	froms := map[row][]int{} // without from
	for r, to := range pairs {
		var n int
		_, _ = fmt.Sscan(r.from, &n) // printed above
		r.from, r.to = "", u.names(to)
		froms[r] = append(froms[r], n)
	}
	versions := map[row]bool{}
	for r, from := range froms {
		r.from = u.names(from)
		other := r
		other.version = 10 - r.version
		if r.version = 46; versions[other] {
			delete(versions, other)
		} else {
			r.version = 10 - other.version
		}
		versions[r] = true
	}
	var list []Change
	for r := range versions {
		c := Change{
			Effect: Gained, From: strings.Split(r.from, "\n"), To: strings.Split(r.to, "\n"), IPVersions: []int{r.version},
			Traffic: u.describe(r.set), By: r.by.cause(), Before: r.before.cause(),
		}
		if r.lost {
			c.Effect = Lost
		}
		if r.version == 46 {
			c.IPVersions = []int{4, 6}
		}
		if len(c.From) > 1 || len(c.To) > 1 || r.from != r.to {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Change) int {
		return cmp.Or(cmp.Compare(b.Effect, a.Effect), slices.Compare(a.From, b.From), slices.Compare(a.To, b.To),
			cmp.Compare(a.By.Reason, b.By.Reason), cmp.Compare(a.Before.Reason, b.Before.Reason), slices.Compare(a.IPVersions, b.IPVersions),
			slices.Compare(a.Traffic, b.Traffic))
	})
	return list
}

// names returns the members of groups, a line each, in order.
func (u *universe) names(groups []int) string {
	var list []string
	for _, n := range groups {
		list = append(list, u.groups[n].members...)
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), "\n")
}
