package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/internal/nstest"
)

// none checks that nothing arrived. Call it when something later has arrived
// by the same way, or a counter shows the drop.
func (l *listener) none(t testing.TB) {
	t.Helper()
	select {
	case got := <-l.got:
		t.Errorf("%q passed", got)
	default:
	}
}

// eachFamily runs a test for IPv4 and IPv6.
func eachFamily(t *testing.T, f func(t *testing.T, addr func(*workload) netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { f(t, func(w *workload) netip.Addr { return w.v4 }) })
	t.Run("IPv6", func(t *testing.T) { f(t, func(w *workload) netip.Addr { return w.v6 }) })
}

func bump(t testing.TB, tb *Tables) {
	t.Helper()
	if err := tb.BumpEpoch(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Promise C2, C3, S3: what no rule allows is dropped, and counted.
func TestAllowAndDeny(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		tb := open(t)
		apply(t, tb, st)
		settled(t, tb, st)
		opened, closed := listen(t, b.NS, addr(b), openPort), listen(t, b.NS, addr(b), closedPort)
		send(t, a.NS, addr(a), addr(b), closedPort, "no")
		waitCounter(t, tb, counterUnmatched, 1)
		send(t, a.NS, addr(a), addr(b), openPort, "yes")
		opened.wait(t, "yes")
		closed.none(t)
		// Egress is judged too.
		st.Programs.Set("out", profile())
		apply(t, tb, st)
		bump(t, tb)
		send(t, a.NS, addr(a), addr(b), openPort, "no")
		waitCounter(t, tb, counterUnmatched, 2)
		opened.none(t)
	})
}

