package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"tortie/api"
	"tortie/config"
	"tortie/kernel/conntrack"
	"tortie/kernel/link"
	"tortie/kernel/nft"
	"tortie/kernel/qdisc"
	"tortie/kernel/route"
	"tortie/status"
	"tortie/store"
)

// ErrConfigChanged is returned by Run when the datastore's configuration
// changed in a way that needs new handles: call Run again. The kernel keeps
// what it has meanwhile.
var ErrConfigChanged = errors.New("configuration changed")

// Options is what an agent is given.
type Options struct {
	Store store.Store
	Local *config.Local // file and environment
	Log   *slog.Logger
	Level *slog.LevelVar // of Log, set to what the datastore says; may be nil

	// Verifier opens what makes audits, in the network namespace of the calling
	// thread; nil for no audits.
	Verifier func() (Verifier, error)
}

// kinds are the resources that the agent follows. Those that nothing enforces
// yet are followed so that they are reported.
var kinds = []api.Kind{
	api.KindClusterInformation, api.KindFelixConfiguration,
	api.KindTier, api.KindProfile,
	api.KindGlobalNetworkPolicy, api.KindNetworkPolicy,
	api.KindGlobalNetworkSet, api.KindNetworkSet,
	api.KindWorkloadEndpoint, api.KindHostEndpoint,
	api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedKubernetesNetworkPolicy,
	api.KindLiveMigration, api.KindIPPool, api.KindNode, api.KindHostAddresses, api.KindKubeControllersConfiguration,
}

// Run is the agent. It returns when ctx ends, ErrConfigChanged, or an error
// that keeps it from working at all. It leaves the kernel as it is.
func Run(ctx context.Context, opts Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg, problems := opts.Local.With(nil, nil)
	for _, p := range problems {
		opts.Log.Warn("configuration", "field", p.Field, "value", p.Value, "reason", p.Reason)
	}
	// First of all: no packet of a workload before there is policy, and no
	// forwarding before that is sure.
	if err := closeFirst(ctx, cfg, opts.Log); err != nil {
		return err
	}
	l := newLoop(opts, cfg)
	server, err := l.serve(ctx, filepath.Join(cfg.RunDir, "agent.sock"))
	if err != nil {
		return err
	}
	defer server.Close()
	if l.ports, err = l.openPorts(ctx, cfg); err != nil {
		return err
	}
	prefixes := make([]string, 0, len(kinds))
	for _, k := range kinds {
		prefixes = append(prefixes, api.Prefix(k))
	}
	watch := make(chan decoded)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		follow(ctx, opts.Store.Watch(ctx, prefixes...), watch)
	}()
	err = l.run(ctx, watch)
	cancel()
	<-followed
	l.close()
	return err
}

// closeFirst installs the closed skeleton where our table is missing and then
// makes the host a router. Where the table is there, nothing of it is touched.
func closeFirst(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	tables, err := nft.Open(nftOptions(cfg, log))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = tables.Close() }()
	installed, err := tables.Skeleton(ctx)
	if err != nil {
		return fmt.Errorf("install the closed skeleton: %w", err)
	}
	if installed {
		log.Info("closed skeleton installed", "prefixes", cfg.InterfacePrefixes)
	}
	links, err := link.Open(link.Options{WorkloadPrefixes: cfg.InterfacePrefixes, Log: log})
	if err != nil {
		return fmt.Errorf("open links: %w", err)
	}
	defer links.Close()
	return setHost(ctx, links, tables)
}

// setHost makes the host a router, and keeps in the kernel what it was.
func setHost(ctx context.Context, links *link.Links, tables *nft.Tables) error {
	remember := func(name, previous string) error { return tables.Remember(ctx, name, previous) }
	if err := links.ApplyHost(ctx, remember); err != nil {
		return fmt.Errorf("host settings: %w", err)
	}
	return nil
}

