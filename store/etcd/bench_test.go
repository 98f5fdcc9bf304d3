package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tortie/store"
)

// benchStore is a client of a server in this process with n keys of 1 kB
// below /a/.
func benchStore(b *testing.B, n int) *Store {
	b.Helper()
	server, err := Serve(ServeConfig{Dir: filepath.Join(b.TempDir(), "data"), Listen: []string{"http://127.0.0.1:0"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Close)
	s, err := Open(Config{Endpoints: server.Endpoints()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	value := []byte(strings.Repeat("x", 1000))
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = store.Op{Path: fmt.Sprintf("/a/%040d", i), Value: value, If: store.AnyRevision}
	}
	for _, batch := range store.Batches(ops) {
		if _, err := s.Commit(context.Background(), batch...); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// BenchmarkSnapshot: 100,000 keys until in sync.
func BenchmarkSnapshot(b *testing.B) {
	s := benchStore(b, 100_000)
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		w := s.Watch(ctx, "/a/", "/b/")
		for {
			batch, err := w.Next(ctx)
			if err != nil {
				b.Fatal(err)
			}
			if batch.InSync {
				break
			}
		}
		cancel()
	}
}

// BenchmarkPutToNext: from the return of a write to that of Next with it;
// negative where Next is first.
func BenchmarkPutToNext(b *testing.B) {
	s := benchStore(b, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := s.Watch(ctx, "/a/", "/b/")
	next := func() (store.Batch, time.Time) {
		batch, err := w.Next(ctx)
		if err != nil {
			b.Fatal(err)
		}
		return batch, time.Now()
	}
	for {
		if batch, _ := next(); batch.InSync {
			break
		}
	}
	var took []time.Duration
	for b.Loop() {
		written := make(chan time.Time, 1)
		go func() {
			_, err := s.Commit(ctx, store.Op{Path: "/b/1", Value: []byte("x"), If: store.AnyRevision})
			if err != nil {
				b.Error(err)
			}
			written <- time.Now()
		}()
		batch, at := next()
		for len(batch.Events) == 0 {
			batch, at = next()
		}
		took = append(took, at.Sub(<-written))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e6, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e6, "p99-ms")
}
