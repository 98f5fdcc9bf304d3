package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

// Conntrack deletes connection tracking entries.
type Conntrack struct {
	socket *nl.SocketHandle
}

// Open returns a handle to the calling thread's namespace.
func Open() (*Conntrack, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &Conntrack{socket: &nl.SocketHandle{Socket: s}}, nil
}

// Close releases the handle.
func (c *Conntrack) Close() { c.socket.Close() }

// Delete deletes the entries in which one of addrs is an end, in either
// direction, and returns how many it deleted. It reads the table once for each
// family. An entry that has ended meanwhile is no failure.
func (c *Conntrack) Delete(ctx context.Context, addrs []netip.Addr) (int, error) {
	named := map[netip.Addr]struct{}{}
	families := map[byte]bool{}
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		if !a.IsValid() {
			continue // it would match what has no address
		}
		named[a] = struct{}{}
		if a.Is4() {
			families[unix.AF_INET] = true
		} else {
			families[unix.AF_INET6] = true
		}
	}
	n := 0
	var errs []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if !families[family] {
			continue
		}
		found, err := c.find(ctx, family, named)
		if err != nil {
			return n, err
		}
		for _, e := range found {
			err := c.delete(ctx, family, e)
			if err == nil {
				n++
			} else if !errors.Is(err, unix.ENOENT) && len(errs) < 5 {
				errs = append(errs, fmt.Errorf("delete connection %s: %w", e, err))
			}
		}
	}
	return n, errors.Join(errs...)
}

// entry is what identifies an entry: attributes as the kernel sent them. The
// zone is an attribute of its own, or lies within the tuple.
type entry struct {
	tuple, zone, id []byte
	source, dest    netip.Addr
}

func (e entry) String() string { return fmt.Sprintf("from %s to %s", e.source, e.dest) }

const dumpAttempts = 20

func (c *Conntrack) find(ctx context.Context, family byte, named map[netip.Addr]struct{}) ([]entry, error) {
	var found []entry
	err := error(nl.ErrDumpInterrupted)
	for i := 0; i < dumpAttempts && errors.Is(err, nl.ErrDumpInterrupted) && ctx.Err() == nil; i++ {
		found = nil
		req := c.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, family)
		err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(b []byte) bool {
			if e, ok := parse(b, named); ok {
				found = append(found, e)
			}
			return true
		})
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return found, nil
}

func (c *Conntrack) delete(ctx context.Context, family byte, e entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	req := c.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, family)
	b := nlattr.Append(nil, nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, e.tuple)
	if e.zone != nil {
		b = nlattr.Append(b, ctaZone, e.zone)
	}
	if e.id != nil { // another connection of the same tuple is not meant
		b = nlattr.Append(b, ctaID, e.id)
	}
	req.AddRawData(b)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

func (c *Conntrack) request(operation, flags int, family byte) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: c.socket}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

// Attributes of an entry that package nl does not name.
const (
	ctaID   = 12
	ctaZone = 18

	sizeofNfgenmsg = 4
)

// parse returns the entry if one of its ends is named. What it returns is
// copied, since the message is the socket's.
func parse(b []byte, named map[netip.Addr]struct{}) (entry, bool) {
	var e entry
	match := false
	if len(b) < sizeofNfgenmsg {
		return e, false
	}
	for typ, v := range nlattr.All(b[sizeofNfgenmsg:]) {
		switch typ {
		case nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY:
			source, dest := ends(v)
			_, a := named[source]
			_, b := named[dest]
			match = match || a || b
			if typ == nl.CTA_TUPLE_ORIG {
				e.tuple, e.source, e.dest = v, source, dest
			}
		case ctaZone:
			e.zone = v
		case ctaID:
			e.id = v
		}
	}
	if !match || len(e.tuple) == 0 {
		return entry{}, false
	}
	e.tuple = append([]byte(nil), e.tuple...)
	e.zone = append([]byte(nil), e.zone...)
	e.id = append([]byte(nil), e.id...)
	return e, true
}

// ends returns the addresses of a tuple.
func ends(tuple []byte) (source, dest netip.Addr) {
	for typ, v := range nlattr.All(tuple) {
		if typ != nl.CTA_TUPLE_IP {
			continue
		}
		for typ, v := range nlattr.All(v) {
			switch typ {
			case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
				source, _ = netip.AddrFromSlice(v)
			case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
				dest, _ = netip.AddrFromSlice(v)
			}
		}
	}
	return source, dest
}
