package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"tortie/api"
	"tortie/autohep"
	"tortie/calc"
	"tortie/config"
	"tortie/desired"
	"tortie/kernel/link"
	"tortie/kernel/nft"
	"tortie/kernel/route"
	"tortie/status"
)

// loop is everything that the goroutine of Run owns.
type loop struct {
	opts    Options
	log     *slog.Logger
	cfg     config.Config
	calc    *calc.Calc
	want    *desired.State
	metrics *metrics
	asks    chan func() // from the HTTP server, run between batches

	felix    map[string]*api.FelixConfiguration // by name
	ready    bool                               // ClusterInformation says the datastore may be acted on
	problems map[api.Key][]api.Problem
	settings []string // what of the configuration is not in force

	inSync    bool
	connected bool
	revision  int64 // all watched changes up to it are in calc
	applied   int64 // and in the kernel
	lastApply time.Time
	failures  int   // applies that failed in a row
	failure   error // of the last apply

	ports     *ports
	kernel    *kernel // nil until in sync
	maker     *autohep.Maker
	indices   map[string]uint32       // of all interfaces
	audited   []string                // what the last audit found
	nics      map[string][]netip.Addr // the host's own, with the addresses by which it may be known
	status    *status.Writer
	writers   sync.WaitGroup // to the store
	packets   *packetLog
	links     <-chan []link.Event
	tables    <-chan nft.Event
	routes    <-chan struct{}
	haveLinks bool
	addrs     map[string][]netip.Addr // of each interface, as last applied
	gone      map[netip.Addr]struct{} // whose connections are to be forgotten
	moved     []netip.Addr            // external addresses for which the same holds
	statuses  map[api.Key]string      // of local endpoints, as last reported
	troubled  map[api.Key]struct{}    // those of them that are not in the kernel as they should be
	said      *api.HostAddressesSpec  // what was last reported of the host's own addresses
	reported  bool                    // the status writer was told of all
	foreign   []nft.ForeignDrop
}

func newLoop(opts Options, cfg config.Config) *loop {
	m := newMetrics()
	return &loop{
		opts:     opts,
		log:      opts.Log,
		cfg:      cfg,
		calc:     calc.New(calcOptions(cfg)),
		want:     desired.New(),
		metrics:  m,
		packets:  newPacketLog(opts.Log, m),
		asks:     make(chan func()),
		maker:    autohep.New(opts.Store, cfg.Hostname, opts.Log),
		nics:     map[string][]netip.Addr{},
		indices:  map[string]uint32{},
		felix:    map[string]*api.FelixConfiguration{},
		problems: map[api.Key][]api.Problem{},
		addrs:    map[string][]netip.Addr{},
		gone:     map[netip.Addr]struct{}{},
		statuses: map[api.Key]string{},
		troubled: map[api.Key]struct{}{},
	}
}

func calcOptions(cfg config.Config) calc.Options {
	return calc.Options{
		Host: cfg.Hostname, WorkloadPrefixes: cfg.InterfacePrefixes,
		FloatingIPs: cfg.FloatingIPs == "Enabled", HostsInside: cfg.NATOutgoingExclusions == "IPPoolsAndHostIPs",
		SourceSpoofing: cfg.WorkloadSourceSpoofing == "Any",
	}
}

// run is the loop. Every turn takes one piece of news and then applies what
// follows from it.
func (l *loop) run(ctx context.Context, watch <-chan decoded) error {
	interval := l.cfg.RefreshInterval
	resync := time.NewTicker(interval)
	defer resync.Stop()
	retry := time.NewTimer(0)
	<-retry.C
	for {
		select {
		case <-ctx.Done():
			return nil
		case ask := <-l.asks:
			ask()
			continue
		case d := <-watch:
			if err := l.takeStore(ctx, d); err != nil {
				return err
			}
			if interval != l.cfg.RefreshInterval { // the datastore has another
				interval = l.cfg.RefreshInterval
				resync.Reset(interval)
			}
		case events := <-l.links:
			l.takeLinks(events)
		case e := <-l.tables:
			l.takeTables(ctx, e)
		case <-l.routes:
			l.metrics.repairs.Inc() // the routes know which; apply mends them
		case <-resync.C:
			l.resync(ctx)
		case <-retry.C:
		}
		if l.kernel == nil || !l.ready || !l.haveLinks {
			continue
		}
		l.apply(ctx)
		if l.tables == nil {
			l.maker.InSync()
			// Not before: a large first apply costs far less while nobody
			// listens. What happened meanwhile is the first event.
			var err error
			if l.tables, err = l.kernel.nft.Monitor(ctx); err != nil {
				return err
			}
		}
		if l.failures > 0 {
			retry.Reset(retryDelay(l.failures))
		}
	}
}

