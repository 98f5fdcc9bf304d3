package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"tortie/store"
)

// A request for progress makes the server say how far all prefixes have been
// followed, so that writes to one prefix, or to keys that nobody watches, do
// not hold back the revision of the others. It costs the server a lock.
const (
	progressBehind = 100 * time.Millisecond // least time between requests while one prefix is behind another
	progressIdle   = time.Second
)

// allWatches is the watch id of a response that is about all watches of its
// stream.
const allWatches = -1

// follow opens one stream for all prefixes, each from the revision after what
// was seen, and queues what comes until the stream breaks. The client's own
// watcher is not used: it hides a lost connection and has no bound on what it
// buffers.
func (w *watcher) follow(ctx context.Context) (time.Duration, error) {
	st, err := w.openStream(ctx)
	if err != nil {
		return 0, err
	}
	behind := make(chan struct{}, 1)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		requestProgress(ctx, st, behind)
	}()
	defer func() {
		cancel()
		<-done
	}()
	begun := time.Now()
	for {
		r, err := st.Recv()
		if err != nil {
			return time.Since(begun), fmt.Errorf("watch: %w", translate(err))
		}
		lags, err := w.receive(r)
		if err != nil {
			return time.Since(begun), err
		}
		if lags {
			select {
			case behind <- struct{}{}:
			default:
			}
		}
	}
}

// openStream creates one watch per prefix and waits until the server has
// confirmed all: before that, an answer about progress could overtake events.
func (w *watcher) openStream(ctx context.Context) (pb.Watch_WatchClient, error) {
	c, err := w.store.etcd(ctx)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	// Without a leader the member would go on and send nothing.
	ctx = clientv3.WithRequireLeader(ctx)
	st, err := pb.NewWatchClient(c.ActiveConnection()).Watch(ctx, maxReceive)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", translate(err))
	}
	for i, prefix := range w.prefixes {
		start, end := keyRange(prefix)
		create := &pb.WatchCreateRequest{
			Key: start, RangeEnd: end,
			WatchId: int64(i + 1), StartRevision: w.seen[i] + 1,
			ProgressNotify: true, Fragment: true,
		}
		// An error of Send is explained by Recv.
		_ = st.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	}
	for created := 0; created < len(w.prefixes); {
		r, err := st.Recv()
		if err != nil {
			return nil, fmt.Errorf("watch: %w", translate(err))
		}
		if r.Created && !r.Canceled {
			created++
			continue
		}
		if _, err := w.receive(r); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// requestProgress asks for progress every progressIdle, and soon when a
// prefix is known to be behind another.
func requestProgress(ctx context.Context, st pb.Watch_WatchClient, behind <-chan struct{}) {
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	idle := time.NewTicker(progressIdle)
	defer idle.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-idle.C:
		case <-behind:
			select {
			case <-ctx.Done():
				return
			case <-rest.C:
				rest.Reset(progressBehind)
			}
		}
		if st.Send(request) != nil {
			return // Recv says why
		}
	}
}

// receive queues one response. It says whether a prefix is behind another.
func (w *watcher) receive(r *pb.WatchResponse) (behind bool, err error) {
	switch {
	case r.CompactRevision != 0:
		return false, fmt.Errorf("watch: %w", store.ErrCompacted)
	case r.Canceled:
		return false, fmt.Errorf("watch: refused by the server: %w", errors.New(r.CancelReason))
	case len(r.Events) == 0 && r.WatchId == allWatches:
		for i := range w.seen {
			w.seen[i] = max(w.seen[i], r.Header.GetRevision())
		}
	case r.WatchId < 1 || r.WatchId > int64(len(w.seen)):
		return false, fmt.Errorf("watch: response for unknown watch %d", r.WatchId)
	case len(r.Events) == 0:
		w.seen[r.WatchId-1] = max(w.seen[r.WatchId-1], r.Header.GetRevision())
	case !r.Fragment:
		// The header's revision may be ahead of what was sent; a revision's
		// events come in one response, the last of them not a fragment.
		last := r.Events[len(r.Events)-1].Kv.ModRevision
		w.seen[r.WatchId-1] = max(w.seen[r.WatchId-1], last)
	}
	return w.enqueue(r.Events), nil
}

// enqueue queues events and the revision that all prefixes have reached.
func (w *watcher) enqueue(events []*mvccpb.Event) (behind bool) {
	oldest, newest := int64(math.MaxInt64), int64(0)
	for _, seen := range w.seen {
		oldest, newest = min(oldest, seen), max(newest, seen)
	}
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ev := range events {
		if ev.Type == mvccpb.Event_DELETE {
			q.remove(string(ev.Kv.Key), ev.Kv.ModRevision)
		} else {
			q.put(entry(ev.Kv))
		}
	}
	q.advance(oldest)
	q.signal()
	return oldest < newest
}
