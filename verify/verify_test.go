package verify

import (
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
