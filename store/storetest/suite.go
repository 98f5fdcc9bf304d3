package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tortie/store"
)

// Run runs the suite; fresh makes an empty store for each test.
func Run(t *testing.T, fresh func(*testing.T) Harness) {
	tests := []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Commit", testCommit},
		{"CompareAndSwap", testCompareAndSwap},
		{"Atomicity", testAtomicity},
		{"Limits", testLimits},
		{"List", testList},
		{"EmptyValue", testEmptyValue},
		{"Lease", testLease},
		{"Snapshot", testSnapshot},
		{"Changes", testChanges},
		{"Coalescing", testCoalescing},
		{"NextEnds", testNextEnds},
		{"Unrelated", testUnrelated},
		{"RevisionCoversAllPrefixes", testRevisionCoversAllPrefixes},
		{"WatchBeforeConnection", testWatchBeforeConnection},
		{"Resume", func(t *testing.T, h Harness) { testAway(t, h, func() {}) }},
		{"Relist", func(t *testing.T, h Harness) { testAway(t, h, h.Compact) }},
		{"CompactionWhileConnected", testCompactionWhileConnected},
		{"Histories", testHistories},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, fresh(t)) })
	}
}

func op(path, value string, revision int64) store.Op {
	return store.Op{Path: path, Value: []byte(value), If: revision}
}

func testCommit(t *testing.T, h Harness) {
	r1 := Put(t, h.Store, "/a/1", "x")
	r2 := Put(t, h.Store, "/a/2", "y")
	if r1 <= 1 || r2 != r1+1 {
		t.Errorf("revisions %d, %d: want them to grow by one, from above 1", r1, r2)
	}
	if r := Delete(t, h.Store, "/a/none"); r != r2 {
		t.Errorf("deleting nothing made revision %d, want still %d", r, r2)
	}
	if r := Commit(t, h.Store); r != r2 {
		t.Errorf("an empty transaction returned revision %d, want %d", r, r2)
	}
	r3 := Commit(t, h.Store, store.Op{Path: "/a/1", If: r1}, op("/a/3", "z", 0), op("/a/2", "yy", r2))
	if r3 != r2+1 {
		t.Errorf("a transaction of three made revision %d, want %d", r3, r2+1)
	}
	want := map[string]string{"/a/2": "yy", "/a/3": "z"}
	same(t, want, List(t, h.Other, "/a/"))
}

