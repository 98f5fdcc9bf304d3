package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"tortie/api"
	"tortie/lab"
)

// tellerPort is where tellers listen.
const tellerPort = 8100

// external are the floating addresses of these tests.
var external = []netip.Addr{netip.MustParseAddr("198.51.100.50"), netip.MustParseAddr("2001:db8:50::50")}

// The fabric learns by BGP where a floating address is, and where it has
// gone; there it leads, and what is there reaches the fabric by it.
//
// Promise N12: floating addresses work, across a real fabric.
func testFloating(t *testing.T, s *site) {
	const pool = `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":%q},"spec":{"cidr":%q}}`
	s.apply(t, fmt.Sprintf(pool, "v4", endpoint4), fmt.Sprintf(pool, "v6", endpoint6),
		`{"apiVersion":"projectcalico.org/v3","kind":"FelixConfiguration","metadata":{"name":"default"},"spec":{"floatingIPs":"Enabled"}}`)
	first, second, far := s.find(t, "web-1"), s.find(t, "app-1"), s.find(t, "db-1")
	if first.Host == second.Host || far.Host == second.Host {
		t.Fatalf("on two hosts only: %v %v %v", first, second, far)
	}
	router4, router6 := s.Router(s.Hosts()[0])
	routers := []netip.Addr{router4, router6}
	for i := range external {
		s.tellers(t, "fabric", routers[i])
		for _, w := range []lab.Workload{first, second} {
			s.tellers(t, w.Name, []netip.Addr{w.IPv4, w.IPv6}[i])
		}
	}
	give := func(w lab.Workload, nats ...api.IPNAT) {
		t.Helper()
		e := s.endpoint(t, w.Name, role(w.Name))
		e.Spec.IPNATs = nats
		if _, err := s.Enforce(s.ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(w lab.Workload) {
		t.Helper()
		for i, own := range []netip.Addr{w.IPv4, w.IPv6} {
			for _, from := range []string{"fabric", far.Name, w.Name} {
				eventually(t, 10*time.Second, fmt.Sprintf("%s by %s to %s", from, external[i], w.Name), func() error {
					return s.tells(from, external[i], own, netip.Addr{})
				})
			}
			eventually(t, 10*time.Second, w.Name+" to the fabric", func() error {
				return s.tells(w.Name, routers[i], routers[i], external[i])
			})
			if err := s.tells(far.Name, own, own, []netip.Addr{far.IPv4, far.IPv6}[i]); err != nil {
				t.Errorf("%s to %s by its own address: %v", far.Name, w.Name, err)
			}
		}
	}
	both := func(w lab.Workload) []api.IPNAT {
		ip := func(a netip.Addr) api.IP { return api.IP{Addr: a} }
		return []api.IPNAT{{InternalIP: ip(w.IPv4), ExternalIP: ip(external[0])}, {InternalIP: ip(w.IPv6), ExternalIP: ip(external[1])}}
	}
	give(first, both(first)...)
	holds(first)
	give(first)
	give(second, both(second)...)
	holds(second)
	give(second)
	for i, a := range external {
		eventually(t, 10*time.Second, "no route to "+a.String(), func() error { return s.hasRoute(far.Host, a, false) })
		if err := s.tells(first.Name, routers[i], routers[i], []netip.Addr{first.IPv4, first.IPv6}[i]); err != nil {
			t.Errorf("%s to the fabric without one: %v", first.Name, err)
		}
	}
}

// tellers answers connections to an address with that and the client's.
func (s *site) tellers(t *testing.T, where string, at netip.Addr) {
	t.Helper()
	var l net.Listener
	err := s.In(where, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, tellerPort).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s from %s", at, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr())
			_ = c.Close()
		}
	}()
}

// tells checks who answers, and whom it sees if that is given.
func (s *site) tells(from string, to netip.Addr, who, whom netip.Addr) error {
	var c net.Conn
	err := s.In(from, func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, tellerPort).String(), 500*time.Millisecond)
		return err
	})
	if err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b, err := io.ReadAll(c)
	err = errors.Join(err, c.Close())
	var gotWho, gotWhom string
	if _, errScan := fmt.Sscanf(string(b), "%s from %s", &gotWho, &gotWhom); errScan != nil {
		return errors.Join(err, errScan)
	}
	if gotWho != who.String() || whom.IsValid() && gotWhom != whom.String() {
		return errors.Join(err, fmt.Errorf("%s; want %s from %s", b, who, whom))
	}
	return err
}
