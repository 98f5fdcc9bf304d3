package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"tortie/api"
	"tortie/lab"
)

// arrivals waits until more or, if not more, no packets of an attempt arrive
// any more, and returns how long after start that was.
func arrivals(t *testing.T, a *lab.Attempt, start time.Time, more bool) time.Duration {
	t.Helper()
	const quiet = 150 * time.Millisecond // many times the interval of sending
	last, since := a.Arrived(), time.Now()
	eventually(t, 5*time.Second, fmt.Sprintf("packets to arrive: %v", more), func() error {
		if n := a.Arrived(); n != last {
			last, since = n, time.Now()
			if more {
				return nil
			}
		}
		if !more && time.Since(since) > quiet {
			return nil
		}
		return fmt.Errorf("%d arrived", last)
	})
	return since.Sub(start)
}

// Promise S9: one rule gives the members of a group access; an endpoint that
// joins or leaves by its label has it or loses it within a second.
func testGroupByLabel(t *testing.T, s *site) {
	s.apply(t, policy("db", `"selector":"role == 'db'","types":["Ingress"],"ingress":[{"action":"Allow","source":{"selector":"db-user == 'yes'"}}]`))
	t.Cleanup(func() {
		if _, err := s.Enforce(s.ctx, s.endpoint(t, "app-1", role("app-1"))); err != nil {
			t.Error(err)
		}
	})
	a, err := s.Attempt("app-1", "db-1", 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := a.Stop(); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, time.Minute, "attempts", func() error {
		if n := a.Sent(); n < 50 {
			return fmt.Errorf("%d were made", n)
		}
		return nil
	})
	if n := a.Arrived(); n > 0 {
		t.Errorf("%d of %d arrived before the label", n, a.Sent())
	}
	for range 3 {
		for _, member := range []bool{true, false} {
			labels := role("app-1")
			if member {
				labels["db-user"] = "yes"
			}
			start := time.Now()
			if _, err := s.Put(s.ctx, s.endpoint(t, "app-1", labels)); err != nil {
				t.Fatal(err)
			}
			took := arrivals(t, a, start, member)
			t.Logf("member %v: enforced after %v", member, took)
			if took > time.Second {
				t.Errorf("member %v: enforced after %v, more than a second", member, took)
			}
		}
	}
}

// stages notes when each stage of a change was first seen.
type stages struct {
	sync.Mutex
	start time.Time
	after map[string]time.Duration
}

func (s *stages) reached(stage string) {
	s.Lock()
	defer s.Unlock()
	if _, ok := s.after[stage]; !ok {
		s.after[stage] = time.Since(s.start)
	}
}

func (s *stages) at(stage string) time.Duration {
	s.Lock()
	defer s.Unlock()
	return s.after[stage]
}

// Promise S13: one change on its way: the operator's command, etcd, the agent,
// the kernel, a packet.
func testTrace(t *testing.T, s *site) {
	s.apply(t, policy("deny-all", denyAll))
	allow := policy("allow-one", `"selector":"role == 'web' || role == 'app'","order":1,"types":["Ingress","Egress"],"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`)
	object, _, err := api.DecodeManifest([]byte(allow))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.remove(object.Key().Path()); err != nil {
			t.Error(err)
		}
	})
	a, err := s.Attempt("web-2", "app-2", time.Millisecond) // to host-3
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = a.Stop() }()
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	st := &stages{after: map[string]time.Duration{}}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	inSync := make(chan struct{})
	store, err := s.Store()
	if err != nil {
		t.Fatal(err)
	}
	watching.Go(func() {
		watch := store.Watch(ctx, object.Key().Path())
		for first := true; ; first = false {
			b, err := watch.Next(ctx)
			if err != nil {
				return
			}
			if first {
				close(inSync)
			}
			if len(b.Events) > 0 {
				st.reached("etcd")
			}
		}
	})
	kernel, err := s.Command(ctx, "host-3", "nft", "monitor")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := kernel.StdoutPipe()
	if err == nil {
		err = s.In("host-3", kernel.Start)
	}
	if err != nil {
		t.Fatal(err)
	}
	watching.Go(func() {
		for scan := bufio.NewScanner(lines); scan.Scan(); {
			if strings.Contains(scan.Text(), "inet tortie") {
				st.reached("kernel")
			}
		}
		_ = kernel.Wait()
	})
	<-inSync
	st.start = time.Now()
	if out, err := s.tortie(allow, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	st.reached("command")
	eventually(t, 5*time.Second, "a packet to pass", func() error {
		if a.Arrived() == 0 {
			return fmt.Errorf("none of %d", a.Sent())
		}
		st.reached("packet")
		return nil
	})
	eventually(t, 5*time.Second, "the agent to say so", func() error {
		var health struct{ AppliedRevision, Revision int64 }
		text, err := s.Get(s.ctx, "host-3", lab.Agent, "/health")
		if err == nil {
			err = json.Unmarshal([]byte(text), &health)
		}
		if err == nil && (health.AppliedRevision == 0 || health.AppliedRevision < health.Revision) {
			err = fmt.Errorf("revision %d of %d", health.AppliedRevision, health.Revision)
		}
		return err
	})
	// Each has an observer of its own, which may be late, so their order says nothing.
	eventually(t, 5*time.Second, "the observers to see it", func() error {
		if st.at("etcd") == 0 || st.at("kernel") == 0 {
			return fmt.Errorf("in etcd after %v, in the kernel after %v", st.at("etcd"), st.at("kernel"))
		}
		return nil
	})
	t.Logf("in etcd after %v, in the kernel of host-3 after %v, first packet after %v; the command took %v",
		st.at("etcd"), st.at("kernel"), st.at("packet"), st.at("command"))
}

