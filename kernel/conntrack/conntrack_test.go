package conntrack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func open(t testing.TB) *Conntrack {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// insert makes a UDP entry: source and destination as the originator sees
// them, and the replier's own address.
func insert(t testing.TB, c *Conntrack, source, dest, replier string, port, zone uint16) {
	t.Helper()
	if err := c.insert(source, dest, replier, port, zone); err != nil {
		t.Fatalf("insert %s %s: %v", source, dest, err)
	}
}

func (c *Conntrack) insert(source, dest, replier string, port, zone uint16) error {
	s, d, r := netip.MustParseAddr(source), netip.MustParseAddr(dest), netip.MustParseAddr(replier)
	family := byte(unix.AF_INET)
	if s.Is6() {
		family = unix.AF_INET6
	}
	tuple := func(from, to netip.Addr, sport, dport uint16) []byte {
		src, dst := uint16(nl.CTA_IP_V4_SRC), uint16(nl.CTA_IP_V4_DST)
		if from.Is6() {
			src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
		}
		b := nlattr.Append(nil, nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nlattr.Append(nlattr.Append(nil, src, from.AsSlice()), dst, to.AsSlice()))
		p := nlattr.Append(nil, nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
		p = nlattr.Append(p, nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, sport))
		p = nlattr.Append(p, nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, dport))
		return nlattr.Append(b, nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, p)
	}
	b := nlattr.Append(nil, nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, tuple(s, d, port, 53))
	b = nlattr.Append(b, nl.CTA_TUPLE_REPLY|unix.NLA_F_NESTED, tuple(r, s, 53, port))
	b = nlattr.Append(b, nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, 600))
	if zone != 0 {
		b = nlattr.Append(b, ctaZone, binary.BigEndian.AppendUint16(nil, zone))
	}
	req := c.request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, family)
	req.AddRawData(b)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// list prints all entries, sorted.
func list(t testing.TB, c *Conntrack) []string {
	t.Helper()
	var out []string
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := c.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, family).ExecuteIter(unix.NETLINK_NETFILTER, 0, func(b []byte) bool {
			var line string
			zone := uint16(0)
			for typ, v := range nlattr.All(b[sizeofNfgenmsg:]) {
				switch typ {
				case nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY:
					s, d := ends(v)
					line += fmt.Sprintf("%s>%s ", s, d)
				case ctaZone:
					zone = binary.BigEndian.Uint16(v)
				}
			}
			out = append(out, fmt.Sprintf("%szone %d", line, zone))
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestDelete(t *testing.T) {
	nstest.New(t)
	c := open(t)
	for i, pair := range [][3]string{
		{"10.65.0.2", "10.65.0.3", "10.65.0.3"},
		{"10.65.0.3", "10.65.0.2", "10.65.0.2"},
		{"10.65.0.3", "192.0.2.1", "10.65.0.2"}, // its address is in the reply only
		{"10.65.0.3", "10.65.0.4", "10.65.0.4"},
		{"10.65.0.3", "10.65.0.22", "10.65.0.22"},
		{"fd00:65::2", "fd00:65::3", "fd00:65::3"},
		{"fd00:65::3", "fd00:65::2", "fd00:65::2"},
		{"fd00:65::3", "2001:db8::1", "fd00:65::2"},
		{"fd00:65::3", "fd00:65::4", "fd00:65::4"},
	} {
		insert(t, c, pair[0], pair[1], pair[2], uint16(1024+i), 0)
	}
	kept := []string{
		"10.65.0.3>10.65.0.22 10.65.0.22>10.65.0.3 zone 0",
		"10.65.0.3>10.65.0.4 10.65.0.4>10.65.0.3 zone 0",
		"fd00:65::3>fd00:65::4 fd00:65::4>fd00:65::3 zone 0",
	}
	for _, want := range []int{6, 0} {
		n, err := c.Delete(t.Context(), addrs("10.65.0.2", "fd00:65::2", "10.65.9.9"))
		if err != nil || n != want {
			t.Errorf("%d deleted, want %d; error %v", n, want, err)
		}
		if diff := cmp.Diff(kept, list(t, c)); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
	}
	if n, err := c.Delete(t.Context(), nil); n != 0 || err != nil {
		t.Errorf("without addresses: %d deleted, error %v", n, err)
	}
}

// The same tuple in two zones is two connections, and both are the address's;
// an entry of a zone is deleted by its zone.
func TestZones(t *testing.T) {
	nstest.New(t)
	c := open(t)
	for zone := range uint16(3) {
		insert(t, c, "10.65.0.2", "10.65.0.3", "10.65.0.3", 1024, zone)
		insert(t, c, "fd00:65::2", "fd00:65::3", "fd00:65::3", 1024, zone)
		insert(t, c, "10.65.0.4", "10.65.0.3", "10.65.0.3", 1024, zone)
	}
	if n, err := c.Delete(t.Context(), addrs("10.65.0.2", "fd00:65::2")); n != 6 || err != nil {
		t.Errorf("%d deleted, want 6; error %v", n, err)
	}
	want := []string{
		"10.65.0.4>10.65.0.3 10.65.0.3>10.65.0.4 zone 0",
		"10.65.0.4>10.65.0.3 10.65.0.3>10.65.0.4 zone 1",
		"10.65.0.4>10.65.0.3 10.65.0.3>10.65.0.4 zone 2",
	}
	if diff := cmp.Diff(want, list(t, c)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// Connections as the kernel makes them: TCP and UDP, both families.
func TestRealConnections(t *testing.T) {
	ns := nstest.New(t)
	// Something must ask for tracking.
	ns.Run(t, "nft", "add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state invalid drop")
	for _, a := range []string{"10.65.0.2/32", "fd00:65::2/128"} {
		ns.Run(t, "ip", "addr", "add", a, "dev", "lo")
	}
	c := open(t)
	for _, a := range []string{"10.65.0.2", "fd00:65::2"} {
		server, err := net.Listen("tcp", net.JoinHostPort(a, "80"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
		client, err := net.DialTimeout("tcp", net.JoinHostPort(a, "80"), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		udp, err := net.Dial("udp", net.JoinHostPort(a, "53"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = udp.Close() }()
		if _, err := udp.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if before := list(t, c); len(before) < 4 {
		t.Fatalf("too few connections: %v", before)
	}
	if n, err := c.Delete(t.Context(), addrs("10.65.0.2", "fd00:65::2")); n < 4 || err != nil {
		t.Errorf("%d deleted, want 4 or more; error %v", n, err)
	}
	for _, e := range list(t, c) {
		if strings.Contains(e, "65:") || strings.Contains(e, "10.65") {
			t.Errorf("left: %s", e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0x80, 4, 0, 1, 0})
	named := map[netip.Addr]struct{}{{}: {}, netip.MustParseAddr("10.65.0.2"): {}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := parse(b, named); ok && e.tuple == nil {
			t.Error("an entry without a tuple")
		}
	})
}

func BenchmarkDelete(b *testing.B) {
	nstest.New(b)
	c := open(b)
	for i := range 5000 {
		insert(b, c, fmt.Sprintf("10.66.%d.%d", i/250, i%250), "10.65.0.3", "10.65.0.3", 1024, 0)
	}
	for b.Loop() {
		insert(b, c, "10.65.0.2", "10.65.0.3", "10.65.0.3", 1024, 0)
		if n, err := c.Delete(b.Context(), addrs("10.65.0.2", "fd00:65::2")); n != 1 || err != nil {
			b.Fatal(n, err)
		}
	}
}
