package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const (
	group = 7
	one4  = "10.65.0.2"
	one6  = "fd00:65::2"
)

// host is a namespace that has two addresses and rules of an output chain.
func host(t testing.TB, rules ...string) {
	t.Helper()
	ns := nstest.New(t)
	for _, a := range []string{one4 + "/32", one6 + "/128"} {
		ns.Run(t, "ip", "addr", "add", a, "dev", "lo")
	}
	table := "add table inet t; add chain inet t out { type filter hook output priority 0; }; add chain inet t in { type filter hook prerouting priority 0; };"
	for _, r := range rules {
		table += "add rule inet t " + r + ";"
	}
	ns.Run(t, "nft", table)
}

func open(t testing.TB, opts Options) *Reader {
	t.Helper()
	opts.Group = group
	r, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// run reads until the test ends; the channel has what was read.
func run(t testing.TB, r *Reader) <-chan Packet {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan Packet, 1<<16)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, func(p Packet) { out <- p }) }()
	t.Cleanup(func() {
		cancel()
		if err := nstest.Receive(t, ended); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return out
}

// write sends one packet of a protocol as package net names it.
func write(t testing.TB, network, to string, data []byte) (source netip.AddrPort) {
	t.Helper()
	c, err := net.Dial(network, to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	source, _ = netip.ParseAddrPort(c.LocalAddr().String())
	return source
}

// What is read of packets that the kernel made: each protocol and family.
func TestPackets(t *testing.T) {
	host(t,
		`out tcp flags & (syn | ack) == syn log prefix "tcp" group 7`,
		`out udp dport 53 meta mark set 9 log prefix "udp" group 7`,
		`out icmp type echo-request log prefix "ping4" group 7`,
		`out icmpv6 type echo-request log prefix "ping6" group 7`,
		`in udp dport 54 log prefix "in" group 7`,
		`out udp dport 53 log prefix "other" group 8`,
	)
	packets := run(t, open(t, Options{}))
	lo := nstest.Index(t, "lo")
	for family, addr := range map[int]string{4: one4, 6: one6} {
		a := netip.MustParseAddr(addr)
		base := Packet{Family: family, Source: a, Destination: a, Out: lo}
		header := map[int]int{4: 20, 6: 40}[family]
		expect := func(want Packet, ignore ...string) {
			t.Helper()
			if diff := cmp.Diff(want, nstest.Receive(t, packets), cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreFields(Packet{}, ignore...)); diff != "" {
				t.Errorf("IPv%d (-want +got):\n%s", family, diff)
			}
		}

		l, err := net.Listen("tcp", net.JoinHostPort(addr, "80"))
		if err != nil {
			t.Fatal(err)
		}
		want := base
		want.SourcePort = write(t, "tcp", l.Addr().String(), nil).Port()
		_ = l.Close()
		want.Prefix, want.Protocol, want.HasPorts, want.DestinationPort = "tcp", unix.IPPROTO_TCP, true, 80
		expect(want, "Length")

		want = base
		want.SourcePort = write(t, "udp", net.JoinHostPort(addr, "53"), make([]byte, 1000)).Port()
		want.Prefix, want.Protocol, want.HasPorts, want.DestinationPort = "udp", unix.IPPROTO_UDP, true, 53
		want.Mark, want.Length = 9, header+8+1000
		expect(want)

		want = base
		want.Prefix, want.Protocol, want.HasICMP, want.Length = fmt.Sprintf("ping%d", family), unix.IPPROTO_ICMP, true, header+8
		network, typ := "ip4:icmp", byte(8)
		if family == 6 {
			network, typ, want.Protocol = "ip6:ipv6-icmp", 128, unix.IPPROTO_ICMPV6
		}
		want.Type = typ
		write(t, network, addr, []byte{typ, 0, 0, 0, 0, 0, 0, 0})
		expect(want)

		want = base
		want.SourcePort = write(t, "udp", net.JoinHostPort(addr, "54"), nil).Port()
		want.Prefix, want.Protocol, want.HasPorts, want.DestinationPort = "in", unix.IPPROTO_UDP, true, 54
		want.In, want.Out, want.Length = lo, 0, header+8
		expect(want)
	}
}

// Packets that nobody reads fill the buffer and are lost, and not one of them
// is unaccounted for: they are numbered by their ports.
func TestLossIsCounted(t *testing.T) {
	const first, burst = 1000, 20000
	host(t, `out udp dport 1000-65535 log prefix "burst" group 7`, "in udp dport 1000-65535 drop")
	r := open(t, Options{Buffer: 64 << 10})
	c, err := net.ListenPacket("udp", net.JoinHostPort(one4, "999"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	port := first
	send := func() {
		if _, err := c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.ParseIP(one4), Port: port}); err != nil {
			t.Fatal(err)
		}
		port++
	}
	for range burst {
		send()
	}
	packets := run(t, r)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(nstest.Limit)
	for got, lost := 0, 0; ; {
		select {
		case <-tick.C:
			send() // what shows that some were lost before it
			continue
		case <-limit:
			t.Fatalf("nothing after the burst was read; of the burst %d, %d lost", got, lost)
		case p := <-packets:
			got++
			lost += int(p.Lost)
			if n := int(p.DestinationPort) - first + 1; got+lost != n {
				t.Fatalf("packet %d: %d read and %d lost before it", n, got-1, lost)
			}
			if int(p.DestinationPort) >= first+burst {
				if lost == 0 || got < 100 {
					t.Errorf("%d read and %d lost: the test shows nothing", got, lost)
				}
				t.Logf("%d read, %d lost", got, lost)
				return
			}
		}
	}
}

// A group has one reader, whose end frees it.
func TestBusy(t *testing.T) {
	host(t, `out udp dport 53 log prefix "udp" group 7`)
	r := open(t, Options{})
	if _, err := Open(Options{Group: group}); !errors.Is(err, ErrBusy) || !strings.Contains(fmt.Sprint(err), "group 7") {
		t.Errorf("the second reader: %v", err)
	}
	other, err := Open(Options{Group: group + 1})
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx, func(Packet) {}); err != nil {
		t.Errorf("run: %v", err)
	}
	packets := run(t, open(t, Options{}))
	write(t, "udp", net.JoinHostPort(one4, "53"), nil)
	if p := nstest.Receive(t, packets); p.Prefix != "udp" || p.Lost != 0 {
		t.Errorf("read %+v", p)
	}
}

// A reader that is closed meanwhile says so.
func TestClosed(t *testing.T) {
	host(t)
	r := open(t, Options{})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background(), func(Packet) {}) }()
	_ = r.Close()
	if err := nstest.Receive(t, ended); err == nil {
		t.Error("no error")
	}
}

