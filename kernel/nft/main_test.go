package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tortie/api"
	"tortie/desired"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// timeout bounds every wait; none is expected to come near it.
const timeout = 10 * time.Second

var testPrefixes = []string{"cali", "tap"}

func open(t testing.TB) *Tables {
	t.Helper()
	return openWith(t, HostReturn)
}

func openWith(t testing.TB, hostAction string) *Tables {
	t.Helper()
	tb, err := Open(Options{WorkloadPrefixes: testPrefixes, HostAction: hostAction, DeniedEvents: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tb.Close() })
	return tb
}

// apply applies and takes the changes as the agent does.
func apply(t testing.TB, tb *Tables, st *desired.State) Result {
	t.Helper()
	res, err := tb.Apply(context.Background(), st)
	if err != nil {
		t.Fatal(err)
	}
	st.ClearDirty()
	return res
}

// settled checks that the kernel is right: comparing all of it writes nothing,
// neither here nor in a process that starts anew.
func settled(t testing.TB, tb *Tables, st *desired.State) {
	t.Helper()
	if tb.bumpDue {
		bump(t, tb)
	}
	tb.Resync()
	if res := apply(t, tb, st); res != (Result{}) {
		t.Errorf("a comparison after an apply: %+v, want nothing done", res)
	}
	again := open(t)
	again.opts = tb.opts
	if res := apply(t, again, st); res != (Result{}) {
		t.Errorf("a new process: %+v, want nothing done", res)
	}
	if tb.epoch != again.epoch {
		t.Errorf("a new process reads epoch %d, want %d", again.epoch, tb.epoch)
	}
}

// workload is a namespace behind a veth pair, as a container has it.
type workload struct {
	*nstest.NS
	name   string // of the host's end
	index  int
	mac    [6]byte
	v4, v6 netip.Addr
}

const (
	gateway4 = "10.65.255.254"
	gateway6 = "fe80::1"
)

// router makes the test's namespace one that forwards.
func router(t testing.TB) *nstest.NS {
	t.Helper()
	host := nstest.New(t)
	write := func(path, value string) {
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("/proc/sys/net/ipv4/ip_forward", "1")
	write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
	write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
	write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")
	write("/proc/sys/net/ipv4/conf/default/rp_filter", "0")
	return host
}

// addWorkload adds workload n, 10.65.0.n and fd00::n, with a route to it.
func addWorkload(t testing.TB, host *nstest.NS, name string, n int) *workload {
	t.Helper()
	w := &workload{
		NS: nstest.Create(t), name: name,
		v4: netip.AddrFrom4([4]byte{10, 65, 0, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("fd00::%x", n)),
	}
	w.Do(func() { _ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644) })
	nstest.Veth(t, host, name, w.NS, "eth0")
	host.Run(t, "ip", "addr", "add", gateway4+"/32", "dev", name)
	host.Run(t, "ip", "-6", "addr", "add", gateway6+"/64", "dev", name, "nodad")
	host.Run(t, "ip", "route", "add", w.v4.String(), "dev", name)
	host.Run(t, "ip", "-6", "route", "add", w.v6.String(), "dev", name)
	w.Run(t, "ip", "addr", "add", w.v4.String()+"/32", "dev", "eth0")
	w.Run(t, "ip", "-6", "addr", "add", w.v6.String()+"/128", "dev", "eth0", "nodad")
	w.Run(t, "ip", "route", "add", "default", "via", gateway4, "dev", "eth0", "onlink")
	w.Run(t, "ip", "-6", "route", "add", "default", "via", gateway6, "dev", "eth0")
	in := running(t, host, name)
	w.index = in.Index
	// Neither end has to ask for the other, so no packet waits for an answer.
	for _, gateway := range []string{gateway4, gateway6} {
		w.Run(t, "ip", "neigh", "add", gateway, "lladdr", in.HardwareAddr.String(), "dev", "eth0", "nud", "permanent")
	}
	copy(w.mac[:], running(t, w.NS, "eth0").HardwareAddr)
	local(t, w.NS, "eth0", w.v6.String())
	local(t, host, name, gateway6)
	for _, addr := range []netip.Addr{w.v4, w.v6} {
		host.Run(t, "ip", "neigh", "add", addr.String(), "lladdr", net.HardwareAddr(w.mac[:]).String(), "dev", name, "nud", "permanent")
	}
	return w
}

// local waits until the kernel, which does so later, takes an IPv6 address for
// its own.
func local(t testing.TB, ns *nstest.NS, dev, addr string) {
	t.Helper()
	for deadline := time.Now().Add(timeout); !strings.Contains(ns.Run(t, "ip", "-6", "route", "show", "table", "local", "dev", dev), "local "+addr+" "); {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not become local", addr)
		}
	}
}

