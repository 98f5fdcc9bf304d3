package qdisc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/kernel/link"
)

// What qdiscs and filters of ours are recognised by.
const (
	Handle    = 0x74740000 // of root qdiscs, 7474: to tc
	Pref      = 29812      // of filters beside a qdisc of another program
	PrefAlone = 29813      // of filters whose clsact qdisc we made
)

// Qdiscs limits the bandwidth of workloads.
type Qdiscs struct {
	log     *slog.Logger
	socket  *socket
	resync  bool
	pending map[string]struct{} // names of interfaces that may not be as wanted
	known   map[string]struct{} // that have, or should have, something of ours
	trouble map[string]error
}

// Open binds to the network namespace of the calling thread. It writes nothing.
func Open(log *slog.Logger) (*Qdiscs, error) {
	s, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("open qdiscs: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Qdiscs{log: log, socket: s, resync: true, pending: map[string]struct{}{}, known: map[string]struct{}{}, trouble: map[string]error{}}, nil
}

// Close releases the handle. Qdiscs stay.
func (q *Qdiscs) Close() { q.socket.handle.Close() }

// Resync makes the next Apply look at all links.
func (q *Qdiscs) Resync() { q.resync = true }

// LinkChanged says that something happened to a link.
func (q *Qdiscs) LinkChanged(name string) {
	if _, ok := q.known[name]; ok {
		q.pending[name] = struct{}{}
	}
	if !strings.HasPrefix(name, link.Prefix) {
		return
	}
	for other := range q.known {
		if ifbName(other) == name {
			q.pending[other] = struct{}{}
		}
	}
}

// Trouble says why an interface is not limited as the last Apply was to do; nil
// if it is.
func (q *Qdiscs) Trouble(name string) error { return q.trouble[name] }

// Apply makes qdiscs, filters and ifbs what want says. It returns how many it
// wrote. What fails is tried again by the next Apply; a link that is gone is no
// failure.
func (q *Qdiscs) Apply(ctx context.Context, want *desired.State) (int, error) {
	for name := range want.Controls.Dirty() {
		_, known := q.known[name]
		if c, _ := want.Controls.Get(name); known || shaped(c) {
			q.pending[name] = struct{}{}
		}
	}
	if len(q.pending) == 0 && !q.resync {
		return 0, nil
	}
	steps, err := q.plan(ctx, want)
	if err != nil {
		return 0, err
	}
	writes := 0
	var errs []error
	for name := range q.pending {
		n, err := run(ctx, steps[name])
		writes += n
		delete(q.trouble, name)
		if err == nil {
			delete(q.pending, name)
			if c, ok := want.Controls.Get(name); !ok || !shaped(c) {
				delete(q.known, name)
			}
			continue
		}
		err = fmt.Errorf("bandwidth of %s: %w", name, err)
		q.trouble[name] = err
		errs = append(errs, err)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return writes, errors.Join(errs...)
}

func shaped(c desired.Controls) bool { return c.Ingress.Rate != 0 || c.Egress.Rate != 0 }

// plan reads the kernel and says, of each interface that is pending, what is to
// be done.
func (q *Qdiscs) plan(ctx context.Context, want *desired.State) (map[string][]step, error) {
	v, err := q.socket.read(ctx)
	if err != nil {
		return nil, err
	}
	if q.resync {
		if err := q.survey(ctx, v, want); err != nil {
			return nil, err
		}
		q.resync = false
	}
	plans := map[string][]step{}
	for name := range q.pending {
		q.known[name] = struct{}{}
		c, _ := want.Controls.Get(name)
		p := planner{socket: q.socket, view: v, name: name, want: c}
		if err := p.plan(ctx); err != nil {
			p.steps = []step{{text: "~ " + name, do: func() error { return err }}}
		}
		plans[name] = p.steps
	}
	return plans, nil
}

// survey finds every interface that has something of ours, or should have.
func (q *Qdiscs) survey(ctx context.Context, v *view, want *desired.State) error {
	for name, c := range want.Controls.All() {
		if shaped(c) {
			q.pending[name] = struct{}{}
		}
	}
	owners := map[string]string{} // of ifbs
	for name, d := range v.devices {
		owners[ifbName(name)] = name
		if v.roots[d.index].handle == Handle && !d.isOurs() {
			q.pending[name] = struct{}{}
		}
		if v.ingress[d.index] == "" {
			continue
		}
		list, err := q.socket.filters(ctx, d.index, ingressParent)
		if err != nil {
			if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
				continue // gone since
			}
			return err
		}
		if slices.ContainsFunc(list, filter.isOurs) {
			q.pending[name] = struct{}{}
		}
	}
	for name := range q.known {
		owners[ifbName(name)] = name
	}
	for name, d := range v.devices {
		if !d.isOurs() {
			continue
		}
		if owner, ok := owners[name]; ok {
			q.pending[owner] = struct{}{}
		} else {
			q.pending[name] = struct{}{} // that of a link which has gone while nobody looked
		}
	}
	return nil
}

func (f filter) isOurs() bool { return f.pref == Pref || f.pref == PrefAlone }

// Diff returns, as sorted lines, what the kernel lacks (+), has too much (-) or
// has otherwise (~), and writes nothing.
func (q *Qdiscs) Diff(ctx context.Context, want *desired.State) (string, error) {
	fresh := &Qdiscs{log: q.log, socket: q.socket, resync: true, pending: map[string]struct{}{}, known: map[string]struct{}{}}
	plans, err := fresh.plan(ctx, want)
	if err != nil {
		return "", fmt.Errorf("compare qdiscs: %w", err)
	}
	var lines []string
	for _, steps := range plans {
		for _, s := range steps {
			lines = append(lines, s.text+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// Dump prints what the kernel has of ours, as sorted lines.
func (q *Qdiscs) Dump(ctx context.Context) (string, error) {
	v, err := q.socket.read(ctx)
	if err != nil {
		return "", fmt.Errorf("dump qdiscs: %w", err)
	}
	var lines []string
	for name, d := range v.devices {
		if d.isOurs() {
			lines = append(lines, fmt.Sprintf("link %s %s\n", name, d.kind))
		}
		if r := v.roots[d.index]; r.handle == Handle {
			lines = append(lines, fmt.Sprintf("qdisc %s %s rate %d peak %d\n", name, r.kind, r.rate, r.peak))
		}
		if v.ingress[d.index] == "" {
			continue
		}
		filters, err := q.socket.filters(ctx, d.index, ingressParent)
		if err != nil {
			return "", err
		}
		for _, f := range filters {
			if f.isOurs() && f.node {
				lines = append(lines, fmt.Sprintf("filter %s redirect to index %d\n", name, f.to))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// Cleanup removes all that is ours.
func (q *Qdiscs) Cleanup(ctx context.Context) error {
	q.Resync()
	_, err := q.Apply(ctx, desired.New())
	return err
}
