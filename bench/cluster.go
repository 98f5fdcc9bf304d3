package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"tortie/api"
	"tortie/store"
)

const (
	namespace   = "bench"
	groups      = 20
	rulesPolicy = 10
	seed        = 20261122
	perHost     = 100 // endpoints on each remote host
)

// addresses of the nth endpoint of the cluster.
func addresses(n int) (v4, v6 netip.Addr) {
	v4 = netip.AddrFrom4([4]byte{10, byte(16 + n>>16), byte(n >> 8), byte(n)})
	v6 = netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
	return v4, v6
}

// workload returns the key and value of the nth endpoint. On this host it is
// bound to the nth interface.
func workload(n int, host, group string) (api.Key, []byte) {
	v4, v6 := addresses(n)
	return workloadOf(host, group, interfaceName(n), v4, v6)
}

// workloadOf returns those of the endpoint at an interface.
func workloadOf(host, group, link string, v4, v6 netip.Addr) (api.Key, []byte) {
	id := "w" + link[len("tap"):]
	key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: namespace, Name: host + "-openstack-" + id + "-eth0"}
	value := fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,`+
		`"uid":"00000000-0000-4000-8000-%012x","creationTimestamp":"2026-11-22T12:00:00Z",`+
		`"labels":{"all":"yes","group":%q,"projectcalico.org/namespace":%q,"projectcalico.org/orchestrator":"openstack"}},`+
		`"spec":{"orchestrator":"openstack","workload":%q,"node":%q,"endpoint":"eth0","interfaceName":%q,"ipNetworks":["%s/32","%s/128"]}}`,
		key.Name, namespace, v4.AsSlice(), group, namespace, id, host, link, v4, v6)
	return key, []byte(value)
}

func groupName(n int) string { return fmt.Sprintf("g%02d", n%groups) }

// remoteHost is the host of the nth endpoint where that is not local.
func remoteHost(n int) string { return fmt.Sprintf("r%d", n/perHost) }

// policy returns the key and value of a GlobalNetworkPolicy with half of its
// rules in each direction, from a seed. Port, if not 0, replaces that of the
// first rule.
func policy(name, selector string, order, port int) (api.Key, []byte) {
	rng := rand.New(rand.NewPCG(seed, uint64(order)))
	var ingress, egress []map[string]any
	for i := range rulesPolicy {
		r := rule(rng, i)
		if i == 0 && port != 0 {
			r = map[string]any{"action": "Allow", "protocol": "TCP", "destination": map[string]any{"ports": []any{port}}}
		}
		if i%2 == 0 {
			ingress = append(ingress, r)
		} else {
			egress = append(egress, r)
		}
	}
	key := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name}
	value, err := json.Marshal(map[string]any{
		"kind": "GlobalNetworkPolicy", "apiVersion": api.APIVersion,
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"tier": "default", "order": order, "selector": selector, "types": []string{"Ingress", "Egress"},
			"ingress": ingress, "egress": egress,
		},
	})
	if err != nil {
		panic(err) // a value of this shape always marshals
	}
	return key, value
}

// rule draws the ith rule: protocols, ports, ranges, nets, groups, negations.
func rule(rng *rand.Rand, i int) map[string]any {
	action := "Allow"
	if rng.IntN(4) == 0 {
		action = "Deny"
	}
	port := 1000 + rng.IntN(30000)
	net := fmt.Sprintf("10.%d.%d.0/24", 16+rng.IntN(4), rng.IntN(256))
	group := fmt.Sprintf("group == 'g%02d'", rng.IntN(groups))
	switch i % 5 {
	case 0:
		return map[string]any{"action": action, "protocol": "TCP", "source": map[string]any{"selector": group}, "destination": map[string]any{"ports": []any{port}}}
	case 1:
		return map[string]any{"action": action, "protocol": "UDP", "source": map[string]any{"nets": []string{net}}, "destination": map[string]any{"ports": []any{fmt.Sprintf("%d:%d", port, port+100), port + 500}}}
	case 2:
		return map[string]any{"action": action, "protocol": "TCP", "source": map[string]any{"notSelector": group}, "destination": map[string]any{"ports": []any{port, port + 1, port + 7}}}
	case 3:
		return map[string]any{"action": action, "ipVersion": 4, "protocol": "ICMP", "icmp": map[string]any{"type": 8}, "source": map[string]any{"notNets": []string{net}}}
	default:
		return map[string]any{"action": action, "protocol": "TCP", "source": map[string]any{"selector": "all == 'yes'"}, "destination": map[string]any{"notPorts": []any{fmt.Sprintf("%d:%d", port, port+1000)}}}
	}
}

// load fills the store with the cluster: local endpoints on this host, remote
// ones on others, and 21 policies, of which each endpoint has two; it has as many
// more as extra says.
func load(s store.Store, local, remote, extra int) error {
	ops := []store.Op{
		put(api.Key{Kind: api.KindClusterInformation, Name: "default"}, []byte(`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`)),
		put(api.Key{Kind: api.KindTier, Name: "default"}, []byte(`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000}}`)),
		put(api.Key{Kind: api.KindFelixConfiguration, Name: "default"}, []byte(`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"endpointReportingEnabled":true}}`)),
		put(policy("everybody", "all == 'yes'", 1, 0)),
	}
	for g := range groups {
		ops = append(ops, put(policy(groupName(g), fmt.Sprintf("group == '%s'", groupName(g)), 10+g, 0)))
	}
	for i := range extra {
		ops = append(ops, put(policy(fmt.Sprintf("extra%02d", i), "all == 'yes'", 1000+i, 0)))
	}
	for n := range local {
		ops = append(ops, put(workload(n, benchHost, groupName(n))))
	}
	for n := remoteBase; n < remoteBase+remote; n++ {
		ops = append(ops, put(workload(n, remoteHost(n), groupName(n))))
	}
	return commit(s, ops)
}

// remoteBase is the number of the first remote endpoint.
const remoteBase = 10_000

func put(key api.Key, value []byte) store.Op {
	return store.Op{Path: key.Path(), Value: value, If: store.AnyRevision}
}

// commit writes ops in transactions of 100 by 8 writers.
func commit(s store.Store, ops []store.Op) error {
	chunks := make(chan []store.Op)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range 8 {
		wg.Go(func() {
			for c := range chunks {
				if _, err := s.Commit(context.Background(), c...); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	for _, chunk := range store.Batches(ops) {
		chunks <- chunk
	}
	close(chunks)
	wg.Wait()
	return failed
}
