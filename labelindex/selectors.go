package labelindex

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"tortie/selector"
)

// Change is a prefix that came to the members of a selector or left them.
type Change struct {
	Selector uint64
	Prefix   netip.Prefix
	Add      bool
}

// life is where a slot stands with regard to what was delivered.
type life uint8

const (
	born    life = iota // nothing of it was delivered
	settled             // its members were delivered
	dying               // deleted, its members are still to be taken back
)

// slot is a selector, active or dying. A dying one is kept up like the others.
type slot struct {
	id          uint64
	selector    *selector.Selector
	requirement *selector.Requirement // under which the registry has it
	life        life
	ranges      ranges
}

type labelValue struct{ label, value string }

// registry finds the slots that a new group may match, by the requirement each
// is filed under.
type registry struct {
	byValue map[labelValue][]uint32
	byLabel map[string][]uint32
	always  []uint32
}

// file files a slot, or takes it out.
func (r *registry) file(s uint32, req *selector.Requirement, in bool) {
	switch {
	case req == nil:
		r.always = edit(r.always, s, in)
	case req.Values == nil:
		editMap(r.byLabel, req.Label, s, in)
	default:
		for _, v := range req.Values {
			editMap(r.byValue, labelValue{req.Label, v}, s, in)
		}
	}
}

func editMap[K comparable](m map[K][]uint32, k K, s uint32, in bool) {
	if m[k] = edit(m[k], s, in); len(m[k]) == 0 {
		delete(m, k)
	}
}

// edit puts s into a sorted list or takes it out.
func edit(list []uint32, s uint32, in bool) []uint32 {
	i, found := slices.BinarySearch(list, s)
	switch {
	case in && !found:
		return slices.Insert(list, i, s)
	case !in && found:
		return slices.Delete(list, i, i+1)
	}
	return list
}

// selecting returns the slots whose selectors match a label set, sorted.
func (x *Index) selecting(labels map[string]string) []uint32 {
	var match []uint32
	test := func(list []uint32) {
		for _, s := range list {
			if x.slots.at(s).selector.Match(labels) {
				match = append(match, s)
			}
		}
	}
	test(x.requires.always)
	for name, value := range labels {
		test(x.requires.byLabel[name])
		test(x.requires.byValue[labelValue{name, value}])
	}
	slices.Sort(match)
	return slices.Clip(match)
}

// SetSelector makes a selector active: its members are among the next changes.
// An id stands for one selector; setting one that is active does nothing.
func (x *Index) SetSelector(id uint64, s *selector.Selector) {
	if n, ok := x.byID[id]; ok {
		if sl := x.slots.at(n); sl.life == dying {
			sl.life = settled
			delete(x.turning, n)
		}
		return
	}
	req := x.groups.rarest(s)
	n := x.slots.add(slot{id: id, selector: s, requirement: req, life: born})
	x.byID[id] = n
	x.turning[n] = struct{}{}
	x.requires.file(n, req, true)
	r := &x.slots.at(n).ranges
	for g := range x.groups.meeting(req) {
		if !x.groups.matches(s, g) {
			continue
		}
		g.slots = edit(g.slots, n, true)
		if g.ranged == 0 {
			continue
		}
		for id := g.head; id != none; id = x.items.at(id).next {
			for q := range x.items.at(id).prefixes.all() {
				if isRange(q) {
					r.add(q)
				}
			}
		}
		x.reranged[n] = struct{}{}
	}
}

// DeleteSelector makes a selector inactive: that its members left it is among
// the next changes.
func (x *Index) DeleteSelector(id uint64) {
	n, ok := x.byID[id]
	if !ok {
		return
	}
	if sl := x.slots.at(n); sl.life == settled {
		sl.life = dying
		x.turning[n] = struct{}{}
	} else if sl.life == born {
		x.removeSlot(n)
	}
}

func (x *Index) removeSlot(n uint32) {
	sl := x.slots.at(n)
	for g := range x.selectedGroups(n) {
		g.slots = edit(g.slots, n, false)
	}
	x.requires.file(n, sl.requirement, false)
	delete(x.byID, sl.id)
	delete(x.turning, n)
	delete(x.reranged, n)
	x.slots.drop(n)
}

