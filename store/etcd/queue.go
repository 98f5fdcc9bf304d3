package etcd

import (
	"context"
	"slices"
	"sync"

	"tortie/store"
)

// queue holds what a watcher has received and its consumer has not collected:
// the latest state of each key.
type queue struct {
	news  chan struct{} // has room for one: something to collect
	space chan struct{} // has room for one: events were collected

	mu     sync.Mutex
	events []store.Event
	slots  map[string]slot  // where in events a key is
	known  map[string]known // keys that the consumer has, or will have with the next batch
	state  store.Batch      // flags and revision; no events
	told   bool             // setConnected was called
	dirty  bool             // state changed since it was collected
	gen    uint32           // of the present listing
}

type slot struct {
	at    int
	fresh bool // the consumer does not have the key
}

type known struct {
	revision int64
	gen      uint32 // of the last listing that had the key
}

func newQueue() *queue {
	return &queue{
		news: make(chan struct{}, 1), space: make(chan struct{}, 1),
		slots: map[string]slot{}, known: map[string]known{},
	}
}

// put notes a key's value, unless the consumer has it already, or a newer one:
// prefixes that overlap bring a key twice.
func (q *queue) put(e store.Entry) {
	k, exists := q.known[e.Path]
	q.known[e.Path] = known{revision: max(k.revision, e.Revision), gen: q.gen}
	if exists && k.revision >= e.Revision {
		return
	}
	if s, queued := q.slots[e.Path]; queued {
		q.events[s.at] = store.Event{Entry: e}
		return
	}
	q.slots[e.Path] = slot{at: len(q.events), fresh: !exists}
	q.events = append(q.events, store.Event{Entry: e})
}

// remove notes that a key is gone. One that came and went uncollected leaves
// no trace.
func (q *queue) remove(path string, revision int64) {
	if k, exists := q.known[path]; !exists || k.revision > revision {
		return
	}
	delete(q.known, path)
	event := store.Event{Entry: store.Entry{Path: path, Revision: revision}, Deleted: true}
	s, queued := q.slots[path]
	switch {
	case !queued:
		q.slots[path] = slot{at: len(q.events)}
		q.events = append(q.events, event)
	case !s.fresh:
		q.events[s.at] = event
	default:
		last := len(q.events) - 1
		if s.at != last {
			moved := q.events[last]
			q.events[s.at] = moved
			q.slots[moved.Path] = slot{at: s.at, fresh: q.slots[moved.Path].fresh}
		}
		q.events[last] = store.Event{}
		q.events = q.events[:last]
		delete(q.slots, path)
	}
}

// beginListing starts a listing of all prefixes. If the store is not the one
// that was seen before, every key counts as changed.
func (q *queue) beginListing(replaced bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gen++
	if replaced {
		for path, k := range q.known {
			k.revision = 0
			q.known[path] = k
		}
		q.state.Revision = 0
	}
}

// page adds a part of the listing, once the part before was collected.
func (q *queue) page(ctx context.Context, entries []store.Entry) error {
	for {
		q.mu.Lock()
		if len(q.events) < pageKeys {
			break
		}
		q.mu.Unlock()
		select {
		case <-q.space:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer q.mu.Unlock()
	q.events = slices.Grow(q.events, len(entries))
	for _, e := range entries {
		q.put(e)
	}
	q.signal()
	return nil
}

// endListing reports keys that the listing at revision did not have as gone.
func (q *queue) endListing(revision int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for path, k := range q.known {
		if k.gen != q.gen {
			q.remove(path, revision)
		}
	}
	q.state.InSync = true
	q.advance(revision)
	q.dirty = true
	q.signal()
}

// advance raises the revision up to which everything was queued.
func (q *queue) advance(revision int64) {
	if q.state.InSync && revision > q.state.Revision {
		q.state.Revision = revision
		q.dirty = true
	}
}

// setConnected notes that the store can, or cannot, be reached.
func (q *queue) setConnected(up bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dirty = q.dirty || !q.told || q.state.Connected != up
	q.told, q.state.Connected = true, up
	q.signal()
}

// signal wakes the consumer if there is something to collect.
func (q *queue) signal() {
	if !q.dirty && len(q.events) == 0 {
		return
	}
	select {
	case q.news <- struct{}{}:
	default:
	}
}

// take collects everything; ok is false if there is nothing.
func (q *queue) take() (b store.Batch, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.dirty && len(q.events) == 0 {
		return store.Batch{}, false
	}
	b = q.state
	b.Events = q.events
	q.dirty, q.events = false, nil
	if len(q.slots) > pageKeys {
		q.slots = map[string]slot{} // a map that has grown stays big
	} else {
		clear(q.slots)
	}
	select {
	case q.space <- struct{}{}:
	default:
	}
	return b, true
}

// forget lets go of the memory when the watch ends.
func (q *queue) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events, q.slots, q.known = nil, map[string]slot{}, map[string]known{}
}