// Promise S5, S6: each thing that a rule can look at, with real packets. The
// packet is UDP from a to port 7000 of b.
func TestRuleMatches(t *testing.T) {
	type matrix map[string]struct {
		rule desired.Rule
		pass [2]bool // IPv4, IPv6
	}
	port := func(ps ...uint16) (rs []desired.PortRange) {
		for i := 0; i < len(ps); i += 2 {
			rs = append(rs, desired.PortRange{Min: ps[i], Max: ps[i+1]})
		}
		return rs
	}
	both, neither, only4, only6 := [2]bool{true, true}, [2]bool{}, [2]bool{true, false}, [2]bool{false, true}
	cases := matrix{
		"anything":              {desired.Rule{}, both},
		"family 4":              {desired.Rule{Family: 4}, only4},
		"family 6":              {desired.Rule{Family: 6}, only6},
		"protocol":              {desired.Rule{Protocol: 17}, both},
		"other protocol":        {desired.Rule{Protocol: 6}, neither},
		"not protocol":          {desired.Rule{NotProtocol: 17}, neither},
		"not other protocol":    {desired.Rule{NotProtocol: 6}, both},
		"icmp":                  {desired.Rule{ICMP: &desired.ICMP{Type: 8, Code: -1}}, neither},
		"port":                  {desired.Rule{Protocol: 17, Destination: desired.Peer{Ports: port(7000, 7000)}}, both},
		"port without protocol": {desired.Rule{Destination: desired.Peer{Ports: port(7000, 7000)}}, both},
		"port range":            {desired.Rule{Protocol: 17, Destination: desired.Peer{Ports: port(6000, 7000)}}, both},
		"port list":             {desired.Rule{Protocol: 17, Destination: desired.Peer{Ports: port(80, 80, 7000, 65535)}}, both},
		"port list missed":      {desired.Rule{Protocol: 17, Destination: desired.Peer{Ports: port(80, 80, 7001, 65535)}}, neither},
		"not port":              {desired.Rule{Protocol: 17, Destination: desired.Peer{NotPorts: port(7000, 7000)}}, neither},
		"not port range":        {desired.Rule{Protocol: 17, Destination: desired.Peer{NotPorts: port(1, 6999)}}, both},
		"not port list":         {desired.Rule{Protocol: 17, Destination: desired.Peer{NotPorts: port(1, 1, 7000, 7001)}}, neither},
		"source port":           {desired.Rule{Protocol: 17, Source: desired.Peer{Ports: port(1024, 65535)}}, both},
		"source port missed":    {desired.Rule{Protocol: 17, Source: desired.Peer{Ports: port(1, 1023)}}, neither},
		"net":                   {desired.Rule{Source: desired.Peer{Nets: prefixes("10.65.0.0/16", "fd00::/64")}}, both},
		"net of one family":     {desired.Rule{Source: desired.Peer{Nets: prefixes("fd00::/9")}}, only6},
		"odd net":               {desired.Rule{Source: desired.Peer{Nets: prefixes("10.65.0.0/31", "fd00::/127")}}, both},
		"odd net missed":        {desired.Rule{Destination: desired.Peer{Nets: prefixes("10.65.0.0/31", "fd00::/127")}}, neither},
		"everywhere":            {desired.Rule{Source: desired.Peer{Nets: prefixes("0.0.0.0/0", "::/0")}}, both},
		"everywhere in IPv4":    {desired.Rule{Source: desired.Peer{Nets: prefixes("0.0.0.0/0")}}, only4},
		"nets that overlap":     {desired.Rule{Destination: desired.Peer{Nets: prefixes("10.0.0.0/8", "10.65.0.0/16", "192.0.2.0/24", "::/1", "fd00::/8")}}, both},
		"nets up to the end":    {desired.Rule{Destination: desired.Peer{Nets: prefixes("1.0.0.0/8", "10.65.0.0/16", "240.0.0.0/4", "fc00::/8", "fd00::/16", "ffff::/16")}}, both},
		"not net":               {desired.Rule{Source: desired.Peer{NotNets: prefixes("10.65.0.1/32", "fd00::/15")}}, neither},
		"not nets":              {desired.Rule{Source: desired.Peer{NotNets: prefixes("10.65.0.2/32", "10.66.0.0/16", "fd00::1/128", "fe80::/10")}}, only4},
		"not everywhere":        {desired.Rule{Source: desired.Peer{NotNets: prefixes("0.0.0.0/0")}}, only6},
		"set":                   {desired.Rule{Source: desired.Peer{Set: 1}}, both},
		"set of ranges":         {desired.Rule{Source: desired.Peer{Set: 2}}, both},
		"set missed":            {desired.Rule{Destination: desired.Peer{Set: 1}}, neither},
		"set of everything":     {desired.Rule{Destination: desired.Peer{Set: 3}}, both},
		"not set":               {desired.Rule{Source: desired.Peer{NotSet: 1}}, neither},
		"not set of ranges":     {desired.Rule{Source: desired.Peer{NotSet: 2}}, neither},
		"not set, in range":     {desired.Rule{Destination: desired.Peer{NotSet: 2}}, neither},
		"not set, not in":       {desired.Rule{Destination: desired.Peer{NotSet: 1}}, both},
		"named port":            {desired.Rule{Destination: desired.Peer{Named: 11}}, both},
		"named port, protocol":  {desired.Rule{Protocol: 17, Destination: desired.Peer{Named: 11}}, both},
		"named for TCP only":    {desired.Rule{Destination: desired.Peer{Named: 12}}, neither},
		"named of the other":    {desired.Rule{Source: desired.Peer{Named: 11}}, neither},
		"named in range":        {desired.Rule{Destination: desired.Peer{Named: 13}}, both},
		"not named":             {desired.Rule{Destination: desired.Peer{NotNamed: 11}}, neither},
		"not named in range":    {desired.Rule{Destination: desired.Peer{NotNamed: 13}}, neither},
		"not named, other":      {desired.Rule{Destination: desired.Peer{NotNamed: 12}}, both},
		"named and set":         {desired.Rule{Source: desired.Peer{Set: 2}, Destination: desired.Peer{Named: 11}}, both},
		"set and not set":       {desired.Rule{Source: desired.Peer{Set: 2, NotSet: 1}}, neither},
	}
	_, a, b, st := pair(t)
	tb := open(t)
	addSet(st, 1, "10.65.0.1/32", "fd00::1/128")
	addSet(st, 2, "10.65.0.0/25", "10.65.0.128/25", "10.66.0.9/32", "fd00::/64", "fd00:0:0:1::/64")
	addSet(st, 3, "0.0.0.0/0", "::/0")
	addPlaces(st, 11, 17, "10.65.0.2/32", "fd00::2/128", "10.65.1.2/32")
	addPlaces(st, 12, 6, "10.65.0.2/32", "fd00::2/128", "10.65.0.0/24", "fd00::/64")
	addPlaces(st, 13, 17, "10.65.0.0/24", "fd00::/64", "10.66.0.0/16")
	drops := uint64(0)
	l4, l6 := listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)
	for name, c := range cases {
		for _, negative := range []bool{false, true} { // the rule denies, and what it leaves is allowed
			c.rule.Verdict = desired.Allow
			p := profile(c.rule)
			if negative {
				c.rule.Verdict = desired.Deny
				p = profile(c.rule, desired.Rule{Verdict: desired.Allow})
			}
			st.Programs.Set(b.endpoint().Ingress, p)
			apply(t, tb, st)
			bump(t, tb)
			for i, try := range []struct {
				l    *listener
				a, b netip.Addr
			}{{l4, a.v4, b.v4}, {l6, a.v6, b.v6}} {
				text := fmt.Sprintf("%s, deny %v, family %d", name, negative, 4+2*i)
				send(t, a.NS, try.a, try.b, openPort, text)
				if c.pass[i] != negative {
					try.l.wait(t, text)
					continue
				}
				if !negative { // explicit denials are not counted
					drops++
					waitCounter(t, tb, counterUnmatched, drops)
				}
			}
		}
	}
	l4.none(t)
	l6.none(t)
}

