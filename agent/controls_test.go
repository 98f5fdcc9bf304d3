package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"tortie/config"
)

// limited is a guest's document with qosControls.
func limited(doc, controls string) string {
	return strings.Replace(doc, `"interfaceName"`, `"qosControls":`+controls+`,"interfaceName"`, 1)
}

// download has a guest fetch so many bytes from another and returns how long it
// took.
func (h *testHost) download(from, to *guest, family, size int) time.Duration {
	h.t.Helper()
	c, err := to.dial(from.addr(family), timeout)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * timeout))
	start := time.Now()
	go func() { _, _ = c.Write(make([]byte, size)) }() // the server sends back what it gets
	if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
		h.t.Fatal(err)
	}
	return time.Since(start)
}

// shapers are the token buckets of the host: by link what they are, and what
// they have counted.
func (h *testHost) shapers() (what map[string]string, bytes map[string]int) {
	h.t.Helper()
	var list []struct {
		Kind, Handle, Dev string
		Bytes             int
		Options           json.RawMessage
	}
	if err := json.Unmarshal([]byte(h.ns.Run(h.t, "tc", "-s", "-j", "qdisc", "show")), &list); err != nil {
		h.t.Fatal(err)
	}
	what, bytes = map[string]string{}, map[string]int{}
	for _, q := range list {
		if q.Kind == "tbf" {
			what[q.Dev] = fmt.Sprintf("%s %s %s", q.Kind, q.Handle, q.Options)
			bytes[q.Dev] = q.Bytes
		}
	}
	return what, bytes
}

// The limits and the mark of an endpoint are in force from the store to the
// packet, over a restart without a gap, for a link made anew, and until they
// are taken away; nothing is left by cleanup.
func TestControls(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.init()
	h.put(policyKey, allowAll)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	h.start(true)
	const size, rate = 300_000, 1_000_000 // bytes, bytes a second
	doc := limited(server.endpoint(`{"role":"server"}`),
		`{"ingressBandwidth":8000000,"ingressBurst":160000,"egressBandwidth":8000000,"egressBurst":160000,"egressPacketRate":9000,"ingressMaxConnections":2,"dscp":"AF11"}`)
	h.settle(h.put(server.key, doc))
	least := time.Duration(float64(size-20000) / rate * float64(time.Second))
	slow := func(when string) {
		t.Helper()
		for _, f := range families {
			took := h.download(server, client, f, size)
			t.Logf("%s, IPv%d: %d bytes both ways at %d bytes/s took %s, at least %s", when, f, size, rate, took, least)
			if took < least {
				t.Errorf("%s, IPv%d: %d bytes took %s, want at least %s", when, f, size, took, least)
			}
		}
	}
	slow("limited")
	h.twoConnections(client, server)
	rules, shapers := withoutDenied(h.ns.Run(t, "nft", "-sa", "list ruleset")), ""
	what, bytes := h.shapers()
	if shapers = fmt.Sprint(what); len(what) != 2 || !strings.Contains(shapers, "tbf 7474:") {
		t.Errorf("token buckets: %s, want two", shapers)
	}
	h.stop()
	slow("without an agent")
	h.start(true)
	h.await("the agent to have applied", func() bool { return h.health().AppliedRevision > 0 })
	what, after := h.shapers()
	if now := withoutDenied(h.ns.Run(t, "nft", "-sa", "list ruleset")); now != rules || fmt.Sprint(what) != shapers {
		t.Errorf("a restart changed the rules or the token buckets:\n%s %s\nwere:\n%s %s", now, what, rules, shapers)
	}
	for link, n := range bytes {
		if after[link] < n+2*size || n < 2*size {
			t.Errorf("the counter of %s went from %d to %d", link, n, after[link])
		}
	}
	h.ns.Run(t, "ip", "link", "del", server.iface)
	h.plug(server)
	h.await("the new link to be limited", func() bool { what, _ := h.shapers(); return fmt.Sprint(what) == shapers })
	status := h.statusOf(server)
	h.await("the endpoint to be up", func() bool { return strings.Contains(status(), `"up"`) })
	slow("made anew")
	if diff, err := h.show("/show/diff"); err != nil || diff != "" {
		t.Errorf("diff: %v\n%s", err, diff)
	}
	h.settle(h.put(server.key, server.endpoint(`{"role":"server"}`)))
	if what, _ := h.shapers(); len(what) != 0 {
		t.Errorf("token buckets: %v, want none", what)
	}
	h.settle(h.put(server.key, doc))
	h.stop()
	h.cleanup()
	left := h.ns.Run(t, "nft", "list ruleset") + h.ns.Run(t, "tc", "qdisc", "show") + h.ns.Run(t, "ip", "link", "show")
	for _, ours := range []string{"tortie", "tbf", "clsact", "ifb", "tt-"} {
		if strings.Contains(left, ours) {
			t.Errorf("%q is left:\n%s", ours, left)
		}
	}
}

