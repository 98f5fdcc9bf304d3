package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
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

	listed  bool    // the prefixes have been listed up to seen
	seen    []int64 // per prefix, the revision up to which all is queued
	cluster uint64  // which the listing came from
	up      bool    // as the queue has been told
	told    bool    // the queue has been told
	attempt int     // that failed in a row
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefixes ...string) store.Watcher {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	w := &watcher{
		store: s, ctx: ctx, prefixes: prefixes, queue: newQueue(), seen: make([]int64, len(prefixes)),
		log: s.cfg.Log.With("prefixes", strings.Join(prefixes, " ")),
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
	for w.ctx.Err() == nil {
		started := w.attempt
		err := w.once()
		if w.ctx.Err() != nil {
			return
		}
		if errors.Is(err, store.ErrCompacted) {
			w.log.Info("history was compacted, listing again")
			w.listed = false
		}
		if w.attempt < started || w.attempt == 0 && w.up {
			// The stream was up until now: try again before saying so.
			w.attempt = 1
			w.log.Info("watch interrupted", "err", err)
			continue
		}
		w.attempt++
		w.setConnected(false, err)
		w.pause()
	}
}

// once connects, lists if it must, and follows the stream until that breaks.
func (w *watcher) once() error {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	if err := w.connect(ctx); err != nil {
		return err
	}
	if !w.listed {
		if err := w.list(ctx); err != nil {
			return err
		}
	}
	st, err := w.openStream(ctx)
	if err != nil {
		return err
	}
	w.attempt = 0
	w.setConnected(true, nil)
	return st.follow()
}

// connect waits a moment for the connection and asks a current member of the
// cluster whether this is still the store that was listed.
func (w *watcher) connect(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, w.store.cfg.RequestTimeout)
	defer cancel()
	c, err := w.store.etcd(limited)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	awaitReady(limited, c)
	key := "\x00"
	if len(w.prefixes) > 0 && w.prefixes[0] != "" {
		key = w.prefixes[0]
	}
	r, err := w.store.get(ctx, key, clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if w.listed && (r.Header.ClusterId != w.cluster || r.Header.Revision < slices.Max(w.seen)) {
		w.log.Warn("the store is not the one that was there before, or lost data: listing again",
			"revision", r.Header.Revision, "seen", slices.Max(w.seen))
		w.listed = false
	}
	return nil
}

// awaitReady gives a connection that has failed before a new chance, for a
// moment: requests fail at once until it has succeeded.
func awaitReady(ctx context.Context, c *clientv3.Client) {
	conn := c.ActiveConnection()
	conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	for state := conn.GetState(); state == connectivity.TransientFailure; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// list queues all keys as of one revision, and what is gone since the listing
// before.
func (w *watcher) list(ctx context.Context) error {
	var at header
	first := true
	for _, prefix := range w.prefixes {
		h, err := w.store.pages(ctx, prefix, at.revision, func(kvs []*mvccpb.KeyValue) error {
			if first {
				w.queue.beginListing(false)
				first = false
			}
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
	w.listed, w.cluster = true, at.cluster
	return nil
}

func (w *watcher) setConnected(up bool, err error) {
	if w.told && w.up == up {
		return
	}
	if up {
		w.log.Info("connected to the store")
	} else {
		w.log.Warn("the store cannot be reached, trying again", "err", err)
	}
	w.told, w.up = true, up
	w.queue.setConnected(up)
}

// pause waits before the next attempt.
func (w *watcher) pause() {
	d := min(minBackoff<<min(w.attempt, 10), maxBackoff)
	d -= rand.N(d/2 + 1)
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
	}
}
