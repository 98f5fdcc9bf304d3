package nft

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/fnv"
	"strings"

	"golang.org/x/sys/unix"
)

// The types of this file describe what our tables should hold. They are pure:
// render makes them, encode turns them into messages, and their text is what
// the tests compare and what the hash of a rule is made of.

// family is the kernel's number of a table's family.
type family uint8

const (
	inet family = 1 // NFPROTO_INET
	arp  family = 3 // NFPROTO_ARP
)

// TableName is the name of our two tables, inet and arp.
const TableName = "tortie"

// object names a chain, set or counter of one of our tables.
type object struct {
	family family
	name   string
}

func (o object) compare(p object) int {
	return cmp.Or(cmp.Compare(o.family, p.family), cmp.Compare(o.name, p.name))
}

// hook is where a base chain is attached. Base chains of ours have type filter
// or nat, and policy accept: only workload interfaces are ours to refuse.
type hook struct {
	num      uint32
	priority int32
}

type chain struct {
	object
	hook  *hook // nil for a chain that others lead to
	rules []rule
}

// rule is matches, all of which must hold, and what is done then.
type rule struct {
	matches []match
	does    []action
	comment string
	epoch   uint32 // the policy epoch in the rule, 0 where there is none
}

type op uint8

const (
	equal op = iota
	notEqual
	within    // one range
	notWithin // outside it
	anyOf     // ranges: a list
	noneOf
	in // a named set
	notIn
	anyBit // value & mask is not 0
)

// match compares fields, most often one, with something constant. A value
// shorter than the field compares only its first bytes.
type match struct {
	op     op
	fields []field
	value  []byte
	mask   []byte // with equal, notEqual, in and notIn: nil for all bits
	ranges []span // with within, notWithin, anyOf, noneOf
	set    string // with in and notIn; of a list, the set that has it
}

// span is an inclusive range of big-endian numbers.
type span struct{ from, to []byte }

type actionKind uint8

const (
	accept actionKind = iota
	drop
	back // return to the caller
	jump
	goTo
	count   // in a named counter
	logs    // to the packet log, with a prefix
	setMark // some bits of the connection's mark
	setDSCP // of the packet
	reset   // refuse a TCP connection
	over    // goes on if there are more connections than so many
	noTrack // the packet gets no connection
	lookup  // what a verdict map says about a field
	translate
	markIt  // the packet's own mark to a value
	limit   // goes on for so many packets a second
	limitBy // the same for each rule that denies, and pair of interfaces
)

type action struct {
	kind  actionKind
	name  string // of the chain, counter, map, or the prefix; ip or ip6, with setDSCP
	field field  // with lookup
	leads *leads // with lookup: what is in the map, if it is never changed
	nat   *translation

	bits, mark  uint32 // with setMark: which bits are set to what
	connections uint32 // with over
	dscp        uint8  // with setDSCP
	value       uint32 // with markIt
	rate        rate   // with limit and limitBy
}

// rate is so many packets a second, after so many at once.
type rate struct{ second, burst uint32 }

// set describes a named set or, if verdicts, verdict map, or map to addresses.
type set struct {
	object
	key      []keyPart
	interval bool
	verdicts bool
	data     keyPart // of a map to addresses, what they are
	rated    bool    // each element matches only what is over its rate
	leads    bool    // a verdict map of ours that leads away for good: goto, not jump
	size     uint32  // how many elements it has room for; 0 for an interval set, which has no limit
	dynamic  bool    // its elements come and go with packets; they are none of ours
}

// valued says that elements have a target.
func (s *set) valued() bool { return s.isMap() || s.rated }

// keyLen is the length of a key: of several parts each takes whole registers.
func (s *set) keyLen() int {
	if len(s.key) == 1 {
		return int(s.key[0].len)
	}
	n := 0
	for _, k := range s.key {
		n += pad4(int(k.len))
	}
	return n
}

// keyType is the key as tools that list the set know it, 6 bits a part.
func (s *set) keyType() (typ uint32) {
	for _, k := range s.key {
		typ = typ<<6 | k.id
	}
	return typ
}

// isMap says that it is a map.
func (s *set) isMap() bool { return s.verdicts || s.data.len > 0 }

// ranged says that elements are ranges of several parts, which the kernel takes
// as one element with two keys.
func (s *set) ranged() bool { return s.interval && len(s.key) > 1 }

// lastKey is the second key of an element of such a set.
func (s *set) lastKey(e elem) []byte {
	last := e
	size := int(s.key[0].len)
	if e.bits > 0 {
		for i, m := range maskBytes(int(e.bits)-1, size) {
			last.key[i] |= ^m
		}
	}
	return last.key[:s.keyLen()]
}

// bitsTo is what elem.bits is of an element with that second key; 0 for a
// single address and for what is no prefix, which we never write.
func (s *set) bitsTo(e elem, last []byte) uint8 {
	size := int(s.key[0].len)
	if len(last) < s.keyLen() || !bytes.Equal(last[size:s.keyLen()], e.key[size:s.keyLen()]) {
		return 0
	}
	bits, ok := prefixBits(span{e.key[:size], last[:size]})
	if !ok || bits == 8*size {
		return 0
	}
	return uint8(bits) + 1
}