func nftOptions(cfg config.Config, log *slog.Logger) nft.Options {
	address, _ := netip.ParseAddr(cfg.NATOutgoingAddress) // it was checked, or is empty
	in, out := cfg.Failsafes()
	return nft.Options{
		WorkloadPrefixes: cfg.InterfacePrefixes,
		HostAction:       cfg.DefaultEndpointToHostAction,
		DeniedEvents:     cfg.DeniedEventsEnabled,
		NATAddress:       address,
		NATPorts:         cfg.NATPorts(),
		FailsafeIn:       failsafes(in),
		FailsafeOut:      failsafes(out),
		HostRate:         cfg.EndpointToHostPacketRate,
		Log:              log,
	}
}

func failsafes(list []config.Failsafe) (out []nft.Failsafe) {
	for _, f := range list {
		out = append(out, nft.Failsafe(f))
	}
	return out
}

// kernel holds the handles through which one Run works.
type kernel struct {
	nft       *nft.Tables
	links     *link.Links
	routes    *route.Routes
	qdiscs    *qdisc.Qdiscs
	conntrack *conntrack.Conntrack
}

func openKernel(cfg config.Config, log *slog.Logger) (k *kernel, err error) {
	k = &kernel{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.nft, err = nft.Open(nftOptions(cfg, log)); err != nil {
		return k, fmt.Errorf("open nftables: %w", err)
	}
	if k.links, err = link.Open(link.Options{WorkloadPrefixes: cfg.InterfacePrefixes, Log: log}); err != nil {
		return k, fmt.Errorf("open links: %w", err)
	}
	if k.routes, err = route.Open(route.Options{Protocol: cfg.DeviceRouteProtocol, WorkloadPrefixes: cfg.InterfacePrefixes, Log: log}); err != nil {
		return k, fmt.Errorf("open routes: %w", err)
	}
	if k.qdiscs, err = qdisc.Open(log); err != nil {
		return k, err
	}
	if k.conntrack, err = conntrack.Open(); err != nil {
		return k, fmt.Errorf("open conntrack: %w", err)
	}
	return k, nil
}

func (k *kernel) close() {
	if k.nft != nil {
		_ = k.nft.Close()
	}
	if k.links != nil {
		k.links.Close()
	}
	if k.routes != nil {
		_ = k.routes.Close()
	}
	if k.qdiscs != nil {
		k.qdiscs.Close()
	}
	if k.conntrack != nil {
		k.conntrack.Close()
	}
}

// Cleanup removes every kernel object that Tortie made on this host and puts
// host-wide settings back to what they were.
func Cleanup(ctx context.Context, local *config.Local, log *slog.Logger) error {
	cfg, _ := local.With(nil, nil)
	k, err := openKernel(cfg, log)
	if err != nil {
		return err
	}
	defer k.close()
	remembered, err := k.nft.Remembered(ctx)
	if err != nil {
		return fmt.Errorf("read remembered settings: %w", err)
	}
	learned, err := route.OpenLearned(log)
	if err != nil {
		return fmt.Errorf("open routes: %w", err)
	}
	defer func() { _ = learned.Close() }()
	// Forwarding ends before policy does.
	return errors.Join(
		k.links.RestoreHost(remembered),
		k.routes.Cleanup(ctx),
		learned.Cleanup(ctx),
		k.qdiscs.Cleanup(ctx),
		k.links.Cleanup(ctx),
		k.nft.Cleanup(ctx),
	)
}

// newWriter makes the status writer for an effective configuration.
func newWriter(s store.Store, cfg config.Config, log *slog.Logger) *status.Writer {
	return status.New(s, status.Options{
		Host:              cfg.Hostname,
		Region:            cfg.OpenstackRegion,
		Interval:          cfg.ReportingInterval,
		TTL:               cfg.ReportingTTL,
		EndpointReporting: cfg.EndpointReportingEnabled,
		Delay:             cfg.EndpointReportingDelay,
		Log:               log,
	})
}

// retryDelay is how long the loop waits before it tries again what failed for
// the nth time in a row.
func retryDelay(n int) time.Duration {
	return min(100*time.Millisecond<<min(n, 6), 5*time.Second)
}
