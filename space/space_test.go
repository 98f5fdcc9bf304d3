package space

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// source is where a test's choices come from: a seed, or a fuzzer's bytes.
type source interface{ IntN(n int) int }

type bytesSource struct{ data []byte }

func (b *bytesSource) IntN(n int) int {
	if len(b.data) == 0 {
		return 0
	}
	v := int(b.data[0])
	b.data = b.data[1:]
	return v % n
}

// term is a set, and the same as a question that is asked of one packet.
type term struct {
	text string
	set  Set
	has  func(Packet) bool
}

var (
	someAddrs = addrs("0.0.0.0", "10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.0", "10.128.0.0", "255.255.255.255", "::", "::1", "fd00::", "fd00::1", "fd00::ffff", "fd00:0:0:1::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	somePorts = []uint16{0, 1, 22, 79, 80, 81, 127, 128, 255, 256, 32767, 32768, 65534, 65535}
	someProto = []uint8{0, 1, 6, 17, 47, 58, 132, 255}
	someICMP  = []uint8{0, 3, 8, 128, 255}
)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func pick[T any](r source, list []T) T { return list[r.IntN(len(list))] }

// draw makes a term of some depth.
func draw(s *Space, r source, depth int) term {
	if depth > 0 {
		a, b := draw(s, r, depth-1), draw(s, r, depth-1)
		switch r.IntN(5) {
		case 0:
			return term{"(" + a.text + " and " + b.text + ")", a.set.And(b.set), func(p Packet) bool { return a.has(p) && b.has(p) }}
		case 1:
			return term{"(" + a.text + " or " + b.text + ")", a.set.Or(b.set), func(p Packet) bool { return a.has(p) || b.has(p) }}
		case 2:
			return term{"(" + a.text + " minus " + b.text + ")", a.set.Minus(b.set), func(p Packet) bool { return a.has(p) && !b.has(p) }}
		case 3:
			return term{"(" + a.text + " xor " + b.text + ")", a.set.Xor(b.set), func(p Packet) bool { return a.has(p) != b.has(p) }}
		default:
			return term{"not " + a.text, a.set.Not(), func(p Packet) bool { return !a.has(p) }}
		}
	}
	f, addr, port := SrcAddr, func(p Packet) netip.Addr { return p.Src }, func(p Packet) uint16 { return p.SrcPort }
	side := "src"
	portField := SrcPort
	if r.IntN(2) == 0 {
		f, portField, side = DstAddr, DstPort, "dst"
		addr, port = func(p Packet) netip.Addr { return p.Dst }, func(p Packet) uint16 { return p.DstPort }
	}
	switch r.IntN(6) {
	case 0:
		n := pick(r, someProto)
		return term{fmt.Sprint("proto ", n), s.Proto(n), func(p Packet) bool { return p.Protocol == n }}
	case 1:
		v := 4 + 2*r.IntN(2)
		return term{fmt.Sprint("ip", v), s.IP(v), func(p Packet) bool { return p.Src.Is4() == (v == 4) }}
	case 2:
		n := netip.PrefixFrom(pick(r, someAddrs), 0)
		n = netip.PrefixFrom(n.Addr(), r.IntN(n.Addr().BitLen()+1))
		return term{side + " " + n.String(), s.Net(f, n), func(p Packet) bool { return n.Contains(addr(p)) }}
	case 3:
		low := pick(r, someAddrs)
		high := pick(r, someAddrs)
		if low.Is4() != high.Is4() {
			high = low
		}
		return term{fmt.Sprint(side, " ", low, "-", high), s.Addrs(f, low, high), func(p Packet) bool {
			return addr(p).Is4() == low.Is4() && low.Compare(addr(p)) <= 0 && addr(p).Compare(high) <= 0
		}}
	case 4:
		low, high := pick(r, somePorts), pick(r, somePorts)
		return term{fmt.Sprint(side, " port ", low, "-", high), s.Ports(portField, low, high).And(s.HasPorts()), func(p Packet) bool {
			return slices.Contains(withPorts, p.Protocol) && low <= port(p) && port(p) <= high
		}}
	}
	n := pick(r, someICMP)
	field, value := ICMPType, func(p Packet) uint8 { return p.ICMPType }
	if r.IntN(2) == 0 {
		field, value = ICMPCode, func(p Packet) uint8 { return p.ICMPCode }
	}
	return term{fmt.Sprint("icmp ", field, " ", n), s.ICMP(field, n).And(s.IsICMP()), func(p Packet) bool {
		return (p.Protocol == protoICMP && p.Src.Is4() || p.Protocol == protoICMPv6 && p.Src.Is6()) && value(p) == n
	}}
}

// somePacket is one at the edges of what draw makes.
func somePacket(r source) Packet {
	p := Packet{Src: pick(r, someAddrs), Protocol: pick(r, someProto)}
	for p.Dst = pick(r, someAddrs); p.Dst.Is4() != p.Src.Is4(); {
		p.Dst = p.Src
	}
	switch {
	case slices.Contains(withPorts, p.Protocol):
		p.SrcPort, p.DstPort = pick(r, somePorts), pick(r, somePorts)
	case p.Protocol == protoICMP && p.Src.Is4() || p.Protocol == protoICMPv6 && p.Src.Is6():
		p.ICMPType, p.ICMPCode = pick(r, someICMP), pick(r, someICMP)
	}
	return p
}

// exactly is the headers of one packet.
func exactly(s *Space, p Packet) Set {
	set := s.Addrs(SrcAddr, p.Src, p.Src).And(s.Addrs(DstAddr, p.Dst, p.Dst)).And(s.Proto(p.Protocol))
	if slices.Contains(withPorts, p.Protocol) {
		set = set.And(s.Ports(SrcPort, p.SrcPort, p.SrcPort)).And(s.Ports(DstPort, p.DstPort, p.DstPort))
	}
	icmp := s.ICMP(ICMPType, p.ICMPType).And(s.ICMP(ICMPCode, p.ICMPCode))
	return set.And(icmp.Or(s.IsICMP().Not()))
}

// agree checks two terms and everything that can be said of both.
func agree(t *testing.T, s *Space, a, b term, packets []Packet) {
	t.Helper()
	for _, x := range []term{a, b} {
		for _, p := range packets {
			if x.set.Has(p) != x.has(p) {
				t.Fatalf("%s has %s: %v, want %v", x.text, p, x.set.Has(p), x.has(p))
			}
			if one := exactly(s, p).And(s.WellFormed()); one.Minus(x.set).IsEmpty() != x.has(p) || one.IsEmpty() {
				t.Fatalf("%s: of %s alone: %v", x.text, p, one.Minus(x.set).IsEmpty())
			}
		}
		if w, ok := x.set.And(s.WellFormed()).Witness(); ok == x.set.IsEmpty() || ok && (!x.has(w) || !x.set.Has(w)) {
			t.Fatalf("%s: witness %s, %v", x.text, w, ok)
		}
	}
	// Where the sets differ, so do the questions, and only there.
	d := a.set.Xor(b.set).And(s.WellFormed())
	w, ok := d.Witness()
	if ok && a.has(w) == b.has(w) {
		t.Fatalf("%s and %s differ in %s", a.text, b.text, w)
	}
	if !ok != a.set.Equal(b.set) {
		t.Fatalf("%s and %s: the same packets, %v, but equal: %v", a.text, b.text, !ok, a.set.Equal(b.set))
	}
	for _, p := range packets {
		if !ok && a.has(p) != b.has(p) {
			t.Fatalf("%s and %s are equal, but for %s", a.text, b.text, p)
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAgainstBruteForce(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := New(0)
		var packets []Packet
		for range 200 {
			packets = append(packets, somePacket(r))
		}
		agree(t, s, draw(s, r, r.IntN(5)), draw(s, r, r.IntN(5)), packets)
	}
}

func FuzzSets(f *testing.F) {
	f.Add([]byte("a seed that makes two terms of some depth and some packets"))
	f.Add([]byte{4, 4, 2, 0, 2, 31, 1, 2, 1, 33, 9, 9, 9, 9, 1, 4, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 400 {
			return
		}
		r := &bytesSource{data}
		s := New(0)
		a, b := draw(s, r, r.IntN(5)), draw(s, r, r.IntN(5))
		var packets []Packet
		for range 20 {
			packets = append(packets, somePacket(r))
		}
		agree(t, s, a, b, packets)
	})
}

// Corners are in the set, and the ends of a range are among them.
func TestCorners(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s := New(0)
	set := s.Addrs(DstAddr, netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.1.9")).And(s.Proto(6)).And(s.Ports(DstPort, 80, 90))
	ends := map[string]bool{}
	for range 2000 {
		p, ok := set.Corner(r)
		if !ok || !set.Has(p) {
			t.Fatalf("%s is no corner", p)
		}
		ends[p.Dst.String()], ends[fmt.Sprint(p.DstPort)] = true, true
	}
	for _, want := range []string{"10.0.0.3", "10.0.1.9", "80", "90"} {
		if !ends[want] {
			t.Errorf("%s is no corner of %v", want, ends)
		}
	}
	if _, ok := s.None().Corner(r); ok {
		t.Error("nothing has a corner")
	}
}

func TestUnionOfManyNets(t *testing.T) {
	s := New(0)
	var nets []netip.Prefix
	for i := range uint32(5000) {
		nets = append(nets, netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+2*i))), 31+int(i%2)))
	}
	set := s.Nets(SrcAddr, nets)
	for i := range uint32(10100) {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+i)))
		want := i < 10000 && (i%4 < 2 || i%2 == 0)
		if got := set.Has(Packet{Src: a, Dst: a}); got != want {
			t.Fatalf("%s: %v", a, got)
		}
	}
	if s.Size() > 5000*60 {
		t.Errorf("%d nodes", s.Size())
	}
}

