package route

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

// Promise D3: a /32 or /128 route for each local workload, to its interface.
// Promise V5: a neighbour entry and a route for each IPv6 address.
func TestApplyTwice(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	proxy(want, "cali1", idx, "fd00:65::1")
	want.Gateways.Set(netip.MustParseAddr("10.65.0.1"), struct{}{})

	r := open(t)
	apply(t, r, want, 7)
	check(t, r,
		"neighbour 10.65.0.2 dev cali1 lladdr 02:00:00:00:00:09",
		"neighbour fd00:65::2 dev cali1 lladdr 02:00:00:00:00:09",
		"proxy neighbour fd00:65::1 dev cali1",
		"route 10.65.0.1/32 metric 65535 dev lo",
		"route 10.65.0.2/32 metric 1024 dev cali1",
		"route 169.254.1.1/32 metric 65535 dev lo",
		"route fd00:65::2/128 metric 1024 dev cali1")
	out := ns.Run(t, "ip", "route", "show", "10.65.0.2") + ns.Run(t, "ip", "-6", "route", "show", "fd00:65::2")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 ||
		strings.Join(strings.Fields(lines[0]), " ") != "10.65.0.2 dev cali1 proto 80 scope link metric 1024" ||
		!strings.HasPrefix(lines[1], "fd00:65::2 dev cali1 proto 80 metric 1024") {
		t.Errorf("ip route says:\n%s", out)
	}

	apply(t, r, want, 0)
	r.Resync()
	apply(t, r, want, 0)
	apply(t, open(t), want, 0) // restart

	withdrawn(want, "10.65.0.2", "fd00:65::2")
	apply(t, r, want, 4)
	check(t, r,
		"proxy neighbour fd00:65::1 dev cali1",
		"route 10.65.0.1/32 metric 65535 dev lo",
		"route 169.254.1.1/32 metric 65535 dev lo")
}

// What goes is deleted by Withdraw, what comes is left to Apply.
func TestWithdrawOnlyDeletes(t *testing.T) {
	ns := nstest.New(t)
	one, two := device(t, ns, "cali1"), device(t, ns, "cali2")
	want := desired.New()
	workload(want, "cali1", one, "10.65.0.2", "fd00:65::2")
	r := open(t)
	apply(t, r, want, 5)

	withdrawn(want, "10.65.0.2", "fd00:65::2")
	workload(want, "cali2", two, "10.65.0.3", "fd00:65::3")
	if err := r.Withdraw(nstest.Context(t), want); err != nil {
		t.Fatal(err)
	}
	check(t, r, "route 169.254.1.1/32 metric 65535 dev lo")
	apply(t, r, want, 8)
}

// An address that moves is replaced, not missing in between.
func TestMove(t *testing.T) {
	ns := nstest.New(t)
	one, two := device(t, ns, "cali1"), device(t, ns, "cali2")
	want := desired.New()
	for _, a := range []string{"10.65.0.2", "fd00:65::2"} {
		want.Routes.Set(routeKey(a), desired.Route{Interface: "cali1", Index: one})
	}
	r := open(t)
	apply(t, r, want, 2)
	for _, a := range []string{"10.65.0.2", "fd00:65::2"} {
		want.Routes.Set(routeKey(a), desired.Route{Interface: "cali2", Index: two})
	}
	apply(t, r, want, 2)
	check(t, r, "route 10.65.0.2/32 metric 1024 dev cali2", "route fd00:65::2/128 metric 1024 dev cali2")
	apply(t, open(t), want, 0)
}

