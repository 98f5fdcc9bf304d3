package etcd

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tortie/store"
)

func put(q *queue, path string, revision int64) {
	q.put(store.Entry{Path: path, Value: fmt.Appendf(nil, "%d", revision), Revision: revision})
}

// collected prints what is to be collected: path@revision, with - for deleted.
func collected(q *queue) []string {
	b, _ := q.take()
	var got []string
	for _, ev := range b.Events {
		sign := ""
		if ev.Deleted {
			sign = "-"
		}
		got = append(got, fmt.Sprintf("%s%s@%d", sign, ev.Path, ev.Revision))
	}
	return got
}

func TestQueueCoalesces(t *testing.T) {
	tests := []struct {
		name   string
		before func(*queue) // collected before
		then   func(*queue)
		want   []string
	}{
		{"last value only", nil, func(q *queue) { put(q, "a", 2); put(q, "b", 3); put(q, "a", 4) }, []string{"a@4", "b@3"}},
		{"same revision again", func(q *queue) { put(q, "a", 2) }, func(q *queue) { put(q, "a", 2) }, nil},
		{"came and went", nil, func(q *queue) { put(q, "a", 2); q.remove("a", 3) }, nil},
		{"came and went among others", nil, func(q *queue) {
			put(q, "a", 2)
			put(q, "b", 3)
			put(q, "c", 4)
			q.remove("a", 5)
			put(q, "c", 6)
			put(q, "b", 7)
		}, []string{"c@6", "b@7"}},
		{"came, went and came", nil, func(q *queue) { put(q, "a", 2); q.remove("a", 3); put(q, "a", 4) }, []string{"a@4"}},
		{"changed and went", func(q *queue) { put(q, "a", 2) }, func(q *queue) { put(q, "a", 3); q.remove("a", 4) }, []string{"-a@4"}},
		{"went and came", func(q *queue) { put(q, "a", 2) }, func(q *queue) { q.remove("a", 3); put(q, "a", 4) }, []string{"a@4"}},
		{"went, came and went", func(q *queue) { put(q, "a", 2) }, func(q *queue) {
			q.remove("a", 3)
			put(q, "a", 4)
			q.remove("a", 5)
		}, []string{"-a@5"}},
		{"older news late", func(q *queue) { put(q, "a", 5) }, func(q *queue) { put(q, "a", 3); q.remove("a", 4) }, nil},
		{"unknown one went", nil, func(q *queue) { q.remove("a", 3) }, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := newQueue()
			if test.before != nil {
				test.before(q)
				q.take()
			}
			test.then(q)
			if diff := cmp.Diff(test.want, collected(q)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(q.slots) != 0 || len(q.events) != 0 {
				t.Error("something is left in the queue")
			}
		})
	}
	q := newQueue()
	for i := range int64(10000) {
		path := fmt.Sprint(i % 7)
		if i%3 == 0 {
			q.remove(path, i)
		} else {
			put(q, path, i)
		}
		if len(q.events) > 7 || len(q.slots) > 7 || len(q.known) > 7 {
			t.Fatalf("seven keys take %d events, %d slots", len(q.events), len(q.slots))
		}
	}
}

func TestQueueListsAgain(t *testing.T) {
	q := newQueue()
	list := func(replaced bool, at int64, entries ...store.Entry) {
		t.Helper()
		q.beginListing(replaced)
		if err := q.page(t.Context(), entries); err != nil {
			t.Fatal(err)
		}
		q.endListing(at)
	}
	e := func(path string, r int64) store.Entry { return store.Entry{Path: path, Revision: r} }
	list(false, 10, e("a", 1), e("b", 2), e("c", 3))
	if diff := cmp.Diff([]string{"a@1", "b@2", "c@3"}, collected(q)); diff != "" {
		t.Error(diff)
	}
	list(false, 20, e("a", 1), e("c", 15), e("d", 16))
	if diff := cmp.Diff([]string{"c@15", "d@16", "-b@20"}, collected(q)); diff != "" {
		t.Error(diff)
	}
	// A listing that broke off leaves nothing wrong behind.
	q.beginListing(false)
	if err := q.page(t.Context(), []store.Entry{e("a", 1), e("x", 21)}); err != nil {
		t.Fatal(err)
	}
	list(false, 30, e("a", 1), e("d", 16))
	if diff := cmp.Diff([]string{"-c@30"}, collected(q)); diff != "" {
		t.Error(diff)
	}
	// In another store equal revisions mean nothing.
	list(true, 5, e("a", 1), e("d", 3))
	b, _ := q.take()
	if len(b.Events) != 2 || b.Revision != 5 {
		t.Errorf("after a replacement: %d events at revision %d, want 2 at 5", len(b.Events), b.Revision)
	}
}

// TestSnapshotWaitsForConsumer: no page is added while a page waits.
func TestSnapshotWaitsForConsumer(t *testing.T) {
	q := newQueue()
	q.beginListing(false)
	page := func(n int) []store.Entry {
		entries := make([]store.Entry, pageKeys)
		for i := range entries {
			entries[i] = store.Entry{Path: fmt.Sprintf("%d/%d", n, i), Revision: 1}
		}
		return entries
	}
	if err := q.page(t.Context(), page(1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := q.page(ctx, page(2)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a page was added to a full queue: %v", err)
	}
	added := make(chan error)
	go func() { added <- q.page(t.Context(), page(2)) }()
	if b, ok := q.take(); !ok || len(b.Events) != pageKeys || b.InSync {
		t.Fatalf("%d events, in sync %v", len(b.Events), b.InSync)
	}
	if err := <-added; err != nil {
		t.Fatal(err)
	}
}
