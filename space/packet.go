package space

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Packet is a header with the parts that packets of its protocol have.
type Packet struct {
	Src, Dst           netip.Addr
	Protocol           uint8
	SrcPort, DstPort   uint16 // of protocols with ports
	ICMPType, ICMPCode uint8  // of ICMP and ICMPv6
}

const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// withPorts are the protocols whose packets have ports: TCP, UDP, DCCP, SCTP
// and UDP-Lite.
var withPorts = []uint8{6, 17, 33, 132, 136}

// String prints the packet as an operator would say it.
func (p Packet) String() string {
	switch {
	case slices.Contains(withPorts, p.Protocol):
		name := map[uint8]string{6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}[p.Protocol]
		return fmt.Sprintf("%s %s > %s", name, netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort))
	case p.Protocol == protoICMP || p.Protocol == protoICMPv6:
		name := map[bool]string{true: "icmp", false: "icmpv6"}[p.Protocol == protoICMP]
		return fmt.Sprintf("%s type %d code %d %s > %s", name, p.ICMPType, p.ICMPCode, p.Src, p.Dst)
	}
	return fmt.Sprintf("protocol %d %s > %s", p.Protocol, p.Src, p.Dst)
}

// IP is the headers of an IP version, 4 or 6.
func (s *Space) IP(version int) Set {
	return s.Bits(Family, []byte{byte(version / 6)}, []byte{1})
}

// Proto is the headers of any of some protocols.
func (s *Space) Proto(protocols ...uint8) Set {
	sets := make([]Set, 0, len(protocols))
	for _, p := range protocols {
		sets = append(sets, s.Bits(Protocol, []byte{p}, []byte{255}))
	}
	return s.Union(sets...)
}

// HasPorts is the headers of protocols with ports.
func (s *Space) HasPorts() Set { return s.Proto(withPorts...) }

// IsICMP is ICMP in IPv4 and ICMPv6 in IPv6.
func (s *Space) IsICMP() Set {
	return s.IP(4).And(s.Proto(protoICMP)).Or(s.IP(6).And(s.Proto(protoICMPv6)))
}

// Ports is the headers whose SrcPort or DstPort is one from low to high,
// whatever the protocol: And it with HasPorts.
func (s *Space) Ports(f Field, low, high uint16) Set {
	return s.Range(f, []byte{byte(low >> 8), byte(low)}, []byte{byte(high >> 8), byte(high)})
}

// ICMP is the headers with an ICMPType or ICMPCode, whatever the protocol.
func (s *Space) ICMP(f Field, value uint8) Set { return s.Bits(f, []byte{value}, []byte{255}) }

// Net is the headers, of the prefix's family, whose SrcAddr or DstAddr is in a
// prefix.
func (s *Space) Net(f Field, p netip.Prefix) Set {
	value, version := wide(p.Addr())
	mask := make([]byte, 16)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return s.IP(version).And(s.Bits(f, value, mask))
}

// Nets is the headers whose SrcAddr or DstAddr is in any of some prefixes.
func (s *Space) Nets(f Field, list []netip.Prefix) Set {
	sets := make([]Set, 0, len(list))
	for _, p := range list {
		sets = append(sets, s.Net(f, p))
	}
	return s.Union(sets...)
}

// Addrs is the headers whose SrcAddr or DstAddr is from low to high, which are
// of one family.
func (s *Space) Addrs(f Field, low, high netip.Addr) Set {
	l, version := wide(low)
	h, _ := wide(high)
	if version == 4 {
		for i := 4; i < 16; i++ {
			h[i] = 255 // bits that an IPv4 address has not
		}
	}
	return s.IP(version).And(s.Range(f, l, h))
}

// wide is an address as a field has it.
func wide(a netip.Addr) (value []byte, version int) {
	a = a.Unmap()
	value = make([]byte, 16)
	copy(value, a.AsSlice())
	if a.Is4() {
		return value, 4
	}
	return value, 6
}

// WellFormed is one header for each packet: the bits that packets of its kind
// have not are zero.
func (s *Space) WellFormed() Set {
	zero := func(f Field) Set { return s.Range(f, nil, nil) }
	ports, icmp := zero(SrcPort).And(zero(DstPort)), zero(ICMPType).And(zero(ICMPCode))
	rest := s.Bits(SrcAddr, nil, slices.Repeat([]byte{255}, 12)).And(s.Bits(DstAddr, nil, slices.Repeat([]byte{255}, 12)))
	return ports.Or(s.HasPorts()).And(icmp.Or(s.IsICMP())).And(rest.Or(s.IP(6)))
}

// Has reports whether a packet is in the set; bits that it has not are zero.
func (a Set) Has(p Packet) bool {
	var h header
	set := func(f Field, value []byte) {
		for i := range width[f] {
			h[first[f]+i] = bitOf(value, width[f], i)
		}
	}
	src, version := wide(p.Src)
	dst, _ := wide(p.Dst)
	set(Family, []byte{byte(version / 6)})
	set(Protocol, []byte{p.Protocol})
	set(ICMPType, []byte{p.ICMPType})
	set(ICMPCode, []byte{p.ICMPCode})
	set(SrcPort, []byte{byte(p.SrcPort >> 8), byte(p.SrcPort)})
	set(DstPort, []byte{byte(p.DstPort >> 8), byte(p.DstPort)})
	set(SrcAddr, src)
	set(DstAddr, dst)
	return a.has(&h)
}

// Witness is a packet of the set, the first in the order of the fields, if
// there is one. The set should be within WellFormed, or not depend on the bits
// that packets have not: those are lost.
func (a Set) Witness() (Packet, bool) {
	if a.IsEmpty() {
		return Packet{}, false
	}
	return a.choose(lowest, lowest).packet(), true
}

// Corner is a packet of the set drawn from the corners of the boxes that it is
// made of, if there is one.
func (a Set) Corner(r *rand.Rand) (Packet, bool) {
	if a.IsEmpty() {
		return Packet{}, false
	}
	return a.corner(r).packet(), true
}

// packet is what a header says.
func (h *header) packet() Packet {
	value := func(f Field) []byte {
		b := make([]byte, (width[f]+7)/8)
		for i := range width[f] {
			if h[first[f]+i] {
				back := width[f] - 1 - i
				b[len(b)-1-back/8] |= 1 << (back % 8)
			}
		}
		return b
	}
	p := Packet{Protocol: value(Protocol)[0]}
	size := 4 + 12*int(value(Family)[0])
	p.Src, _ = netip.AddrFromSlice(value(SrcAddr)[:size])
	p.Dst, _ = netip.AddrFromSlice(value(DstAddr)[:size])
	if slices.Contains(withPorts, p.Protocol) {
		src, dst := value(SrcPort), value(DstPort)
		p.SrcPort, p.DstPort = uint16(src[0])<<8|uint16(src[1]), uint16(dst[0])<<8|uint16(dst[1])
	}
	if size == 4 && p.Protocol == protoICMP || size == 16 && p.Protocol == protoICMPv6 {
		p.ICMPType, p.ICMPCode = value(ICMPType)[0], value(ICMPCode)[0]
	}
	return p
}
