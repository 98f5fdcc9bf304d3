package calc_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tortie/api"
	"tortie/desired"
	"tortie/explain"
)

// reading is a state in the form in which packets can be asked about.
type reading struct {
	state  *desired.State
	byNet  map[netip.Prefix]desired.Interface
	single map[desired.SetID]map[netip.Addr]bool
	ranges map[desired.SetID][]netip.Prefix
	places map[desired.SetID]map[place]bool   // a single address
	wide   map[desired.SetID][]desired.Member // and ranges
}

// place is where a named port is.
type place struct {
	addr  netip.Addr
	proto uint8
	port  uint16
}

func read(d *desired.State) *reading {
	r := &reading{
		state: d, byNet: map[netip.Prefix]desired.Interface{},
		single: map[desired.SetID]map[netip.Addr]bool{}, ranges: map[desired.SetID][]netip.Prefix{},
		places: map[desired.SetID]map[place]bool{}, wide: map[desired.SetID][]desired.Member{},
	}
	for _, i := range d.Interfaces.All() {
		for _, a := range i.Addrs {
			r.byNet[netip.PrefixFrom(a, a.BitLen())] = i
		}
		for _, p := range i.Ranges {
			r.byNet[p] = i
		}
	}
	for k := range d.Sets.All() {
		if k.Ports && r.places[k.ID] == nil {
			r.places[k.ID] = map[place]bool{}
		} else if !k.Ports && r.single[k.ID] == nil {
			r.single[k.ID] = map[netip.Addr]bool{}
		}
	}
	for m := range d.Members.All() {
		switch {
		case m.Set.Ports && m.Set.Ranges:
			r.wide[m.Set.ID] = append(r.wide[m.Set.ID], m)
		case m.Set.Ports:
			r.places[m.Set.ID][place{m.Prefix.Addr(), m.Protocol, m.Port}] = true
		case m.Set.Ranges:
			r.ranges[m.Set.ID] = append(r.ranges[m.Set.ID], m.Prefix)
		default:
			r.single[m.Set.ID][m.Prefix.Addr()] = true
		}
	}
	return r
}

// clone copies what a reading depends on, so that it outlives a Flush.
func clone(d *desired.State) *desired.State {
	c := desired.New()
	for k, v := range d.Interfaces.All() {
		c.Interfaces.Set(k, v)
	}
	for k, v := range d.Programs.All() {
		c.Programs.Set(k, v)
	}
	for k, v := range d.Sets.All() {
		c.Sets.Set(k, v)
	}
	for k := range d.Members.All() {
		c.Members.Set(k, struct{}{})
	}
	return c
}

// has is the interface with an address, or with the smallest range that it is in.
func (r *reading) has(a netip.Addr) (i desired.Interface, ok bool) {
	for bits := a.BitLen(); bits > 0 && !ok; bits-- {
		i, ok = r.byNet[netip.PrefixFrom(a, bits).Masked()]
	}
	return i, ok
}

// allows is what the kernel does with a packet that opens a connection.
func (r *reading) allows(p explain.Packet) bool {
	if i, ok := r.has(p.Src); ok && !r.program(i.Egress, p) {
		return false
	}
	if i, ok := r.has(p.Dst); ok && !r.program(i.Ingress, p) {
		return false
	}
	return true
}

func (r *reading) program(id desired.ProgramID, p explain.Packet) bool {
	prog, ok := r.state.Programs.Get(id)
	if !ok {
		panic("no program " + id)
	}
	return r.run(prog, p)
}

func (r *reading) run(prog desired.Program, p explain.Packet) bool {
	for _, st := range prog.Stages {
		switch r.stage(st, p) {
		case desired.Allow:
			return true
		case desired.Deny:
			return false
		}
	}
	return false
}

func (r *reading) stage(st desired.Stage, p explain.Packet) desired.Verdict {
	for i := range st.Rules {
		if v := st.Rules[i].Verdict; v != desired.Log && r.matches(&st.Rules[i], p) {
			return v
		}
	}
	return st.End
}

func (r *reading) matches(rule *desired.Rule, p explain.Packet) bool {
	family := 6
	if p.Dst.Is4() {
		family = 4
	}
	icmp := func(m *desired.ICMP) bool {
		return (p.Protocol == 1 || p.Protocol == 58) && p.ICMPType == m.Type && (m.Code < 0 || int(p.ICMPCode) == m.Code)
	}
	switch {
	case rule.Family != 0 && rule.Family != family:
	case rule.Protocol != 0 && rule.Protocol != p.Protocol:
	case rule.NotProtocol != 0 && rule.NotProtocol == p.Protocol:
	case rule.ICMP != nil && !icmp(rule.ICMP):
	case rule.NotICMP != nil && icmp(rule.NotICMP):
	default:
		return r.peer(&rule.Source, place{p.Src, p.Protocol, p.SrcPort}) && r.peer(&rule.Destination, place{p.Dst, p.Protocol, p.DstPort})
	}
	return false
}

