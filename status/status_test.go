package status_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"tortie/api"
	"tortie/status"
	"tortie/store"
	"tortie/store/etcd"
	"tortie/store/memory"
	"tortie/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// onBoth runs a test on both stores.
func onBoth(t *testing.T, test func(*testing.T, store.Store)) {
	t.Run("memory", func(t *testing.T) { test(t, memory.New()) })
	t.Run("etcd", func(t *testing.T) { test(t, newEtcd(t)) })
}

func newEtcd(t *testing.T) store.Store {
	t.Helper()
	server, err := etcd.Serve(etcd.ServeConfig{Dir: filepath.Join(t.TempDir(), "data"), Listen: []string{"http://127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	s, err := etcd.Open(etcd.Config{Endpoints: server.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// start runs a writer that ends with the test, or with the function returned.
func start(t *testing.T, s store.Store, opts status.Options) (*status.Writer, func()) {
	t.Helper()
	if opts.Host == "" {
		opts.Host = "host-1"
	}
	opts.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w := status.New(s, opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return w, stop
}

// endpoint is the key of an OpenStack endpoint of host-1.
func endpoint(i int) api.Key {
	return api.Key{
		Kind: api.KindWorkloadEndpoint, Namespace: "openstack",
		Name: fmt.Sprintf("host--1-openstack-vm--%d-port--%d", i, i),
	}
}

func endpointPath(i int) string {
	return fmt.Sprintf("/calico/felix/v2/no-region/host/host-1/workload/openstack/openstack%%2fvm-%d/endpoint/port-%d", i, i)
}

// awaitValues follows all status until there are exactly these values.
func awaitValues(t *testing.T, s store.Store, want map[string]string) {
	t.Helper()
	f := storetest.Follow(t, s, "/calico/")
	f.Until("the values wanted", func() bool { return f.Last().InSync && maps.Equal(want, f.Values()) })
}

func TestEndpointFormats(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		w, _ := start(t, s, status.Options{Host: "compute.Example-1", EndpointReporting: true})
		regional, _ := start(t, s, status.Options{Host: "compute.Example-1", Region: "eu-1", EndpointReporting: true})
		key := func(kind api.Kind, namespace, name string) api.Key {
			return api.Key{Kind: kind, Namespace: namespace, Name: name}
		}
		wep, hep := api.KindWorkloadEndpoint, api.KindHostEndpoint
		w.Set(key(wep, "openstack", "compute.Example--1-openstack-3f0d--11-9a1c--22"), api.StatusUp)
		w.Set(key(wep, "default", "compute.Example--1-k8s-pod.1-eth0"), api.StatusDown)
		w.Set(key(wep, "default", "compute.Example--1-cni-a%b-eth/0"), api.StatusError)
		w.Set(key(wep, "default", "not a name"), api.StatusUp)
		w.Set(key(hep, "", "eth0/a%b"), api.StatusUp)
		regional.Set(key(wep, "openstack-region-eu-1", "compute.Example--1-openstack-3f0d--11-9a1c--22"), api.StatusUp)
		awaitValues(t, s, map[string]string{
			"/calico/felix/v2/no-region/host/compute.Example-1/workload/openstack/openstack%2f3f0d-11/endpoint/9a1c-22":               `{"status":"up"}`,
			"/calico/felix/v2/no-region/host/compute.Example-1/workload/k8s/default%2fpod.1/endpoint/eth0":                            `{"status":"down"}`,
			"/calico/felix/v2/no-region/host/compute.Example-1/workload/cni/default%2fa%25b/endpoint/eth%2f0":                         `{"status":"error"}`,
			"/calico/felix/v1/host/compute.Example-1/endpoint/eth0%2fa%25b":                                                           `{"status":"up"}`,
			"/calico/felix/v2/region-eu-1/host/compute.Example-1/workload/openstack/openstack-region-eu-1%2f3f0d-11/endpoint/9a1c-22": `{"status":"up"}`,
		})
	})
}

func TestLivenessFormats(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		for _, region := range []string{"", "eu-1"} {
			segment := "no-region"
			if region != "" {
				segment = "region-" + region
			}
			root := "/calico/felix/v2/" + segment + "/host/h/"
			f := storetest.Follow(t, s, root, "/tortie/")
			f.InSync()
			w, stop := start(t, s, status.Options{Host: "h", Region: region, Interval: 50 * time.Millisecond, TTL: 60 * time.Second})
			f.Until("the first report", func() bool { return len(f.Values()) == 2 })
			form := regexp.MustCompile(`^\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ","uptime":\d+(\.\d{1,2})?,"first_update":(true|false)\}$`)
			first := f.Values()[root+"status"]
			if !form.MatchString(first) || !strings.Contains(first, `"first_update":true`) {
				t.Errorf("first report: %s", first)
			}
			if last := f.Values()[root+"last_reported_status"]; last != first {
				t.Errorf("last report %s, want the same as the first: %s", last, first)
			}
			f.Until("the next report", func() bool { return f.Values()[root+"status"] != first })
			next := f.Values()[root+"status"]
			if !form.MatchString(next) || !strings.Contains(next, `"first_update":false`) {
				t.Errorf("next report: %s", next)
			}
			if _, reported := f.Values()["/tortie/v1/host/h/applied"]; reported {
				t.Error("an applied revision was reported before there was one")
			}
			w.SetApplied(1234)
			f.Until("the applied revision", func() bool { return f.Values()["/tortie/v1/host/h/applied"] != "" })
			applied := regexp.MustCompile(`^\{"revision":1234,"at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"\}$`)
			if got := f.Values()["/tortie/v1/host/h/applied"]; !applied.MatchString(got) {
				t.Errorf("applied: %s", got)
			}
			stop()
			storetest.Delete(t, s, "/tortie/v1/host/h/applied")
		}
	})
}

// TestThousandEndpoints: 1,000 endpoints within 2 s, in transactions of many.
func TestThousandEndpoints(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		f := storetest.Follow(t, s, "/calico/felix/v2/no-region/host/host-1/workload/")
		f.InSync()
		w, _ := start(t, s, status.Options{EndpointReporting: true, Delay: time.Second, Interval: time.Minute})
		begun := time.Now()
		for i := range 1000 {
			w.Set(endpoint(i), api.StatusUp)
		}
		f.Until("all endpoints", func() bool { return len(f.Values()) == 1000 })
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("took %v", took)
		}
		entries, _, err := s.List(t.Context(), "/calico/felix/v2/no-region/host/host-1/workload/")
		if err != nil {
			t.Fatal(err)
		}
		transactions := map[int64]bool{}
		for _, e := range entries {
			transactions[e.Revision] = true
		}
		if len(transactions) > 50 {
			t.Errorf("%d transactions for 1000 endpoints", len(transactions))
		}
	})
}

