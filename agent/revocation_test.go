package agent

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// transfer is TCP in one direction at a low rate, with a count of the packets
// that the sending side sends and of those that arrive.
type transfer struct {
	h             *testHost
	name          string
	sent, arrived func() int
}

func (h *testHost) transfer(client, server *guest, family, port int, download bool) *transfer {
	h.t.Helper()
	var l net.Listener
	var err error
	server.ns.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(server.addr(family), fmt.Sprint(port))) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var near, far net.Conn
	address := net.JoinHostPort(server.dialled(family), fmt.Sprint(port))
	client.ns.Do(func() { near, err = net.DialTimeout("tcp", address, timeout) })
	if err == nil {
		far, err = l.Accept()
	}
	if err != nil {
		h.t.Fatalf("connect to %s: %v", address, err)
	}
	h.t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	ip := map[int]string{4: "ip", 6: "ip6"}[family]
	f := &transfer{h: h, name: fmt.Sprintf("TCP from %s to %s", client.addr(family), address)}
	from, to, source, dest, portIs, seen := client, server, near, far, "dport", client.addr(family)
	if download {
		f.name += ", download"
		from, to, source, dest, portIs, seen = server, client, far, near, "sport", server.dialled(family)
	}
	match := ip + " saddr %s tcp " + portIs + fmt.Sprintf(" %d", port)
	f.sent, f.arrived = h.meterAt(from, "output", fmt.Sprintf(match, from.addr(family))), h.meter(to, fmt.Sprintf(match, seen))
	go func() { _, _ = io.Copy(io.Discard, dest) }()
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for b := make([]byte, 200); err == nil; <-tick.C {
			_, err = source.Write(b)
		}
	}()
	return f
}

// flows waits until something arrives.
func (f *transfer) flows() {
	f.h.t.Helper()
	before := f.arrived()
	f.h.await(f.name+" to flow", func() bool { return f.arrived() > before+3 })
}

// whole waits until all that was sent so far has arrived, and fails the test if
// something was lost, be it that it was sent again.
func (f *transfer) whole() {
	f.h.t.Helper()
	sent := f.sent()
	f.h.await(f.name+" to arrive whole", func() bool { return f.arrived() >= sent })
}

// cut begins to count. What it returns waits until the sending side has tried
// again, and fails the test if that arrived.
func (f *transfer) cut() func() {
	f.h.t.Helper()
	arrived, sent := f.arrived(), f.sent()
	return func() {
		f.h.t.Helper()
		f.h.await(f.name+" to be tried again", func() bool { return f.sent() > sent })
		if n := f.arrived(); n != arrived {
			f.h.t.Errorf("%s: %d packets passed that must not", f.name, n-arrived)
		}
	}
}

// traffic is every kind of connection from a client to a server.
type traffic struct {
	streams   []*stream
	transfers []*transfer
}

func (h *testHost) traffic(client, server *guest, rate int) (all traffic) {
	h.t.Helper()
	return h.trafficAt(client, server, 9100, rate)
}

// trafficAt has it to ports of its own, from the first on.
func (h *testHost) trafficAt(client, server *guest, first, rate int) (all traffic) {
	h.t.Helper()
	for i, f := range families {
		all.streams = append(all.streams,
			h.stream(client, server, f, first+i, rate), h.replyStream(client, server, f, first+10+i, rate))
		all.transfers = append(all.transfers,
			h.transfer(client, server, f, first+20+i, false), h.transfer(client, server, f, first+30+i, true))
	}
	all.flow()
	return all
}

func (a traffic) flow() {
	for _, s := range a.streams {
		s.flows()
	}
	for _, f := range a.transfers {
		f.flows()
	}
}

func (a traffic) cut() {
	for _, s := range a.streams {
		s.forbid()
	}
	var tried []func()
	for _, f := range a.transfers {
		tried = append(tried, f.cut())
	}
	for _, s := range a.streams {
		s.quiet()
	}
	for _, f := range tried {
		f()
	}
}