// A reader is of the namespace that it was opened in.
func TestNamespace(t *testing.T) {
	other := nstest.Create(t)
	host(t, `out udp dport 53 log prefix "here" group 7`)
	packets := run(t, open(t, Options{}))
	other.Do(func() {
		r, err := Open(Options{Group: group})
		if err != nil {
			t.Errorf("the same group elsewhere: %v", err)
			return
		}
		_ = r.Close()
	})
	write(t, "udp", net.JoinHostPort(one4, "53"), nil)
	if p := nstest.Receive(t, packets); p.Prefix != "here" {
		t.Errorf("read %+v", p)
	}
}

// wire makes a datagram of one packet.
func wire(number uint32, payload []byte) []byte {
	b := []byte{unix.AF_INET, 0, 0, group}
	b = nlattr.Append(b, attrPrefix, []byte("rule\x00"))
	b = nlattr.Append(b, attrIn, binary.BigEndian.AppendUint32(nil, 3))
	b = nlattr.Append(b, attrPayload, payload)
	b = nlattr.Append(b, attrNumber, binary.BigEndian.AppendUint32(nil, number))
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(b)))
	m = binary.NativeEndian.AppendUint16(m, msgPacket)
	return append(append(m, make([]byte, 10)...), b...)
}

func ip6(next byte, rest ...byte) []byte {
	b := make([]byte, 40, 128)
	b[0], b[5], b[6] = 0x60, byte(len(rest)), next
	return append(b, rest...)
}