// TestNoRewrite: what is right in the store is not written, whoever wrote it.
func TestNoRewrite(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		storetest.Put(t, s, endpointPath(1), `{"status": "up"}`)
		before := storetest.Put(t, s, endpointPath(2), `{"status":"down","more":1}`)
		w, _ := start(t, s, status.Options{EndpointReporting: true})
		w.InSync(map[api.Key]string{endpoint(1): api.StatusUp, endpoint(2): api.StatusDown})
		w.Set(endpoint(1), api.StatusUp)
		w.Set(endpoint(7), "")
		w.Set(endpoint(3), api.StatusUp) // the sign that all was looked at
		f := storetest.Follow(t, s, "/calico/")
		f.Until("the third endpoint", func() bool { return len(f.Values()) == 3 })
		w.Set(endpoint(3), api.StatusDown)
		w.Set(endpoint(3), api.StatusUp)
		w.Set(endpoint(4), api.StatusUp)
		f.Until("the fourth endpoint", func() bool { return len(f.Values()) == 4 })
		entries, _, err := s.List(t.Context(), "/calico/")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries[:2] {
			if e.Revision > before {
				t.Errorf("%s was written again: %s", e.Path, e.Value)
			}
		}
	})
}

// TestRepair: at start wrong values are rewritten, missing ones written, and,
// once in sync, those of endpoints that are gone removed.
func TestRepair(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		right := map[string]string{
			"/calico/felix/v2/no-region/host/host-10/workload/o/n%2fw/endpoint/e": `{"status":"up"}`,
			"/calico/felix/v2/region-r/host/host-1/workload/o/n%2fw/endpoint/e":   `{"status":"up"}`,
			endpointPath(1): `{"status":"up"}`,
			endpointPath(2): `{"status":"down"}`,
			endpointPath(3): `{"status":"error"}`,
			endpointPath(4): `{"status":"up"}`,
		}
		for path, value := range right {
			storetest.Put(t, s, path, value)
		}
		storetest.Put(t, s, endpointPath(2), `{"status":"up"}`)
		storetest.Put(t, s, endpointPath(3), `rubbish`)
		storetest.Delete(t, s, endpointPath(4))
		gone := map[string]string{
			endpointPath(5): `{"status":"up"}`,
			"/calico/felix/v1/host/host-1/endpoint/eth0": `{"status":"up"}`,
		}
		for path, value := range gone {
			storetest.Put(t, s, path, value)
		}
		w, _ := start(t, s, status.Options{EndpointReporting: true})
		all := map[api.Key]string{
			endpoint(1): api.StatusUp, endpoint(2): api.StatusDown, endpoint(3): api.StatusError, endpoint(4): api.StatusUp,
		}
		for key, st := range all {
			w.Set(key, st)
		}
		before := maps.Clone(right)
		maps.Copy(before, gone)
		awaitValues(t, s, before)
		w.InSync(all)
		awaitValues(t, s, right)
		w.Set(endpoint(1), "")
		delete(right, endpointPath(1))
		awaitValues(t, s, right)
	})
}

