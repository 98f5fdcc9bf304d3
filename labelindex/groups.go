package labelindex

import (
	"encoding/binary"
	"iter"
	"slices"
	"strings"

	"tortie/selector"
)

// none is no item, group, pair or slot.
const none = ^uint32(0)

// slab hands out small numbers for values and takes them back.
type slab[T any] struct {
	all  []T
	free []uint32
}

func (s *slab[T]) add(v T) uint32 {
	if n := len(s.free); n > 0 {
		id := s.free[n-1]
		s.free = s.free[:n-1]
		s.all[id] = v
		return id
	}
	s.all = append(s.all, v)
	return uint32(len(s.all) - 1)
}

func (s *slab[T]) at(id uint32) *T { return &s.all[id] }

func (s *slab[T]) drop(id uint32) {
	var zero T
	s.all[id] = zero
	s.free = append(s.free, id)
}

// group is what items with equal label sets share.
type group struct {
	labels []groupLabel // by pair
	slots  []uint32     // of the selectors that match, sorted
	head   uint32       // first item
	ranged int          // how many of the items have ranges
}

type groupLabel struct {
	key, pair uint32
	pos       uint32 // of the group in the pair's groups
}

// labelKey is a label that groups carry.
type labelKey struct {
	name   string
	groups int    // that carry it
	head   uint32 // first of its pairs
}

// pair is a label with a value, and the groups that carry it.
type pair struct {
	key        uint32
	value      string
	groups     []uint32
	next, prev uint32 // pairs of the same key
}

type pairName struct {
	key   uint32
	value string
}

// groups are the label sets in use, with an index by label and value.
type groups struct {
	slab[group]
	bySet  map[string]uint32 // by the sorted numbers of the pairs
	keys   slab[labelKey]
	byName map[string]uint32
	pairs  slab[pair]
	byPair map[pairName]uint32

	ids []uint32 // scratch
	set []byte
}

func newGroups() groups {
	return groups{bySet: map[string]uint32{}, byName: map[string]uint32{}, byPair: map[pairName]uint32{}}
}

// find returns the group with these labels, or none.
func (gs *groups) find(labels map[string]string) uint32 {
	gs.ids = gs.ids[:0]
	for name, value := range labels {
		p := gs.pair(name, value)
		if p == none {
			return none
		}
		gs.ids = append(gs.ids, p)
	}
	slices.Sort(gs.ids)
	gs.set = packSet(gs.set[:0], gs.ids)
	if g, ok := gs.bySet[string(gs.set)]; ok {
		return g
	}
	return none
}

func packSet(buf []byte, ids []uint32) []byte {
	for _, id := range ids {
		buf = binary.NativeEndian.AppendUint32(buf, id)
	}
	return buf
}

func (gs *groups) pair(name, value string) uint32 {
	if k, ok := gs.byName[name]; ok {
		if p, ok := gs.byPair[pairName{k, value}]; ok {
			return p
		}
	}
	return none
}

// create adds a group with labels that find did not find.
func (gs *groups) create(labels map[string]string) uint32 {
	g := gs.add(group{head: none})
	list := make([]groupLabel, 0, len(labels))
	gs.ids = gs.ids[:0]
	for name, value := range labels {
		p := gs.intern(name, value)
		pr := gs.pairs.at(p)
		list = append(list, groupLabel{key: pr.key, pair: p, pos: uint32(len(pr.groups))})
		pr.groups = append(pr.groups, g)
		gs.keys.at(pr.key).groups++
		gs.ids = append(gs.ids, p)
	}
	slices.SortFunc(list, func(a, b groupLabel) int { return int(a.pair) - int(b.pair) })
	slices.Sort(gs.ids)
	gs.at(g).labels = list
	gs.set = packSet(gs.set[:0], gs.ids)
	gs.bySet[string(gs.set)] = g
	return g
}

