package link

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

// linkDump is the body of a request for all links, without their counters
// (RTEXT_FILTER_SKIP_STATS).
func linkDump() []byte {
	return nlattr.Append32(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, 1<<3)
}

const operUp = 6 // IF_OPER_UP, RFC 2863

// parseLink reads a link and its alias. Messages about bridge ports look alike
// and are not about the link.
func parseLink(b []byte) (l Link, alias string, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return Link{}, "", false
	}
	flags := nlattr.Uint32(b[8:])
	l.Index = int(nlattr.Uint32(b[4:]))
	l.admin = flags&unix.IFF_UP != 0
	l.Up = l.admin && flags&unix.IFF_LOWER_UP != 0
	for typ, v := range nlattr.All(b[unix.SizeofIfInfomsg:]) {
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
	a := address{bits: int(b[1]), flags: uint32(b[2]), index: int(nlattr.Uint32(b[4:]))}
	for typ, v := range nlattr.All(b[unix.SizeofIfAddrmsg:]) {
		switch typ {
		case unix.IFA_ADDRESS:
			if !a.addr.IsValid() {
				a.addr, _ = netip.AddrFromSlice(v)
			}
		case unix.IFA_LOCAL: // on a point-to-point link the other is the peer's
			a.addr, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			a.flags = nlattr.Uint32(v)
		}
	}
	return a, a.addr.IsValid()
}
