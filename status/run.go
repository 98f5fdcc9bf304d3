package status

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"tortie/api"
	"tortie/store"
)

const (
	requestTimeout = 5 * time.Second
	// appliedRest is the least time between two reports of the applied
	// revision to those who wait for it.
	appliedRest = 100 * time.Millisecond
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 5 * time.Second
)

// liveness is what Run knows of its own reports.
type liveness struct {
	lease   store.Lease
	release context.CancelFunc // stops keeping the lease alive
	written bool               // a sign of life was
	beat    time.Time          // when the next one is due
	applied int64              // as last written
	rest    time.Time          // before which it is not written again
}

// Run writes until ctx ends. What is on the lease then stays for TTL, so that
// a restart goes unnoticed.
func (w *Writer) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.followWaiters(ctx)
	}()
	for failed := 0; ctx.Err() == nil; {
		pause, err := w.round(ctx)
		wake := w.wake
		if failed++; err == nil {
			failed = 0
		} else if ctx.Err() == nil {
			w.opts.Log.Warn("status was not written", "err", err, "try", failed)
			pause = min(minBackoff<<min(failed, 10), maxBackoff)
			pause -= rand.N(pause/2 + 1)
			wake = nil // Set does not shorten this
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	<-done
}

// round does what is due and returns how long it is until something will be.
func (w *Writer) round(ctx context.Context) (pause time.Duration, err error) {
	pause = time.Hour
	// due says whether the time has come, else when it will.
	due := func(at time.Time) bool {
		left := time.Until(at)
		if left > 0 {
			pause = min(pause, left)
		}
		return left <= 0
	}
	if w.opts.Interval > 0 && due(w.live.beat) {
		if err := w.beat(ctx); err != nil {
			return 0, fmt.Errorf("report that this host lives: %w", err)
		}
		due(w.live.beat)
	}
	if w.appliedPending() && due(w.live.rest) {
		if err := w.commitLeased(ctx); err != nil {
			return 0, fmt.Errorf("report the applied revision: %w", err)
		}
	}
	if err := w.writeAddresses(ctx); err != nil {
		return 0, err
	}
	if !w.opts.EndpointReporting {
		return pause, nil
	}
	if w.endpointsPending() || due(w.audit) || len(w.resting) > 0 && due(w.rest) {
		if err := w.writeEndpoints(ctx); err != nil {
			return 0, err
		}
	}
	due(w.audit)
	if len(w.resting) > 0 {
		due(w.rest)
	}
	return pause, nil
}

// beat writes a sign of life and, with it, the applied revision.
func (w *Writer) beat(ctx context.Context) error {
	now := time.Now()
	report := encode(api.StatusReport{
		Time:        api.Timestamp(now),
		Uptime:      math.Round(now.Sub(w.begun).Seconds()*100) / 100,
		FirstUpdate: !w.live.written,
	})
	err := w.commitLeased(ctx,
		store.Op{Path: api.LivenessPath(w.opts.Region, w.opts.Host), Value: report},
		store.Op{Path: api.LastReportPath(w.opts.Region, w.opts.Host), Value: report})
	if err == nil {
		w.live.written, w.live.beat = true, now.Add(w.opts.Interval)
	}
	return err
}

// commitLeased writes the first of ops on the lease, the rest without, and the
// applied revision, if there is one, on the lease. A lease ends when the store
// is away for longer than it lasts; then the next try takes a new one.
func (w *Writer) commitLeased(ctx context.Context, ops ...store.Op) error {
	live := &w.live
	if live.lease == 0 {
		kept, release := context.WithCancel(ctx)
		lease, err := w.store.Grant(kept, w.opts.TTL)
		if err != nil {
			release()
			return err
		}
		live.lease, live.release = lease, release
	}
	if len(ops) > 0 {
		ops[0].Lease = live.lease
	}
	w.input.Lock()
	applied := w.input.applied
	w.input.Unlock()
	if applied > 0 {
		value := encode(api.Applied{Revision: applied, At: api.Timestamp(time.Now())})
		ops = append(ops, store.Op{Path: api.AppliedPath(w.opts.Host), Value: value, Lease: live.lease})
	}
	err := w.commit(ctx, ops)
	switch {
	case errors.Is(err, store.ErrLeaseGone):
		live.release()
		live.lease = 0
	case err == nil:
		live.applied, live.rest = applied, time.Now().Add(appliedRest)
	}
	return err
}

// commit writes ops whatever the keys have. If it fails, it is not known what
// the store has.
func (w *Writer) commit(ctx context.Context, ops []store.Op) error {
	for i := range ops {
		ops[i].If = store.AnyRevision
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := w.store.Commit(ctx, ops...)
	if err != nil {
		w.listed = false
	}
	return err
}

// appliedPending says whether somebody waits for a revision that was not
// written yet.
func (w *Writer) appliedPending() bool {
	w.input.Lock()
	defer w.input.Unlock()
	return w.input.waiting && w.input.applied != w.live.applied
}

// followWaiters notes whether somebody waits for the applied revision.
func (w *Writer) followWaiters(ctx context.Context) {
	watch := w.store.Watch(ctx, api.WaitRoot)
	waiters := map[string]struct{}{}
	for {
		b, err := watch.Next(ctx)
		if err != nil {
			return // ctx has ended
		}
		for _, e := range b.Events {
			if e.Deleted {
				delete(waiters, e.Path)
			} else {
				waiters[e.Path] = struct{}{}
			}
		}
		w.input.Lock()
		w.input.waiting = len(waiters) > 0
		w.input.Unlock()
		w.signal()
	}
}
