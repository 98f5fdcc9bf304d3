package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	namespacePrefix = "ttlab-"
	namespaceDir    = "/run/netns"
)

// createNamespace makes a named namespace with its loopback up.
func createNamespace(name string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.NewNamed(name)
		if err == nil {
			_ = ns.Close()
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	return nil
}

// deleteNamespace removes a name; the namespace goes with its last process.
func deleteNamespace(name string) error {
	if !strings.HasPrefix(name, namespacePrefix) || strings.Contains(name, "/") {
		return fmt.Errorf("delete namespace %q: not one of a lab", name)
	}
	path := filepath.Join(namespaceDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // never mounted
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// in runs f on a thread that is in the named namespace. Goroutines that f
// starts are not; sockets that it opens stay.
func in(name string, f func() error) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("enter namespace %s: %w", name, err)
	}
	defer func() { _ = ns.Close() }()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			defer func() { _ = home.Close() }()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", name, err)
			return // the thread ends with the goroutine
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// linkHandle returns a handle to the links of a namespace.
func linkHandle(name string) (*netlink.Handle, netns.NsHandle, error) {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return nil, ns, fmt.Errorf("open namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, ns, fmt.Errorf("open namespace %s: %w", name, err)
	}
	return h, ns, nil
}

// setSysctls writes settings of a namespace; "/" parts the names.
func setSysctls(namespace string, settings map[string]string) error {
	return in(namespace, func() error {
		for name, value := range settings {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
				return fmt.Errorf("set %s of %s: %w", name, namespace, err)
			}
		}
		return nil
	})
}

// end is one end of a pair of links.
type end struct {
	namespace, link string
	mac             string
	addrs           []string // with their prefix length
}

// connect links two namespaces. Both ends are down.
func connect(a, b end) error {
	ha, nsA, err := linkHandle(a.namespace)
	if err != nil {
		return err
	}
	defer ha.Close()
	defer func() { _ = nsA.Close() }()
	nsB, err := netns.GetFromName(b.namespace)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", b.namespace, err)
	}
	defer func() { _ = nsB.Close() }()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.link}, PeerName: b.link, PeerNamespace: netlink.NsFd(nsB)}
	if err := ha.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s in %s to %s: %w", a.link, a.namespace, b.namespace, err)
	}
	return nil
}

// raise gives an end its addresses and sets it up, with routes by next hops
// that need not be in a network of its own.
func raise(e end, master string, gateways ...string) error {
	h, ns, err := linkHandle(e.namespace)
	if err != nil {
		return err
	}
	defer h.Close()
	defer func() { _ = ns.Close() }()
	if err := raiseWith(h, e, master, gateways); err != nil {
		return fmt.Errorf("set up %s in %s: %w", e.link, e.namespace, err)
	}
	return nil
}

func raiseWith(h *netlink.Handle, e end, master string, gateways []string) error {
	link, err := h.LinkByName(e.link)
	if err != nil {
		return err
	}
	if e.mac != "" {
		mac, err := net.ParseMAC(e.mac)
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	if master != "" {
		m, err := h.LinkByName(master)
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(link, m); err != nil {
			return err
		}
	}
	for _, a := range e.addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags |= unix.IFA_F_NODAD
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, gw := range gateways {
		if err := addDefault(h, link, gw); err != nil {
			return fmt.Errorf("add default route by %s: %w", gw, err)
		}
	}
	return nil
}

// addDefault adds a default route by a next hop on the link, whatever address
// that has.
func addDefault(h *netlink.Handle, link netlink.Link, gateway string) error {
	gw := net.ParseIP(gateway)
	any := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if gw.To4() == nil {
		any = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: any, Gw: gw, Flags: int(netlink.FLAG_ONLINK)})
}