// running waits until a link passes packets.
func running(t testing.TB, ns *nstest.NS, name string) (in *net.Interface) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(timeout); ; {
		ns.Do(func() { in, err = net.InterfaceByName(name) })
		switch {
		case err != nil:
			t.Fatal(err)
		case in.Flags&net.FlagRunning != 0:
			return in
		case time.Now().After(deadline):
			t.Fatalf("%s does not come up", name)
		}
	}
}

func (w *workload) endpoint() desired.Interface {
	return desired.Interface{
		Endpoint: api.Key{Kind: "WorkloadEndpoint", Namespace: "n", Name: w.name}, Index: w.index,
		MAC: w.mac, HasMAC: true, Addrs: []netip.Addr{w.v4, w.v6},
		Ingress: "in-" + desired.ProgramID(w.name), Egress: "out",
	}
}

// profile is a program of one stage that ends in a denial.
func profile(rules ...desired.Rule) desired.Program {
	for i := range rules {
		rules[i].ID = fmt.Sprintf("GlobalNetworkPolicy//p/Ingress/%d", i)
	}
	return desired.Program{Stages: []desired.Stage{{Name: "default", Rules: rules}}}
}

func allowOpen(proto uint8) desired.Rule {
	return desired.Rule{
		Verdict: desired.Allow, Protocol: proto,
		Destination: desired.Peer{Ports: []desired.PortRange{{Min: openPort, Max: openPort}}},
	}
}

// pair is two workloads that may send anything and receive on openPort.
func pair(t testing.TB) (host *nstest.NS, a, b *workload, st *desired.State) {
	t.Helper()
	host = router(t)
	a, b = addWorkload(t, host, "tap1", 1), addWorkload(t, host, "cali2", 2)
	st = desired.New()
	st.Programs.Set("out", profile(desired.Rule{Verdict: desired.Allow}))
	for _, w := range []*workload{a, b} {
		st.Interfaces.Set(w.name, w.endpoint())
		st.Programs.Set(w.endpoint().Ingress, profile(allowOpen(17), allowOpen(6)))
	}
	return host, a, b, st
}

const (
	openPort   = 7000
	closedPort = 7001
)

// listener receives datagrams in a namespace.
type listener struct {
	conn *net.UDPConn
	got  chan string
}

func listen(t testing.TB, ns *nstest.NS, addr netip.Addr, port uint16) *listener {
	t.Helper()
	l := &listener{got: make(chan string, 100)}
	var err error
	ns.Do(func() { l.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close() })
	go func() {
		defer close(l.got)
		buf := make([]byte, 2048)
		for {
			n, from, err := l.conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				l.got <- string(buf[:n]) + " from " + from.Addr().Unmap().String()
			}
		}
	}()
	return l
}

func (l *listener) wait(t testing.TB, want string) {
	t.Helper()
	select {
	case got := <-l.got:
		if !strings.HasPrefix(got, want) {
			t.Fatalf("received %q, want %q", got, want)
		}
	case <-time.After(timeout):
		t.Fatalf("%q did not arrive", want)
	}
}

// send sends a datagram; a refusal that comes back from an earlier one is no
// concern of it.
func send(t testing.TB, from *nstest.NS, source, to netip.Addr, port uint16, text string) {
	t.Helper()
	var err error
	from.Do(func() {
		var c *net.UDPConn
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, port)))
		if err != nil {
			return
		}
		_, err = c.Write([]byte(text))
		_ = c.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waitCounter waits until a counter has grown to at least n packets.
func waitCounter(t testing.TB, tb *Tables, name string, n uint64) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		cs, err := tb.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if cs[name].Packets >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("counter %s: %d packets, want %d; all: %v", name, cs[name].Packets, n, cs)
		}
	}
}
