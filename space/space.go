package space

import (
	"errors"
	"math/rand/v2"
)

// Field is a part of a header.
type Field uint8

// The fields, in the order of the diagrams: small ones first, so that large
// sets of addresses are shared by what they are combined with.
const (
	Family   Field = iota // 0 for IPv4, 1 for IPv6
	Protocol              //
	ICMPType              //
	ICMPCode              //
	DstPort               //
	SrcPort               //
	DstAddr               // the first 32 bits are an IPv4 address
	SrcAddr               //
	fields
)

var (
	width = [fields]int{1, 8, 8, 8, 16, 16, 128, 128}
	first [fields + 1]int
)

func init() {
	for f := range fields {
		first[f+1] = first[f] + width[f]
	}
}

// ref names a node. The first two are the leaves.
type ref uint32

const (
	none ref = iota
	all
)

// node decides one bit of a header.
type node struct {
	bit       uint16
	zero, one ref
}

// leafBit is that of the leaves: behind all others.
const leafBit = 1 << 15

type operation uint8

const (
	and operation = iota
	or
	minus
	xor
)

// question is an operation that may have been answered.
type question struct {
	op   operation
	a, b ref
}

type answer struct {
	question
	result ref
}

// DefaultLimit is the number of nodes that a space may have unless said
// otherwise: some hundred MB.
const DefaultLimit = 4 << 20

// ErrTooLarge is that a space has become larger than it may.
var ErrTooLarge = errors.New("the sets of packets are too complicated to compare")

// Space is where sets live.
type Space struct {
	nodes   []node
	index   map[node]ref
	answers []answer // a cache: a later one replaces an earlier one
	limit   int
	err     error
}

// New returns a space that may have limit nodes, DefaultLimit if 0.
func New(limit int) *Space {
	if limit == 0 {
		limit = DefaultLimit
	}
	return &Space{
		nodes:   []node{{bit: leafBit}, {bit: leafBit}},
		index:   map[node]ref{},
		answers: make([]answer, 1<<12),
		limit:   limit,
	}
}

// Err is ErrTooLarge once the space has grown to its limit; what its sets say
// then means nothing.
func (s *Space) Err() error { return s.err }

// Size is the number of nodes.
func (s *Space) Size() int { return len(s.nodes) }

// make returns the node that decides a bit.
func (s *Space) make(bit uint16, zero, one ref) ref {
	if zero == one {
		return zero
	}
	n := node{bit, zero, one}
	if r, ok := s.index[n]; ok {
		return r
	}
	if len(s.nodes) >= s.limit || s.err != nil {
		s.err = ErrTooLarge
		return none
	}
	r := ref(len(s.nodes))
	s.nodes = append(s.nodes, n)
	s.index[n] = r
	if len(s.nodes) > len(s.answers) && len(s.answers) < 1<<20 {
		s.answers = make([]answer, 4*len(s.answers))
	}
	return r
}

// plain computes an operation where a leaf, or two sets that are one, say all.
func plain(op operation, a, b ref) (ref, bool) {
	switch {
	case op == and && (a == none || b == none), op == minus && (a == none || b == all), (op == minus || op == xor) && a == b:
		return none, true
	case op == or && (a == all || b == all):
		return all, true
	case op == and && (a == all || a == b), op == or && (a == none || a == b), op == xor && a == none:
		return b, true
	case op == and && b == all, (op == or || op == minus || op == xor) && b == none:
		return a, true
	}
	return none, false
}

// apply computes an operation.
func (s *Space) apply(op operation, a, b ref) ref {
	if r, ok := plain(op, a, b); ok {
		return r
	}
	if op != minus && a > b {
		a, b = b, a
	}
	if s.err != nil {
		return none
	}
	q := question{op, a, b}
	slot := s.slot(q)
	if c := s.answers[slot]; c.question == q {
		return c.result // no question is the zero one, which is plain
	}
	x, y := s.nodes[a], s.nodes[b]
	bit := min(x.bit, y.bit)
	if x.bit != bit {
		x.zero, x.one = a, a
	}
	if y.bit != bit {
		y.zero, y.one = b, b
	}
	zero := s.apply(op, x.zero, y.zero)
	r := s.make(bit, zero, s.apply(op, x.one, y.one))
	s.answers[s.slot(q)] = answer{q, r} // there may be more slots by now
	return r
}

func (s *Space) slot(q question) uint32 {
	h := uint64(q.a)*0x9e3779b97f4a7c15 ^ uint64(q.b)*0xc2b2ae3d27d4eb4f ^ uint64(q.op)*0x165667b19e3779f9
	return uint32(h>>32) & uint32(len(s.answers)-1)
}

// Set is a set of headers.
type Set struct {
	s *Space
	r ref
}

// All is every header.
func (s *Space) All() Set { return Set{s, all} }

// None is no header.
func (s *Space) None() Set { return Set{s, none} }

// And is what is in both.
func (a Set) And(b Set) Set { return Set{a.s, a.s.apply(and, a.r, b.r)} }

