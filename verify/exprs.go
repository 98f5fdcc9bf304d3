package verify

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/space"
)

// expr runs one expression on the headers that are in the rule.
func (s *step) expr(e *expr) {
	a := e.attrs
	switch e.name {
	case "counter", "log":
	case "immediate":
		s.immediate(a)
	case "meta":
		s.meta(a)
	case "ct":
		s.ct(a)
	case "payload":
		s.payload(a)
	case "cmp":
		s.cmp(a)
	case "range":
		s.between(a)
	case "bitwise":
		s.bitwise(a)
	case "byteorder":
		s.byteorder(a)
	case "lookup":
		s.lookup(a)
	case "limit", "connlimit", "quota":
		if over, known := beyond(e); !known {
			s.lost("expression %s", e.name)
		} else if over {
			s.active = s.None() // it is not reached
		}
	case "dynset": // what it puts into a set, with a limit for each element, goes on while it is within
		if a.u32(unix.NFTA_DYNSET_FLAGS)&unix.NFT_DYNSET_F_INV != 0 {
			s.lost("expression dynset, inverted")
		}
	case "objref":
		if a.u32(unix.NFTA_OBJREF_IMM_TYPE) != unix.NFT_OBJECT_COUNTER {
			s.lost("a reference to an object that is no counter")
		}
	case "reject":
		s.give(verdict{code: codeDrop})
	case "nat":
		s.nat(a)
	case "masq":
		s.srcGone, s.sourceNAT = s.srcGone.Or(s.active), s.sourceNAT.Or(s.active)
		s.give(verdict{code: codeAccept})
	default:
		s.lost("expression %q", e.name)
	}
}

// beyond says whether an expression matches what is over a limit, or what is
// within it, as everything here is.
func beyond(e *expr) (over, known bool) {
	switch e.name {
	case "limit":
		return e.attrs.u32(unix.NFTA_LIMIT_FLAGS)&unix.NFT_LIMIT_F_INV != 0, true
	case "connlimit":
		const flags, inverted = 2, 1
		return e.attrs.u32(flags)&inverted != 0, true
	}
	return false, false
}

func (s *step) immediate(a attrs) {
	reg := a.u32(unix.NFTA_IMMEDIATE_DREG)
	if reg != unix.NFT_REG_VERDICT {
		value := a.value(unix.NFTA_IMMEDIATE_DATA)
		s.store(reg, s.constant(value), s.None())
		return
	}
	v := a.verdict(unix.NFTA_IMMEDIATE_DATA)
	if v == nil {
		s.lost("a verdict that cannot be read")
		return
	}
	s.give(*v)
}

// name is that of an interface as a register has it.
func (s *step) name(name string) []space.Set {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return s.constant(b)
}

// out is the interface that a packet leaves by, where that is known already.
func (s *step) out() device {
	if s.hook.hook == unix.NF_INET_PRE_ROUTING || s.hook.hook == unix.NF_INET_LOCAL_IN {
		return device{}
	}
	return s.way.out
}

func (s *step) meta(a attrs) {
	key := a.u32(unix.NFTA_META_KEY)
	if a.has(unix.NFTA_META_SREG) {
		switch key {
		case unix.NFT_META_MARK:
			s.assign(s.packetMark, s.load(a.u32(unix.NFTA_META_SREG), 4))
		case unix.NFT_META_NFTRACE, unix.NFT_META_PRIORITY:
		default:
			s.lost("meta key %d that is set", key)
		}
		return
	}
	v6 := s.IP(6)
	var bits []space.Set
	switch key {
	case unix.NFT_META_NFPROTO:
		bits = choose(v6, s.constant([]byte{unix.NFPROTO_IPV6}), s.constant([]byte{unix.NFPROTO_IPV4}))
	case unix.NFT_META_PROTOCOL:
		bits = choose(v6, s.constant([]byte{0x86, 0xdd}), s.constant([]byte{0x08, 0x00}))
	case unix.NFT_META_L4PROTO:
		bits = s.Field(space.Protocol)
	case unix.NFT_META_IIF:
		bits = s.native32(s.way.in.index)
	case unix.NFT_META_OIF:
		bits = s.native32(s.out().index)
	case unix.NFT_META_IIFNAME:
		bits = s.name(s.way.in.name)
	case unix.NFT_META_OIFNAME:
		bits = s.name(s.out().name)
	case unix.NFT_META_MARK:
		bits = s.packetMark
	default:
		s.store(a.u32(unix.NFTA_META_DREG), slices.Repeat([]space.Set{s.None()}, 32), s.All())
		return
	}
	s.store(a.u32(unix.NFTA_META_DREG), bits, s.None())
}

