package nft

import (
	"context"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

// A monitor that begins after the first Apply misses nothing: what others
// committed in between is its first event, and our own commits are none.
func TestMonitorAfterApply(t *testing.T) {
	ns := nstest.New(t)
	tables, err := Open(Options{WorkloadPrefixes: []string{"cali"}, HostAction: HostDrop})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tables.Close() }()
	want := desired.New()
	apply := func() {
		t.Helper()
		if _, err := tables.Apply(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	want.Sets.Set(desired.SetKey{ID: 7, Family: 4}, desired.Set{Selector: "all()"})
	apply()
	if err := tables.BumpEpoch(t.Context()); err != nil {
		t.Fatal(err)
	}
	watch := func() <-chan Event {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		events, err := tables.Monitor(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return events
	}
	select {
	case e := <-watch():
		t.Errorf("nobody else committed, but: %+v", e)
	default:
	}
	ns.Run(t, "nft", "add", "table", "inet", "other")
	select {
	case e := <-watch():
		if !e.Ours || !e.Foreign {
			t.Errorf("event %+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("a commit before the monitor was missed")
	}
}