// rubbish is what others may leave, and what we may have left.
func rubbish(t *testing.T, ns *nstest.NS) (foreign []string) {
	t.Helper()
	for _, c := range []string{
		"route add 10.9.0.1/32 dev cali1 proto static metric 1024",
		"route add 10.9.0.2/32 dev cali1 proto 81 metric 2048",
		"route add 10.9.0.3/32 dev cali1 proto 80 metric 77",
		"route add 10.9.0.4/32 dev cali1 proto 80 metric 65535",
		"route add 10.9.0.5/32 dev cali1 proto 80 metric 1024 table 100",
		"-6 route add fd00:9::1/128 dev cali1 proto static metric 1024",
		"-6 route add fd00:9::2/128 dev cali1 proto 81 metric 2048",
		"-6 route add fd00:9::3/128 dev cali1 proto 80 metric 77",
		"neigh add 10.9.0.6 lladdr 02:00:00:00:00:06 dev eth9 nud permanent",
		"neigh add 10.9.0.7 lladdr 02:00:00:00:00:06 dev cali1 nud reachable",
		"neigh add fd00:9::6 lladdr 02:00:00:00:00:06 dev eth9 nud permanent",
		"neigh add proxy fd00:9::7 dev eth9",
	} {
		ns.Run(t, "ip", strings.Fields(c)...)
		fields := strings.Fields(strings.TrimPrefix(strings.Replace(c, "proxy ", "", 1), "-6 "))
		foreign = append(foreign, strings.TrimSuffix(strings.TrimSuffix(fields[2], "/32"), "/128"))
	}
	for _, c := range []string{
		"route add 10.9.1.1/32 dev cali1 proto 80 metric 1024",
		"route add 10.9.1.2/32 dev cali1 proto 80 metric 512",
		"route add 10.9.1.3/32 dev lo proto 80 metric 65535",
		"route add blackhole 10.9.1.4/32 proto 80 metric 1024",
		"route append 10.65.0.2/32 dev eth9 proto 80 metric 1024",
		"-6 route add fd00:9:1::1/128 dev eth9 proto 80 metric 1024",
		"-6 route add blackhole fd00:9:1::2/128 proto 80 metric 1024",
		"neigh add 10.9.1.6 lladdr 02:00:00:00:00:06 dev cali1 nud permanent",
		"neigh add fd00:9:1::6 lladdr 02:00:00:00:00:06 dev cali1 nud permanent",
		"neigh add proxy fd00:9:1::7 dev cali1",
		"neigh add proxy 10.9.1.7 dev cali1",
	} {
		ns.Run(t, "ip", strings.Fields(c)...)
	}
	return foreign
}

func everything(t *testing.T, ns *nstest.NS) string {
	t.Helper()
	var out string
	for _, c := range []string{"route show table all", "-6 route show table all", "neigh", "neigh show proxy", "-6 neigh show proxy"} {
		out += ns.Run(t, "ip", strings.Fields(c)...)
	}
	return out
}

func TestForeignStays(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	device(t, ns, "eth9")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	r := open(t)
	apply(t, r, want, 5)
	clean, err := r.Dump(nstest.Context(t))
	if err != nil {
		t.Fatal(err)
	}

	foreign := rubbish(t, ns)
	r.Resync()
	apply(t, r, want, 11)
	check(t, r, strings.Split(strings.TrimSuffix(clean, "\n"), "\n")...)
	apply(t, open(t), want, 0)

	if err := r.Cleanup(nstest.Context(t)); err != nil {
		t.Fatal(err)
	}
	check(t, r)
	all := everything(t, ns)
	for _, f := range foreign {
		if !strings.Contains(all, f+" ") {
			t.Errorf("%s, which is not ours, is gone", f)
		}
	}
	if strings.Contains(all, "10.9.1.") || strings.Contains(all, "fd00:9:1::") || strings.Contains(all, "65.0.2") {
		t.Errorf("something of ours is left:\n%s", all)
	}
}

// [ran] Link down and up removes a /32 without a DELROUTE event.
func TestLinkDownUp(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	proxy(want, "cali1", idx, "fd00:65::1")
	r := open(t)
	apply(t, r, want, 6)

	// Coalesced: down and up before anything is done.
	ns.Run(t, "ip", "link", "set", "cali1", "down")
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	r.LinkChanged("cali1", idx)
	apply(t, r, want, 5)
	// Nothing lost: nothing written.
	r.LinkChanged("cali1", idx)
	apply(t, r, want, 0)

	// Seen while it is down: what cannot be written waits, without an error.
	ns.Run(t, "ip", "link", "set", "cali1", "down")
	r.LinkChanged("cali1", idx)
	n, err := r.Apply(nstest.Context(t), want)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, r, want, 0)
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	r.LinkChanged("cali1", idx)
	m, err := r.Apply(nstest.Context(t), want)
	if err != nil {
		t.Fatal(err)
	}
	if n+m < 5 {
		t.Errorf("%d writes while down and %d once up, want at least 5", n, m)
	}
	check(t, r,
		"neighbour 10.65.0.2 dev cali1 lladdr 02:00:00:00:00:09",
		"neighbour fd00:65::2 dev cali1 lladdr 02:00:00:00:00:09",
		"proxy neighbour fd00:65::1 dev cali1",
		"route 10.65.0.2/32 metric 1024 dev cali1",
		"route 169.254.1.1/32 metric 65535 dev lo",
		"route fd00:65::2/128 metric 1024 dev cali1")
}

