package labelindex

import (
	"iter"
	"net/netip"
	"slices"
)

// packed is a list of prefixes, sorted and without repeats, in few bytes: for
// each a byte that is the length, plus v6Tag for IPv6, and then the address.
type packed string

const v6Tag = 64

// normalise appends the valid prefixes of list to dst, masked, sorted and
// without repeats.
func normalise(dst, list []netip.Prefix) []netip.Prefix {
	for _, p := range list {
		if p.IsValid() {
			dst = append(dst, p.Masked())
		}
	}
	slices.SortFunc(dst, netip.Prefix.Compare)
	return slices.Compact(dst)
}

// pack packs a normalised list, using buf as its scratch.
func pack(buf []byte, list []netip.Prefix) (packed, []byte) {
	for _, p := range list {
		if p.Addr().Is4() {
			a := p.Addr().As4()
			buf = append(append(buf, byte(p.Bits())), a[:]...)
		} else {
			a := p.Addr().As16()
			buf = append(append(buf, byte(p.Bits()+v6Tag)), a[:]...)
		}
	}
	return packed(buf), buf
}

// all iterates over the prefixes in order.
func (p packed) all() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for i := 0; i < len(p); {
			var q netip.Prefix
			if tag := int(p[i]); tag < v6Tag {
				q = netip.PrefixFrom(netip.AddrFrom4([4]byte([]byte(p[i+1:i+5]))), tag)
				i += 5
			} else {
				q = netip.PrefixFrom(netip.AddrFrom16([16]byte([]byte(p[i+1:i+17]))), tag-v6Tag)
				i += 17
			}
			if !yield(q) {
				return
			}
		}
	}
}

// holders says which items have an address. Nearly always that is one, so the
// maps of first holders are all there is of most addresses.
type holders struct {
	v4    map[[4]byte]uint32
	v6    map[[16]byte]uint32
	more  map[netip.Addr][]uint32 // all holders, where they are two or more
	first [1]uint32               // what of returns for one holder
}

func (h *holders) put(a netip.Addr, item uint32) {
	if a.Is4() {
		h.v4[a.As4()] = item
	} else {
		h.v6[a.As16()] = item
	}
}

func (h *holders) get(a netip.Addr) (uint32, bool) {
	if a.Is4() {
		item, ok := h.v4[a.As4()]
		return item, ok
	}
	item, ok := h.v6[a.As16()]
	return item, ok
}

func (h *holders) add(a netip.Addr, item uint32) {
	if list, ok := h.more[a]; ok {
		h.more[a] = append(list, item)
	} else if first, ok := h.get(a); ok {
		h.more[a] = []uint32{first, item}
	} else {
		h.put(a, item)
	}
}

func (h *holders) remove(a netip.Addr, item uint32) {
	if list, ok := h.more[a]; ok {
		list = slices.DeleteFunc(list, func(i uint32) bool { return i == item })
		if h.more[a] = list; len(list) == 1 {
			delete(h.more, a)
			h.put(a, list[0])
		}
	} else if a.Is4() {
		delete(h.v4, a.As4())
	} else {
		delete(h.v6, a.As16())
	}
}

// of returns the items that have a; the slice is good until the next call.
func (h *holders) of(a netip.Addr) []uint32 {
	if len(h.more) > 0 {
		if list, ok := h.more[a]; ok {
			return list
		}
	}
	first, ok := h.get(a)
	if !ok {
		return nil
	}
	h.first[0] = first
	return h.first[:]
}

// merge walks two sorted lists without repeats and calls f for each value of
// their union in order, saying which of them have it.
func merge[T any](a, b []T, compare func(T, T) int, f func(v T, inA, inB bool)) {
	for len(a) > 0 || len(b) > 0 {
		var c int // the sign says whose turn it is, 0 that it is both's
		switch {
		case len(b) == 0:
			c = -1
		case len(a) == 0:
			c = 1
		default:
			c = compare(a[0], b[0])
		}
		if c <= 0 {
			f(a[0], true, c == 0)
			a = a[1:]
		} else {
			f(b[0], false, true)
		}
		if c >= 0 {
			b = b[1:]
		}
	}
}
