package labelindex

import (
	"cmp"
	"net/netip"
	"slices"
	"unique"

	"tortie/api"
)

// Index is the index. Create it with New.
type Index struct {
	items    slab[item]
	byKey    map[itemKey]uint32
	groups   groups
	slots    slab[slot]
	byID     map[uint64]uint32 // slots, dying ones included
	requires registry
	holders  holders

	// What happened since changes were last delivered.
	touched  map[netip.Addr][]uint32 // the delivered slots that selected an address
	turning  map[uint32]struct{}     // slots that were born or are dying
	reranged map[uint32]struct{}     // slots whose ranges changed

	delivered int // slots whose members were delivered, dying ones included

	// Scratch.
	old, prefixes []netip.Prefix // of the item that moves, before and after
	bytes         []byte
	is            []uint32
}

// itemKey is an api.Key in 24 bytes.
type itemKey struct {
	name  string
	scope unique.Handle[scope]
}

type scope struct {
	kind      api.Kind
	namespace string
}

func makeKey(k api.Key) itemKey {
	return itemKey{k.Name, unique.Make(scope{k.Kind, k.Namespace})}
}

type item struct {
	prefixes   packed
	group      uint32
	next, prev uint32 // items of the same group
	ranged     bool   // has real ranges
}

// New returns an empty index.
func New() *Index {
	return &Index{
		byKey:    map[itemKey]uint32{},
		groups:   newGroups(),
		byID:     map[uint64]uint32{},
		requires: registry{byValue: map[labelValue][]uint32{}, byLabel: map[string][]uint32{}},
		holders:  holders{v4: map[[4]byte]uint32{}, v6: map[[16]byte]uint32{}, more: map[netip.Addr][]uint32{}},
		touched:  map[netip.Addr][]uint32{},
		turning:  map[uint32]struct{}{},
		reranged: map[uint32]struct{}{},
	}
}

// SetItem adds or replaces an item: its effective labels, and its addresses
// (as /32 and /128) and ranges. Host bits are masked, invalid prefixes left
// out. Neither argument is kept.
func (x *Index) SetItem(k api.Key, labels map[string]string, prefixes []netip.Prefix) {
	x.prefixes = normalise(x.prefixes[:0], prefixes)
	var p packed
	p, x.bytes = pack(x.bytes[:0], x.prefixes)
	key := makeKey(k)
	id, ok := x.byKey[key]
	if !ok {
		id = x.items.add(item{group: none})
		x.byKey[key] = id
	}
	to := x.groups.find(labels)
	if to == none {
		to = x.groups.create(labels)
		x.groups.at(to).slots = x.selecting(labels)
	}
	x.move(id, to, p)
}

// DeleteItem removes an item, if it is there.
func (x *Index) DeleteItem(k api.Key) {
	key := makeKey(k)
	id, ok := x.byKey[key]
	if !ok {
		return
	}
	x.prefixes = x.prefixes[:0]
	x.move(id, none, "")
	delete(x.byKey, key)
	x.items.drop(id)
}

// slotsOf returns the slots that select a group.
func (x *Index) slotsOf(g uint32) []uint32 {
	if g == none {
		return nil
	}
	return x.groups.at(g).slots
}

// move gives an item a group and prefixes, which x.prefixes has unpacked.
func (x *Index) move(id, to uint32, p packed) {
	it := x.items.at(id)
	from := it.group
	before, after := x.slotsOf(from), x.slotsOf(to)
	same := slices.Equal(before, after)
	if !same || it.prefixes != p {
		x.old = x.old[:0]
		for q := range it.prefixes.all() {
			x.old = append(x.old, q)
		}
		x.noteSingles(same)
		x.moveRanges(before, after)
		x.moveSingles(id)
	}
	ranged := slices.ContainsFunc(x.prefixes, isRange)
	x.unlink(id)
	it.prefixes, it.ranged = p, ranged
	x.link(id, to)
	if from != none && x.groups.at(from).head == none {
		x.groups.remove(from)
	}
}

func isRange(p netip.Prefix) bool { return !p.IsSingleIP() }

// noteSingles remembers, before an item changes, what selected the addresses
// whose membership may change.
func (x *Index) noteSingles(sameSlots bool) {
	if x.delivered == 0 {
		return
	}
	merge(x.old, x.prefixes, netip.Prefix.Compare, func(q netip.Prefix, had, has bool) {
		if isRange(q) || had && has && sameSlots {
			return
		}
		if _, ok := x.touched[q.Addr()]; !ok {
			x.touched[q.Addr()] = slices.Clone(x.selected(q.Addr(), born, nil))
		}
	})
}

func (x *Index) moveSingles(id uint32) {
	merge(x.old, x.prefixes, netip.Prefix.Compare, func(q netip.Prefix, had, has bool) {
		switch {
		case isRange(q):
		case had && !has:
			x.holders.remove(q.Addr(), id)
		case !had && has:
			x.holders.add(q.Addr(), id)
		}
	})
}

// moveRanges counts the ranges of an item out of and into the slots that
// selected it before and after.
func (x *Index) moveRanges(before, after []uint32) {
	if !slices.ContainsFunc(x.old, isRange) && !slices.ContainsFunc(x.prefixes, isRange) {
		return
	}
	merge(before, after, cmp.Compare[uint32], func(s uint32, did, does bool) {
		r := &x.slots.at(s).ranges
		merge(x.old, x.prefixes, netip.Prefix.Compare, func(q netip.Prefix, had, has bool) {
			switch was, is := did && had, does && has; {
			case was == is || !isRange(q):
			case is:
				r.add(q)
			default:
				r.remove(q)
			}
		})
		x.reranged[s] = struct{}{}
	})
}

func (x *Index) link(id, g uint32) {
	it := x.items.at(id)
	it.group = g
	if g == none {
		return
	}
	gr := x.groups.at(g)
	it.next, it.prev = gr.head, none
	if gr.head != none {
		x.items.at(gr.head).prev = id
	}
	gr.head = id
	if it.ranged {
		gr.ranged++
	}
}

func (x *Index) unlink(id uint32) {
	it := x.items.at(id)
	if it.group == none {
		return
	}
	gr := x.groups.at(it.group)
	if it.prev != none {
		x.items.at(it.prev).next = it.next
	} else {
		gr.head = it.next
	}
	if it.next != none {
		x.items.at(it.next).prev = it.prev
	}
	if it.ranged {
		gr.ranged--
	}
}
