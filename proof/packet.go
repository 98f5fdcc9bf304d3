package proof

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"golang.org/x/sys/unix"

	"tortie/explain"
	"tortie/internal/nstest"
)

// Kinds of packets.
const (
	Opens  = ""       // opens a connection: SYN, INIT, a query
	Midway = "midway" // TCP in the middle of a connection: ACK
	Answer = "answer" // SYN-ACK, INIT-ACK, an answer to a query
)

// Packet is one packet and where it is sent.
type Packet struct {
	From string `json:"from"`           // a place: "h1/0" is a workload's, "h1" a host's, "outside1" that beyond h1
	Kind string `json:"kind,omitempty"` // one of the above
	MAC  string `json:"mac,omitempty"`  // that it is sent from, if not that of the place
	explain.Packet
}

func (p Packet) String() string {
	s := fmt.Sprintf("%s protocol %d from %s, %s to %s", p.Kind, p.Protocol, p.From, netip.AddrPortFrom(p.Src, p.SrcPort), netip.AddrPortFrom(p.Dst, p.DstPort))
	if p.MAC != "" {
		s += ", MAC " + p.MAC
	}
	if p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6 {
		s += fmt.Sprintf(", type %d code %d", p.ICMPType, p.ICMPCode)
	}
	return s
}

// protocols that packets have. Each of them is received on hosts.
var protocols = []uint8{
	unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_GRE, unix.IPPROTO_ICMPV6,
	89, 115, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, 253,
}

// queries are the ICMP types that open a connection, with those that answer.
var queries = map[int]map[uint8]uint8{
	4: {8: 0, 13: 14, 15: 16, 17: 18},
	6: {128: 129, 139: 140},
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}

// opens says whether connection tracking makes a connection of the packet, if
// it is of none.
func (p Packet) opens() bool {
	switch p.Protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		_, query := queries[family(p.Dst)][p.ICMPType]
		return query && (p.Protocol == unix.IPPROTO_ICMP) == p.Dst.Is4()
	case unix.IPPROTO_TCP, unix.IPPROTO_SCTP:
		return p.Kind != Answer
	}
	return true
}

// tracked says whether a packet that answers this one can be told from one
// that opens a connection.
func (p Packet) tracked() bool {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_SCTP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return p.opens()
	}
	return false
}

// answer is the answer to the packet as it arrived somewhere.
func (p Packet) answer(at Arrival) Packet {
	a := p
	a.From, a.Kind, a.MAC = at.Place, Answer, ""
	a.Src, a.Dst = at.Dst, at.Src
	a.SrcPort, a.DstPort = at.DstPort, at.SrcPort
	switch p.Protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		a.ICMPType = queries[family(p.Dst)][p.ICMPType]
		a.SrcPort = at.SrcPort
	}
	return a
}

// magic is before the number that ends each packet.
const magic = 0x70726f66

// trailer ends a packet, so that it is known where it arrives.
func trailer(id uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magic), id)
}

// idOf is the number of a packet, 0 if it is none of ours.
func idOf(b []byte) uint32 {
	n := len(b)
	if n < 8 || binary.BigEndian.Uint32(b[n-8:]) != magic {
		return 0
	}
	return binary.BigEndian.Uint32(b[n-4:])
}

// bytes is the packet with a number.
func (p Packet) bytes(id uint32) []byte {
	payload, sum := p.segment(id)
	if sum >= 0 {
		var pseudo []byte
		protocol := p.Protocol
		if protocol == unix.IPPROTO_UDPLITE {
			protocol = unix.IPPROTO_UDP // so the kernel's connection tracking has it, against RFC 3828
		}
		if p.Protocol != unix.IPPROTO_ICMP {
			pseudo = append(append(pseudo, p.Src.AsSlice()...), p.Dst.AsSlice()...)
			pseudo = append(pseudo, 0, protocol, byte(len(payload)>>8), byte(len(payload)))
		}
		value := nstest.Checksum(append(pseudo, payload...))
		if value == 0 && (p.Protocol == unix.IPPROTO_UDP || p.Protocol == unix.IPPROTO_UDPLITE) {
			value = 0xffff // 0 would say that there is none (RFC 768)
		}
		binary.BigEndian.PutUint16(payload[sum:], value)
	}
	if p.Dst.Is6() {
		b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), p.Protocol, 64}
		return append(append(append(b, p.Src.AsSlice()...), p.Dst.AsSlice()...), payload...)
	}
	n := 20 + len(payload)
	b := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, p.Protocol, 0, 0}
	b = append(append(b, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], nstest.Checksum(b))
	return append(b, payload...)
}

// segment is what IP carries, and where its Internet checksum is, -1 if it has
// none.
func (p Packet) segment(id uint32) (b []byte, sum int) {
	end := trailer(id)
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		flags := map[string]byte{Opens: 0x02, Midway: 0x10, Answer: 0x12}[p.Kind]
		b = append(b, ports...)
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
		return append(b, end...), 16
	case unix.IPPROTO_UDP:
		return append(append(ports, 0, byte(8+len(end)), 0, 0), end...), 6
	case unix.IPPROTO_UDPLITE: // the checksum covers all of it
		return append(append(ports, 0, 0, 0, 0), end...), 6
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		// The source port stands for the identifier, the same in both directions.
		b = append([]byte{p.ICMPType, p.ICMPCode, 0, 0}, byte(p.SrcPort>>8), byte(p.SrcPort), 0, 1)
		return append(b, end...), 2
	case unix.IPPROTO_SCTP:
		return sctp(ports, p.Kind, end), -1
	}
	return append([]byte{0, 0, 0, 0}, end...), -1
}

// sctp is a packet of one chunk, INIT or INIT-ACK, with the trailer in a
// parameter that is to be skipped (RFC 9260, 3.2.1).
func sctp(ports []byte, kind string, end []byte) []byte {
	chunk, tag := byte(1), uint32(0)
	if kind == Answer {
		chunk, tag = 2, initiateTag
	}
	b := append(binary.BigEndian.AppendUint32(ports, tag), 0, 0, 0, 0)
	b = append(b, chunk, 0, 0, byte(24+len(end)))
	b = binary.BigEndian.AppendUint32(b, initiateTag)
	b = append(b, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1, 0x80, 0x08, 0, byte(4+len(end)))
	b = append(b, end...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

const initiateTag = 7

// header reads who sent an IP packet, to whom and what.
func header(b []byte) (a Arrival, protocol uint8, ok bool) {
	switch {
	case len(b) >= 24 && b[0]>>4 == 4:
		a.Src, a.Dst, protocol, b = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9], b[20:]
	case len(b) >= 44 && b[0]>>4 == 6:
		a.Src, a.Dst, protocol, b = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6], b[40:]
	default:
		return a, 0, false
	}
	a.SrcPort, a.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if len(b) >= 6 && (protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6) {
		a.SrcPort, a.DstPort = binary.BigEndian.Uint16(b[4:]), 0
	}
	return a, protocol, true
}
