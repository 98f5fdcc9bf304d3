package nft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

// history changes a state at random, within what calc promises: ranges are
// disjoint, and the programs of a selector are touched when a set of it comes
// or goes.
type history struct {
	*rand.Rand
	st *desired.State
}

func (h *history) set() (id desired.SetID) { return desired.SetID(1 + h.IntN(5)) }

func (h *history) makeSets(id desired.SetID) {
	for _, fam := range []uint8{4, 6} {
		h.st.Sets.Set(desired.SetKey{ID: id, Family: fam}, desired.Set{})
	}
}

func (h *history) member() {
	id := h.set()
	h.makeSets(id)
	i := h.IntN(200)
	addr := netip.AddrFrom4([4]byte{10, byte(i), byte(id), 1})
	if h.IntN(2) == 0 {
		addr = netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(i), 2: byte(id)})
	}
	m := desired.Member{Set: desired.SetKey{ID: id, Family: 6, Ranges: h.IntN(3) == 0}, Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	if addr.Is4() {
		m.Set.Family = 4
	}
	if m.Set.Ranges {
		// Either a range or one of its halves.
		whole := netip.PrefixFrom(addr, 16).Masked()
		half := netip.PrefixFrom(whole.Addr(), 17)
		h.st.Members.Delete(desired.Member{Set: m.Set, Prefix: whole})
		h.st.Members.Delete(desired.Member{Set: m.Set, Prefix: half})
		m.Prefix = []netip.Prefix{whole, half}[h.IntN(2)]
	}
	if h.IntN(3) > 0 {
		if h.st.Sets.Set(m.Set, desired.Set{}) {
			h.touch(id)
		}
		h.st.Members.Set(m, struct{}{})
	} else {
		h.st.Members.Delete(m)
	}
}

// place changes a set of named ports: its IDs are its own.
func (h *history) place() {
	id := 10 + h.set()
	for _, fam := range []uint8{4, 6} {
		h.st.Sets.Set(desired.SetKey{ID: id, Family: fam, Ports: true}, desired.Set{})
	}
	m := desired.Member{
		Set:      desired.SetKey{ID: id, Family: 4, Ports: true, Ranges: h.IntN(3) == 0},
		Prefix:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(h.IntN(50)), 0, 1}), 32),
		Protocol: []uint8{6, 17}[h.IntN(2)], Port: uint16(80 + h.IntN(2)),
	}
	if h.IntN(2) == 0 {
		m.Set.Family, m.Prefix = 6, netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(h.IntN(50)), 15: 1}), 128)
	}
	if m.Set.Ranges {
		whole := netip.PrefixFrom(m.Prefix.Addr(), 16).Masked()
		half := netip.PrefixFrom(whole.Addr(), 17+h.IntN(3))
		for bits := 16; bits < 20; bits++ {
			m.Prefix = netip.PrefixFrom(whole.Addr(), bits)
			h.st.Members.Delete(m)
		}
		m.Prefix = []netip.Prefix{whole, half}[h.IntN(2)]
	}
	if h.IntN(3) == 0 {
		h.st.Members.Delete(m)
		return
	}
	if h.st.Sets.Set(m.Set, desired.Set{}) {
		h.touch(id)
	}
	h.st.Members.Set(m, struct{}{})
}

// translate changes what is translated, now and then all of it.
func (h *history) translate() {
	n := byte(h.IntN(5))
	own, external := netip.AddrFrom4([4]byte{10, 65, 0, n}), netip.AddrFrom4([4]byte{192, 0, 2, n})
	if h.IntN(2) == 0 {
		own, external = netip.AddrFrom16([16]byte{0: 0xfd, 15: n}), netip.AddrFrom16([16]byte{0: 0x20, 15: n})
	}
	switch h.IntN(6) {
	case 0:
		h.st.Floating.Delete(external)
	case 1:
		h.st.Floating.Set(external, own)
	case 2:
		h.st.External.Delete(own)
	case 3:
		h.st.External.Set(own, external)
	case 4:
		h.st.Masquerade.Delete(own)
		h.st.Inside.Delete(netip.PrefixFrom(own, 16).Masked())
	default:
		h.st.Masquerade.Set(own, struct{}{})
		h.st.Inside.Set(netip.PrefixFrom(own, 16+8*h.IntN(2)).Masked(), struct{}{})
	}
}

func (h *history) touch(id desired.SetID) {
	for p, program := range h.st.Programs.All() {
		for _, r := range program.Stages[0].Rules {
			if r.Source.Set == id || r.Destination.NotSet == id || r.Source.NotNamed == id || r.Destination.Named == id {
				h.st.Programs.Touch(p)
			}
		}
	}
}

// dropRanges takes a selector's ranges away, with the set.
func (h *history) dropRanges() {
	k := desired.SetKey{ID: h.set(), Family: []uint8{4, 6}[h.IntN(2)], Ranges: true}
	var members []desired.Member
	for m := range h.st.Members.All() {
		if m.Set == k {
			members = append(members, m)
		}
	}
	for _, m := range members {
		h.st.Members.Delete(m)
	}
	if h.st.Sets.Delete(k) {
		h.touch(k.ID)
	}
}

