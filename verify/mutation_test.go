package verify

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/explain"
	"tortie/proof"
	"tortie/space"
)

var mutations = flag.Int("mutations", 20, "how many mutations of rulesets TestMutations makes")

const (
	perWorld = 50 // mutations
	startOf  = 15 // changes, so few that most matter
	perWay   = 3  // packets on each side of what policy allows
)

// tally counts mutants, and packets.
type tally struct {
	found, equal, refused, undecided int
	witnesses, packets, allowed      int
}

// TestMutations: a change of the kernel's ruleset that changes what becomes of
// a packet is found, and each witness shows it when it is sent; where nothing
// is found, packets at the edges of what policy allows show no difference.
func TestMutations(t *testing.T) {
	seed := seedOr(t, 1) // what is found depends on chance, whether it is right does not
	var sum tally
	for n := uint64(0); int(n)*perWorld < *mutations; n++ {
		ok := t.Run(fmt.Sprintf("TORTIE_TEST_SEED=%d", seed+n), func(t *testing.T) {
			mutate(t, seed+n, min(perWorld, *mutations-int(n)*perWorld), &sum)
		})
		if !ok {
			return
		}
	}
	t.Logf("%+v", sum)
	if n := *mutations; sum.found < n/10 || sum.equal < n/10 || sum.undecided > n/20 || sum.refused > n/10 || sum.packets < 10*n || sum.allowed < n {
		t.Error("that tests little")
	}
}

