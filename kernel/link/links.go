package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/internal/nlattr"
)

// Alias marks a link as ours, with a name that begins with Prefix.
const (
	Alias  = "tortie"
	Prefix = "tt-"
)

// Options of Links.
type Options struct {
	WorkloadPrefixes []string // of the names of workload interfaces; nil: cali, tap
	Log              *slog.Logger
	ProcSys          string // "": /proc/sys
}

// Links sets up the links of workloads.
type Links struct {
	opts   Options
	thread *thread
	socket *socket
	ipv6   bool

	resync  bool
	pending map[string]struct{} // names of links whose settings may be wrong
	links   map[string]int      // workload interfaces, as last heard
}

// Open returns a handle to the links of the calling thread's namespace.
func Open(opts Options) (*Links, error) {
	if opts.WorkloadPrefixes == nil {
		opts.WorkloadPrefixes = []string{"cali", "tap"}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.ProcSys == "" {
		opts.ProcSys = "/proc/sys"
	}
	s, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("open links: %w", err)
	}
	t, err := startThread()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("open links: %w", err)
	}
	l := &Links{
		opts: opts, thread: t, socket: s,
		resync: true, pending: map[string]struct{}{}, links: map[string]int{},
	}
	t.do(func() {
		_, err := os.Stat(filepath.Join(opts.ProcSys, "net/ipv6"))
		l.ipv6 = err == nil
	})
	return l, nil
}

// Close releases the handle. Settings stay.
func (l *Links) Close() {
	l.thread.stop()
	l.socket.close()
}

// Resync makes the next Apply look at all links.
func (l *Links) Resync() { l.resync = true }

// LinkChanged says that something happened to a link; index is 0 if it is gone.
func (l *Links) LinkChanged(name string, index int) {
	l.pending[name] = struct{}{}
	if l.links[name] = index; index == 0 || !l.isWorkload(name) {
		delete(l.links, name)
	}
}

func (l *Links) isWorkload(name string) bool {
	return slices.ContainsFunc(l.opts.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Apply makes the settings of workload interfaces right: of those that are
// bound to an endpoint, all; of the others, what guards the host. It returns
// how many it wrote. What fails is tried again by the next Apply; a link that
// is gone is no failure.
func (l *Links) Apply(ctx context.Context, want *desired.State) (int, error) {
	if l.resync {
		if err := l.readBack(ctx, want); err != nil {
			return 0, err
		}
	}
	for name := range want.Interfaces.Dirty() {
		l.pending[name] = struct{}{}
	}
	if len(l.pending) == 0 {
		return 0, nil
	}
	writes := 0
	var errs []error
	l.thread.do(func() {
		for name := range l.pending {
			n, err := l.applyLink(ctx, name, want)
			if writes += n; err == nil {
				delete(l.pending, name)
			} else if len(errs) < 5 {
				errs = append(errs, err)
			}
		}
	})
	return writes, errors.Join(errs...)
}

func (l *Links) readBack(ctx context.Context, want *desired.State) error {
	list, err := l.socket.links(ctx)
	if err != nil {
		return err
	}
	clear(l.links)
	for _, k := range list {
		if l.isWorkload(k.Name) {
			l.links[k.Name] = k.Index
			l.pending[k.Name] = struct{}{}
		}
	}
	for name := range want.Interfaces.All() {
		l.pending[name] = struct{}{}
	}
	l.resync = false
	return nil
}

// applyLink runs on the handle's thread.
func (l *Links) applyLink(ctx context.Context, name string, want *desired.State) (writes int, err error) {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return 0, nil // no link can have that name
	}
	var bound *desired.Interface
	index, known := l.links[name]
	if i, ok := want.Interfaces.Get(name); ok {
		bound, index = &i, i.Index
	} else if !known {
		return 0, nil
	}
	tentative := false
	for _, s := range l.settings(name, bound) {
		if err := ctx.Err(); err != nil {
			return writes, fmt.Errorf("set %s to %s: %w", s.Name, s.Value, err)
		}
		old, err := l.read(s.Name)
		if err == nil && old != s.Value {
			err = l.write(s)
			writes++
			tentative = tentative || strings.HasSuffix(s.Name, ".accept_dad")
		}
		if errors.Is(err, fs.ErrNotExist) && l.isGone(name) {
			return writes, nil
		}
		if err != nil {
			return writes, err
		}
	}
	if !tentative {
		return writes, nil
	}
	n, err := l.confirmAddress(index)
	if err != nil {
		err = fmt.Errorf("confirm the link-local address of %s: %w", name, err)
	}
	return writes + n, err
}

func (l *Links) isGone(name string) bool {
	_, err := os.Stat(filepath.Join(l.opts.ProcSys, "net/ipv4/conf", name))
	return errors.Is(err, fs.ErrNotExist)
}

// confirmAddress sets a link-local address again that is tentative because the
// link came up before accept_dad was off.
func (l *Links) confirmAddress(index int) (writes int, err error) {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	list, err := l.socket.request(unix.RTM_GETADDR, unix.NLM_F_DUMP, head)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, b := range list {
		a, ok := parseAddress(b)
		if !ok || a.index != index || !a.addr.IsLinkLocalUnicast() || a.flags&unix.IFA_F_TENTATIVE == 0 {
			continue
		}
		head[1] = byte(a.bits)
		head[3] = unix.RT_SCOPE_LINK
		body := nlattr.Append(head, unix.IFA_ADDRESS, a.addr.AsSlice())
		if _, err := l.socket.request(unix.RTM_DELADDR, unix.NLM_F_ACK, body); err != nil {
			return writes, err
		}
		body = nlattr.Append32(body, unix.IFA_FLAGS, unix.IFA_F_NODAD)
		if _, err := l.socket.request(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body); err != nil {
			return writes, err
		}
		writes++
	}
	return writes, nil
}

// Cleanup deletes the links that are ours.
func (l *Links) Cleanup(ctx context.Context) error {
	messages, err := l.socket.dump(ctx, unix.RTM_GETLINK, linkDump())
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, b := range messages {
		k, alias, ok := parseLink(b)
		if !ok || alias != Alias || !strings.HasPrefix(k.Name, Prefix) {
			continue
		}
		head := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(head[4:], uint32(k.Index))
		if _, err := l.socket.request(unix.RTM_DELLINK, unix.NLM_F_ACK, head); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", k.Name, err))
		}
	}
	return errors.Join(errs...)
}
