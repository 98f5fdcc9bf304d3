package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// socket asks the kernel about links.
type socket struct{ handle *nl.SocketHandle }

func openSocket() (*socket, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	// Lets a list of addresses be asked for one link.
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		s.Close()
		return nil, err
	}
	return &socket{&nl.SocketHandle{Socket: s}}, nil
}

func (s *socket) close() { s.handle.Close() }

// request sends one request and returns the bodies of the answers.
func (s *socket) request(typ uint16, flags int, body []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(typ), flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.handle}
	req.AddRawData(body)
	return req.Execute(unix.NETLINK_ROUTE, 0)
}

// dumpAttempts bounds how often a list is read again that changed meanwhile.
const dumpAttempts = 20

func (s *socket) dump(ctx context.Context, typ uint16, body []byte) (out [][]byte, err error) {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out, err = s.request(typ, unix.NLM_F_DUMP, body)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// links returns all links, without addresses.
func (s *socket) links(ctx context.Context) ([]Link, error) {
	messages, err := s.dump(ctx, unix.RTM_GETLINK, linkDump())
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []Link
	for _, b := range messages {
		if k, _, ok := parseLink(b); ok {
			out = append(out, k)
		}
	}
	return out, nil
}

func (s *socket) addresses(ctx context.Context) (map[int][]netip.Addr, error) {
	messages, err := s.dump(ctx, unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int][]netip.Addr{}
	for _, b := range messages {
		if a, ok := parseAddress(b); ok {
			out[a.index] = append(out[a.index], a.addr)
		}
	}
	return out, nil
}
