package compile

import (
	"fmt"
	"slices"
	"strings"
	"weak"

	"tortie/desired"
)

const (
	// leastPart is how many rules of policies that are for the same endpoints make a
	// part of a stage: other programs have it too.
	leastPart = 64

	// mostParts is in how many parts a stage is at most: each is led to in turn.
	mostParts = 4
)

// split divides a stage into parts that decide one after the other. Policies in a
// row that are for the same endpoints, and many, are a part, so that programs that
// have them in common have lists in common, whatever else each has. What a rule
// passes on leaves the stage, and so must be in the last part.
func split(s Stage) []Stage {
	if len(s.Who) != len(s.Policies) || s.View != desired.Translated {
		return []Stage{s}
	}
	var starts []int // of parts
	for i := 0; i < len(s.Policies); {
		end, rules := i, 0
		for ; end < len(s.Policies) && s.Who[end] == s.Who[i]; end++ {
			rules += len(s.Policies[end])
		}
		if rules >= leastPart {
			starts = append(starts, i, end)
		}
		i = end
	}
	starts = slices.Compact(append([]int{0}, append(starts, len(s.Policies))...))
	if len(starts) <= 2 || len(starts)-1 > mostParts {
		return []Stage{s}
	}
	var parts []Stage
	for i, start := range starts[:len(starts)-1] {
		p := s
		p.Policies, p.Who = s.Policies[start:starts[i+1]], s.Who[start:starts[i+1]]
		if i < len(starts)-2 {
			p.End = desired.Next
			if slices.ContainsFunc(p.Policies, passes) {
				return []Stage{s}
			}
		}
		parts = append(parts, p)
	}
	return parts
}

func passes(rules []desired.Rule) bool {
	return slices.ContainsFunc(rules, func(r desired.Rule) bool { return r.Verdict == desired.Next })
}

// Part is a stage that was made, or a part of one, and what it was made of.
type Part struct {
	of    Stage
	stage desired.Stage
	next  fams
}

// Cache remembers the parts of programs while somebody has them, so that what
// programs have in common is made once.
type Cache struct {
	parts map[string]weak.Pointer[Part]
	limit int // of parts, before those that nobody has are forgotten
}

// Program is Program from remembered parts. Who keeps the parts keeps them
// remembered. Stages must not change, nor the rules in them.
func (c *Cache) Program(stages []Stage) (desired.Program, []*Part) {
	var used []*Part
	p := program(stages, func(s Stage, open fams) (desired.Stage, fams) {
		made := c.part(s, open)
		used = append(used, made)
		return made.stage, made.next
	})
	return p, used
}

func (c *Cache) part(s Stage, open fams) *Part {
	var b strings.Builder
	fmt.Fprint(&b, s.Name, s.View, s.End, s.EndID, open)
	for _, rules := range s.Policies {
		if len(rules) > 0 { // the part has them, so that nothing else comes to be there
			fmt.Fprintf(&b, " %p.%d", &rules[0], len(rules))
		}
	}
	key := b.String()
	if p := c.parts[key].Value(); p != nil {
		return p
	}
	p := &Part{of: s}
	p.stage, p.next = stage(s, open)
	if len(c.parts) >= c.limit {
		for k, w := range c.parts {
			if w.Value() == nil {
				delete(c.parts, k)
			}
		}
		c.limit = 2*len(c.parts) + 64
	}
	if c.parts == nil {
		c.parts = map[string]weak.Pointer[Part]{}
	}
	c.parts[key] = weak.Make(p)
	return p
}
