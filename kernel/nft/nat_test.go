package nft

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

// addFloating gives a workload's address an external one.
func addFloating(st *desired.State, external, own string) {
	e, o := netip.MustParseAddr(external), netip.MustParseAddr(own)
	st.Floating.Set(e, o)
	st.External.Set(o, e)
}

// addOutgoing has an address reach what is not inside with the host's address.
func addOutgoing(st *desired.State, own, inside string) {
	st.Masquerade.Set(netip.MustParseAddr(own), struct{}{})
	st.Inside.Set(netip.MustParsePrefix(inside), struct{}{})
}

// echo answers, by TCP and UDP, with the address that it was asked from.
func echo(t testing.TB, ns *nstest.NS, addr netip.Addr) {
	t.Helper()
	at := netip.AddrPortFrom(addr, openPort)
	var l net.Listener
	var u *net.UDPConn
	var err1, err2 error
	ns.Do(func() {
		l, err1 = net.Listen("tcp", at.String())
		u, err2 = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				for in := bufio.NewReader(c); ; {
					if _, err := in.ReadString('\n'); err != nil {
						return
					}
					_, _ = fmt.Fprintln(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr())
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = u.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()+"\n"), from)
		}
	}()
}

// connect opens a connection from a namespace to an echo.
func connect(t testing.TB, network string, ns *nstest.NS, source, to netip.Addr) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: timeout}
	switch {
	case source.IsValid() && network == "tcp":
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	case source.IsValid():
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	var c net.Conn
	var err error
	ns.Do(func() { c, err = d.Dial(network, netip.AddrPortFrom(to, openPort).String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask returns the address that the echo at the other end of a connection sees.
func ask(c net.Conn) (string, error) {
	if _, err := fmt.Fprintln(c, "who am I"); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// sees checks by TCP and UDP what an echo takes for the source.
func sees(t testing.TB, from *nstest.NS, source, to, want netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got, err := ask(connect(t, network, from, source, to))
		if err != nil || got != want.String() {
			t.Errorf("%s from %s to %s: it sees %q, %v; want %s", network, source, to, got, err, want)
		}
	}
}

// floatingWorld is a pair of workloads, the first of which has an external
// address, and a host outside.
type floatingWorld struct {
	host     *nstest.NS
	a, b     *workload
	outside  *nstest.NS
	external [2]netip.Addr // of a, IPv4 and IPv6
	far      [2]netip.Addr // of the host outside
	near     [2]netip.Addr // of this host on the way to it
	within   [2]netip.Addr // of the host outside too, but inside as far as pools go
}

func newFloatingWorld(t testing.TB) (*floatingWorld, *desired.State) {
	host, a, b, st := pair(t)
	w := &floatingWorld{host: host, a: a, b: b, outside: nstest.Create(t)}
	for i, text := range [][4]string{
		{"203.0.113.1", "198.51.100.2", "198.51.100.1", "10.66.0.9"},
		{"2001:db8:1::1", "2001:db8:2::2", "2001:db8:2::1", "fd66::9"},
	} {
		for j, to := range []*netip.Addr{&w.external[i], &w.far[i], &w.near[i], &w.within[i]} {
			*to = netip.MustParseAddr(text[j])
		}
	}
	w.outside.Do(func() { _ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644) })
	nstest.Veth(t, host, "up0", w.outside, "eth0")
	for i := range 2 {
		bits := []string{"/24", "/64"}[i]
		single := []string{"/32", "/128"}[i]
		host.Run(t, "ip", "addr", "add", w.near[i].String()+bits, "dev", "up0")
		w.outside.Run(t, "ip", "addr", "add", w.far[i].String()+bits, "dev", "eth0")
		w.outside.Run(t, "ip", "addr", "add", w.within[i].String()+single, "dev", "eth0")
		for _, to := range []string{w.external[i].String(), []string{"10.65.0.0/16", "fd00::/64"}[i]} {
			w.outside.Run(t, "ip", "route", "add", to, "via", w.near[i].String())
		}
		host.Run(t, "ip", "route", "add", w.within[i].String(), "via", w.far[i].String())
		host.Run(t, "ip", "route", "add", w.external[i].String(), "dev", a.name)
	}
	running(t, host, "up0")
	local(t, w.outside, "eth0", w.far[1].String())
	local(t, w.outside, "eth0", w.within[1].String())
	local(t, host, "up0", w.near[1].String())
	addFloating(st, w.external[0].String(), a.v4.String())
	addFloating(st, w.external[1].String(), a.v6.String())
	addOutgoing(st, b.v4.String(), "10.64.0.0/10")
	addOutgoing(st, b.v6.String(), "fd00::/8")
	return w, st
}

// untranslated takes away what there is to translate.
func (w *floatingWorld) untranslated(st *desired.State) {
	for i := range 2 {
		st.Floating.Delete(w.external[i])
		st.External.Delete(w.a.addr(i))
		st.Masquerade.Delete(w.b.addr(i))
	}
}

// forFamilies runs a test in both, with the index of the family.
func forFamilies(t *testing.T, f func(t *testing.T, i int)) {
	t.Run("IPv4", func(t *testing.T) { f(t, 0) })
	t.Run("IPv6", func(t *testing.T) { f(t, 1) })
}

func (w *workload) addr(i int) netip.Addr { return [2]netip.Addr{w.v4, w.v6}[i] }

// Promise N12: a floating address works both ways, from everywhere: outside,
// the host, another workload, the workload itself; and what a pool masquerades
// goes out with the host's address.
func TestFloatingAddress(t *testing.T) {
	forFamilies(t, func(t *testing.T, i int) {
		w, st := newFloatingWorld(t)
		tb := open(t)
		apply(t, tb, st)
		settled(t, tb, st)
		a, b, external := w.a.addr(i), w.b.addr(i), w.external[i]
		for _, at := range []struct {
			ns   *nstest.NS
			addr netip.Addr
		}{{w.a.NS, a}, {w.b.NS, b}, {w.outside, w.far[i]}, {w.outside, w.within[i]}} {
			echo(t, at.ns, at.addr)
		}
		none := netip.Addr{}
		sees(t, w.outside, w.far[i], external, w.far[i])
		sees(t, w.outside, w.far[i], a, w.far[i])
		sees(t, w.b.NS, b, external, b)
		sees(t, w.a.NS, a, external, external) // by way of its host, which so gets the answer
		sees(t, w.a.NS, a, b, a)
		sees(t, w.a.NS, a, w.far[i], external)
		sees(t, w.a.NS, a, w.within[i], a)
		sees(t, w.b.NS, b, w.far[i], w.near[i])
		sees(t, w.b.NS, b, w.within[i], b)
		for _, network := range []string{"tcp", "udp"} { // the host's address is whatever routing makes it
			if _, err := ask(connect(t, network, w.host, none, external)); err != nil {
				t.Errorf("%s from the host: %v", network, err)
			}
		}
		// Policy is asked of the workload's own address and port.
		closed := listen(t, w.a.NS, a, closedPort)
		send(t, w.outside, w.far[i], external, closedPort, "no")
		waitCounter(t, tb, counterUnmatched, 1)
		closed.none(t)
		settled(t, tb, st)
	})
}

// A workload may not send from its external address.
func TestExternalAddressIsNoSource(t *testing.T) {
	forFamilies(t, func(t *testing.T, i int) {
		w, st := newFloatingWorld(t)
		tb := open(t)
		apply(t, tb, st)
		at := listen(t, w.outside, w.far[i], openPort)
		w.a.Run(t, "ip", "addr", "add", w.external[i].String()+[]string{"/32", "/128"}[i], "dev", "eth0")
		if i == 1 {
			local(t, w.a.NS, "eth0", w.external[i].String())
		}
		send(t, w.a.NS, w.external[i], w.far[i], openPort, "no")
		waitCounter(t, tb, counterSpoofed, 1)
		send(t, w.a.NS, w.a.addr(i), w.far[i], openPort, "yes")
		at.wait(t, "yes from "+w.external[i].String())
	})
}

// Policy sees a connection to an external address as one to the workload's own,
// in both directions and from both ends.
func TestPolicySeesTranslated(t *testing.T) {
	forFamilies(t, func(t *testing.T, i int) {
		w, st := newFloatingWorld(t)
		a, b := w.a.addr(i), w.b.addr(i)
		only := func(source, destination netip.Addr) desired.Program {
			p := profile(desired.Rule{
				Verdict:     desired.Allow,
				Source:      desired.Peer{Nets: []netip.Prefix{netip.PrefixFrom(source, source.BitLen())}},
				Destination: desired.Peer{Nets: []netip.Prefix{netip.PrefixFrom(destination, destination.BitLen())}},
			})
			return p
		}
		i1, i2 := w.a.endpoint(), w.b.endpoint()
		i2.Egress = "out-b"
		st.Interfaces.Set(w.b.name, i2)
		st.Programs.Set(i1.Ingress, only(b, a))
		st.Programs.Set("out-b", only(b, a))
		tb := open(t)
		apply(t, tb, st)
		echo(t, w.a.NS, a)
		c := connect(t, "udp", w.b.NS, b, w.external[i])
		for range 3 { // the second is judged anew, in its first packet, the third in the answer
			if got, err := ask(c); err != nil || got != b.String() {
				t.Fatalf("it sees %q, %v", got, err)
			}
			bump(t, tb)
		}
		// The external address itself is nothing that policy knows.
		st.Programs.Set("out-b", only(b, w.external[i]))
		apply(t, tb, st)
		bump(t, tb)
		send(t, w.b.NS, b, w.external[i], openPort, "no")
		waitCounter(t, tb, counterUnmatched, 1)
	})
}

// A connection that is translated survives a new process, and a repair; one
// element moves an address, and the tables name it.
func TestFloatingAddressMoves(t *testing.T) {
	forFamilies(t, func(t *testing.T, i int) {
		w, st := newFloatingWorld(t)
		tb := open(t)
		apply(t, tb, st)
		if moved := tb.TakeMoved(); !slices.Contains(moved, w.external[0]) || !slices.Contains(moved, w.external[1]) {
			t.Errorf("moved at first: %v", moved)
		}
		a, b, external := w.a.addr(i), w.b.addr(i), w.external[i]
		echo(t, w.a.NS, a)
		echo(t, w.b.NS, b)
		var open []net.Conn
		for _, network := range []string{"tcp", "udp"} {
			open = append(open, connect(t, network, w.outside, w.far[i], external), connect(t, network, w.a.NS, a, external))
		}
		still := func(when string) {
			t.Helper()
			for _, c := range open {
				if _, err := ask(c); err != nil {
					t.Errorf("%s: %s from %s: %v", when, c.LocalAddr().Network(), c.LocalAddr(), err)
				}
			}
		}
		still("at first")
		settled(t, tb, st) // compares with a new process, too
		still("with a new process")
		if moved := tb.TakeMoved(); len(moved) > 0 {
			t.Errorf("moved by nothing: %v", moved)
		}
		w.host.Run(t, "nft", "flush", "chain", "inet", "tortie", chainDNAT)
		tb.Resync()
		if res := apply(t, tb, st); !res.Repaired {
			t.Error("a flushed chain was not noticed")
		}
		bump(t, tb)
		still("after a repair")
		st.Floating.Set(external, b)
		st.External.Delete(a)
		st.External.Set(b, external)
		if res := apply(t, tb, st); res.Writes > 5 { // an element is deleted and added in one map and its contrary
			t.Errorf("a move took %+v", res)
		}
		if moved := tb.TakeMoved(); !slices.Equal(moved, []netip.Addr{external}) {
			t.Errorf("moved: %v, want %v", moved, external)
		}
		w.host.Run(t, "ip", "route", "replace", external.String(), "dev", w.b.name)
		sees(t, w.b.NS, b, external, external)
		settled(t, tb, st)
	})
}

// Where there is nothing to translate there is no chain of this type; where
// there was something, one stays, and with it what is open is translated still.
func TestNothingToTranslate(t *testing.T) {
	w, st := newFloatingWorld(t)
	tb := open(t)
	give := func() {
		for i := range 2 {
			addFloating(st, w.external[i].String(), w.a.addr(i).String())
			st.Masquerade.Set(w.b.addr(i), struct{}{})
		}
	}
	has := func() (names []string) {
		for o := range natHooks {
			if found, err := tb.conn.hasChain(o); err != nil {
				t.Fatal(err)
			} else if found {
				names = append(names, o.name)
			}
		}
		slices.Sort(names)
		return names
	}
	check := func(when string, want ...string) {
		t.Helper()
		apply(t, tb, st)
		if got := has(); !slices.Equal(got, want) {
			t.Errorf("%s: chains %v, want %v", when, got, want)
		}
		settled(t, tb, st)
	}
	w.untranslated(st)
	check("nothing yet")
	give()
	check("floating and masquerade", chainDNAT, chainHostDNAT, chainSNAT)
	var open []net.Conn
	var seen []string
	for i := range 2 {
		echo(t, w.outside, w.far[i])
		for _, network := range []string{"tcp", "udp"} {
			open = append(open, connect(t, network, w.a.NS, w.a.addr(i), w.far[i]), connect(t, network, w.b.NS, w.b.addr(i), w.far[i]))
			seen = append(seen, w.external[i].String(), w.near[i].String())
		}
	}
	still := func(when string) {
		t.Helper()
		for i, c := range open {
			if got, err := ask(c); err != nil || got != seen[i] {
				t.Errorf("%s: %s from %s: it sees %q, %v; want %s", when, c.LocalAddr().Network(), c.LocalAddr(), got, err, seen[i])
			}
		}
	}
	still("at first")
	for i := range 2 {
		st.Floating.Delete(w.external[i])
		st.External.Delete(w.a.addr(i))
	}
	check("masquerade", chainSNAT)
	still("masquerade")
	w.untranslated(st)
	check("nothing any more", chainSNAT)
	still("nothing any more")
	for i := range 2 { // what is new is not translated
		sees(t, w.a.NS, w.a.addr(i), w.far[i], w.a.addr(i))
		sees(t, w.b.NS, w.b.addr(i), w.far[i], w.b.addr(i))
	}
	addFloating(st, w.external[1].String(), w.a.v6.String())
	check("IPv6 only", chainDNAT, chainHostDNAT, chainSNAT)
	if err := tb.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := has(); len(got) > 0 {
		t.Errorf("after a cleanup: %v", got)
	}
}

// The address and the ports with which a workload goes out can be given.
func TestOutgoingAddressAndPorts(t *testing.T) {
	forFamilies(t, func(t *testing.T, i int) {
		for _, given := range []bool{false, true} {
			w, st := newFloatingWorld(t)
			opts := Options{WorkloadPrefixes: testPrefixes, HostAction: HostReturn, NATPorts: [2]uint16{20000, 20009}}
			want := w.near[i]
			if given {
				want = w.near[i].Next().Next()
				opts.NATAddress = want
				w.host.Run(t, "ip", "addr", "add", want.String()+[]string{"/32", "/128"}[i], "dev", "up0")
				if i == 1 {
					local(t, w.host, "up0", want.String())
				}
			}
			tb, err := Open(opts)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = tb.Close() })
			apply(t, tb, st)
			settled(t, tb, st)
			holdsNAT(t, tb)
			var l net.Listener
			w.outside.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(w.far[i], openPort).String()) })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			connect(t, "tcp", w.b.NS, w.b.addr(i), w.far[i])
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			from := netip.MustParseAddrPort(c.RemoteAddr().String())
			_ = c.Close()
			if from.Addr() != want || from.Port() < 20000 || from.Port() > 20009 {
				t.Errorf("it goes out as %s, want %s with a port of 20000 to 20009", from, want)
			}
		}
	})
}