// intern returns the pair of a label and value, new if need be. The strings
// are copied, since they may be parts of whole documents.
func (gs *groups) intern(name, value string) uint32 {
	k, ok := gs.byName[name]
	if !ok {
		name = strings.Clone(name)
		k = gs.keys.add(labelKey{name: name, head: none})
		gs.byName[name] = k
	}
	p, ok := gs.byPair[pairName{k, value}]
	if !ok {
		value = strings.Clone(value)
		key := gs.keys.at(k)
		p = gs.pairs.add(pair{key: k, value: value, next: key.head, prev: none})
		if key.head != none {
			gs.pairs.at(key.head).prev = p
		}
		key.head = p
		gs.byPair[pairName{k, value}] = p
	}
	return p
}

// remove takes out a group that has no items, and labels that only it carried.
func (gs *groups) remove(g uint32) {
	gs.ids = gs.ids[:0]
	for _, l := range gs.at(g).labels {
		gs.ids = append(gs.ids, l.pair)
		pr := gs.pairs.at(l.pair)
		last := len(pr.groups) - 1
		moved := pr.groups[last]
		pr.groups[l.pos] = moved
		pr.groups = pr.groups[:last]
		labels := gs.at(moved).labels
		i := slices.IndexFunc(labels, func(m groupLabel) bool { return m.pair == l.pair })
		labels[i].pos = l.pos
		gs.keys.at(l.key).groups--
		if last == 0 {
			gs.removePair(l.pair)
		}
	}
	gs.set = packSet(gs.set[:0], gs.ids)
	delete(gs.bySet, string(gs.set))
	gs.drop(g)
	gs.at(g).head = none
}

func (gs *groups) removePair(p uint32) {
	pr := *gs.pairs.at(p)
	if pr.next != none {
		gs.pairs.at(pr.next).prev = pr.prev
	}
	if pr.prev != none {
		gs.pairs.at(pr.prev).next = pr.next
	} else {
		gs.keys.at(pr.key).head = pr.next
	}
	delete(gs.byPair, pairName{pr.key, pr.value})
	gs.pairs.drop(p)
	if key := gs.keys.at(pr.key); key.head == none {
		delete(gs.byName, key.name)
		gs.keys.drop(pr.key)
	}
}

// matches tests a selector on a group.
func (gs *groups) matches(s *selector.Selector, g *group) bool {
	return s.MatchFunc(func(name string) (string, bool) {
		if k, ok := gs.byName[name]; ok {
			for _, l := range g.labels {
				if l.key == k {
					return gs.pairs.at(l.pair).value, true
				}
			}
		}
		return "", false
	})
}

// rarest returns the requirement that the fewest groups meet, or nil if there
// are none.
func (gs *groups) rarest(s *selector.Selector) *selector.Requirement {
	var best *selector.Requirement
	least := 0
	for _, r := range s.Requirements() {
		count := 0
		if k, ok := gs.byName[r.Label]; ok && r.Values == nil {
			count = gs.keys.at(k).groups
		}
		for _, v := range r.Values {
			if p := gs.pair(r.Label, v); p != none {
				count += len(gs.pairs.at(p).groups)
			}
		}
		// Of equals the one with values: later groups meet it less often.
		if best == nil || count < least || count == least && best.Values == nil {
			best, least = &r, count
		}
	}
	return best
}

// meeting iterates over the groups with items that meet a requirement, all
// where it is nil, each once. Groups may lose slots meanwhile, no more.
func (gs *groups) meeting(r *selector.Requirement) iter.Seq[*group] {
	return func(yield func(*group) bool) {
		if r == nil {
			for i := range gs.all {
				if g := &gs.all[i]; g.head != none && !yield(g) {
					return
				}
			}
			return
		}
		if r.Values == nil {
			if k, ok := gs.byName[r.Label]; ok {
				for p := gs.keys.at(k).head; p != none; p = gs.pairs.at(p).next {
					if !gs.carrying(p, yield) {
						return
					}
				}
			}
			return
		}
		for _, v := range r.Values {
			if p := gs.pair(r.Label, v); p != none && !gs.carrying(p, yield) {
				return
			}
		}
	}
}

func (gs *groups) carrying(p uint32, yield func(*group) bool) bool {
	for _, g := range gs.pairs.at(p).groups {
		if !yield(gs.at(g)) {
			return false
		}
	}
	return true
}
