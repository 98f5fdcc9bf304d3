package link

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// attrs iterates over netlink attributes; what is malformed ends it.
func attrs(b []byte) func(yield func(typ uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// appendAttr appends an attribute whose value fills whole words.
func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b[:len(b):len(b)], uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	return append(b, value...)
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// linkDump is the body of a request for all links, without their counters
// (RTEXT_FILTER_SKIP_STATS).
func linkDump() []byte {
	return appendAttr(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, binary.NativeEndian.AppendUint32(nil, 1<<3))
}

const operUp = 6 // IF_OPER_UP, RFC 2863

// parseLink reads a link and its alias. Messages about bridge ports look alike
// and are not about the link.
func parseLink(b []byte) (l Link, alias string, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return Link{}, "", false
	}
	flags := u32(b[8:])
	l.Index = int(u32(b[4:]))
	l.admin = flags&unix.IFF_UP != 0
	l.Up = l.admin && flags&unix.IFF_LOWER_UP != 0
	for typ, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			alias = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			copy(l.MAC[:], v)
		case unix.IFLA_OPERSTATE:
			l.Up = l.Up || len(v) > 0 && v[0] == operUp
		}
	}
	return l, alias, l.Name != ""
}

type address struct {
	index int
	addr  netip.Addr
	bits  int
	flags uint32
}

func parseAddress(b []byte) (address, bool) {
	if len(b) < unix.SizeofIfAddrmsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return address{}, false
	}
	a := address{bits: int(b[1]), flags: uint32(b[2]), index: int(u32(b[4:]))}
	for typ, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_ADDRESS:
			if !a.addr.IsValid() {
				a.addr, _ = netip.AddrFromSlice(v)
			}
		case unix.IFA_LOCAL: // on a point-to-point link the other is the peer's
			a.addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			a.flags = u32(v)
		}
	}
	return a, a.addr.IsValid()
}
