package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tortie/api"
	"tortie/store"
)

// steps is a store whose snapshot comes one object at a time, when the test
// says so; those whose path has a text of last are the last.
type steps struct {
	store.Store
	last string
	next chan struct{}
}

type stepWatcher struct {
	store.Watcher
	steps *steps
	queue []store.Batch
}

func (s *steps) Watch(ctx context.Context, prefixes ...string) store.Watcher {
	w := s.Store.Watch(ctx, prefixes...)
	if slices.Contains(prefixes, api.WaitRoot) {
		return w
	}
	return &stepWatcher{Watcher: w, steps: s}
}

// Next returns a step when there is a word from the test; by then the step
// before has been taken by the loop.
func (w *stepWatcher) Next(ctx context.Context) (store.Batch, error) {
	if len(w.queue) == 0 {
		b, err := w.Watcher.Next(ctx)
		if err != nil || len(b.Events) == 0 {
			return b, err
		}
		slices.SortStableFunc(b.Events, func(a, c store.Event) int {
			is := func(e store.Event) int { return strings.Count(e.Path, w.steps.last) }
			return is(a) - is(c)
		})
		for i, e := range b.Events {
			step := store.Batch{Events: []store.Event{e}, Connected: true}
			if i == len(b.Events)-1 {
				step.Revision, step.InSync = b.Revision, b.InSync
			}
			w.queue = append(w.queue, step)
		}
	}
	select {
	case <-w.steps.next:
	case <-ctx.Done():
		return store.Batch{}, ctx.Err()
	}
	b := w.queue[0]
	w.queue = w.queue[1:]
	return b, nil
}

// A host that boots without a store, with its taps up, routes to them, and
// guests that send all the time, passes not one packet: not while it waits for
// the store, not while the snapshot comes in and half of the policy is there.
// It is the agent that makes the host a router, after it has closed it.
func TestBootPassesNothing(t *testing.T) {
	h := newHost(t)
	client, server, other := h.guest(), h.guest(), h.guest()
	for _, g := range []*guest{client, server, other} {
		h.batch(h.ns, "route add "+g.v4+" dev "+g.iface, "route add "+g.v6+" dev "+g.iface)
		h.batch(g.ns,
			"neigh add 169.254.1.1 lladdr "+hostMAC+" dev eth0 nud permanent",
			"neigh add fe80::ecee:eeff:feee:eeee lladdr "+hostMAC+" dev eth0 nud permanent")
	}
	var allowed, denied []*stream
	for i, f := range families {
		allowed = append(allowed, h.stream(client, server, f, 9000+i, rate))
		denied = append(denied, h.stream(other, server, f, 9010+i, rate))
	}
	arrived := []func() int{
		h.meter(server, "ip saddr { "+client.v4+", "+other.v4+" }"),
		h.meter(server, "ip6 saddr { "+client.v6+", "+other.v6+" }"),
	}
	closed := func(when string) {
		t.Helper()
		for _, s := range append(allowed, denied...) {
			s.quiet()
		}
		for _, n := range arrived {
			if n := n(); n != 0 {
				t.Fatalf("%s: %d packets passed", when, n)
			}
		}
	}
	closed("no agent")

	given := &steps{Store: h.link, last: "globalnetworkpolicies/servers", next: make(chan struct{})}
	h.given = given
	h.init()
	h.put(policyOf("all"), policyDoc("all", "has(role)", allow, allow))
	h.put(policyOf("servers"), strings.Replace(policyDoc("servers", `role == "server"`,
		`{"action":"Deny","source":{"selector":"role == \"other\""}},`+allow, allow), `"order":100`, `"order":1`, 1))
	h.put(client.key, client.bound(`{"role":"client"}`))
	h.put(other.key, other.endpoint(`{"role":"other"}`))
	rev := h.put(server.key, server.bound(`{"role":"server"}`))
	h.link.Disconnect()
	h.start(false)
	h.await("the agent to serve", func() bool { return h.health().Waiting == "for the datastore to answer" })
	if v := h.ns.Run(t, "sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"); v != "1\n1\n" {
		t.Errorf("forwarding: %q", v)
	}
	closed("the store is absent")
	h.link.Reconnect()
	objects := 7
	for i := range objects - 1 {
		given.next <- struct{}{}
		if i > 0 && i%2 == 0 {
			closed(fmt.Sprintf("%d objects of the snapshot", i))
		}
	}
	h.await("the snapshot to be under way", func() bool { return h.health().Waiting == "for the datastore's snapshot" })
	closed("all but the policy that denies")
	given.next <- struct{}{}
	h.settle(rev)
	for _, s := range allowed {
		s.flows()
	}
	for _, s := range denied {
		s.never()
	}
}

