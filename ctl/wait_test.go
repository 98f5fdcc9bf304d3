package ctl

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
)

func put(t *testing.T, s store.Store, ops ...store.Op) int64 {
	t.Helper()
	revision, err := s.Commit(t.Context(), ops...)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func alive(host string) store.Op {
	return store.Op{Path: api.LivenessPath("east", host), Value: []byte("{}"), If: store.AnyRevision}
}

func gone(path string) store.Op { return store.Op{Path: path, Delete: true, If: store.AnyRevision} }

// TestWaitFollowsHosts: not one moment before the last live host has reported
// the revision does the wait end, and hosts that come and go meanwhile count.
func TestWaitFollowsHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		revision := put(t, s, report("h1", 1), report("h2", 1), alive("h1"), alive("h3"), alive("h4"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		done := make(chan int, 1)
		go func() {
			hosts, err := waitEnforced(ctx, s, revision)
			if err != nil {
				t.Error(err)
			}
			done <- hosts
		}()
		for _, step := range []struct {
			what string
			op   store.Op
		}{
			{"h1 reports an older revision", report("h1", revision-1)},
			{"h1 enforces it", report("h1", revision)},
			{"h5 comes, and is behind", report("h5", revision-1)},
			{"h3 enforces it", report("h3", revision+7)},
			{"h4, which said nothing, is dead", gone(api.LivenessPath("east", "h4"))},
			{"another key of a host", store.Op{Path: api.AppliedRoot + "h9/other", Value: []byte("{}"), If: store.AnyRevision}},
			{"h2 is dead", gone(api.AppliedPath("h2"))},
		} {
			put(t, s, step.op)
			<-time.After(5 * time.Second) // of the bubble's clock
			synctest.Wait()
			select {
			case <-done:
				t.Fatalf("the wait ended after: %s", step.what)
			default:
			}
		}
		put(t, s, report("h5", revision))
		if hosts := <-done; hosts != 3 {
			t.Errorf("%d hosts, want h1, h3 and h5", hosts)
		}
	})
}

// TestWaitGivesUp: at the deadline the hosts that do not enforce the revision
// are named, also when the datastore does not answer any more.
func TestWaitGivesUp(t *testing.T) {
	const who = "time is up: revision 9 is not enforced by a (enforces 2), b (enforces 3), d (alive, reports nothing)"
	for name, disconnect := range map[string]bool{"connected": false, "disconnected": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := memory.New()
				put(t, s, report("b", 3), report("a", 2), report("c", 9), alive("d"))
				if disconnect {
					time.AfterFunc(time.Second, s.Disconnect)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				start := time.Now()
				if _, err := waitEnforced(ctx, s, 9); err == nil || err.Error() != who {
					t.Errorf("got %v\nwant %s", err, who)
				}
				if took := time.Since(start); took != 30*time.Second {
					t.Errorf("gave up after %v", took)
				}
			})
		})
	}
}
