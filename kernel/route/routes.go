package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Options of Routes.
type Options struct {
	Protocol         int      // of the routes that are ours; 0: ProtocolLocal
	WorkloadPrefixes []string // of names of interfaces whose permanent neighbours are ours; nil: cali, tap
	Log              *slog.Logger
}

// Routes writes this host's local routes and neighbours.
type Routes struct {
	opts Options
	conn *conn
	have *ledger
	mail *mailbox // what the monitor found

	resync     bool
	pending    map[object]struct{}            // may differ from what is wanted
	unsure     map[object]struct{}            // had, but may be gone
	duplicates map[object][]int               // links that further routes of the same key lead to
	waiting    map[string]map[object]struct{} // pending again when that link changes
	links      map[string]int                 // indices, as last heard
	failed     map[object]failure             // by the last put
	writes     int                            // since the last Apply
}

// Open returns a handle to the routes of the calling thread's namespace.
func Open(opts Options) (*Routes, error) {
	if opts.Protocol == 0 {
		opts.Protocol = ProtocolLocal
	}
	if opts.WorkloadPrefixes == nil {
		opts.WorkloadPrefixes = []string{"cali", "tap"}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	c, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open routes: %w", err)
	}
	return &Routes{
		opts: opts, conn: c, have: newLedger(), mail: &mailbox{}, resync: true,
		pending: map[object]struct{}{}, unsure: map[object]struct{}{}, duplicates: map[object][]int{},
		waiting: map[string]map[object]struct{}{}, links: map[string]int{}, failed: map[object]failure{},
	}, nil
}

// Close releases the handle. The kernel keeps what was written.
func (r *Routes) Close() error { return r.conn.close() }

// Resync makes the next Apply or Withdraw read the kernel back first.
func (r *Routes) Resync() { r.resync = true }

// LinkChanged says that something happened to a link, which may have cost it
// routes and neighbours without a word from the kernel; index is 0 for a link
// that is gone.
func (r *Routes) LinkChanged(name string, index int) {
	for _, i := range []int{r.links[name], index} {
		for _, o := range r.have.onLink(i) {
			r.unsure[o] = struct{}{}
			r.pending[o] = struct{}{}
		}
	}
	for o := range r.waiting[name] {
		r.pending[o] = struct{}{}
	}
	delete(r.waiting, name)
	if r.links[name] = index; index == 0 {
		delete(r.links, name)
	}
}

// Withdraw deletes what is not wanted any more and writes nothing else.
func (r *Routes) Withdraw(ctx context.Context, want *desired.State) error {
	if err := r.merge(ctx, want); err != nil {
		return err
	}
	return r.remove(ctx, want)
}

// Apply makes the kernel's routes and neighbours equal to want, and returns
// how many it wrote or deleted since the Apply before. What fails is tried
// again by the next one. What cannot be written because its link is down or
// gone is not an error: it waits for LinkChanged.
func (r *Routes) Apply(ctx context.Context, want *desired.State) (int, error) {
	err := r.merge(ctx, want)
	if err == nil {
		err = errors.Join(r.remove(ctx, want), r.put(ctx, want))
	}
	writes := r.writes
	r.writes = 0
	return writes, err
}

// Trouble says why a route or neighbour of a link is not in the kernel as the
// last Apply was to put it there; nil if all are.
func (r *Routes) Trouble(link string) error {
	var errs []error
	for o, f := range r.failed {
		if f.link == link {
			errs = append(errs, fmt.Errorf("%s: %w", o, f.err))
		}
	}
	return errors.Join(errs...)
}

// merge collects all that may differ into pending.
func (r *Routes) merge(ctx context.Context, want *desired.State) error {
	mail, lost := r.mail.take()
	if lost {
		r.opts.Log.Warn("notifications of routes were lost; reading them back")
		r.resync = true
	}
	changed(want, func(o object) { r.pending[o] = struct{}{} })
	if r.resync {
		return r.readBack(ctx, want)
	}
	for o, e := range mail {
		if delete(r.unsure, o); e == nil {
			r.have.drop(o)
		} else {
			r.have.set(o, *e)
		}
		r.pending[o] = struct{}{}
	}
	return r.readUnsure(ctx)
}

// readBack replaces what we think we have by what the kernel holds.
func (r *Routes) readBack(ctx context.Context, want *desired.State) error {
	have, duplicates, err := r.read(ctx, func(link string) bool {
		_, ok := want.Interfaces.Get(link)
		return ok
	})
	if err != nil {
		return err
	}
	r.have.replace(have)
	r.duplicates = duplicates
	clear(r.unsure)
	clear(r.waiting)
	for o := range have {
		r.pending[o] = struct{}{}
	}
	everyWanted(want, func(o object) { r.pending[o] = struct{}{} })
	r.resync = false
	return nil
}