// mutate makes mutants of the tables of one world.
func mutate(t *testing.T, seed uint64, n int, sum *tally) {
	r := rand.New(rand.NewPCG(seed, 7))
	w := proof.New(t)
	d := proof.NewDraw(w, seed)
	start := slices.DeleteFunc(d.Start(startOf), func(c proof.Change) bool {
		return bytes.Contains(c.Put, []byte(`"natOutgoing"`)) // the other host would see another source
	})
	if err := w.Change(start...); err != nil {
		t.Fatal(err)
	}
	for _, host := range w.HostNames() {
		w.Stop(host) // lest it repair what is changed
	}
	for done := 0; done < n && !t.Failed(); {
		host := w.HostNames()[r.IntN(2)]
		var m *mutant
		var c *netlink.Conn
		var err error
		w.Do(host, func() {
			if c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err == nil {
				m, err = drawMutant(c, r)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if m != nil {
			done++
			one(t, w, host, m, c, r, sum)
		}
		_ = c.Close()
	}
	for _, host := range w.HostNames() {
		for _, f := range check(t, w, host, nil).Findings {
			t.Errorf("in the end: %s", f)
		}
	}
}

// one makes a mutant, judges it, and takes it back.
func one(t *testing.T, w *proof.World, host string, m *mutant, c *netlink.Conn, r *rand.Rand, sum *tally) {
	if err := m.do(c); err != nil {
		if sum.refused++; !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Fatalf("%s: %s: %v", host, m.what, err)
		}
		return
	}
	report := check(t, w, host, sendable(w, host))
	switch {
	case report.Wrong():
		sum.found++
		for _, f := range report.Findings {
			if f.Kind != Undecided && f.Packet.Src != f.Packet.Dst {
				shown(t, w, host, m, f)
				sum.witnesses++
			}
		}
	case report.Proven():
		sum.equal++
		agree(t, w, host, m, r, sum)
	default:
		sum.undecided++
		t.Logf("%s: %s: %s", host, m.what, report.Findings[0])
	}
	if err := m.undo(c); err != nil {
		t.Fatalf("%s: undo %s: %v", host, m.what, err)
	}
}

// sendable are the headers that proof can send and see arrive, and whose fate
// is up to one host alone: of its protocols, not DHCP, and what comes to the
// other host passes that. IPv4 sources that a workload has not are refused by
// the kernel's reverse path filter too.
func sendable(w *proof.World, host string) func(*space.Space, *local) space.Set {
	hosts := w.HostNames()
	other := &Host{Name: hosts[1-slices.Index(hosts, host)], Cluster: w.Cluster(), Index: func(string) uint32 { return outsideIndex }}
	remote := other.locals(&Report{})
	return func(s *space.Space, from *local) space.Set {
		set := s.Proto(1, 6, 17, 47, 58, 89, 115, 132, 136, 253)
		set = set.Minus(s.Proto(17).And(s.Ports(space.DstPort, 67, 68).Or(s.Ports(space.DstPort, 546, 547))))
		set = set.Minus(s.HasPorts().And(s.Ports(space.SrcPort, 0, 0).Or(s.Ports(space.DstPort, 0, 0))))
		for _, f := range []space.Field{space.SrcAddr, space.DstAddr} {
			set = set.And(s.Nets(f, prefixes("10.65.0.0/16", "198.51.100.0/24", "fd00:65::/32", "2001:db8:1::/48")))
		}
		if from.WorkloadEndpoint != nil {
			set = set.Minus(s.IP(4).Minus(s.Nets(space.SrcAddr, nets(from))))
		}
		outside := &local{}
		own := s.Nets(space.SrcAddr, all(remote))
		for _, l := range remote {
			to := s.Nets(space.DstAddr, nets(l))
			set = set.Minus(to.Minus(policy(s, outside, l))).Minus(to.And(own))
			for external := range l.externals {
				set = set.Minus(s.Addrs(space.DstAddr, external, external))
			}
		}
		return set
	}
}

// packetFrom is a packet as proof sends it.
func packetFrom(w *proof.World, host string, from api.Key, p space.Packet) proof.Packet {
	out := proof.Packet{From: w.BeyondOf(host), Packet: explain.Packet{
		Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort, ICMPType: p.ICMPType, ICMPCode: p.ICMPCode,
	}}
	if from.Name != "" {
		out.From = w.PlaceOf(from)
	}
	return out
}

// shown sends a witness.
func shown(t *testing.T, w *proof.World, host string, m *mutant, f Finding) {
	t.Helper()
	p := packetFrom(w, host, f.From, f.Packet)
	w.Forget()
	at, want := w.Where([]proof.Packet{p})[0], w.Expect(p)
	if is := map[string]bool{Passes: at != "", Dropped: at == "", Astray: at != want.Place || at == ""}; !is[f.Kind] {
		t.Errorf("%s: %s: %s, and it does not: %s arrives at %q, want %q: %s", host, m.what, f, p, at, want.Place, want)
	}
}

// agree sends packets at the edges of what policy allows, from both sides.
func agree(t *testing.T, w *proof.World, host string, m *mutant, r *rand.Rand, sum *tally) {
	t.Helper()
	var packets []proof.Packet
	pass := map[proof.Packet]bool{}
	w.Do(host, func() {
		h := &Host{Name: host, Cluster: w.Cluster(), Index: Interface, Peers: proof.SlotsPerHost, within: sendable(w, host)}
		locals := h.locals(&Report{})
		for _, way := range h.ways(locals, h.outsides(&Report{})) {
			s := space.New(0)
			domain, want := h.question(s, locals, way[0], way[1])
			for i, side := range []space.Set{want, domain.Minus(want)} {
				for range perWay {
					if p, ok := side.Corner(r); ok && p.Src != p.Dst { // the kernel forwards none to its sender
						packet := packetFrom(w, host, way[0].key(), p)
						packets, pass[packet] = append(packets, packet), i == 0
					}
				}
			}
		}
	})
	packets = w.Apart(packets)
	w.Forget()
	for i, at := range w.Where(packets) {
		p := packets[i]
		sum.packets++
		if pass[p] {
			sum.allowed++
		}
		// Whose source is of an endpoint elsewhere, is not from there.
		if want := w.Expect(p); pass[p] != (at != "") || pass[p] && want.Place != "" && at != want.Place {
			t.Errorf("%s: %s, said to be equal: %s arrives at %q, want %q: %s", host, m.what, p, at, want.Place, want)
		}
	}
}
