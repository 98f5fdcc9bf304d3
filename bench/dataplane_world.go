package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Names of links: the router's begin with the prefix of workloads.
const (
	clientTap = "tapclient"
	serverTap = "tapserver"
	insideTap = "eth0"
)

// end is one namespace at an end of a triple. Every triple has the same
// addresses: nothing joins them.
type end struct {
	ns      netns.NsHandle
	links   *netlink.Handle
	v4, v6  netip.Addr
	via4    netip.Addr // the router
	via6    netip.Addr
	routers string // name of the router's link to it
}

// triple is a client and a server with a router between them, whose
// namespace has the tables of one variant.
type triple struct {
	name           string
	client, server *end
	router         netns.NsHandle
	links          *netlink.Handle // of the router
}

// newTriple makes the namespaces and plain forwarding between them.
func newTriple(name string) (*triple, error) {
	t := newEnds(name)
	var err error
	if t.router, t.links, err = newNamespace(); err == nil {
		err = t.build()
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("triple %s: %w", name, err)
	}
	return t, nil
}

// newEnds is a triple without its namespaces.
func newEnds(name string) *triple {
	return &triple{
		name: name,
		client: &end{
			v4: netip.MustParseAddr("10.200.1.2"), via4: netip.MustParseAddr("10.200.1.1"),
			v6: netip.MustParseAddr("fd00:200:1::2"), via6: netip.MustParseAddr("fd00:200:1::1"), routers: clientTap, ns: netns.None(),
		},
		server: &end{
			v4: netip.MustParseAddr("10.200.2.2"), via4: netip.MustParseAddr("10.200.2.1"),
			v6: netip.MustParseAddr("fd00:200:2::2"), via6: netip.MustParseAddr("fd00:200:2::1"), routers: serverTap, ns: netns.None(),
		},
		router: netns.None(),
	}
}

// build makes the ends and joins them to the router.
func (t *triple) build() error {
	var err error
	// Connections that ended must not use the client's ports up.
	ends := map[*end][]string{t.client: {"ipv4/ip_local_port_range=1024 65535", "ipv4/tcp_tw_reuse=1"}, t.server: nil}
	for e, settings := range ends {
		if e.ns, e.links, err = newNamespace(); err == nil {
			err = t.join(e)
		}
		if err == nil {
			err = inside(e.ns, func() error { return sysctls(settings...) })
		}
		if err != nil {
			return err
		}
	}
	return inside(t.router, func() error {
		return sysctls("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
			"ipv4/conf/"+t.client.routers+"/rp_filter=0", "ipv4/conf/"+t.server.routers+"/rp_filter=0")
	})
}

// join links an end to the router and gives both their addresses.
func (t *triple) join(e *end) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: e.routers}, PeerName: insideTap, PeerNamespace: netlink.NsFd(e.ns)}
	if err := t.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add %s: %w", e.routers, err)
	}
	if err := configure(t.links, e.routers, e.via4, e.via6); err != nil {
		return err
	}
	if err := configure(e.links, insideTap, e.v4, e.v6); err != nil {
		return err
	}
	for _, via := range []netip.Addr{e.via4, e.via6} {
		if err := e.links.RouteAdd(&netlink.Route{Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("route via %s: %w", via, err)
		}
	}
	return nil
}

// configure sets a link up with addresses of networks that are as long as
// those of a triple.
func configure(h *netlink.Handle, name string, addrs ...netip.Addr) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	for _, a := range addrs {
		ip, err := netlink.ParseAddr(netip.PrefixFrom(a, 24+40*(a.BitLen()/128)).String())
		if err != nil {
			return err
		}
		ip.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(l, ip); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// taps returns the indexes of the router's links.
func (t *triple) taps() (client, server int, err error) {
	c, err1 := t.links.LinkByName(clientTap)
	s, err2 := t.links.LinkByName(serverTap)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	return c.Attrs().Index, s.Attrs().Index, nil
}

func (t *triple) close() {
	for _, h := range []*netlink.Handle{t.links, t.client.links, t.server.links} {
		if h != nil {
			h.Close()
		}
	}
	for _, ns := range []netns.NsHandle{t.router, t.client.ns, t.server.ns} {
		if ns != netns.None() {
			_ = ns.Close()
		}
	}
}

// newNamespace makes a namespace whose links can use their addresses at once.
func newNamespace() (netns.NsHandle, *netlink.Handle, error) {
	ns := netns.None()
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		if ns, err = netns.New(); err == nil {
			err = sysctls("ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return ns, nil, err
	}
	h, err := netlink.NewHandleAt(ns)
	return ns, h, err
}

// inside runs f in a namespace, on a thread of its own.
func inside(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// sysctls writes settings, name=value, of the calling thread's namespace.
func sysctls(settings ...string) error {
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}