// Many tiers: a pass goes on, and too many of them deny everything and say so.
func TestTiers(t *testing.T) {
	_, a, b, st := pair(t)
	tb := open(t)
	tiers := func(n int) desired.Program {
		var p desired.Program
		for i := range n {
			p.Stages = append(p.Stages, desired.Stage{Name: fmt.Sprint(i), Rules: []desired.Rule{
				{Verdict: desired.Deny, Protocol: 6}, {Verdict: desired.Next, Protocol: 17},
			}})
		}
		p.Stages = append(p.Stages, desired.Stage{Name: "profiles", Rules: []desired.Rule{{Verdict: desired.Allow}}})
		return p
	}
	l := listen(t, b.NS, b.v6, openPort)
	st.Programs.Set(b.endpoint().Ingress, tiers(maxDepth-1))
	st.Programs.Set("out", tiers(maxDepth-1))
	apply(t, tb, st)
	settled(t, tb, st)
	send(t, a.NS, a.v6, b.v6, openPort, "through all tiers")
	l.wait(t, "through all tiers")
	st.Programs.Set(b.endpoint().Ingress, tiers(maxDepth))
	if _, err := tb.Apply(context.Background(), st); err == nil || !strings.Contains(err.Error(), "too many tiers") {
		t.Errorf("too many tiers: %v", err)
	}
	bump(t, tb)
	send(t, a.NS, a.v6, b.v6, openPort, "no")
	waitCounter(t, tb, counterUnmatched, 1)
	l.none(t)
	// Tiers that only fall through need no chain of their own.
	p := tiers(0)
	for range 40 {
		p.Stages = append([]desired.Stage{{End: desired.Next, Rules: []desired.Rule{{Verdict: desired.Deny, Protocol: 6}}}}, p.Stages...)
	}
	st.Programs.Set(b.endpoint().Ingress, p)
	apply(t, tb, st)
	send(t, a.NS, a.v6, b.v6, openPort, "through forty")
	l.wait(t, "through forty")
}

// conversation is a UDP connection from a to port 7000 of b that stays open.
type conversation struct {
	t      testing.TB
	client *net.UDPConn
	server *net.UDPConn
	peer   netip.AddrPort // of the client, as the server sees it
}

func converse(t testing.TB, a, b *nstest.NS, from, to netip.Addr) *conversation {
	t.Helper()
	c := &conversation{t: t}
	var err error
	b.Do(func() {
		c.server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, openPort)))
	})
	if err == nil {
		a.Do(func() {
			c.client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, openPort)))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.client.Close(), c.server.Close() })
	c.upload("first")
	c.download("first")
	return c
}

func (c *conversation) upload(text string) {
	c.t.Helper()
	if _, err := c.client.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = c.server.SetReadDeadline(time.Now().Add(timeout))
	n, from, err := c.server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != text {
		c.t.Fatalf("server received %q, %v, want %q", buf[:n], err, text)
	}
	c.peer = from
}

func (c *conversation) download(text string) {
	c.t.Helper()
	if _, err := c.server.WriteToUDPAddrPort([]byte(text), c.peer); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = c.client.SetReadDeadline(time.Now().Add(timeout))
	n, err := c.client.Read(buf)
	if err != nil || string(buf[:n]) != text {
		c.t.Fatalf("client received %q, %v, want %q", buf[:n], err, text)
	}
}

