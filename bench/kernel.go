package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tortie/kernel/route"
)

// event is a kernel notification with the time it was read.
type event struct {
	typ  uint16
	data []byte
	at   time.Time
}

// nftNewElem is the type of the notification of new elements.
const nftNewElem = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM

// kernelWatch collects what the kernel announces of nftables and routes.
type kernelWatch struct {
	events chan event
	conns  []*netlink.Conn
}

func watchKernel() (*kernelWatch, error) {
	w := &kernelWatch{events: make(chan event, 1<<16)}
	for _, sub := range []struct {
		family int
		groups []uint32
	}{
		{unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}},
		{unix.NETLINK_ROUTE, []uint32{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}},
	} {
		c, err := netlink.Dial(sub.family, nil)
		if err != nil {
			return nil, fmt.Errorf("open netlink: %w", err)
		}
		w.conns = append(w.conns, c)
		if err := c.SetReadBuffer(64 << 20); err != nil {
			return nil, fmt.Errorf("netlink buffer: %w", err)
		}
		for _, g := range sub.groups {
			if err := c.JoinGroup(g); err != nil {
				return nil, fmt.Errorf("join netlink group: %w", err)
			}
		}
		go w.read(c)
	}
	return w, nil
}

func (w *kernelWatch) read(c *netlink.Conn) {
	for {
		msgs, err := c.Receive()
		if err != nil {
			return // closed
		}
		now := time.Now()
		for _, m := range msgs {
			w.events <- event{typ: uint16(m.Header.Type), data: m.Data, at: now}
		}
	}
}

func (w *kernelWatch) close() {
	for _, c := range w.conns {
		_ = c.Close()
	}
}

// sign is a notification that is waited for: its type, 0 for any, and bytes in
// it.
type sign struct {
	typ    uint16
	needle []byte
}

// drain forgets what was announced so far and returns how many of the
// notifications were of objects that are ours.
func (w *kernelWatch) drain() int {
	n := 0
	for {
		select {
		case e := <-w.events:
			if e.ours() {
				n++
			}
		default:
			return n
		}
	}
}

// ours leaves out the routes that the kernel itself makes, for link-local
// addresses say: their protocol is not one of ours. All tables here are ours.
func (e event) ours() bool {
	const protocolInRtmsg = 5
	if e.typ != unix.RTM_NEWROUTE && e.typ != unix.RTM_DELROUTE {
		return true
	}
	return len(e.data) > protocolInRtmsg && (e.data[protocolInRtmsg] == route.ProtocolLocal || e.data[protocolInRtmsg] == route.ProtocolLearned)
}

// wait returns when the last of the signs was seen.
func (w *kernelWatch) wait(timeout time.Duration, signs ...sign) (time.Time, error) {
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	left := append([]sign(nil), signs...)
	for {
		select {
		case e := <-w.events:
			for i, s := range left {
				if (s.typ == 0 || e.typ == s.typ) && bytes.Contains(e.data, s.needle) {
					left = append(left[:i], left[i+1:]...)
					break
				}
			}
			if len(left) == 0 {
				return e.at, nil
			}
		case <-limit.C:
			return time.Time{}, fmt.Errorf("not in the kernel after %s: %d of %d signs (first: type %#x, % x)", timeout, len(left), len(signs), left[0].typ, left[0].needle)
		}
	}
}
