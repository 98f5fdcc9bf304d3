package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Event says what other processes did to the ruleset.
type Event struct {
	Ours    bool // our tables were changed, or notifications were lost: Resync and Apply
	Foreign bool // chains or rules of other tables were: what Foreign says may differ
}

// foreignPause is the least time between two events that are Foreign only. A
// program that commits all the time must not cost us as much.
const foreignPause = time.Second

// Monitor watches the ruleset until ctx ends; the channel is closed then, or
// when the socket fails. What was not received yet is merged into one event.
// Commits of t itself are not reported. What others committed since the last
// Apply read the kernel back, if one did, is the first event.
//
// The kernel prepares a notification for each element of a commit as soon as
// anybody listens, at many times the cost of the element itself. So the first
// Apply, which may be large, is best done before.
func (t *Tables) Monitor(ctx context.Context) (<-chan Event, error) {
	m := &monitor{out: make(chan Event, 1), buf: make([]byte, 64<<10)}
	if err := m.listen(t.conn); err != nil {
		return nil, fmt.Errorf("monitor nftables: %w", err)
	}
	if t.applied {
		gen, err := t.conn.generation()
		if err != nil {
			_ = m.nl.Close()
			return nil, fmt.Errorf("monitor nftables: %w", err)
		}
		if gen != t.conn.gen {
			m.send(Event{Ours: true, Foreign: true})
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = m.nl.SetReadDeadline(time.Unix(1, 0)) })
	go func() {
		defer close(m.out)
		defer func() { _ = m.nl.Close() }()
		defer stop()
		m.run(ctx)
	}()
	return m.out, nil
}

// monitor reads notifications on a goroutine of its own.
type monitor struct {
	nl   *netlink.Conn
	out  chan Event
	buf  []byte
	next time.Time // when a Foreign event may be sent
	held bool      // one waits for that
}

// listen joins the group, on the socket's namespace, with a filter that drops
// the notifications of our own commits before they take room.
func (m *monitor) listen(c *conn) (err error) {
	if m.nl, err = c.sibling(); err != nil {
		return err
	}
	// Word 3 of a message is the port that caused it, in host order; the
	// filter loads it as if it were big-endian.
	port := binary.BigEndian.Uint32(native32(c.port))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: port},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	raw, err := m.nl.SyscallConn()
	if err == nil {
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		ctl := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
		})
		err = errors.Join(ctl, err)
	}
	err = errors.Join(err, m.nl.SetReadBuffer(8<<20), m.nl.JoinGroup(unix.NFNLGRP_NFTABLES))
	if err != nil {
		_ = m.nl.Close()
	}
	return err
}

func (m *monitor) run(ctx context.Context) {
	raw, err := m.nl.SyscallConn()
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		n := 0
		var rerr error
		ctl := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), m.buf, unix.MSG_DONTWAIT)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		switch {
		case ctl != nil && m.held && ctx.Err() == nil: // the pause is over
			m.held = false
			m.send(Event{Foreign: true})
			if m.nl.SetReadDeadline(time.Time{}) != nil {
				return
			}
		case ctl != nil:
			return
		case rerr == unix.ENOBUFS:
			m.send(Event{Ours: true, Foreign: true})
		case rerr != nil:
			return
		default:
			m.take(readNotifications(m.buf[:n]))
		}
	}
}

// take passes an event on, or keeps it for later if it is Foreign only.
func (m *monitor) take(e Event) {
	now := time.Now()
	if e.Foreign && !e.Ours && now.Before(m.next) {
		if !m.held && m.nl.SetReadDeadline(m.next) == nil {
			m.held = true
		}
		return
	}
	if e != (Event{}) {
		m.send(e)
	}
}

// send merges e into what the receiver has not taken yet.
func (m *monitor) send(e Event) {
	if e.Foreign {
		m.next = time.Now().Add(foreignPause)
	}
	select {
	case old := <-m.out:
		e.Ours, e.Foreign = e.Ours || old.Ours, e.Foreign || old.Foreign
	default:
	}
	m.out <- e
}

// readNotifications tells from a datagram what was changed. Elements of
// foreign sets are no concern of ours.
func readNotifications(b []byte) (e Event) {
	for len(b) > 0 {
		m, rest, err := nextMessage(b)
		if err != nil {
			return Event{Ours: true, Foreign: true}
		}
		b = rest
		typ := m.typ & 0xff
		if m.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || typ == unix.NFT_MSG_NEWGEN {
			continue
		}
		fam, attrs := m.nfAttrs()
		name := ""
		// The table's name is attribute 1 of every message.
		if at, v, _, ok := nextAttr(attrs); ok && at == unix.NFTA_TABLE_NAME {
			name = attrString(v)
		}
		switch {
		case name == TableName && (fam == inet || fam == arp):
			e.Ours = true
		case typ <= unix.NFT_MSG_DELRULE:
			e.Foreign = true
		}
	}
	return e
}
