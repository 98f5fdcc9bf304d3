package labelindex

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"tortie/api"
	"tortie/selector"
)

const benchItems = 250_000

// benchItem makes endpoint i with one of sets label sets: 7 labels as an
// OpenStack port has them, one in 20 groups and all in one.
func benchItem(i, sets int) (api.Key, map[string]string, []netip.Prefix) {
	n := i % sets
	labels := map[string]string{
		"projectcalico.org/namespace":                 "openstack",
		"projectcalico.org/orchestrator":              "openstack",
		"projectcalico.org/openstack-network-name":    "net" + fmt.Sprint(n%100),
		"projectcalico.org/openstack-project-id":      fmt.Sprintf("project-%d", n),
		"sg.projectcalico.org/openstack-everybody":    "everybody",
		fmt.Sprintf("sg.projectcalico.org/g%d", n%20): "member",
		"role": fmt.Sprint("role", n%7),
	}
	v4 := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	v6 := netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	return wep(fmt.Sprintf("compute--%d-openstack-%032x-%032x", i%2500, i, i)), labels,
		[]netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}
}

// activate makes 2,000 selectors active: the two kinds of groups that
// benchItem has, and many that select few items or none.
func activate(b testing.TB, x *Index) {
	x.SetSelector(1, sel(b, "has(sg.projectcalico.org/openstack-everybody)"))
	for i := range 20 {
		x.SetSelector(uint64(10+i), sel(b, fmt.Sprintf("has(sg.projectcalico.org/g%d) && projectcalico.org/namespace == 'openstack'", i)))
	}
	for i := range 2000 {
		x.SetSelector(uint64(100+i), selector.Equal("projectcalico.org/openstack-project-id", fmt.Sprintf("project-%d", i)))
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func eachScale(b *testing.B, f func(b *testing.B, sets int)) {
	b.Run("sets=3000", func(b *testing.B) { f(b, 3000) })
	b.Run("distinct", func(b *testing.B) { f(b, benchItems) })
}

// BenchmarkStart fills an index with 250,000 items, makes 2,021 selectors
// active and takes the changes.
func BenchmarkStart(b *testing.B) {
	eachScale(b, func(b *testing.B, sets int) {
		type in struct {
			k      api.Key
			labels map[string]string
			p      []netip.Prefix
		}
		var ins []in
		for i := range benchItems {
			k, l, p := benchItem(i, sets)
			ins = append(ins, in{k, l, p})
		}
		var x *Index
		var before, after uint64
		for b.Loop() {
			b.StopTimer()
			x = New()
			before = heap()
			b.StartTimer()
			for _, i := range ins {
				x.SetItem(i.k, i.labels, i.p)
			}
			activate(b, x)
			n := 0
			for range x.Changes() {
				n++
			}
			b.StopTimer()
			after = heap()
			if n < 4*benchItems {
				b.Fatalf("%d changes", n)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(after-before)/benchItems, "heap-B/item")
		runtime.KeepAlive(x)
		runtime.KeepAlive(ins)
	})
}

// BenchmarkRelabel moves a remote endpoint from one group to another.
func BenchmarkRelabel(b *testing.B) {
	eachScale(b, func(b *testing.B, sets int) {
		x := New()
		for i := range benchItems {
			x.SetItem(benchItem(i, sets))
		}
		activate(b, x)
		for range x.Changes() {
		}
		k, labels, p := benchItem(4711, sets)
		n := 0
		b.ReportAllocs()
		for b.Loop() {
			delete(labels, fmt.Sprintf("sg.projectcalico.org/g%d", n%20))
			n++
			labels[fmt.Sprintf("sg.projectcalico.org/g%d", n%20)] = "member"
			x.SetItem(k, labels, p)
			changes := 0
			for range x.Changes() {
				changes++
			}
			if n > 20 && changes != 4 {
				b.Fatalf("%d changes, want 4", changes)
			}
		}
	})
}

// BenchmarkSelector makes a selector active and inactive again.
func BenchmarkSelector(b *testing.B) {
	eachScale(b, func(b *testing.B, sets int) {
		x := New()
		for i := range benchItems {
			x.SetItem(benchItem(i, sets))
		}
		for _, text := range []string{
			"projectcalico.org/openstack-project-id == 'project-7' && projectcalico.org/namespace == 'openstack'",
			"has(sg.projectcalico.org/g3) && role != 'role1'",
			"has(sg.projectcalico.org/openstack-everybody)",
		} {
			s := sel(b, text)
			b.Run(text[:20], func(b *testing.B) {
				for b.Loop() {
					x.SetSelector(1, s)
					for range x.Changes() {
					}
					x.DeleteSelector(1)
					for range x.Changes() {
					}
				}
			})
		}
	})
}

// BenchmarkRange adds one range to 100,000 others and removes it again.
func BenchmarkRange(b *testing.B) {
	x := New()
	x.SetSelector(1, selector.All())
	for i := range 100_000 {
		x.SetItem(wep(fmt.Sprint(i)), nil, []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 30).Masked(),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2: byte(i >> 16), 3: byte(i >> 8), 4: byte(i)}), 40),
		})
	}
	for range x.Changes() {
	}
	p := prefixes("10.0.100.0/23", "fd00:1::/32")
	for b.Loop() {
		x.SetItem(wep("one"), nil, p)
		for range x.Changes() {
		}
		x.DeleteItem(wep("one"))
		for range x.Changes() {
		}
	}
}