// While the store is gone everything goes on: what was in force stays so, and
// links that come and go are served. When it is back, what happened meanwhile
// is caught up with, deletions too.
func TestStoreGoneWhileAllChurns(t *testing.T) {
	s := newScenario(t)
	leaving := s.guest()
	s.revision = s.put(leaving.key, leaving.bound(`{"role":"server"}`))
	s.run()
	s.status(leaving, "up")
	allowed, denied := s.streams()
	var toLeaving, toComing []*stream
	for i, f := range families {
		toLeaving = append(toLeaving, s.stream(s.client, leaving, f, 9020+i, 200))
	}
	for _, st := range toLeaving {
		st.flows()
	}
	s.link.Disconnect()
	s.await("the agent to notice", func() bool { return !s.health().Connected })
	if h := s.health(); !h.Ready {
		t.Errorf("a host whose store is gone enforces what it knows: %+v", h)
	}
	coming := s.guest()
	for i, f := range families {
		toComing = append(toComing, s.stream(s.client, coming, f, 9030+i, 200))
	}
	s.put(coming.key, coming.bound(`{"role":"server"}`))
	s.delete(leaving.key)
	for i := range 200 { // and much else
		key := apiKey("GlobalNetworkSet", fmt.Sprintf("set%d", i%20))
		if i%3 == 2 {
			s.delete(key)
			continue
		}
		s.put(key, fmt.Sprintf(`{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"labels":{"role":"client"}},"spec":{"nets":["10.%d.0.0/16"]}}`, key.Name, 66+i%150))
		s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, []string{allow, fromClients}[i%2], allow))
		if i%20 == 0 {
			s.link.Compact()
		}
	}
	// Links churn meanwhile.
	for i := range 4 {
		s.ns.Run(t, "ip", "link", "set", s.other.iface, []string{"down", "up"}[i%2])
	}
	s.ns.Run(t, "ip", "link", "del", leaving.iface)
	s.routed(leaving, false)
	s.plug(leaving)
	s.routed(leaving, true)
	for i := range families {
		toLeaving[i].flows()
		toComing[i].quiet()
		if n := toComing[i].passed(0); n > 0 {
			t.Errorf("%d packets to an endpoint that is not known", n)
		}
		allowed[i].flows()
		denied[i].quiet()
	}
	rev := s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow))
	s.link.Reconnect()
	s.settle(rev)
	for i := range families {
		toComing[i].flows()
		toLeaving[i].forbid()
		toLeaving[i].quiet()
		allowed[i].complete()
		denied[i].never()
	}
	s.routed(leaving, false)
	s.status(coming, "up")
	value := s.statusOf(leaving)
	s.await("the status of the one that left to go", func() bool { return value() == "" })
}

// Compaction during a watch costs the kernel nothing, and no change is missed.
func TestCompaction(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, denied := s.streams()
	events := s.watchKernel()
	for range 5 {
		s.link.Compact()
	}
	s.settle(s.put(apiKey("GlobalNetworkSet", "unused"), `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"unused"},"spec":{"nets":["10.9.0.0/16"]}}`))
	if seen := events(); seen != "" {
		t.Errorf("compaction caused writes: %s", seen)
	}
	for i := range 20 {
		s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, []string{fromClients, ""}[i%2], allow))
		s.link.Compact()
		if i%4 == 0 {
			s.link.Disconnect()
			s.link.Compact()
			s.delete(s.other.key)
			s.link.Compact()
			s.link.Reconnect()
			s.put(s.other.key, s.other.endpoint(`{"role":"other"}`))
		}
	}
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow)))
	for i := range allowed {
		allowed[i].flows()
		denied[i].never()
	}
}
