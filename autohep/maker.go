package autohep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"tortie/api"
	"tortie/store"
)

const (
	requestTimeout = 5 * time.Second
	minBackoff     = time.Second
	maxBackoff     = time.Minute
)

// Maker makes the endpoints of one host. Run does the work; the setters say what
// there is.
type Maker struct {
	store store.Store
	host  string
	log   *slog.Logger
	wake  chan struct{} // has room for one: something changed

	mu         sync.Mutex
	config     *api.AutoHostEndpoints
	node       *api.Node
	interfaces []Interface
	have       map[string]*api.HostEndpoint // of any host, by name
	inSync     bool
	problems   []string
}

// New returns a maker for a host.
func New(s store.Store, host string, log *slog.Logger) *Maker {
	return &Maker{store: s, host: host, log: log, wake: make(chan struct{}, 1), have: map[string]*api.HostEndpoint{}}
}

// SetConfig sets what is to be made, nil for nothing.
func (m *Maker) SetConfig(c *api.AutoHostEndpoints) { m.set(func() { m.config = c }) }

// SetNode sets the host's Node, nil if there is none.
func (m *Maker) SetNode(n *api.Node) { m.set(func() { m.node = n }) }

// SetInterfaces sets the interfaces that there are.
func (m *Maker) SetInterfaces(list []Interface) { m.set(func() { m.interfaces = list }) }

// SetEndpoint sets a host endpoint, nil if it is gone.
func (m *Maker) SetEndpoint(name string, h *api.HostEndpoint) {
	m.set(func() {
		if h == nil {
			delete(m.have, name)
		} else {
			m.have[name] = h
		}
	})
}

// InSync says that all that there is was set.
func (m *Maker) InSync() { m.set(func() { m.inSync = true }) }

func (m *Maker) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Problems are what could not be made, in order.
func (m *Maker) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.problems)
}

// Run makes endpoints until ctx ends.
func (m *Maker) Run(ctx context.Context) {
	for failed := 0; ctx.Err() == nil; {
		wake, pause := m.wake, time.Hour
		if err := m.round(ctx); err == nil {
			failed = 0
		} else if ctx.Err() == nil {
			m.log.Warn("host endpoints were not made", "err", err)
			pause = min(minBackoff<<min(failed, 6), maxBackoff)
			failed++
			wake = nil // what comes does not shorten this
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-wake:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// round makes what is missing, mends what is not as it should be, and deletes
// what should not be.
func (m *Maker) round(ctx context.Context) error {
	puts, deletes := m.plan()
	var errs []error
	for _, h := range puts {
		errs = append(errs, m.put(ctx, h))
	}
	for _, name := range deletes {
		errs = append(errs, m.delete(ctx, name))
	}
	return errors.Join(errs...)
}

// plan says what to do; and notes the problems with that.
func (m *Maker) plan() (puts []*api.HostEndpoint, deletes []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.inSync {
		return nil, nil
	}
	want, problems := Wanted(m.config, m.node, m.interfaces)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch have := m.have[name]; {
		case have == nil:
			puts = append(puts, want[name])
		case !isMade(have, m.host):
			problems = append(problems, fmt.Sprintf("host endpoint %s was made by somebody else: it stays as it is", name))
		case !same(have, want[name]):
			puts = append(puts, want[name])
		}
	}
	unclear := m.config != nil && !m.config.Clear()
	for _, name := range slices.Sorted(maps.Keys(m.have)) {
		if unclear {
			break // one of these may be what was meant; without it its interface would be open
		}
		if want[name] == nil && isMade(m.have[name], m.host) {
			deletes = append(deletes, name)
		}
	}
	for _, p := range problems {
		if !slices.Contains(m.problems, p) {
			m.log.Warn("host endpoints", "problem", p)
		}
	}
	m.problems = problems
	return puts, deletes
}

// put stores an endpoint in the place of none, or of one that was made here.
func (m *Maker) put(ctx context.Context, h *api.HostEndpoint) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	version, err := m.version(ctx, h.Key())
	var done store.Outcome
	switch {
	case errors.Is(err, store.ErrNotFound):
		done, err = store.Create(ctx, m.store, h)
	case err == nil:
		h.Meta.ResourceVersion = version
		done, err = store.Replace(ctx, m.store, h)
	}
	if err == nil {
		m.log.Info("host endpoint made", "endpoint", h.Meta.Name, "did", done.Did)
	}
	return err
}

func (m *Maker) delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := api.Key{Kind: api.KindHostEndpoint, Name: name}
	version, err := m.version(ctx, key)
	if err == nil {
		_, err = store.Delete(ctx, m.store, key, version)
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil:
		m.log.Info("host endpoint deleted", "endpoint", name)
	}
	return err
}

// version is that of an endpoint that was made here; another is an error.
func (m *Maker) version(ctx context.Context, key api.Key) (string, error) {
	e, err := store.Find(ctx, m.store, key)
	if err != nil {
		return "", err
	}
	o, _, err := api.Decode(e.Path, e.Value)
	if h, ok := o.(*api.HostEndpoint); err != nil || !ok || !isMade(h, m.host) {
		return "", errors.Join(fmt.Errorf("host endpoint %s was made by somebody else", key.Name), err)
	}
	return strconv.FormatInt(e.Revision, 10), nil
}
