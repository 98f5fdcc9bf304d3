package memory

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"tortie/store"
)

// pageKeys is how many keys of the snapshot one batch has at most, so that
// consumers meet a snapshot of several batches.
const pageKeys = 1000

// watcher remembers what it has told and which keys to look at again, never
// the changes themselves: what Next returns is the difference between told and
// the store. All but ctx, memory and news is guarded by data.mu.
type watcher struct {
	ctx      context.Context
	memory   *Memory
	prefixes []string
	news     chan struct{} // has room for one

	told   map[string]int64 // path → revision
	queue  []string         // keys to look at
	queued map[string]struct{}
	last   store.Batch // flags and revision as last returned
	begun  bool        // something was returned
}

// Watch implements store.Store.
func (m *Memory) Watch(ctx context.Context, prefixes ...string) store.Watcher {
	d := m.data
	w := &watcher{
		ctx: ctx, memory: m, prefixes: prefixes,
		news: make(chan struct{}, 1), told: map[string]int64{}, queued: map[string]struct{}{},
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for path := range d.keys {
		w.enqueue(path)
	}
	sort.Strings(w.queue)
	d.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, w)
	})
	return w
}

// Next implements store.Watcher.
func (w *watcher) Next(ctx context.Context) (store.Batch, error) {
	for {
		if w.ctx.Err() != nil {
			return store.Batch{}, fmt.Errorf("watch: %w", w.ctx.Err())
		}
		if ctx.Err() != nil {
			return store.Batch{}, fmt.Errorf("watch: %w", ctx.Err())
		}
		if b, news := w.take(); news {
			return b, nil
		}
		select {
		case <-w.news:
		case <-w.ctx.Done():
		case <-ctx.Done():
		}
	}
}

// take returns what is new and whether anything is.
func (w *watcher) take() (store.Batch, bool) {
	d := w.memory.data
	d.mu.Lock()
	defer d.mu.Unlock()
	b := store.Batch{InSync: w.last.InSync, Revision: w.last.Revision, Connected: !w.memory.down}
	if b.Connected {
		n := len(w.queue)
		if !b.InSync {
			n = min(n, pageKeys)
		}
		for _, path := range w.queue[:n] {
			w.look(path, &b)
		}
		w.queue = w.queue[n:]
		if len(w.queue) == 0 {
			w.queue = nil // let go of the snapshot's array
			b.InSync, b.Revision = true, d.revision
		}
	}
	news := !w.begun || len(b.Events) > 0 ||
		b.InSync != w.last.InSync || b.Revision != w.last.Revision || b.Connected != w.last.Connected
	w.begun = true
	w.last = store.Batch{Revision: b.Revision, InSync: b.InSync, Connected: b.Connected}
	return b, news
}

// look adds a key to the batch if its state differs from what was told.
func (w *watcher) look(path string, b *store.Batch) {
	delete(w.queued, path)
	v, exists := w.memory.data.keys[path]
	revision, told := w.told[path]
	switch {
	case exists && (!told || revision != v.revision):
		w.told[path] = v.revision
		b.Events = append(b.Events, store.Event{Entry: v.entry(path)})
	case !exists && told:
		delete(w.told, path)
		gone := store.Entry{Path: path, Revision: w.memory.data.revision}
		b.Events = append(b.Events, store.Event{Entry: gone, Deleted: true})
	}
}

func (w *watcher) enqueue(path string) {
	if _, already := w.queued[path]; already {
		return
	}
	for _, prefix := range w.prefixes {
		if strings.HasPrefix(path, prefix) {
			w.queued[path] = struct{}{}
			w.queue = append(w.queue, path)
			return
		}
	}
}
