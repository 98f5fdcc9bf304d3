package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A guest whose own policy lets it reach the host alone does not reach another
// guest by naming that as a further stop: the connection is one to the host.
// For IPv4 the host may be set to route so; for IPv6 the interface would have to be,
// by a setting that is off.
//
// Promise C2: what a guest sends must pass its egress policy.
func TestAttackSourceRoute(t *testing.T) {
	s := newScenario(t)
	s.outside()
	host := map[int]string{4: "192.0.2.2", 6: "2001:db8::2"}
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, allow))
	s.put(policyOf("clients"), policyDoc("clients", `role == "client"`, allow, allow))
	to := fmt.Sprintf(`{"action":"Allow","destination":{"nets":["%s/32","%s/128"]}}`, host[4], host[6])
	s.revision = s.put(policyOf("other"), policyDoc("other", `role == "other"`, allow, to))
	s.ns.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.accept_source_route=1", "net.ipv6.conf.all.accept_source_route=1", "net.ipv6.conf.all.seg6_enabled=1")
	s.run()
	guest, server, client := s.wire(s.other), s.wire(s.server), s.wire(s.client)
	at := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	for _, f := range families {
		from, dest := netip.MustParseAddr(s.other.addr(f)), netip.MustParseAddr(host[f])
		data := udpSegment(4000, 9000, forbidden) // without a checksum, which the stops would change
		if f == 4 {
			for _, kind := range []byte{131, 137} {
				guest.packet(ip4Packet(from, dest, unix.IPPROTO_UDP, append([]byte{kind, 7, 4}, append(at(s.server.v4), 0)...), data))
			}
		} else {
			for _, kind := range []byte{0, 2, 3} {
				guest.packet(ip6Packet(from, dest, 43, slices.Concat([]byte{253, 2, kind, 1, 0, 0, 0, 0}, at(s.server.v6), data)))
			}
			guest.packet(ip6Packet(from, dest, 43, slices.Concat([]byte{253, 4, 4, 1, 1, 0, 0, 0}, at(s.server.v6), at(host[6]), data)))
		}
		client.packet(ipPacket(s.client.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(4000, 9000, "honest")))
		server.await("what is honest", func(b []byte) bool {
			if bytes.Contains(b, []byte(forbidden)) {
				t.Errorf("IPv%d: delivered: %q", f, b)
			}
			return bytes.HasSuffix(b, []byte("honest"))
		})
	}
}

// unreachable is an ICMP error about a datagram of another.
func unreachable(from, to, innerFrom, innerTo string, fromPort, toPort uint16) []byte {
	inner := ipPacket(innerFrom, innerTo, unix.IPPROTO_UDP, udpSegment(fromPort, toPort, "data"))
	if netip.MustParseAddr(from).Is6() {
		return ipPacket(from, to, unix.IPPROTO_ICMPV6, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, inner...))
	}
	return ipPacket(from, to, unix.IPPROTO_ICMP, append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, inner...))
}

// refused waits until a connected socket has an error or a datagram.
func refusal(t *testing.T, c *net.UDPConn) error {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	_, err := c.Read(make([]byte, 100))
	if errors.Is(err, unix.ECONNREFUSED) || err == nil {
		return err
	}
	t.Fatal(err)
	return nil
}