// choose is yes for some headers and no for the others, bit by bit.
func choose(which space.Set, yes, no []space.Set) []space.Set {
	bits := make([]space.Set, len(yes))
	for i := range bits {
		bits[i] = which.Choose(yes[i], no[i])
	}
	return bits
}

// assign changes a value for the headers in the rule.
func (s *step) assign(value, bits []space.Set) {
	for i := range value {
		value[i] = s.active.Choose(bits[i], value[i])
	}
}

// States of connections, and bits of their status.
const (
	stateInvalid = 1
	stateNew     = 8

	statusSourceNAT = 1 << 4
	statusDestNAT   = 1 << 5

	afterTracking = -200 // the priority of connection tracking
)

func (s *step) ct(a attrs) {
	key, reg := a.u32(unix.NFTA_CT_KEY), a.u32(unix.NFTA_CT_DREG)
	tracked := s.hook.hook != unix.NF_INET_PRE_ROUTING || s.hook.priority > afterTracking
	switch {
	case a.has(unix.NFTA_CT_SREG):
		switch {
		case key == unix.NFT_CT_MARK && tracked:
			s.assign(s.ctMark, s.load(a.u32(unix.NFTA_CT_SREG), 4))
		case tracked:
			s.lost("ct key %d that is set", key)
		}
		return
	case key == unix.NFT_CT_STATE:
		state := uint32(stateNew)
		if !tracked {
			state = stateInvalid
		}
		s.store(reg, s.native32(state), s.None())
		return
	case !tracked:
		s.active = s.None()
		return
	}
	reply := false
	if d := a.get(unix.NFTA_CT_DIRECTION); len(d) > 0 {
		reply = d[0] == 1
	}
	bits, unknown := s.connection(key, reply)
	if bits == nil {
		bits, unknown = slices.Repeat([]space.Set{s.None()}, 32), s.All()
	}
	s.store(reg, bits, unknown)
}

// connection is what connection tracking has of a connection that the packet
// opens: nil for what is not known. Headers that cannot have it leave the rule.
func (s *step) connection(key uint32, reply bool) (bits []space.Set, unknown space.Set) {
	none := s.None()
	switch key {
	case unix.NFT_CT_DIRECTION:
		return s.constant([]byte{0}), none
	case unix.NFT_CT_STATUS:
		bits := s.native32(0)
		for i, b := range s.native32(statusSourceNAT) {
			bits[i] = b.And(s.sourceNAT)
		}
		for i, b := range s.native32(statusDestNAT) {
			bits[i] = bits[i].Or(b.And(s.destNAT))
		}
		return bits, none
	case unix.NFT_CT_MARK:
		return s.ctMark, none
	case unix.NFT_CT_L3PROTOCOL:
		return choose(s.IP(6), s.constant([]byte{unix.NFPROTO_IPV6}), s.constant([]byte{unix.NFPROTO_IPV4})), none
	case unix.NFT_CT_PROTOCOL:
		return s.Field(space.Protocol), none
	case unix.NFT_CT_SRC_IP, unix.NFT_CT_DST_IP, unix.NFT_CT_SRC_IP6, unix.NFT_CT_DST_IP6:
		size, version := 128, 6
		if key == unix.NFT_CT_SRC_IP || key == unix.NFT_CT_DST_IP {
			size, version = 32, 4
		}
		s.active = s.active.And(s.IP(version))
		source := key == unix.NFT_CT_SRC_IP || key == unix.NFT_CT_SRC_IP6
		switch {
		case source && reply:
			return s.dst[:size], none
		case reply:
			return s.src[:size], s.srcGone
		case source:
			return s.Field(space.SrcAddr)[:size], none
		}
		return s.Field(space.DstAddr)[:size], none
	case unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST:
		return s.connectionPort(key == unix.NFT_CT_PROTO_SRC, reply)
	}
	return nil, none
}

