package link_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/internal/nstest"
	"tortie/kernel/link"
	"tortie/kernel/route"
)

// workload is a guest in a namespace of its own behind a host without a
// default route, set up as the agent does.
type workload struct {
	host, guest *nstest.NS
	hostMAC     net.HardwareAddr
}

func newWorkload(t *testing.T) *workload {
	t.Helper()
	w := &workload{host: nstest.New(t), guest: nstest.Create(t)}
	nstest.Veth(t, w.host, "cali1", w.guest, "eth0")
	w.host.Run(t, "ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far")
	for _, c := range []string{"link set far up", "link set uplink up", "addr add 192.0.2.1/24 dev uplink", "addr add 2001:db8::1/64 dev uplink nodad"} {
		w.host.Run(t, "ip", strings.Fields(c)...)
	}
	for _, c := range []string{"addr add 10.65.0.2/32 dev eth0", "addr add fd00:65::2/128 dev eth0 nodad"} {
		w.guest.Run(t, "ip", strings.Fields(c)...)
	}
	hostSide, err := net.InterfaceByName("cali1")
	if err != nil {
		t.Fatal(err)
	}
	w.hostMAC = hostSide.HardwareAddr

	want := desired.New()
	index := hostSide.Index
	want.Interfaces.Set("cali1", desired.Interface{Index: index})
	for _, a := range []string{"10.65.0.2", "fd00:65::2"} {
		p := netip.MustParseAddr(a)
		want.Routes.Set(desired.RouteKey{Prefix: netip.PrefixFrom(p, p.BitLen()), Metric: route.MetricLocal}, desired.Route{Interface: "cali1", Index: index})
	}
	want.Gateways.Set(netip.MustParseAddr("169.254.1.1"), struct{}{})
	want.Gateways.Set(netip.MustParseAddr("10.65.0.1"), struct{}{})
	want.Neighbours.Set(desired.NeighbourKey{Interface: "cali1", Addr: netip.MustParseAddr("fd00:65::1"), Proxy: true}, desired.Neighbour{Index: index})

	ctx, cancel := context.WithTimeout(context.Background(), nstest.Limit)
	defer cancel()
	links, err := link.Open(link.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	routes, err := route.Open(route.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = routes.Close() }()
	if err := links.ApplyHost(ctx, func(string, string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := links.Apply(ctx, want); err != nil {
		t.Fatal(err)
	}
	if _, err := routes.Apply(ctx, want); err != nil {
		t.Fatal(err)
	}
	return w
}

// arp asks for addresses, one after the other, until the last is answered, and
// returns who answered for each.
func (w *workload) arp(t *testing.T, addrs ...string) map[string]net.HardwareAddr {
	t.Helper()
	answers := map[string]net.HardwareAddr{}
	var err error
	w.guest.Do(func() { err = arp(answers, addrs) })
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

func arp(answers map[string]net.HardwareAddr, addrs []string) error {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	const protocol = unix.ETH_P_ARP<<8&0xff00 | unix.ETH_P_ARP>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: eth.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: eth.Index}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(nstest.Limit.Seconds())}); err != nil {
		return err
	}
	for _, a := range addrs {
		b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
		b = append(append(b, eth.HardwareAddr...), 10, 65, 0, 2)
		b = append(append(b, 0, 0, 0, 0, 0, 0), netip.MustParseAddr(a).AsSlice()...)
		if err := unix.Sendto(fd, b, 0, to); err != nil {
			return err
		}
	}
	for answers[addrs[len(addrs)-1]] == nil {
		b := make([]byte, 1500)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return fmt.Errorf("no answer for %s: %w", addrs[len(addrs)-1], err)
		}
		if n >= 28 && b[7] == 2 { // a reply
			from, _ := netip.AddrFromSlice(b[14:18])
			answers[from.String()] = net.HardwareAddr(b[8:14])
		}
	}
	return nil
}

// Promise D2: the host's MAC is the next hop, whatever gateway the guest has
// configured; a host without a default route answers as well.
// Promise D7: nothing but ARP and routes is needed for it.
func TestGatewayARP(t *testing.T) {
	w := newWorkload(t)
	if out := w.host.Run(t, "ip", "route", "show", "default"); out != "" {
		t.Fatalf("the host has a default route: %s", out)
	}
	start := time.Now()
	got := w.arp(t, "169.254.1.1")
	t.Logf("answered after %v", time.Since(start))
	// The unknown one is asked for first: by the time the last is answered,
	// its time is over, since answers are not delayed.
	for a, mac := range w.arp(t, "10.65.0.77", "169.254.1.1", "10.65.0.1") {
		got[a] = mac
	}
	for _, a := range []string{"169.254.1.1", "10.65.0.1"} {
		if got[a].String() != w.hostMAC.String() {
			t.Errorf("%s is at %v, want %v", a, got[a], w.hostMAC)
		}
	}
	if mac, ok := got["10.65.0.77"]; ok {
		t.Errorf("%v answered for an address that nothing names", mac)
	}
}

// ping sends an echo request from the guest and waits for the reply.
func (w *workload) ping(t *testing.T, addr string) {
	t.Helper()
	var err error
	start := time.Now()
	w.guest.Do(func() { err = ping(addr) })
	if err != nil {
		t.Errorf("ping %s: %v", addr, err)
		return
	}
	t.Logf("%s answered after %v", addr, time.Since(start))
}

