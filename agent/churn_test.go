package agent

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
)

// membersWith are the elements of the one set of addresses, beside those that
// are always there, that has this one.
func (h *testHost) membersWith(address string) (members []string) {
	h.t.Helper()
	var list struct {
		Nftables []struct {
			Set struct {
				Name  string
				Type  any
				Elem  []any
				Table string
			}
		}
	}
	if err := json.Unmarshal([]byte(h.ns.Run(h.t, "nft", "-j", "list", "sets")), &list); err != nil {
		h.t.Fatal(err)
	}
	for _, o := range list.Nftables {
		var elements []string
		for _, e := range o.Set.Elem {
			if s, ok := e.(string); ok {
				elements = append(elements, s)
			}
		}
		if o.Set.Table != "tortie" || strings.HasPrefix(o.Set.Name, "local") || !slices.Contains(elements, address) {
			continue
		}
		if members != nil {
			h.t.Errorf("two sets have %s; one is %s", address, o.Set.Name)
		}
		members = elements
	}
	slices.Sort(members)
	return members
}

// Endpoints of other hosts come and go, and with their labels, those of their
// profiles, their addresses and network sets what a selector selects: whenever
// it is at rest, the kernel's set has exactly those.
//
// Promise S8: membership follows endpoints and profiles by itself.
func TestMembershipChurn(t *testing.T) {
	s := newScenario(t)
	s.run()
	rnd := rand.New(rand.NewPCG(testSeed(t), 0))
	const endpoints, rounds, changes = 1000, 6, 700
	type member struct {
		role, profile string
		third         int // of its addresses
	}
	all, profiles, set := map[int]member{}, map[string]string{}, ""
	address := func(family, third, n int) string {
		if family == 4 {
			return fmt.Sprintf("10.%d.%d.%d", 66+third, n/250, n%250+1)
		}
		return fmt.Sprintf("fd%d::%x", 66+third, n+1)
	}
	roles := []string{"client", "client", "other", ""}
	change := func() {
		switch n := rnd.IntN(endpoints + 60); {
		case n < 40:
			name, role := fmt.Sprintf("p%d", n%3), roles[rnd.IntN(4)]
			profiles[name] = role
			s.revision = s.put(apiKey(api.KindProfile, name), fmt.Sprintf(`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"labelsToApply":{"role":%q}}}`, name, role))
		case n < 60:
			set = roles[rnd.IntN(4)]
			key, doc := object(api.KindGlobalNetworkSet, "", "set", fmt.Sprintf(`"role":%q`, set), `"nets":["10.70.0.1/32","fd70::1/128"]`)
			s.revision = s.put(key, doc)
		default:
			n -= 60
			key := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "test", Name: fmt.Sprintf("h2-openstack-e%d-eth0", n)}
			if _, ok := all[n]; ok && rnd.IntN(3) == 0 {
				delete(all, n)
				s.revision = s.delete(key)
				return
			}
			m := member{roles[rnd.IntN(4)], fmt.Sprintf("p%d", rnd.IntN(3)), rnd.IntN(2)}
			all[n] = m
			labels := ""
			if m.role != "" {
				labels = fmt.Sprintf(`"role":%q`, m.role)
			}
			s.revision = s.put(key, fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":"test","labels":{%s}},`+
				`"spec":{"orchestrator":"openstack","workload":"e%d","node":"h2","endpoint":"eth0","interfaceName":"cali9","profiles":[%q],"ipNetworks":["%s/32","%s/128"]}}`,
				key.Name, labels, n, m.profile, address(4, m.third, n), address(6, m.third, n)))
		}
	}
	for range rounds {
		for range changes {
			change()
		}
		s.settle(s.revision)
		for _, f := range families {
			want := []string{s.client.addr(f)}
			for n, m := range all {
				if m.role == "client" || m.role == "" && profiles[m.profile] == "client" {
					want = append(want, address(f, m.third, n))
				}
			}
			if set == "client" {
				want = append(want, map[int]string{4: "10.70.0.1", 6: "fd70::1"}[f])
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, s.membersWith(s.client.addr(f))); diff != "" {
				t.Fatalf("IPv%d (-want +got):\n%s", f, diff)
			}
			t.Logf("IPv%d: %d of %d endpoints are members", f, len(want), len(all))
		}
	}
}
