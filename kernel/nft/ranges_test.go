package nft

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

// ranged is a pair of which the first has a range, 10.99.0.0/16 and
// fd99::/48, with an address of it on its interface.
type ranged struct {
	host *nstest.NS
	a, b *workload
	st   *desired.State
	tb   *Tables
	own  netip.Addr // of a, from its range
}

var rangesOf = map[bool]string{true: "10.99.0.0/16", false: "fd99::/48"}

func withRange(t *testing.T, addr func(*workload) netip.Addr, fixedMAC bool) *ranged {
	r := &ranged{}
	r.host, r.a, r.b, r.st = pair(t)
	r.tb = open(t)
	p := netip.MustParsePrefix(rangesOf[addr(r.a).Is4()])
	r.own = p.Addr().Next()
	r.a.Run(t, "ip", "addr", "add", r.own.String(), "dev", "eth0", "nodad")
	r.host.Run(t, "ip", "route", "add", p.String(), "dev", r.a.name)
	in := r.a.endpoint()
	in.HasMAC = fixedMAC
	in.Ranges = []netip.Prefix{p, netip.PrefixFrom(r.own, p.Bits()+4).Masked()} // one in the other
	r.st.Interfaces.Set(r.a.name, in)
	apply(t, r.tb, r.st)
	return r
}

func (r *ranged) spoofed(t *testing.T) uint64 {
	t.Helper()
	cs, err := r.tb.Counters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return cs[counterSpoofed].Packets
}

// eachWay runs a test for both families, with and without a MAC.
func eachWay(t *testing.T, f func(t *testing.T, addr func(*workload) netip.Addr, fixedMAC bool)) {
	for _, fixedMAC := range []bool{true, false} {
		t.Run(map[bool]string{true: "mac", false: "any-mac"}[fixedMAC], func(t *testing.T) {
			eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) { f(t, addr, fixedMAC) })
		})
	}
}

// An endpoint sends from its range and is reached in it, by its policy; nobody
// else sends from it, and it does not use what another has in it.
func TestRange(t *testing.T) {
	eachWay(t, func(t *testing.T, addr func(*workload) netip.Addr, fixedMAC bool) {
		r := withRange(t, addr, fixedMAC)
		l, in, closed := listen(t, r.b.NS, addr(r.b), openPort), listen(t, r.a.NS, r.own, openPort), listen(t, r.a.NS, r.own, closedPort)
		send(t, r.a.NS, r.own, addr(r.b), openPort, "from the range")
		l.wait(t, "from the range from "+r.own.String())
		send(t, r.b.NS, addr(r.b), r.own, closedPort, "denied")
		send(t, r.b.NS, addr(r.b), r.own, openPort, "to the range")
		in.wait(t, "to the range")
		closed.none(t)
		// Another's range.
		before := r.spoofed(t)
		r.b.Run(t, "ip", "addr", "add", r.own.String(), "dev", "eth0", "nodad")
		send(t, r.b.NS, r.own, r.own.Next(), openPort, "no")
		waitCounter(t, r.tb, counterSpoofed, before+1)
		// What another has in the range is that one's.
		third := r.own.Next()
		other := r.b.endpoint()
		other.Addrs = append(other.Addrs, third)
		r.st.Interfaces.Set(r.b.name, other)
		apply(t, r.tb, r.st)
		r.a.Run(t, "ip", "addr", "add", third.String(), "dev", "eth0", "nodad")
		send(t, r.a.NS, third, addr(r.b), openPort, "no")
		waitCounter(t, r.tb, counterSpoofed, before+2)
		// The range goes.
		r.st.Interfaces.Set(r.a.name, r.a.endpoint())
		apply(t, r.tb, r.st)
		send(t, r.a.NS, r.own, addr(r.b), openPort, "no")
		waitCounter(t, r.tb, counterSpoofed, before+3)
		l.none(t)
	})
}

