package selector

import (
	"slices"
	"strings"
)

// Selector is a parsed selector; it is immutable and safe for concurrent use.
type Selector struct {
	root *node
	text string
}

// Requirement is a condition that every label set matched by a selector meets:
// Label is present and, where Values is not nil, has one of Values.
type Requirement struct {
	Label  string
	Values []string
}

type op uint8

const (
	opAll op = iota
	opGlobal
	opHas
	opEqual
	opNotEqual
	opContains
	opStartsWith
	opEndsWith
	opIn
	opNotIn
	opNot // one kid
	opAnd // two kids or more, none of them an opAnd
	opOr  // two kids or more, none of them an opOr
)

type node struct {
	op     op
	label  string
	value  string
	values []string // sorted, without repeats
	kids   []*node
}

func newSelector(n *node) *Selector { return &Selector{root: n, text: n.print()} }

var all = newSelector(&node{op: opAll})

// All returns the selector that matches everything.
func All() *Selector { return all }

// Equal returns the selector label == value. The language cannot write a value
// that has both kinds of quotes; the selector for it matches nothing.
func Equal(label, value string) *Selector {
	if strings.Contains(value, `"`) && strings.Contains(value, `'`) {
		return newSelector(&node{op: opIn, label: label})
	}
	return newSelector(&node{op: opEqual, label: label, value: value})
}

// In returns the selector label in values. It leaves out values that the
// language cannot write.
func In(label string, values []string) *Selector {
	n := &node{op: opIn, label: label}
	for _, v := range values {
		if !strings.Contains(v, `"`) || !strings.Contains(v, `'`) {
			n.values = append(n.values, v)
		}
	}
	slices.Sort(n.values)
	n.values = slices.Compact(n.values)
	return newSelector(n)
}

// And returns the selector that matches what both a and b match.
func And(a, b *Selector) *Selector {
	switch {
	case a.root.op == opAll:
		return b
	case b.root.op == opAll:
		return a
	}
	return newSelector(group(opAnd, []*node{a.root, b.root}))
}

// WithPrefix returns the selector with p before each of its labels. (A label
// that this makes longer than the language allows prints, but does not parse.)
func (s *Selector) WithPrefix(p string) *Selector { return newSelector(s.root.withPrefix(p)) }

// Match reports whether the selector matches the label set. global() is true,
// as all() is; what it restricts is for the caller to look up in UsesGlobal.
func (s *Selector) Match(labels map[string]string) bool {
	return s.root.match(func(label string) (string, bool) {
		v, ok := labels[label]
		return v, ok
	})
}

// MatchFunc is Match for a label set that get looks up.
func (s *Selector) MatchFunc(get func(label string) (value string, ok bool)) bool {
	return s.root.match(get)
}

// String returns the canonical text of the selector.
func (s *Selector) String() string { return s.text }

// UsesGlobal reports whether global() occurs in the selector.
func (s *Selector) UsesGlobal() bool { return s.root.usesGlobal() }

// Requirements returns conditions that every matched label set meets, at most
// one for a label. They are necessary, not sufficient. No label set matches a
// selector with a requirement whose Values is empty and not nil.
func (s *Selector) Requirements() []Requirement { return s.root.require(false) }

// group joins kids with opAnd or opOr, taking in kids of the same operator.
func group(o op, kids []*node) *node {
	if len(kids) == 1 {
		return kids[0]
	}
	n := &node{op: o}
	for _, k := range kids {
		if k.op == o {
			n.kids = append(n.kids, k.kids...)
		} else {
			n.kids = append(n.kids, k)
		}
	}
	return n
}

func (n *node) withPrefix(p string) *node {
	c := *n
	if n.label != "" {
		c.label = p + n.label
	}
	c.kids = nil
	for _, k := range n.kids {
		c.kids = append(c.kids, k.withPrefix(p))
	}
	return &c
}

func (n *node) usesGlobal() bool {
	return n.op == opGlobal || slices.ContainsFunc(n.kids, (*node).usesGlobal)
}

func (n *node) match(get func(string) (string, bool)) bool {
	switch n.op {
	case opAll, opGlobal:
		return true
	case opNot:
		return !n.kids[0].match(get)
	case opAnd:
		for _, k := range n.kids {
			if !k.match(get) {
				return false
			}
		}
		return true
	case opOr:
		for _, k := range n.kids {
			if k.match(get) {
				return true
			}
		}
		return false
	}
	v, ok := get(n.label)
	return n.test(v, ok)
}

// test is the truth of an operation on one label, whose value is v if present.
func (n *node) test(v string, present bool) bool {
	switch n.op {
	case opHas:
		return present
	case opEqual:
		return present && v == n.value
	case opNotEqual:
		return !present || v != n.value
	case opContains:
		return present && strings.Contains(v, n.value)
	case opStartsWith:
		return present && strings.HasPrefix(v, n.value)
	case opEndsWith:
		return present && strings.HasSuffix(v, n.value)
	case opIn:
		return present && n.hasValue(v)
	default: // opNotIn
		return !present || !n.hasValue(v)
	}
}

func (n *node) hasValue(v string) bool {
	_, ok := slices.BinarySearch(n.values, v)
	return ok
}
