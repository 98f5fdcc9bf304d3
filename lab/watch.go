package lab

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Metrics asks a process of a host for its figures; those with labels have
// them in their name.
func (l *Lab) Metrics(ctx context.Context, host, process string) (map[string]float64, error) {
	text, err := l.Get(ctx, host, process, "/metrics")
	if err != nil {
		return nil, err
	}
	figures := map[string]float64{}
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err == nil {
				figures[line[:i]] = v
			}
		}
	}
	return figures, nil
}

// Updates is how many BGP UPDATE messages all hosts have sent and received.
func (l *Lab) Updates(ctx context.Context) (int, error) {
	sum := 0.0
	for _, h := range l.state.Hosts {
		figures, err := l.Metrics(ctx, h.Name, BGP)
		if err != nil {
			return 0, err
		}
		for _, name := range []string{"tortie_bgp_updates_sent_total", "tortie_bgp_updates_received_total"} {
			v, ok := figures[name]
			if !ok {
				return 0, fmt.Errorf("bgp of %s has no figure %s", h.Name, name)
			}
			sum += v
		}
	}
	return int(sum), nil
}

// WatchRoutes counts all changes of routes in the kernels of all hosts until
// the function that it returns is called, which returns the count.
func (l *Lab) WatchRoutes() (count func() int, err error) {
	var changes atomic.Int64
	var all sync.WaitGroup
	done := make(chan struct{})
	for _, h := range l.state.Hosts {
		ns, err := netns.GetFromName(l.namespace(h.Name))
		if err != nil {
			close(done)
			return nil, fmt.Errorf("watch routes of %s: %w", h.Name, err)
		}
		updates := make(chan netlink.RouteUpdate)
		err = netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{Namespace: &ns})
		_ = ns.Close()
		if err != nil {
			close(done)
			return nil, fmt.Errorf("watch routes of %s: %w", h.Name, err)
		}
		all.Go(func() {
			for range updates {
				changes.Add(1)
			}
		})
	}
	return func() int {
		close(done)
		all.Wait()
		return int(changes.Load())
	}, nil
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitFor waits, at most so long, until something is so.
func waitFor(ctx context.Context, limit time.Duration, so func() bool) error {
	for deadline := time.Now().Add(limit); !so(); {
		if time.Now().After(deadline) {
			return errors.New("time is up")
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
