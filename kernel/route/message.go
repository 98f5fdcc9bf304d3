package route

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// routeMessage is what we read of a route.
type routeMessage struct {
	prefix   netip.Prefix
	metric   int
	protocol int
	index    int // of its link; -1 where it is not just "to that link"
	nextHops []netip.Addr
	links    []int // that the next hops are on
}

// parseRoute reads a route of the main table.
func parseRoute(b []byte) (routeMessage, bool) {
	var m routeMessage
	if len(b) < unix.SizeofRtMsg {
		return m, false
	}
	fam, bits, typ := b[0], int(b[1]), b[7]
	table, flags := uint32(b[4]), nlattr.Uint32(b[8:])
	m.protocol = int(b[5])
	dst := netip.IPv4Unspecified()
	if fam == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	direct := typ == unix.RTN_UNICAST
	for typ, v := range nlattr.All(b[unix.SizeofRtMsg:]) {
		switch typ {
		case unix.RTA_TABLE:
			table = nlattr.Uint32(v)
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_PRIORITY:
			m.metric = int(nlattr.Uint32(v))
		case unix.RTA_OIF:
			m.index = int(nlattr.Uint32(v))
		case unix.RTA_GATEWAY:
			direct = false
			if a, ok := netip.AddrFromSlice(v); ok {
				m.nextHops = append(m.nextHops, a)
			}
		case unix.RTA_VIA:
			direct = false
			if len(v) > 2 {
				if a, ok := netip.AddrFromSlice(v[2:]); ok {
					m.nextHops = append(m.nextHops, a)
				}
			}
		case unix.RTA_MULTIPATH:
			direct = false
			m.nextHops, m.links = parseMultipath(v)
		}
	}
	if !direct {
		m.links = append(m.links, m.index)
		m.index = -1
	}
	m.prefix = netip.PrefixFrom(dst, bits)
	known := fam == unix.AF_INET || fam == unix.AF_INET6
	return m, known && m.prefix.IsValid() && table == unix.RT_TABLE_MAIN && flags&unix.RTM_F_CLONED == 0
}

func parseMultipath(b []byte) (hops []netip.Addr, links []int) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		links = append(links, int(nlattr.Uint32(b[4:])))
		for typ, v := range nlattr.All(b[unix.SizeofRtNexthop:n]) {
			if typ == unix.RTA_VIA && len(v) > 2 {
				typ, v = unix.RTA_GATEWAY, v[2:]
			}
			if a, ok := netip.AddrFromSlice(v); ok && typ == unix.RTA_GATEWAY {
				hops = append(hops, a)
			}
		}
		b = b[min(align(n), len(b)):]
	}
	return hops, links
}

// routeBody is the head of a route message in the main table.
func routeBody(p netip.Prefix, metric, protocol int, scope byte) []byte {
	b := []byte{family(p.Addr()), byte(p.Bits()), 0, 0, unix.RT_TABLE_MAIN, byte(protocol), scope, unix.RTN_UNICAST, 0, 0, 0, 0}
	b = nlattr.Append(b, unix.RTA_DST, p.Addr().AsSlice())
	return nlattr.Append32(b, unix.RTA_PRIORITY, uint32(metric))
}

// deleteRoute deletes the route with this prefix, metric and protocol, whatever
// its kind and wherever it leads; from leads to one link, or is 0.
func deleteRoute(p netip.Prefix, metric, protocol, from int) request {
	b := routeBody(p, metric, protocol, unix.RT_SCOPE_NOWHERE)
	b[7] = unix.RTN_UNSPEC
	if from > 0 {
		b = nlattr.Append32(b, unix.RTA_OIF, uint32(from))
	}
	return request{typ: unix.RTM_DELROUTE, body: b}
}

// linkRoute is a route to a link.
func linkRoute(p netip.Prefix, metric, protocol, index int) []byte {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if p.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	return nlattr.Append32(routeBody(p, metric, protocol, scope), unix.RTA_OIF, uint32(index))
}