// Promise F10: another orchestrator owns the data: what it writes into etcd as
// plain JSON, with no tool of ours, is in force.
func testForeignWriter(t *testing.T, s *site) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"192.0.2.254:2379"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (c net.Conn, err error) {
			err = s.In("fabric", func() error { c, err = new(net.Dialer).DialContext(ctx, "tcp", address); return err })
			return c, err
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	const root = "/calico/resources/v3/projectcalico.org/"
	// Such a writer wants to know the state of its endpoints. An agent starts
	// over when its configuration changes, and loses no packet.
	undisturbed := s.stream(t, "web-1", "app-1")
	const felix = root + "felixconfigurations/default"
	if _, err := client.Put(s.ctx, felix, `{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"endpointReportingEnabled":true}}`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.remove(felix); err != nil {
			t.Error(err)
		}
	})
	w := s.find(t, "app-2")
	lab1 := s.endpoint(t, w.Name, role(w.Name))
	if err := s.remove(lab1.Key().Path()); err != nil {
		t.Fatal(err)
	}
	endpoint := root + "workloadendpoints/batch/host--3-nomad-job7-eth0"
	documents := map[string]string{
		endpoint: fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3",
			"metadata":{"name":"host--3-nomad-job7-eth0","namespace":"batch","labels":{"job":"report","projectcalico.org/namespace":"batch","projectcalico.org/orchestrator":"nomad"}},
			"spec":{"orchestrator":"nomad","workload":"job7","node":"host-3","endpoint":"eth0","interfaceName":%q,"ipNetworks":["%s/32","%s/128"],"x-writer":{"of":"others"}}}`,
			w.Interface, w.IPv4, w.IPv6),
		root + "networkpolicies/batch/default.reports": `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.reports","namespace":"batch"},
			"spec":{"tier":"default","order":5,"selector":"job == 'report'","types":["Ingress"],
			"ingress":[{"action":"Allow","protocol":"TCP","source":{"nets":["10.65.1.0/24","fd00:65:0:1::/64"]},"destination":{"ports":["8080:8081"]}}]}}`,
	}
	var rev int64
	put := func(context.Context) (int64, error) {
		for key, value := range documents {
			r, err := client.Put(s.ctx, key, value)
			if err != nil {
				return 0, err
			}
			rev = r.Header.Revision
		}
		return rev, nil
	}
	if _, err := s.Enforced(s.ctx, put); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for key := range documents {
			if err := s.remove(key); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Enforce(s.ctx, lab1); err != nil {
			t.Error(err)
		}
		s.settle(t)
	})
	s.settle(t)
	undisturbed()
	m := s.matrix(t, lab.MatrixOptions{To: []string{w.Name}, TCP: []uint16{8080, 8082}})
	if m.Reached() != 2*2 { // web-1 and db-2 of host-1, to 8080, both families
		t.Errorf("%d reached, want 4:\n%s", m.Reached(), m)
	}
	status := "/calico/felix/v2/no-region/host/host-3/workload/nomad/batch%2fjob7/endpoint/eth0"
	eventually(t, 5*time.Second, "the writer to see the state of its endpoint", func() error {
		r, err := client.Get(s.ctx, status)
		if err == nil && (len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), `"up"`)) {
			err = fmt.Errorf("%s is %v", status, r.Kvs)
		}
		return err
	})
	if r, err := client.Get(s.ctx, endpoint); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != documents[endpoint] {
		t.Errorf("its document has changed: %v %v", r, err)
	}
}

// apply --wait fails naming the hosts that do not enforce, and who is late is
// not the whole site.
func testWaitNamesHosts(t *testing.T, s *site) {
	s.kill(t, "host-2", lab.Agent)
	out, err := s.tortie(policy("late", `"selector":"nobody == 'here'"`), "apply", "-f", "-", "--wait=1500ms")
	if err == nil || !strings.Contains(out, "host-2") || strings.Contains(out, "host-1") || strings.Contains(out, "host-3") {
		t.Errorf("with host-2's agent killed: %v\n%s", err, out)
	}
	s.start(t, "host-2", lab.Agent)
	out, err = s.tortie(policy("late", `"selector":"nobody == 'there'"`), "apply", "-f", "-", "--wait=20s")
	if err != nil || !strings.Contains(out, "3 live hosts") {
		t.Errorf("with all agents: %v\n%s", err, out)
	}
	if out, err := s.tortie("", "delete", "gnp", "late"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