// An allowed connection survives a bump, whichever side sends first after it;
// a forbidden one is cut in both directions before the bump returns.
func TestEpoch(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		tb := open(t)
		apply(t, tb, st)
		c := converse(t, a.NS, b.NS, addr(a), addr(b))
		bump(t, tb)
		c.upload("up")
		bump(t, tb)
		c.download("down")
		bump(t, tb)
		c.download("down again")
		st.Programs.Set(b.endpoint().Ingress, profile(allowOpen(6)))
		apply(t, tb, st)
		c.upload("the old verdict holds until the bump")
		bump(t, tb)
		_, _ = c.client.Write([]byte("no"))
		waitCounter(t, tb, counterUnmatched, 1)
		if _, err := c.server.WriteToUDPAddrPort([]byte("no"), c.peer); err != nil {
			t.Fatal(err)
		}
		waitCounter(t, tb, counterUnmatched, 2)
		for _, conn := range []*net.UDPConn{c.client, c.server} {
			_ = conn.SetReadDeadline(time.Unix(1, 0))
			if n, err := conn.Read(make([]byte, 10)); err == nil {
				t.Errorf("%d bytes passed", n)
			}
		}
	})
}

// What forbids something without interval sets has every connection judged
// again by the transaction itself.
func TestBumpInOneTransaction(t *testing.T) {
	_, a, b, st := pair(t)
	tb := open(t)
	apply(t, tb, st)
	c := converse(t, a.NS, b.NS, a.v4, b.v4)
	before := tb.epoch
	st.Programs.Set("out", profile())
	st.Tightened = true
	if res := apply(t, tb, st); !res.Bumped || res.Transactions != 1 || tb.epoch != nextEpoch(before) {
		t.Errorf("%+v, epoch %#x after %#x", res, tb.epoch, before)
	}
	st.Tightened = false
	_, _ = c.client.Write([]byte("no"))
	_, _ = c.server.Write([]byte("no"))
	waitCounter(t, tb, counterUnmatched, 1)
	settled(t, tb, st)
}

// A process that ends between a commit that forbids and its bump leaves word of
// that to the next one.
func TestCrashBeforeBump(t *testing.T) {
	_, a, b, st := pair(t)
	tb := open(t)
	addSet(st, 1, "10.65.0.0/16", "198.51.100.0/24", "fd00::/16")
	st.Programs.Set("out", profile(desired.Rule{Verdict: desired.Allow, Source: desired.Peer{Set: 1}}))
	apply(t, tb, st)
	c := converse(t, a.NS, b.NS, a.v4, b.v4)
	st.Members.Delete(member1("10.65.0.0/16", true))
	st.Tightened = true
	if res := apply(t, tb, st); res.Bumped {
		t.Errorf("%+v: a transaction that changes an interval set bumped the epoch", res)
	}
	st.Tightened = false
	settledButDue := open(t)
	if res := apply(t, settledButDue, st); res != (Result{Repaired: true}) {
		t.Errorf("a new process: %+v, want to be told to bump, and nothing written", res)
	}
	if res := apply(t, settledButDue, st); res != (Result{}) {
		t.Errorf("told again: %+v", res)
	}
	bump(t, settledButDue)
	_, _ = c.client.Write([]byte("no"))
	waitCounter(t, tb, counterUnmatched, 1)
	settled(t, settledButDue, st)
}

func TestEpochLeavesOtherBits(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	tb.epoch = EpochMask // the next one wraps
	apply(t, tb, st)
	host.Run(t, "nft", "add table inet other; add chain inet other c { type filter hook forward priority -1; }; add rule inet other c ct mark set ct mark or 0x5000000")
	c := converse(t, a.NS, b.NS, a.v4, b.v4)
	bump(t, tb)
	if tb.epoch != 1 {
		t.Errorf("epoch after %#x is %#x, want 1", EpochMask, tb.epoch)
	}
	c.upload("up")
	if out := host.Run(t, "conntrack", "-L", "-p", "udp"); !strings.Contains(out, fmt.Sprintf("mark=%d ", 0x5000001)) {
		t.Errorf("want mark 0x5000001 on: %s", out)
	}
}

// Promise C1: a workload cannot use another's address or MAC, in IPv4 and IPv6.
func TestSpoof(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		host, a, b, st := pair(t)
		thief := addWorkload(t, host, "tap3", 3)
		in := thief.endpoint()
		in.Ingress = b.endpoint().Ingress
		st.Interfaces.Set(thief.name, in)
		tb := open(t)
		apply(t, tb, st)
		c := converse(t, a.NS, b.NS, addr(a), addr(b))
		before, err := tb.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		spoofed := before[counterSpoofed].Packets
		// The neighbour's address, and the very tuple of its connection.
		thief.Run(t, "ip", "addr", "add", addr(a).String(), "dev", "eth0", "nodad")
		var conn *net.UDPConn
		thief.Do(func() {
			conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(c.peer), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(b), openPort)))
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("stolen"))
		_ = conn.Close()
		waitCounter(t, tb, counterSpoofed, spoofed+1)
		c.upload("honest") // nothing came before it
		// Its own address from another MAC.
		thief.Run(t, "ip", "link", "set", "eth0", "address", "02:99:00:00:00:01")
		l := listen(t, b.NS, addr(b), closedPort)
		send(t, thief.NS, addr(thief), addr(b), closedPort, "no")
		waitCounter(t, tb, counterSpoofed, spoofed+2)
		l.none(t)
	})
}