// takeStore takes one batch from the watch.
func (l *loop) takeStore(ctx context.Context, d decoded) error {
	for _, c := range d.changes {
		l.takeObject(c)
	}
	if d.connected != l.connected {
		l.connected = d.connected
		l.log.Info("datastore", "connected", d.connected)
	}
	l.metrics.connected(d.connected)
	l.revision = max(l.revision, d.revision)
	l.inSync = l.inSync || d.inSync
	if !l.inSync {
		return nil
	}
	if err := l.configure(ctx); err != nil {
		return err
	}
	if !l.ready {
		l.log.Warn("waiting: ClusterInformation(default) does not say that the datastore is ready; tortie init creates it")
	}
	return nil
}

// configure works out the effective configuration. The first time, it opens
// the kernel; after that a change ends the run.
func (l *loop) configure(ctx context.Context) error {
	cfg, problems := l.opts.Local.With(l.felix["default"], l.felix["node."+l.cfg.Hostname])
	if l.kernel != nil && !cfg.Equal(l.cfg) {
		l.log.Info("the configuration changed: starting over")
		return ErrConfigChanged
	}
	l.noteSettings(cfg, problems)
	if l.kernel != nil {
		return nil
	}
	l.cfg = cfg
	if l.opts.Level != nil {
		l.opts.Level.Set(cfg.LogLevel())
	}
	l.ports.close() // those that the local configuration asked for
	var err error
	if l.ports, err = l.openPorts(ctx, cfg); err != nil {
		return err
	}
	l.calc.SetOptions(calcOptions(cfg))
	k, err := openKernel(cfg, l.log)
	if err != nil {
		return err
	}
	l.kernel = k
	if err := l.recallAddresses(ctx); err != nil {
		return err
	}
	monitor, err := k.links.Monitor(ctx)
	if err != nil {
		return err
	}
	l.links = monitor.C
	if l.routes, err = k.routes.Monitor(ctx); err != nil {
		return err
	}
	l.packets.start(ctx)
	l.lookForForeign(ctx)
	l.status = newWriter(l.opts.Store, cfg, l.log)
	l.writers.Go(func() { l.status.Run(ctx) })
	l.writers.Go(func() { l.maker.Run(ctx) })
	if err := l.startAudits(ctx); err != nil {
		return err
	}
	l.log.Info("in sync with the datastore", "revision", l.revision)
	return nil
}

// noteSettings remembers what is wrong with the configuration, and logs what was
// not wrong before.
func (l *loop) noteSettings(cfg config.Config, problems []api.Problem) {
	old := l.settings
	l.settings = notActedUpon(cfg)
	for _, p := range problems {
		l.settings = append(l.settings, p.String())
	}
	for _, s := range l.settings {
		if !slices.Contains(old, s) {
			l.log.Warn("configuration", "problem", s)
		}
	}
}

// notActedUpon names settings that were changed and that nothing here obeys
// yet.
func notActedUpon(cfg config.Config) []string {
	var notes []string
	if !cfg.IPv6Support {
		notes = append(notes, "Ipv6Support=false is not acted upon: IPv6 of workloads is served")
	}
	if cfg.MetadataAddr != "127.0.0.1" || cfg.MetadataPort != 8775 {
		notes = append(notes, "MetadataAddr and MetadataPort are not acted upon yet: nothing serves metadata")
	}
	return notes
}

