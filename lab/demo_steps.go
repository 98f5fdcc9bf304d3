package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"tortie/api"
)

// routes waits until each host has learned the routes of the others.
func (d *demo) routes(ctx context.Context) error {
	took, err := d.WaitRoutes(ctx)
	if err != nil {
		return err
	}
	for _, h := range d.Hosts() {
		routes, err := d.Routes(h.Name)
		if err != nil {
			return err
		}
		d.step("   %s", h.Name)
		for _, r := range routes {
			if r.Protocol == protocolLearned {
				d.step("      %-24s via %s", r.Dst, r.Gw)
			}
		}
	}
	each := len(d.Workloads()) - len(d.Workloads())/len(d.Hosts())
	d.check("routes learned on each host", true, fmt.Sprintf("%d IPv4, %d IPv6", each, each),
		"%d IPv4, %d IPv6, %.1f s after all processes were up", each, each, took.Seconds())
	return nil
}

// open asks who reaches whom before there is policy.
func (d *demo) open(ctx context.Context) error {
	d.step("   4, 6: the row's workload reaches the column's over that family; a dot: it does not")
	m, err := d.ask(ctx, "before policy")
	if err != nil {
		return err
	}
	d.check("reached before policy", m.Reached() == len(m.Cells), "all", "%d of %d by ping, TCP and UDP over IPv4 and IPv6", m.Reached(), len(m.Cells))
	return nil
}

