package e2e

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// same compares two lists whose order does not matter.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// indexes fills in the indexes of a host's interfaces.
func (s *site) indexes(t *testing.T, host string, index map[string]int) {
	t.Helper()
	err := s.In(host, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			index[l.Name] = l.Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fabricAddress is that of a host.
func (s *site) fabricAddress(host string, v6 bool) netip.Addr {
	for _, h := range s.Hosts() {
		switch {
		case h.Name != host:
		case v6:
			return h.IPv6
		default:
			return h.IPv4
		}
	}
	return netip.Addr{}
}