// An interface that is down when its endpoint comes.
func TestDownAtFirst(t *testing.T) {
	ns := nstest.New(t)
	ns.Run(t, "ip", "link", "set", "lo", "down")
	idx := veth(t, ns, "cali1")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	r := open(t)
	if _, err := r.Apply(nstest.Context(t), want); err != nil {
		t.Fatal(err)
	}
	want.ClearDirty()
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	ns.Run(t, "ip", "link", "set", "lo", "up")
	r.LinkChanged("cali1", idx)
	r.LinkChanged("lo", loopback)
	if _, err := r.Apply(nstest.Context(t), want); err != nil {
		t.Fatal(err)
	}
	check(t, r,
		"neighbour 10.65.0.2 dev cali1 lladdr 02:00:00:00:00:09",
		"neighbour fd00:65::2 dev cali1 lladdr 02:00:00:00:00:09",
		"route 10.65.0.2/32 metric 1024 dev cali1",
		"route 169.254.1.1/32 metric 65535 dev lo",
		"route fd00:65::2/128 metric 1024 dev cali1")
	apply(t, open(t), want, 0)
}

func TestLinkRecreated(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	r := open(t)
	apply(t, r, want, 5)

	ns.Run(t, "ip", "link", "del", "cali1")
	again := device(t, ns, "cali1")
	if again == idx {
		t.Fatalf("the link has the same index, %d", idx)
	}
	// The link event comes before calc has said so.
	r.LinkChanged("cali1", again)
	if _, err := r.Apply(nstest.Context(t), want); err != nil {
		t.Fatal(err)
	}
	workload(want, "cali1", again, "10.65.0.2", "fd00:65::2")
	apply(t, r, want, 4)
	apply(t, open(t), want, 0)

	// Gone for good.
	ns.Run(t, "ip", "link", "del", "cali1")
	r.LinkChanged("cali1", 0)
	withdrawn(want, "10.65.0.2", "fd00:65::2")
	apply(t, r, want, 0)
	if len(r.pending)+len(r.unsure)+len(r.waiting["cali1"]) != 0 {
		t.Errorf("left over: pending %v, unsure %v, waiting %v", r.pending, r.unsure, r.waiting)
	}
}

