package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"tortie/desired"
	"tortie/internal/nstest"
)

// A foreign hand that deletes or changes what is ours wakes the loop, and the
// next Apply repairs exactly that. What we write ourselves wakes nobody.
func TestMonitor(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	device(t, ns, "eth9")
	r := open(t)
	ctx, cancel := context.WithCancel(context.Background())
	wake, err := r.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := desired.New()
	for i := 2; i < 202; i++ {
		workload(want, "cali1", idx, fmt.Sprintf("10.65.0.%d", i), fmt.Sprintf("fd00:65::%d", i))
	}
	apply(t, r, want, 801)
	for i := 102; i < 202; i++ {
		withdrawn(want, fmt.Sprintf("10.65.0.%d", i), fmt.Sprintf("fd00:65::%d", i))
	}
	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	apply(t, r, want, 400)

	// Not ours, not our business; then one that is, so that if the former or
	// our own writes had woken us, there would be a second waking.
	ns.Run(t, "ip", "route", "add", "10.9.0.1/32", "dev", "cali1", "metric", "2048", "proto", "81")
	ns.Run(t, "ip", "neigh", "add", "10.9.0.1", "lladdr", "02:00:00:00:00:06", "dev", "eth9", "nud", "permanent")
	for _, c := range []struct {
		command string
		writes  int
	}{
		{"route del 10.65.0.2/32", 1},
		{"-6 route del fd00:65::2/128", 1},
		{"route replace 10.65.0.3/32 dev eth9 proto 80 metric 1024 scope link", 1},
		{"-6 route replace fd00:65::3/128 dev eth9 proto 80 metric 1024", 1},
		{"route replace 10.65.0.4/32 dev eth9 proto static metric 1024", 1},
		{"route add 10.9.1.1/32 dev eth9 proto 80 metric 1024", 1},
		{"-6 route add fd00:9:1::1/128 dev eth9 proto 80 metric 1024", 1},
		{"route del 169.254.1.1/32", 1},
		{"neigh del 10.65.0.5 dev cali1", 1},
		{"neigh replace fd00:65::5 lladdr 02:00:00:00:00:01 dev cali1 nud permanent", 1},
		{"neigh replace fd00:65::6 lladdr 02:00:00:00:00:01 dev cali1 nud reachable", 1},
	} {
		r.mail.mu.Lock()
		before := len(r.mail.changes)
		r.mail.mu.Unlock()
		ns.Run(t, "ip", strings.Fields(c.command)...)
		// The kernel may tell of one deletion twice. What it tells comes in
		// order: with the news of this one, there is no more of that one.
		ns.Run(t, "ip", "route", "add", "10.9.9.9/32", "dev", "eth9", "proto", "80", "metric", "1024")
		for noted := false; !noted; {
			nstest.Receive(t, wake)
			r.mail.mu.Lock()
			noted = r.mail.changes[routeObject(desired.RouteKey{Prefix: netip.MustParsePrefix("10.9.9.9/32"), Metric: MetricLocal})] != nil
			r.mail.mu.Unlock()
		}
		n, err := r.Apply(nstest.Context(t), want)
		if err != nil || n != c.writes+1 || before != 0 {
			t.Errorf("after %s: %d writes, want %d; %d changes noted before; error %v", c.command, n, c.writes, before, err)
		}
	}
	apply(t, open(t), want, 0)
	cancel()
}

// Notifications that did not fit lead to a read-back.
func TestMonitorLoses(t *testing.T) {
	ns := nstest.New(t)
	idx := device(t, ns, "cali1")
	r := open(t)
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	apply(t, r, want, 5)
	ns.Run(t, "ip", "route", "del", "10.65.0.2/32")
	if !r.note(notice{lost: true}) {
		t.Error("a loss is no news")
	}
	apply(t, r, want, 1)
}

