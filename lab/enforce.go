package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"tortie/api"
	"tortie/store"
)

// Enforce writes objects and returns how long after that began each host had
// said that its kernel enforces them. It asks the hosts to say so at once.
func (l *Lab) Enforce(ctx context.Context, objects ...api.Object) (map[string]time.Duration, error) {
	return l.Enforced(ctx, func(ctx context.Context) (int64, error) { return l.Put(ctx, objects...) })
}

// Enforced is Enforce for any write to the datastore. write returns the
// revision of it.
func (l *Lab) Enforced(ctx context.Context, write func(context.Context) (int64, error)) (map[string]time.Duration, error) {
	s, err := l.Store()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	lease, err := s.Grant(ctx, startTimeout)
	if err == nil {
		_, err = s.Commit(ctx, store.Op{Path: api.WaitPath(newUID()), Value: []byte("{}"), If: store.AnyRevision, Lease: lease})
	}
	if err != nil {
		return nil, fmt.Errorf("ask the hosts to report: %w", err)
	}
	watch := s.Watch(ctx, api.AppliedRoot)
	for inSync := false; !inSync; {
		batch, err := watch.Next(ctx)
		if err != nil {
			return nil, err
		}
		inSync = batch.InSync
	}
	// Having been asked, they say what they enforce and then rest for 100 ms.
	if err := pause(ctx, 150*time.Millisecond); err != nil {
		return nil, err
	}
	start := time.Now()
	revision, err := write(ctx)
	if err != nil {
		return nil, err
	}
	took := map[string]time.Duration{}
	for len(took) < len(l.state.Hosts) {
		batch, err := watch.Next(ctx)
		if err != nil {
			return took, fmt.Errorf("only %d of %d hosts enforce revision %d: %w", len(took), len(l.state.Hosts), revision, err)
		}
		for _, e := range batch.Events {
			host, ok := api.ParseAppliedPath(e.Path)
			var report api.Applied
			if ok && !e.Deleted && json.Unmarshal(e.Value, &report) == nil && report.Revision >= revision && took[host] == 0 {
				took[host] = time.Since(start)
			}
		}
	}
	return took, nil
}

// Slowest is the longest of the times.
func Slowest(took map[string]time.Duration) time.Duration {
	var slowest time.Duration
	for _, d := range took {
		slowest = max(slowest, d)
	}
	return slowest
}