// connectionPort is the port of an end; of ICMP, where ports of a destination
// are, type and code.
func (s *step) connectionPort(source, reply bool) (bits []space.Set, unknown space.Set) {
	ports := s.HasPorts()
	switch {
	case source && reply:
		return s.dstPort, ports.Not()
	case reply:
		return s.srcPort, ports.Not().Or(s.srcGone)
	case source:
		return s.Field(space.SrcPort), ports.Not()
	}
	icmp := slices.Concat(s.Field(space.ICMPType), s.Field(space.ICMPCode))
	return choose(s.IsICMP(), icmp, s.Field(space.DstPort)), ports.Or(s.IsICMP()).Not()
}

func (s *step) payload(a attrs) {
	base, off, size := a.u32(unix.NFTA_PAYLOAD_BASE), int(a.u32(unix.NFTA_PAYLOAD_OFFSET)), int(a.u32(unix.NFTA_PAYLOAD_LEN))
	if size == 0 || size > registers {
		s.lost("a payload of %d bytes", size)
		return
	}
	known, bits := s.header(base, off, size)
	if a.has(unix.NFTA_PAYLOAD_SREG) {
		s.lose(known, "a header field that is written")
		return
	}
	s.store(a.u32(unix.NFTA_PAYLOAD_DREG), bits, known.Not())
}

// place is where a header has a field, for some packets.
type place struct {
	base   uint32
	offset int // in bytes
	bits   []space.Set
	of     space.Set
}

func (s *step) places() []place {
	v4, v6, ports, icmp := s.IP(4), s.IP(6), s.HasPorts(), s.IsICMP()
	protocol := s.Field(space.Protocol)
	list := []place{
		{unix.NFT_PAYLOAD_NETWORK_HEADER, 9, protocol, v4},
		{unix.NFT_PAYLOAD_NETWORK_HEADER, 12, s.src[:32], v4.Minus(s.srcGone)},
		{unix.NFT_PAYLOAD_NETWORK_HEADER, 16, s.dst[:32], v4},
		{unix.NFT_PAYLOAD_NETWORK_HEADER, 8, s.src, v6.Minus(s.srcGone)},
		{unix.NFT_PAYLOAD_NETWORK_HEADER, 24, s.dst, v6},
		{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, s.srcPort, ports.Minus(s.srcGone)},
		{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, s.dstPort, ports},
		{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, s.Field(space.ICMPType), icmp},
		{unix.NFT_PAYLOAD_TRANSPORT_HEADER, 1, s.Field(space.ICMPCode), icmp},
	}
	if s.way.mac != nil {
		list = append(list, place{unix.NFT_PAYLOAD_LL_HEADER, 6, s.constant(s.way.mac), s.All()})
	}
	return list
}

// header is bytes of a header, and for which headers they are known: for those
// where fields that are known cover them.
func (s *step) header(base uint32, off, size int) (known space.Set, bits []space.Set) {
	bits = slices.Repeat([]space.Set{s.None()}, size*8)
	covered := slices.Repeat([]space.Set{s.None()}, size)
	for _, p := range s.places() {
		if p.base != base {
			continue
		}
		for i := range len(p.bits) / 8 {
			at := p.offset + i - off
			if at < 0 || at >= size {
				continue
			}
			covered[at] = covered[at].Or(p.of)
			for j := range 8 {
				bits[at*8+j] = bits[at*8+j].Or(p.bits[i*8+j].And(p.of))
			}
		}
	}
	known = s.All()
	for _, c := range covered {
		known = known.And(c)
	}
	return known, bits
}

func (s *step) cmp(a attrs) {
	value := a.value(unix.NFTA_CMP_DATA)
	bits := s.load(a.u32(unix.NFTA_CMP_SREG), len(value))
	switch a.u32(unix.NFTA_CMP_OP) {
	case unix.NFT_CMP_EQ:
		s.active = s.active.And(s.equal(bits, value))
		return
	case unix.NFT_CMP_NEQ:
		s.active = s.active.Minus(s.equal(bits, value))
		return
	}
	below, above := s.compare(bits, value)
	switch a.u32(unix.NFTA_CMP_OP) {
	case unix.NFT_CMP_LT:
		s.active = s.active.And(below)
	case unix.NFT_CMP_LTE:
		s.active = s.active.Minus(above)
	case unix.NFT_CMP_GT:
		s.active = s.active.And(above)
	case unix.NFT_CMP_GTE:
		s.active = s.active.Minus(below)
	default:
		s.lost("a comparison that is not known")
	}
}

