package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler answers from the loop's state; each request is a function that the
// loop runs.
func (p *process) handler() http.Handler {
	mux := http.NewServeMux()
	text := func(show func(context.Context) (string, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var body string
			var err error
			if !p.do(r.Context(), func() { body, err = show(r.Context()) }) {
				err = errEnding
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = w.Write([]byte(body))
		}
	}
	mux.HandleFunc("GET /show/peers", text(p.showPeers))
	mux.HandleFunc("GET /show/routes", text(p.showRoutes))
	mux.HandleFunc("GET /show/problems", text(p.showProblems))
	mux.HandleFunc("GET /health", p.serveHealth)
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(p.stats), promhttp.HandlerOpts{}))
	return mux
}

var errEnding = errors.New("the process is about to end, or does not answer")

// askTimeout bounds how long a request waits for the loop.
const askTimeout = 10 * time.Second

// do has the loop run f, and reports whether it did.
func (p *process) do(ctx context.Context, f func()) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	done := make(chan struct{})
	select {
	case p.ask <- func() { f(); close(done) }:
		<-done
		return true
	case <-ctx.Done():
		return false
	}
}

// health is the body of /health.
type health struct {
	Ready       bool      `json:"ready"`
	Waiting     string    `json:"waiting,omitempty"` // why it is not ready
	InSync      bool      `json:"inSync"`
	Early       bool      `json:"fromSnapshot"` // following what the store said to the last process
	Connected   bool      `json:"storeConnected"`
	Revision    int64     `json:"revision"`
	Sessions    int       `json:"sessions"`
	Established int       `json:"established"`
	Restarting  bool      `json:"restarting"`
	Exported    int       `json:"exported"`
	Imported    int       `json:"imported"`
	Pending     int       `json:"pending"`
	LastLoop    time.Time `json:"lastLoop"`
	Problems    []string  `json:"problems,omitempty"`
}

func (p *process) serveHealth(w http.ResponseWriter, r *http.Request) {
	h := health{Waiting: errEnding.Error()}
	p.do(r.Context(), func() { h = p.health(r.Context()) })
	w.Header().Set("Content-Type", "application/json")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(h)
}
