package nft

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"tortie/internal/nstest"
)

// Promise C1, C11: a local workload's address cannot be used from outside, by an
// interface that is no workload's: neither to open a connection in its name nor
// within one that it has. rp_filter is off, and there is none for IPv6.
//
// Promise C6: so a host that is not to be trusted any more can speak as the
// workloads of third hosts, but as none of those of the host that it talks to.
func TestSpoofFromUplink(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		host, a, b, st := pair(t)
		outside := addWorkload(t, host, "eth1", 21)
		tb := open(t)
		apply(t, tb, st)
		// What is outside may speak for itself, and a for itself.
		l := listen(t, b.NS, addr(b), openPort)
		send(t, outside.NS, addr(outside), addr(b), openPort, "from outside")
		l.wait(t, "from outside")
		from := netip.AddrPortFrom(addr(a), 5555)
		sendFrom(t, a.NS, from, netip.AddrPortFrom(addr(b), openPort), "from a")
		l.wait(t, "from a")
		cs, err := tb.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		spoofed := cs[counterSpoofed].Packets
		outside.Run(t, "ip", "addr", "add", addr(a).String(), "dev", "eth0", "nodad")
		send(t, outside.NS, addr(a), addr(b), openPort, "in the name of a")
		waitCounter(t, tb, counterSpoofed, spoofed+1)
		// The very tuple of a connection that a has.
		sendFrom(t, outside.NS, from, netip.AddrPortFrom(addr(b), openPort), "stolen")
		waitCounter(t, tb, counterSpoofed, spoofed+2)
		l.none(t)
	})
}

func sendFrom(t testing.TB, ns *nstest.NS, from, to netip.AddrPort, text string) {
	t.Helper()
	var err error
	ns.Do(func() {
		var conn *net.UDPConn
		if conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to)); err == nil {
			_, err = conn.Write([]byte(text))
			_ = conn.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