func (s *set) flags() (f uint32) {
	if s.interval {
		f |= unix.NFT_SET_INTERVAL
	}
	if s.isMap() {
		f |= unix.NFT_SET_MAP
	}
	if s.ranged() {
		f |= setConcat
	}
	if s.dynamic {
		f |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	return f
}

// A list is an interval set that is never changed, named after what is in it,
// so that all rules with the same list share it. An anonymous set for each
// rule would be simpler, but the kernel walks all sets for each new one: 5,000
// of them take 3 seconds.
func list(o op, f field, ranges []span) match {
	part := fields[f].part
	b := make([]byte, 0, 256)
	for _, s := range ranges {
		b = appendSpan(append(b, ' '), part, s)
	}
	return match{op: o, fields: []field{f}, ranges: ranges, set: listNames[part] + fmt.Sprintf("%016x", hash64(string(b)))}
}

// leads lead from each value of a field on, up to the next, to a chain. They are
// a verdict map that is never changed, named after what is in it, like a list.
type leads struct {
	part    keyPart
	starts  [][]byte // ascending; the first is 0
	targets []target
}

// leadNames has how the name of such a map of a type begins.
var leadNames = map[keyPart]string{typePort: "to-", typeIP4: "to4-", typeIP6: "to6-"}

func (l *leads) name() string {
	b := make([]byte, 0, 40*len(l.starts))
	for i, s := range l.starts {
		b = append(append(append(b, s...), ' '), l.targets[i]...)
	}
	return leadNames[l.part] + fmt.Sprintf("%016x", hash64(string(b)))
}

// lookup leads by the field.
func (l *leads) lookup(f field) action {
	return action{kind: lookup, field: f, name: l.name(), leads: l}
}

// elems has an end for each start but the last, whose values go on to the end.
func (l *leads) elems() (es []elem, targets []target) {
	for i, s := range l.starts {
		e := makeElem(s)
		if i > 0 {
			end := e
			end.flag = elemEnd
			es, targets = append(es, end), append(targets, "")
		}
		es, targets = append(es, e), append(targets, l.targets[i])
	}
	return es, targets
}

// content is what a set or map that is never changed has in it.
type content struct {
	ranges []span
	leads  *leads
}

// listNames has how the name of a list of a type begins.
var listNames = map[keyPart]string{typeIP4: "ip4-", typeIP6: "ip6-", typePort: "port-", typeProto: "proto-", typeByte: "number-"}

// listSet describes the set of a list's name, if it is one.
func listSet(o object) (s set, ok bool) {
	for part, prefix := range leadNames {
		if strings.HasPrefix(o.name, prefix) && len(o.name) == len(prefix)+16 {
			return set{object: o, key: []keyPart{part}, interval: true, verdicts: true, leads: true}, true
		}
	}
	for part, prefix := range listNames {
		if strings.HasPrefix(o.name, prefix) && len(o.name) == len(prefix)+16 {
			return set{object: o, key: []keyPart{part}, interval: true}, true
		}
	}
	return s, false
}

// listElems are the elements of a list, and where those of a map lead.
func listElems(c content) ([]elem, []target) {
	if c.leads != nil {
		return c.leads.elems()
	}
	es := make([]elem, 0, 2*len(c.ranges))
	for _, r := range c.ranges {
		es = append(es, makeElem(r.from))
		if after, more := increment(r.to); more {
			e := makeElem(after)
			e.flag = elemEnd
			es = append(es, e)
		}
	}
	return es, nil
}

// What the kernel calls the parts of sets of ranges of several parts.
const (
	setConcat     = 0x80 // NFT_SET_CONCAT
	setDescConcat = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen   = 1    // NFTA_SET_FIELD_LEN
	setElemKeyEnd = 10   // NFTA_SET_ELEM_KEY_END
)

// elem is the key of a set element, and its kernel flags.
type elem struct {
	key  [28]byte
	flag uint8
	bits uint8 // in a set of ranges of several parts: the length of the prefix that is the first part, plus 1
}

const (
	elemEnd uint8 = unix.NFT_SET_ELEM_INTERVAL_END
	elemAny uint8 = 2 // NFT_SET_ELEM_CATCHALL: whatever has no element
)

// compare puts ranges in order: the end of one comes before the start of the
// next, at the same key.
func (e elem) compare(o elem) int {
	return cmp.Or(bytes.Compare(e.key[:], o.key[:]), cmp.Compare(o.flag&elemEnd, e.flag&elemEnd))
}

// target is where a verdict map leads: a chain to jump to, or "" to drop; or
// the bytes of an address that another map has; or, in a set whose elements do
// something, the text of that.
type target string

func pad4(n int) int { return (n + 3) &^ 3 }

// hashVersion goes into every hash. Raise it when the messages made of the
// same description change, so that the rules of an older version are replaced.
const hashVersion = "1\n"

// hash identifies what the rule does; it is kept in the rule's userdata.
func (r *rule) hash() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(hashVersion))
	_, _ = h.Write(r.appendText(make([]byte, 0, 256)))
	return h.Sum64()
}

// capacity is the size of a set made for n elements: room to double, because
// a full set must be made anew with everything that names it.
func capacity(n int) uint32 {
	size := uint32(128)
	for int(size) < 2*n {
		size *= 2
	}
	return size
}
