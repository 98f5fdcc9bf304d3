package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/internal/nstest"
)

// An ICMP error makes nothing of the connection that it is about allowed. The
// host sends some before it judges what they are about: to the client, whose
// own policy allows the connection, and to the server. And any workload can
// send one, which its own policy lets pass.
//
// Promise C2: what goes to an endpoint must pass its ingress policy.
func TestErrorsAllowNothing(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		host, a, b, st := pair(t)
		other := addWorkload(t, host, "tap3", 3)
		in := other.endpoint()
		in.Ingress = "out" // lets all in
		st.Interfaces.Set(other.name, in)
		tb := open(t)
		apply(t, tb, st)
		c := converse(t, a.NS, b.NS, addr(a), addr(b))
		st.Programs.Set(b.endpoint().Ingress, profile(allowOpen(unix.IPPROTO_TCP)))
		apply(t, tb, st)
		bump(t, tb)
		drops := uint64(0)
		forbidden := func(after string) {
			t.Helper()
			t.Log("after " + after)
			_, errClient := c.client.Write([]byte("no"))
			_, errServer := c.server.WriteToUDPAddrPort([]byte("no"), c.peer)
			if err := errors.Join(errClient, errServer); err != nil {
				t.Fatal(err)
			}
			drops += 2
			waitCounter(t, tb, counterUnmatched, drops)
		}
		forbidden("the change")
		hops(t, c.client, addr(a), 1)
		_, _ = c.client.Write([]byte("dies on the host"))
		hops(t, c.client, addr(a), 64)
		forbidden("an error to the client")
		hops(t, c.server, addr(b), 1)
		_, _ = c.server.WriteToUDPAddrPort([]byte("dies on the host"), c.peer)
		hops(t, c.server, addr(b), 64)
		forbidden("an error to the server")
		passed := listenError(t, a, addr(a))
		sendError(t, other, addr(other), c, addr(b))
		passed()
		forbidden("an error of another workload")
	})
}

// hops sets how far a socket's packets go.
func hops(t testing.TB, conn *net.UDPConn, own netip.Addr, n int) {
	t.Helper()
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if own.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, n) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

func icmpNetwork(own netip.Addr) (network string, unreachable []byte) {
	if own.Is6() {
		return "ip6:ipv6-icmp", []byte{1, 0, 0, 0, 0, 0, 0, 0}
	}
	return "ip4:icmp", []byte{3, 1, 0, 0, 0, 0, 0, 0}
}

// listenError returns a function that waits for a workload to receive an ICMP
// error.
func listenError(t testing.TB, w *workload, own netip.Addr) func() {
	t.Helper()
	network, unreachable := icmpNetwork(own)
	got := make(chan struct{}, 1)
	var conn *net.IPConn
	var err error
	w.Do(func() { conn, err = net.ListenIP(network, &net.IPAddr{IP: own.AsSlice()}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFromIP(b)
			if err != nil {
				return
			}
			if n > 1 && b[0] == unreachable[0] && b[1] == unreachable[1] {
				got <- struct{}{}
				return
			}
		}
	}()
	return func() { t.Helper(); nstest.Receive(t, got) }
}

// sendError has a workload tell the client of a conversation that the server
// cannot be reached.
func sendError(t testing.TB, from *workload, own netip.Addr, c *conversation, server netip.Addr) {
	t.Helper()
	network, message := icmpNetwork(own)
	client := c.peer.Addr().Unmap()
	udp := binary.BigEndian.AppendUint16(nil, c.peer.Port())
	udp = append(binary.BigEndian.AppendUint16(udp, openPort), 0, 8, 0, 0)
	if own.Is6() {
		message = append(message, 0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64)
	} else {
		head := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		head = append(append(head, client.AsSlice()...), server.AsSlice()...)
		binary.BigEndian.PutUint16(head[10:], nstest.Checksum(head))
		message = append(message, head[:12]...)
	}
	message = append(append(append(message, client.AsSlice()...), server.AsSlice()...), udp...)
	if !own.Is6() { // the kernel sums ICMPv6 itself
		binary.BigEndian.PutUint16(message[2:], nstest.Checksum(message))
	}
	var err error
	from.Do(func() {
		var conn *net.IPConn
		if conn, err = net.DialIP(network, &net.IPAddr{IP: own.AsSlice()}, &net.IPAddr{IP: client.AsSlice()}); err == nil {
			_, err = conn.Write(message)
			_ = conn.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
