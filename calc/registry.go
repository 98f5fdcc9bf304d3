package calc

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"tortie/api"
)

// registry knows which addresses each workload endpoint has, of all hosts, and
// the other way round. There may be very many, so it is stingy.
type registry struct {
	all     []record
	free    []uint32  // unused records
	byKey   hashIndex // records by the hash of their key
	byAddr  hashIndex // records by the hash of each of their addresses
	scratch []netip.Addr
	packed  []byte
}

type record struct {
	name      string
	namespace unique.Handle[string]
	addrs     string // 4 bytes for each IPv4 address, then 16 for each IPv6 one
	v4        uint32 // how many are IPv4
	used      bool
}

func newRegistry() *registry { return &registry{} }

func (r *record) key() api.Key {
	return api.Key{Kind: api.KindWorkloadEndpoint, Namespace: r.namespace.Value(), Name: r.name}
}

func (r *record) addresses(dst []netip.Addr) []netip.Addr {
	s := r.addrs
	for range r.v4 {
		dst = append(dst, netip.AddrFrom4([4]byte([]byte(s[:4]))))
		s = s[4:]
	}
	for ; len(s) > 0; s = s[16:] {
		dst = append(dst, netip.AddrFrom16([16]byte([]byte(s[:16]))))
	}
	return dst
}

// find returns the record of an endpoint.
func (r *registry) find(k api.Key) (uint32, bool) {
	for id := range r.byKey.all(hashKey(k)) {
		if rec := &r.all[id]; rec.used && rec.name == k.Name && rec.namespace.Value() == k.Namespace {
			return id, true
		}
	}
	return 0, false
}

// set notes that an endpoint has these addresses, which are sorted and without
// repeats. It returns the key in a form that shares no memory with k, and calls
// changed with each address that came or went.
func (r *registry) set(k api.Key, addrs []netip.Addr, changed func(netip.Addr)) api.Key {
	id, ok := r.find(k)
	if !ok {
		// The name may be part of a whole path: keep no more than that.
		rec := record{name: strings.Clone(k.Name), namespace: unique.Make(k.Namespace), used: true}
		if n := len(r.free); n > 0 {
			id = r.free[n-1]
			r.free = r.free[:n-1]
			r.all[id] = rec
		} else {
			id = uint32(len(r.all))
			r.all = append(r.all, rec)
		}
		r.byKey.add(hashKey(k), id)
	}
	r.replace(id, addrs, changed)
	return r.all[id].key()
}

// remove forgets an endpoint, and reports whether it was known.
func (r *registry) remove(k api.Key, changed func(netip.Addr)) bool {
	id, ok := r.find(k)
	if !ok {
		return false
	}
	r.replace(id, nil, changed)
	r.byKey.remove(hashKey(k), id)
	r.all[id] = record{}
	r.free = append(r.free, id)
	return true
}

func (r *registry) replace(id uint32, addrs []netip.Addr, changed func(netip.Addr)) {
	rec := &r.all[id]
	old := rec.addresses(r.scratch[:0])
	r.scratch = old
	if slices.Equal(old, addrs) {
		return
	}
	rec.v4, r.packed = 0, r.packed[:0]
	for _, a := range addrs {
		if a.Is4() {
			rec.v4++
			b := a.As4()
			r.packed = append(r.packed, b[:]...)
		} else {
			b := a.As16()
			r.packed = append(r.packed, b[:]...)
		}
	}
	rec.addrs = string(r.packed)
	for _, a := range old {
		if _, still := slices.BinarySearchFunc(addrs, a, netip.Addr.Compare); !still {
			r.byAddr.remove(hashAddr(a), id)
			changed(a)
		}
	}
	for _, a := range addrs {
		if _, had := slices.BinarySearchFunc(old, a, netip.Addr.Compare); !had {
			r.byAddr.add(hashAddr(a), id)
			changed(a)
		}
	}
}

// owners iterates over the endpoints that have an address.
func (r *registry) owners(a netip.Addr) iter.Seq[api.Key] {
	return func(yield func(api.Key) bool) {
		for id := range r.byAddr.all(hashAddr(a)) {
			rec := &r.all[id]
			r.scratch = rec.addresses(r.scratch[:0])
			if slices.Contains(r.scratch, a) && !yield(rec.key()) {
				return
			}
		}
	}
}

// hashIndex maps hashes to numbers: what it finds is to be checked by the
// caller, who has what was hashed. It takes 8 bytes for each slot, of which a
// quarter is always free.
type hashIndex struct {
	slots []hashSlot // a power of 2, probed one after the other
	len   int
}

type hashSlot struct {
	hash uint32
	ref  uint32 // the number plus 1; 0: the slot is free
}

func (x *hashIndex) add(hash, n uint32) {
	if (x.len+1)*4 > len(x.slots)*3 {
		old := x.slots
		x.slots = make([]hashSlot, max(16, 2*len(old)))
		for _, s := range old {
			if s.ref != 0 {
				x.place(s)
			}
		}
	}
	x.place(hashSlot{hash, n + 1})
	x.len++
}

func (x *hashIndex) place(s hashSlot) {
	mask := uint32(len(x.slots) - 1)
	i := s.hash & mask
	for x.slots[i].ref != 0 {
		i = (i + 1) & mask
	}
	x.slots[i] = s
}

// all iterates over the numbers that were added with hash.
func (x *hashIndex) all(hash uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if len(x.slots) == 0 {
			return
		}
		mask := uint32(len(x.slots) - 1)
		for i := hash & mask; x.slots[i].ref != 0; i = (i + 1) & mask {
			if s := x.slots[i]; s.hash == hash && !yield(s.ref-1) {
				return
			}
		}
	}
}

// remove takes out a number that was added with hash.
func (x *hashIndex) remove(hash, n uint32) {
	mask := uint32(len(x.slots) - 1)
	hole := hash & mask
	for x.slots[hole] != (hashSlot{hash, n + 1}) {
		hole = (hole + 1) & mask
	}
	// What was probed past the hole moves up, so that it is still found.
	for i := (hole + 1) & mask; x.slots[i].ref != 0; i = (i + 1) & mask {
		if (i-x.slots[i].hash)&mask >= (i-hole)&mask {
			x.slots[hole] = x.slots[i]
			hole = i
		}
	}
	x.slots[hole] = hashSlot{}
	x.len--
}

// hashKey and hashAddr are FNV-1a, stirred at the end so that the low bits
// depend on all bytes.
func hashKey(k api.Key) uint32 {
	h := uint64(fnvOffset)
	for i := range len(k.Name) {
		h = (h ^ uint64(k.Name[i])) * fnvPrime
	}
	for i := range len(k.Namespace) {
		h = (h ^ uint64(k.Namespace[i])) * fnvPrime
	}
	return stir(h)
}

func hashAddr(a netip.Addr) uint32 {
	h := uint64(fnvOffset)
	for _, b := range a.As16() {
		h = (h ^ uint64(b)) * fnvPrime
	}
	return stir(h)
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func stir(h uint64) uint32 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return uint32(h >> 32)
}