// selectedGroups iterates over the groups that a slot selects.
func (x *Index) selectedGroups(n uint32) iter.Seq[*group] {
	return func(yield func(*group) bool) {
		for g := range x.groups.meeting(x.groups.rarest(x.slots.at(n).selector)) {
			if _, ok := slices.BinarySearch(g.slots, n); ok && !yield(g) {
				return
			}
		}
	}
}

// selected appends the slots that select an address to dst, sorted, without
// those that are in one stage of life.
func (x *Index) selected(a netip.Addr, except life, dst []uint32) []uint32 {
	items := x.holders.of(a)
	for _, id := range items {
		for _, n := range x.groups.at(x.items.at(id).group).slots {
			if x.slots.at(n).life != except {
				dst = append(dst, n)
			}
		}
	}
	if len(items) > 1 {
		slices.Sort(dst)
		dst = slices.Compact(dst)
	}
	return dst
}

// singles calls f with each single address that a slot selects, once, and
// reports whether f returned true each time.
func (x *Index) singles(n uint32, f func(netip.Prefix) bool) bool {
	for g := range x.selectedGroups(n) {
		for id := g.head; id != none; id = x.items.at(id).next {
			for q := range x.items.at(id).prefixes.all() {
				if !isRange(q) && x.speaks(id, q.Addr(), n) && !f(q) {
					return false
				}
			}
		}
	}
	return true
}

// speaks reports whether an item is the first of those that have an address
// and are selected by a slot.
func (x *Index) speaks(id uint32, a netip.Addr, n uint32) bool {
	if len(x.holders.more) == 0 {
		return true
	}
	for _, other := range x.holders.more[a] {
		if other == id {
			break
		}
		if _, ok := slices.BinarySearch(x.slotsOf(x.items.at(other).group), n); ok {
			return false
		}
	}
	return true
}

// Changes iterates over what changed in the members of all selectors since the
// changes were last iterated over to their end, in no particular order. No
// selector and prefix occurs twice, nor what came and went meanwhile. The
// index must not be changed during the iteration. If it is broken off, nothing
// counts as delivered.
func (x *Index) Changes() iter.Seq[Change] {
	return func(yield func(Change) bool) {
		if x.changedSingles(yield) && x.changedSlots(yield) && x.changedRanges(yield) {
			x.settle()
		}
	}
}

// changedSingles yields the changes of touched addresses.
func (x *Index) changedSingles(yield func(Change) bool) bool {
	for a, was := range x.touched {
		p := netip.PrefixFrom(a, a.BitLen())
		x.is = x.selected(a, dying, x.is[:0])
		more := true
		merge(was, x.is, cmp.Compare[uint32], func(n uint32, did, does bool) {
			if did != does && more {
				more = yield(Change{x.slots.at(n).id, p, does})
			}
		})
		if !more {
			return false
		}
	}
	return true
}

// changedSlots yields the addresses, other than touched ones, of slots that
// were born or are dying.
func (x *Index) changedSlots(yield func(Change) bool) bool {
	for n := range x.turning {
		id, add := x.slots.at(n).id, x.slots.at(n).life == born
		if !x.singles(n, func(p netip.Prefix) bool {
			if len(x.touched) > 0 {
				if _, ok := x.touched[p.Addr()]; ok {
					return true
				}
			}
			return yield(Change{id, p, add})
		}) {
			return false
		}
	}
	return true
}

func (x *Index) changedRanges(yield func(Change) bool) bool {
	for n := range x.turning {
		sl := x.slots.at(n)
		if sl.life == dying && !sl.ranges.delivered(func(p netip.Prefix) bool {
			return yield(Change{sl.id, p, false})
		}) {
			return false
		}
	}
	for n := range x.reranged {
		sl := x.slots.at(n)
		if sl.life == dying {
			continue
		}
		for p, came := range sl.ranges.pending {
			if !yield(Change{sl.id, p, came}) {
				return false
			}
		}
	}
	return true
}

// settle notes that everything was delivered.
func (x *Index) settle() {
	for n := range x.reranged {
		x.slots.at(n).ranges.pending = nil
	}
	for n := range x.turning {
		if x.slots.at(n).life == born {
			x.slots.at(n).life = settled
			x.delivered++
		} else {
			x.delivered--
			x.removeSlot(n)
		}
	}
	// A map keeps the size it once had, and clearing it costs as much.
	if len(x.touched) > 1024 {
		x.touched = map[netip.Addr][]uint32{}
	}
	clear(x.touched)
	clear(x.turning)
	clear(x.reranged)
}