func (d *demo) ask(ctx context.Context, when string) (*Matrix, error) {
	m, err := d.Matrix(ctx, MatrixOptions{TCP: []uint16{5432, 8080}, UDP: []uint16{8080}, Wait: 500 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	d.quote(m.String())
	d.check("answers other than explain expects, "+when, len(m.Wrong()) == 0, "0", "%d of %d", len(m.Wrong()), len(m.Cells))
	return m, nil
}

// apply applies the examples with the operator's command.
func (d *demo) apply(ctx context.Context) error {
	d.step("   $ tortie apply -f examples --wait")
	out, err := d.Output(ctx, fabricName, "tortie", "apply", "-f", d.examples, "--wait")
	d.quote(out)
	if err != nil {
		return err
	}
	m, err := d.ask(ctx, "with policy")
	if err != nil {
		return err
	}
	reached := m.Reached()
	d.check("reached under the policies of examples", 0 < reached && reached < len(m.Cells)/2, "some, few", "%d of %d", reached, len(m.Cells))
	return nil
}

// again asks at the end.
func (d *demo) again(ctx context.Context) error {
	_, err := d.ask(ctx, "at the end")
	return err
}

// relabelRounds is how often the label is changed and changed back.
const relabelRounds = 5

// relabel takes a workload out of its role and back, and looks at its packets.
func (d *demo) relabel(ctx context.Context) error {
	const from, to = "web-2", "app-2"
	a, err := d.Attempt(from, to, 2*time.Millisecond)
	if err != nil {
		return err
	}
	var times []time.Duration
	var late uint64
	for range relabelRounds {
		for _, role := range []string{"guest", "web"} {
			var took map[string]time.Duration
			if took, err = d.relabelTo(ctx, from, role); err != nil {
				break
			}
			arrived := a.Arrived()
			d.step("   %s role=%-5s enforced by %s", from, role, inOrder(took))
			times = append(times, Slowest(took))
			if role == "web" {
				err = waitFor(ctx, time.Second, func() bool { return a.Arrived() > arrived })
			} else if err = pause(ctx, 100*time.Millisecond); err == nil {
				late += a.Arrived() - arrived
			}
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			break
		}
	}
	r, errStop := a.Stop()
	if err := errors.Join(err, errStop); err != nil {
		return err
	}
	slices.Sort(times)
	d.check("label change to enforced by every host", true, "milliseconds", "median %.0f ms, worst %.0f ms of %d",
		ms(times[len(times)/2]), ms(times[len(times)-1]), len(times))
	d.check("packets that passed once forbidden", late == 0, "0", "%d (%d were sent, %d while allowed)", late, r.Sent, r.Arrived)
	return nil
}

// relabelTo gives a workload of the demo another role.
func (d *demo) relabelTo(ctx context.Context, workload, role string) (map[string]time.Duration, error) {
	w, err := d.workload(workload)
	if err != nil {
		return nil, err
	}
	return d.Enforce(ctx, w.endpoint(WorkloadSpec{Name: workload, Labels: map[string]string{"role": role}, Profiles: []string{api.DefaultAllowProfile}}))
}

func ms(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }

func inOrder(took map[string]time.Duration) string {
	var s []string
	for host, t := range took {
		s = append(s, fmt.Sprintf("%s after %.1f ms", host, ms(t)))
	}
	slices.Sort(s)
	return strings.Join(s, ", ")
}

// changes is how many policy changes churn makes.
const changes = 1000

// churn changes a policy and counts what BGP and the routes make of it.
func (d *demo) churn(ctx context.Context) error {
	before, err := d.Updates(ctx)
	if err != nil {
		return err
	}
	watch, err := d.WatchRoutes()
	if err != nil {
		return err
	}
	start := time.Now()
	var took map[string]time.Duration
	for i := 0; i < changes && err == nil; i++ {
		var policy api.Object
		if policy, err = toggle(i); err != nil {
			break
		}
		if i < changes-1 {
			_, err = d.Put(ctx, policy)
		} else {
			took, err = d.Enforce(ctx, policy)
		}
	}
	written := time.Since(start)
	moved := watch()
	if err != nil {
		return err
	}
	after, err := d.Updates(ctx)
	if err != nil {
		return err
	}
	d.step("   written and enforced in %.1f s; the last one by every host after %.0f ms", written.Seconds(), ms(Slowest(took)))
	d.step("   BGP UPDATE messages of all hosts: %d before, %d after", before, after)
	d.check(fmt.Sprintf("BGP updates caused by %d policy changes", changes), after == before && before > 0, "0", "%d", after-before)
	d.check(fmt.Sprintf("route changes caused by %d policy changes", changes), moved == 0, "0", "%d", moved)
	return nil
}

// toggle is a policy that selects every workload and allows one port or
// another.
func toggle(i int) (api.Object, error) {
	o, _, err := api.Decode(api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "demo-toggle"}.Path(), fmt.Appendf(nil,
		`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"demo-toggle"},"spec":{
		"tier":"application","order":500,"selector":"has(role)","types":["Ingress"],
		"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[%d]}}]}}`, 9000+i%2))
	return o, err
}

// kill ends and restarts agent and bgp of each host while packets flow.
func (d *demo) kill(ctx context.Context) error {
	var streams []*Stream
	var err error
	for _, pair := range [][2]string{{"web-1", "app-1"}, {"web-2", "app-2"}} { // all hosts are on their way
		var s *Stream
		if s, err = d.Stream(ctx, pair[0], pair[1], 2*time.Millisecond); err != nil {
			break
		}
		streams = append(streams, s)
	}
	var denied *Attempt
	if err == nil {
		denied, err = d.Attempt("db-1", "web-1", 5*time.Millisecond)
	}
	for _, h := range d.Hosts() {
		if err == nil {
			err = d.killOn(ctx, h.Name)
		}
	}
	var sent, lost uint64
	for _, s := range streams {
		for _, f := range s.Stop() {
			d.step("   %s to %s over IPv%d: %d sent, %d lost", f.From, f.To, f.Family, f.Sent, f.Lost)
			sent, lost = sent+f.Sent, lost+f.Lost
		}
	}
	var r AttemptResult
	if denied != nil {
		var errStop error
		r, errStop = denied.Stop()
		err = errors.Join(err, errStop)
	}
	if err != nil {
		return err
	}
	d.check("allowed packets lost while all were killed", lost == 0 && sent > 0, "0", "%d of %d", lost, sent)
	d.check("forbidden packets that passed meanwhile", r.Arrived == 0 && r.Sent > 0, "0", "%d of %d", r.Arrived, r.Sent)
	return nil
}

func (d *demo) killOn(ctx context.Context, host string) error {
	for _, p := range Processes() {
		pid, err := d.PID(host, p)
		if err != nil {
			return err
		}
		if err := d.Kill(host, p); err != nil {
			return err
		}
		d.step("   %s: %s, process %d, killed", host, p, pid)
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	start := time.Now()
	for _, p := range Processes() {
		if err := d.Start(host, p); err != nil {
			return err
		}
	}
	if err := d.waitWell(ctx); err != nil {
		return err
	}
	d.step("   %s: started again; in sync, all BGP sessions back after %.1f s", host, time.Since(start).Seconds())
	return nil
}

// waitWell is WaitHealthy and WaitRoutes, without a word.
func (d *demo) waitWell(ctx context.Context) error {
	quiet := *d.Lab
	quiet.opts.Progress = discard{}
	if err := quiet.WaitHealthy(ctx); err != nil {
		return err
	}
	_, err := quiet.WaitRoutes(ctx)
	return err
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// ends removes the rules at one end of a forbidden flow, then at the other.
func (d *demo) ends(ctx context.Context) error {
	const from, to = "db-1", "web-1" // neither may db-1 send this, nor web-1 take it
	for _, workload := range []string{to, from} {
		w, err := d.workload(workload)
		if err != nil {
			return err
		}
		other := map[string]string{to: from, from: to}[workload]
		if err := errors.Join(d.Kill(w.Host, Agent), d.DropTables(w.Host)); err != nil {
			return err
		}
		d.step("   %s, the host of %s: agent killed, its nftables tables removed", w.Host, w.Name)
		a, err := d.Attempt(from, to, 2*time.Millisecond)
		if err != nil {
			return err
		}
		errPause := pause(ctx, time.Second)
		r, err := a.Stop()
		if err := errors.Join(errPause, err); err != nil {
			return err
		}
		d.check(fmt.Sprintf("%s to %s without rules on %s's host", from, to, w.Name), r.Arrived == 0 && r.Sent > 0,
			"0", "%d of %d packets passed: %s's host denies", r.Arrived, r.Sent, other)
		start := time.Now()
		if err := d.Start(w.Host, Agent); err != nil {
			return err
		}
		if err := d.waitWell(ctx); err != nil {
			return err
		}
		d.step("   %s: agent started, rules back after %.0f ms", w.Host, ms(time.Since(start)))
	}
	return nil
}

// WaitRoutes returns when every host has a route to every workload, all BGP
// sessions are established and no route waits for a peer, and how long it took.
func (l *Lab) WaitRoutes(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	start := time.Now()
	for _, h := range l.state.Hosts {
		err := l.poll(ctx, h.Name, BGP, func() error { return l.checkRoutes(ctx, h.Name) })
		if err != nil {
			return 0, fmt.Errorf("wait for the routes of %s: %w", h.Name, err)
		}
	}
	return time.Since(start), nil
}

func (l *Lab) checkRoutes(ctx context.Context, host string) error {
	routes, err := l.Routes(host)
	if err != nil {
		return err
	}
	have := map[string]netlink.RouteProtocol{}
	for _, r := range routes {
		have[r.Dst.IP.String()] = r.Protocol
	}
	for _, w := range l.state.Workloads {
		want := netlink.RouteProtocol(protocolLearned)
		if w.Host == host {
			want = protocolLocal
		}
		for _, a := range []string{w.IPv4.String(), w.IPv6.String()} {
			if have[a] != want {
				return fmt.Errorf("no route to %s of %s", a, w.Name)
			}
		}
	}
	figures, err := l.Metrics(ctx, host, BGP)
	if err != nil {
		return err
	}
	if figures["tortie_bgp_sessions"] != figures["tortie_bgp_sessions_established"] || figures["tortie_bgp_sessions"] == 0 {
		return fmt.Errorf("%v of %v sessions are established", figures["tortie_bgp_sessions_established"], figures["tortie_bgp_sessions"])
	}
	if stale := figures["tortie_bgp_routes_stale"] + figures["tortie_bgp_routes_pending"]; stale != 0 {
		return fmt.Errorf("%v routes wait", stale)
	}
	return nil
}
