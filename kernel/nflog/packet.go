package nflog

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

// Packet is what the kernel says of a packet, and what its first bytes do. What
// they do not say is zero.
type Packet struct {
	Prefix      string // of the rule that picked it
	In, Out     int    // interface indexes, 0 for none
	Mark        uint32
	Family      int // 4 or 6
	Source      netip.Addr
	Destination netip.Addr
	Protocol    uint8
	Length      int // of the whole packet, with its IP header

	HasPorts        bool
	SourcePort      uint16
	DestinationPort uint16

	HasICMP    bool // of either family
	Type, Code uint8

	// Lost is how many packets, picked after the one handed on before this, did
	// not get here.
	Lost uint32
}

// Attributes of a packet.
const (
	attrMark    = 2
	attrIn      = 4
	attrOut     = 5
	attrPayload = 9
	attrPrefix  = 10
	attrNumber  = 12
)

// picked is a packet with the number that the kernel gave it, if it did.
type picked struct {
	Packet
	number   uint32
	numbered bool
}

// message is one netlink message.
type message struct {
	typ  uint16
	seq  uint32
	body []byte
}

// messages are those of a datagram; what is malformed ends them.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]}
			if !yield(m) {
				return
			}
			b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		}
	}
}

// packets are those of a datagram.
func packets(b []byte) iter.Seq[picked] {
	return func(yield func(picked) bool) {
		for m := range messages(b) {
			if m.typ == msgPacket && len(m.body) >= sizeofNfgenmsg && !yield(parse(m.body[sizeofNfgenmsg:])) {
				return
			}
		}
	}
}

// parse reads the attributes of a packet.
func parse(b []byte) picked {
	var p picked
	for typ, v := range nlattr.All(b) {
		switch typ {
		case attrMark:
			p.Mark = number(v)
		case attrIn:
			p.In = int(number(v))
		case attrOut:
			p.Out = int(number(v))
		case attrPayload:
			p.readIP(v)
		case attrPrefix:
			text, _, _ := bytes.Cut(v, []byte{0})
			p.Prefix = string(text)
		case attrNumber:
			p.number, p.numbered = number(v), len(v) >= 4
		}
	}
	return p
}

// number is in network order, as all of this subsystem are; 0 where v is short.
func number(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

// readIP reads as much of a packet as there is.
func (p *Packet) readIP(b []byte) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Family, p.Protocol = 4, b[9]
		p.Length = int(binary.BigEndian.Uint16(b[2:]))
		p.Source, p.Destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		header := int(b[0]&0xf) * 4
		later := binary.BigEndian.Uint16(b[6:])&0x1fff != 0 // a fragment that does not begin the packet
		if header >= 20 && header <= len(b) && !later {
			p.readTransport(b[header:])
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Family = 6
		p.Length = 40 + int(binary.BigEndian.Uint16(b[4:]))
		p.Source, p.Destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.readExtensions(b[6], b[40:])
	}
}

// readExtensions skips the extension headers of IPv6. Where they go on beyond
// what was copied, the protocol is that of the last one seen.
func (p *Packet) readExtensions(next uint8, b []byte) {
	for {
		p.Protocol = next
		if len(b) < 8 {
			p.readTransport(b)
			return
		}
		n := 8
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			n += int(b[1]) * 8
		case unix.IPPROTO_AH:
			n += int(b[1]) * 4
		case unix.IPPROTO_FRAGMENT:
			if binary.BigEndian.Uint16(b[2:])>>3 != 0 {
				p.Protocol = b[0]
				return
			}
		default:
			p.readTransport(b)
			return
		}
		next, b = b[0], b[min(n, len(b)):]
	}
}

func (p *Packet) readTransport(b []byte) {
	if len(b) < 4 {
		return
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
		p.HasPorts = true
		p.SourcePort, p.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		p.HasICMP = true
		p.Type, p.Code = b[0], b[1]
	}
}
