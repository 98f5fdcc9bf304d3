package bgp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	peerA, peerB = netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("fd00::2")
	epoch        = time.Unix(1_000_000, 0)
)

// rig drives an importer as text, with a map for a kernel.
type rig struct {
	t      *testing.T
	m      *importer
	kernel map[netip.Prefix]netip.Addr
	now    time.Time
	log    []string // what was written since the last step
	refuse bool
}

func newRig(t *testing.T, found ...string) *rig {
	r := &rig{t: t, m: newImporter(), kernel: map[netip.Prefix]netip.Addr{}, now: epoch}
	for _, p := range found {
		r.kernel[netip.MustParsePrefix(p)] = peerA
	}
	r.m.kernelHas(r.kernel)
	return r
}

func (r *rig) start(peers ...netip.Addr) {
	r.m.restart(sessionsTo(peers...), r.now, time.Minute)
}

func sessionsTo(peers ...netip.Addr) map[netip.Addr]session {
	sessions := map[netip.Addr]session{}
	for _, p := range peers {
		sessions[p] = session{peer: p}
	}
	return sessions
}

// learn, lose and withdraw are what happens to a best path.
func (r *rig) learn(from netip.Addr, prefixes ...string) {
	for _, p := range prefixes {
		r.m.event(event{paths: map[netip.Prefix]path{netip.MustParsePrefix(p): {nextHop: from, from: from}}}, r.now)
	}
}

func (r *rig) lose(from netip.Addr, prefix string) {
	r.m.event(event{paths: map[netip.Prefix]path{netip.MustParsePrefix(prefix): {from: from, lost: true}}}, r.now)
}

func (r *rig) withdraw(from netip.Addr, prefix string) {
	r.m.event(event{paths: map[netip.Prefix]path{netip.MustParsePrefix(prefix): {from: from}}}, r.now)
}

func (r *rig) peer(e peerEvent) { r.m.event(event{peer: &e}, r.now) }

func (r *rig) after(d time.Duration) { r.now = r.now.Add(d); r.m.tick(r.now) }

// apply does the work there is, and checks that there is none afterwards.
func (r *rig) apply() {
	replace, remove := r.m.work()
	for _, w := range replace {
		if !r.refuse {
			r.kernel[w.prefix] = w.nextHop
			r.m.written(w)
			r.log = append(r.log, fmt.Sprintf("+%s %s", w.prefix, w.nextHop))
		}
	}
	for _, p := range remove {
		if !r.refuse {
			delete(r.kernel, p)
			r.m.removed(p)
			r.log = append(r.log, fmt.Sprintf("-%s", p))
		}
	}
	if a, b := r.m.work(); !r.refuse && len(a)+len(b) > 0 {
		r.t.Errorf("after the work there is %v %v", a, b)
	}
}

// step checks what is written after what was done since the last one.
func (r *rig) step(why string, want ...string) {
	r.t.Helper()
	r.log = nil
	r.apply()
	if got := strings.Join(r.log, "\n"); got != strings.Join(want, "\n") {
		r.t.Errorf("%s: wrote %q, want %q", why, r.log, want)
	}
}

