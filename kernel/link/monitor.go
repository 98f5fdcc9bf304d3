package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Link is a network interface.
type Link struct {
	Name  string
	Index int
	Up    bool // able to carry packets
	MAC   [6]byte
	Addrs []netip.Addr // sorted

	admin bool // switched on
}

// Event is the latest state of a link, or of a name: Gone says that no link
// has it any more.
type Event struct {
	Link
	Gone bool
}

// Monitor follows links and their addresses. The first batch is all links
// there are; after that, each has the links that something happened to. Events
// that are not collected are merged by name. A link that went down and came
// back is reported, for it lost routes; so is one that was deleted and
// re-created, by its new index. If the kernel drops notifications, all links
// are reported again, and those that went meanwhile.
type Monitor struct {
	C <-chan []Event // closed when the context has ended
}

// receiveBuffer holds notifications until they are read, in bytes.
const receiveBuffer = 8 << 20

// Monitor starts a monitor in the calling thread's namespace, until ctx ends.
func (l *Links) Monitor(ctx context.Context) (*Monitor, error) {
	m, err := newMonitor(l.opts.Log)
	if err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	if err := m.list(ctx); err != nil {
		m.close()
		return nil, fmt.Errorf("watch links: %w", err)
	}
	out := make(chan []Event)
	go m.run(ctx, out)
	return &Monitor{C: out}, nil
}

type monitor struct {
	log           *slog.Logger
	notifications *nl.NetlinkSocket
	socket        *socket // for lists

	byIndex map[int]*Link
	byName  map[string]int
	told    map[string]struct{} // names that were reported as there
	news    []Event             // to be reported
	at      map[string]int      // position in news
}

func newMonitor(log *slog.Logger) (*monitor, error) {
	n, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, err
	}
	if err := n.SetReceiveBufferSize(receiveBuffer, true); err != nil {
		n.Close()
		return nil, err
	}
	s, err := openSocket()
	if err != nil {
		n.Close()
		return nil, err
	}
	return &monitor{
		log: log, notifications: n, socket: s,
		byIndex: map[int]*Link{}, byName: map[string]int{},
		told: map[string]struct{}{}, at: map[string]int{},
	}, nil
}

func (m *monitor) close() {
	m.notifications.Close()
	m.socket.close()
}

// notice is what the reader hands on: messages, or that some were lost.
type notice struct {
	messages []syscall.NetlinkMessage
	lost     bool
}

func (m *monitor) run(ctx context.Context, out chan<- []Event) {
	defer close(out)
	stop := context.AfterFunc(ctx, m.notifications.Close)
	defer stop()
	defer m.close()
	notices := make(chan notice)
	go m.receive(ctx, notices)
	for {
		var deliver chan<- []Event
		if len(m.news) > 0 {
			deliver = out
		}
		select {
		case deliver <- m.news:
			m.delivered()
		case n, ok := <-notices:
			if !ok {
				return
			}
			m.handle(ctx, n)
		}
	}
}

func (m *monitor) receive(ctx context.Context, notices chan<- notice) {
	defer close(notices)
	for {
		messages, from, err := m.notifications.Receive()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, unix.EINTR) || err == nil && from.Pid != 0 {
			continue
		}
		select {
		case notices <- notice{messages: messages, lost: err != nil}:
		case <-ctx.Done():
			return
		}
	}
}

func (m *monitor) handle(ctx context.Context, n notice) {
	if n.lost {
		m.log.Warn("notifications of links were lost; listing them again")
		if err := m.list(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("watch links", "err", err)
		}
		return
	}
	for _, msg := range n.messages {
		switch msg.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if k, _, ok := parseLink(msg.Data); ok && msg.Header.Type == unix.RTM_NEWLINK {
				m.setLink(k)
			} else if ok {
				m.deleteLink(k.Index)
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			if a, ok := parseAddress(msg.Data); ok {
				m.setAddress(a, msg.Header.Type == unix.RTM_NEWADDR)
			}
		}
	}
}

// list replaces what is known and reports everything.
func (m *monitor) list(ctx context.Context) error {
	links, err := m.socket.links(ctx)
	if err != nil {
		return err
	}
	addrs, err := m.socket.addresses(ctx)
	if err != nil {
		return err
	}
	old := m.byName
	m.byIndex, m.byName = map[int]*Link{}, map[string]int{}
	for _, k := range links {
		k.Addrs = addrs[k.Index]
		slices.SortFunc(k.Addrs, netip.Addr.Compare)
		m.byIndex[k.Index] = &k
		m.byName[k.Name] = k.Index
		m.changed(k.Name)
	}
	for name := range old {
		m.changed(name)
	}
	return nil
}

func (m *monitor) setLink(k Link) {
	old, known := m.byIndex[k.Index]
	if !known {
		old = &Link{}
		m.byIndex[k.Index] = old
	} else if old.Name != k.Name {
		m.forget(old.Name, k.Index)
	}
	same := known && old.Name == k.Name && old.Up == k.Up && old.admin == k.admin && old.MAC == k.MAC
	k.Addrs = old.Addrs
	*old = k
	m.byName[k.Name] = k.Index
	if !same {
		m.changed(k.Name)
	}
}

func (m *monitor) deleteLink(index int) {
	if old, ok := m.byIndex[index]; ok {
		delete(m.byIndex, index)
		m.forget(old.Name, index)
	}
}

// forget takes a name from a link, unless another has it by now.
func (m *monitor) forget(name string, index int) {
	if m.byName[name] == index {
		delete(m.byName, name)
		m.changed(name)
	}
}

func (m *monitor) setAddress(a address, present bool) {
	k, ok := m.byIndex[a.index]
	if !ok {
		return
	}
	i, has := slices.BinarySearchFunc(k.Addrs, a.addr, netip.Addr.Compare)
	if has == present {
		return
	}
	// A delivered slice is not changed.
	if k.Addrs = slices.Clone(k.Addrs); present {
		k.Addrs = slices.Insert(k.Addrs, i, a.addr)
	} else {
		k.Addrs = slices.Delete(k.Addrs, i, i+1)
	}
	m.changed(k.Name)
}

// changed brings news up to date for one name.
func (m *monitor) changed(name string) {
	i, noted := m.at[name]
	index, there := m.byName[name]
	_, told := m.told[name]
	switch {
	case !there && !told && noted: // came and went: the last takes its place
		last := len(m.news) - 1
		m.news[i] = m.news[last]
		m.at[m.news[i].Name] = i
		m.news = m.news[:last]
		delete(m.at, name)
		return
	case !there && !told:
		return
	case !noted:
		i = len(m.news)
		m.at[name] = i
		m.news = append(m.news, Event{})
	}
	if m.news[i] = (Event{Link: Link{Name: name}, Gone: true}); there {
		m.news[i] = Event{Link: *m.byIndex[index]}
	}
}

// delivered says that the receiver has news, which is its own now.
func (m *monitor) delivered() {
	for _, e := range m.news {
		if m.told[e.Name] = struct{}{}; e.Gone {
			delete(m.told, e.Name)
		}
	}
	m.news = nil
	clear(m.at)
}
