package labelindex

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"tortie/api"
	"tortie/selector"
)

// TestPorts changes items and selectors at random and compares the members
// that the changes add up to with those found by looking at everything.
func TestPorts(t *testing.T) {
	texts := []string{"all()", "a == 'x'", "!has(a)", "a != 'y'"}
	lists := [][]string{{"http"}, {"dns", "http"}, {"dns"}}
	nets := []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/24", "10.0.0.0/25", "fd00::1/128", "fd00::/64", "fd00::/65"}
	for seed := range uint64(300) {
		g := rand.New(rand.NewPCG(seed, 7))
		x := NewPorts()
		items := map[api.Key]portItem{}
		active := map[uint64]bool{}
		got := map[uint64]map[PortMember]bool{}
		for range 60 {
			k := api.Key{Kind: api.KindWorkloadEndpoint, Name: fmt.Sprint(g.IntN(5))}
			id := uint64(g.IntN(len(texts) * len(lists)))
			switch g.IntN(5) {
			case 0:
				x.DeleteItem(k)
				delete(items, k)
			case 1:
				x.SetSelector(id, must(t, texts[id%4]), lists[id/4])
				active[id] = true
			case 2:
				x.DeleteSelector(id)
				delete(active, id)
			case 3:
				takeChanges(t, x, got)
			default:
				i := portItem{labels: map[string]string{}}
				if g.IntN(2) == 0 {
					i.labels["a"] = []string{"x", "y"}[g.IntN(2)]
				}
				for range g.IntN(3) {
					i.prefixes = append(i.prefixes, netip.MustParsePrefix(nets[g.IntN(len(nets))]))
				}
				for range g.IntN(3) {
					i.ports = append(i.ports, api.NamedPort{
						Name: []string{"http", "dns", ""}[g.IntN(3)], Protocol: api.Protocol{Number: []uint8{6, 17, 1}[g.IntN(3)]}, Port: uint16(g.IntN(3)),
					})
				}
				x.SetItem(k, i.labels, i.prefixes, i.ports)
				items[k] = i
			}
		}
		takeChanges(t, x, got)
		want := map[uint64]map[PortMember]bool{}
		for id := range active {
			want[id] = membersOf(must(t, texts[id%4]), lists[id/4], items)
		}
		for id := range uint64(len(texts) * len(lists)) {
			if !maps.Equal(got[id], want[id]) {
				t.Fatalf("seed %d: selector %d has %v, want %v", seed, id, got[id], want[id])
			}
		}
	}
}

func must(t *testing.T, text string) *selector.Selector {
	t.Helper()
	s, err := selector.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func takeChanges(t *testing.T, x *Ports, got map[uint64]map[PortMember]bool) {
	t.Helper()
	for c := range x.Changes() {
		if got[c.Selector] == nil {
			got[c.Selector] = map[PortMember]bool{}
		}
		if got[c.Selector][c.PortMember] == c.Add {
			t.Fatalf("%+v says nothing new", c)
		}
		if c.Add {
			got[c.Selector][c.PortMember] = true
		} else {
			delete(got[c.Selector], c.PortMember)
		}
	}
	for c := range x.Changes() {
		t.Fatalf("%+v was delivered twice", c)
	}
}

// membersOf are the members of a selector and names: of ranges those that are
// within no other.
func membersOf(s *selector.Selector, names []string, items map[api.Key]portItem) map[PortMember]bool {
	all := map[PortMember]bool{}
	for _, i := range items {
		for _, p := range i.ports {
			if s.Match(i.labels) && slices.Contains(names, p.Name) && p.Name != "" && p.Port != 0 && p.Protocol.HasPorts() {
				for _, q := range i.prefixes {
					all[PortMember{q, p.Protocol.Number, p.Port}] = true
				}
			}
		}
	}
	out := map[PortMember]bool{}
	for m := range all {
		inner := false
		for o := range all {
			inner = inner || isRange(m.Prefix) && o.Protocol == m.Protocol && o.Port == m.Port &&
				o.Prefix.Bits() < m.Prefix.Bits() && o.Prefix.Contains(m.Prefix.Addr())
		}
		if !inner {
			out[m] = true
		}
	}
	return out
}

// TestPortChurnIsOneElement: an endpoint that joins changes one member.
func TestPortChurnIsOneElement(t *testing.T) {
	x := NewPorts()
	x.SetSelector(1, must(t, "all()"), []string{"http"})
	http := []api.NamedPort{{Name: "http", Protocol: api.Protocol{Number: 6}, Port: 80}}
	for i := range 1000 {
		k := api.Key{Name: fmt.Sprint(i)}
		x.SetItem(k, nil, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}, http)
	}
	for range x.Changes() { //nolint:revive // delivered
	}
	x.SetItem(api.Key{Name: "another"}, nil, []netip.Prefix{netip.MustParsePrefix("fd00::1/128")}, http)
	want := PortChange{1, PortMember{netip.MustParsePrefix("fd00::1/128"), 6, 80}, true}
	if got := slices.Collect(x.Changes()); len(got) != 1 || got[0] != want {
		t.Errorf("changes are %v, want %v alone", got, want)
	}
}