func TestImporterRestart(t *testing.T) {
	r := newRig(t, "10.0.0.1/32", "10.0.0.2/32", "fd00::1/128")
	r.start(peerA, peerB)
	r.step("a restart writes nothing")
	r.learn(peerA, "10.0.0.1/32")
	r.step("what is there is not written again")
	r.learn(peerB, "fd00::1/128")
	r.step("its next hop is another now", "+fd00::1/128 "+peerB.String())
	r.peer(peerEvent{peer: peerA, endOfRIB: true})
	r.step("one End-of-RIB is still to come")
	r.withdraw(peerA, "10.0.0.1/32")
	r.step("what was announced and is withdrawn goes at once", "-10.0.0.1/32")
	r.peer(peerEvent{peer: peerB, endOfRIB: true})
	r.step("all have sent theirs", "-10.0.0.2/32")
	r.m.kernelHas(map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.0.0.9/32"): peerA})
	r.step("what others add goes, what they delete is back", "+fd00::1/128 "+peerB.String(), "-10.0.0.9/32")
}

func TestImporterDeferral(t *testing.T) {
	for why, end := range map[string]func(*rig){
		"the deferral time is over":    func(r *rig) { r.after(time.Second) },
		"the absent peer is no longer": func(r *rig) { r.m.expect(sessionsTo(peerA)) },
	} {
		r := newRig(t, "10.0.0.1/32", "fd00::1/128")
		r.start(peerA, peerB)
		r.learn(peerA, "10.0.0.1/32")
		r.peer(peerEvent{peer: peerA, endOfRIB: true})
		r.after(time.Minute - time.Second)
		r.step("the other peer is absent")
		if d, ok := r.m.deadline(); !ok || !d.Equal(epoch.Add(time.Minute)) {
			t.Errorf("next deadline %v %v", d, ok)
		}
		end(r)
		r.step(why, "-fd00::1/128")
		if _, ok := r.m.deadline(); ok {
			t.Error("a deadline with nothing to wait for")
		}
	}
	r := newRig(t, "10.0.0.1/32")
	r.start()
	r.step("no peers at all", "-10.0.0.1/32")
}

func TestImporterPeerRestart(t *testing.T) {
	const p = "10.0.0.1/32"
	down := peerEvent{peer: peerA, restart: 30 * time.Second}
	for why, c := range map[string]struct {
		do   func(*rig)
		want []string
	}{
		"it is away":                {do: func(r *rig) { r.after(29 * time.Second) }},
		"it does not return":        {do: func(r *rig) { r.after(30 * time.Second) }, want: []string{"-" + p}},
		"it is no peer any more":    {do: func(r *rig) { r.m.expect(sessionsTo(peerB)) }, want: []string{"-" + p}},
		"another announces it":      {do: func(r *rig) { r.learn(peerB, p) }, want: []string{"+" + p + " " + peerB.String()}},
		"it is back, not done":      {do: func(r *rig) { r.peer(peerEvent{peer: peerA, established: true}); r.after(40 * time.Second) }},
		"it is back, never done":    {do: func(r *rig) { r.peer(peerEvent{peer: peerA, established: true}); r.after(2 * time.Minute) }, want: []string{"-" + p}},
		"it is back without it":     {do: func(r *rig) { r.peer(peerEvent{peer: peerA, endOfRIB: true}) }, want: []string{"-" + p}},
		"another one is done":       {do: func(r *rig) { r.peer(peerEvent{peer: peerB, endOfRIB: true}) }},
		"it is back with it":        {do: func(r *rig) { r.learn(peerA, p); r.peer(peerEvent{peer: peerA, endOfRIB: true}) }},
		"it withdraws it, returned": {do: func(r *rig) { r.learn(peerA, p); r.withdraw(peerA, p) }, want: []string{"-" + p}},
	} {
		r := newRig(t)
		r.start(peerA, peerB)
		r.learn(peerA, p)
		r.step("learned", "+"+p+" "+peerA.String())
		r.peer(down)
		r.lose(peerA, p)
		r.step("the session is down")
		c.do(r)
		r.step(why, c.want...)
	}
	// A session that ends for good takes its routes along, and so does one
	// whose peer cannot restart gracefully.
	r := newRig(t)
	r.start(peerA)
	r.learn(peerA, p)
	r.apply()
	r.withdraw(peerA, p)
	r.peer(peerEvent{peer: peerA})
	r.step("a notification", "-"+p)
	// The end of the session with one that is no peer any more may be heard of
	// after that.
	r = newRig(t)
	r.start(peerA, peerB)
	r.learn(peerA, p)
	r.apply()
	r.m.expect(sessionsTo(peerB))
	r.peer(down)
	r.lose(peerA, p)
	r.step("it is no peer any more", "-"+p)
}

func TestImporterLeavesLocalPrefixes(t *testing.T) {
	const p4, p6 = "10.0.0.1/32", "fd00::1/128"
	local := []netip.Prefix{netip.MustParsePrefix(p4), netip.MustParsePrefix(p6)}
	r := newRig(t, p4)
	r.m.localRoutes(local, nil)
	r.start(peerA)
	r.step("learned before, local now", "-"+p4)
	r.learn(peerA, p4, p6)
	r.step("announced by a peer too")
	r.m.localRoutes(nil, local[1:])
	r.step("no longer local", "+"+p6+" "+peerA.String())
	r.m.localRoutes(local[1:], nil)
	r.step("local again", "-"+p6)
}

func TestImporterRetries(t *testing.T) {
	r := newRig(t, "10.0.0.1/32")
	r.start(peerA)
	r.peer(peerEvent{peer: peerA, endOfRIB: true})
	r.learn(peerA, "fd00::1/128")
	r.refuse = true
	r.step("the kernel refuses")
	r.refuse = false
	r.step("it is tried again", "+fd00::1/128 "+peerA.String(), "-10.0.0.1/32")
}

// Whatever happens, in whatever order, when all peers have sent their
// End-of-RIB the kernel has exactly what they announce and is not local.
func TestImporterRandom(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		prefix := func() string {
			if rnd.IntN(2) == 0 {
				return fmt.Sprintf("10.0.0.%d/32", rnd.IntN(5))
			}
			return fmt.Sprintf("fd00::%d/128", rnd.IntN(5))
		}
		peers := []netip.Addr{peerA, peerB}
		r := newRig(t, prefix(), prefix())
		r.start(peers...)
		local := map[netip.Prefix]bool{}
		for range 60 {
			peer, p := peers[rnd.IntN(2)], prefix()
			switch rnd.IntN(10) {
			case 0, 1, 2:
				r.learn(peer, p)
			case 3:
				r.withdraw(peer, p)
			case 4:
				r.peer(peerEvent{peer: peer, restart: time.Duration(rnd.IntN(20)) * time.Second})
				r.lose(peer, p)
			case 5:
				r.peer(peerEvent{peer: peer, established: true})
			case 6:
				q := []netip.Prefix{netip.MustParsePrefix(p)}
				if local[q[0]] = !local[q[0]]; local[q[0]] {
					r.m.localRoutes(q, nil)
				} else {
					r.m.localRoutes(nil, q)
				}
			case 7:
				r.after(time.Duration(rnd.IntN(10)) * time.Second)
			case 8: // a foreign hand
				q := netip.MustParsePrefix(p)
				if r.kernel[q] = peer; rnd.IntN(2) == 0 {
					delete(r.kernel, q)
				}
				r.m.kernelHas(r.kernel)
			case 9:
				r.refuse = rnd.IntN(2) == 0
				r.apply()
				r.refuse = false
			}
		}
		for _, peer := range peers {
			r.peer(peerEvent{peer: peer, endOfRIB: true})
		}
		r.apply()
		want := map[netip.Prefix]netip.Addr{}
		for p, w := range r.m.want {
			if !local[p] {
				want[p] = w.nextHop
			}
		}
		if fmt.Sprint(r.kernel) != fmt.Sprint(want) {
			t.Fatalf("seed %d: the kernel has %v, want %v", seed, r.kernel, want)
		}
	}
}