// TestStoreAway: setters return while the store is away; afterwards it has
// what was set last, on a new lease if the old one has ended.
func TestStoreAway(t *testing.T) {
	s := memory.New()
	other := s.Client()
	s.Disconnect()
	w, _ := start(t, s, status.Options{EndpointReporting: true, Interval: 20 * time.Millisecond, TTL: time.Minute})
	for round := range 3 {
		for i := range 500 {
			w.Set(endpoint(i), []string{api.StatusDown, api.StatusUp}[i%2])
			w.Set(endpoint(i), api.StatusUp)
		}
		w.Set(endpoint(round), "")
		w.SetApplied(int64(100 + round))
		s.Reconnect()
		f := storetest.Follow(t, other, "/calico/felix/v2/no-region/host/host-1/", "/tortie/")
		f.Until("all statuses", func() bool {
			var applied api.Applied
			_ = json.Unmarshal([]byte(f.Values()["/tortie/v1/host/host-1/applied"]), &applied)
			return len(f.Values()) == 499+3 && applied.Revision == int64(100+round)
		})
		if v, ok := f.Values()[endpointPath(round)]; ok {
			t.Errorf("endpoint %d: %s, want it gone", round, v)
		}
		s.Disconnect()
		s.Expire(store.Lease(round + 1)) // as if it was away for longer than TTL
		g := storetest.Follow(t, other, "/calico/felix/v2/no-region/host/host-1/status", "/tortie/")
		g.Until("the end of the lease", func() bool { return g.Last().InSync && len(g.Values()) == 0 })
		for i := range 3 {
			storetest.Delete(t, other, endpointPath(100+i)) // lost meanwhile
		}
	}
}

// TestLivenessEnds: the writer dies; what is on the lease goes after TTL, the
// last report stays. Against a real store, with real time.
func TestLivenessEnds(t *testing.T) {
	s := newEtcd(t)
	w, stop := start(t, s, status.Options{Interval: time.Second, TTL: 2 * time.Second})
	w.SetApplied(7)
	f := storetest.Follow(t, s, "/")
	f.Until("the reports", func() bool { return len(f.Values()) == 3 })
	f.Until("a report after the lease's time", func() bool {
		var r api.StatusReport
		_ = json.Unmarshal([]byte(f.Values()["/calico/felix/v2/no-region/host/host-1/status"]), &r)
		return r.Uptime > 3
	})
	stop()
	died := time.Now()
	f.Until("the end of the lease", func() bool { return len(f.Values()) == 1 })
	if took := time.Since(died); took > 5*time.Second {
		t.Errorf("the lease lasted %v", took)
	}
	if _, ok := f.Values()["/calico/felix/v2/no-region/host/host-1/last_reported_status"]; !ok {
		t.Errorf("left: %v, want the last report", f.Values())
	}
}

