package storetest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"tortie/store"
)

// patience is how long the suite waits for what must come.
const patience = 30 * time.Second

// Harness is one fresh, empty store under test.
type Harness struct {
	// Store is the client under test, Other a second client that stays
	// connected.
	Store, Other store.Store
	// Disconnect cuts Store off, watches included, until Reconnect.
	Disconnect, Reconnect func()
	// Compact discards the store's history.
	Compact func()
	// Expire ends a lease, or returns at once if time does that.
	Expire func(store.Lease)
}

// Follower collects a watch.
type Follower struct {
	t       *testing.T
	watcher store.Watcher
	keys    map[string]store.Entry
	last    store.Batch // the last batch
	events  int         // since the last ResetEvents
	batches int
}

// Follow starts a watch that ends with the test.
func Follow(t *testing.T, s store.Store, prefixes ...string) *Follower {
	t.Helper()
	return &Follower{t: t, watcher: s.Watch(t.Context(), prefixes...), keys: map[string]store.Entry{}}
}

// Next collects one batch and checks it.
func (f *Follower) Next(ctx context.Context) error {
	f.t.Helper()
	b, err := f.watcher.Next(ctx)
	if err != nil {
		return err
	}
	if b.Revision < f.last.Revision {
		f.t.Fatalf("revision went back from %d to %d", f.last.Revision, b.Revision)
	}
	if f.last.InSync && !b.InSync {
		f.t.Fatal("in sync was taken back")
	}
	if !b.InSync && b.Revision != 0 {
		f.t.Fatalf("revision %d before in sync", b.Revision)
	}
	seen := map[string]bool{}
	for _, ev := range b.Events {
		if seen[ev.Path] {
			f.t.Fatalf("%s twice in one batch", ev.Path)
		}
		seen[ev.Path] = true
		have, known := f.keys[ev.Path]
		switch {
		case ev.Deleted && !known:
			f.t.Fatalf("%s: deletion of a key that was never reported", ev.Path)
		case ev.Deleted:
			delete(f.keys, ev.Path)
		case known && have.Revision == ev.Revision:
			f.t.Fatalf("%s: unchanged at revision %d and reported again", ev.Path, ev.Revision)
		default:
			f.keys[ev.Path] = ev.Entry
		}
	}
	f.events += len(b.Events)
	f.batches++
	f.last = b
	return nil
}

// Until collects batches until done holds.
func (f *Follower) Until(what string, done func() bool) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	for !done() {
		if err := f.Next(ctx); err != nil {
			f.t.Fatalf("waiting for %s: %v (%d keys, in sync %v, connected %v, revision %d)",
				what, err, len(f.keys), f.last.InSync, f.last.Connected, f.last.Revision)
		}
	}
}

// InSync collects until the snapshot is complete.
func (f *Follower) InSync() {
	f.t.Helper()
	f.Until("in sync", func() bool { return f.last.InSync })
}

// Reaches collects until everything up to a revision was returned.
func (f *Follower) Reaches(revision int64) {
	f.t.Helper()
	f.Until(fmt.Sprintf("revision %d", revision), func() bool { return f.last.Revision >= revision })
}

// Values returns what was collected, as path → value.
func (f *Follower) Values() map[string]string {
	values := map[string]string{}
	for path, e := range f.keys {
		values[path] = string(e.Value)
	}
	return values
}

// Last returns the last batch.
func (f *Follower) Last() store.Batch { return f.last }

// Events returns how many events came since it was last called.
func (f *Follower) Events() int {
	n := f.events
	f.events = 0
	return n
}

// Put writes one key whatever it has.
func Put(t *testing.T, s store.Store, path, value string) int64 {
	t.Helper()
	return Commit(t, s, store.Op{Path: path, Value: []byte(value), If: store.AnyRevision})
}

// Delete removes one key whatever it has.
func Delete(t *testing.T, s store.Store, path string) int64 {
	t.Helper()
	return Commit(t, s, store.Op{Path: path, Delete: true, If: store.AnyRevision})
}

// Commit commits and fails the test if that fails.
func Commit(t *testing.T, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	revision, err := s.Commit(ctx, ops...)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// List returns the store's keys under a prefix as path → value.
func List(t *testing.T, s store.Store, prefix string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	entries, _, err := s.List(ctx, prefix)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, e := range entries {
		values[e.Path] = string(e.Value)
	}
	return values
}

// equal fails the test if what was collected is not want.
func (f *Follower) equal(want map[string]string) {
	f.t.Helper()
	same(f.t, want, f.Values())
}

// same fails the test if got is not want.
func same[T any](t *testing.T, want, got T) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
}

// under returns those of values whose path begins with one of prefixes.
func under(values map[string]string, prefixes ...string) map[string]string {
	values = maps.Clone(values)
	maps.DeleteFunc(values, func(path, _ string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(path, p) {
				return false
			}
		}
		return true
	})
	return values
}