// Field and Choose say the same as Bits and the operations.
func TestFieldAndChoose(t *testing.T) {
	s := New(0)
	bits := s.Field(Protocol)
	six := s.All()
	for i, want := range []bool{false, false, false, false, false, true, true, false} {
		if want {
			six = six.And(bits[i])
		} else {
			six = six.Minus(bits[i])
		}
	}
	if !six.Equal(s.Proto(6)) || six.ID() != s.Proto(6).ID() || six.ID() == s.Proto(7).ID() {
		t.Error("the bits of 6 are not protocol 6")
	}
	got := six.Choose(s.IP(4), s.IP(6))
	if !got.Equal(six.And(s.IP(4)).Or(six.Not().And(s.IP(6)))) {
		t.Error("it chooses neither")
	}
}

func TestLimit(t *testing.T) {
	s := New(50)
	set := s.All()
	for i := range uint16(200) {
		set = set.Minus(s.Ports(DstPort, 3*i, 3*i))
	}
	if !errors.Is(s.Err(), ErrTooLarge) || s.Size() > 50 {
		t.Errorf("%d nodes, %v", s.Size(), s.Err())
	}
}

func BenchmarkMinus(b *testing.B) {
	for b.Loop() {
		r := rand.New(rand.NewPCG(1, 1))
		s := New(0)
		left := s.All()
		for range 1000 {
			a := netip.AddrFrom4([4]byte{10, byte(r.IntN(256)), byte(r.IntN(256)), 0})
			low := uint16(r.IntN(60000))
			left = left.Minus(s.Net(SrcAddr, netip.PrefixFrom(a, 24)).And(s.Ports(DstPort, low, low+10)))
		}
		b.ReportMetric(float64(s.Size()), "nodes")
	}
}