// TestAppliedOnRequest: the applied revision comes with the sign of life, and
// at once only while somebody waits, at most ten times a second.
func TestAppliedOnRequest(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		const path = "/tortie/v1/host/host-1/applied"
		w, _ := start(t, s, status.Options{Interval: time.Hour, TTL: time.Hour, EndpointReporting: true})
		f := storetest.Follow(t, s, "/tortie/v1/host/", "/calico/")
		f.Until("the first report", func() bool { return len(f.Values()) == 2 })
		applied := func() int64 {
			var a api.Applied
			_ = json.Unmarshal([]byte(f.Values()[path]), &a)
			return a.Revision
		}
		w.SetApplied(10)
		w.Set(endpoint(1), api.StatusUp) // written after the revision would be
		f.Until("an endpoint", func() bool { return len(f.Values()) == 3 })
		if applied() != 0 {
			t.Fatal("the applied revision was written though nobody waits")
		}
		storetest.Put(t, s, "/tortie/v1/wait/a", "{}")
		f.Until("revision 10", func() bool { return applied() == 10 })
		begun := time.Now()
		w.SetApplied(11)
		f.Until("revision 11", func() bool { return applied() == 11 })
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("revision 11 took %v", took)
		}

		begun = time.Now()
		writes := map[string]bool{}
		for i := int64(12); time.Since(begun) < 500*time.Millisecond; i++ {
			w.SetApplied(i)
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if f.Next(ctx) == nil {
				writes[f.Values()[path]] = true
			}
			cancel()
		}
		if len(writes) < 2 || len(writes) > 7 {
			t.Errorf("%d reports in half a second, want about 5", len(writes))
		}
		storetest.Delete(t, s, "/tortie/v1/wait/a")
	})
}

func TestNothingToReport(t *testing.T) {
	onBoth(t, func(t *testing.T, s store.Store) {
		storetest.Put(t, s, endpointPath(1), `{"status":"up"}`)
		w, stop := start(t, s, status.Options{EndpointReporting: false, Interval: 20 * time.Millisecond, TTL: time.Minute})
		w.Set(endpoint(2), api.StatusUp)
		w.InSync(map[api.Key]string{endpoint(3): api.StatusUp})
		f := storetest.Follow(t, s, "/calico/felix/v2/no-region/host/host-1/status")
		f.Until("two reports", func() bool { return strings.Contains(fmt.Sprint(f.Values()), `"first_update":false`) })
		stop()
		want := map[string]string{endpointPath(1): `{"status":"up"}`}
		if diff := cmp.Diff(want, storetest.List(t, s, "/calico/felix/v2/no-region/host/host-1/workload/")); diff != "" {
			t.Error(diff)
		}
	})
}

// TestDelay: the first change of an endpoint is written at once, the next ones
// together after Delay; other endpoints do not wait for that.
func TestDelay(t *testing.T) {
	const delay = 500 * time.Millisecond
	s := memory.New()
	w, _ := start(t, s, status.Options{EndpointReporting: true, Delay: delay})
	f := storetest.Follow(t, s, "/calico/")
	begun := time.Now()
	w.Set(endpoint(1), api.StatusDown)
	f.Until("the first endpoint", func() bool { return f.Values()[endpointPath(1)] == `{"status":"down"}` })
	f.Events()
	for range 10 {
		w.Set(endpoint(1), api.StatusDown)
		w.Set(endpoint(1), api.StatusError)
		w.Set(endpoint(1), api.StatusUp)
	}
	w.Set(endpoint(2), api.StatusUp)
	f.Until("the second endpoint", func() bool { return f.Values()[endpointPath(2)] != "" })
	if v := f.Values()[endpointPath(1)]; time.Since(begun) < delay && v != `{"status":"down"}` {
		t.Errorf("the first endpoint was written again at once: %s", v)
	}
	f.Until("the first endpoint again", func() bool { return f.Values()[endpointPath(1)] == `{"status":"up"}` })
	if took := time.Since(begun); took < delay {
		t.Errorf("written again after %v, want %v", took, delay)
	}
	if n := f.Events(); n != 2 {
		t.Errorf("%d writes, want 2", n)
	}
}
