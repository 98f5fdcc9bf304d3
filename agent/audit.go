package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/explain"
)

const (
	// What an audit finds may have changed while it looked: it looks again.
	auditTries   = 3
	auditPause   = time.Second
	auditTimeout = time.Minute // to read the store, and for the kernel to have what was read
	lowest       = 19          // priority
)

var errBehind = errors.New("the kernel has not what the datastore says yet")

// Verifier reads the kernel's rules and proves that they do what policy says.
type Verifier interface {
	// Findings are where they do not, a line each; none, that it is proven. Index
	// is that of an interface, 0 if there is none.
	Findings(host string, c *explain.Cluster, index func(name string) uint32) ([]string, error)
	Close()
}

// auditor proves, from time to time, that the kernel does what policy says. It
// shares nothing with the loop but what it asks: objects it reads itself, as the
// loop may have understood them wrongly.
type auditor struct {
	*loop
	Verifier
}

// startAudits has audits made until ctx ends, if there are to be any.
func (l *loop) startAudits(ctx context.Context) error {
	if l.cfg.PolicyAuditInterval == 0 || l.opts.Verifier == nil {
		return nil
	}
	v, err := l.opts.Verifier()
	if err != nil {
		return err
	}
	a, interval := &auditor{l, v}, l.cfg.PolicyAuditInterval
	l.writers.Go(func() {
		defer v.Close()
		runtime.LockOSThread() // and never unlocked: the thread ends with its priority
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, lowest); err != nil {
			l.log.Debug("audits have no lower priority", "err", err)
		}
		for { // hosts that began together do not read together
			timer := time.NewTimer(interval/2 + rand.N(interval/2))
			select {
			case <-timer.C:
				a.audit(ctx)
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
	})
	return nil
}

// audit makes one audit and says what came of it.
func (a *auditor) audit(ctx context.Context) {
	start := time.Now()
	found, err := a.prove(ctx)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		a.log.Warn("audit: nothing is proven", "err", err)
		return
	}
	for _, f := range found {
		a.log.Error("audit: the kernel is not known to do what policy says", "finding", f)
	}
	a.metrics.findings.Set(float64(len(found)))
	a.metrics.auditTime.Set(time.Since(start).Seconds())
	if len(found) == 0 {
		a.metrics.proven.SetToCurrentTime()
		a.log.Debug("audit: proven", "took", time.Since(start))
	}
	_ = a.ask(ctx, func() { a.audited = found })
}

// prove compares the kernel with the store.
func (a *auditor) prove(ctx context.Context) (found []string, err error) {
	defer debug.FreeOSMemory() // a cluster is much, and rarely needed
	for try := 1; ; try++ {
		found, err = a.compare(ctx)
		if try == auditTries || err == nil && len(found) == 0 || !pause(ctx, auditPause) {
			return found, err
		}
	}
}

func (a *auditor) compare(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	cluster, revision, err := a.cluster(ctx)
	if err != nil {
		return nil, err
	}
	var indices map[string]uint32
	for behind := true; behind; {
		err := a.ask(ctx, func() {
			if behind = a.applied < revision; !behind {
				indices = maps.Clone(a.indices)
				a.effective(cluster)
			}
		})
		if err != nil || behind && !pause(ctx, auditPause/10) {
			return nil, errors.Join(errBehind, err)
		}
	}
	return a.Findings(a.cfg.Hostname, cluster, func(name string) uint32 { return indices[name] })
}

// cluster is what the store has, and the last revision of it that the agent
// follows.
func (a *auditor) cluster(ctx context.Context) (*explain.Cluster, int64, error) {
	c, revision := explain.New(), int64(0)
	for _, prefix := range []string{api.Root, api.AddressesRoot} {
		entries, _, err := a.opts.Store.List(ctx, prefix)
		if err != nil {
			return nil, 0, fmt.Errorf("read the datastore: %w", err)
		}
		for _, e := range entries {
			key, err := api.ParsePath(e.Path)
			if err != nil || !slices.Contains(kinds, key.Kind) {
				continue
			}
			revision = max(revision, e.Revision)
			if o, _, err := api.DecodeKey(key, e.Value); err == nil {
				c.Put(o)
			}
		}
	}
	return c, revision, nil
}

// decisive are the settings that say what becomes of packets.
var decisive = []string{
	"FloatingIPs", "WorkloadSourceSpoofing", "NATOutgoingExclusions", "NATOutgoingAddress", "NATPortRange", "DefaultEndpointToHostAction",
}

// effective has a cluster know the settings of this host, which may be those of
// its own file or environment.
func (a *auditor) effective(c *explain.Cluster) {
	own := &api.FelixConfiguration{Kind: api.KindFelixConfiguration, Meta: api.Meta{Name: "node." + a.cfg.Hostname}, Spec: api.FelixConfigurationSpec{}}
	if stored := a.felix[own.Meta.Name]; stored != nil {
		for name, value := range stored.Spec {
			if !slices.ContainsFunc(decisive, func(s string) bool { return strings.EqualFold(s, name) }) {
				own.Spec[name] = value
			}
		}
	}
	for _, s := range a.cfg.Explain() {
		if slices.Contains(decisive, s.Name) {
			own.Spec[s.Name], _ = json.Marshal(s.Value)
		}
	}
	c.Put(own)
}

// ask has the loop do something between two batches.
func (l *loop) ask(ctx context.Context, do func()) error {
	done := make(chan struct{})
	select {
	case l.asks <- func() { do(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