func (h *history) program() {
	id := desired.ProgramID(fmt.Sprint("p", h.IntN(6)))
	if h.IntN(4) == 0 {
		h.st.Programs.Delete(id)
		return
	}
	p := profile()
	for range h.IntN(8) {
		r := desired.Rule{ID: fmt.Sprint(h.IntN(20)), Verdict: []desired.Verdict{desired.Allow, desired.Deny, desired.Next, desired.Log}[h.IntN(4)]}
		if h.IntN(2) == 0 {
			r.Protocol = 6
			for range h.IntN(4) {
				r.Destination.Ports = append(r.Destination.Ports, desired.PortRange{Min: uint16(1000 * h.IntN(5)), Max: 5000})
				r.Source.NotPorts = append(r.Source.NotPorts, desired.PortRange{Min: uint16(h.IntN(5)), Max: uint16(h.IntN(5) * 7)})
			}
		}
		if h.IntN(2) == 0 {
			r.Source.NotNamed, r.Destination.Named = 10+h.set(), 10+h.set()
			for _, id := range []desired.SetID{r.Source.NotNamed, r.Destination.Named} {
				for _, fam := range []uint8{4, 6} {
					h.st.Sets.Set(desired.SetKey{ID: id, Family: fam, Ports: true}, desired.Set{})
				}
			}
		}
		if h.IntN(2) == 0 {
			r.Source.Set, r.Destination.NotSet = h.set(), h.set()
			h.makeSets(r.Source.Set)
			h.makeSets(r.Destination.NotSet)
		}
		p.Stages[0].Rules = append(p.Stages[0].Rules, r)
	}
	if h.IntN(2) == 0 {
		p.Stages = append(p.Stages, p.Stages[0])
	}
	h.st.Programs.Set(id, p)
}

func (h *history) endpoint() {
	n := h.IntN(30)
	name := fmt.Sprint("tap", n)
	if h.IntN(3) == 0 {
		h.st.Interfaces.Delete(name)
		return
	}
	in := desired.Interface{
		Index: 100 + n, HasMAC: h.IntN(2) == 0, MAC: [6]byte{2, byte(h.IntN(2))},
		Ingress: desired.ProgramID(fmt.Sprint("p", h.IntN(6))), Egress: desired.ProgramID(fmt.Sprint("p", h.IntN(6))),
	}
	for i := range h.IntN(3) {
		in.Addrs = append(in.Addrs, netip.AddrFrom4([4]byte{10, 65, byte(n), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(n), 15: byte(i)}))
	}
	for range h.IntN(4) {
		in.Ranges = append(in.Ranges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(n), byte(64 * h.IntN(4))}), 14+h.IntN(15)).Masked())
		in.Spoofed = append(in.Spoofed, netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(n), 15: byte(64 * h.IntN(4))}), h.IntN(128)).Masked())
	}
	h.st.Interfaces.Set(name, in)
}

// controls come and go apart from their interface, whose element is of its own.
func (h *history) controls() {
	n := h.IntN(30)
	c := desired.Controls{Index: 100 + n}
	if h.IntN(2) == 0 {
		c.Egress, c.Mark, c.DSCP = desired.Limits{PacketRate: 1 + uint32(h.IntN(3)), PacketBurst: 5}, true, uint8(h.IntN(3))
	}
	if h.IntN(2) == 0 {
		c.Ingress = desired.Limits{PacketRate: 1 + uint32(h.IntN(3)), PacketBurst: 5, Connections: uint32(h.IntN(3))}
	}
	if name := fmt.Sprint("tap", n); h.IntN(2) == 0 {
		h.st.Controls.Delete(name)
	} else {
		h.st.Controls.Set(name, c)
	}
}

// After any history of changes the kernel holds what a new process would
// write, no more and no less; an epoch's bump changes nothing of that.
func TestRandomHistory(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			host := nstest.New(t)
			h := &history{rand.New(rand.NewPCG(seed, 1)), desired.New()}
			tb := openLimited(t, 100*int(seed%2))
			steps := []func(){h.member, h.member, h.place, h.place, h.program, h.endpoint, h.dropRanges, h.translate, h.controls}
			for i := range 150 {
				for range 1 + h.IntN(6) {
					steps[h.IntN(len(steps))]()
				}
				if res := apply(t, tb, h.st); res.Transactions > 2 || res.Repaired {
					t.Fatalf("step %d: %+v", i, res)
				}
				if h.IntN(10) == 0 {
					bump(t, tb)
				}
				if i%10 == 0 {
					settled(t, tb, h.st)
				}
			}
			settled(t, tb, h.st)
			got := dump(t, tb)
			if err := tb.Cleanup(context.Background()); err != nil {
				t.Fatal(err)
			}
			fresh := openLimited(t, tb.opts.HostRate)
			fresh.epoch = tb.epoch
			apply(t, fresh, h.st)
			if want := dump(t, fresh); withoutSizes(got) != withoutSizes(want) {
				t.Errorf("after the history:\n%s\nfrom scratch:\n%s", got, want)
			}
			host.Run(t, "nft", "list", "ruleset")
		})
	}
}

// withoutSizes leaves out how much room a set has, which depends on what it
// once had to hold.
func withoutSizes(text string) string { return sizes.ReplaceAllString(text, "") }

var sizes = regexp.MustCompile(` size \d+`)
