package ctl

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tortie/api"
	"tortie/store"
)

const (
	// waitLease is how long the request to report outlives this process.
	waitLease = 10 * time.Second
	// recheck is how often a host that is alive but has reported nothing is
	// looked at again.
	recheck = time.Second
)

// waiter follows what the hosts enforce.
type waiter struct {
	store    store.Store
	revision int64
	applied  map[string]int64  // host → the revision it enforces
	silent   map[string]string // hosts that are alive but report nothing → their status key
}

// request puts the leased key that makes agents report at once. It is there
// until release is called, or this process is gone.
func request(ctx context.Context, s store.Store) (release func(), err error) {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	path := api.WaitPath(hex.EncodeToString(id))
	leaseCtx, cancel := context.WithCancel(ctx)
	lease, err := s.Grant(leaseCtx, waitLease)
	if err == nil {
		_, err = s.Commit(ctx, store.Op{Path: path, Value: []byte("{}"), If: store.AnyRevision, Lease: lease})
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("ask the hosts to report: %w", err)
	}
	return func() {
		// Also after an interrupt; if it fails, the lease removes the key.
		ctx, end := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer end()
		_, _ = s.Commit(ctx, store.Op{Path: path, Delete: true, If: store.AnyRevision})
		cancel()
	}, nil
}

// waitEnforced returns when every live host enforces the revision, and how many
// hosts those are. At ctx's deadline it returns an error that names the others.
func waitEnforced(ctx context.Context, s store.Store, revision int64) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &waiter{store: s, revision: revision, applied: map[string]int64{}, silent: map[string]string{}}
	if err := w.findAlive(ctx); err != nil {
		return 0, err
	}
	hosts := s.Watch(ctx, api.AppliedRoot)
	inSync := false
	for {
		next, end := context.WithTimeout(ctx, recheck)
		batch, err := hosts.Next(next)
		end()
		switch {
		case ctx.Err() != nil:
			return 0, w.unmet(ctx.Err())
		case err == nil:
			w.take(batch)
			inSync = inSync || batch.InSync
		case !errors.Is(err, context.DeadlineExceeded):
			return 0, err
		}
		if !inSync {
			continue
		}
		// Only when nothing else holds things up is it of interest whether
		// the silent hosts are still alive.
		if len(w.behind()) == 0 {
			if err := w.forgetDead(ctx); err != nil {
				return 0, err
			}
			if len(w.silentHosts()) == 0 {
				return len(w.applied), nil
			}
		}
	}
}

// findAlive finds the hosts whose agent is alive. Below the prefix there is
// also the status of every endpoint, so it is read once and not followed.
func (w *waiter) findAlive(ctx context.Context) error {
	entries, _, err := w.store.List(ctx, api.FelixRoot)
	if err != nil {
		return fmt.Errorf("find live hosts: %w", err)
	}
	for _, e := range entries {
		parts := strings.Split(strings.TrimPrefix(e.Path, api.FelixRoot), "/")
		if len(parts) == 4 && parts[1] == "host" && parts[3] == "status" {
			w.silent[parts[2]] = e.Path
		}
	}
	return nil
}

// forgetDead drops those of the silent hosts whose liveness key is gone.
func (w *waiter) forgetDead(ctx context.Context) error {
	for _, host := range w.silentHosts() {
		path := w.silent[host]
		entries, _, err := w.store.List(ctx, path)
		if ctx.Err() != nil {
			return w.unmet(ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("look at host %s: %w", host, err)
		}
		if !slices.ContainsFunc(entries, func(e store.Entry) bool { return e.Path == path }) {
			delete(w.silent, host)
		}
	}
	return nil
}

// silentHosts are those that are alive and report nothing.
func (w *waiter) silentHosts() []string {
	var hosts []string
	for host := range w.silent {
		if _, reports := w.applied[host]; !reports {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// behind are the hosts that report an older revision.
func (w *waiter) behind() []string {
	var hosts []string
	for host, at := range w.applied {
		if at < w.revision {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

func (w *waiter) take(batch store.Batch) {
	for _, e := range batch.Events {
		host, ok := api.ParseAppliedPath(e.Path)
		if !ok {
			continue
		}
		if e.Deleted {
			delete(w.applied, host)
			continue
		}
		var report api.Applied
		// What cannot be read says nothing that could be relied on.
		if json.Unmarshal(e.Value, &report) != nil {
			report.Revision = 0
		}
		w.applied[host] = report.Revision
	}
}

// unmet says who does not enforce the revision.
func (w *waiter) unmet(cause error) error {
	var who []string
	for _, host := range w.behind() {
		who = append(who, fmt.Sprintf("%s (enforces %d)", host, w.applied[host]))
	}
	for _, host := range w.silentHosts() {
		who = append(who, host+" (alive, reports nothing)")
	}
	why := "given up waiting"
	if errors.Is(cause, context.DeadlineExceeded) {
		why = "time is up"
	}
	if len(who) == 0 {
		return fmt.Errorf("%s: no answer from the datastore about the hosts", why)
	}
	return fmt.Errorf("%s: revision %d is not enforced by %s", why, w.revision, strings.Join(who, ", "))
}