// An endpoint without a MAC may use any, but no address of another.
func TestSpoofWithoutMAC(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		for _, w := range []*workload{a, b} {
			in := w.endpoint()
			in.HasMAC, in.MAC = false, [6]byte{}
			st.Interfaces.Set(w.name, in)
		}
		tb := open(t)
		apply(t, tb, st)
		l := listen(t, b.NS, addr(b), openPort)
		gateway := a.Run(t, "ip", "-o", "neigh", "show", "nud", "permanent")
		a.Run(t, "ip", "link", "set", "eth0", "address", "02:99:00:00:00:01")
		for _, line := range strings.Split(strings.TrimSpace(gateway), "\n") {
			a.Run(t, "ip", append([]string{"neigh", "replace"}, strings.Fields(strings.Replace(line, "PERMANENT", "nud permanent", 1))...)...)
		}
		send(t, a.NS, addr(a), addr(b), openPort, "any MAC")
		l.wait(t, "any MAC")
		cs, err := tb.Counters(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		other := map[bool]string{true: "10.65.0.77", false: "fd00::77"}[addr(a).Is4()]
		a.Run(t, "ip", "addr", "add", other, "dev", "eth0", "nodad")
		send(t, a.NS, netip.MustParseAddr(other), addr(b), openPort, "no")
		waitCounter(t, tb, counterSpoofed, cs[counterSpoofed].Packets+1)
		l.none(t)
	})
}

// frame sends an Ethernet frame from a workload.
func (w *workload) frame(t testing.TB, b []byte) {
	t.Helper()
	var err error
	w.Do(func() {
		in, ierr := net.InterfaceByName("eth0")
		fd, serr := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if ierr != nil || serr != nil {
			err = errors.Join(ierr, serr)
			return
		}
		err = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: in.Index})
		_ = unix.Close(fd)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func arpRequest(ether, sender [6]byte, from, to netip.Addr) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), ether[:]...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, sender[:]...), from.AsSlice()...)
	return append(append(b, make([]byte, 6)...), to.AsSlice()...)
}

// neighbourAdvert claims target in an unsolicited advertisement.
func neighbourAdvert(ether [6]byte, from, target netip.Addr) []byte {
	to := netip.MustParseAddr("ff02::1")
	icmp := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
	icmp = append(append(icmp, 2, 1), ether[:]...)
	all := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58) // the pseudo-header
	sum := uint32(0)
	for all = append(all, icmp...); len(all) > 0; all = all[2:] {
		sum += uint32(binary.BigEndian.Uint16(all))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))
	b := append([]byte{0x33, 0x33, 0, 0, 0, 1}, ether[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), icmp...)
}

// Promise C1: neither ARP nor neighbour advertisements may claim what is not
// the endpoint's.
func TestSpoofNeighbourDiscovery(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	apply(t, tb, st)
	gateway, other := netip.MustParseAddr(gateway4), [6]byte{2, 9, 9, 9, 9, 9}
	for i, f := range [][]byte{
		arpRequest(a.mac, a.mac, b.v4, gateway), // another's address
		arpRequest(a.mac, other, a.v4, gateway), // another MAC in the message
		arpRequest(other, other, a.v4, gateway), // another MAC altogether
	} {
		a.frame(t, f)
		waitCounter(t, tb, "arp/"+counterSpoofed, uint64(i)+1)
	}
	host.Run(t, "ip", "neigh", "flush", "dev", a.name, "nud", "all")
	a.frame(t, arpRequest(a.mac, a.mac, a.v4, gateway))
	deadline := time.Now().Add(timeout)
	for !strings.Contains(host.Run(t, "ip", "-4", "neigh", "show", "dev", a.name), a.v4.String()) {
		if time.Now().After(deadline) {
			t.Fatal("an honest ARP request is not heard")
		}
	}
	cs, err := tb.Counters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	before := cs[counterSpoofed].Packets
	a.frame(t, neighbourAdvert(a.mac, a.v6, b.v6))
	waitCounter(t, tb, counterSpoofed, before+1)
	a.frame(t, neighbourAdvert(a.mac, netip.MustParseAddr("fe80::a"), b.v6))
	waitCounter(t, tb, counterSpoofed, before+2)
	a.frame(t, neighbourAdvert(a.mac, a.v6, a.v6))
	a.frame(t, neighbourAdvert(a.mac, netip.MustParseAddr("fe80::a"), netip.MustParseAddr("fe80::a")))
	a.frame(t, neighbourAdvert(other, a.v6, a.v6)) // the last one shows that the two before passed
	waitCounter(t, tb, counterSpoofed, before+3)
	if cs, err = tb.Counters(context.Background()); err != nil || cs[counterSpoofed].Packets != before+3 {
		t.Errorf("honest advertisements were dropped: %v %v", cs, err)
	}
}

