package route

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/desired"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func open(t *testing.T) *Routes {
	t.Helper()
	r, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// apply applies want, as the agent does, and checks how much was written.
func apply(t *testing.T, r *Routes, want *desired.State, writes int) {
	t.Helper()
	ctx := nstest.Context(t)
	if err := r.Withdraw(ctx, want); err != nil {
		t.Fatalf("withdraw: %v", err)
	}
	n, err := r.Apply(ctx, want)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	want.ClearDirty()
	if n != writes {
		dump, _ := r.Dump(ctx)
		t.Fatalf("%d writes, want %d; the kernel has\n%s", n, writes, dump)
	}
}

// veth makes a pair of links, name being down and its other end up.
func veth(t *testing.T, ns *nstest.NS, name string) int {
	t.Helper()
	ns.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "peer-"+name)
	ns.Run(t, "ip", "link", "set", "peer-"+name, "up")
	return nstest.Index(t, name)
}

// device makes a link that is up.
func device(t *testing.T, ns *nstest.NS, name string) int {
	t.Helper()
	i := veth(t, ns, name)
	ns.Run(t, "ip", "link", "set", name, "up")
	return i
}

var testMAC = [6]byte{2, 0, 0, 0, 0, 9}

// workload adds what calc would for a workload on link: routes and permanent
// neighbours of both families.
func workload(s *desired.State, link string, index int, addrs ...string) {
	s.Interfaces.Set(link, desired.Interface{Index: index})
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		s.Routes.Set(routeKey(a), desired.Route{Interface: link, Index: index})
		s.Neighbours.Set(desired.NeighbourKey{Interface: link, Addr: addr}, desired.Neighbour{Index: index, MAC: testMAC})
	}
	s.Gateways.Set(netip.MustParseAddr("169.254.1.1"), struct{}{})
}

func routeKey(a string) desired.RouteKey {
	addr := netip.MustParseAddr(a)
	return desired.RouteKey{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Metric: MetricLocal}
}

// withdrawn undoes workload for cali1.
func withdrawn(s *desired.State, addrs ...string) {
	const link = "cali1"
	s.Interfaces.Delete(link)
	for _, a := range addrs {
		s.Routes.Delete(routeKey(a))
		s.Neighbours.Delete(desired.NeighbourKey{Interface: link, Addr: netip.MustParseAddr(a)})
	}
}

func proxy(s *desired.State, link string, index int, addr string) {
	s.Neighbours.Set(desired.NeighbourKey{Interface: link, Addr: netip.MustParseAddr(addr), Proxy: true}, desired.Neighbour{Index: index})
}

// check compares the kernel, as Dump prints it, with lines.
func check(t *testing.T, r *Routes, lines ...string) {
	t.Helper()
	got, err := r.Dump(nstest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Join(append(lines, ""), "\n"), got); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
}