// A verdict on what is for a range, and routed past it, is not remembered.
func TestRangeRoutedPast(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		r := withRange(t, addr, true)
		p := rangesOf[addr(r.a).Is4()]
		uplink := nstest.Create(t)
		nstest.Veth(t, r.host, "up0", uplink, "eth0")
		running(t, r.host, "up0")
		family := map[bool]string{true: "-4", false: "-6"}[addr(r.a).Is4()]
		// Elsewhere nobody answers, and nothing is needed to: the first packet is
		// what opens the connection.
		r.host.Run(t, "ip", family, "neigh", "add", r.own.String(), "lladdr", "02:00:00:00:00:99", "dev", "up0", "nud", "permanent")
		r.host.Run(t, "ip", family, "route", "replace", p, "dev", "up0")
		from, to := netip.AddrPortFrom(addr(r.b), 5555), netip.AddrPortFrom(r.own, closedPort)
		sendFrom(t, r.b.NS, from, to, "past")
		flow := func() string {
			return r.host.Run(t, "conntrack", "-L", "-f", map[bool]string{true: "ipv4", false: "ipv6"}[r.own.Is4()], "-p", "udp", "--orig-dst", r.own.String())
		}
		for deadline := time.Now().Add(timeout); !strings.Contains(flow(), "mark="); {
			if time.Now().After(deadline) {
				t.Fatal("there is no connection")
			}
		}
		if got := flow(); !strings.Contains(got, "mark=0 ") {
			t.Errorf("the verdict is remembered: %s", got)
		}
		r.host.Run(t, "ip", family, "route", "replace", p, "dev", r.a.name)
		l, open := listen(t, r.a.NS, r.own, closedPort), listen(t, r.a.NS, r.own, openPort)
		sendFrom(t, r.b.NS, from, to, "no")
		send(t, r.b.NS, addr(r.b), r.own, openPort, "yes")
		open.wait(t, "yes")
		l.none(t)
	})
}

// What an endpoint may use besides is judged by its policy like its own.
func TestOtherSources(t *testing.T) {
	eachWay(t, func(t *testing.T, addr func(*workload) netip.Addr, fixedMAC bool) {
		_, a, b, st := pair(t)
		in := a.endpoint()
		in.HasMAC = fixedMAC
		tb := open(t)
		other := map[bool]string{true: "198.51.100.7", false: "2001:db8::7"}[addr(a).Is4()]
		in.Spoofed = prefixes(map[bool]string{true: "198.51.100.0/24", false: "2001:db8::/32"}[addr(a).Is4()])
		st.Interfaces.Set(a.name, in)
		apply(t, tb, st)
		l, closed := listen(t, b.NS, addr(b), openPort), listen(t, b.NS, addr(b), closedPort)
		for _, w := range []*workload{a, b} {
			w.Run(t, "ip", "addr", "add", other, "dev", "eth0", "nodad")
		}
		send(t, a.NS, netip.MustParseAddr(other), addr(b), closedPort, "denied")
		b.Run(t, "ip", "addr", "del", other, "dev", "eth0")
		send(t, a.NS, netip.MustParseAddr(other), addr(b), openPort, "allowed")
		l.wait(t, "allowed from "+other)
		closed.none(t)
		cs, err := tb.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		before := cs[counterSpoofed].Packets
		b.Run(t, "ip", "addr", "add", other, "dev", "eth0", "nodad")
		send(t, b.NS, netip.MustParseAddr(other), addr(a), openPort, "no")
		waitCounter(t, tb, counterSpoofed, before+1)
		if !addr(a).Is4() {
			return
		}
		in.Spoofed = prefixes("0.0.0.0/0") // the widest that the kernel's sets have to take
		st.Interfaces.Set(a.name, in)
		apply(t, tb, st)
		a.Run(t, "ip", "addr", "add", "203.0.113.9", "dev", "eth0")
		send(t, a.NS, netip.MustParseAddr("203.0.113.9"), addr(b), openPort, "any")
		l.wait(t, "any from 203.0.113.9")
	})
}
