package verify

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/space"
)

// hits are the headers that elements of a set have.
type hits struct {
	any  space.Set
	each []hit // where they have data
	lost space.Set
}

// hit is what an element says, and the headers that it has.
type hit struct {
	*elem
	on space.Set
}

func (s *step) lookup(a attrs) {
	set := s.rules.sets[a.text(unix.NFTA_LOOKUP_SET)]
	if set == nil {
		s.lost("a set that is not there")
		return
	}
	h := s.find(set, s.load(a.u32(unix.NFTA_LOOKUP_SREG), set.keyLen))
	s.lose(h.lost, "an element of set %s", set.name)
	const inverted = 1
	if a.u32(unix.NFTA_LOOKUP_FLAGS)&inverted != 0 {
		s.active = s.active.Minus(h.any)
		return
	}
	s.active = s.active.And(h.any)
	if !a.has(unix.NFTA_LOOKUP_DREG) {
		return
	}
	if reg := a.u32(unix.NFTA_LOOKUP_DREG); reg != unix.NFT_REG_VERDICT {
		s.mapped(reg, h.each)
		return
	}
	for _, one := range h.each {
		on := s.active.And(one.on)
		if on.IsEmpty() {
			continue
		}
		if one.verdict == nil {
			s.lose(on, "an element of map %s without a verdict", set.name)
			continue
		}
		s.branches = append(s.branches, branch{*one.verdict, on})
		s.active = s.active.Minus(on)
	}
}

// mapped puts what elements lead to into a register.
func (s *step) mapped(reg uint32, each []hit) {
	size := 0
	for _, one := range each {
		size = max(size, len(one.data))
	}
	bits := slices.Repeat([]space.Set{s.None()}, size*8)
	for _, one := range each {
		for i, b := range s.constant(one.data) {
			if b.IsAll() {
				bits[i] = bits[i].Or(one.on)
			}
		}
	}
	s.store(reg, bits, s.None())
}

// find returns what of a set's elements the values in key are.
func (m *machine) find(set *set, key []space.Set) hits {
	id := make([]byte, 0, len(set.name)+1+4*len(key))
	id = append(append(id, set.name...), 0)
	for _, b := range key {
		id = binary.NativeEndian.AppendUint32(id, b.ID())
	}
	if h, ok := m.members[string(id)]; ok {
		return h
	}
	h := m.search(set, key)
	m.members[string(id)] = h
	return h
}

func (m *machine) search(set *set, key []space.Set) hits {
	var each, rest []hit
	lost := m.None()
	if set.flags&^knownFlags != 0 {
		return hits{m.None(), nil, m.All()}
	}
	for _, e := range ranges(set) {
		var on space.Set
		switch {
		case e.flags&elemCatchAll != 0:
			rest = append(rest, hit{e.elem, m.All()})
			continue
		case len(e.key)*8 != len(key) || e.last != nil && len(e.last) != len(e.key):
			lost = m.All()
			continue
		case e.last == nil:
			on = m.equal(key, e.key)
		default:
			on = m.within(set, key, e.key, e.last)
		}
		for i := range e.exprs {
			over, known := beyond(&e.exprs[i])
			switch {
			case e.exprs[i].name == "counter":
			case !known:
				lost = lost.Or(on)
			case over:
				on = m.None() // it is an element only for what is over its limit
			}
		}
		if !on.IsEmpty() {
			each = append(each, hit{e.elem, on})
		}
	}
	any := m.union(each)
	for _, r := range rest {
		r.on = any.Not()
		each, any = append(each, r), m.All()
	}
	return hits{any, each, lost}
}

func (m *machine) union(each []hit) space.Set {
	sets := make([]space.Set, 0, len(each))
	for _, one := range each {
		sets = append(sets, one.on)
	}
	return m.Union(sets...)
}

// knownFlags of sets: anonymous, constant, interval, map, of several parts.
const knownFlags = unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT | unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_EVAL | concatenated

const concatenated = 0x80

// within are the headers whose key is from first to last, part by part.
func (m *machine) within(set *set, key []space.Set, first, last []byte) space.Set {
	parts := set.parts
	if len(parts) == 0 {
		parts = []int{len(first)}
	}
	on, at := m.All(), 0
	for _, n := range parts {
		end := min(at+n, len(first))
		on = on.And(m.between(key[at*8:end*8], first[at:end], last[at:end]))
		at = end
	}
	return on
}

// spanned is an element with the last key that it has, nil if it has one.
type spanned struct {
	*elem
	last []byte
}

// ranges pairs the beginnings of ranges with their ends, which the kernel keeps
// as elements of their own: the first key that is not in the range any more.
func ranges(set *set) []spanned {
	var list []spanned
	var bounds []*elem
	for i := range set.elems {
		e := &set.elems[i]
		switch {
		case e.flags&elemCatchAll != 0:
			list = append(list, spanned{elem: e})
		case set.flags&unix.NFT_SET_INTERVAL == 0:
			list = append(list, spanned{elem: e})
		case e.end != nil:
			list = append(list, spanned{e, e.end})
		case len(set.parts) > 1:
			list = append(list, spanned{elem: e})
		default:
			bounds = append(bounds, e)
		}
	}
	slices.SortStableFunc(bounds, func(a, b *elem) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return int(b.flags&elemIntervalEnd) - int(a.flags&elemIntervalEnd) // an end before a beginning
	})
	for i, e := range bounds {
		if e.flags&elemIntervalEnd != 0 {
			continue
		}
		last := bytes.Repeat([]byte{255}, len(e.key))
		if i+1 < len(bounds) {
			last = before(bounds[i+1].key)
		}
		list = append(list, spanned{e, last})
	}
	return list
}

// before is the number before a big-endian one.
func before(key []byte) []byte {
	out := slices.Clone(key)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 255 {
			break
		}
	}
	return out
}