// Promise S2, C2: an interface with the prefix and without an endpoint passes
// nothing, either way; neither does one of an endpoint whose program is gone.
func TestUnknownInterface(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		tb := open(t)
		st.Interfaces.Delete(b.name)
		apply(t, tb, st)
		drops := func() uint64 {
			cs, err := tb.Counters(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			return cs[counterUnknown].Packets
		}
		la, lb := listen(t, a.NS, addr(a), openPort), listen(t, b.NS, addr(b), openPort)
		n := drops()
		send(t, a.NS, addr(a), addr(b), openPort, "to nobody")
		waitCounter(t, tb, counterUnknown, n+1)
		n = drops()
		send(t, b.NS, addr(b), addr(a), openPort, "from nobody")
		waitCounter(t, tb, counterUnknown, n+1)
		la.none(t)
		lb.none(t)
		in := b.endpoint()
		in.Ingress = "missing"
		st.Interfaces.Set(b.name, in)
		apply(t, tb, st)
		send(t, a.NS, addr(a), addr(b), openPort, "no program")
		send(t, b.NS, addr(b), addr(a), openPort, "from it")
		la.wait(t, "from it")
		st.Programs.Set("missing", profile(allowOpen(17)))
		apply(t, tb, st)
		send(t, a.NS, addr(a), addr(b), openPort, "program is there")
		lb.wait(t, "program is there")
	})
}

// The table of a host that boots lets nothing pass, and is left alone if it is
// there.
func TestSkeleton(t *testing.T) {
	host, a, b, st := pair(t)
	tb, ctx := open(t), context.Background()
	if installed, err := tb.Skeleton(ctx); !installed || err != nil {
		t.Fatalf("skeleton: %v, %v", installed, err)
	}
	before := host.Run(t, "nft", "list", "ruleset")
	if installed, err := open(t).Skeleton(ctx); installed || err != nil {
		t.Errorf("skeleton again: %v, %v", installed, err)
	}
	if after := host.Run(t, "nft", "list", "ruleset"); after != before {
		t.Errorf("the second touched the first:\n%s", after)
	}
	l4, l6 := listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)
	for _, from := range []*nstest.NS{a.NS, host} {
		for _, to := range []netip.Addr{b.v4, b.v6} {
			from.Do(func() {
				if c, err := net.Dial("udp", netip.AddrPortFrom(to, openPort).String()); err == nil {
					_, _ = c.Write([]byte("closed"))
					_ = c.Close()
				}
			})
		}
	}
	if res := apply(t, tb, st); res.Repaired || res.Writes == 0 {
		t.Errorf("apply on our own skeleton: %+v", res)
	}
	settled(t, tb, st)
	send(t, a.NS, a.v4, b.v4, openPort, "open")
	l4.wait(t, "open")
	send(t, a.NS, a.v6, b.v6, openPort, "open")
	l6.wait(t, "open")
}

