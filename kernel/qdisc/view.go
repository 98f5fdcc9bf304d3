package qdisc

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
	"tortie/kernel/link"
)

// socket asks the kernel.
type socket struct{ handle *nl.SocketHandle }

func openSocket() (*socket, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &socket{&nl.SocketHandle{Socket: s}}, nil
}

func (s *socket) request(typ uint16, flags int, body []byte) ([][]byte, error) {
	req := nl.NewNetlinkRequest(int(typ), flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: s.handle}
	req.AddRawData(body)
	return req.Execute(unix.NETLINK_ROUTE, 0)
}

// write sends a request that changes something.
func (s *socket) write(typ uint16, flags int, body []byte) error {
	_, err := s.request(typ, flags|unix.NLM_F_ACK, body)
	return err
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

// view is what the kernel has of links and qdiscs.
type view struct {
	devices map[string]device
	roots   map[int]discipline // by index of the link; those that the kernel gave it by itself are left out
	ingress map[int]string     // kind of the qdisc at a link's ingress
}

func (s *socket) read(ctx context.Context) (*view, error) {
	v := &view{devices: map[string]device{}, roots: map[int]discipline{}, ingress: map[int]string{}}
	list, err := s.dump(ctx, unix.RTM_GETLINK, nlattr.Append32(ifinfo(0, 0), unix.IFLA_EXT_MASK, skipStats))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, b := range list {
		if d, ok := parseDevice(b); ok {
			v.devices[d.name] = d
		}
	}
	list, err = s.dump(ctx, unix.RTM_GETQDISC, tcmsg(0, 0, 0, 0))
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, b := range list {
		q, ok := parseDiscipline(b)
		switch {
		case !ok:
		case q.parent == rootParent && q.handle != 0:
			v.roots[q.index] = q
		case q.parent == clsactParent:
			v.ingress[q.index] = q.kind
		}
	}
	return v, nil
}

// filters lists those of one direction of a link's clsact or ingress qdisc.
func (s *socket) filters(ctx context.Context, index int, parent uint32) ([]filter, error) {
	list, err := s.dump(ctx, unix.RTM_GETTFILTER, tcmsg(index, 0, parent, 0))
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	var out []filter
	for _, b := range list {
		if f, ok := parseFilter(b); ok {
			out = append(out, f)
		}
	}
	return out, nil
}

// isOurs says whether a link is one that we made. Between its making and its
// mark there is a moment.
func (d device) isOurs() bool {
	return d.kind == "ifb" && strings.HasPrefix(d.name, link.Prefix) && (d.alias == link.Alias || d.alias == "" && !d.up)
}

// ifbName names the ifb of an interface.
func ifbName(name string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return fmt.Sprintf("%s%012x", link.Prefix, h.Sum64()>>16)
}
