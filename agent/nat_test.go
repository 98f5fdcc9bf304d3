package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tortie/api"
	"tortie/internal/nstest"
)

// external are the addresses that endpoints of these tests have outside.
var external = map[int]string{4: "198.51.100.7", 6: "2001:db8:7::7"}

// floating is a server's endpoint with the external addresses.
func (g *guest) floating() string {
	nats := fmt.Sprintf(`"ipNATs":[{"internalIP":%q,"externalIP":%q},{"internalIP":%q,"externalIP":%q}],"interfaceName"`,
		g.v4, external[4], g.v6, external[6])
	return strings.Replace(g.bound(`{"role":"server"}`), `"interfaceName"`, nats, 1)
}

// atExternal is the guest as those know it who connect to its external address.
func (g *guest) atExternal() *guest {
	at := *g
	at.called = external
	return &at
}

// streamTo is a stream that is sent to the external address of its end.
func (h *testHost) streamTo(from, to *guest, family, port int) *stream {
	h.t.Helper()
	return h.stream(from, to.atExternal(), family, port, rate)
}

// arrivals counts the datagrams that come to a guest's port.
func (h *testHost) arrivals(g *guest, family, port int) func() int64 {
	h.t.Helper()
	c := h.udp(g, family, port)
	var n atomic.Int64
	go func() {
		for b := make([]byte, 64); ; {
			_, _, err := c.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				n.Add(1)
			}
		}
	}()
	return n.Load
}

// outsideClient is a host outside that may reach servers, as the server itself
// may, and knows the way to the external addresses.
func (s *scenario) outsideClient() *guest {
	s.t.Helper()
	o := s.outside()
	s.batch(o.ns, "route add "+external[4]+" via 192.0.2.2", "route add "+external[6]+" via 2001:db8::2")
	from := fmt.Sprintf(`{"action":"Allow","source":{"nets":["192.0.2.1/32","2001:db8::1/128","%s/32","%s/128"]}}`, s.server.v4, s.server.v6)
	s.revision = s.put(policyOf("outside"), policyDoc("outside", `role == "server"`, from, allow))
	return o
}

// A translated connection, one of the workload to itself too, loses no packet
// while the agent restarts; when the
// address moves to another endpoint the connection goes there, in its middle,
// and so it does if the agent was not there when it moved.
//
// Promise N12: floating addresses work. Pain 18: elsewhere they do by half.
func TestFloatingAddressUnderTraffic(t *testing.T) {
	s := newScenario(t)
	o := s.outsideClient()
	s.serve(s.server)
	s.revision = s.put(s.server.key, s.server.floating())
	s.put(s.other.key, s.other.bound(`{"role":"server"}`))
	s.run()
	var streams []*stream
	var there []func() int64
	var conns []net.Conn
	for i, f := range families {
		there = append(there, s.arrivals(s.other, f, 9000+i))
		streams = append(streams, s.streamTo(o, s.server, f, 9000+i), s.streamTo(s.client, s.server, f, 9010+i))
		for _, from := range []*guest{o, s.client, s.server} {
			c, err := from.dial(external[f], timeout)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			conns = append(conns, c)
		}
	}
	flow := func() {
		t.Helper()
		for _, st := range streams {
			st.flows()
		}
	}
	flow()
	for range 3 {
		s.stop()
		flow()
		s.start(true)
		s.settle(s.revision)
		flow()
	}
	for _, c := range conns {
		echo(t, c, "still here")
	}
	for i := range families {
		streams[2*i+1].complete()
		streams[2*i].whole()
	}
	// What is not allowed is not, by this way either.
	s.revision = s.put(s.other.key, s.other.bound(`{"role":"other"}`))
	s.settle(s.revision)
	for _, f := range families {
		if c, err := s.other.dial(external[f], 300*time.Millisecond); err == nil {
			_ = c.Close()
			t.Errorf("the other reaches %s", external[f])
		}
	}
	// First the one gives the address up, then the other has it.
	move := func(from, to *guest) {
		s.put(from.key, from.bound(`{"role":"server"}`))
		s.revision = s.put(to.key, to.floating())
	}
	arrive := func(when string) {
		t.Helper()
		for i, count := range there {
			before := count()
			s.await(fmt.Sprintf("%s: %s to come to the other", when, streams[2*i].name), func() bool { return count() > before+20 })
			streams[2*i].forbid()
			streams[2*i].quiet()
		}
	}
	move(s.server, s.other)
	s.settle(s.revision)
	arrive("moved")
	for _, f := range families {
		if list := s.ns.Run(t, "conntrack", "-f", map[int]string{4: "ipv4", 6: "ipv6"}[f], "-L"); strings.Contains(list, "dst="+external[f]+" ") && strings.Contains(list, "src="+s.server.addr(f)+" dst="+o.addr(f)) {
			t.Errorf("connections by %s to where it was: %s", external[f], list)
		}
	}
	move(s.other, s.server)
	s.settle(s.revision)
	for i := range there {
		streams[2*i].flows()
	}
	s.stop()
	move(s.server, s.other)
	s.start(true)
	s.settle(s.revision)
	arrive("moved while the agent was stopped")
}

