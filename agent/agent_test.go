package agent

import (
	"strings"
	"testing"

	"tortie/api"
)

var policyKey = api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "web"}

const (
	allowAll = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"web"},` +
		`"spec":{"selector":"has(role)","ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}`
	allowNone = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"web"},` +
		`"spec":{"selector":"has(role)","ingress":[],"egress":[]}}`
)

// The spine: an endpoint and a policy in the store, a packet that passes, and
// then does not.
//
// Promise S13: one change is followed from the store to the kernel.
// Promise S2: without policy and without profile nothing passes.
func TestPacketPassesAndIsRefused(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.init()
	h.start(true)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	h.settle(h.put(server.key, server.endpoint(`{"role":"server"}`)))
	h.refused(client, server)
	h.settle(h.put(policyKey, allowAll))
	h.reaches(client, server)
	h.settle(h.put(policyKey, allowNone))
	h.refused(client, server)
	h.settle(h.put(policyKey, allowAll))
	h.reaches(client, server)
	h.settle(h.delete(server.key))
	h.refused(client, server)
}

// A host that boots with the store absent, forwarding on and interfaces up
// passes nothing.
func TestBootIsClosed(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.ns.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, g := range []*guest{client, server} {
		h.ns.Run(t, "ip", "route", "add", g.v4, "dev", g.iface)
		h.ns.Run(t, "ip", "route", "add", g.v6, "dev", g.iface)
		h.ns.Run(t, "sysctl", "-qw", "net.ipv4.conf."+g.iface+".proxy_arp=1", "net.ipv4.neigh."+g.iface+".proxy_delay=0")
	}
	h.ns.Run(t, "ip", "route", "add", "169.254.1.1", "dev", "lo")
	h.reaches(client, server) // the kernel alone lets everything through
	h.link.Disconnect()
	h.start(false)
	h.await("the agent to serve", func() bool { return h.health().Waiting != "" })
	h.refused(client, server)
	if r := h.health(); r.Ready || r.Connected {
		t.Errorf("health without a store: %+v", r)
	}
}

// Promise B15: until the store is initialised the agent waits and says so, in
// its health and in its log.
func TestWaitsUntilDatastoreIsReady(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.put(policyKey, allowAll)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	h.put(server.key, server.endpoint(`{"role":"server"}`))
	h.start(false)
	h.await("the agent to wait for the datastore", func() bool { return strings.Contains(h.health().Waiting, "ClusterInformation(default)") })
	h.refused(client, server)
	h.settle(h.init())
	h.reaches(client, server)
}

// A restart on a correct kernel writes nothing; Promise F4: the kernel is the
// only local state. Promise F7: with the agent gone, what was allowed passes
// and what was denied does not.
func TestRestartWritesNothing(t *testing.T) {
	h := newHost(t)
	client, server, other := h.guest(), h.guest(), h.guest()
	h.serve(server)
	h.init()
	h.put(policyKey, allowAll)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	h.put(other.key, other.endpoint(`{}`))
	rev := h.put(server.key, server.endpoint(`{"role":"server"}`))
	h.start(true)
	h.settle(rev)
	h.reaches(client, server)
	h.stop()
	h.reaches(client, server)
	h.refused(other, server)
	before := withoutDenied(h.ns.Run(t, "nft", "-a", "list", "ruleset"))
	events := h.watchKernel()
	h.start(true)
	h.settle(rev)
	if n := events(); n != "" {
		t.Errorf("a restart on a correct kernel wrote: %s", n)
	}
	if after := withoutDenied(h.ns.Run(t, "nft", "-a", "list", "ruleset")); before != after {
		t.Errorf("the ruleset changed in a restart:\n%s\nwas:\n%s", after, before)
	}
	h.reaches(client, server)
	h.refused(other, server)
}

// A bad field closes that field alone and is shown; Promise S8 is of calc.
//
// Pain 25: elsewhere it costs the whole endpoint.
func TestBadFieldsAreShown(t *testing.T) {
	h := newHost(t)
	client, server := h.guest(), h.guest()
	h.serve(server)
	h.init()
	h.start(true)
	h.put(policyKey, allowAll)
	h.put(client.key, client.endpoint(`{"role":"client"}`))
	doc := strings.Replace(server.endpoint(`{"role":"server"}`), `"ipNetworks":[`, `"ipNetworks":["10.0.0.0/24/24",`, 1)
	h.settle(h.put(server.key, doc))
	h.reaches(client, server)
	problems, err := h.show("/show/problems")
	if err != nil || !strings.Contains(problems, "spec.ipNetworks[0]") || !strings.Contains(problems, "10.0.0.0/24/24") {
		t.Errorf("problems: %q, %v", problems, err)
	}
	value := h.statusOf(server)
	h.await("the status error", func() bool { return strings.Contains(value(), "error") })
}