func testCompareAndSwap(t *testing.T, h Harness) {
	r := Put(t, h.Store, "/k", "1")
	for name, o := range map[string]store.Op{
		"create of what exists":  op("/k", "2", 0),
		"update at a stale one":  op("/k", "2", r-1),
		"update of what is not":  op("/none", "2", r),
		"delete at a stale one":  {Path: "/k", Delete: true, If: r - 1},
		"delete of what is not":  {Path: "/none", Delete: true, If: r},
		"delete if not existing": {Path: "/k", Delete: true, If: 0},
	} {
		if _, err := h.Store.Commit(t.Context(), o); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
	r2 := Commit(t, h.Store, op("/k", "2", r))
	Commit(t, h.Store, store.Op{Path: "/k", Delete: true, If: r2})
	if got := List(t, h.Store, "/"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// testAtomicity: one precondition that does not hold keeps all from being
// written.
func testAtomicity(t *testing.T, h Harness) {
	r := Put(t, h.Store, "/k/1", "1")
	_, err := h.Store.Commit(t.Context(), op("/k/0", "new", 0), op("/k/1", "2", r+5), op("/k/2", "new", store.AnyRevision))
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	same(t, map[string]string{"/k/1": "1"}, List(t, h.Store, "/k/"))
}

func testLimits(t *testing.T, h Harness) {
	var ops []store.Op
	for i := range 1000 {
		ops = append(ops, op(fmt.Sprintf("/k/%04d", i), "v", 0))
	}
	Commit(t, h.Store, ops[:store.MaxOps]...)
	for name, bad := range map[string][]store.Op{
		"at most 128": ops[:store.MaxOps+1],
		"twice":       {op("/x", "1", 0), op("/x", "2", 0)},
		"no path":     {op("", "1", 0)},
	} {
		if _, err := h.Store.Commit(t.Context(), bad...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got error %v, want one that says %q", err, name)
		}
	}
	batches := store.Batches(ops[store.MaxOps:])
	for _, b := range batches {
		Commit(t, h.Store, b...)
	}
	if got := len(List(t, h.Store, "/k/")); got != 1000 || len(batches) != 9 {
		t.Errorf("%d keys in %d batches, want 1000 and 9", got, len(batches))
	}
}

func testList(t *testing.T, h Harness) {
	var want []store.Entry
	for _, path := range []string{"/p", "/p-2", "/p/a", "/p/a/b", "/p/é", "/pq"} {
		r := Put(t, h.Store, path, "v"+path)
		want = append(want, store.Entry{Path: path, Value: []byte("v" + path), Revision: r})
	}
	last := Put(t, h.Store, "/q", "other")
	for prefix, n := range map[string][]int{
		"/p": {0, 1, 2, 3, 4, 5}, "/p/": {2, 3, 4}, "/p/a": {2, 3}, "/p/a/b": {3}, "/none/": {},
	} {
		var sub []store.Entry
		for _, i := range n {
			sub = append(sub, want[i])
		}
		got, revision, err := h.Store.List(t.Context(), prefix)
		if err != nil || revision != last {
			t.Errorf("list %s: revision %d, error %v, want %d", prefix, revision, err, last)
		}
		same(t, sub, got)
	}
	if got := List(t, h.Store, ""); len(got) != 7 {
		t.Errorf("list of everything: %v", got)
	}
	// More than a page.
	var ops []store.Op
	for i := range 4100 {
		ops = append(ops, op(fmt.Sprintf("/many/%05d", i), "v", 0))
	}
	for _, b := range store.Batches(ops) {
		Commit(t, h.Store, b...)
	}
	got, _, err := h.Store.List(t.Context(), "/many/")
	sorted := slices.IsSortedFunc(got, func(a, b store.Entry) int { return strings.Compare(a.Path, b.Path) })
	if err != nil || len(got) != 4100 || !sorted {
		t.Errorf("long list: %d entries, sorted %v, error %v", len(got), sorted, err)
	}
}

// testEmptyValue: an empty value is a value, and stays one when it is read and
// written back.
func testEmptyValue(t *testing.T, h Harness) {
	Put(t, h.Store, "/e", "")
	got, _, err := h.Store.List(t.Context(), "/e")
	if err != nil || len(got) != 1 || got[0].Value == nil {
		t.Fatalf("got %v, %v", got, err)
	}
	Commit(t, h.Store, store.Op{Path: "/e", Value: got[0].Value, If: got[0].Revision})
	f := Follow(t, h.Store, "/e")
	f.InSync()
	f.equal(map[string]string{"/e": ""})
}

func testLease(t *testing.T, h Harness) {
	const ttl = 2 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	lease, err := h.Store.Grant(ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	Commit(t, h.Store,
		store.Op{Path: "/l/1", Value: []byte("a"), If: 0, Lease: lease},
		store.Op{Path: "/l/2", Value: []byte("b"), If: 0, Lease: lease},
		op("/l/3", "no lease", 0))
	Commit(t, h.Store, op("/l/2", "lease taken off", store.AnyRevision))
	f := Follow(t, h.Other, "/l/")
	f.InSync()
	f.equal(map[string]string{"/l/1": "a", "/l/2": "lease taken off", "/l/3": "no lease"})
	cancel()
	h.Expire(lease)
	f.Until("the end of the lease", func() bool { return len(f.keys) < 3 })
	f.equal(map[string]string{"/l/2": "lease taken off", "/l/3": "no lease"})
	_, err = h.Store.Commit(t.Context(), store.Op{Path: "/l/4", Value: []byte("c"), Lease: lease, If: 0})
	if !errors.Is(err, store.ErrLeaseGone) {
		t.Errorf("a write with an ended lease: %v, want %v", err, store.ErrLeaseGone)
	}
}

func testSnapshot(t *testing.T, h Harness) {
	var ops []store.Op
	for i := range 5000 {
		ops = append(ops, op(fmt.Sprintf("/s/%05d", i), "v", 0))
	}
	for _, b := range store.Batches(ops) {
		Commit(t, h.Store, b...)
	}
	Put(t, h.Store, "/t/1", "w")
	last := Put(t, h.Store, "/u/1", "not watched")
	f := Follow(t, h.Store, "/none/", "/s/", "/t/")
	f.InSync()
	if len(f.keys) != 5001 || f.events != 5001 || f.last.Revision < last || !f.last.Connected {
		t.Errorf("%d keys in %d events, revision %d, connected %v; want 5001, 5001, %d, true",
			len(f.keys), f.events, f.last.Revision, f.last.Connected, last)
	}
	if f.batches < 2 {
		t.Error("the snapshot came in one batch, want pages")
	}
	empty := Follow(t, h.Store, "/none/")
	empty.InSync()
	empty.equal(map[string]string{})
}

func testChanges(t *testing.T, h Harness) {
	Put(t, h.Store, "/a/1", "1")
	Put(t, h.Store, "/b/1", "1")
	f := Follow(t, h.Store, "/a/", "/b/")
	f.InSync()
	f.Events()
	r := Commit(t, h.Other, op("/a/1", "2", store.AnyRevision), op("/b/2", "new", 0), store.Op{Path: "/b/1", If: store.AnyRevision})
	f.Reaches(r)
	f.equal(map[string]string{"/a/1": "2", "/b/2": "new"})
	if n := f.Events(); n != 3 {
		t.Errorf("%d events, want 3", n)
	}
	if f.keys["/a/1"].Revision != r || f.keys["/b/2"].Revision != r {
		t.Errorf("events have revisions %v, want %d", f.keys, r)
	}
	// Gone and back: the new one is reported.
	Delete(t, h.Other, "/a/1")
	f.Reaches(Put(t, h.Other, "/a/1", "2"))
	f.equal(map[string]string{"/a/1": "2", "/b/2": "new"})
}

// testCoalescing: Follow fails if a batch has a key twice; in the end there
// is the last value, whatever was skipped.
func testCoalescing(t *testing.T, h Harness) {
	f := Follow(t, h.Store, "/c/")
	f.InSync()
	f.Events()
	var last int64
	for i := range 300 {
		last = Put(t, h.Other, fmt.Sprintf("/c/%d", i%3), fmt.Sprint(i))
		if i%7 == 0 {
			last = Delete(t, h.Other, fmt.Sprintf("/c/%d", i%3))
		}
	}
	f.Reaches(last)
	f.equal(List(t, h.Other, "/c/"))
}

func testNextEnds(t *testing.T, h Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	w := h.Store.Watch(ctx, "/x/")
	short, done := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer done()
	var err error
	for err == nil {
		_, err = w.Next(short)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next after its time: %v", err)
	}
	// The watch goes on.
	last := Put(t, h.Other, "/x/1", "1")
	for b := (store.Batch{}); b.Revision < last; {
		if b, err = w.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if _, err = w.Next(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("Next after the end of the watch: %v", err)
	}
}

// testUnrelated: the revision follows writes that nobody watches.
func testUnrelated(t *testing.T, h Harness) {
	f := Follow(t, h.Store, "/a/", "/b/")
	f.InSync()
	f.Events()
	begun := time.Now()
	f.Reaches(Put(t, h.Other, "/other", "x"))
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v, want about a second at most", took)
	}
	if n := f.Events(); n != 0 {
		t.Errorf("%d events, want none", n)
	}
}

// testRevisionCoversAllPrefixes: each transaction writes the same number under
// both prefixes; a batch whose revision covers it must have brought both.
func testRevisionCoversAllPrefixes(t *testing.T, h Harness) {
	f := Follow(t, h.Store, "/a/", "/b/")
	f.InSync()
	const rounds = 300
	revisions := make([]int64, rounds)
	written := make(chan int64)
	go func() {
		defer close(written)
		for i := range rounds {
			v := fmt.Sprint(i)
			ops := []store.Op{op("/a/n", v, store.AnyRevision), op("/b/n", v, store.AnyRevision)}
			if i%3 == 0 {
				ops = ops[i%2 : i%2+1]
			}
			r, err := h.Other.Commit(t.Context(), ops...)
			if err != nil {
				return
			}
			written <- r
		}
	}()
	for i := range rounds {
		r, ok := <-written
		if !ok {
			t.Fatal("the writer failed")
		}
		revisions[i] = r
		if i%10 == 0 {
			f.Reaches(r)
		}
		for j := i; j >= 0; j-- {
			if revisions[j] > f.last.Revision {
				continue
			}
			for _, path := range []string{"/a/n", "/b/n"} {
				if j%3 != 0 && f.keys[path].Revision < revisions[j] {
					t.Fatalf("revision %d was reported, %s of revision %d was not", f.last.Revision, path, revisions[j])
				}
			}
			break
		}
	}
	f.Reaches(revisions[rounds-1])
	f.equal(List(t, h.Other, ""))
}

// Promise B15: without a store the watcher waits and says so.
func testWatchBeforeConnection(t *testing.T, h Harness) {
	Put(t, h.Other, "/a/1", "1")
	h.Disconnect()
	f := Follow(t, h.Store, "/a/")
	f.Until("word that there is no connection", func() bool { return f.batches > 0 })
	if f.last.Connected || f.last.InSync || len(f.keys) != 0 {
		t.Fatalf("without a connection: %+v", f.last)
	}
	h.Reconnect()
	f.InSync()
	f.equal(map[string]string{"/a/1": "1"})
	if !f.last.Connected {
		t.Error("in sync and not connected")
	}
}

// testAway: what happened while the connection was lost, and meanwhile too,
// is reported once, and nothing else.
func testAway(t *testing.T, h Harness, meanwhile func()) {
	for i := range 3000 {
		if i%100 == 0 {
			var ops []store.Op
			for j := range 100 {
				ops = append(ops, op(fmt.Sprintf("/a/%04d", i+j), "0", 0))
			}
			Commit(t, h.Other, ops...)
		}
	}
	Put(t, h.Other, "/b/stays", "0")
	f := Follow(t, h.Store, "/a/", "/b/")
	f.InSync()
	f.Events()
	h.Disconnect()
	f.Until("disconnection", func() bool { return !f.last.Connected })
	Put(t, h.Other, "/a/0000", "1")
	Delete(t, h.Other, "/a/0001")
	Delete(t, h.Other, "/a/0002")
	Put(t, h.Other, "/a/0002", "back")
	Put(t, h.Other, "/a/new", "1")
	Put(t, h.Other, "/a/brief", "1")
	Delete(t, h.Other, "/a/brief")
	meanwhile()
	last := Put(t, h.Other, "/b/new", "1")
	meanwhile()
	h.Reconnect()
	f.Until("connection", func() bool { return f.last.Connected })
	f.Reaches(last)
	f.equal(under(List(t, h.Other, ""), "/a/", "/b/"))
	if n := f.Events(); n != 5 {
		t.Errorf("%d events, want 5: unchanged keys are not reported", n)
	}
	// And it goes on as before.
	f.Reaches(Put(t, h.Other, "/a/0000", "2"))
	f.equal(under(List(t, h.Other, ""), "/a/", "/b/"))
}

func testCompactionWhileConnected(t *testing.T, h Harness) {
	Put(t, h.Other, "/a/1", "0")
	f := Follow(t, h.Store, "/a/")
	f.InSync()
	for i := range 20 {
		Put(t, h.Other, "/a/1", fmt.Sprint(i))
		h.Compact()
	}
	f.Reaches(Delete(t, h.Other, "/a/1"))
	f.equal(map[string]string{})
}

// testHistories: random writes, lost connections and compactions; each watch
// ends with what is in the store.
func testHistories(t *testing.T, h Harness) {
	rnd := rand.New(rand.NewPCG(1, 2))
	prefixes := []string{"/a/", "/b/", "/c/x"}
	followers := []*Follower{Follow(t, h.Store, prefixes...), Follow(t, h.Store, "/a/"), Follow(t, h.Other, prefixes[1:]...)}
	var last int64
	write := func() {
		var ops []store.Op
		for _, n := range rnd.Perm(40)[:1+rnd.IntN(5)] {
			o := store.Op{Path: fmt.Sprintf("/%c/x%d", 'a'+n%4, n), If: store.AnyRevision, Delete: rnd.IntN(3) == 0}
			if !o.Delete {
				o.Value = fmt.Appendf(nil, "%d", rnd.IntN(5))
			}
			ops = append(ops, o)
		}
		last = Commit(t, h.Other, ops...)
	}
	for round := range 8 {
		for range 40 {
			write()
		}
		if round%2 == 0 {
			h.Disconnect()
		}
		for range 20 {
			write()
		}
		if rnd.IntN(2) == 0 {
			h.Compact()
		}
		if round%4 == 0 {
			followers[0].Until("disconnection", func() bool { return !followers[0].last.Connected })
		}
		h.Reconnect()
		if round%3 == 0 {
			followers[rnd.IntN(2)].Reaches(last)
		}
	}
	all := List(t, h.Other, "")
	for i, p := range [][]string{prefixes, {"/a/"}, prefixes[1:]} {
		followers[i].Reaches(last)
		followers[i].equal(under(all, p...))
	}
}
