package labelindex

import (
	"math/bits"
	"net/netip"
)

// ranges counts the real ranges of one selector and keeps their disjoint
// cover: the ranges that no other one contains. Prefixes nest or are apart, so
// these cover all of them.
type ranges struct {
	roots [2]*branch // IPv4, IPv6

	// pending is how the cover differs from what was last delivered: true
	// for a range that came, false for one that went.
	pending map[netip.Prefix]bool
}

// branch is a node of a binary trie: a range that refs items have or, where
// refs is 0, the place where two branches part.
type branch struct {
	prefix netip.Prefix
	refs   int
	kids   [2]*branch
}

func (r *ranges) root(p netip.Prefix) **branch {
	if p.Addr().Is4() {
		return &r.roots[0]
	}
	return &r.roots[1]
}

// add counts one more item with range p.
func (r *ranges) add(p netip.Prefix) {
	at, _, covered := find(r.root(p), p)
	n := grow(at, p)
	if n.refs++; n.refs == 1 && !covered {
		r.note(p, true)
		n.below(func(q netip.Prefix) bool { r.note(q, false); return true })
	}
}

// remove counts one item less with range p, which must be there.
func (r *ranges) remove(p netip.Prefix) {
	at, up, covered := find(r.root(p), p)
	n := *at
	if n.refs--; n.refs > 0 {
		return
	}
	if !covered {
		r.note(p, false)
		n.below(func(q netip.Prefix) bool { r.note(q, true); return true })
	}
	prune(at)
	if up != nil {
		prune(up)
	}
}

// note records that p came into the cover or left it.
func (r *ranges) note(p netip.Prefix, came bool) {
	if was, ok := r.pending[p]; ok && was != came {
		delete(r.pending, p)
		return
	}
	if r.pending == nil {
		r.pending = map[netip.Prefix]bool{}
	}
	r.pending[p] = came
}

// delivered calls f with each range of the cover that was last delivered, and
// reports whether f returned true each time.
func (r *ranges) delivered(f func(netip.Prefix) bool) bool {
	for p, came := range r.pending {
		if !came && !f(p) {
			return false
		}
	}
	old := func(p netip.Prefix) bool { return r.pending[p] || f(p) }
	return r.roots[0].top(old) && r.roots[1].top(old)
}

// top calls f with the topmost ranges at n or below, and reports whether f
// returned true each time.
func (n *branch) top(f func(netip.Prefix) bool) bool {
	if n == nil {
		return true
	}
	if n.refs > 0 {
		return f(n.prefix)
	}
	return n.below(f)
}

// below is top for what is below n.
func (n *branch) below(f func(netip.Prefix) bool) bool {
	return n.kids[0].top(f) && n.kids[1].top(f)
}

// find walks from root to where p is or would be. It returns the link to that
// place, the link to the branch above it if there is one, and whether a range
// on the way covers p.
func find(root **branch, p netip.Prefix) (at, up **branch, covered bool) {
	at = root
	for n := *at; n != nil && n.prefix.Bits() < p.Bits() && n.prefix.Contains(p.Addr()); n = *at {
		covered = covered || n.refs > 0
		at, up = &n.kids[bit(p.Addr(), n.prefix.Bits())], at
	}
	return at, up, covered
}

// grow returns the branch for p at the place that find found, new if need be.
func grow(at **branch, p netip.Prefix) *branch {
	old := *at
	if old != nil && old.prefix == p {
		return old
	}
	n := &branch{prefix: p}
	*at = n
	if old == nil {
		return n
	}
	if p.Bits() < old.prefix.Bits() && p.Contains(old.prefix.Addr()) {
		n.kids[bit(old.prefix.Addr(), p.Bits())] = old
		return n
	}
	common := commonBits(p.Addr(), old.prefix.Addr())
	fork := &branch{prefix: netip.PrefixFrom(p.Addr(), common).Masked()}
	fork.kids[bit(p.Addr(), common)] = n
	fork.kids[bit(old.prefix.Addr(), common)] = old
	*at = fork
	return n
}

// prune takes out the branch at a link if it is neither a range nor a fork.
func prune(at **branch) {
	n := *at
	switch {
	case n == nil || n.refs > 0 || n.kids[0] != nil && n.kids[1] != nil:
	case n.kids[0] != nil:
		*at = n.kids[0]
	default:
		*at = n.kids[1]
	}
}

// bit returns bit i of an address, counted from the front.
func bit(a netip.Addr, i int) byte {
	b := a.As16()
	if a.Is4() {
		i += 96
	}
	return b[i/8] >> (7 - i%8) & 1
}

// commonBits is how many leading bits two addresses of one family share; they
// differ.
func commonBits(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	i := 0
	for x[i] == y[i] {
		i++
	}
	n := 8*i + bits.LeadingZeros8(x[i]^y[i])
	if a.Is4() {
		n -= 96
	}
	return n
}
