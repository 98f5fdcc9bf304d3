package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// announcements are what the kernel says of one subsystem in a namespace. It
// says so before the call that makes the change returns; so what was announced
// before something else was is already here when that is read.
type announcements struct {
	h    *testHost
	fd   int
	seen []syscall.NetlinkMessage
}

func (h *testHost) announcements(family int, groups ...int) *announcements {
	h.t.Helper()
	a := &announcements{h: h}
	var err error
	h.ns.Do(func() {
		if a.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family); err != nil {
			return
		}
		if err = unix.Bind(a.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return
		}
		for _, g := range groups {
			if err = unix.SetsockoptInt(a.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				return
			}
		}
		limit := unix.NsecToTimeval(timeout.Nanoseconds())
		err = unix.SetsockoptTimeval(a.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = unix.Close(a.fd) })
	return a
}

// has says whether a message of a type with some bytes was announced so far;
// it reads until there is none left, or, if it is to wait, until there is one.
func (a *announcements) has(typ uint16, text []byte, wait bool) bool {
	a.h.t.Helper()
	flags := unix.MSG_DONTWAIT
	if wait {
		flags = 0
	}
	for {
		for _, m := range a.seen {
			if m.Header.Type == typ && bytes.Contains(m.Data, text) {
				return true
			}
		}
		if !a.read(flags) {
			return false
		}
	}
}

// read adds what is announced to seen; it is false where there is nothing.
func (a *announcements) read(flags int) bool {
	a.h.t.Helper()
	b := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(a.fd, b, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			a.h.t.Fatal(err)
		}
		messages, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			a.h.t.Fatal(err)
		}
		a.seen = append(a.seen, messages...)
		return true
	}
}

// An endpoint that appears has its policy in the kernel before its route; of
// one that goes, the route is gone before the policy.
func TestOrderAroundApply(t *testing.T) {
	const newElement = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	const deleteElement = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELSETELEM
	s := newScenario(t)
	s.run()
	late := s.guest()
	addresses := []netip.Addr{netip.MustParseAddr(late.v4), netip.MustParseAddr(late.v6)}
	for round := range 20 {
		tables := s.announcements(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		routes := s.announcements(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		appeared := s.put(late.key, late.bound(`{"role":"client"}`))
		for _, address := range addresses {
			if !routes.has(unix.RTM_NEWROUTE, address.AsSlice(), true) {
				t.Fatalf("round %d: no route to %s", round, address)
			}
			if !tables.has(newElement, []byte(late.iface), false) {
				t.Errorf("round %d: the route to %s is there before its policy", round, address)
			}
		}
		s.settle(appeared)
		gone := s.delete(late.key)
		if !tables.has(deleteElement, []byte(late.iface), true) {
			t.Fatalf("round %d: %s is still in the tables", round, late.iface)
		}
		for _, address := range addresses {
			if !routes.has(unix.RTM_DELROUTE, address.AsSlice(), false) {
				t.Errorf("round %d: policy is gone before the route to %s", round, address)
			}
		}
		s.settle(gone)
	}
}

// While changes come faster than they are applied, what the kernel has is never
// older than the revision that the agent says it has applied.
func TestAppliedRevision(t *testing.T) {
	s := newScenario(t)
	s.run()
	portOf := regexp.MustCompile(`proto-src 0x([0-9a-f]{4}) .*GlobalNetworkPolicy//servers/Ingress/0`)
	revisions := map[uint64]int64{} // by port
	port := uint64(20000)
	change := func() int64 {
		port++
		rule := fmt.Sprintf(`{"action":"Allow","protocol":"TCP","destination":{"ports":[%d]}}`, port)
		revisions[port] = s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, rule, allow))
		return revisions[port]
	}
	s.settle(change())
	states := map[int64]bool{}
	for range 60 {
		for range 5 {
			change()
		}
		applied := s.health().AppliedRevision
		states[applied] = true
		table := s.ns.Run(t, "nft", "list", "table", "inet", "tortie")
		found := portOf.FindStringSubmatch(table)
		if found == nil {
			t.Fatalf("no port of the rule in the kernel: %s", table)
		}
		has, err := strconv.ParseUint(found[1], 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range revisions {
			if r > revisions[has] && r <= applied {
				t.Errorf("revision %d is said to be applied; the kernel has %d and not %d", applied, revisions[has], r)
			}
		}
	}
	if len(states) < 20 {
		t.Errorf("only %d applied revisions were seen", len(states))
	}
}
