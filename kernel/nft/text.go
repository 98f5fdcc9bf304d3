package nft

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// appendText writes a rule as people write rules. The text names everything
// the rule does: equal text, equal rule.
func (r *rule) appendText(b []byte) []byte {
	for i := range r.matches {
		b = append(r.matches[i].appendText(b), ' ')
	}
	for i, a := range r.does {
		if i > 0 {
			b = append(b, ' ')
		}
		b = a.appendText(b)
	}
	if r.comment != "" {
		b = append(b, " # "...)
		b = append(b, r.comment...)
	}
	return b
}

func (m *match) appendText(b []byte) []byte {
	for i, f := range m.fields {
		if i > 0 {
			b = append(b, " . "...)
		}
		b = append(b, fields[f].text...)
	}
	part := fields[m.fields[0]].part
	switch m.op {
	case in, notIn:
		if m.mask != nil {
			b = append(b, " & "...)
			b = appendValue(b, part, m.mask)
		}
		b = append(b, [...]string{" @", " != @"}[m.op-in]...)
		return append(b, m.set...)
	case anyBit:
		b = append(b, " & "...)
		b = appendValue(b, part, m.mask)
		return append(b, " != 0"...)
	case notEqual, notWithin, noneOf:
		b = append(b, " !="...)
	}
	b = append(b, ' ')
	switch m.op {
	case equal, notEqual:
		b = m.appendOperand(b, part)
	case within, notWithin:
		b = appendSpan(b, part, m.ranges[0])
	default:
		b = append(b, '{')
		for _, s := range m.ranges {
			b = append(b, ' ')
			b = appendSpan(b, part, s)
		}
		b = append(b, " }"...)
	}
	return b
}

// appendOperand writes what a field is compared with: an address prefix as
// such, another part of a value with a star or its mask.
func (m *match) appendOperand(b []byte, part keyPart) []byte {
	bits := 8 * len(m.value)
	if m.mask != nil {
		bits = 0
		for bits < 8*len(m.mask) && m.mask[bits/8]>>(7-bits%8)&1 == 1 {
			bits++
		}
		if !bytes.Equal(m.mask, maskBytes(bits, len(m.mask))) {
			bits = -1
		}
	}
	size := int(part.len)
	if (part == typeIP4 || part == typeIP6) && bits >= 0 && bits < 8*size && len(m.value) <= size {
		b = appendValue(b, part, append(m.value[:len(m.value):len(m.value)], make([]byte, size-len(m.value))...))
		return strconv.AppendInt(append(b, '/'), int64(bits), 10)
	}
	b = appendValue(b, part, m.value)
	switch {
	case m.mask != nil:
		b = appendValue(append(b, " & "...), part, m.mask)
	case len(m.value) < size:
		b = append(b, '*')
	}
	return b
}

func appendSpan(b []byte, part keyPart, s span) []byte {
	b = appendValue(b, part, s.from)
	if string(s.from) != string(s.to) {
		b = append(b, '-')
		b = appendValue(b, part, s.to)
	}
	return b
}

// appendValue writes a value of a type; a value shorter than the type is a
// prefix of its bytes.
func appendValue(b []byte, part keyPart, v []byte) []byte {
	switch {
	case part == typeName:
		return append(b, strings.TrimRight(string(v), "\x00")...)
	case part == typeIP4 && len(v) == 4, part == typeIP6 && len(v) == 16:
		a, _ := netip.AddrFromSlice(v)
		return a.AppendTo(b)
	case part == typePort && len(v) == 2:
		return strconv.AppendUint(b, uint64(binary.BigEndian.Uint16(v)), 10)
	case len(v) == 1:
		return strconv.AppendUint(b, uint64(v[0]), 10)
	case part.id == typeNumber.id || part == typeIndex || part == typeMark:
		return append(strconv.AppendUint(append(b, "0x"...), uint64(nativeUint32(v)), 16), ""...)
	}
	return append(append(b, "0x"...), hex.EncodeToString(v)...)
}

func (a action) appendText(b []byte) []byte {
	switch a.kind {
	case accept:
		return append(b, "accept"...)
	case drop:
		return append(b, "drop"...)
	case back:
		return append(b, "return"...)
	case jump:
		return append(append(b, "jump "...), a.name...)
	case goTo:
		return append(append(b, "goto "...), a.name...)
	case count:
		return append(append(b, "counter "...), a.name...)
	case logs:
		return strconv.AppendQuote(append(b, "log "...), a.name)
	case setDSCP:
		return strconv.AppendUint(append(append(b, a.name...), " dscp set "...), uint64(a.dscp), 10)
	case noTrack:
		return append(b, "notrack"...)
	case reset:
		return append(b, "reject with tcp reset"...)
	case setMark:
		return fmt.Appendf(b, "ct mark set ct mark & %#x | %#x", ^a.bits, a.mark)
	case over:
		return strconv.AppendUint(append(b, "ct count over "...), uint64(a.connections), 10)
	case translate:
		return a.nat.appendText(b)
	case markIt:
		return strconv.AppendUint(append(b, "meta mark set 0x"...), uint64(a.value), 16)
	case limit:
		return a.rate.appendText(b)
	case limitBy:
		return append(a.rate.appendText(append(append(append(b, "update @"...), a.name...), " { meta mark . iif . oif "...)), " }"...)
	default:
		b = append(append(b, fields[a.field].text...), " vmap @"...)
		return append(b, a.name...)
	}
}

// text prints a chain with its rules.
func (c *chain) text() string {
	b := []byte("chain ")
	if c.family == arp {
		b = append(b, "arp "...)
	}
	b = append(b, c.name...)
	if c.hook != nil {
		b = append(b, " hook "...)
		b = strconv.AppendUint(b, uint64(c.hook.num), 10)
		b = append(b, " priority "...)
		b = strconv.AppendInt(b, int64(c.hook.priority), 10)
		if t := chainType(c.object); t != typeFilter {
			b = append(append(b, ' '), t...)
		}
	}
	b = append(b, '\n')
	for i := range c.rules {
		b = append(c.rules[i].appendText(append(b, '\t')), '\n')
	}
	return string(b)
}

// elemText prints the key of an element of a set.
func (s *set) elemText(e elem) string {
	if e.flag&elemAny != 0 {
		return "*"
	}
	var b []byte
	at := 0
	for i, part := range s.key {
		if i > 0 {
			b = append(b, " . "...)
		}
		switch v := e.key[at : at+int(part.len)]; part {
		case typeIndex:
			b = strconv.AppendUint(b, uint64(nativeUint32(v)), 10)
		case typeMAC:
			b = append(b, macText(v)...)
		default:
			b = appendValue(b, part, v)
		}
		at += pad4(int(part.len))
	}
	if e.bits > 0 {
		b = strconv.AppendUint(append(b, " /"...), uint64(e.bits)-1, 10)
	}
	if e.flag&elemEnd != 0 {
		b = append(b, " end"...)
	}
	return string(b)
}

func macText(m []byte) string {
	parts := make([]string, len(m))
	for i := range m {
		parts[i] = hex.EncodeToString(m[i : i+1])
	}
	return strings.Join(parts, ":")
}

func nativeUint32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

func native32(v uint32) []byte {
	return binary.NativeEndian.AppendUint32(nil, v)
}