// What is between a workload and its host: egress policy and the host action
// one way, no limit the other way, and DHCP in any case.
func TestHostTraffic(t *testing.T) {
	for _, action := range []string{HostReturn, HostAccept, HostDrop} {
		t.Run(action, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
				host, a, _, st := pair(t)
				hostAddr := netip.MustParseAddr(gateway4)
				if addr(a).Is6() {
					host.Run(t, "ip", "addr", "add", "fd99::1/128", "dev", "lo", "nodad")
					local(t, host, "lo", "fd99::1")
					hostAddr = netip.MustParseAddr("fd99::1")
				}
				st.Programs.Set("out", profile(allowOpen(17)))
				tb := openWith(t, action)
				apply(t, tb, st)
				opened, closed := listen(t, host, hostAddr, openPort), listen(t, host, hostAddr, closedPort)
				send(t, a.NS, addr(a), hostAddr, closedPort, "no")
				waitCounter(t, tb, counterUnmatched, 1)
				send(t, a.NS, addr(a), hostAddr, openPort, "yes")
				if action == HostDrop {
					waitCounter(t, tb, counterHost, 1)
					opened.none(t)
				} else {
					opened.wait(t, "yes")
				}
				closed.none(t)
				// The host reaches its workload, and hears its answers, also after a bump.
				c := converse(t, host, a.NS, hostAddr, addr(a))
				bump(t, tb)
				c.download("answer")
				bump(t, tb)
				c.upload("question")
				// DHCP needs no policy.
				from, to := uint16(68), uint16(67)
				if addr(a).Is6() {
					from, to = 546, 547
				}
				dhcp := listen(t, host, hostAddr, to)
				var conn *net.UDPConn
				var err error
				a.Do(func() {
					conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(a), from)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(hostAddr, to)))
				})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				_, _ = conn.Write([]byte("renew"))
				dhcp.wait(t, "renew")
				bump(t, tb)
				if _, err := dhcp.conn.WriteToUDPAddrPort([]byte("ack"), netip.AddrPortFrom(addr(a), from)); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(timeout))
				if _, err := conn.Read(make([]byte, 10)); err != nil {
					t.Errorf("DHCP answer: %v", err)
				}
			})
		})
	}
}

// A connection of a workload to the host is cut like any other.
func TestHostConnectionIsCut(t *testing.T) {
	host, a, _, st := pair(t)
	tb := open(t)
	apply(t, tb, st)
	c := converse(t, a.NS, host, a.v4, netip.MustParseAddr(gateway4))
	bump(t, tb)
	c.download("allowed")
	st.Programs.Set("out", profile())
	apply(t, tb, st)
	bump(t, tb)
	_, err := c.server.WriteToUDPAddrPort([]byte("no"), c.peer)
	t.Logf("the host's own send: %v", err) // EPERM, as for any drop on output
	waitCounter(t, tb, counterUnmatched, 1)
	_, _ = c.client.Write([]byte("no"))
	waitCounter(t, tb, counterUnmatched, 2)
}

// Policy sees addresses and ports as they are after destination NAT.
func TestDestinationNAT(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	apply(t, tb, st)
	host.Run(t, "nft", "add table inet nat; add chain inet nat pre { type nat hook prerouting priority -100; }; "+
		"add rule inet nat pre ip daddr 192.0.2.1 udp dport 9000 dnat ip to "+b.v4.String()+":7000; "+
		"add rule inet nat pre ip6 daddr fd77::1 udp dport 9000 dnat ip6 to ["+b.v6.String()+"]:7000; "+
		"add rule inet nat pre ip daddr 192.0.2.1 udp dport 7000 dnat ip to "+b.v4.String()+":7001")
	l4, l6 := listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)
	closed := listen(t, b.NS, b.v4, closedPort)
	send(t, a.NS, a.v4, netip.MustParseAddr("192.0.2.1"), 7000, "no")
	waitCounter(t, tb, counterUnmatched, 1)
	send(t, a.NS, a.v4, netip.MustParseAddr("192.0.2.1"), 9000, "yes")
	l4.wait(t, "yes")
	send(t, a.NS, a.v6, netip.MustParseAddr("fd77::1"), 9000, "yes")
	l6.wait(t, "yes")
	closed.none(t)
}

// An ICMP error about an allowed connection passes, also when a bump made the
// connection stale.
func TestICMPErrorOfStaleConnection(t *testing.T) {
	eachFamily(t, func(t *testing.T, addr func(*workload) netip.Addr) {
		_, a, b, st := pair(t)
		tb := open(t)
		apply(t, tb, st)
		c := converse(t, a.NS, b.NS, addr(a), addr(b))
		bump(t, tb)
		_ = c.server.Close() // so that b's kernel answers with port unreachable
		b.Do(func() {
			path := "/proc/sys/net/ipv4/icmp_ratelimit"
			_ = os.WriteFile(path, []byte("0"), 0o644)
			_ = os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0o644)
		})
		if _, err := c.client.Write([]byte("anybody?")); err != nil {
			t.Fatal(err)
		}
		_ = c.client.SetReadDeadline(time.Now().Add(timeout))
		if _, err := c.client.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("want the refusal, got %v", err)
		}
	})
}