// read returns what the kernel holds of ours, and where there are several
// routes of one key, the links of all but the first. isWorkload adds to the
// links whose neighbours are ours by prefix.
func (r *Routes) read(ctx context.Context, isWorkload func(link string) bool) (map[object]entry, map[object][]int, error) {
	names := map[int]string{}
	err := r.conn.dump(ctx, dumpLinks(), func() { clear(names) }, func(_ uint16, b []byte) {
		if index, name, _, ok := parseLink(b); ok {
			names[index] = name
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	clear(r.links)
	for index, name := range names {
		r.links[name] = index
	}
	have := map[object]entry{}
	duplicates := map[object][]int{}
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		routes, err := listRoutes(ctx, r.conn, fam, r.opts.Protocol)
		if err != nil {
			return nil, nil, err
		}
		for _, m := range routes {
			if !r.owns(m) {
				continue
			}
			o := object{prefix: m.prefix, metric: m.metric}
			if _, ok := have[o]; ok {
				duplicates[o] = append(duplicates[o], m.index)
			} else {
				have[o] = entry{index: m.index}
			}
		}
		for _, proxy := range []bool{false, true} {
			neighbours, err := r.listNeighbours(ctx, fam, proxy)
			if err != nil {
				return nil, nil, err
			}
			for _, m := range neighbours {
				if name := names[m.index]; r.isWorkload(name) || isWorkload(name) {
					have[m.object(name)] = m.entry()
				}
			}
		}
	}
	return have, duplicates, nil
}

// owns says whether a route is one that "What is ours" names.
func (r *Routes) owns(m routeMessage) bool {
	switch m.metric {
	case MetricLocal, MetricMigrating:
		return m.protocol == r.opts.Protocol
	case MetricGateway:
		return m.protocol == r.opts.Protocol && m.index == loopback
	default:
		return false
	}
}

func (r *Routes) isWorkload(link string) bool {
	return slices.ContainsFunc(r.opts.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(link, p) })
}

// listRoutes lists the routes of one family and protocol in the main table.
func listRoutes(ctx context.Context, c *conn, fam byte, protocol int) ([]routeMessage, error) {
	var list []routeMessage
	err := c.dump(ctx, dumpRoutes(fam, protocol), func() { list = nil }, func(_ uint16, b []byte) {
		if m, ok := parseRoute(b); ok && m.protocol == protocol {
			list = append(list, m)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of protocol %d: %w", protocol, err)
	}
	return list, nil
}

// listNeighbours lists the permanent or the proxy entries.
func (r *Routes) listNeighbours(ctx context.Context, fam byte, proxy bool) ([]neighbourMessage, error) {
	var list []neighbourMessage
	err := r.conn.dump(ctx, dumpNeighbours(fam, proxy), func() { list = nil }, func(_ uint16, b []byte) {
		if m, ok := parseNeighbour(b); ok && m.proxy == proxy && (proxy || m.permanent) {
			list = append(list, m)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return list, nil
}

func (m neighbourMessage) object(link string) object {
	o := object{kind: kindNeighbour, prefix: netip.PrefixFrom(m.addr, m.addr.BitLen()), link: link}
	if m.proxy {
		o.kind = kindProxy
	}
	return o
}

func (m neighbourMessage) entry() entry {
	e := entry{index: m.index}
	if !m.proxy {
		e.mac = m.mac
	}
	return e
}

// readUnsure asks the kernel for each neighbour that may be gone. (It cannot
// be asked for one route; put finds out about those.)
func (r *Routes) readUnsure(ctx context.Context) error {
	var objects []object
	var requests []request
	for o := range r.unsure {
		if e, ok := r.have.get(o); ok && o.kind != kindRoute {
			objects = append(objects, o)
			requests = append(requests, request{
				typ: unix.RTM_GETNEIGH, body: neighbourBody(o.prefix.Addr(), e.index, o.kind == kindProxy),
			})
		}
	}
	found := make([]*entry, len(objects))
	errs := r.conn.batch(ctx, requests, func(i int, b []byte) {
		if m, ok := parseNeighbour(b); ok && (m.proxy || m.permanent) {
			e := m.entry()
			found[i] = &e
		}
	})
	for i, o := range objects {
		switch {
		case errs[i] == nil && found[i] != nil:
			r.have.set(o, *found[i])
		case errs[i] == nil || gone(errs[i]):
			r.have.drop(o)
		default:
			return fmt.Errorf("read %s: %w", o, errs[i])
		}
		delete(r.unsure, o)
	}
	return nil
}