func (l *loop) takeLinks(events []link.Event) {
	for _, e := range events {
		if l.indices[e.Name] = uint32(e.Index); e.Gone {
			delete(l.indices, e.Name)
		}
	}
	l.packets.takeLinks(events)
	l.tellMakerLinks(events)
	for _, c := range events {
		l.kernel.links.LinkChanged(c.Name, c.Index)
		l.kernel.routes.LinkChanged(c.Name, c.Index)
		l.kernel.qdiscs.LinkChanged(c.Name)
		if c.Gone {
			l.calc.SetInterface(c.Name, nil)
			continue
		}
		l.calc.SetInterface(c.Name, &calc.HostInterface{Index: c.Index, Up: c.Up, Addrs: c.Addrs})
	}
	l.haveLinks = true
}

func (l *loop) takeTables(ctx context.Context, e nft.Event) {
	if e.Ours {
		l.log.Warn("another program changed our tables: reading them back")
		l.metrics.repairs.Inc()
		l.kernel.nft.Resync()
	}
	if e.Foreign {
		l.lookForForeign(ctx)
	}
}

func (l *loop) lookForForeign(ctx context.Context) {
	foreign, err := l.kernel.nft.Foreign(ctx)
	if err != nil {
		l.log.Warn("look for other tables that drop", "err", err)
		return
	}
	if !reflect.DeepEqual(foreign, l.foreign) {
		for _, f := range foreign {
			l.log.Warn("another table may drop what policy allows", "chain", f.String())
		}
	}
	l.foreign = foreign
	l.metrics.foreign.Set(float64(len(foreign)))
}

func (l *loop) resync(ctx context.Context) {
	if l.kernel == nil {
		return
	}
	if err := setHost(ctx, l.kernel.links, l.kernel.nft); err != nil {
		l.log.Error("resync", "err", err)
	}
	l.kernel.nft.Resync()
	l.kernel.links.Resync()
	l.kernel.routes.Resync()
	l.kernel.qdiscs.Resync()
	l.packets.start(ctx)
}

// apply has calc settle and brings the kernel to what is wanted: what goes
// loses its route first, what appears gets its policy first.
func (l *loop) apply(ctx context.Context) {
	start := time.Now()
	l.calc.Flush(l.want)
	computed := time.Now()
	k := l.kernel
	errWithdraw := k.routes.Withdraw(ctx, l.want)
	result, errTables := k.nft.Apply(ctx, l.want)
	linkWrites, errLinks := k.links.Apply(ctx, l.want)
	qdiscWrites, errQdiscs := k.qdiscs.Apply(ctx, l.want)
	// Policy, then the epoch, then routes. A connection that is judged while an
	// endpoint's address is routed elsewhere is judged again by the endpoint's
	// policy: the tables do not remember the verdict.
	l.want.Tightened = (l.want.Tightened || result.Repaired) && (!result.Bumped || errTables != nil)
	errEpoch := l.bump(ctx, errTables)
	routeWrites, errRoutes := k.routes.Apply(ctx, l.want)
	errConntrack := l.forgetAddresses(ctx)
	l.failure = errors.Join(errWithdraw, errTables, errEpoch, errLinks, errQdiscs, errRoutes, errConntrack)
	l.report()
	l.packets.denials.learn(l.want)
	l.want.ClearDirty()
	l.lastApply = time.Now()
	l.metrics.observe(computed.Sub(start), l.lastApply.Sub(computed), result.Writes+linkWrites+qdiscWrites+routeWrites)
	if l.failure != nil {
		l.failures++
		l.metrics.failures.Inc()
		l.log.Error("apply", "err", l.failure, "try", l.failures)
		return
	}
	l.failures = 0
	l.applied = l.revision
	l.metrics.applied.Set(float64(l.applied))
	l.status.SetApplied(l.applied)
}

// bump has the kernel judge all connections again if that is called for. What
// it is for must be in the tables, or it is called for still.
func (l *loop) bump(ctx context.Context, errTables error) error {
	if !l.want.Tightened {
		return nil
	}
	err := l.kernel.nft.BumpEpoch(ctx)
	if err == nil && errTables == nil {
		l.want.Tightened = false
	}
	return err
}