// complete ends it and fails the test if a packet was lost.
func (a traffic) complete() {
	for _, s := range a.streams {
		s.complete()
	}
	for _, f := range a.transfers {
		f.whole()
	}
}

// halt ends the streams.
func (a traffic) halt() {
	for _, s := range a.streams {
		s.halt()
	}
}

// A connection that policy comes to forbid is cut by the time that the change
// is reported to be in force, in both directions, whichever end policy is at
// and whichever side is sending; when it is allowed again it goes on.
//
// Promise C2: what goes to an endpoint must pass its ingress policy. Promise
// C3: what it sends must pass its egress policy. Promise S4: there is a list of
// rules for each direction. Pain 15: elsewhere a change leaves live connections
// as they are.
func TestRevocation(t *testing.T) {
	s := newScenario(t)
	outside := s.outside()
	s.run()
	servers := func(ingress string) int64 {
		return s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, ingress, ""))
	}
	clients := func(egress string) int64 {
		return s.put(policyOf("clients"), policyDoc("clients", `role in {"client", "other"}`, "", egress))
	}
	fromOutside := `{"action":"Allow","source":{"nets":["192.0.2.0/24"]}},{"action":"Allow","source":{"nets":["2001:db8::/64"]}}`
	for _, c := range []struct {
		what           string
		client, server *guest
		change         func(rules string) int64
		allow, forbid  string
	}{
		{"both here, the server's ingress", s.client, s.server, servers, fromClients, `{"action":"Deny","source":{"selector":"role == \"client\""}}`},
		{"both here, the client's egress", s.client, s.server, clients, allow, ""},
		{"the server here", outside, s.server, servers, fromOutside + "," + fromClients, fromClients},
		{"the client here", s.client, outside, clients, allow, `{"action":"Allow","destination":{"selector":"role == \"server\""}}`},
	} {
		s.settle(c.change(c.allow))
		all := s.traffic(c.client, c.server, rate)
		s.settle(c.change(c.forbid))
		all.cut()
		s.settle(c.change(c.allow))
		all.flow()
		for _, st := range all.streams {
			st.halt()
		}
		if t.Failed() {
			t.Fatalf("in the case of %s", c.what)
		}
	}
}

// While policies, sets, endpoints and members change that are no concern of
// it, not one packet of much traffic is lost, though each connection is judged
// anew many times.
func TestUnrelatedChanges(t *testing.T) {
	s := newScenario(t)
	s.run()
	more := s.guest()
	all := s.traffic(s.client, s.server, 2500) // of four streams each
	bumps := s.epochs()
	var rev int64
	for i := range 100 {
		switch i % 4 {
		case 0:
			rev = s.put(policyOf("more"), policyDoc("more", `role == "more"`, []string{allow, ""}[i/4%2], allow))
		case 1:
			rev = s.put(more.key, more.bound(fmt.Sprintf(`{"role":"more","n":"%d"}`, i)))
		case 2:
			rev = s.put(s.other.key, strings.Replace(s.other.endpoint(`{"role":"other"}`), `"role":"other"`, fmt.Sprintf(`"role":"%s"`, []string{"client", "other"}[i/4%2]), 1))
		default:
			rev = s.delete(more.key)
		}
		s.settle(rev)
		all.streams[i%len(all.streams)].flows()
	}
	if n := len(s.epochs()); n == 0 || fmt.Sprint(s.epochs()) == fmt.Sprint(bumps) {
		t.Errorf("no connection was judged anew: %v", s.epochs())
	}
	for _, f := range all.transfers {
		f.flows()
	}
	for _, st := range all.streams {
		st.complete()
	}
}

// epochs are the policy epochs that the ruleset accepts: one.
func (h *testHost) epochs() []string {
	h.t.Helper()
	return epochText.FindAllString(h.ns.Run(h.t, "nft", "list set inet tortie epoch"), -1)
}
