package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tortie/api"
	"tortie/lab"
)

// Promise F14: a layer-2 fabric.
// The subtests share the lab, in this order.
func TestLayer2Fabric(t *testing.T) {
	s := up(t, "layer2", threeHosts)
	s.settle(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *site)
	}{
		{"routes", testRoutes},
		{"wire", testWire},
		{"first and last router", testRouter},
		{"weird guest", testWeirdGuest},
		{"hooks", testHooks},
		{"route of an endpoint", testEndpointRoute},
		{"reachability before policy", testRoutesWhileDenied},
		{"policy where needed", testPolicyWhereNeeded},
		{"policy moves no route", testPolicyMovesNoRoute},
		{"group by label", testGroupByLabel},
		{"one change traced", testTrace},
		{"foreign writer", testForeignWriter},
		{"both ends", testBothEnds},
		{"a host known by what it says", testKnownHost},
		{"wait names hosts", testWaitNamesHosts},
		{"bgp is a copy", testBGPIsACopy},
		{"one host fails", testOneHostFails},
		{"cleanup", testCleanup},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
}

// Promise V1: IPv6 between hosts and to workloads, in and out.
// Promise V2: the workloads are plain namespaces with an address and a route.
// Promise V9: BGP carries IPv6 between hosts.
// Promise D3: a /32 and a /128 for each local workload, via its interface.
// Promise D4: remote workloads via their host, learned by BGP.
// Promise I2: each host announces its endpoints by BGP.
// Promise I7: iBGP keeps the next hop.
func testRoutes(t *testing.T, s *site) {
	for _, h := range s.Hosts() {
		routes, err := s.Routes(h.Name)
		if err != nil {
			t.Fatal(err)
		}
		var got, want []string
		for _, r := range routes {
			if strings.HasPrefix(r.Dst.String(), "169.254.1.1/") {
				continue // the gateway's
			}
			got = append(got, fmt.Sprintf("%s via %s proto %d on %d", r.Dst, r.Gw, r.Protocol, r.LinkIndex))
		}
		index := map[string]int{}
		for _, w := range s.Workloads() {
			index[w.Interface] = 0
		}
		s.indexes(t, h.Name, index)
		for _, w := range s.Workloads() {
			for _, a := range []netip.Addr{w.IPv4, w.IPv6} {
				hop, proto, link := "<nil>", 80, index[w.Interface]
				if w.Host != h.Name {
					hop, proto, link = s.fabricAddress(w.Host, a.Is6()).String(), 81, index["eth0"]
				}
				want = append(want, fmt.Sprintf("%s via %s proto %d on %d", netip.PrefixFrom(a, a.BitLen()), hop, proto, link))
			}
		}
		same(t, "routes of "+h.Name, got, want)
	}
	m := s.matrix(t, lab.MatrixOptions{})
	if m.Reached() != len(m.Cells) {
		t.Errorf("%d of %d reached without policy", m.Reached(), len(m.Cells))
	}
}

