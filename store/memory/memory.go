package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"tortie/store"
)

var errDisconnected = errors.New("not connected")

// Memory is one client's handle on a store in memory.
type Memory struct {
	data *data
	down bool // guarded by data.mu
}

// data is what all handles share.
type data struct {
	mu       sync.Mutex
	revision int64
	keys     map[string]value
	leases   map[store.Lease]struct{}
	granted  store.Lease
	watchers map[*watcher]struct{}
}

type value struct {
	bytes    []byte
	revision int64
	lease    store.Lease
}

var _ store.Store = (*Memory)(nil)

// New returns a handle on a new, empty store. Its revision is 1, as etcd's.
func New() *Memory {
	return &Memory{data: &data{
		revision: 1,
		keys:     map[string]value{},
		leases:   map[store.Lease]struct{}{},
		watchers: map[*watcher]struct{}{},
	}}
}

// Client returns another handle on the same data.
func (m *Memory) Client() *Memory { return &Memory{data: m.data} }

// Disconnect makes operations of this handle fail and its watchers lose their
// connection, until Reconnect.
func (m *Memory) Disconnect() { m.setDown(true) }

// Reconnect ends Disconnect.
func (m *Memory) Reconnect() { m.setDown(false) }

func (m *Memory) setDown(down bool) {
	m.data.mu.Lock()
	defer m.data.mu.Unlock()
	m.down = down
	m.data.wake()
}

// Compact discards the history. Every watcher compares what it has told with
// what there is, which must show to nobody.
func (m *Memory) Compact() {
	d := m.data
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.watchers {
		for path := range w.told {
			w.enqueue(path)
		}
		for path := range d.keys {
			w.enqueue(path)
		}
	}
	d.wake()
}

// Expire ends a lease and removes its keys.
func (m *Memory) Expire(l store.Lease) {
	d := m.data
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.leases, l)
	var gone []string
	for path, v := range d.keys {
		if v.lease == l {
			gone = append(gone, path)
		}
	}
	if len(gone) == 0 {
		return
	}
	d.revision++
	for _, path := range gone {
		delete(d.keys, path)
		d.changed(path)
	}
	d.wake()
}

// List implements store.Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	d := m.data
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	var entries []store.Entry
	for path, v := range d.keys {
		if strings.HasPrefix(path, prefix) {
			entries = append(entries, v.entry(path))
		}
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Path < entries[j].Path })
	return entries, d.revision, nil
}

// Commit implements store.Store.
func (m *Memory) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	d := m.data
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	for _, op := range ops {
		if op.If != store.AnyRevision && d.keys[op.Path].revision != op.If {
			return 0, fmt.Errorf("commit %s: %w", op.Path, store.ErrConflict)
		}
		if _, granted := d.leases[op.Lease]; op.Lease != 0 && !op.Deletes() && !granted {
			return 0, fmt.Errorf("commit %s: %w", op.Path, store.ErrLeaseGone)
		}
	}
	d.apply(ops)
	return d.revision, nil
}

// apply writes ops at a new revision. As in etcd, a transaction that changes
// nothing makes no revision.
func (d *data) apply(ops []store.Op) {
	next := d.revision + 1
	for _, op := range ops {
		_, exists := d.keys[op.Path]
		switch {
		case !op.Deletes():
			d.keys[op.Path] = value{bytes: append([]byte{}, op.Value...), revision: next, lease: op.Lease}
		case exists:
			delete(d.keys, op.Path)
		default:
			continue
		}
		d.revision = next
		d.changed(op.Path)
	}
	d.wake()
}

// Grant implements store.Store. The lease lives until Expire.
func (m *Memory) Grant(ctx context.Context, _ time.Duration) (store.Lease, error) {
	d := m.data
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := m.usable(ctx); err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	d.granted++
	d.leases[d.granted] = struct{}{}
	return d.granted, nil
}

func (m *Memory) usable(ctx context.Context) error {
	if m.down {
		return errDisconnected
	}
	return ctx.Err()
}

func (d *data) changed(path string) {
	for w := range d.watchers {
		w.enqueue(path)
	}
}

func (d *data) wake() {
	for w := range d.watchers {
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

func (v value) entry(path string) store.Entry {
	return store.Entry{Path: path, Value: bytes.Clone(v.bytes), Revision: v.revision}
}