// gatewayRoute is a route by one or several next hops, of either family.
func gatewayRoute(p netip.Prefix, metric, protocol int, hops []netip.Addr) []byte {
	b := routeBody(p, metric, protocol, unix.RT_SCOPE_UNIVERSE)
	if len(hops) == 1 {
		return append(b, gatewayAttr(p, hops[0])...)
	}
	var paths []byte
	for _, h := range hops {
		a := gatewayAttr(p, h)
		paths = binary.NativeEndian.AppendUint16(paths, uint16(unix.SizeofRtNexthop+len(a)))
		paths = append(paths, make([]byte, unix.SizeofRtNexthop-2)...) // flags, weight 1, any link
		paths = append(paths, a...)
	}
	return nlattr.Append(b, unix.RTA_MULTIPATH, paths)
}

func gatewayAttr(p netip.Prefix, hop netip.Addr) []byte {
	if hop.Is4() == p.Addr().Is4() {
		return nlattr.Append(nil, unix.RTA_GATEWAY, hop.AsSlice())
	}
	via := binary.NativeEndian.AppendUint16(nil, uint16(family(hop)))
	return nlattr.Append(nil, unix.RTA_VIA, append(via, hop.AsSlice()...))
}

// dumpRoutes asks for the main table's routes of one protocol.
func dumpRoutes(fam byte, protocol int) request {
	return request{
		typ:  unix.RTM_GETROUTE,
		body: []byte{fam, 0, 0, 0, unix.RT_TABLE_MAIN, byte(protocol), 0, 0, 0, 0, 0, 0},
	}
}

// neighbourMessage is what we read of a neighbour.
type neighbourMessage struct {
	addr      netip.Addr
	index     int
	mac       [6]byte
	permanent bool
	proxy     bool
}

const sizeofNdMsg = 12

func parseNeighbour(b []byte) (neighbourMessage, bool) {
	if len(b) < sizeofNdMsg {
		return neighbourMessage{}, false
	}
	m := neighbourMessage{
		index:     int(nlattr.Uint32(b[4:])),
		permanent: binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0,
		proxy:     b[10]&unix.NTF_PROXY != 0,
	}
	for typ, v := range nlattr.All(b[sizeofNdMsg:]) {
		switch typ {
		case unix.NDA_DST:
			m.addr, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			copy(m.mac[:], v)
		}
	}
	return m, m.addr.IsValid() && (b[0] == unix.AF_INET || b[0] == unix.AF_INET6)
}

// neighbourBody is the head of a message about one neighbour.
func neighbourBody(a netip.Addr, index int, proxy bool) []byte {
	b := []byte{family(a), 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = append(b, 0, 0, 0, 0) // state, flags, type
	if proxy {
		b[10] = unix.NTF_PROXY
	}
	return nlattr.Append(b, unix.NDA_DST, a.AsSlice())
}

func putNeighbour(a netip.Addr, e entry, proxy bool) request {
	b := neighbourBody(a, e.index, proxy)
	binary.NativeEndian.PutUint16(b[8:], unix.NUD_PERMANENT)
	if !proxy {
		b = nlattr.Append(b, unix.NDA_LLADDR, e.mac[:])
	}
	return request{typ: unix.RTM_NEWNEIGH, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: b}
}

func dumpNeighbours(fam byte, proxy bool) request {
	b := make([]byte, sizeofNdMsg)
	b[0] = fam
	if proxy {
		b[10] = unix.NTF_PROXY
	}
	return request{typ: unix.RTM_GETNEIGH, body: b}
}

// parseLink reads a link's index, name and whether it is up. Messages about
// bridge ports look alike and say nothing of the link.
func parseLink(b []byte) (index int, name string, up, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return 0, "", false, false
	}
	for typ, v := range nlattr.All(b[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_IFNAME {
			name = unix.ByteSliceToString(v)
		}
	}
	return int(nlattr.Uint32(b[4:])), name, nlattr.Uint32(b[8:])&unix.IFF_UP != 0, name != ""
}

// extSkipStats asks for links without their counters (RTEXT_FILTER_SKIP_STATS).
const extSkipStats = 1 << 3

func dumpLinks() request {
	return request{
		typ:  unix.RTM_GETLINK,
		body: nlattr.Append32(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, extSkipStats),
	}
}

func macString(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