// twoConnections checks that two are allowed and a third is refused.
func (h *testHost) twoConnections(from, to *guest) {
	h.t.Helper()
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	h.await("two connections", func() bool { // those of before have to end
		c, err := from.dial(to.v6, timeout)
		if err == nil {
			open = append(open, c)
		}
		return len(open) == 2
	})
	if c, err := from.dial(to.v4, timeout); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			_ = c.Close()
		}
		h.t.Errorf("a third connection: %v, want it refused", err)
	}
}

// cleanup is `tortie cleanup`.
func (h *testHost) cleanup() {
	h.t.Helper()
	local, err := config.Load("", h.environ())
	if err != nil {
		h.t.Fatal(err)
	}
	h.ns.Do(func() { err = Cleanup(context.Background(), local, slog.New(slog.NewTextHandler(h, nil))) })
	if err != nil {
		h.t.Fatal(err)
	}
}

// What cannot be is named on the endpoint, and the rest is in force. A qdisc of
// another program is left alone, and is an error of that endpoint.
func TestBadControls(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.init()
	h.put(policyKey, allowAll)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	h.start(true)
	status := h.statusOf(server)
	h.settle(h.put(server.key, limited(server.endpoint(`{"role":"server"}`), `{"ingressBandwidth":10,"egressBandwidth":80000000,"dscp":"gold"}`)))
	h.await("the status error", func() bool { return strings.Contains(status(), "error") })
	problems, err := h.show("/show/problems")
	for _, want := range []string{`spec.qosControls.ingressBandwidth: "10": want 1000 to 1000000000000000`, `spec.qosControls.dscp: "gold": want a number`} {
		if err != nil || !strings.Contains(problems, want) {
			t.Errorf("problems, %v:\n%swant %s", err, problems, want)
		}
	}
	if what, _ := h.shapers(); len(what) != 1 {
		t.Errorf("token buckets: %v, want that of egress", what)
	}
	h.reaches(client, server)
	h.ns.Run(t, "tc", "qdisc", "add", "dev", server.iface, "root", "handle", "8001:", "pfifo", "limit", "77")
	h.put(server.key, limited(server.endpoint(`{"role":"server"}`), `{"ingressBandwidth":80000000}`))
	h.await("the foreign qdisc to be named", func() bool {
		problems, _ := h.show("/show/problems")
		return strings.Contains(problems, "there is a root qdisc pfifo of another program (handle 8001:)")
	})
	h.reaches(client, server)
	h.ns.Run(t, "tc", "qdisc", "del", "dev", server.iface, "root")
	h.await("the endpoint to be up", func() bool { return strings.Contains(status(), `"up"`) })
	if what, _ := h.shapers(); len(what) != 1 {
		t.Errorf("token buckets: %v, want that of ingress", what)
	}
}

// A guest that boots, with duplicate address detection, and pings is nowhere
// near the limit on what it may send to its host.
//
// Promise C5: the limit is there by default, and does not hurt.
func TestHostRateSparesTheWellBehaved(t *testing.T) {
	h := newHost(t)
	h.env = []string{"FELIX_DEFAULTENDPOINTTOHOSTACTION=Accept"}
	g, other := h.guest(), h.guest()
	h.serve(other)
	h.init()
	h.put(policyKey, allowAll)
	h.put(other.key, other.endpoint(`{"role":"other"}`))
	h.start(true)
	h.settle(h.put(g.key, g.endpoint(`{"role":"guest"}`)))
	for range 3 { // boots
		g.ns.Run(t, "ip", "link", "set", "eth0", "down")
		g.ns.Run(t, "sysctl", "-qw", "net.ipv6.conf.eth0.dad_transmits=3", "net.ipv4.conf.eth0.arp_notify=1")
		h.batch(g.ns, "link set eth0 up", "addr flush dev eth0 scope global",
			"addr add "+g.v4+"/32 dev eth0", "addr add "+g.v6+"/128 dev eth0 nodad", "route add 169.254.1.1 dev eth0 scope link",
			"route add default via 169.254.1.1 dev eth0", "route add ::/0 via fe80::ecee:eeff:feee:eeee dev eth0")
		h.reaches(g, other)
	}
	k := h.ns.Run(t, "nft", "list ruleset")
	if !strings.Contains(k, "limit rate over 200/second burst 400 packets") {
		t.Errorf("no limit by default:\n%s", k)
	}
	if out := h.ns.Run(t, "nft", "list", "counters"); strings.Count(out, "counter over-host-rate {\n\t\tpackets 0 ") != 2 {
		t.Errorf("a well-behaved guest was cut:\n%s", out)
	}
	h.stop()
	h.env = append(h.env, "FELIX_ENDPOINTTOHOSTPACKETRATE=0")
	h.start(true)
	h.await("the limit to go", func() bool { return !strings.Contains(h.ns.Run(t, "nft", "list ruleset"), "limit rate over") })
}