// Promise D5: the agent adds a local route, BGP notices and announces it.
func testEndpointRoute(t *testing.T, s *site) {
	w := s.find(t, "db-2")
	others := func(want bool) func() error {
		return func() error {
			var errs []error
			for _, h := range s.Hosts() {
				errs = append(errs, s.hasRoute(h.Name, w.IPv4, want), s.hasRoute(h.Name, w.IPv6, want))
			}
			return errors.Join(errs...)
		}
	}
	e := s.endpoint(t, w.Name, role(w.Name))
	start := time.Now()
	if err := s.remove(e.Key().Path()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the routes to go", others(false))
	t.Logf("withdrawn everywhere after %v", time.Since(start))
	start = time.Now()
	if _, err := s.Put(s.ctx, e); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the routes to come", others(true))
	t.Logf("announced everywhere after %v", time.Since(start))
}

const denyAll = `"selector":"all()","order":1000,"types":["Ingress","Egress"]`

// Promise F20: the routes are there while policy denies everything.
func testRoutesWhileDenied(t *testing.T, s *site) {
	before := map[string]string{}
	for _, h := range s.Hosts() {
		before[h.Name] = s.routesOf(t, h.Name)
	}
	s.apply(t, policy("deny-all", denyAll))
	if m := s.matrix(t, lab.MatrixOptions{}); m.Reached() != 0 {
		t.Errorf("%d reached although all is denied", m.Reached())
	}
	for host, want := range before {
		if got := s.routesOf(t, host); got != want || !strings.Contains(got, "proto 81") {
			t.Errorf("routes of %s changed to\n%sfrom\n%s", host, got, want)
		}
	}
}

// Promise F18: a host without a matching endpoint has no such program.
func testPolicyWhereNeeded(t *testing.T, s *site) {
	s.apply(t, policy("only-web", `"selector":"role == 'web'","types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[4321]}}]`))
	for host, want := range map[string]bool{"host-1": true, "host-2": true, "host-3": false} {
		rules := s.sh(t, host, "nft", "list", "table", "inet", "tortie")
		if got := strings.Contains(rules, "only-web"); got != want {
			t.Errorf("%s has a rule of the policy: %v, want %v:\n%s", host, got, want, rules)
		}
	}
}

// Promise F19: 1,000 policy changes, and neither a BGP UPDATE nor a route.
func testPolicyMovesNoRoute(t *testing.T, s *site) {
	before, err := s.Updates(s.ctx)
	if err != nil || before == 0 {
		t.Fatalf("%d updates; %v", before, err)
	}
	changes, err := s.WatchRoutes()
	if err != nil {
		t.Fatal(err)
	}
	toggle := func(i int) api.Object {
		o, _, err := api.DecodeManifest([]byte(policy("toggle", fmt.Sprintf(`"selector":"all()","order":%d,"types":["Ingress"],"ingress":[{"action":"Allow"}]`, 10+i%2))))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for i := range 999 {
		if _, err := s.Put(s.ctx, toggle(i)); err != nil {
			t.Fatal(err)
		}
	}
	took, err := s.Enforce(s.ctx, toggle(999))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the last change was enforced after %v", took)
	if err := s.remove(toggle(0).Key().Path()); err != nil {
		t.Fatal(err)
	}
	if n := changes(); n != 0 {
		t.Errorf("%d routes changed", n)
	}
	if after, err := s.Updates(s.ctx); err != nil || after != before {
		t.Errorf("%d BGP updates before, %d after; %v", before, after, err)
	}
}

// Promise F11: BGP has only a copy of the hosts' routes: with all speakers
// killed and started again, the tables are equal, and none changed meanwhile.
func testBGPIsACopy(t *testing.T, s *site) {
	before := map[string]string{}
	for _, h := range s.Hosts() {
		before[h.Name] = s.routesOf(t, h.Name)
	}
	changes, err := s.WatchRoutes()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		s.kill(t, h.Name, lab.BGP)
	}
	for _, h := range s.Hosts() {
		s.start(t, h.Name, lab.BGP)
	}
	s.settle(t)
	if n := changes(); n != 0 {
		t.Errorf("%d routes changed", n)
	}
	for host, want := range before {
		if got := s.routesOf(t, host); got != want {
			t.Errorf("routes of %s are\n%sbefore they were\n%s", host, got, want)
		}
	}
}

// Promise F17: a host fails whole; the others are not affected. When it is
// back, so are its workloads.
func testOneHostFails(t *testing.T, s *site) {
	s.examples(t)
	unaffected := s.stream(t, "web-1", "app-1") // host-1 to host-2
	denied := s.attempt(t, "db-2", "web-2")     // host-1 to host-2
	s.kill(t, "host-3", lab.Agent, lab.BGP)
	s.sh(t, "host-3", "ip", "link", "set", "eth0", "down")
	wait(2 * time.Second)
	m := s.matrix(t, lab.MatrixOptions{From: []string{"web-1", "web-2", "db-2"}, To: []string{"app-1", "web-2", "db-2"}, TCP: []uint16{80}})
	if m.Reached() == 0 {
		t.Errorf("nobody is reached:\n%s", m)
	}
	s.sh(t, "host-3", "ip", "link", "set", "eth0", "up")
	// Its addresses of IPv6 went with the link, as they would not on a host
	// whose network manager is there.
	h := s.Hosts()[2]
	s.sh(t, "host-3", "ip", "addr", "replace", h.IPv6.String()+"/64", "dev", "eth0", "nodad")
	s.start(t, "host-3", lab.Agent, lab.BGP)
	s.settle(t)
	unaffected()
	denied()
	s.matrix(t, lab.MatrixOptions{})
}
