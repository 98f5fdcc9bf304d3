package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"tortie/store"
)

// Waiting between attempts to connect doubles from minBackoff to maxBackoff,
// less a random part of up to a half.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 4 * time.Second
)

// watcher follows some prefixes. Its goroutine, run, owns all fields but the
// queue.
type watcher struct {
	store    *Store
	log      *slog.Logger
	ctx      context.Context
	prefixes []string
	queue    *queue
	conn     *grpc.ClientConn // nil until there is a client

	listed   bool    // the prefixes have been listed, and followed up to seen
	seen     []int64 // per prefix, the revision up to which all is queued
	cluster  uint64  // that was listed
	replaced bool    // the store is not the one that the queue knows
	state    string  // last logged: why the store cannot be reached, or connected
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefixes ...string) store.Watcher {
	if len(prefixes) == 0 {
		prefixes = []string{"\xff"} // nothing
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	w := &watcher{
		store: s, ctx: ctx, prefixes: prefixes, queue: newQueue(), seen: make([]int64, len(prefixes)),
		log: s.cfg.Log.With("prefix", prefixes[0], "more", len(prefixes)-1),
	}
	go func() {
		defer stop()
		defer cancel()
		w.run()
	}()
	return w
}

// Next implements store.Watcher.
func (w *watcher) Next(ctx context.Context) (store.Batch, error) {
	for {
		if err := w.ctx.Err(); err != nil {
			return store.Batch{}, fmt.Errorf("watch: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return store.Batch{}, fmt.Errorf("watch: %w", err)
		}
		if b, ok := w.queue.take(); ok {
			return b, nil
		}
		select {
		case <-w.queue.news:
		case <-w.ctx.Done():
		case <-ctx.Done():
		}
	}
}

// run connects, again and again, until the watch's context ends.
func (w *watcher) run() {
	defer w.queue.forget()
	for failed := 0; w.ctx.Err() == nil; {
		lasted, err := w.once()
		switch {
		case w.ctx.Err() != nil:
		case errors.Is(err, store.ErrCompacted):
			w.log.Info("the history needed was compacted, listing again")
			w.listed = false
		case lasted > time.Second:
			// Try once more before saying that the store cannot be reached.
			w.log.Info("watch interrupted, resuming", "err", err)
			failed = 0
		default:
			failed++
			w.setConnected(false, err)
			w.pause(failed)
		}
	}
}

// once connects, lists if it must, and follows the stream until that breaks.
// It returns for how long it could.
func (w *watcher) once() (time.Duration, error) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	if err := w.connect(ctx); err != nil {
		return 0, err
	}
	w.setConnected(true, nil)
	if !w.listed {
		if err := w.list(ctx); err != nil {
			return 0, err
		}
	}
	return w.follow(ctx)
}

// connect asks a current member of the cluster whether this is still the store
// that was listed.
func (w *watcher) connect(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, w.store.cfg.RequestTimeout)
	defer cancel()
	c, err := w.store.etcd(limited)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	w.conn = c.ActiveConnection()
	start, end := keyRange(w.prefixes[0])
	r, err := w.store.get(ctx, &pb.RangeRequest{Key: start, RangeEnd: end, Limit: 1, KeysOnly: true})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	newest := int64(0)
	for _, seen := range w.seen {
		newest = max(newest, seen)
	}
	if newest > 0 && (r.Header.ClusterId != w.cluster || r.Header.Revision < newest) {
		w.log.Warn("the store is another one than before, or lost data: listing again",
			"revision", r.Header.Revision, "seen", newest)
		w.listed, w.replaced = false, true
	}
	return nil
}

// list queues all keys as of one revision, and what is gone since the listing
// before.
func (w *watcher) list(ctx context.Context) error {
	w.queue.beginListing(w.replaced)
	var at header
	for _, prefix := range w.prefixes {
		h, err := w.store.pages(ctx, prefix, at.revision, func(kvs []*mvccpb.KeyValue) error {
			entries := make([]store.Entry, len(kvs))
			for i, kv := range kvs {
				entries[i] = entry(kv)
			}
			return w.queue.page(ctx, entries)
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		at = h
	}
	w.queue.endListing(at.revision)
	for i := range w.seen {
		w.seen[i] = at.revision
	}
	w.listed, w.replaced, w.cluster = true, false, at.cluster
	return nil
}

// setConnected tells the consumer, and the log, when that changes.
func (w *watcher) setConnected(up bool, err error) {
	state := "connected"
	if !up {
		state = err.Error()
	}
	if state == w.state {
		return
	}
	w.state = state
	if up {
		w.log.Info("connected to the store")
	} else {
		w.log.Warn("the store cannot be reached, trying again", "err", err)
	}
	w.queue.setConnected(up)
}

// pause waits before the next attempt, but not for longer than until the
// connection is there, if that was missing.
func (w *watcher) pause(failed int) {
	d := min(minBackoff<<min(failed, 10), maxBackoff)
	d -= rand.N(d/2 + 1)
	ctx, cancel := context.WithTimeout(w.ctx, d)
	defer cancel()
	if w.conn == nil || w.conn.GetState() == connectivity.Ready {
		<-ctx.Done()
		return
	}
	for state := w.conn.GetState(); state != connectivity.Ready; state = w.conn.GetState() {
		if !w.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}