// An ICMP error of a guest about a connection that it is no end of does not reach
// the host, which would believe that the other end is gone; about its own it
// does. Nor does it reach who is no end of the connection.
//
// Promise C10: what a guest sends to the host must be allowed.
func TestAttackErrors(t *testing.T) {
	s := newScenario(t)
	o := s.outside()
	s.run()
	host := &guest{ns: s.ns, v4: "192.0.2.2", v6: "2001:db8::2"}
	thief, server := s.wire(s.other), s.wire(s.server)
	for _, f := range families {
		dial := func(from, to *guest, port int) (*net.UDPConn, *net.UDPConn, uint16) {
			far := s.udp(to, f, port)
			var c *net.UDPConn
			var err error
			from.ns.Do(func() {
				c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from.addr(f))}, far.LocalAddr().(*net.UDPAddr))
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			_, _ = c.Write([]byte("hello"))
			_ = far.SetReadDeadline(time.Now().Add(timeout))
			if _, _, err = far.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			return c, far, uint16(c.LocalAddr().(*net.UDPAddr).Port)
		}
		answer := func(c, far *net.UDPConn) {
			t.Helper()
			if _, err := far.WriteToUDPAddrPort([]byte("well"), c.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				t.Fatal(err)
			}
			if err := refusal(t, c); err != nil {
				t.Errorf("IPv%d: %s to %s: %v", f, c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
		me, outside := s.other.addr(f), o.addr(f)
		refused := s.counter("invalid")
		c, far, port := dial(host, o, 7000)
		thief.packet(unreachable(me, host.addr(f), host.addr(f), outside, port, 7000))
		refused++
		s.counts("invalid", refused)
		answer(c, far)
		// To one that is no end of the connection, the kernel knows of none.
		c, far, port = dial(s.client, s.server, 7001)
		thief.packet(unreachable(me, s.server.addr(f), s.client.addr(f), s.server.addr(f), port, 7001))
		refused++
		s.counts("invalid", refused)
		answer(c, far)
		server.all(func(b []byte) {
			if bytes.Contains(b, []byte("data")) {
				t.Errorf("IPv%d: delivered: %q", f, b)
			}
		})
		// About its own connection the host hears it.
		c, _, port = dial(host, s.other, 7002)
		thief.packet(unreachable(me, c.LocalAddr().(*net.UDPAddr).IP.String(), c.LocalAddr().(*net.UDPAddr).IP.String(), me, port, 7002))
		if err := refusal(t, c); err == nil {
			t.Errorf("IPv%d: the host was not told", f)
		}
	}
}

// A guest that leaves with the host's address does not get what is sent to a
// port of the host: it cannot have a connection from that port, by which the
// kernel would know the packet.
//
// Promise N12.
func TestAttackPortShadow(t *testing.T) {
	s := newScenario(t)
	o := s.outside()
	s.put(apiKey("IPPool", "a"), poolDoc("a", "10.65.0.0/16"))
	s.revision = s.put(apiKey("IPPool", "b"), poolDoc("b", "fd00:65::/32"))
	s.run()
	thief := s.wire(s.other)
	host := &guest{ns: s.ns, v4: "192.0.2.2", v6: "2001:db8::2"}
	for _, f := range families {
		for _, port := range []int{22, 500, 4789, 9100} { // between equals, as IKE and VXLAN are
			far, near := s.udp(o, f, port), s.udp(host, f, port)
			thief.packet(ipPacket(s.other.addr(f), o.addr(f), unix.IPPROTO_UDP, udpSegment(uint16(port), uint16(port), "mine")))
			_ = far.SetReadDeadline(time.Now().Add(timeout))
			_, from, err := far.ReadFromUDPAddrPort(make([]byte, 10))
			if err != nil {
				t.Fatal(err)
			}
			if from.Addr() != netip.MustParseAddr(host.addr(f)) {
				t.Fatalf("it came from %s", from)
			}
			if _, err := far.WriteToUDPAddrPort([]byte("to the host"), near.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
				t.Fatal(err)
			}
			_ = near.SetReadDeadline(time.Now().Add(time.Second))
			if _, _, err := near.ReadFromUDPAddrPort(make([]byte, 20)); err != nil {
				t.Errorf("IPv%d, port %d: the guest, which came from %s, has what was sent to the host", f, port, from)
			}
			// What answers the guest reaches it.
			if _, err := far.WriteToUDPAddrPort([]byte("to the guest"), from); err != nil {
				t.Fatal(err)
			}
			thief.await("the answer", func(b []byte) bool { return bytes.HasSuffix(b, []byte("to the guest")) })
			_, _ = far.Close(), near.Close()
		}
	}
}

func poolDoc(name, cidr string) string {
	return fmt.Sprintf(`{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"cidr":%q,"natOutgoing":true}}`, name, cidr)
}