// ping sends an echo request and, if so told, waits for the reply.
func ping(t testing.TB, from *nstest.NS, to netip.Addr, wait bool) {
	t.Helper()
	network, request, answer := "ip4:icmp", []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}, byte(0)
	if to.Is6() {
		network, request, answer = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 1, 0, 1}, 129
	}
	var conn *net.IPConn
	var err error
	from.Do(func() { conn, err = net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()}) })
	if err == nil {
		_, err = conn.Write(request)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	for buf := make([]byte, 100); wait; {
		n, _, err := conn.ReadFrom(buf) // unlike Read it leaves out the IP header
		if err != nil {
			t.Fatalf("no reply from %s: %v", to, err)
		}
		if n > 0 && buf[0] == answer {
			return
		}
	}
}

// TCP, and ping by ICMP type.
func TestTCPAndPing(t *testing.T) {
	_, a, b, st := pair(t)
	tb := open(t)
	addPlaces(st, 12, 6, b.v4.String()+"/32", b.v6.String()+"/128")
	// What has no ports is not meant by a list of ports that are not to be.
	st.Programs.Set(b.endpoint().Ingress, profile(desired.Rule{Destination: desired.Peer{NotNamed: 12}}, allowOpen(6),
		desired.Rule{Verdict: desired.Allow, Protocol: 1, ICMP: &desired.ICMP{Type: 8, Code: 0}},
		desired.Rule{Verdict: desired.Allow, Protocol: 58, ICMP: &desired.ICMP{Type: 128, Code: -1}}))
	apply(t, tb, st)
	for _, to := range []netip.Addr{b.v4, b.v6} {
		ping(t, a.NS, to, true)
		var l net.Listener
		var err error
		b.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(to, openPort).String()) })
		if err != nil {
			t.Fatal(err)
		}
		var conn net.Conn
		a.Do(func() { conn, err = net.DialTimeout("tcp", l.Addr().String(), timeout) })
		if err != nil {
			t.Fatalf("connect to %s: %v", to, err)
		}
		_, _ = conn.Close(), l.Close()
	}
	st.Programs.Set(b.endpoint().Ingress, profile(
		desired.Rule{Verdict: desired.Allow, Protocol: 1, NotICMP: &desired.ICMP{Type: 8, Code: 0}},
		desired.Rule{Verdict: desired.Allow, Protocol: 58, NotICMP: &desired.ICMP{Type: 128, Code: -1}}))
	apply(t, tb, st)
	bump(t, tb)
	for i, to := range []netip.Addr{b.v4, b.v6} {
		ping(t, a.NS, to, false)
		waitCounter(t, tb, counterUnmatched, uint64(i)+1)
	}
}

// A Log rule notes the packet for nflog, with the rule's name, and goes on.
func TestLog(t *testing.T) {
	_, a, b, st := pair(t)
	tb := open(t)
	st.Programs.Set(b.endpoint().Ingress, profile(desired.Rule{Verdict: desired.Log}, allowOpen(17)))
	apply(t, tb, st)
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nl.Close() }()
	bind := netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | 1, Flags: netlink.Request | netlink.Acknowledge}}
	bind.Data = binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, LogGroup)
	bind.Data = append(bind.Data, 5, 0, 1, 0, 1, 0, 0, 0) // NFULA_CFG_CMD: bind
	if _, err := nl.Execute(bind); err != nil {
		t.Fatal(err)
	}
	l := listen(t, b.NS, b.v4, openPort)
	send(t, a.NS, a.v4, b.v4, openPort, "logged")
	l.wait(t, "logged")
	_ = nl.SetReadDeadline(time.Now().Add(timeout))
	msgs, err := nl.Receive()
	if err != nil || !bytes.Contains(msgs[0].Data, []byte("GlobalNetworkPolicy//p/Ingress/0\x00")) {
		t.Errorf("log messages %v, %v", msgs, err)
	}
}

// Traffic between interfaces that are no workload's is not ours: it passes and
// its connections are not marked.
func TestOtherTrafficIsLeftAlone(t *testing.T) {
	host, _, _, st := pair(t)
	x, y := addWorkload(t, host, "eth1", 21), addWorkload(t, host, "eth2", 22)
	tb := open(t)
	apply(t, tb, st)
	converse(t, x.NS, y.NS, x.v4, y.v4)
	converse(t, x.NS, y.NS, x.v6, y.v6)
	converse(t, x.NS, host, x.v4, netip.MustParseAddr(gateway4))
	out := host.Run(t, "conntrack", "-L", "-p", "udp")
	if !strings.Contains(out, "mark=0 ") || strings.Contains(out, fmt.Sprintf("mark=%d ", tb.epoch)) {
		t.Errorf("connections of others: %s", out)
	}
}