func ping(addr string) error {
	network, echo, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(addr, ":") {
		network, echo, reply = "ip6:ipv6-icmp", 128, 129
	}
	to, err := net.ResolveIPAddr(strings.Split(network, ":")[0], addr)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b := []byte{echo, 0, 0, 0, 0x12, 0x34, 0, 1}
	if reply == 0 {
		binary.BigEndian.PutUint16(b[2:], ^(uint16(echo)<<8 + 0x1234 + 1))
	}
	if err := c.SetDeadline(time.Now().Add(nstest.Limit)); err != nil {
		return err
	}
	if _, err := c.WriteTo(b, to); err != nil {
		return err
	}
	for {
		b := make([]byte, 1500)
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if n >= 8 && b[0] == reply && b[4] == 0x12 && from.String() == to.String() {
			return nil
		}
	}
}

// Promise V8: the guest reaches its gateway by neighbour discovery: the
// link-local address of the host's side, or one that its endpoint names.
// Promise V4: the host forwards.
func TestGatewayPing(t *testing.T) {
	w := newWorkload(t)
	peer, err := net.InterfaceByName("cali1")
	if err != nil {
		t.Fatal(err)
	}
	var addrs []net.Addr
	for deadline := time.Now().Add(nstest.Limit); len(addrs) == 0; { // the kernel adds it when the link has a carrier
		if addrs, err = peer.Addrs(); err != nil || time.Now().After(deadline) {
			t.Fatalf("addresses of cali1: %v, %v", addrs, err)
		}
	}
	linkLocal := addrs[0].(*net.IPNet).IP.String()
	w.ping(t, linkLocal+"%eth0")

	for _, gw := range []struct{ family, gateway, target string }{
		{"-4", "169.254.1.1", "192.0.2.1"},
		{"-4", "10.65.0.1", "192.0.2.1"},
		{"-6", linkLocal, "2001:db8::1"},
		{"-6", "fd00:65::1", "2001:db8::1"},
	} {
		w.guest.Run(t, "ip", gw.family, "route", "replace", gw.gateway, "dev", "eth0")
		w.guest.Run(t, "ip", gw.family, "route", "replace", "default", "via", gw.gateway, "dev", "eth0")
		w.ping(t, gw.target)
		out := w.guest.Run(t, "ip", gw.family, "neigh", "show", gw.gateway)
		if !strings.Contains(out, w.hostMAC.String()) {
			t.Errorf("neighbour %s: %s", gw.gateway, out)
		}
	}
}

// Promise C11: rp_filter stops a spoofed IPv4 source by itself. (The spoof
// check of both families is the ruleset's.)
func TestReversePath(t *testing.T) {
	w := newWorkload(t)
	for _, c := range []string{"route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1", "addr add 10.65.0.3/32 dev eth0"} {
		w.guest.Run(t, "ip", strings.Fields(c)...)
	}
	// The neighbour whose address is used.
	w.host.Run(t, "ip", "route", "add", "10.65.0.3/32", "dev", "uplink")
	server, err := net.ListenPacket("udp4", "192.0.2.1:4444")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	var sent error
	w.guest.Do(func() {
		for _, from := range []string{"10.65.0.3", "10.65.0.2"} {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("udp4", "192.0.2.1:4444")
			if err != nil {
				sent = err
				return
			}
			defer func() { _ = c.Close() }()
			if _, err := c.Write([]byte(from)); err != nil {
				sent = err
			}
		}
	})
	if sent != nil {
		t.Fatal(sent)
	}
	if err := server.SetDeadline(time.Now().Add(nstest.Limit)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, _, err := server.ReadFrom(b)
	if err != nil || string(b[:n]) != "10.65.0.2" {
		t.Errorf("the first to arrive is %q (%v), want the one that is not spoofed", b[:n], err)
	}
}

// An uplink's default route that came by router advertisement survives
// forwarding being turned on.
func TestAdvertisedRouteStays(t *testing.T) {
	host, router := nstest.New(t), nstest.Create(t)
	nstest.Veth(t, host, "uplink", router, "downlink")
	router.Run(t, "ip", "addr", "add", "fe80::1/64", "dev", "downlink", "nodad")
	advertise := func() {
		t.Helper()
		var err error
		router.Do(func() { err = advertise("downlink") })
		if err != nil {
			t.Fatal(err)
		}
	}
	hasRoute := func() bool {
		return strings.Contains(host.Run(t, "ip", "-6", "route", "show", "default"), "via fe80::1 dev uplink")
	}
	for deadline := time.Now().Add(nstest.Limit); !hasRoute(); advertise() {
		if time.Now().After(deadline) {
			t.Fatal("the host has not taken the advertisement")
		}
	}
	links, err := link.Open(link.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	if err := links.ApplyHost(context.Background(), func(string, string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if !hasRoute() {
		t.Error("the default route is gone")
	}
	host.Run(t, "ip", "-6", "route", "del", "default")
	for deadline := time.Now().Add(nstest.Limit); !hasRoute(); advertise() {
		if time.Now().After(deadline) {
			t.Fatal("the host does not take advertisements any more")
		}
	}
}

// advertise sends a router advertisement (RFC 4861, 4.2) without options.
func advertise(dev string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	i, err := net.InterfaceByName(dev)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{ZoneId: uint32(i.Index), Addr: netip.MustParseAddr("fe80::1").As16()}); err != nil {
		return err
	}
	b := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lifetime 1800 s
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet6{ZoneId: uint32(i.Index), Addr: netip.MustParseAddr("ff02::1").As16()})
}
