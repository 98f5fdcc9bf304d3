package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"tortie/api"
	"tortie/lab"
)

// process is one that can be killed.
type process struct{ host, name string }

func (s *site) processes() []process {
	list := []process{{"fabric", lab.Datastore}}
	for _, h := range s.Hosts() {
		for _, p := range lab.Processes() {
			list = append(list, process{h.Name, p})
		}
	}
	return list
}

// traffic is what must pass and what must not while things break. What passes
// crosses all hosts.
func (s *site) traffic(t *testing.T) (check func()) {
	t.Helper()
	checks := []func(){
		s.stream(t, "web-1", "app-1"),  // host-1 to host-2
		s.stream(t, "web-2", "app-2"),  // host-2 to host-3
		s.attempt(t, "db-1", "web-1"),  // host-3 to host-1
		s.attempt(t, "app-1", "web-2"), // within host-2
		s.attempt(t, "web-2", "db-2"),  // host-2 to host-1
	}
	return func() {
		for _, c := range checks {
			c()
		}
	}
}

// Promise F12: any component stops and starts at any moment without risk.
// Agents, speakers and the datastore are killed and started at random, while
// labels and policies change that have nothing to do with the traffic.
func TestRandomRestarts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TORTIE_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TORTIE_E2E_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := up(t, "chaos", threeHosts)
	s.settle(t)
	s.examples(t)
	check := s.traffic(t)
	all := s.processes()
	down := map[process]bool{}
	done := map[string]int{}
	for end := time.Now().Add(22 * time.Second); time.Now().Before(end); {
		p := all[random.IntN(len(all))]
		switch {
		case random.IntN(4) == 0:
			if !down[all[0]] { // the store is there: change something
				done["changes"]++
				s.change(t, random)
			}
		case down[p]:
			done["starts"]++
			s.start(t, p.host, p.name)
			delete(down, p)
		default:
			done["kills"]++
			s.kill(t, p.host, p.name)
			down[p] = true
		}
		wait(time.Duration(random.IntN(400)) * time.Millisecond)
	}
	for _, p := range all {
		s.start(t, p.host, p.name)
	}
	s.settle(t)
	t.Logf("%v", done)
	check()
	if err := s.remove(noise(0).Key().Path()); err != nil {
		t.Fatal(err)
	}
	s.matrix(t, lab.MatrixOptions{})
}

// noise is a policy that is in force and means nothing to the traffic.
func noise(i int) api.Object {
	o, _, err := api.DecodeManifest([]byte(policy("noise", fmt.Sprintf(`"tier":"application","order":%d,"selector":"has(role)","types":["Ingress","Egress"],
		"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[%d]}}],"egress":[{"action":"Deny","protocol":"SCTP"}]`, i, 20000+i))))
	if err != nil {
		panic(err)
	}
	return o
}

// change changes a policy or a label that means nothing to the traffic.
func (s *site) change(t *testing.T, random *rand.Rand) {
	t.Helper()
	o := noise(random.IntN(3))
	if random.IntN(2) == 0 {
		labels := role("db-2")
		labels["round"] = strconv.Itoa(random.IntN(1000))
		o = s.endpoint(t, "db-2", labels)
	}
	eventually(t, 20*time.Second, "the datastore, which may just have been started, to take a change", func() error {
		_, err := s.Put(s.ctx, o)
		return err
	})
}

// Agent, bgp and etcd are killed with SIGKILL on every host in each order, and
// started in the other, before what was killed last has settled.
func TestKillInAnyOrder(t *testing.T) {
	s := up(t, "orders", threeHosts)
	s.settle(t)
	s.examples(t)
	check := s.traffic(t)
	a, b, d := lab.Agent, lab.BGP, lab.Datastore
	for _, order := range [][]string{{a, b, d}, {a, d, b}, {b, a, d}, {b, d, a}, {d, a, b}, {d, b, a}} {
		for _, name := range order {
			for _, p := range s.processes() {
				if p.name == name {
					s.kill(t, p.host, p.name)
				}
			}
		}
		wait(200 * time.Millisecond)
		for i := range order {
			for _, p := range s.processes() {
				if p.name == order[len(order)-1-i] {
					s.start(t, p.host, p.name)
				}
			}
		}
		if err := s.WaitHealthy(s.ctx); err != nil {
			t.Fatalf("killed in order %v: %v", order, err)
		}
	}
	s.settle(t)
	check()
	s.matrix(t, lab.MatrixOptions{})
}

// etcd is away for longer than every lease and request takes, while interfaces
// come and go and an agent and a speaker are killed and started without it.
// What was allowed passes, what was not does not; when it is back, what
// changed in between is enforced and everybody is alive again.
func TestDatastoreAway(t *testing.T) {
	s := up(t, "away", threeHosts)
	s.settle(t)
	const ttl = 6 * time.Second
	s.apply(t, fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":"FelixConfiguration","metadata":{"name":"default"},
		"spec":{"reportingInterval":"2s","reportingTTL":%q}}`, ttl))
	s.examples(t)
	check := s.traffic(t)
	db := s.find(t, "db-2")
	s.kill(t, "fabric", lab.Datastore)
	away := time.Now()
	for range 3 { // an endpoint's interface goes down and up
		s.sh(t, db.Host, "ip", "link", "set", db.Interface, "down")
		eventually(t, 5*time.Second, "the route to go with the link", func() error {
			return errors.Join(s.hasRoute(db.Host, db.IPv4, false), s.hasRoute("host-2", db.IPv4, false))
		})
		s.sh(t, db.Host, "ip", "link", "set", db.Interface, "up")
		eventually(t, 5*time.Second, "the route to come back without the datastore", func() error {
			return errors.Join(s.hasRoute(db.Host, db.IPv4, true), s.hasRoute(db.Host, db.IPv6, true), s.hasRoute("host-2", db.IPv4, true))
		})
	}
	s.kill(t, "host-2", lab.Processes()...)
	wait(300 * time.Millisecond)
	s.start(t, "host-2", lab.Processes()...)
	wait(time.Until(away.Add(2 * ttl)))
	s.start(t, "fabric", lab.Datastore)
	eventually(t, 20*time.Second, "the datastore to be back", func() error {
		_, err := s.Put(s.ctx, s.endpoint(t, "db-2", map[string]string{"role": "guest"}))
		return err
	})
	s.settle(t)
	check()
	if out, err := s.tortie(policy("back", `"selector":"nobody == 'here'"`), "apply", "-f", "-", "--wait=20s"); err != nil {
		t.Errorf("after the datastore is back: %v\n%s", err, out)
	}
	st, err := s.Store()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		eventually(t, 10*time.Second, h.Name+" to be alive again", func() error {
			path := api.LivenessPath("", h.Name)
			entries, _, err := st.List(s.ctx, path)
			if err == nil && len(entries) == 0 {
				err = fmt.Errorf("no key %s", path)
			}
			return err
		})
	}
	if m := s.matrix(t, lab.MatrixOptions{}); m.Reached() == 0 {
		t.Errorf("nobody is reached:\n%s", m)
	}
}
