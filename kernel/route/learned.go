package route

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// LearnedRoute is a route to another host: by one next hop, or several that
// share the load.
type LearnedRoute struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// Learned writes the routes of protocol 81.
type Learned struct {
	conn *conn
	log  *slog.Logger
}

// Failed is the error of Replace and Remove: the prefixes that could not be
// written, and why the first few could not. All others were written.
type Failed struct {
	Prefixes []netip.Prefix
	Err      error
}

func (f *Failed) Error() string { return f.Err.Error() }
func (f *Failed) Unwrap() error { return f.Err }

// OpenLearned returns a handle to the learned routes of the calling thread's
// namespace.
func OpenLearned(log *slog.Logger) (*Learned, error) {
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open learned routes: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Learned{conn: c, log: log}, nil
}

// Close releases the handle. The kernel keeps what was written.
func (l *Learned) Close() error { return l.conn.close() }

// Replace writes routes, each in the place of what its prefix had; many at
// once are much faster than one by one. Where not all could be written, the
// error is a *Failed.
func (l *Learned) Replace(ctx context.Context, routes ...LearnedRoute) error {
	requests := make([]request, 0, len(routes))
	prefixes := make([]netip.Prefix, 0, len(routes))
	for _, r := range routes {
		if len(r.NextHops) == 0 || !r.Prefix.IsValid() {
			return fmt.Errorf("write route %s: it has no prefix or no next hop", r.Prefix)
		}
		prefixes = append(prefixes, r.Prefix)
		requests = append(requests, request{
			typ: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
			body: gatewayRoute(r.Prefix.Masked(), MetricLearned, ProtocolLearned, r.NextHops),
		})
	}
	return l.write(ctx, "write", prefixes, requests)
}

// Remove deletes the routes to the prefixes; one that is not there is fine.
func (l *Learned) Remove(ctx context.Context, prefixes ...netip.Prefix) error {
	requests := make([]request, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() {
			return fmt.Errorf("delete route %s: not a prefix", p)
		}
		requests = append(requests, deleteRoute(p.Masked(), MetricLearned, ProtocolLearned, 0))
	}
	return l.write(ctx, "delete", prefixes, requests)
}

func (l *Learned) write(ctx context.Context, operation string, prefixes []netip.Prefix, requests []request) error {
	var failed []netip.Prefix
	var why failures
	for i, err := range l.conn.batch(ctx, requests, ignore) {
		if err == nil || requests[i].typ == unix.RTM_DELROUTE && gone(err) {
			continue
		}
		failed = append(failed, prefixes[i])
		why.add(operation, object{prefix: prefixes[i], metric: MetricLearned}, err)
	}
	if failed == nil {
		return nil
	}
	return &Failed{Prefixes: failed, Err: why.err()}
}

// Existing lists what the kernel holds, next hops sorted.
func (l *Learned) Existing(ctx context.Context) ([]LearnedRoute, error) {
	var out []LearnedRoute
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		list, err := listRoutes(ctx, l.conn, fam, ProtocolLearned)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			if m.metric == MetricLearned {
				slices.SortFunc(m.nextHops, netip.Addr.Compare)
				out = append(out, LearnedRoute{Prefix: m.prefix, NextHops: m.nextHops})
			}
		}
	}
	return out, nil
}

// Cleanup deletes all learned routes.
func (l *Learned) Cleanup(ctx context.Context) error {
	have, err := l.Existing(ctx)
	if err != nil {
		return err
	}
	prefixes := make([]netip.Prefix, 0, len(have))
	for _, r := range have {
		prefixes = append(prefixes, r.Prefix)
	}
	return l.Remove(ctx, prefixes...)
}

// Change says that others changed learned routes: those to Prefixes, or, with
// All, any of them, so that Existing must be asked. A route that is not wanted
// may be named.
type Change struct {
	All      bool
	Prefixes []netip.Prefix
}

// Changes reports, until ctx ends, what others than this handle do to learned
// routes, and what the kernel does, in silence, when a link of theirs goes
// down. Reports that are not collected are merged.
func (l *Learned) Changes(ctx context.Context) (<-chan Change, error) {
	notices, err := subscribe(ctx, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	w := &learnedWatch{port: l.conn.port, up: map[int]bool{}, named: map[netip.Prefix]struct{}{}}
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		list, err := listRoutes(ctx, l.conn, fam, ProtocolLearned)
		if err != nil {
			return nil, fmt.Errorf("watch learned routes: %w", err)
		}
		for _, m := range list {
			w.uses(m)
		}
	}
	out := make(chan Change)
	go func() {
		defer close(out)
		w.run(notices, out)
	}()
	return out, nil
}

type learnedWatch struct {
	port  uint32
	up    map[int]bool // links that learned routes use or used
	news  Change
	named map[netip.Prefix]struct{} // in news
}

func (w *learnedWatch) run(notices <-chan notice, out chan<- Change) {
	for {
		var deliver chan<- Change
		if w.news.All || len(w.news.Prefixes) > 0 {
			deliver = out
		}
		select {
		case deliver <- w.news:
			w.news = Change{}
			clear(w.named)
		case n, ok := <-notices:
			if !ok {
				return
			}
			w.news.All = w.news.All || n.lost
			for _, m := range n.messages {
				w.note(m.Header.Type, m.Header.Pid, m.Data)
			}
		}
	}
}

func (w *learnedWatch) note(typ uint16, port uint32, body []byte) {
	switch typ {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		m, ok := parseRoute(body)
		if !ok || m.metric != MetricLearned { // one of another protocol at our metric replaces ours
			return
		}
		if typ == unix.RTM_NEWROUTE {
			w.uses(m)
		}
		if _, ok := w.named[m.prefix]; !ok && port != w.port {
			w.named[m.prefix] = struct{}{}
			w.news.Prefixes = append(w.news.Prefixes, m.prefix)
		}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		index, _, up, ok := parseLink(body)
		up = up && typ == unix.RTM_NEWLINK
		if was, used := w.up[index]; ok && used && was != up {
			w.up[index] = up
			w.news.All = true
		}
	}
}

func (w *learnedWatch) uses(m routeMessage) {
	for _, index := range m.links {
		w.up[index] = true
	}
}