// Where the ports of a packet are, and where there are none.
func TestTransport(t *testing.T) {
	udp := []byte{1, 0, 2, 0, 0, 8, 0, 0}
	ip4 := func(header, fragment byte, rest ...byte) []byte {
		b := make([]byte, 20, 128)
		b[0], b[7], b[9] = 0x40|header, fragment, unix.IPPROTO_UDP
		return append(b, rest...)
	}
	for name, c := range map[string]struct {
		packet   []byte
		protocol uint8
		ports    bool
	}{
		"plain":                  {ip4(5, 0, udp...), 17, true},
		"options":                {ip4(6, 0, append(make([]byte, 4), udp...)...), 17, true},
		"later fragment":         {ip4(5, 1, udp...), 17, false},
		"cut in options":         {ip4(15, 0, udp...), 17, false},
		"header too small":       {ip4(4, 0, udp...), 17, false},
		"cut":                    {ip4(5, 0, udp[:3]...), 17, false},
		"no packet":              {[]byte{0x45}, 0, false},
		"neither":                {make([]byte, 100), 0, false},
		"plain 6":                {ip6(17, udp...), 17, true},
		"cut 6":                  {ip6(17, udp[:4]...), 17, true},
		"hop by hop 6":           {ip6(0, append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, udp...)...), 17, true},
		"two headers 6":          {ip6(60, append(append([]byte{51, 1}, make([]byte, 14)...), append([]byte{17, 1, 11: 0}, udp...)...)...), 17, true},
		"authenticated 6":        {ip6(51, append([]byte{17, 1, 11: 0}, udp...)...), 17, true},
		"first fragment 6":       {ip6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, udp...)...), 17, true},
		"later fragment 6":       {ip6(44, append([]byte{17, 0, 1, 1, 0, 0, 0, 0}, udp...)...), 17, false},
		"header that is cut 6":   {ip6(43, 17, 200, 0, 0, 0, 0, 0, 0), 17, false},
		"header that is short 6": {ip6(43, 17, 0), 43, false},
	} {
		for p := range packets(wire(1, c.packet)) {
			if p.Protocol != c.protocol || p.HasPorts != c.ports || c.ports && (p.SourcePort != 256 || p.DestinationPort != 512) {
				t.Errorf("%s: %+v", name, p.Packet)
			}
			if p.Prefix != "rule" || p.In != 3 || p.number != 1 || !p.numbered {
				t.Errorf("%s: %+v", name, p)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	one := wire(1, ip6(0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 53, 0, 53, 0, 8, 0, 0))
	f.Add(one)
	f.Add(append(one, wire(3, append([]byte{0x45, 9: 1, 19: 0}, 8, 0, 0, 0))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for p := range packets(b) {
			n++
			if p.Family != 0 && (!p.Source.IsValid() || p.Source.Is4() != (p.Family == 4)) {
				t.Errorf("family %d, source %v", p.Family, p.Source)
			}
			if p.HasPorts && p.HasICMP || strings.ContainsRune(p.Prefix, 0) {
				t.Errorf("%+v", p)
			}
		}
		r := &Reader{}
		r.take(b, func(Packet) { n-- })
		if n != 0 {
			t.Errorf("%d packets were not handed on", n)
		}
	})
}

func BenchmarkTake(b *testing.B) {
	datagram := wire(1, append([]byte{0x45, 9: 6, 19: 0}, make([]byte, 40)...))
	for range 99 {
		datagram = append(datagram, wire(1, append([]byte{0x45, 9: 6, 19: 0}, make([]byte, 40)...))...)
	}
	b.ReportAllocs()
	r := &Reader{}
	for b.Loop() {
		r.take(datagram, func(Packet) {})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/packet")
}
