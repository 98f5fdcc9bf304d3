package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"tortie/api"
	"tortie/internal/socket"
	"tortie/kernel/route"
	"tortie/store"
)

// Options are what a process is started with.
type Options struct {
	Host   string // name of this host's Node
	Store  store.Store
	RunDir string // for the socket, bgp.sock
	// Protocol is that of the agent's routes; 0 means route.ProtocolLocal.
	Protocol int
	Log      *slog.Logger
	// Deferral is how long, after a restart, learned routes wait for their
	// peers' End-of-RIB; 0 means 2 minutes.
	Deferral time.Duration
}

const (
	defaultDeferral = 2 * time.Minute
	// retryInterval is the pause before what failed is tried again.
	retryInterval = time.Second
)

// process is the state of the loop.
type process struct {
	opts Options
	log  *slog.Logger
	ask  chan func()

	cluster   *cluster
	snapshot  *snapshot
	inSync    bool // the store's snapshot was complete once
	early     bool // until then, cluster is what the last process knew
	connected bool
	revision  int64

	plan     plan
	told     bool     // the speaker has been told of plan
	speaker  *speaker // nil until there is something to speak
	spoken   global   // what speaker was started with
	fault    string   // why the speaker could not be started or told something
	exported map[netip.Prefix]struct{}
	recheck  map[netip.Prefix]struct{} // where exported may not be as the local routes are
	past     messages                  // of earlier speakers

	learned    *route.Learned
	importer   *importer
	restarting bool // it was said that this speaker restarted
	readKernel bool // importer must be told what the kernel has
	failures   uint64
	writeError string // of the last write that failed, while any does

	retry    time.Time // when something that failed is due, or zero
	lastLoop time.Time
}

// Run speaks BGP for the network namespace that it is called in until ctx
// ends. Then it returns at once and withdraws nothing: the process is to end,
// and the peers to see a graceful restart. A process can run it only once.
func Run(ctx context.Context, opts Options) error {
	if opts.Deferral == 0 {
		opts.Deferral = defaultDeferral
	}
	opts.Protocol = cmp.Or(opts.Protocol, route.ProtocolLocal)
	learned, err := route.OpenLearned(opts.Log)
	if err != nil {
		return err
	}
	defer func() { _ = learned.Close() }()
	last, err := loadSnapshot(filepath.Join(opts.RunDir, "bgp.snapshot"), time.Now())
	if err != nil {
		opts.Log.Warn("starting without", "error", err)
	}
	p := &process{
		snapshot:   last,
		opts:       opts,
		log:        opts.Log,
		ask:        make(chan func()),
		cluster:    newCluster(opts.Log),
		exported:   map[netip.Prefix]struct{}{},
		recheck:    map[netip.Prefix]struct{}{},
		learned:    learned,
		importer:   newImporter(),
		readKernel: true,
		plan:       plan{waiting: "the store has not been read yet"},
	}
	server, err := socket.Serve(socket.Path(opts.RunDir, "bgp"), p.handler())
	if err != nil {
		return err
	}
	defer server.Close()
	return p.loop(ctx)
}

func (p *process) loop(ctx context.Context) error {
	changes, err := p.learned.Changes(ctx)
	if err != nil {
		return err
	}
	initial, local, err := route.LocalRoutes(ctx, p.opts.Protocol, p.log)
	if err != nil {
		return err
	}
	p.localChanged(initial)
	batches := watch(ctx, p.opts.Store)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var news <-chan struct{}
		if p.speaker != nil {
			news = p.speaker.Changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case b := <-batches:
			p.storeChanged(b)
		case list, ok := <-local:
			if !ok {
				return ended(ctx, "local routes")
			}
			p.localChanged(list)
		case _, ok := <-changes:
			if !ok {
				return ended(ctx, "learned routes")
			}
			p.readKernel = true
		case <-news:
			for _, ev := range p.speaker.Next() {
				p.logPeer(ev.peer)
				p.importer.event(ev, time.Now())
			}
		case f := <-p.ask:
			f()
			continue
		case <-timer.C:
		}
		p.work(ctx)
		p.lastLoop = time.Now()
		timer.Reset(p.pause(p.lastLoop))
	}
}

func (p *process) logPeer(e *peerEvent) {
	switch {
	case e == nil || e.endOfRIB:
	case e.established:
		p.log.Info("session established", "peer", e.peer)
	default:
		p.log.Warn("session down", "peer", e.peer, "reason", e.reason, "mayRestartWithin", e.restart)
	}
}

