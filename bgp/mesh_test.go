package bgp

import (
	"net/http"
	"strings"
	"testing"
)

// Promise I2: each host announces its endpoints by BGP.
// Promise I11: the default configuration, which is none, is enough.
// Promise V9: BGP carries IPv6 between hosts.
// Promises D4, D5: local routes are noticed in the kernel, and become routes
// by the next hop of their host in the kernels of others.
// Promise F20: that needs no policy; there is none here.
func TestFullMesh(t *testing.T) {
	s := newSite(t)
	h1, h2, h3 := s.host(1), s.host(2), s.host(3)
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	// What is not a workload's route is not exported.
	h1.Run(t, "ip", "route", "add", "169.254.1.1", "dev", "lo", "proto", "80", "metric", "65535")
	h1.Run(t, "ip", "route", "add", "192.0.2.0/24", "dev", "tap0")
	h1.Run(t, "ip", "route", "add", "192.0.3.0/24", "dev", "tap0", "proto", "bird", "metric", "1024")
	for _, h := range s.hosts {
		h.start()
	}
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	h3.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6, "10.2.0.1": h2.v4, "fd02::1": h2.v6})

	h3.local("10.3.0.1", "fd03::1")
	h1.delLocal("10.1.0.1", "fd01::1")
	h1.Run(t, "ip", "route", "add", "10.1.0.2", "dev", "tap0", "proto", "80", "metric", "512")
	h2.want(map[string]string{"10.1.0.2": h1.v4, "10.3.0.1": h3.v4, "fd03::1": h3.v6})
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6, "10.3.0.1": h3.v4, "fd03::1": h3.v6})

	checkShow(t, h1, h2)

	// A prefix that becomes local here loses its learned route.
	h1.local("10.2.0.1")
	h1.want(map[string]string{"fd02::1": h2.v6, "10.3.0.1": h3.v4, "fd03::1": h3.v6})
	h1.delLocal("10.2.0.1")
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6, "10.3.0.1": h3.v4, "fd03::1": h3.v6})

	// A Node that goes takes its routes along, at once.
	s.remove("Node", "h3")
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.2": h1.v4})
}

func checkShow(t *testing.T, h1, h2 *host) {
	t.Helper()
	_, peers, err := h1.get("/show/peers")
	if err != nil || strings.Count(peers, "Established") != 4 || !strings.Contains(peers, h2.v6) {
		t.Errorf("/show/peers: %v\n%s", err, peers)
	}
	_, routes, err := h1.get("/show/routes")
	if err != nil || strings.Count(routes, "learned") != 4 || strings.Count(routes, "announced") != 1 {
		t.Errorf("/show/routes: %v\n%s", err, routes)
	}
	status, health, err := h1.get("/health")
	if err != nil || status != http.StatusOK || !strings.Contains(health, `"established": 4`) {
		t.Errorf("/health: %d %v\n%s", status, err, health)
	}
	if n := h1.metric("tortie_bgp_sessions_established"); n != 4 {
		t.Errorf("%v sessions established", n)
	}
	if n := h1.metric("tortie_bgp_routes_imported"); n != 4 {
		t.Errorf("%v routes imported", n)
	}
	if n := h1.metric("tortie_bgp_kernel_write_failures_total"); n != 0 {
		t.Errorf("the kernel refused %v routes", n)
	}
}
