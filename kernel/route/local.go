package route

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sys/unix"
)

// LocalRoute is a prefix that this host has workloads for. Metric is the
// lowest of its routes. Gone says that there is none any more.
type LocalRoute struct {
	Prefix netip.Prefix
	Metric int
	Gone   bool
}

// LocalRoutes lists the local routes of the calling thread's namespace, and
// then reports changes until ctx ends, the latest state of each prefix: this
// is what bgp exports. Changes that are not collected are merged; one that is
// undone meanwhile is not reported.
func LocalRoutes(ctx context.Context, protocol int, log *slog.Logger) ([]LocalRoute, <-chan []LocalRoute, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	notices, err := subscribe(ctx, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	c, err := dial()
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("watch local routes: %w", err)
	}
	w := &localWatch{conn: c, log: log, protocol: protocol, have: map[localKey]int{}, told: map[netip.Prefix]int{}, at: map[netip.Prefix]int{}}
	if err := w.list(ctx); err != nil {
		cancel()
		_ = c.close()
		return nil, nil, fmt.Errorf("watch local routes: %w", err)
	}
	initial := w.news
	w.delivered()
	out := make(chan []LocalRoute)
	go func() {
		defer cancel()
		defer func() { _ = c.close() }()
		defer close(out)
		w.run(ctx, notices, out)
	}()
	return initial, out, nil
}

type localKey struct {
	prefix netip.Prefix
	metric int
}

type localWatch struct {
	conn     *conn
	log      *slog.Logger
	protocol int
	have     map[localKey]int     // index of the link
	told     map[netip.Prefix]int // metric, as last delivered
	news     []LocalRoute         // what differs from told
	at       map[netip.Prefix]int // position in news
}

func (w *localWatch) run(ctx context.Context, notices <-chan notice, out chan<- []LocalRoute) {
	for {
		var deliver chan<- []LocalRoute
		if len(w.news) > 0 {
			deliver = out
		}
		select {
		case deliver <- w.news:
			w.delivered()
		case n, ok := <-notices:
			if !ok {
				return
			}
			if n.lost {
				w.log.Warn("notifications of local routes were lost; listing them again")
				if err := w.list(ctx); err != nil && ctx.Err() == nil {
					w.log.Error("list local routes", "err", err)
				}
			}
			for _, m := range n.messages {
				w.note(m.Header.Type, m.Data)
			}
		}
	}
}

// list replaces what is known by what the kernel holds.
func (w *localWatch) list(ctx context.Context) error {
	have := map[localKey]int{}
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		list, err := listRoutes(ctx, w.conn, fam, w.protocol)
		if err != nil {
			return err
		}
		for _, m := range list {
			if w.isLocal(m) {
				have[localKey{m.prefix, m.metric}] = m.index
			}
		}
	}
	old := w.have
	w.have = have
	for k := range old {
		w.changed(k.prefix)
	}
	for k := range have {
		w.changed(k.prefix)
	}
	return nil
}

func (w *localWatch) isLocal(m routeMessage) bool {
	return m.protocol == w.protocol && m.index > 0 && (m.metric == MetricLocal || m.metric == MetricMigrating)
}

func (w *localWatch) note(typ uint16, body []byte) {
	switch typ {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		m, ok := parseRoute(body)
		if !ok {
			return
		}
		k := localKey{m.prefix, m.metric}
		index, known := w.have[k]
		switch {
		case typ == unix.RTM_NEWROUTE && w.isLocal(m):
			w.have[k] = m.index
		case known && typ == unix.RTM_NEWROUTE: // replaced by one that is not ours
			delete(w.have, k)
		case known && m.protocol == w.protocol && m.index == index:
			delete(w.have, k)
		default:
			return
		}
		w.changed(m.prefix)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		index, _, up, ok := parseLink(body)
		if !ok || up && typ == unix.RTM_NEWLINK {
			return
		}
		// The kernel has dropped the link's IPv4 routes without saying so.
		for k, i := range w.have {
			if i == index {
				delete(w.have, k)
				w.changed(k.prefix)
			}
		}
	}
}

// changed brings news up to date for one prefix.
func (w *localWatch) changed(p netip.Prefix) {
	metric := MetricMigrating
	_, ok := w.have[localKey{p, metric}]
	if !ok {
		metric = MetricLocal
		_, ok = w.have[localKey{p, metric}]
	}
	told, known := w.told[p]
	i, noted := w.at[p]
	switch same := ok == known && (!ok || told == metric); {
	case !same && !noted:
		i = len(w.news)
		w.at[p] = i
		w.news = append(w.news, LocalRoute{})
		fallthrough
	case !same:
		w.news[i] = LocalRoute{Prefix: p, Metric: metric, Gone: !ok}
	case noted: // undone: the last takes its place
		last := len(w.news) - 1
		w.news[i] = w.news[last]
		w.at[w.news[i].Prefix] = i
		w.news = w.news[:last]
		delete(w.at, p)
	}
}

// delivered says that the receiver has news, which is its own now.
func (w *localWatch) delivered() {
	for _, r := range w.news {
		if w.told[r.Prefix] = r.Metric; r.Gone {
			delete(w.told, r.Prefix)
		}
	}
	w.news = nil
	clear(w.at)
}
