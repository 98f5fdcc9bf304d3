package verify

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"tortie/internal/nstest"
	"tortie/proof"
	"tortie/space"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// seedOr is the seed of a test: what TORTIE_TEST_SEED says, if that is set.
func seedOr(t *testing.T, seed uint64) uint64 {
	t.Helper()
	if s := os.Getenv("TORTIE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TORTIE_TEST_SEED=%d", seed)
	return seed
}

// check reads a host's table and checks it, within some headers or all.
func check(t *testing.T, w *proof.World, host string, within func(*space.Space, *local) space.Set) *Report {
	t.Helper()
	var report *Report
	var err error
	w.Do(host, func() {
		var r *Ruleset
		if r, err = Read(); err == nil {
			h := &Host{Name: host, Cluster: w.Cluster(), Index: Interface, Peers: proof.SlotsPerHost, within: within}
			report, err = h.Check(r)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestRandomClusters: on every random cluster the kernel does what policy says,
// for every packet.
func TestRandomClusters(t *testing.T) {
	w := proof.New(t)
	d := proof.NewDraw(w, seedOr(t, rand.Uint64()))
	endpoints, ways := 0, 0
	for round := range 12 {
		step := d.Start(30)
		if round > 0 {
			step = nil
			for range 6 {
				step = append(step, d.Change())
			}
		}
		if err := w.Change(step...); err != nil {
			t.Fatal(err)
		}
		for _, host := range w.HostNames() {
			r := check(t, w, host, nil)
			endpoints, ways = endpoints+r.Endpoints, ways+r.Ways
			for _, f := range r.Findings {
				t.Errorf("round %d, %s: %s", round, host, f)
			}
		}
		if t.Failed() {
			return
		}
	}
	if endpoints < 30 || ways < 100 {
		t.Errorf("%d endpoints, %d ways: that tests little", endpoints, ways)
	}
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// What passes by the interface of a host endpoint is proven too, but for policy
// on packets that are not tracked, and that is said.
func TestHostEndpointsAreNamed(t *testing.T) {
	w := proof.New(t)
	put := func(doc string) proof.Change { return proof.Change{Put: json.RawMessage(doc)} }
	endpoint := func(iface string) proof.Change {
		return put(fmt.Sprintf(`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h","labels":{"host":"yes"}},"spec":{"node":"h1","interfaceName":%q}}`, iface))
	}
	policy := func(more string) proof.Change {
		return put(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"selector":"has(host)","types":["Ingress"]` + more + `}}`)
	}
	for _, c := range []struct {
		iface, policy string
		named         int
		ways          int
	}{
		{"eth0", ``, 0, 2},
		{"*", ``, 0, 1},
		{"eth0", `,"applyOnForward":true`, 0, 2},
		{"*", `,"applyOnForward":true`, 0, 1},
		{"absent", `,"applyOnForward":true`, 1, 1},
		{"*", `,"applyOnForward":true,"preDNAT":true`, 0, 1},
		{"*", `,"applyOnForward":true,"doNotTrack":true`, 1, 0},
		{"eth0", `,"applyOnForward":true,"doNotTrack":true`, 1, 1},
	} {
		if err := w.Change(endpoint(c.iface), policy(c.policy)); err != nil {
			t.Fatal(err)
		}
		r := check(t, w, "h1", nil)
		if len(r.Unchecked) != c.named || r.Ways != c.ways || !r.Proven() {
			t.Errorf("%+v: %v unchecked, %d ways, findings %v", c, r.Unchecked, r.Ways, r.Findings)
		}
	}
}
