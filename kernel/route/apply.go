package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// remove deletes those of pending that are not wanted, routes first.
func (r *Routes) remove(ctx context.Context, want *desired.State) error {
	var objects []object
	for o := range r.pending {
		if _, _, ok := wanted(want, o); ok {
			continue
		}
		if _, ok := r.have.get(o); ok {
			objects = append(objects, o)
		} else {
			delete(r.pending, o)
		}
	}
	slices.SortFunc(objects, func(a, b object) int { return int(a.kind) - int(b.kind) })
	var requests []request
	before := map[object]entry{}
	for _, o := range objects {
		requests = append(requests, r.deletion(o))
		before[o], _ = r.have.get(o)
		r.have.drop(o) // the kernel tells of a neighbour's end as if it were not our doing
	}
	// A key with several routes needs as many deletions.
	for o, links := range r.duplicates {
		for _, index := range links {
			objects = append(objects, o)
			requests = append(requests, deleteRoute(o.prefix, o.metric, r.opts.Protocol, index))
		}
	}
	var failed failures
	for i, err := range r.conn.batch(ctx, requests, ignore) {
		o := objects[i]
		switch {
		case err == nil:
			r.writes++
		case !gone(err):
			failed.add("delete", o, err)
			if e, ok := before[o]; ok {
				r.have.set(o, e)
			}
			continue
		}
		if _, _, ok := wanted(want, o); ok {
			r.unsure[o] = struct{}{} // a duplicate went; look whether the right one is there
		} else {
			delete(r.unsure, o)
			delete(r.pending, o)
		}
		delete(r.duplicates, o)
	}
	return failed.err()
}

func (r *Routes) deletion(o object) request {
	if o.kind == kindRoute {
		return deleteRoute(o.prefix, o.metric, r.opts.Protocol, 0)
	}
	e, _ := r.have.get(o)
	return request{typ: unix.RTM_DELNEIGH, body: neighbourBody(o.prefix.Addr(), e.index, o.kind == kindProxy)}
}

// put writes those of pending that are wanted and differ; neighbours first, so
// that a route finds them.
func (r *Routes) put(ctx context.Context, want *desired.State) error {
	var objects []object
	for o := range r.pending {
		e, _, ok := wanted(want, o)
		if !ok {
			continue // failed to be deleted
		}
		old, has := r.have.get(o)
		if _, unsure := r.unsure[o]; has && old == e && !unsure {
			delete(r.pending, o)
			continue
		}
		objects = append(objects, o)
	}
	slices.SortFunc(objects, func(a, b object) int { return int(b.kind) - int(a.kind) })
	requests := make([]request, len(objects))
	for i, o := range objects {
		e, link, _ := wanted(want, o)
		requests[i] = r.creation(o, e)
		r.have.set(o, e)
		r.links[link] = e.index
	}
	var failed failures
	clear(r.failed)
	for i, err := range r.conn.batch(ctx, requests, ignore) {
		o := objects[i]
		_, link, _ := wanted(want, o)
		switch {
		case err == nil:
			r.writes++
		case errors.Is(err, unix.EEXIST) && requests[i].flags&unix.NLM_F_EXCL != 0:
			// It had not gone.
		case errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENODEV):
			r.have.drop(o)
			r.wait(link, o)
		default:
			r.have.drop(o)
			failed.add("write", o, err)
			r.failed[o] = failure{link, err}
			delete(r.unsure, o)
			continue
		}
		delete(r.unsure, o)
		delete(r.pending, o)
	}
	return failed.err()
}

func (r *Routes) creation(o object, e entry) request {
	if o.kind != kindRoute {
		return putNeighbour(o.prefix.Addr(), e, o.kind == kindProxy)
	}
	req := request{
		typ: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
		body: linkRoute(o.prefix, o.metric, r.opts.Protocol, e.index),
	}
	if old, _ := r.have.get(o); old == e { // unsure whether it is there: if it is, write nothing
		req.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	return req
}

func (r *Routes) wait(link string, o object) {
	if r.waiting[link] == nil {
		r.waiting[link] = map[object]struct{}{}
	}
	r.waiting[link][o] = struct{}{}
}

// Cleanup deletes exactly what is ours, wanted or not.
func (r *Routes) Cleanup(ctx context.Context) error {
	r.Resync()
	_, err := r.Apply(ctx, desired.New())
	return err
}

// Dump returns what the kernel holds of ours as sorted lines.
func (r *Routes) Dump(ctx context.Context) (string, error) {
	have, duplicates, err := r.read(ctx, func(string) bool { return false })
	if err != nil {
		return "", err
	}
	names := map[int]string{-1: "(not to a link)"}
	for name, index := range r.links {
		names[index] = name
	}
	var lines []string
	for o, e := range have {
		switch o.kind {
		case kindNeighbour:
			lines = append(lines, fmt.Sprintf("%s lladdr %s", o, macString(e.mac)))
		case kindProxy:
			lines = append(lines, o.String())
		default:
			for _, index := range append([]int{e.index}, duplicates[o]...) {
				lines = append(lines, fmt.Sprintf("%s dev %s", o, names[index]))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}

// gone says that a deletion or a look found nothing.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

func ignore(int, []byte) {}

// failure is why something is not on a link.
type failure struct {
	link string
	err  error
}

// failures collects errors, of which it keeps the first few.
type failures struct {
	errs []error
	more int
}

func (f *failures) add(operation string, o fmt.Stringer, err error) {
	if len(f.errs) == 5 {
		f.more++
		return
	}
	f.errs = append(f.errs, fmt.Errorf("%s %s: %w", operation, o, err))
}

func (f *failures) err() error {
	if f.more > 0 {
		return fmt.Errorf("%w\nand %d more", errors.Join(f.errs...), f.more)
	}
	return errors.Join(f.errs...)
}