func learned(t *testing.T) *Learned {
	t.Helper()
	l, err := OpenLearned(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func learnedRoute(prefix string, hops ...string) LearnedRoute {
	r := LearnedRoute{Prefix: netip.MustParsePrefix(prefix)}
	for _, h := range hops {
		r.NextHops = append(r.NextHops, netip.MustParseAddr(h))
	}
	return r
}

func checkLearned(t *testing.T, l *Learned, want ...LearnedRoute) {
	t.Helper()
	got, err := l.Existing(nstest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	byPrefix := cmpopts.SortSlices(func(a, b LearnedRoute) bool { return a.Prefix.String() < b.Prefix.String() })
	comparer := cmp.Comparer(func(a, b LearnedRoute) bool { return a.Prefix == b.Prefix && slices.Equal(a.NextHops, b.NextHops) })
	if diff := cmp.Diff(want, got, byPrefix, comparer, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("learned routes (-want +got):\n%s", diff)
	}
}

// uplink makes eth0 with an address of either family.
func uplink(t *testing.T, ns *nstest.NS) {
	t.Helper()
	device(t, ns, "eth0")
	ns.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	ns.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
}

// Promise D4: routes to remote workloads lead to their host.
func TestLearned(t *testing.T) {
	ns := nstest.New(t)
	uplink(t, ns)
	l, ctx := learned(t), nstest.Context(t)
	one4, one6 := learnedRoute("10.65.1.2/32", "192.0.2.2"), learnedRoute("fd00:65:1::2/128", "2001:db8::2")
	two4, two6 := learnedRoute("10.65.1.2/32", "192.0.2.2", "192.0.2.3"), learnedRoute("fd00:65:1::2/128", "2001:db8::2", "2001:db8::3")
	for _, step := range [][]LearnedRoute{{one4, one6}, {two4, two6}, {two4, two6}, {one4, one6}} {
		if err := l.Replace(ctx, step...); err != nil {
			t.Fatal(err)
		}
		checkLearned(t, l, step...)
	}
	mixed := learnedRoute("10.65.1.3/32", "2001:db8::2") // RFC 8950
	bad4, bad6 := learnedRoute("10.65.1.4/32", "198.51.100.1"), learnedRoute("fd00:65:1::4/128", "2001:db8:5::1")
	err := l.Replace(ctx, bad4, mixed, bad6)
	var failed *Failed
	if !errors.As(err, &failed) || !slices.Equal(failed.Prefixes, []netip.Prefix{bad4.Prefix, bad6.Prefix}) || !strings.Contains(err.Error(), "write route 10.65.1.4/32") {
		t.Errorf("error %v, want a *Failed with the two bad prefixes", err)
	}
	checkLearned(t, learned(t), one4, one6, mixed)

	ns.Run(t, "ip", "route", "add", "10.65.1.9/32", "via", "192.0.2.9", "metric", "2048", "proto", "static")
	if err := l.Remove(ctx, one4.Prefix, one6.Prefix, bad4.Prefix, netip.MustParsePrefix("10.65.1.9/32")); err != nil {
		t.Fatal(err)
	}
	checkLearned(t, l, mixed)
	if err := l.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	checkLearned(t, l)
	if out := everything(t, ns); !strings.Contains(out, "10.65.1.9 via 192.0.2.9") {
		t.Errorf("the route of another protocol is gone:\n%s", out)
	}
}

// The kernel replaces by prefix and metric whatever the protocol; ours differ.
func TestLearnedBesideLocal(t *testing.T) {
	ns := nstest.New(t)
	uplink(t, ns)
	idx := device(t, ns, "cali1")
	r, l := open(t), learned(t)
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	remote := []LearnedRoute{learnedRoute("10.65.0.2/32", "192.0.2.2"), learnedRoute("fd00:65::2/128", "2001:db8::2")}
	if err := l.Replace(nstest.Context(t), remote...); err != nil {
		t.Fatal(err)
	}
	apply(t, r, want, 5)
	if err := l.Replace(nstest.Context(t), remote...); err != nil {
		t.Fatal(err)
	}
	r.Resync()
	apply(t, r, want, 0)
	checkLearned(t, l, remote...)
	// The local one wins.
	for _, a := range []string{"10.65.0.2", "fd00:65::2"} {
		if out := ns.Run(t, "ip", "route", "get", a); !strings.Contains(out, "dev cali1") {
			t.Errorf("route get %s: %s", a, out)
		}
	}
}

func TestLearnedBulk(t *testing.T) {
	ns := nstest.New(t)
	uplink(t, ns)
	l := learned(t)
	var routes []LearnedRoute
	var prefixes []netip.Prefix
	for i := range 10000 {
		routes = append(routes, learnedRoute(fmt.Sprintf("10.66.%d.%d/32", i/250, i%250), "192.0.2.2"))
		prefixes = append(prefixes, routes[i].Prefix)
	}
	start := time.Now()
	if err := l.Replace(nstest.Context(t), routes...); err != nil {
		t.Fatal(err)
	}
	t.Logf("10k routes written in %v", time.Since(start))
	start = time.Now()
	got, err := l.Existing(nstest.Context(t))
	if err != nil || len(got) != len(routes) {
		t.Fatalf("%d routes, want %d; error %v", len(got), len(routes), err)
	}
	t.Logf("listed in %v", time.Since(start))
	start = time.Now()
	if err := l.Remove(nstest.Context(t), prefixes...); err != nil {
		t.Fatal(err)
	}
	t.Logf("deleted in %v", time.Since(start))
	checkLearned(t, l)
}

func TestLearnedChanges(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ns := nstest.New(t)
	uplink(t, ns)
	device(t, ns, "cali1")
	l := learned(t)
	ctx, cancel := context.WithCancel(context.Background())
	routes := []LearnedRoute{learnedRoute("10.65.1.2/32", "192.0.2.2"), learnedRoute("fd00:65:1::2/128", "2001:db8::2")}
	if err := l.Replace(ctx, routes...); err != nil {
		t.Fatal(err)
	}
	changes, err := l.Changes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	more := learnedRoute("10.65.1.3/32", "192.0.2.3")
	if err := l.Replace(ctx, more); err != nil { // our own is not reported
		t.Fatal(err)
	}
	ns.Run(t, "ip", "link", "set", "cali1", "down") // nor a link without learned routes
	for _, c := range []string{"route del 10.65.1.2/32", "-6 route del fd00:65:1::2/128", "route replace 10.65.1.3/32 dev cali1 metric 2048 proto static"} {
		if strings.Contains(c, "cali1") {
			ns.Run(t, "ip", "link", "set", "cali1", "up")
		}
		ns.Run(t, "ip", strings.Fields(c)...)
		p := netip.MustParsePrefix(strings.Fields(strings.TrimPrefix(c, "-6 "))[2])
		if got := nstest.Receive(t, changes); got.All || !slices.Equal(got.Prefixes, []netip.Prefix{p}) {
			t.Errorf("after %s: %v", c, got)
		}
	}
	if err := l.Replace(ctx, append(routes, more)...); err != nil {
		t.Fatal(err)
	}
	// The kernel drops IPv4 routes of a link that goes down in silence.
	ns.Run(t, "ip", "link", "set", "eth0", "down")
	for !nstest.Receive(t, changes).All {
		continue
	}
	ns.Run(t, "ip", "link", "set", "eth0", "up")
	for !nstest.Receive(t, changes).All {
		continue
	}
	cancel()
	for range changes {
		continue
	}
}

func TestLocalRoutes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ns := nstest.New(t)
	uplink(t, ns)
	idx := device(t, ns, "cali1")
	device(t, ns, "cali2")
	want := desired.New()
	workload(want, "cali1", idx, "10.65.0.2", "fd00:65::2")
	r, l := open(t), learned(t)
	apply(t, r, want, 5)
	ctx, cancel := context.WithCancel(context.Background())
	initial, changes, err := LocalRoutes(ctx, ProtocolLocal, nil)
	if err != nil {
		t.Fatal(err)
	}
	have := map[netip.Prefix]int{}
	take := func(batch []LocalRoute) {
		t.Helper()
		for _, c := range batch {
			if old, known := have[c.Prefix]; c.Gone != known && !known && c.Gone || known && !c.Gone && old == c.Metric {
				t.Errorf("%+v is not news; have %v", c, have)
			}
			if have[c.Prefix] = c.Metric; c.Gone {
				delete(have, c.Prefix)
			}
		}
	}
	take(initial)
	until := func(what string, lines ...string) {
		t.Helper()
		wanted := map[netip.Prefix]int{}
		for _, l := range lines {
			var metric int
			prefix, m, _ := strings.Cut(l, " ")
			if _, err := fmt.Sscan(m, &metric); err != nil {
				t.Fatal(err)
			}
			wanted[netip.MustParsePrefix(prefix)] = metric
		}
		for !cmp.Equal(wanted, have, cmpopts.EquateComparable(netip.Prefix{})) {
			select {
			case batch := <-changes:
				take(batch)
			case <-time.After(nstest.Limit):
				t.Fatalf("%s: have %v, want %v", what, have, wanted)
			}
		}
	}
	until("at first", "10.65.0.2/32 1024", "fd00:65::2/128 1024")

	// Neither learned nor foreign routes are exported.
	if err := l.Replace(ctx, learnedRoute("10.65.1.2/32", "192.0.2.2"), learnedRoute("fd00:65:1::2/128", "2001:db8::2")); err != nil {
		t.Fatal(err)
	}
	ns.Run(t, "ip", "route", "add", "10.9.0.1/32", "dev", "cali1", "proto", "static", "metric", "1024")
	ns.Run(t, "ip", "route", "add", "10.65.0.2/32", "dev", "cali2", "proto", "80", "metric", "512")
	until("migrated", "10.65.0.2/32 512", "fd00:65::2/128 1024")
	ns.Run(t, "ip", "route", "del", "10.65.0.2/32", "metric", "512")
	workload(want, "cali1", idx, "10.65.0.3", "fd00:65::3")
	apply(t, r, want, 4)
	until("added", "10.65.0.2/32 1024", "fd00:65::2/128 1024", "10.65.0.3/32 1024", "fd00:65::3/128 1024")
	withdrawn(want, "10.65.0.2", "fd00:65::2")
	apply(t, r, want, 4)
	until("withdrawn", "10.65.0.3/32 1024", "fd00:65::3/128 1024")
	ns.Run(t, "ip", "link", "set", "cali1", "down")
	until("link down")
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	r.LinkChanged("cali1", idx)
	if _, err := r.Apply(ctx, want); err != nil {
		t.Fatal(err)
	}
	until("link up", "10.65.0.3/32 1024", "fd00:65::3/128 1024")
	cancel()
	for range changes {
		continue
	}
}

// Thousands of changes that nobody collects are merged.
func TestLocalRoutesMerged(t *testing.T) {
	w := &localWatch{protocol: ProtocolLocal, have: map[localKey]int{}, told: map[netip.Prefix]int{}, at: map[netip.Prefix]int{}}
	note := func(i int, typ uint16) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)
		w.note(typ, linkRoute(p, MetricLocal, ProtocolLocal, 7))
	}
	const add, del = 24, 25
	for i := range 1000 {
		note(i, add)
	}
	w.delivered()
	for range 10 {
		for i := range 1000 {
			note(i, del)
			if i%100 != 0 {
				note(i, add)
			}
		}
	}
	if len(w.news) != 10 {
		t.Errorf("%d changes, want 10: %v", len(w.news), w.news)
	}
	w.delivered()
	if len(w.told) != 990 || len(w.at) != 0 {
		t.Errorf("%d prefixes were told, want 990; %d noted", len(w.told), len(w.at))
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(linkRoute(netip.MustParsePrefix("10.65.0.2/32"), MetricLocal, ProtocolLocal, 7))
	f.Add(gatewayRoute(netip.MustParsePrefix("fd00::/64"), 1, 2, []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("::2")}))
	f.Add(gatewayRoute(netip.MustParsePrefix("10.65.0.2/32"), 1, 2, []netip.Addr{netip.MustParseAddr("::1")}))
	f.Add(putNeighbour(netip.MustParseAddr("10.65.0.2"), entry{index: 7}, false).body)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := parseRoute(b); ok && !m.prefix.IsValid() {
			t.Error("a route without a prefix")
		}
		if m, ok := parseNeighbour(b); ok && !m.addr.IsValid() {
			t.Error("a neighbour without an address")
		}
		_, _, _, _ = parseLink(b)
		for _, a := range splitAnswers(b) {
			_ = answerError(a)
		}
	})
}
