package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tortie/api"
	"tortie/lab"
	"tortie/store"
)

// site is a lab with what tests do to it.
type site struct {
	*lab.Lab
	ctx context.Context
}

var threeHosts = lab.Shape{Hosts: 3, Workloads: lab.DefaultWorkloads(3, 2)}

// eventually waits, at most so long, until check finds nothing wrong.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		<-tick.C
	}
}

// wait lets traffic flow for so long.
func wait(d time.Duration) { <-time.After(d) }

// sh runs a command on a host or in a workload and returns what it wrote.
func (s *site) sh(t *testing.T, where string, command ...string) string {
	t.Helper()
	out, err := s.Output(s.ctx, where, command[0], command[1:]...)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", where, strings.Join(command, " "), err, out)
	}
	return out
}

// tortie runs the operator's command, with a text as its standard input.
func (s *site) tortie(stdin string, args ...string) (string, error) {
	cmd, err := s.Command(s.ctx, "fabric", "tortie", args...)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	err = s.Run("fabric", cmd)
	return out.String(), err
}

// examples applies the manifests that the demo applies, until the test ends.
func (s *site) examples(t *testing.T) {
	t.Helper()
	if out, err := s.tortie("", "apply", "-f", "../examples", "--wait"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := s.tortie("", "delete", "-f", "../examples"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// apply has every host enforce objects until the test ends. It returns how
// long the hosts took.
func (s *site) apply(t *testing.T, documents ...string) map[string]time.Duration {
	t.Helper()
	var objects []api.Object
	for _, d := range documents {
		o, problems, err := api.DecodeManifest([]byte(d))
		if err != nil || len(problems) > 0 {
			t.Fatalf("%s: %v %v", d, problems, err)
		}
		objects = append(objects, o)
	}
	took, err := s.Enforce(s.ctx, objects...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, o := range objects {
			if err := s.remove(o.Key().Path()); err != nil {
				t.Error(err)
			}
		}
	})
	return took
}

// remove deletes a key and waits until every host knows.
func (s *site) remove(path string) error {
	return s.write(store.Op{Path: path, Delete: true})
}

// write has every host enforce what is written.
func (s *site) write(ops ...store.Op) error {
	st, err := s.Store()
	if err != nil {
		return err
	}
	for i := range ops {
		ops[i].If = store.AnyRevision
	}
	_, err = s.Enforced(s.ctx, func(ctx context.Context) (int64, error) { return st.Commit(ctx, ops...) })
	return err
}

// policy is a GlobalNetworkPolicy.
func policy(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":%q},"spec":{%s}}`, name, spec)
}

// find returns a workload.
func (s *site) find(t *testing.T, name string) lab.Workload {
	t.Helper()
	for _, w := range s.Workloads() {
		if w.Name == name {
			return w
		}
	}
	t.Fatalf("there is no workload %s", name)
	return lab.Workload{}
}

// endpoint is the endpoint of a workload, with these labels.
func (s *site) endpoint(t *testing.T, workload string, labels map[string]string) *api.WorkloadEndpoint {
	t.Helper()
	e, err := s.Endpoint(lab.WorkloadSpec{Name: workload, Labels: labels, Profiles: []string{api.DefaultAllowProfile}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// role is the labels that the lab gives a workload.
func role(workload string) map[string]string {
	r, _, _ := strings.Cut(workload, "-")
	return map[string]string{"role": r}
}

// matrix asks who reaches whom, and fails the test if that is not what
// explain expects.
func (s *site) matrix(t *testing.T, o lab.MatrixOptions) *lab.Matrix {
	t.Helper()
	if o.Wait == 0 {
		o.Wait = 400 * time.Millisecond
	}
	m, err := s.Matrix(s.ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Wrong()) > 0 {
		t.Errorf("not as expected:\n%s", m)
	}
	return m
}

// stream starts traffic that must get through. The function it returns ends
// it and fails the test if anything was lost.
func (s *site) stream(t *testing.T, from, to string) (check func()) {
	t.Helper()
	st, err := s.Stream(s.ctx, from, to, 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return ending(t, func() {
		for _, f := range st.Stop() {
			t.Logf("%s to %s over IPv%d: %d sent, %d lost", f.From, f.To, f.Family, f.Sent, f.Lost)
			if f.Lost > 0 || f.Sent == 0 {
				t.Errorf("%s to %s over IPv%d: %d of %d lost", f.From, f.To, f.Family, f.Lost, f.Sent)
			}
		}
	})
}

// attempt starts traffic that must not get through. The function it returns
// ends it and fails the test if a single packet arrived.
func (s *site) attempt(t *testing.T, from, to string) (check func()) {
	t.Helper()
	a, err := s.Attempt(from, to, 3*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return ending(t, func() {
		r, err := a.Stop()
		t.Logf("%s to %s: %d sent, %d arrived", r.From, r.To, r.Sent, r.Arrived)
		if err != nil || r.Arrived > 0 || r.Sent == 0 {
			t.Errorf("%s to %s: %d of %d forbidden packets arrived; %v", r.From, r.To, r.Arrived, r.Sent, err)
		}
	})
}

// ending calls end once: when asked to, or else when the test ends.
func ending(t *testing.T, end func()) func() {
	ended := false
	once := func() {
		if !ended {
			ended = true
			end()
		}
	}
	t.Cleanup(once)
	return once
}

// kill ends processes of a host at once.
func (s *site) kill(t *testing.T, host string, processes ...string) {
	t.Helper()
	for _, p := range processes {
		if err := s.Kill(host, p); err != nil {
			t.Fatal(err)
		}
	}
}

// start starts processes of a host.
func (s *site) start(t *testing.T, host string, processes ...string) {
	t.Helper()
	for _, p := range processes {
		if err := s.Start(host, p); err != nil {
			t.Fatal(err)
		}
	}
}

// settle waits until all processes are well and all routes are learned.
func (s *site) settle(t *testing.T) {
	t.Helper()
	if err := s.WaitHealthy(s.ctx); err != nil {
		t.Fatal(err)
	}
	took, err := s.WaitRoutes(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("all routes and sessions are there after %v", took.Round(time.Millisecond))
}

// routesOf are a host's routes that tortie wrote, as text.
func (s *site) routesOf(t *testing.T, host string) string {
	t.Helper()
	routes, err := s.Routes(host)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range routes {
		fmt.Fprintf(&b, "%s via %s metric %d proto %d\n", r.Dst, r.Gw, r.Priority, r.Protocol)
	}
	return b.String()
}

// hasRoute checks whether a host has a route to an address.
func (s *site) hasRoute(host string, to netip.Addr, want bool) error {
	routes, err := s.Routes(host)
	if err != nil {
		return err
	}
	have := false
	for _, r := range routes {
		have = have || r.Dst.IP.String() == to.String()
	}
	if have != want {
		return fmt.Errorf("route to %s on %s: %v, want %v", to, host, have, want)
	}
	return nil
}

// mac is the address of an interface.
func (s *site) mac(t *testing.T, where, link string) [6]byte {
	t.Helper()
	var mac [6]byte
	err := s.In(where, func() error {
		i, err := net.InterfaceByName(link)
		if err == nil && copy(mac[:], i.HardwareAddr) != 6 {
			err = errors.New("it has none")
		}
		return err
	})
	if err != nil {
		t.Fatalf("address of %s in %s: %v", link, where, err)
	}
	return mac
}