// ended is the loop's end when a monitor of the kernel has ended.
func ended(ctx context.Context, what string) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return fmt.Errorf("the kernel's notifications of %s ended", what)
	}
}

// watch follows the store. Its memory is that of the Watcher.
func watch(ctx context.Context, s store.Store) <-chan store.Batch {
	prefixes := make([]string, 0, len(kinds))
	for _, k := range kinds {
		prefixes = append(prefixes, api.Prefix(k))
	}
	out := make(chan store.Batch)
	w := s.Watch(ctx, prefixes...)
	go func() {
		for {
			b, err := w.Next(ctx)
			if err != nil {
				return // ctx has ended
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (p *process) storeChanged(b store.Batch) {
	p.connected, p.revision = b.Connected, b.Revision
	for _, ev := range b.Events {
		p.cluster.update(ev)
	}
	if !p.inSync {
		p.snapshot.note(b.Events)
		if !b.InSync {
			return
		}
		for _, ev := range p.snapshot.gone(p.cluster.stored) {
			p.cluster.update(ev)
		}
		p.inSync, p.early = true, false
	} else if len(b.Events) == 0 {
		return
	}
	p.replan()
	if err := p.snapshot.save(p.cluster.stored); err != nil {
		p.log.Warn("a restart without the store will find an old state", "error", err)
	}
}

// startEarly follows what the last process knew.
func (p *process) startEarly() {
	for _, ev := range p.snapshot.events() {
		p.cluster.update(ev)
	}
	p.snapshot.deadline = time.Time{}
	p.early = true
	p.log.Warn("the store does not answer; following what it last said", "resources", len(p.cluster.stored))
	p.replan()
}

func (p *process) replan() {
	old := p.plan
	p.plan, p.told = p.cluster.plan(p.opts.Host), false
	if p.plan.waiting != old.waiting && p.plan.waiting != "" {
		p.log.Warn("not speaking BGP", "reason", p.plan.waiting)
	}
	for _, problem := range p.plan.problems {
		if !slices.Contains(old.problems, problem) {
			p.log.Warn("a resource cannot be followed", "problem", problem)
		}
	}
}

func (p *process) localChanged(list []route.LocalRoute) {
	var add, remove []netip.Prefix
	for _, r := range list {
		p.recheck[r.Prefix] = struct{}{}
		if r.Gone {
			remove = append(remove, r.Prefix)
		} else {
			add = append(add, r.Prefix)
		}
	}
	p.importer.localRoutes(add, remove)
}

// work brings the speaker and the kernel to where they should be, as far as
// they let it, and sets retry if they do not.
func (p *process) work(ctx context.Context) {
	p.retry = time.Time{}
	if p.readKernel {
		if err := p.read(ctx); err != nil {
			p.failed(ctx, "cannot read the learned routes", err)
			return
		}
	}
	if !p.inSync && p.snapshot.due(time.Now()) {
		p.startEarly()
	}
	if !p.inSync && !p.early || p.plan.waiting != "" && p.speaker == nil {
		return // what is in the kernel stays as it is
	}
	if err := p.speak(ctx); err != nil {
		p.failed(ctx, "cannot speak BGP", err)
	}
	if p.speaker != nil {
		p.importer.tick(time.Now())
		if p.restarting && !p.importer.restarting {
			p.restarting = false
			p.log.Info("the restart is over", "stale", p.importer.stale())
		}
		p.write(ctx)
	}
}

func (p *process) failed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	if fault := fmt.Sprintf("%s: %v", what, err); fault != p.fault {
		p.fault = fault
		p.log.Error(what, "error", err)
	}
	p.retry = time.Now().Add(retryInterval)
}

// read tells the importer what the kernel has.
func (p *process) read(ctx context.Context) error {
	list, err := p.learned.Existing(ctx)
	if err != nil {
		return err
	}
	existing := make(map[netip.Prefix]netip.Addr, len(list))
	for _, r := range list {
		var hop netip.Addr // invalid if it is not one, so that it is never what is wanted
		if len(r.NextHops) == 1 {
			hop = r.NextHops[0]
		}
		existing[r.Prefix] = hop
	}
	p.importer.kernelHas(existing)
	p.readKernel = false
	return nil
}

// speak starts, tells or ends the speaker as planned.
func (p *process) speak(ctx context.Context) error {
	if p.speaker != nil && (p.plan.waiting != "" || p.plan.global != p.spoken) {
		p.log.Info("ending all sessions, as this host's settings have changed")
		if _, m, err := p.speaker.Peers(ctx); err == nil {
			p.past.sent += m.sent
			p.past.received += m.received
		}
		p.speaker.close()
		p.speaker = nil
	}
	if p.plan.waiting != "" {
		return nil
	}
	if p.speaker == nil {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	if err := p.announce(); err != nil {
		return err
	}
	if !p.told {
		p.importer.expect(p.plan.sessions)
		if err := p.speaker.Configure(ctx, p.plan.sessions); err != nil {
			return err
		}
		p.told = true
	}
	p.fault = ""
	return nil
}

// start makes a speaker. It says that this host restarted only if there are
// learned routes in the kernel, for only then it forwarded meanwhile.
func (p *process) start(ctx context.Context) error {
	p.restarting = len(p.importer.have) > 0
	s, err := startSpeaker(ctx, p.plan.global, p.restarting, p.log)
	if err != nil {
		return err
	}
	g := p.plan.global
	p.log.Info("speaking BGP", "as", g.as, "routerID", g.routerID, "port", g.port, "restarting", p.restarting, "sessions", len(p.plan.sessions))
	p.speaker, p.spoken, p.told = s, g, false
	clear(p.exported)
	for prefix := range p.importer.local {
		p.recheck[prefix] = struct{}{}
	}
	p.importer.restart(p.plan.sessions, time.Now(), p.opts.Deferral)
	return nil
}

// announce makes what is announced equal to the local routes.
func (p *process) announce() error {
	var add, remove []netip.Prefix
	for prefix := range p.recheck {
		_, local := p.importer.local[prefix]
		_, exported := p.exported[prefix]
		switch {
		case local && !exported:
			add = append(add, prefix)
		case exported && !local:
			remove = append(remove, prefix)
		}
	}
	if err := p.speaker.Announce(add, remove); err != nil {
		return err
	}
	for _, prefix := range add {
		p.exported[prefix] = struct{}{}
	}
	for _, prefix := range remove {
		delete(p.exported, prefix)
	}
	clear(p.recheck)
	return nil
}

// write makes the kernel's learned routes what the importer wants.
func (p *process) write(ctx context.Context) {
	replace, remove := p.importer.work()
	routes := make([]route.LearnedRoute, 0, len(replace))
	for _, r := range replace {
		routes = append(routes, route.LearnedRoute{Prefix: r.prefix, NextHops: []netip.Addr{r.nextHop}})
	}
	replaceErr := p.learned.Replace(ctx, routes...)
	refused := refusedBy(replaceErr)
	for _, r := range replace {
		if !refused(r.prefix) {
			p.importer.written(r)
		}
	}
	removeErr := p.learned.Remove(ctx, remove...)
	refused = refusedBy(removeErr)
	for _, prefix := range remove {
		if !refused(prefix) {
			p.importer.removed(prefix)
		}
	}
	p.report(ctx, errors.Join(replaceErr, removeErr))
}

// refusedBy returns which prefixes a write failed for.
func refusedBy(err error) func(netip.Prefix) bool {
	var failed *route.Failed
	if err == nil || !errors.As(err, &failed) {
		return func(netip.Prefix) bool { return err != nil }
	}
	set := make(map[netip.Prefix]struct{}, len(failed.Prefixes))
	for _, prefix := range failed.Prefixes {
		set[prefix] = struct{}{}
	}
	return func(prefix netip.Prefix) bool { _, ok := set[prefix]; return ok }
}

// report counts what the kernel refused, and says so when it is new.
func (p *process) report(ctx context.Context, err error) {
	if err == nil {
		p.writeError = ""
		return
	}
	p.failures += uint64(len(p.importer.dirty))
	p.retry = time.Now().Add(retryInterval)
	if ctx.Err() == nil && p.writeError != err.Error() {
		p.writeError = err.Error()
		p.log.Warn("the kernel refused learned routes; trying again", "routes", len(p.importer.dirty), "error", err)
	}
}

// pause is how long the loop may wait for news.
func (p *process) pause(now time.Time) time.Duration {
	next := now.Add(time.Minute) // a sign of life
	if !p.retry.IsZero() && p.retry.Before(next) {
		next = p.retry
	}
	if d := p.snapshot.deadline; !d.IsZero() && now.Before(d) && d.Before(next) {
		next = d
	}
	if d, ok := p.importer.deadline(); ok && p.speaker != nil && d.Before(next) {
		next = d
	}
	return max(next.Sub(now), 0)
}
