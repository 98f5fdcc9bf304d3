package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tortie/api"
	"tortie/internal/socket"
)

var errNotInSync = errors.New("not in sync with the datastore yet")

// serve opens the agent's socket. What a page shows is read by the loop
// itself, between two batches.
func (l *loop) serve(ctx context.Context, path string) (*socket.Server, error) {
	mux := http.NewServeMux()
	page := func(pattern, contentType string, show func(context.Context, io.Writer) error) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			var text strings.Builder
			var err error
			done := make(chan struct{})
			ask := func() { err = show(r.Context(), &text); close(done) }
			select {
			case l.asks <- ask:
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
		})
	}
	const plain = "text/plain; charset=utf-8"
	page("/show/desired", plain, func(_ context.Context, w io.Writer) error { return l.want.WriteText(w) })
	page("/show/kernel", plain, l.showKernel)
	page("/show/problems", plain, l.showProblems)
	page("/show/config", plain, l.showConfig)
	page("/health", "application/json", l.health)
	gatherers := prometheus.Gatherers{l.metrics.registry, prometheus.DefaultGatherer}
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{}))
	return socket.Serve(path, mux)
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
	_, err = io.WriteString(w, tables+routes)
	for _, f := range l.foreign {
		_, _ = fmt.Fprintf(w, "foreign %s; cure: accept traffic of workload interfaces there, or remove the chain\n", f)
	}
	return err
}

func (l *loop) showProblems(_ context.Context, w io.Writer) error {
	var lines []string
	for key, problems := range l.problems {
		for _, p := range problems {
			lines = append(lines, fmt.Sprintf("%s %s\n", key, p))
		}
	}
	for key, e := range l.want.Endpoints.All() {
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

func (l *loop) health(_ context.Context, w io.Writer) error {
	h := healthReport{
		Connected: l.connected, InSync: l.inSync, DatastoreReady: l.ready,
		Revision: l.revision, AppliedRevision: l.applied, Problems: len(l.problems),
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
	return json.NewEncoder(w).Encode(h)
}