func (r *reading) peer(e *desired.Peer, at place) bool {
	a, port, hasPort := at.addr, at.port, at.proto == 6 || at.proto == 17
	named := func(id desired.SetID) bool {
		if _, ok := r.places[id]; !ok {
			panic(fmt.Sprintf("no set of ports %v", id))
		}
		return r.places[id][at] || slices.ContainsFunc(r.wide[id], func(m desired.Member) bool {
			return m.Prefix.Contains(a) && m.Protocol == at.proto && m.Port == port
		})
	}
	in := func(nets []netip.Prefix) bool {
		return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	set := func(id desired.SetID) bool {
		if _, ok := r.single[id]; !ok {
			panic(fmt.Sprintf("no set %v", id))
		}
		return r.single[id][a] || in(r.ranges[id])
	}
	has := func(list []desired.PortRange) bool {
		return slices.ContainsFunc(list, func(x desired.PortRange) bool { return x.Min <= port && port <= x.Max })
	}
	switch {
	case len(e.Nets) > 0 && !in(e.Nets):
	case in(e.NotNets):
	case e.Set != 0 && !set(e.Set):
	case e.NotSet != 0 && set(e.NotSet):
	case e.Named != 0 && !named(e.Named):
	case e.NotNamed != 0 && (!hasPort || named(e.NotNamed)):
	case (len(e.Ports) > 0 || len(e.NotPorts) > 0) && !hasPort:
	case len(e.Ports) > 0 && !has(e.Ports):
	case has(e.NotPorts):
	default:
		return true
	}
	return false
}

// packets are one of each kind between all pairs of addresses of a family.
func packets(addrs []string) []explain.Packet {
	var out []explain.Packet
	for _, s := range addrs {
		for _, d := range addrs {
			src, dst := netip.MustParseAddr(s), netip.MustParseAddr(d)
			if s == d || src.Is4() != dst.Is4() {
				continue
			}
			icmp := explain.Packet{Src: src, Dst: dst, Protocol: 1, ICMPType: 8}
			if src.Is6() {
				icmp.Protocol, icmp.ICMPType = 58, 128
			}
			out = append(out, icmp,
				explain.Packet{Src: src, Dst: dst, Protocol: 6, SrcPort: 80, DstPort: 443},
				explain.Packet{Src: src, Dst: dst, Protocol: 6, SrcPort: 40000, DstPort: 80},
				explain.Packet{Src: src, Dst: dst, Protocol: 17, SrcPort: 7, DstPort: 70},
				explain.Packet{Src: src, Dst: dst, Protocol: 47})
		}
	}
	return out
}

// TestMeaning compares the verdicts of the programs, interpreted, with those
// of the reference of policy, on random policies.
//
// Staged policies change none, and what a trial would do is what they would do
// in force.
//
// Promises S3, S4, S5, S6: implicit deny, separate directions, all matches,
// and verdicts that are final.
func TestMeaning(t *testing.T) {
	start := seed(t)
	verdicts, changed := map[bool]int{}, 0
	for h := range 2000 {
		s := start + uint64(h)
		r := newRun(s)
		r.gen.unique = true
		r.steps(60)
		r.flush()
		cluster := explain.New()
		for _, st := range r.world.steps() {
			if o, ok := st.value.(api.Object); ok {
				cluster.Put(o)
			}
		}
		now, staged := read(r.state), cluster.Staged()
		for _, i := range r.state.Interfaces.All() {
			own := i.Addrs[0].String()
			for _, p := range packets([]string{
				own, i.Addrs[1].String(), "10.0.0.2", "10.0.1.5", "192.0.2.1", "fd00::2", "fd00::1:5", "2001:db8::1",
				"10.1.0.9", "10.1.16.9", "10.1.81.2", "10.1.113.1", "fd01::9", "fd01:1::9", "fd01:5::1:2",
			}) {
				dir, id := api.Ingress, i.Ingress
				if slices.Contains(i.Addrs, p.Src) {
					dir, id = api.Egress, i.Egress
				} else if !slices.Contains(i.Addrs, p.Dst) {
					continue
				}
				want := cluster.Endpoint(i.Endpoint, dir, p)
				got := now.program(id, p)
				if got != (want.Verdict == api.Allow) {
					t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n%+v: allowed is %v, but %s", s, text(r.state), p, got, want)
				}
				verdicts[got]++
				want = staged.Endpoint(i.Endpoint, dir, p)
				if prog, _ := r.state.Programs.Get(id); prog.Trial != nil {
					prog.Stages = prog.Trial
					tried := now.run(prog, p)
					if tried != got {
						changed++
					}
					got = tried
				}
				if got != (want.Verdict == api.Allow) {
					t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n%+v: staged policies would allow it is %v, but %s", s, text(r.state), p, got, want)
				}
			}
		}
	}
	if verdicts[true] < 1000 || verdicts[false] < 1000 || changed < 1000 {
		t.Errorf("%d packets allowed, %d denied, %d otherwise with staged policies: that tests little", verdicts[true], verdicts[false], changed)
	}
}

// TestHistoriesTighten checks that no connection that was allowed becomes
// forbidden without Tightened being set: it would go on, since the kernel
// judges a connection once.
func TestHistoriesTighten(t *testing.T) {
	start := seed(t)
	all := packets([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "10.0.1.9", "fd00::1", "fd00::2", "fd00::1:1", "fd00::1:9", "192.0.2.1", "2001:db8::1"})
	quiet, loud := 0, 0
	for h := range 1000 {
		s := start + uint64(h)
		r := newRun(s)
		r.steps(30)
		r.flush()
		if r.state.Tightened {
			t.Fatal("the first flush tightened")
		}
		for range 6 {
			before := read(clone(r.state))
			r.state.Tightened = false
			r.taken = nil
			r.steps(2)
			r.flush()
			after := read(r.state)
			if r.state.Tightened {
				loud++
				continue
			}
			quiet++
			for _, p := range all {
				if before.allows(p) && !after.allows(p) {
					t.Fatalf("TORTIE_TEST_SEED=%d\n%s\n%+v was allowed and is not any more, without Tightened", s, r.log(), p)
				}
			}
		}
	}
	if quiet < 1000 || loud < 500 {
		t.Errorf("%d flushes tightened and %d did not: that tests little", loud, quiet)
	}
}