// Or is what is in one or both.
func (a Set) Or(b Set) Set { return Set{a.s, a.s.apply(or, a.r, b.r)} }

// Minus is what is in a and not in b.
func (a Set) Minus(b Set) Set { return Set{a.s, a.s.apply(minus, a.r, b.r)} }

// Xor is what is in one and not in the other.
func (a Set) Xor(b Set) Set { return Set{a.s, a.s.apply(xor, a.r, b.r)} }

// Not is what is not in it.
func (a Set) Not() Set { return Set{a.s, a.s.apply(minus, all, a.r)} }

// IsEmpty reports whether nothing is in it.
func (a Set) IsEmpty() bool { return a.r == none }

// IsAll reports whether everything is in it.
func (a Set) IsAll() bool { return a.r == all }

// Equal reports whether both have the same headers.
func (a Set) Equal(b Set) bool { return a.r == b.r }

// Space is the space of the set.
func (a Set) Space() *Space { return a.s }

// Choose is what is in both a and yes, or not in a and in no.
func (a Set) Choose(yes, no Set) Set { return a.And(yes).Or(no.Minus(a)) }

// ID is the same number for the same sets of a space, as long as it lives.
func (a Set) ID() uint32 { return uint32(a.r) }

// Field is the headers that have each bit of a field, the first bit first.
func (s *Space) Field(f Field) []Set {
	list := make([]Set, width[f])
	for i := range list {
		list[i] = Set{s, s.make(uint16(first[f]+i), none, all)}
	}
	return list
}

// Union is what is in any of the sets.
func (s *Space) Union(sets ...Set) Set {
	switch len(sets) {
	case 0:
		return s.None()
	case 1:
		return sets[0]
	}
	half := len(sets) / 2
	return s.Union(sets[:half]...).Or(s.Union(sets[half:]...))
}

// Bits are the headers whose field is value in the bits of mask. Both are
// right-aligned bytes; what is missing on the left is zero.
func (s *Space) Bits(f Field, value, mask []byte) Set {
	r := all
	for i := width[f] - 1; i >= 0; i-- {
		switch {
		case !bitOf(mask, width[f], i):
		case bitOf(value, width[f], i):
			r = s.make(uint16(first[f]+i), none, r)
		default:
			r = s.make(uint16(first[f]+i), r, none)
		}
	}
	return Set{s, r}
}

// Range are the headers whose field is at least low and at most high, both
// right-aligned bytes.
func (s *Space) Range(f Field, low, high []byte) Set {
	// From the last bit on: what is at least, at most, or between, where all
	// bits before are those of low, of high, or of both.
	above, below, between := all, all, all
	for i := width[f] - 1; i >= 0; i-- {
		bit := uint16(first[f] + i)
		l, h := bitOf(low, width[f], i), bitOf(high, width[f], i)
		switch {
		case l == h && l:
			between = s.make(bit, none, between)
		case l == h:
			between = s.make(bit, between, none)
		case h:
			between = s.make(bit, above, below)
		default:
			between = none
		}
		if l {
			above = s.make(bit, none, above)
		} else {
			above = s.make(bit, above, all)
		}
		if h {
			below = s.make(bit, all, below)
		} else {
			below = s.make(bit, below, none)
		}
	}
	return Set{s, between}
}

// bitOf is the i-th bit of a field of some width, from the left.
func bitOf(value []byte, width, i int) bool {
	back := width - 1 - i
	at := len(value) - 1 - back/8
	return at >= 0 && value[at]>>(back%8)&1 == 1
}

// header is a value for each bit.
type header [1 + 8 + 8 + 8 + 16 + 16 + 128 + 128]bool

// has reports whether a header is in the set.
func (a Set) has(h *header) bool {
	r := a.r
	for r > all {
		n := &a.s.nodes[r]
		if h[n.bit] {
			r = n.one
		} else {
			r = n.zero
		}
	}
	return r == all
}

// choose follows the diagram to a header of the set, which is not empty. Where
// either way leads to one, pick says which; where the bit does not matter, pad.
func (a Set) choose(pick, pad func(bit int) bool) *header {
	var h header
	r := a.r
	for bit := range h {
		n := &a.s.nodes[r]
		switch {
		case int(n.bit) != bit:
			h[bit] = pad(bit)
		case n.zero == none:
			h[bit], r = true, n.one
		case n.one == none:
			r = n.zero
		case pick(bit):
			h[bit], r = true, n.one
		default:
			r = n.zero
		}
	}
	return &h
}

func lowest(int) bool { return false }

// corner is a header of the set at the edges of a part of it: all ways are
// drawn, and each field that does not matter is all zeros or all ones.
func (a Set) corner(r *rand.Rand) *header {
	high := r.Uint32()
	return a.choose(func(int) bool { return r.IntN(2) == 1 }, func(bit int) bool { return high>>fieldOf(bit)&1 == 1 })
}

func fieldOf(bit int) Field {
	f := Family
	for bit >= first[f+1] {
		f++
	}
	return f
}
