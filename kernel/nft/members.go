package nft

import (
	"encoding/binary"
	"net/netip"

	"tortie/desired"
)

// memberSet describes the kernel set of a SetKey.
func memberSet(k desired.SetKey) set {
	s := set{object: object{inet, k.String()}, key: []keyPart{typeIP4}, interval: k.Ranges}
	if k.Family == 6 {
		s.key[0] = typeIP6
	}
	if k.Ports {
		s.key = append(s.key, typeProto, typePort)
	}
	return s
}

// renderMember gives the elements of a member, one, or the start and end of a
// range; ok is false if the member does not fit its set.
func renderMember(m desired.Member) (es [2]elem, n int, ok bool) {
	p := m.Prefix
	if !p.IsValid() || p.Addr().Is4() != (m.Set.Family == 4) || !m.Set.Ranges && !p.IsSingleIP() {
		return es, 0, false
	}
	p = p.Masked()
	if m.Set.Ports {
		es[0] = makePlace(p, m.Protocol, m.Port)
		return es, 1, true
	}
	if !m.Set.Ranges {
		if p.Addr().Is4() {
			a := p.Addr().As4()
			copy(es[0].key[:], a[:])
		} else {
			a := p.Addr().As16()
			copy(es[0].key[:], a[:])
		}
		return es, 1, true
	}
	copy(es[0].key[:], p.Addr().AsSlice())
	after, more := increment(lastAddr(p))
	if !more {
		return es, 1, true // it goes to the last address there is
	}
	copy(es[1].key[:], after)
	es[1].flag = elemEnd
	return es, 2, true
}

// makePlace is where a named port is: an address or, in a set of ranges, a
// prefix, with protocol and port.
func makePlace(p netip.Prefix, protocol uint8, port uint16) elem {
	return makeRange(p, []byte{protocol, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, port))
}
