package nft

import (
	"net/netip"
	"testing"

	"tortie/desired"
)

// A member that comes or goes is one element in one transaction, however many
// there are, in sets of addresses and of ranges.
//
// Pain 6: elsewhere one member costs what the set has of them.
func TestMemberIsOneElement(t *testing.T) {
	router(t)
	k := open(t)
	st := desired.New()
	for _, family := range []uint8{4, 6} {
		for _, ranges := range []bool{false, true} {
			st.Sets.Set(desired.SetKey{ID: 1, Family: family, Ranges: ranges}, desired.Set{Selector: "all()"})
		}
	}
	member := func(family uint8, ranges bool, n int) desired.Member {
		m := desired.Member{Set: desired.SetKey{ID: 1, Family: family, Ranges: ranges}}
		if family == 4 {
			m.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 2}), 32)
		} else {
			m.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(n >> 8), 9: byte(n), 15: 2}), 128)
		}
		if ranges {
			m.Prefix = netip.PrefixFrom(m.Prefix.Addr(), m.Prefix.Bits()-2).Masked()
		}
		return m
	}
	const many = 20000
	each := func(f func(family uint8, ranges bool)) {
		for _, family := range []uint8{4, 6} {
			f(family, false)
			f(family, true)
		}
	}
	each(func(family uint8, ranges bool) {
		for n := range many {
			st.Members.Set(member(family, ranges, n), struct{}{})
		}
	})
	apply(t, k, st)
	each(func(family uint8, ranges bool) {
		edges := map[bool]int{false: 1, true: 2}[ranges]
		st.Members.Set(member(family, ranges, many), struct{}{})
		if res := apply(t, k, st); res.Transactions != 1 || res.Writes != edges {
			t.Errorf("IPv%d, ranges %v: one more: %+v, want %d writes", family, ranges, res, edges)
		}
		st.Members.Delete(member(family, ranges, many/2))
		if res := apply(t, k, st); res.Transactions != 1 || res.Writes != edges {
			t.Errorf("IPv%d, ranges %v: one less: %+v, want %d writes", family, ranges, res, edges)
		}
	})
}
