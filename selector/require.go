package selector

import "slices"

// require returns what a label set must meet to make n true, or, if neg is
// set, to make n false.
func (n *node) require(neg bool) []Requirement {
	switch n.op {
	case opNot:
		return n.kids[0].require(!neg)
	case opAnd:
		return n.requireKids(neg, !neg)
	case opOr:
		return n.requireKids(neg, neg)
	}
	switch {
	case !neg && n.op == opEqual, neg && n.op == opNotEqual:
		return []Requirement{{n.label, []string{n.value}}}
	case !neg && n.op == opIn, neg && n.op == opNotIn:
		return []Requirement{{n.label, append([]string{}, n.values...)}}
	case !neg && (n.op == opHas || n.op == opContains || n.op == opStartsWith || n.op == opEndsWith):
		return []Requirement{{n.label, nil}}
	}
	return nil
}

// requireKids combines the requirements of the kids: of all of them if every
// kid must hold, else what is common to them.
func (n *node) requireKids(neg, every bool) []Requirement {
	reqs := n.kids[0].require(neg)
	for _, k := range n.kids[1:] {
		if more := k.require(neg); every {
			reqs = both(reqs, more)
		} else {
			reqs = either(reqs, more)
		}
		if !every && len(reqs) == 0 {
			break
		}
	}
	return reqs
}

func both(a, b []Requirement) []Requirement {
	for _, r := range b {
		i := slices.IndexFunc(a, func(q Requirement) bool { return q.Label == r.Label })
		switch {
		case i < 0:
			a = append(a, r)
		case a[i].Values == nil:
			a[i].Values = r.Values
		case r.Values != nil:
			a[i].Values = slices.DeleteFunc(a[i].Values, func(v string) bool {
				return !slices.Contains(r.Values, v)
			})
		}
	}
	return a
}

func either(a, b []Requirement) []Requirement {
	var common []Requirement
	for _, r := range b {
		i := slices.IndexFunc(a, func(q Requirement) bool { return q.Label == r.Label })
		switch {
		case i < 0:
			continue
		case a[i].Values == nil || r.Values == nil:
			r.Values = nil
		default:
			// Not slices.Concat: what is empty must not become nil.
			r.Values = append(r.Values, a[i].Values...)
			slices.Sort(r.Values)
			r.Values = slices.Compact(r.Values)
		}
		common = append(common, r)
	}
	return common
}
