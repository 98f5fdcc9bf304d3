package agent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/internal/nstest"
)

// piece is a fragment: a part of what an IP packet carries, and where it is
// said to belong.
type piece struct {
	at   int
	more bool
	data []byte
}

// fragment makes a packet of a piece.
func fragment(from, to string, protocol uint8, id uint16, p piece) []byte {
	source, dest := netip.MustParseAddr(from), netip.MustParseAddr(to)
	place := uint16(p.at / 8)
	if source.Is6() {
		place <<= 3
		if p.more {
			place |= 1
		}
		head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{protocol, 0}, place), uint32(id))
		return ip6Packet(source, dest, unix.IPPROTO_FRAGMENT, append(head, p.data...))
	}
	if p.more {
		place |= 0x2000
	}
	b := ip4Packet(source, dest, protocol, nil, p.data)
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], place)
	return sum4(b)
}

// ip4Packet carries anything, with options of whole words.
func ip4Packet(source, dest netip.Addr, protocol uint8, options, payload []byte) []byte {
	n := 20 + len(options) + len(payload)
	b := []byte{0x45 + byte(len(options)/4), 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, protocol, 0, 0}
	b = slices.Concat(b, source.AsSlice(), dest.AsSlice(), options, payload)
	return sum4(b)
}

// sum4 sets the checksum of an IPv4 header.
func sum4(b []byte) []byte {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], nstest.Checksum(b[:int(b[0]&15)*4]))
	return b
}

func ip6Packet(source, dest netip.Addr, next uint8, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 64}
	return slices.Concat(b, source.AsSlice(), dest.AsSlice(), payload)
}

// carried is what an IP packet of ipPacket carries, with its checksum.
func carried(p []byte) []byte {
	if p[0]>>4 == 6 {
		return p[40:]
	}
	return p[20:]
}

// firstPart is how much a first fragment carries: IPv6 has a least size.
const firstPart = 1240

// long is a UDP datagram of two fragments, the second of which is text. From
// nobody's port, so that nothing answers it.
func long(from, to string, port uint16, first, second string) []byte {
	data := first + strings.Repeat(".", firstPart-8-len(first)) + second
	return carried(ipPacket(from, to, unix.IPPROTO_UDP, udpSegment(4000, port, data)))
}

// Fragments are put together before connection tracking, whichever interface
// they come by. So each of them is held against the addresses of its interface
// before that: else a guest completes another's datagram, or has another
// complete its own.
//
// Promise C1: no workload can use a source address that is not its own, in
// parts of packets too.
func TestAttackStolenFragments(t *testing.T) {
	s := newScenario(t)
	o := s.outside()
	s.run()
	thief, client, server := s.wire(s.other), s.wire(s.client), s.wire(s.server)
	out := s.wire(o)
	out.to(s.ns, "up0")
	want := s.counter("spoofed")
	id := uint16(0)
	for _, f := range families {
		from, to := s.client.addr(f), s.server.addr(f)
		send := func(w *wire, whole []byte, second bool) {
			p := piece{0, true, whole[:firstPart]}
			if second {
				p = piece{firstPart, false, whole[firstPart:]}
			}
			w.packet(fragment(from, to, unix.IPPROTO_UDP, id, p))
		}
		whole := long(from, to, 9000, "stolen", "stolen")
		for _, w := range []*wire{thief, out} {
			for _, second := range []bool{true, false} {
				id++
				send(w, whole, second)
				want++
				s.counts("spoofed", want)
				send(client, whole, !second)
			}
		}
		// What is the client's own as a whole arrives, behind all of that.
		id++
		whole = long(from, to, 9000, "honest", "honest")
		send(client, whole, true)
		send(client, whole, false)
		server.await("what is whole", func(b []byte) bool {
			if bytes.Contains(b, []byte("stolen")) {
				t.Errorf("IPv%d: delivered: %.80q", f, b)
			}
			return bytes.HasSuffix(b, []byte("honest"))
		})
	}
}