// Promise F5: corrupt ten routes while stopped; a restart repairs exactly
// those.
func TestRepairExactly(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	device(t, ns, "eth9")
	want := desired.New()
	for i := 2; i < 52; i++ {
		workload(want, "cali1", idx, fmt.Sprintf("10.65.0.%d", i), fmt.Sprintf("fd00:65::%d", i))
	}
	first, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, first, want, 201)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{
		"route del 10.65.0.2/32",
		"route del 10.65.0.3/32",
		"route replace 10.65.0.4/32 dev eth9 proto 80 metric 1024 scope link",
		"route replace 10.65.0.5/32 dev eth9 proto static metric 1024",
		"route replace blackhole 10.65.0.6/32 proto 80 metric 1024",
		"-6 route del fd00:65::2/128",
		"-6 route del fd00:65::3/128",
		"-6 route replace fd00:65::4/128 dev eth9 proto 80 metric 1024",
		"-6 route replace fd00:65::5/128 dev eth9 proto static metric 1024",
		"-6 route replace blackhole fd00:65::6/128 proto 80 metric 1024",
	} {
		ns.Run(t, "ip", strings.Fields(c)...)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	notices, err := subscribe(ctx, 7, 11) // IPv4 and IPv6 routes
	if err != nil {
		t.Fatal(err)
	}
	r := open(t)
	if err := r.Withdraw(ctx, want); err != nil {
		t.Fatal(err)
	}
	n, err := r.Apply(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	// Where blackhole could not be replaced in one step it takes a deletion.
	t.Logf("%d writes", n)
	touched := map[netip.Prefix]bool{}
	ns.Run(t, "ip", "route", "add", "10.1.1.1/32", "dev", "eth9") // the last to be seen
	for !touched[netip.MustParsePrefix("10.1.1.1/32")] {
		for _, m := range nstest.Receive(t, notices).messages {
			if p, ok := parseRoute(m.Data); ok {
				touched[p.prefix] = true
			}
		}
	}
	if len(touched) != 11 {
		t.Errorf("touched %d routes, want the 10 and the last: %v", len(touched), touched)
	}
	apply(t, open(t), want, 0)
	if out := everything(t, ns); strings.Contains(out, "blackhole") || strings.Contains(out, "65.0.5 dev eth9") {
		t.Errorf("not repaired:\n%s", out)
	}
}

// A neighbour that is wrong is put right; a bad one is an error that stays
// pending and does not hold up the others.
func TestFailureStaysPending(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	ns.Run(t, "sysctl", "-qw", "net.ipv6.conf.cali1.disable_ipv6=1")
	r := open(t)
	for range 2 {
		if _, err := r.Apply(nstest.Context(t), want); err == nil || !strings.Contains(err.Error(), "route fd00:65::2/128 metric 1024") {
			t.Fatalf("the error is %v; want it to name the route", err)
		}
		want.ClearDirty()
	}
	if out := everything(t, ns); !strings.Contains(out, "10.65.0.2 dev cali1 proto 80") {
		t.Errorf("the good route is missing:\n%s", out)
	}
	ns.Run(t, "sysctl", "-qw", "net.ipv6.conf.cali1.disable_ipv6=0")
	if _, err := r.Apply(nstest.Context(t), want); err != nil {
		t.Fatal(err)
	}
	ns.Run(t, "ip", "neigh", "replace", "10.65.0.2", "lladdr", "02:00:00:00:00:01", "dev", "cali1", "nud", "permanent")
	r.Resync()
	apply(t, r, want, 1)
	apply(t, open(t), want, 0)
}

func BenchmarkApply(b *testing.B) {
	ns := nstest.New(b)
	ns.Run(b, "ip", "link", "add", "cali1", "type", "veth", "peer", "name", "eth0")
	for _, c := range []string{"link set cali1 up", "link set eth0 up", "addr add 192.0.2.1/24 dev eth0"} {
		ns.Run(b, "ip", strings.Fields(c)...)
	}
	r, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := OpenLearned(nil)
	if err != nil {
		b.Fatal(err)
	}
	link, err := net.InterfaceByName("cali1")
	if err != nil {
		b.Fatal(err)
	}
	var remote []LearnedRoute
	for i := range 100000 {
		remote = append(remote, learnedRoute(fmt.Sprintf("10.%d.%d.%d/32", 128+i/62500, i%62500/250, i%250), "192.0.2.2"))
	}
	if err := l.Replace(b.Context(), remote...); err != nil {
		b.Fatal(err)
	}
	want := desired.New()
	for i := range 1000 {
		workload(want, "cali1", link.Index, fmt.Sprintf("10.65.%d.%d", i/250, i%250), fmt.Sprintf("fd00:65::%d", i))
	}
	apply := func() {
		if _, err := r.Apply(b.Context(), want); err != nil {
			b.Fatal(err)
		}
		want.ClearDirty()
	}
	apply()
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			withdrawn(want, "10.65.0.2", "fd00:65::2")
			apply()
			workload(want, "cali1", link.Index, "10.65.0.2", "fd00:65::2")
			apply()
		}
	})
	b.Run("resync", func(b *testing.B) {
		for b.Loop() {
			r.Resync()
			apply()
		}
	})
	b.Run("link", func(b *testing.B) {
		for b.Loop() {
			r.LinkChanged("cali1", link.Index)
			apply()
		}
	})
}