// holdsNAT compares the rules in the kernel with what was rendered.
func holdsNAT(t testing.TB, tb *Tables) {
	t.Helper()
	h, _, err := tb.conn.readBack()
	if err != nil {
		t.Fatal(err)
	}
	got, err := tb.conn.ruleTexts(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range renderNAT(testPrefixes, tb.intent.nat(&tb.opts)) {
		for i, r := range c.rules {
			for j := range r.matches {
				if m := &r.matches[j]; m.op == anyOf {
					m.op = in
				}
			}
			if want := string(r.appendText(nil)); i >= len(got[c.object]) || got[c.object][i] != want {
				t.Errorf("chain %s: kernel has %v, want rule %d %s", c.name, got[c.object], i, want)
			}
		}
	}
}

// A map that holds other addresses than ours is put right, and the address
// counts as moved.
func TestRepairOfTranslation(t *testing.T) {
	w, st := newFloatingWorld(t)
	tb := open(t)
	apply(t, tb, st)
	tb.TakeMoved()
	element := fmt.Sprintf("{ %s : 10.65.0.7 }", w.external[0])
	w.host.Run(t, "nft", "delete", "element", "inet", "tortie", floatingMaps[0].name, fmt.Sprintf("{ %s }", w.external[0]))
	w.host.Run(t, "nft", "add", "element", "inet", "tortie", floatingMaps[0].name, element)
	tb.Resync()
	if res := apply(t, tb, st); !res.Repaired {
		t.Error("not repaired")
	}
	if moved := tb.TakeMoved(); !slices.Equal(moved, w.external[:1]) {
		t.Errorf("moved: %v, want %v", moved, w.external[:1])
	}
	settled(t, tb, st)
	if text := dump(t, tb); !strings.Contains(text, "\t"+w.external[0].String()+" : "+w.a.v4.String()+"\n") {
		t.Errorf("the dump lacks the mapping:\n%s", text)
	}
	if list := w.host.Run(t, "nft", "list", "table", "inet", "tortie"); !strings.Contains(list, "dnat ip to ip daddr map @"+floatingMaps[0].name) {
		t.Errorf("nft lists it otherwise:\n%s", list)
	}
}
