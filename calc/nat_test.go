package calc_test

import (
	"net/netip"
	"testing"

	"tortie/api"
	"tortie/desired"
	"tortie/explain"
)

// TestFloatingMeaning compares, for random clusters, where external addresses
// lead with what explain says of them.
func TestFloatingMeaning(t *testing.T) {
	start := seed(t)
	led, elsewhere := 0, 0
	for h := range 2000 {
		s := start + uint64(h)
		r := newRun(s)
		for range 15 {
			r.steps(10)
		}
		r.flush()
		cluster := explain.New()
		for _, st := range r.world.steps() {
			if o, ok := st.value.(api.Object); ok {
				cluster.Put(o)
			}
		}
		for _, text := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.3"} {
			external := netip.MustParseAddr(text)
			to, here := r.state.Floating.Get(external)
			k, internal, ok := cluster.Floating(external)
			bound := false
			if here {
				led++
				i := holderOf(r.state, to)
				bound = i == nil || i.Endpoint == k
			}
			switch {
			case here && (!ok || internal != to || !bound):
				t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n%s leads to %s here; explain says %v %v %v", s, r.log(), external, to, k, internal, ok)
			case !here && ok:
				elsewhere++
				if i := holderOf(r.state, internal); i != nil && i.Endpoint == k {
					t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n%s leads nowhere here; explain says to %s of %v", s, r.log(), external, internal, k)
				}
			}
		}
	}
	if led < 50 || elsewhere < 100 {
		t.Errorf("%d led here, %d elsewhere: that is too few to mean anything", led, elsewhere)
	}
}

// holderOf returns the interface that has an address, if one is there.
func holderOf(d *desired.State, a netip.Addr) *desired.Interface {
	for _, i := range d.Interfaces.All() {
		for _, own := range i.Addrs {
			if own == a {
				return &i
			}
		}
	}
	return nil
}