// fragmentAttack is a datagram to a forbidden port in pieces, in ways that may
// look allowed.
type fragmentAttack struct {
	name   string
	family int // 0: both
	pieces func(allowed, denied []byte) []piece
}

var fragmentAttacks = []fragmentAttack{
	{"in order", 0, func(_, no []byte) []piece {
		return []piece{{0, true, no[:firstPart]}, {firstPart, false, no[firstPart:]}}
	}},
	{"backwards", 0, func(_, no []byte) []piece {
		return []piece{{firstPart, false, no[firstPart:]}, {0, true, no[:firstPart]}}
	}},
	{"without its beginning", 0, func(_, no []byte) []piece {
		return []piece{{firstPart, false, no[firstPart:]}}
	}},
	{"without its end", 0, func(_, no []byte) []piece {
		return []piece{{0, true, no[:firstPart]}}
	}},
	{"ports alone", 0, func(_, no []byte) []piece {
		return []piece{{0, true, no[:8]}, {8, false, no[8:]}}
	}},
	{"its ports written over", 0, func(yes, no []byte) []piece {
		return []piece{{0, true, yes[:firstPart]}, {0, true, no[:firstPart]}, {firstPart, false, no[firstPart:]}}
	}},
	{"its ports written over, backwards", 0, func(yes, no []byte) []piece {
		return []piece{{firstPart, false, no[firstPart:]}, {0, true, no[:firstPart]}, {0, true, yes[:firstPart]}}
	}},
	{"a second end", 0, func(yes, no []byte) []piece {
		return []piece{{firstPart, false, yes[firstPart:]}, {firstPart + 8, false, no[firstPart:]}, {0, true, no[:firstPart]}}
	}},
	{"overlapping by half", 0, func(yes, no []byte) []piece {
		return []piece{{0, true, yes[:firstPart]}, {firstPart / 2 / 8 * 8, false, no[firstPart/2/8*8:]}}
	}},
	{"beyond 64 KB", 4, func(_, no []byte) []piece {
		return []piece{{0, true, no[:firstPart]}, {65528, false, no[firstPart:]}}
	}},
	{"beyond 64 KB", 6, func(_, no []byte) []piece {
		return []piece{{0, true, no[:firstPart]}, {65528, false, no[firstPart:]}}
	}},
	{"of an odd length", 0, func(_, no []byte) []piece {
		return []piece{{0, true, no[:firstPart+3]}, {firstPart, false, no[firstPart:]}}
	}},
	{"the only one", 0, func(_, no []byte) []piece {
		return []piece{{0, false, no}}
	}},
	{"the only one, said not to be", 0, func(_, no []byte) []piece {
		return []piece{{0, true, no}}
	}},
}

// What may not pass does not in pieces; what may does.
//
// Promise C2: no packet gets past policy by how it is cut.
func TestAttackFragments(t *testing.T) {
	s := newScenario(t)
	ports := `{"action":"Allow","protocol":"UDP","destination":{"ports":[9000]}}`
	s.revision = s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, ports, allow))
	s.run()
	guest, server := s.wire(s.other), s.wire(s.server)
	id := uint16(0)
	for _, f := range families {
		from, to := s.other.addr(f), s.server.addr(f)
		send := func(pieces []piece) {
			id++
			for _, p := range pieces {
				guest.packet(fragment(from, to, unix.IPPROTO_UDP, id, p))
			}
		}
		for _, a := range fragmentAttacks {
			if a.family != 0 && a.family != f {
				continue
			}
			send(a.pieces(long(from, to, 9000, "may pass", "may pass"), long(from, to, 9001, "forbidden", "forbidden")))
			whole := long(from, to, 9000, "honest", "honest")
			send([]piece{{firstPart, false, whole[firstPart:]}, {0, true, whole[:firstPart]}})
			server.await("what is honest after "+a.name, func(b []byte) bool {
				if bytes.Contains(b, []byte("forbidden")) {
					t.Errorf("IPv%d, %s: delivered: %.80q", f, a.name, b)
				}
				return bytes.HasSuffix(b, []byte("honest"))
			})
		}
	}
}
