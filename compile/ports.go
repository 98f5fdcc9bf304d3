package compile

import (
	"slices"

	"tortie/desired"
)

// byPort makes the lists of a protocol that has ports. Rules for some ports come
// first in the list of a port, if there are many for all ports: what one of them
// matches is led to those of the others that come before it, and then meets its
// verdict. So these need not be repeated for each port.
type byPort struct {
	tree
	narrow []numbered // rules that name ports
	wide   []numbered // others, reduced
	rest   *desired.List
	behind map[int]*desired.List // by place of a narrow rule: what leads to its verdict
}

// lists fills the lists in, and reports whether they are not too much.
func (b *byPort) lists(d *desired.Dispatch) bool {
	most := mostRepeated * (len(b.narrow) + len(b.wide))
	b.behind = map[int]*desired.List{}
	few := len(b.wide) <= mostBeside
	if !few {
		b.rest = b.list(b.wide)
	}
	split := b.narrow
	if few {
		split = slices.Concat(b.narrow, b.wide)
	}
	starts := portStarts(split)
	can := make([][]numbered, len(starts))
	for _, r := range b.narrow {
		for _, p := range r.Destination.Ports {
			at, _ := slices.BinarySearch(starts, p.Min)
			for ; at < len(starts) && starts[at] <= p.Max; at++ {
				if n := len(can[at]); n == 0 || can[at][n-1].at != r.at {
					can[at] = append(can[at], r)
				}
			}
		}
	}
	var before []numbered
	whole := false // before has all rules that can match
	for i, start := range starts {
		here := region{}
		here.Destination.Ports = []desired.PortRange{{Min: start, Max: 65535}}
		if i+1 < len(starts) {
			here.Destination.Ports[0].Max = starts[i+1] - 1
		}
		rules := reduce(here.within(can[i]))
		all := few || slices.ContainsFunc(rules, func(r numbered) bool { return r.Verdict == desired.Log })
		if all {
			rules = slices.Concat(here.within(can[i]), here.within(b.wide))
			slices.SortStableFunc(rules, func(x, y numbered) int { return x.at - y.at })
			rules = reduce(rules)
		}
		if i > 0 && all == whole && slices.EqualFunc(rules, before, same) {
			continue
		}
		before, whole = rules, all
		d.Starts = append(d.Starts, start)
		if all {
			d.Lists = append(d.Lists, &desired.List{Steps: b.steps(rules)})
		} else {
			d.Lists = append(d.Lists, b.port(rules))
		}
		if b.size > most {
			return false
		}
	}
	return true
}

// port makes the list of a port that the narrow rules match.
func (b *byPort) port(rules []numbered) *desired.List {
	if len(rules) == 0 {
		return b.rest
	}
	out := &desired.List{Steps: b.steps(rules), Rest: b.rest.Rest}
	for i, r := range rules {
		out.Steps[i].To = b.before(r.at)
	}
	// The rest begins by telling families apart: that is done here.
	out.Steps = append(out.Steps, b.rest.Steps...)
	b.size += len(b.rest.Steps)
	return out
}

// before is what decides a connection that the narrow rule matches; nil if only
// that does.
func (b *byPort) before(at int) *desired.List {
	if l, ok := b.behind[at]; ok {
		return l
	}
	i := slices.IndexFunc(b.narrow, func(r numbered) bool { return r.at == at })
	here := region{Rule: b.narrow[i].Rule}
	var rules []numbered
	open := true
	for _, w := range b.wide {
		if w.at > at || !open {
			break
		}
		if left, ok := here.given(w.Rule); ok {
			rules = append(rules, numbered{left, w.at})
			open = left.Verdict == desired.Log || !unconditional(&left) || left.Family != 0
		}
	}
	if open && len(rules) == 0 {
		b.behind[at] = nil
		return nil
	}
	if open {
		last := desired.Rule{ID: here.ID, Verdict: here.Verdict, Note: here.Note}
		rules = append(rules, numbered{last, at})
	}
	l := &desired.List{Steps: b.steps(rules)}
	b.behind[at] = l
	return l
}

// portStarts are the ports at which what can match changes: no range of a rule
// begins or ends between two of them.
func portStarts(rules []numbered) []uint16 {
	out := []uint16{0}
	for i := range rules {
		d := &rules[i].Destination
		for _, p := range slices.Concat(d.Ports, d.NotPorts) {
			out = append(out, p.Min)
			if p.Max < 65535 {
				out = append(out, p.Max+1)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
