package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// notice is what a subscription delivers: messages, or that some were lost.
type notice struct {
	messages []syscall.NetlinkMessage
	lost     bool
}

// subscribe delivers notifications of the calling thread's namespace until
// ctx ends; the channel is closed then.
func subscribe(ctx context.Context, groups ...uint) (<-chan notice, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to route notifications: %w", err)
	}
	if err := s.SetReceiveBufferSize(receiveBuffer, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("subscribe to route notifications: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Close)
	out := make(chan notice)
	go func() {
		defer close(out)
		defer stop()
		for {
			messages, from, err := s.Receive()
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, unix.EINTR) || err == nil && from.Pid != 0 {
				continue
			}
			select {
			case out <- notice{messages: messages, lost: err != nil}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// mailbox holds what the monitor found until the loop takes it: the latest
// state of each object, nil for one that is not there.
type mailbox struct {
	mu      sync.Mutex
	changes map[object]*entry
	lost    bool
}

func (b *mailbox) take() (map[object]*entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changes, lost := b.changes, b.lost
	b.changes, b.lost = nil, false
	return changes, lost
}

// Monitor notices what others do to our routes and neighbours until ctx ends.
// When something is received from the channel, Apply has work to do, which it
// knows of. (The kernel does not tell of proxy entries.) Call it once.
func (r *Routes) Monitor(ctx context.Context) (<-chan struct{}, error) {
	notices, err := subscribe(ctx, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return nil, err
	}
	wake := make(chan struct{}, 1)
	go func() {
		for n := range notices {
			if !r.note(n) {
				continue
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}()
	return wake, nil
}

// note puts what matters of a notice into the mailbox.
func (r *Routes) note(n notice) (news bool) {
	b := r.mail
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changes == nil {
		b.changes = map[object]*entry{}
	}
	b.lost = b.lost || n.lost
	news = n.lost
	for _, m := range n.messages {
		if m.Header.Pid == r.conn.port {
			continue // we did it
		}
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			news = r.noteRoute(m) || news
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			news = r.noteNeighbour(m) || news
		}
	}
	return news
}

func (r *Routes) noteRoute(m syscall.NetlinkMessage) bool {
	route, ok := parseRoute(m.Data)
	if !ok {
		return false
	}
	o := object{prefix: route.prefix, metric: route.metric}
	have, mine := r.have.get(o)
	switch {
	case m.Header.Type == unix.RTM_NEWROUTE && r.owns(route):
		return r.noteEntry(o, entry{index: route.index}, mine, have)
	case mine && (m.Header.Type == unix.RTM_DELROUTE) == (route.protocol == r.opts.Protocol):
		r.mail.changes[o] = nil // deleted, or replaced by another program's
		return true
	}
	return false
}

func (r *Routes) noteNeighbour(m syscall.NetlinkMessage) bool {
	n, ok := parseNeighbour(m.Data)
	if !ok {
		return false
	}
	o, have, mine := r.have.neighbour(n)
	if !mine {
		return false
	}
	if m.Header.Type == unix.RTM_DELNEIGH || !n.permanent {
		r.mail.changes[o] = nil
		return true
	}
	return r.noteEntry(o, n.entry(), mine, have)
}

// noteEntry notes that o is e now, if that is news.
func (r *Routes) noteEntry(o object, e entry, mine bool, have entry) bool {
	_, noted := r.mail.changes[o]
	if mine && e == have && !noted {
		return false
	}
	r.mail.changes[o] = &e
	return true
}
