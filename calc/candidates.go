package calc

import (
	"tortie/api"
	"tortie/selector"
)

// candidates finds the policies that may select an endpoint without asking all
// of them: each is filed under one requirement of its selector.
type candidates struct {
	always set[*policy]                       // without a requirement
	label  map[string]set[*policy]            // that require a label
	valued map[string]map[string]set[*policy] // that require a label with a value
}

// place is where a policy is filed.
type place struct {
	label string // empty: in always
	any   bool   // in label, else in valued
	value string
}

func newCandidates() candidates {
	return candidates{
		always: set[*policy]{},
		label:  map[string]set[*policy]{},
		valued: map[string]map[string]set[*policy]{},
	}
}

func (c *candidates) add(p *policy) {
	p.places = c.choose(p.selector)
	for _, at := range p.places {
		switch {
		case at.label == "":
			c.always.add(p)
		case at.any:
			if c.label[at.label] == nil {
				c.label[at.label] = set[*policy]{}
			}
			c.label[at.label].add(p)
		default:
			values := c.valued[at.label]
			if values == nil {
				values = map[string]set[*policy]{}
				c.valued[at.label] = values
			}
			if values[at.value] == nil {
				values[at.value] = set[*policy]{}
			}
			values[at.value].add(p)
		}
	}
}

func (c *candidates) remove(p *policy) {
	for _, at := range p.places {
		switch {
		case at.label == "":
			delete(c.always, p)
		case at.any:
			if delete(c.label[at.label], p); len(c.label[at.label]) == 0 {
				delete(c.label, at.label)
			}
		default:
			values := c.valued[at.label]
			if delete(values[at.value], p); len(values[at.value]) == 0 {
				delete(values, at.value)
			}
			if len(values) == 0 {
				delete(c.valued, at.label)
			}
		}
	}
	p.places = nil
}

// choose returns the places of the requirement that has the fewest policies
// filed under it. A selector that can match nothing has no place. Of equals
// any label is better than the namespace, which many share.
func (c *candidates) choose(s *selector.Selector) []place {
	best, least := []place{{}}, -1
	for _, r := range s.Requirements() {
		var places []place
		count := 0
		if r.Values == nil {
			places = []place{{label: r.Label, any: true}}
			count = len(c.label[r.Label])
		}
		for _, v := range r.Values {
			places = append(places, place{label: r.Label, value: v})
			count += len(c.valued[r.Label][v])
		}
		if len(places) == 0 {
			return nil
		}
		if r.Label == api.LabelNamespace {
			count++
		}
		if least < 0 || count < least {
			best, least = places, count
		}
	}
	return best
}

// of calls f with the policies that may select an endpoint with these labels.
func (c *candidates) of(labels map[string]string, f func(*policy)) {
	for p := range c.always {
		f(p)
	}
	for k, v := range labels {
		for p := range c.label[k] {
			f(p)
		}
		for p := range c.valued[k][v] {
			f(p)
		}
	}
}