// An external address moves to another host, with the connections to it; two
// that claim it get it in an order that all hosts agree on.
func TestFloatingAddressMovesBetweenHosts(t *testing.T) {
	s := newScenario(t)
	h2 := &testHost{t: t, name: "h2", ns: nstest.Create(t), store: s.store, given: s.link, runDir: t.TempDir(), guests: 100}
	s.batch(s.ns,
		"link add up0 type veth peer name up0 netns "+h2.ns.Name, "link set up0 up",
		"addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	h2.batch(h2.ns, "link set up0 up", "addr add 192.0.2.2/24 dev up0", "addr add 2001:db8::2/64 dev up0 nodad",
		"route add 10.65.0.0/26 via 192.0.2.1", "route add fd00:65::/120 via 2001:db8::1")
	far := h2.guest()
	s.batch(s.ns, // as bgp would have it
		"route add "+far.v4+" via 192.0.2.2", "route add "+far.v6+" via 2001:db8::2",
		"route add "+external[4]+" via 192.0.2.2 metric 2048", "route add "+external[6]+" via 2001:db8::2 metric 2048")
	s.put(far.key, far.bound(`{"role":"server"}`))
	// Another one stays, so that the first host goes on translating.
	stays := strings.NewReplacer(external[4], "198.51.100.8", external[6], "2001:db8:7::8", `"role":"server"`, `"role":"other"`)
	s.put(s.other.key, stays.Replace(s.other.floating()))
	s.revision = s.put(s.server.key, s.server.floating())
	s.run()
	h2.start(true)
	h2.settle(s.revision)
	var streams []*stream
	var there []func() int64
	for i, f := range families {
		there = append(there, h2.arrivals(far, f, 9000+i))
		streams = append(streams, s.streamTo(s.client, s.server, f, 9000+i))
	}
	for _, st := range streams {
		st.flows()
	}
	// Both claim it: the lower key, which is on the first host, keeps it.
	both := s.put(far.key, far.floating())
	s.settle(both)
	h2.settle(both)
	h2.status(far, api.StatusError)
	s.status(s.server, api.StatusUp)
	for _, st := range streams {
		st.flows()
	}
	moved := s.put(s.server.key, s.server.bound(`{"role":"server"}`))
	s.settle(moved)
	h2.settle(moved)
	h2.status(far, api.StatusUp)
	for i, count := range there {
		before := count()
		s.await(streams[i].name+" to come to the other host", func() bool { return count() > before+20 })
		streams[i].forbid()
		streams[i].quiet()
	}
}

// What a pool with natOutgoing sends to outside of all pools goes with the
// host's address, or the one that is set, and with its own again when the
// pool says so, or to nodes if these are not outside.
func TestNATOutgoing(t *testing.T) {
	s := newScenario(t)
	o := s.outside()
	pools := map[int]string{4: "10.65.0.0/24", 6: "fd00:65::/64"}
	pool := func(f int, out bool) int64 {
		name := fmt.Sprintf("pool%d", f)
		return s.put(apiKey(api.KindIPPool, name), fmt.Sprintf(`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"cidr":%q,"natOutgoing":%v}}`, name, pools[f], out))
	}
	host := map[int]string{4: "192.0.2.2", 6: "2001:db8::2"}
	for _, f := range families {
		s.revision = pool(f, true)
	}
	s.run()
	sees := func(family, port int, want string) {
		t.Helper()
		rx, tx := s.udp(o, family, port), s.udp(s.client, family, 0)
		defer func() { _, _ = rx.Close(), tx.Close() }()
		if _, err := tx.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(rx.LocalAddr().String())); err != nil {
			t.Fatal(err)
		}
		_ = rx.SetReadDeadline(time.Now().Add(timeout))
		_, from, err := rx.ReadFromUDPAddrPort(make([]byte, 10))
		if err != nil || from.Addr().Unmap().String() != want {
			t.Errorf("outside sees %s, %v; want %s", from, err, want)
		}
	}
	felix := func(spec string) {
		s.settle(s.put(apiKey(api.KindFelixConfiguration, "default"),
			`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{`+spec+`}}`))
	}
	s.put(apiKey(api.KindNode, "far"), `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"far"},"spec":{"bgp":{"ipv4Address":"192.0.2.1/24","ipv6Address":"2001:db8::1/64"}}}`)
	for i, set := range []struct{ spec, v4, v6 string }{
		{`"natOutgoingAddress":"192.0.2.77"`, "192.0.2.77", host[6]},
		{`"natOutgoingAddress":"2001:db8::77"`, host[4], "2001:db8::77"},
		{`"natOutgoingExclusions":"IPPoolsAndHostIPs"`, s.client.v4, s.client.v6},
		{`"natOutgoingExclusions":"IPPoolsOnly"`, host[4], host[6]},
	} {
		felix(set.spec)
		sees(4, 9100+i, set.v4)
		sees(6, 9100+i, set.v6)
	}
	rules := func() int {
		return strings.Count(s.ns.Run(t, "nft", "list", "table", "inet", "tortie"), " masquerade\n")
	}
	for i, f := range families {
		sees(f, 9000, host[f])
		if n := rules(); n != len(families)-i {
			t.Errorf("%d rules translate, want one for each family that is to be", n)
		}
		s.settle(pool(f, false))
		sees(f, 9001, s.client.addr(f))
	}
	if n := rules(); n != 0 {
		t.Errorf("there is nothing to translate, but %d rules for it", n)
	}
}
