package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"tortie/api"
	"tortie/internal/socket"
)

var errNotInSync = errors.New("not in sync with the datastore yet")

// serve opens the agent's socket.
func (l *loop) serve(ctx context.Context, path string) (*socket.Server, error) {
	const plain = "text/plain; charset=utf-8"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /show/desired", l.page(ctx, plain, func(_ context.Context, w io.Writer) error { return l.want.WriteText(w) }))
	mux.HandleFunc("GET /show/kernel", l.page(ctx, plain, l.showKernel))
	mux.HandleFunc("GET /show/diff", l.page(ctx, plain, l.showDiff))
	mux.HandleFunc("GET /show/problems", l.page(ctx, plain, l.showProblems))
	mux.HandleFunc("GET /show/denied", l.page(ctx, plain, l.showDenied))
	mux.HandleFunc("GET /show/config", l.page(ctx, plain, l.showConfig))
	mux.HandleFunc("GET /health", l.page(ctx, "application/json", l.showHealth))
	mux.HandleFunc("GET "+socket.CountersPage, l.page(ctx, "application/json", l.showCounters))
	mux.Handle("GET /metrics", l.metrics.handler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	return socket.Serve(path, mux)
}

// page makes a handler of what show writes. The loop itself runs show, between
// two batches.
func (l *loop) page(ctx context.Context, contentType string, show func(context.Context, io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var text strings.Builder
		var err error
		done := make(chan struct{})
		select {
		case l.asks <- func() { err = show(r.Context(), &text); close(done) }:
			<-done
		case <-r.Context().Done():
			return
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, text.String())
	}
}

func (l *loop) showKernel(ctx context.Context, w io.Writer) error {
	if l.kernel == nil {
		return errNotInSync
	}
	tables, err := l.kernel.nft.Dump(ctx)
	if err != nil {
		return err
	}
	routes, err := l.kernel.routes.Dump(ctx)
	if err != nil {
		return err
	}
	qdiscs, err := l.kernel.qdiscs.Dump(ctx)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, tables+routes+qdiscs)
	for _, f := range l.foreign {
		_, _ = fmt.Fprintf(w, "foreign %s; cure: accept traffic of workload interfaces there, or remove the chain\n", f)
	}
	return err
}

// showDiff prints what the kernel lacks or has too much, without mending it.
func (l *loop) showDiff(ctx context.Context, w io.Writer) error {
	if l.kernel == nil {
		return errNotInSync
	}
	tables, err := l.kernel.nft.Diff(ctx, l.want)
	if err != nil {
		return err
	}
	routes, err := l.kernel.routes.Diff(ctx, l.want)
	if err != nil {
		return err
	}
	qdiscs, err := l.kernel.qdiscs.Diff(ctx, l.want)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, tables+routes+qdiscs)
	return err
}

func (l *loop) showProblems(_ context.Context, w io.Writer) error {
	var lines []string
	for _, s := range l.settings {
		lines = append(lines, s+"\n")
	}
	for _, s := range l.audited {
		lines = append(lines, "audit: "+s+"\n")
	}
	for _, s := range l.maker.Problems() {
		lines = append(lines, s+"\n")
	}
	for key, problems := range l.problems {
		for _, p := range problems {
			lines = append(lines, fmt.Sprintf("%s %s\n", key, p))
		}
	}
	for key, tier := range l.calc.Tierless() {
		lines = append(lines, fmt.Sprintf("%s spec.tier: %q: there is no such tier: the policy comes after those of all tiers that there are\n", key, tier))
	}
	for key, e := range l.want.Endpoints.All() {
		if _, ok := l.troubled[key]; ok {
			lines = append(lines, fmt.Sprintf("%s not in the kernel: %v\n", key, l.trouble(key, e)))
		}
		if e.Error != "" {
			lines = append(lines, fmt.Sprintf("%s %s\n", key, e.Error))
		}
		if e.Warning != "" {
			lines = append(lines, fmt.Sprintf("%s %s\n", key, e.Warning))
		}
	}
	slices.Sort(lines)
	_, err := io.WriteString(w, strings.Join(lines, ""))
	return err
}

func (l *loop) showConfig(_ context.Context, w io.Writer) error {
	for _, s := range l.cfg.Explain() {
		if _, err := fmt.Fprintf(w, "%s = %s (%s)\n", s.Name, s.Value, s.Source); err != nil {
			return err
		}
	}
	return nil
}

// healthReport is the body of /health. Ready means that the kernel enforces
// what the store said when it was last reached.
type healthReport struct {
	Ready           bool     `json:"ready"`
	Waiting         string   `json:"waiting,omitempty"`
	Connected       bool     `json:"datastoreConnected"`
	InSync          bool     `json:"inSync"`
	DatastoreReady  bool     `json:"datastoreReady"`
	Revision        int64    `json:"revision"`
	AppliedRevision int64    `json:"appliedRevision"`
	AppliedAgo      float64  `json:"appliedSecondsAgo,omitempty"`
	Failure         string   `json:"failure,omitempty"`
	Foreign         []string `json:"foreignDrops,omitempty"`
	Problems        int      `json:"objectsWithProblems"`
}

func (l *loop) showHealth(_ context.Context, w io.Writer) error {
	return json.NewEncoder(w).Encode(l.health())
}

// showReady fails while the host does not enforce what the store says.
func (l *loop) showReady(_ context.Context, w io.Writer) error {
	if h := l.health(); !h.Ready {
		return fmt.Errorf("not ready: %s%s", h.Waiting, h.Failure)
	}
	_, err := io.WriteString(w, "ready\n")
	return err
}

func (l *loop) health() healthReport {
	h := healthReport{
		Connected: l.connected, InSync: l.inSync, DatastoreReady: l.ready,
		Revision: l.revision, AppliedRevision: l.applied, Problems: len(l.problems) + len(l.settings),
	}
	switch {
	case !l.connected && !l.inSync:
		h.Waiting = "for the datastore to answer"
	case !l.inSync:
		h.Waiting = "for the datastore's snapshot"
	case !l.ready:
		h.Waiting = "for " + api.Key{Kind: api.KindClusterInformation, Name: "default"}.String() + " to say that the datastore is ready"
	case l.lastApply.IsZero():
		h.Waiting = "for the first apply"
	}
	if !l.lastApply.IsZero() {
		h.AppliedAgo = time.Since(l.lastApply).Seconds()
	}
	if l.failure != nil {
		h.Failure = l.failure.Error()
	}
	for _, f := range l.foreign {
		h.Foreign = append(h.Foreign, f.String())
	}
	h.Ready = h.Waiting == "" && h.Failure == ""
	return h
}
