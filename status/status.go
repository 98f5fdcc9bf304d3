package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"tortie/api"
	"tortie/store"
)

// Options says for which host a Writer writes, and how often.
type Options struct {
	Host   string
	Region string // OpenStack region; empty for none
	// Interval is the time between signs of life, 0 for none; TTL is how
	// long one is good for after the writer has died.
	Interval, TTL time.Duration
	// EndpointReporting says whether to write the state of endpoints. One
	// that changes twice within Delay is written once.
	EndpointReporting bool
	Delay             time.Duration
	Log               *slog.Logger
}

// Writer writes the status of one host.
type Writer struct {
	store store.Store
	opts  Options
	begun time.Time
	wake  chan struct{} // has room for one: there is something to do

	input inputs
	live  liveness // owned by Run

	// The endpoints' statuses that the store has, by path; owned by Run. They
	// are read anew when listed is false or at the time of audit, which is
	// after 180 Delays.
	have      map[string]stored
	listed    bool
	audit     time.Time
	addresses addresses // owned by Run

	// Paths that changed again within Delay wait for the time of rest.
	resting map[string]struct{}
	rest    time.Time
}

// stored is a status that the store has.
type stored struct {
	status string
	at     time.Time // when it was written here
}

// inputs is what the setters leave for Run.
type inputs struct {
	sync.Mutex
	want    map[string]string   // path → status
	changed map[string]struct{} // paths that were set
	all     bool                // compare all paths
	inSync  bool                // want is complete
	address []byte              // the value for the host's addresses, nil for none
	known   bool                // address was set
	recheck bool                // what the store has of it is to be read
	applied int64
	waiting bool // somebody waits for applied
}

// New returns a writer; Run does the work.
func New(s store.Store, opts Options) *Writer {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.TTL <= 0 {
		opts.TTL = 90 * time.Second
	}
	return &Writer{
		store: s, opts: opts, begun: time.Now(), wake: make(chan struct{}, 1),
		input:   inputs{want: map[string]string{}, changed: map[string]struct{}{}},
		resting: map[string]struct{}{},
	}
}

// Set notes the state of an endpoint: api.StatusUp, StatusDown or StatusError,
// or "" where the endpoint is gone.
func (w *Writer) Set(key api.Key, status string) {
	path := w.path(key)
	if path == "" {
		return
	}
	w.input.Lock()
	defer w.input.Unlock()
	if status == "" {
		delete(w.input.want, path)
	} else {
		w.input.want[path] = status
	}
	w.input.changed[path] = struct{}{}
	w.signal()
}

// InSync notes that the agent is in sync and all endpoints of the host are
// these, so that the statuses of others are of endpoints that are gone.
func (w *Writer) InSync(all map[api.Key]string) {
	want := make(map[string]string, len(all))
	for key, status := range all {
		if path := w.path(key); path != "" {
			want[path] = status
		}
	}
	w.input.Lock()
	defer w.input.Unlock()
	w.input.want, w.input.inSync, w.input.all = want, true, true
	w.signal()
}

// SetApplied notes that all changes up to a revision of the store are in the
// kernel.
func (w *Writer) SetApplied(revision int64) {
	w.input.Lock()
	defer w.input.Unlock()
	w.input.applied = revision
	if w.input.waiting {
		w.signal()
	}
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

var escape = strings.NewReplacer("%", "%25", "/", "%2f")

// hostEndpoints is the prefix of host endpoints' statuses; it knows no region.
func (w *Writer) hostEndpoints() string { return "/calico/felix/v1/host/" + w.opts.Host + "/endpoint/" }

// path is where the status of an endpoint is stored; "" if it has no place.
func (w *Writer) path(key api.Key) string {
	if key.Kind == api.KindHostEndpoint {
		return w.hostEndpoints() + escape.Replace(key.Name)
	}
	path, err := api.EndpointStatusPath(w.opts.Region, w.opts.Host, key)
	if err != nil {
		w.opts.Log.Warn("the state of an endpoint cannot be reported", "err", err)
		return ""
	}
	return path
}

// endpointsPending says whether there are statuses to compare with the store's.
func (w *Writer) endpointsPending() bool {
	w.input.Lock()
	defer w.input.Unlock()
	return !w.listed || w.input.all || len(w.input.changed) > 0
}

// writeEndpoints makes the store's statuses what they should be, as far as
// they have changed on either side.
func (w *Writer) writeEndpoints(ctx context.Context) error {
	if !w.listed || !time.Now().Before(w.audit) {
		if err := w.list(ctx); err != nil {
			return err
		}
	}
	ops := w.difference()
	for _, batch := range store.Batches(ops) {
		if err := w.commit(ctx, batch); err != nil {
			for _, op := range ops {
				w.resting[op.Path] = struct{}{}
			}
			return fmt.Errorf("write the status of endpoints: %w", err)
		}
		for _, op := range batch {
			if op.Delete {
				delete(w.have, op.Path)
			} else {
				w.have[op.Path] = stored{readStatus(op.Value), time.Now()}
			}
		}
	}
	return nil
}

// list reads which statuses the store has for this host.
func (w *Writer) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	have := map[string]stored{}
	for _, prefix := range []string{api.EndpointStatusPrefix(w.opts.Region, w.opts.Host), w.hostEndpoints()} {
		entries, _, err := w.store.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("read the status of endpoints: %w", err)
		}
		for _, e := range entries {
			have[e.Path] = stored{status: readStatus(e.Value)}
		}
	}
	delay := max(w.opts.Delay, time.Second) * 180
	w.have, w.listed, w.audit = have, true, time.Now().Add(delay+rand.N(delay/10))
	w.input.Lock()
	defer w.input.Unlock()
	w.input.all = true
	return nil
}

// difference takes what was set and returns the writes it needs.
func (w *Writer) difference() []store.Op {
	in := &w.input
	in.Lock()
	defer in.Unlock()
	var ops []store.Op
	if !time.Now().Before(w.rest) {
		maps.Copy(in.changed, w.resting)
		clear(w.resting)
	}
	if in.all {
		for path := range in.want {
			in.changed[path] = struct{}{}
		}
		for path := range w.have {
			if in.inSync {
				in.changed[path] = struct{}{}
			}
		}
	}
	for path := range in.changed {
		want, wanted := in.want[path]
		have, exists := w.have[path]
		switch {
		case wanted == exists && want == have.status:
		case time.Since(have.at) < w.opts.Delay:
			if len(w.resting) == 0 {
				w.rest = time.Now().Add(w.opts.Delay)
			}
			w.resting[path] = struct{}{}
		case wanted:
			ops = append(ops, store.Op{Path: path, Value: encode(api.EndpointStatus{Status: want})})
		default:
			ops = append(ops, store.Op{Path: path, Delete: true})
		}
	}
	in.all, in.changed = false, map[string]struct{}{}
	return ops
}

// readStatus returns the status in a stored value, "" if it cannot be read.
func readStatus(value []byte) string {
	var s api.EndpointStatus
	_ = json.Unmarshal(value, &s) // s stays empty, which nobody wants
	return s.Status
}

func encode(v any) []byte {
	b, _ := json.Marshal(v) // of our own plain types: cannot fail
	return b
}
