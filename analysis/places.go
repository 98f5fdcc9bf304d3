package analysis

import (
	"net/netip"
	"slices"

	"tortie/api"
)

// span is the addresses from the first to the last.
type span struct{ first, last netip.Addr }

// place is addresses with the same owners, alike to all rules.
type place struct {
	span
	addr   netip.Addr // one of them
	owners []api.Key  // endpoints that have them at any site; none outside
	names  map[api.Key]string
}

// holders returns the endpoints that have an address, be it in a range in which
// another has it.
func (s *site) holders(a netip.Addr) []*api.WorkloadEndpoint {
	var list []*api.WorkloadEndpoint
	for bits := a.BitLen(); bits > 0; bits-- {
		p, _ := a.Prefix(bits) // of a valid length
		list = append(list, s.networks[p]...)
	}
	return list
}

// places returns all addresses.
func (u *universe) places() []place {
	single := map[netip.Addr]bool{}
	var list []place
	for _, s := range u.sites {
		for p := range s.networks {
			if a := p.Addr(); p.IsSingleIP() && !single[a] {
				single[a] = true
				list = append(list, place{span: span{a, a}, addr: a})
			}
		}
	}
	for _, r := range u.spans() {
		a := r.first
		for single[a] && a != r.last {
			a = a.Next()
		}
		if !single[a] {
			list = append(list, place{span: r, addr: a})
		}
	}
	type family struct {
		key     api.Key
		version int
	}
	in := map[family]int{} // how many places an endpoint is in
	for i := range list {
		for _, s := range u.sites {
			for _, key := range s.Owners(list[i].addr) {
				if !slices.Contains(list[i].owners, key) {
					list[i].owners = append(list[i].owners, key)
					in[family{key, version(list[i].addr)}]++
				}
			}
		}
	}
	for i := range list {
		list[i].names = map[api.Key]string{}
		for _, key := range list[i].owners {
			name := key.Namespace + "/" + key.Name
			if in[family{key, version(list[i].addr)}] > 1 {
				name += " (" + list[i].String() + ")"
			}
			list[i].names[key] = name
		}
	}
	slices.SortFunc(list, func(a, b place) int { return a.first.Compare(b.first) })
	return list
}

// spans cuts all addresses at the edges of the nets that are named anywhere,
// of the ranges of endpoints, and of the addresses of hosts that have endpoints.
// A workload's single address is in one of them, and apart from it.
func (u *universe) spans() []span {
	cuts := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	add := func(p netip.Prefix) { cuts = append(cuts, p.Masked().Addr(), lastOf(p).Next()) }
	for _, e := range u.entities {
		for _, p := range slices.Concat(e.Nets.Prefixes, e.NotNets.Prefixes) {
			add(p)
		}
	}
	for _, s := range u.sites {
		for p := range s.networks {
			if !p.IsSingleIP() {
				add(p)
			}
		}
		for key, o := range s.objects {
			switch o := o.(type) {
			case *api.NetworkSet:
				for _, p := range o.Spec.Nets.Prefixes {
					add(p)
				}
			case *api.HostEndpoint:
				for _, a := range s.Addresses(key) {
					add(netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	cuts = slices.DeleteFunc(cuts, func(a netip.Addr) bool { return !a.IsValid() }) // after the last
	slices.SortFunc(cuts, netip.Addr.Compare)
	cuts = slices.Compact(cuts)
	var spans []span
	for i, a := range cuts {
		last := lastOf(netip.PrefixFrom(a, 0))
		if i+1 < len(cuts) && version(cuts[i+1]) == version(a) {
			last = cuts[i+1].Prev()
		}
		spans = append(spans, span{a, last})
	}
	return spans
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes
	return a
}

// String prints an address, or a prefix if the span is one.
func (r span) String() string {
	if r.first == r.last {
		return r.first.String()
	}
	for bits := range r.first.BitLen() + 1 {
		if p := netip.PrefixFrom(r.first, bits); p.Masked().Addr() == r.first && lastOf(p) == r.last {
			return p.String()
		}
	}
	return r.first.String() + "-" + r.last.String()
}
