// Package nlattr reads and writes the attributes that netlink messages are
// made of. The kernel packages that speak rtnetlink and ctnetlink share it.
//
// It has no state. What the kernel sends is not trusted: a malformed attribute
// ends the list that it is in, and nothing panics (FuzzAll).
package nlattr

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER

func align(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

// All iterates over attributes: their types, without flags, and values. What is
// malformed ends it.
func All(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^flags, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// Append appends an attribute to b.
func Append(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// Append32 appends an attribute that is a number.
func Append32(b []byte, typ uint16, v uint32) []byte {
	return Append(b, typ, binary.NativeEndian.AppendUint32(nil, v))
}

// Uint32 returns the number that b begins with, 0 where b is too short.
func Uint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
