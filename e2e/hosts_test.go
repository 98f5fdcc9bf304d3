package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tortie/lab"
)

// A policy at one host lets in another by the label of its endpoint, which says
// no addresses: they are those that the other host has, and says it has. It
// stays so when both agents are killed.
//
// Promise B8: selectors on other hosts resolve to addresses that a host says.
func testKnownHost(t *testing.T, s *site) {
	from, to := s.find(t, "web-1"), s.find(t, "db-1")
	if from.Host == to.Host {
		t.Fatalf("on one host: %v %v", from, to)
	}
	s.apply(t, policy("db", `"selector":"role == 'db'","types":["Ingress"],"ingress":[{"action":"Allow","source":{"selector":"box == 'monitor'"}}]`))
	addrs := []netip.Addr{to.IPv4, to.IPv6}
	for _, a := range addrs {
		s.tellers(t, to.Name, a)
	}
	known := func(want bool) {
		t.Helper()
		for _, a := range addrs {
			eventually(t, 10*time.Second, fmt.Sprintf("%s to reach %s: %v", from.Host, a, want), func() error {
				err := s.tells(from.Host, a, a, netip.Addr{})
				if (err == nil) != want {
					return fmt.Errorf("it got: %w", err)
				}
				return nil
			})
			if err := s.tells(from.Name, a, a, netip.Addr{}); err == nil {
				t.Errorf("%s reaches %s", from.Name, a)
			}
		}
	}
	known(false)
	const box = `{"apiVersion":"projectcalico.org/v3","kind":"HostEndpoint","metadata":{"name":"box","labels":{"box":%q}},
		"spec":{"node":%q,"interfaceName":"*","profiles":["projectcalico-default-allow"]}}`
	s.apply(t, fmt.Sprintf(box, "monitor", from.Host))
	known(true)
	for _, host := range []string{from.Host, to.Host} {
		s.kill(t, host, lab.Agent)
	}
	known(true)
	for _, host := range []string{from.Host, to.Host} {
		s.start(t, host, lab.Agent)
	}
	s.settle(t)
	known(true)
	s.apply(t, fmt.Sprintf(box, "other", from.Host))
	known(false)
}
