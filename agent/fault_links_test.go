package agent

import (
	"fmt"
	"strings"
	"testing"

	"tortie/internal/nstest"
)

// outside makes a namespace to which the host sends what it has no route for,
// as every host has one. Its addresses are 192.0.2.1 and 2001:db8::1.
func (h *testHost) outside() *guest {
	h.t.Helper()
	o := &guest{ns: nstest.Create(h.t), v4: "192.0.2.1", v6: "2001:db8::1"}
	h.batch(h.ns,
		"link add up0 type veth peer name eth0 netns "+o.ns.Name, "link set up0 up",
		"addr add 192.0.2.2/24 dev up0", "addr add 2001:db8::2/64 dev up0 nodad",
		"route add default via 192.0.2.1", "route add ::/0 via 2001:db8::1")
	h.batch(o.ns,
		"link set eth0 up", "addr add 192.0.2.1/24 dev eth0", "addr add 2001:db8::1/64 dev eth0 nodad",
		"route add 10.65.0.0/24 via 192.0.2.2", "route add fd00:65::/64 via 2001:db8::2")
	o.ns.Run(h.t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
	return o
}

// routed waits until the host has routes to the guest over both families, and
// the loop has gone round.
func (h *testHost) routed(g *guest, yes bool) {
	h.t.Helper()
	h.await(fmt.Sprintf("routes to %s: %v", g.iface, yes), func() bool {
		v4 := h.ns.Run(h.t, "ip", "route", "show", "proto", "80", g.v4)
		v6 := h.ns.Run(h.t, "ip", "-6", "route", "show", "proto", "80", g.v6)
		return (v4 != "") == yes && (v6 != "") == yes
	})
	h.health()
}

// crossed fails the test if a denied datagram has passed since forbid, and
// begins anew.
func crossed(t *testing.T, when string, denied []*stream) {
	t.Helper()
	for _, d := range denied {
		if n := d.passed(d.mark); n > 0 {
			t.Errorf("%s: %s: %d datagrams passed that must not", when, d.name, n)
		}
		d.forbid()
		d.quiet()
	}
}

// status waits until the store has a status for the guest's endpoint.
func (h *testHost) status(g *guest, want string) {
	h.t.Helper()
	value := h.statusOf(g)
	h.await(g.key.Name+" to be "+want, func() bool { return strings.Contains(value(), `"`+want+`"`) })
}

// Links that go down and come up, and that are deleted and made anew under the
// same name, with another index, lose their routes; they have them again at
// once, and no connection that was judged when there was no route to the
// endpoint gets round its policy.
//
// Promise D3: each local workload has its /32 and /128 by its interface.
func TestLinkComesAndGoes(t *testing.T) {
	s := newScenario(t)
	s.outside()
	s.run()
	s.status(s.server, "up")
	allowed, denied := s.streams()
	want := s.kernelText()
	for range 3 {
		s.ns.Run(t, "ip", "link", "set", s.server.iface, "down")
		s.routed(s.server, false)
		s.status(s.server, "down")
		crossed(t, "link down", denied) // they go to the outside meanwhile
		s.ns.Run(t, "ip", "link", "set", s.server.iface, "up")
		s.routed(s.server, true)
		for _, d := range denied {
			d.forbid()
		}
		for _, a := range allowed {
			a.flows()
		}
		crossed(t, "link up again", denied)
		s.status(s.server, "up")
	}
	for range 3 {
		old := s.find(`^(\d+):`, "ip", "-o", "link", "show", s.server.iface)
		s.ns.Run(t, "ip", "link", "del", s.server.iface)
		s.plug(s.server)
		if now := s.find(`^(\d+):`, "ip", "-o", "link", "show", s.server.iface); now == old {
			t.Fatalf("the new link has the old index %s", now)
		}
		s.routed(s.server, true)
		for _, d := range denied {
			d.forbid()
		}
		for _, a := range allowed {
			a.flows()
		}
		crossed(t, "link made anew", denied)
	}
	if text := s.kernelText(); text != want {
		t.Errorf("not as before: %s", firstDifference(text, want))
	}
	s.ns.Run(t, "ip", "link", "del", s.server.iface)
	s.routed(s.server, false)
	s.status(s.server, "down")
	crossed(t, "link gone", denied)
}

// An interface passes nothing before its endpoint is known, and an endpoint is
// served as soon as its interface comes, in whichever order they appear.
//
// Promise S1: policy attaches to the endpoint, on whatever interface.
func TestInterfaceAndEndpointInEitherOrder(t *testing.T) {
	s := newScenario(t)
	s.outside()
	s.run()
	late := s.guest() // its interface first
	allowed := []*stream{s.stream(s.client, late, 4, 9000, rate), s.stream(s.client, late, 6, 9002, rate)}
	denied := []*stream{s.stream(s.other, late, 4, 9001, rate), s.stream(s.other, late, 6, 9003, rate)}
	for _, a := range append(allowed, denied...) {
		a.forbid()
		a.quiet()
	}
	s.settle(s.put(late.key, late.bound(`{"role":"server"}`)))
	for _, a := range allowed {
		a.flows()
	}
	crossed(t, "endpoint after interface", denied)
	s.status(late, "up")

	s.settle(s.delete(late.key))
	for _, a := range append(allowed, denied...) {
		a.forbid()
		a.quiet()
	}
	s.ns.Run(t, "ip", "link", "del", late.iface)
	s.settle(s.put(late.key, late.bound(`{"role":"server"}`))) // its endpoint first
	s.status(late, "down")
	s.plug(late)
	s.routed(late, true)
	for _, d := range denied {
		d.forbid()
	}
	for _, a := range allowed {
		a.flows()
	}
	crossed(t, "interface after endpoint", denied)
	s.status(late, "up")
	s.await("no failure", func() bool { return s.health().Failure == "" })
}

// A renamed interface is another one: its endpoint is down, and nothing passes
// until an endpoint names it.
func TestLinkIsRenamed(t *testing.T) {
	s := newScenario(t)
	s.outside()
	s.run()
	allowed, denied := s.streams()
	want := s.kernelText()
	rename := func(from, to string) {
		t.Helper()
		s.batch(s.ns, "link set "+from+" down", "link set "+from+" name "+to, "link set "+to+" up")
	}
	silent := func() {
		t.Helper()
		s.routed(s.server, false)
		for _, a := range append(allowed, denied...) {
			a.forbid()
			a.quiet()
		}
	}
	rename("cali2", "cali77")
	silent() // the name is no endpoint's
	s.status(s.server, "down")
	doc := strings.Replace(s.server.bound(`{"role":"server"}`), `"cali2"`, `"cali77"`, 1)
	s.settle(s.put(s.server.key, doc))
	for _, a := range allowed {
		a.flows()
	}
	crossed(t, "the endpoint names it", denied)
	s.settle(s.put(s.server.key, s.server.bound(`{"role":"server"}`)))
	silent() // the endpoint names the old one
	rename("cali77", "other0")
	silent() // the name is no workload's
	rename("other0", "cali2")
	s.routed(s.server, true)
	for _, d := range denied {
		d.forbid()
	}
	for _, a := range allowed {
		a.flows()
	}
	crossed(t, "renamed back", denied)
	if text := s.kernelText(); text != want {
		t.Errorf("not as before: %s", firstDifference(text, want))
	}
	s.status(s.server, "up")
}

// On one host the endpoint with the lowest key has an address that several
// have; the status of the others is error, with the reason. When it goes, the
// next takes over.
func TestDuplicateAddress(t *testing.T) {
	s := newScenario(t)
	s.run()
	second := s.guest() // has a higher key than the server, and its addresses
	s.batch(second.ns, "addr add "+s.server.v4+"/32 dev eth0", "addr add "+s.server.v6+"/128 dev eth0 nodad")
	doc := strings.NewReplacer(second.v4+"/32", s.server.v4+"/32", second.v6+"/128", s.server.v6+"/128").Replace(second.bound(`{"role":"server"}`))
	allowed, denied := s.streams()
	toSecond := []func() int{
		s.meter(second, "ip saddr "+s.client.v4+" ip daddr "+s.server.v4),
		s.meter(second, "ip6 saddr "+s.client.v6+" ip6 daddr "+s.server.v6),
	}
	s.settle(s.put(second.key, doc))
	s.status(s.server, "up")
	s.status(second, "error")
	problems, err := s.show("/show/problems")
	for _, a := range []string{s.server.v4, s.server.v6} {
		if want := "address " + a + " belongs to " + s.server.key.String(); err != nil || !strings.Contains(problems, want) {
			t.Errorf("problems do not say %q: %q, %v", want, problems, err)
		}
	}
	for i, a := range allowed {
		a.flows()
		a.complete() // the second changed nothing
		if n := toSecond[i](); n != 0 {
			t.Errorf("%d packets went to the second", n)
		}
	}
	allowed = []*stream{s.stream(s.client, second.as(s.server), 4, 9000, rate), s.stream(s.client, second.as(s.server), 6, 9002, rate)}
	for _, a := range allowed {
		a.forbid()
		a.quiet()
	}
	s.settle(s.delete(s.server.key))
	for _, a := range allowed {
		a.flows()
	}
	s.status(second, "up")
	if problems, err := s.show("/show/problems"); err != nil || strings.Contains(problems, "belongs to") {
		t.Errorf("problems after the first went: %q, %v", problems, err)
	}
	crossed(t, "the second has it", denied)
	s.settle(s.put(s.server.key, s.server.bound(`{"role":"server"}`))) // and gives it back
	for _, a := range allowed {
		a.forbid()
		a.quiet()
	}
	s.status(second, "error")
}

// as is the guest under another's addresses.
func (g *guest) as(o *guest) *guest {
	alias := *g
	alias.v4, alias.v6 = o.v4, o.v6
	return &alias
}