func (s *step) between(a attrs) {
	low, high := a.value(unix.NFTA_RANGE_FROM_DATA), a.value(unix.NFTA_RANGE_TO_DATA)
	if len(low) != len(high) {
		s.lost("a range that cannot be read")
		return
	}
	in := s.machine.between(s.load(a.u32(unix.NFTA_RANGE_SREG), len(low)), low, high)
	if a.u32(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ {
		in = in.Not()
	}
	s.active = s.active.And(in)
}

func (s *step) bitwise(a attrs) {
	const operation, maskXor = 6, 0
	size := int(a.u32(unix.NFTA_BITWISE_LEN))
	mask, xor := a.value(unix.NFTA_BITWISE_MASK), a.value(unix.NFTA_BITWISE_XOR)
	if a.u32(operation) != maskXor || len(mask) != size || len(xor) != size || offset(a.u32(unix.NFTA_BITWISE_SREG), size) < 0 {
		s.lost("a bitwise operation that is not known")
		return
	}
	// What is not known may be masked away, or not matter.
	at := offset(a.u32(unix.NFTA_BITWISE_SREG), size)
	bits := slices.Clone(s.reg[at*8 : (at+size)*8])
	unknown := s.None()
	for i := range size {
		if mask[i] != 0 {
			unknown = unknown.Or(s.unknown[at+i])
		}
	}
	m, x := s.constant(mask), s.constant(xor)
	for i := range bits {
		bits[i] = bits[i].And(m[i]).Xor(x[i])
	}
	s.store(a.u32(unix.NFTA_BITWISE_DREG), bits, unknown)
}

// byteorder turns numbers round, which here are little-endian in the host.
func (s *step) byteorder(a attrs) {
	size, width := int(a.u32(unix.NFTA_BYTEORDER_LEN)), int(a.u32(unix.NFTA_BYTEORDER_SIZE))
	if width == 0 || size == 0 || size%width != 0 || size > registers {
		s.lost("a byte order that is not known")
		return
	}
	bits := slices.Clone(s.load(a.u32(unix.NFTA_BYTEORDER_SREG), size))
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		from := slices.Clone(bits)
		for i := range size {
			j := i/width*width + width - 1 - i%width
			copy(bits[i*8:i*8+8], from[j*8:j*8+8])
		}
	}
	s.store(a.u32(unix.NFTA_BYTEORDER_DREG), bits, s.None())
}

// nat translates an end. What the packet is afterwards is what later hooks see,
// and so does connection tracking as the other end of the answer.
func (s *step) nat(a attrs) {
	const source = 0
	size := 32
	if a.u32(unix.NFTA_NAT_FAMILY) == unix.NFPROTO_IPV6 {
		size = 128
	}
	lowReg, highReg := a.u32(unix.NFTA_NAT_REG_ADDR_MIN), a.u32(unix.NFTA_NAT_REG_ADDR_MAX)
	s.active = s.active.And(s.IP(map[int]int{32: 4, 128: 6}[size]))
	if a.u32(unix.NFTA_NAT_TYPE) == source {
		s.srcGone, s.sourceNAT = s.srcGone.Or(s.active), s.sourceNAT.Or(s.active)
		s.give(verdict{code: codeAccept})
		return
	}
	if lowReg == 0 || highReg != 0 && highReg != lowReg || a.has(unix.NFTA_NAT_REG_PROTO_MIN) {
		s.lost("a translation to one of several")
		return
	}
	bits := s.load(lowReg, size/8)
	changed := s.None()
	for i, b := range bits {
		changed = changed.Or(b.Xor(s.dst[i]))
	}
	s.destNAT = s.destNAT.Or(s.active.And(changed))
	s.assign(s.dst[:size], bits)
	s.give(verdict{code: codeAccept})
}