// forgetAddresses removes the conntrack entries of addresses that no interface
// here has any more, and of external ones that lead elsewhere than before.
func (l *loop) forgetAddresses(ctx context.Context) error {
	for name := range l.want.Interfaces.Dirty() {
		now, ok := l.want.Interfaces.Get(name)
		for _, a := range l.addrs[name] {
			if !slices.Contains(now.Addrs, a) {
				l.gone[a] = struct{}{}
			}
		}
		if ok {
			l.addrs[name] = now.Addrs
		} else {
			delete(l.addrs, name)
		}
	}
	maps.DeleteFunc(l.gone, func(a netip.Addr, _ struct{}) bool { return l.hasAddress(a) })
	l.moved = append(l.moved, l.kernel.nft.TakeMoved()...)
	forget := slices.AppendSeq(slices.Clone(l.moved), maps.Keys(l.gone))
	if len(forget) == 0 {
		return nil
	}
	n, err := l.kernel.conntrack.Delete(ctx, forget)
	l.log.Debug("conntrack entries of addresses that went", "addresses", len(forget), "entries", n)
	if err == nil {
		clear(l.gone)
		l.moved = nil
	}
	return err
}

// recallAddresses finds the addresses of an earlier life, which may have gone
// since: those that the kernel has our routes to.
func (l *loop) recallAddresses(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	routes, _, err := route.LocalRoutes(ctx, l.cfg.DeviceRouteProtocol, l.log)
	for _, r := range routes {
		l.gone[r.Prefix.Addr()] = struct{}{}
	}
	return err
}

// hasAddress says whether an address that went from one interface is now on
// another: the routes of this host know.
func (l *loop) hasAddress(a netip.Addr) bool {
	_, ok := l.want.Routes.Get(desired.RouteKey{Prefix: netip.PrefixFrom(a, a.BitLen()), Metric: route.MetricLocal})
	return ok
}

// report hands the endpoints that changed to the status writer, and those
// whose place in the kernel could not be made as it should be.
func (l *loop) report() {
	changed := maps.Clone(l.troubled)
	for key := range l.want.Endpoints.Dirty() {
		changed[key] = struct{}{}
	}
	if l.failure != nil { // which may be of any
		for key := range l.want.Endpoints.All() {
			changed[key] = struct{}{}
		}
	}
	for key := range changed {
		delete(l.troubled, key)
		old := l.statuses[key]
		if old != "" {
			l.metrics.endpoints.WithLabelValues(old).Dec()
		}
		e, ok := l.want.Endpoints.Get(key)
		if !ok {
			delete(l.statuses, key)
			l.status.Set(key, "")
			continue
		}
		if err := l.trouble(key, e); err != nil {
			l.troubled[key] = struct{}{}
			e.Error = err.Error()
		}
		now := statusOf(e)
		l.statuses[key] = now
		l.metrics.endpoints.WithLabelValues(now).Inc()
		l.status.Set(key, now)
		if e.Error != "" && old != api.StatusError {
			l.log.Warn("endpoint", "key", key.String(), "err", e.Error)
		}
	}
	if said := l.calc.Addresses(); said != l.said || !l.reported {
		l.said = said
		l.status.SetAddresses(said)
	}
	if !l.reported {
		l.reported = true
		l.status.InSync(maps.Clone(l.statuses))
	}
}

// trouble says why an endpoint is not in force, though it should be.
func (l *loop) trouble(key api.Key, e desired.Endpoint) error {
	if key.Kind == api.KindHostEndpoint {
		var errs []error
		for name := range strings.SplitSeq(e.Interface, ",") {
			errs = append(errs, l.kernel.nft.Trouble(name))
		}
		return errors.Join(errs...)
	}
	return errors.Join(l.kernel.nft.Trouble(e.Interface), l.kernel.routes.Trouble(e.Interface), l.kernel.qdiscs.Trouble(e.Interface))
}

func statusOf(e desired.Endpoint) string {
	switch {
	case e.Error != "":
		return api.StatusError
	case e.Up:
		return api.StatusUp
	default:
		return api.StatusDown
	}
}

func (l *loop) close() {
	l.packets.wait()
	l.writers.Wait()
	if l.kernel != nil {
		l.kernel.close()
	}
	l.ports.close()
}
