package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// writer appends netlink attributes. Numbers in nftables attributes are
// big-endian; headers are native.
type writer struct{ b []byte }

func (w *writer) attr(typ uint16, v []byte) {
	w.header(typ, len(v))
	w.b = append(w.b, v...)
	w.pad()
}

func (w *writer) str(typ uint16, s string) {
	w.header(typ, len(s)+1)
	w.b = append(w.b, s...)
	w.b = append(w.b, 0)
	w.pad()
}

func (w *writer) u32(typ uint16, v uint32) {
	w.header(typ, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, v)
}

func (w *writer) u64(typ uint16, v uint64) {
	w.header(typ, 8)
	w.b = binary.BigEndian.AppendUint64(w.b, v)
}

func (w *writer) header(typ uint16, n int) {
	w.b = binary.NativeEndian.AppendUint16(w.b, uint16(n+4))
	w.b = binary.NativeEndian.AppendUint16(w.b, typ)
}

func (w *writer) pad() {
	for len(w.b)%4 != 0 {
		w.b = append(w.b, 0)
	}
}

// open starts a nest, close ends the one that open returned.
func (w *writer) open(typ uint16) int {
	at := len(w.b)
	w.header(typ|unix.NLA_F_NESTED, 0)
	return at
}

func (w *writer) close(at int) {
	binary.NativeEndian.PutUint16(w.b[at:], uint16(len(w.b)-at))
}

func (w *writer) data(typ uint16, v []byte) {
	at := w.open(typ)
	w.attr(unix.NFTA_DATA_VALUE, v)
	w.close(at)
}

func (w *writer) verdict(code int32, chain string) {
	at := w.open(unix.NFTA_IMMEDIATE_DATA) // which is NFTA_SET_ELEM_DATA too
	in := w.open(unix.NFTA_DATA_VERDICT)
	w.u32(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		w.str(unix.NFTA_VERDICT_CHAIN, chain)
	}
	w.close(in)
	w.close(at)
}

// expr starts an expression; done ends it.
func (w *writer) expr(name string) (at [2]int) {
	at[0] = w.open(unix.NFTA_LIST_ELEM)
	w.str(unix.NFTA_EXPR_NAME, name)
	at[1] = w.open(unix.NFTA_EXPR_DATA)
	return at
}

func (w *writer) done(at [2]int) {
	w.close(at[1])
	w.close(at[0])
}

// load puts a field into registers from reg on.
func (w *writer) load(f field, reg uint32) {
	i := &fields[f]
	switch i.from {
	case loadMeta:
		at := w.expr("meta")
		w.u32(unix.NFTA_META_DREG, reg)
		w.u32(unix.NFTA_META_KEY, i.key)
		w.done(at)
	case loadPayload:
		at := w.expr("payload")
		w.u32(unix.NFTA_PAYLOAD_DREG, reg)
		w.u32(unix.NFTA_PAYLOAD_BASE, i.key)
		w.u32(unix.NFTA_PAYLOAD_OFFSET, i.offset)
		w.u32(unix.NFTA_PAYLOAD_LEN, uint32(i.part.len))
		w.done(at)
	default:
		at := w.expr("ct")
		w.u32(unix.NFTA_CT_DREG, reg)
		w.u32(unix.NFTA_CT_KEY, i.key)
		if i.offset != noDirection {
			w.attr(unix.NFTA_CT_DIRECTION, []byte{byte(i.offset)})
		}
		w.done(at)
	}
}

func (w *writer) bitwise(mask, xor []byte) {
	at := w.expr("bitwise")
	w.u32(unix.NFTA_BITWISE_SREG, firstReg)
	w.u32(unix.NFTA_BITWISE_DREG, firstReg)
	w.u32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
	w.data(unix.NFTA_BITWISE_MASK, mask)
	w.data(unix.NFTA_BITWISE_XOR, xor)
	w.done(at)
}

func (w *writer) compare(reg, op uint32, v []byte) {
	at := w.expr("cmp")
	w.u32(unix.NFTA_CMP_SREG, reg)
	w.u32(unix.NFTA_CMP_OP, op)
	w.data(unix.NFTA_CMP_DATA, v)
	w.done(at)
}

func (w *writer) lookup(reg uint32, set string, flags uint32) {
	at := w.expr("lookup")
	w.str(unix.NFTA_LOOKUP_SET, set)
	w.u32(unix.NFTA_LOOKUP_SREG, reg)
	if flags != 0 {
		w.u32(unix.NFTA_LOOKUP_FLAGS, flags)
	}
	w.done(at)
}

// firstReg is the first of the sixteen 4-byte registers.
const firstReg = unix.NFT_REG32_00

// match writes the expressions of m.
func (w *writer) match(m *match) {
	reg := uint32(firstReg)
	for _, f := range m.fields {
		w.load(f, reg)
		reg += uint32(pad4(int(fields[f].part.len)) / 4)
	}
	not := uint32(0)
	switch m.op {
	case notEqual, notWithin, noneOf, notIn:
		not = 1
	}
	switch m.op {
	case equal, notEqual:
		if m.mask != nil {
			w.bitwise(m.mask, make([]byte, len(m.mask)))
		}
		w.compare(firstReg, unix.NFT_CMP_EQ+not, m.value)
	case anyBit:
		w.bitwise(m.mask, make([]byte, len(m.mask)))
		w.compare(firstReg, unix.NFT_CMP_NEQ, make([]byte, len(m.mask)))
	case within, notWithin:
		at := w.expr("range")
		w.u32(unix.NFTA_RANGE_SREG, firstReg)
		w.u32(unix.NFTA_RANGE_OP, unix.NFT_RANGE_EQ+not)
		w.data(unix.NFTA_RANGE_FROM_DATA, m.ranges[0].from)
		w.data(unix.NFTA_RANGE_TO_DATA, m.ranges[0].to)
		w.done(at)
	default:
		if m.mask != nil {
			w.bitwise(m.mask, make([]byte, len(m.mask)))
		}
		w.lookup(firstReg, m.set, not)
	}
}

func (w *writer) action(a action) {
	immediate := func(code int32) {
		at := w.expr("immediate")
		w.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		w.verdict(code, a.name)
		w.done(at)
	}
	switch a.kind {
	case accept:
		immediate(verdictAccept)
	case drop:
		immediate(verdictDrop)
	case back:
		immediate(unix.NFT_RETURN)
	case jump:
		immediate(unix.NFT_JUMP)
	case goTo:
		immediate(unix.NFT_GOTO)
	case count:
		at := w.expr("objref")
		w.u32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		w.str(unix.NFTA_OBJREF_IMM_NAME, a.name)
		w.done(at)
	case logs:
		at := w.expr("log")
		w.header(unix.NFTA_LOG_GROUP, 2)
		w.b = binary.BigEndian.AppendUint16(w.b, LogGroup)
		w.pad()
		w.str(unix.NFTA_LOG_PREFIX, a.name)
		w.done(at)
	case setDSCP:
		w.dscp(a)
	case noTrack:
		w.done(w.expr("notrack"))
	case reset:
		at := w.expr("reject")
		w.u32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST)
		w.done(at)
	case setMark:
		w.load(ctMark, firstReg)
		w.bitwise(native32(^a.bits), native32(a.mark))
		at := w.expr("ct")
		w.u32(unix.NFTA_CT_KEY, unix.NFT_CT_MARK)
		w.u32(unix.NFTA_CT_SREG, firstReg)
		w.done(at)
	case translate:
		w.translate(a.nat)
	case over:
		w.over(a.connections)
	case markIt, limit, limitBy:
		w.limiting(&a)
	default:
		w.load(a.field, firstReg)
		at := w.expr("lookup")
		w.str(unix.NFTA_LOOKUP_SET, a.name)
		w.u32(unix.NFTA_LOOKUP_SREG, firstReg)
		w.u32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
		w.done(at)
	}
}

const (
	verdictDrop   = 0 // NF_DROP
	verdictAccept = 1 // NF_ACCEPT
)

// Userdata is a list of type, length, value, each a byte. Type 0 of a rule is
// the comment that tools show; the others are ours.
const (
	userComment = 0
	userHash    = 0x70
	userEpoch   = 0x71

	userKeyOrder = 0 // of a set
)

// Userdata is what a rule carries for us.
type userdata struct {
	comment string
	hash    uint64
	epoch   uint32
}

func (u *userdata) bytes() []byte {
	var b []byte
	if u.comment != "" {
		b = append(b, userComment, byte(len(u.comment)+1))
		b = append(append(b, u.comment...), 0)
	}
	b = append(b, userHash, 8)
	b = binary.BigEndian.AppendUint64(b, u.hash)
	if u.epoch != 0 {
		b = append(b, userEpoch, 4)
		b = binary.BigEndian.AppendUint32(b, u.epoch)
	}
	return b
}

func parseUserdata(b []byte) (u userdata) {
	for len(b) >= 2 {
		typ, n := b[0], int(b[1])
		if len(b) < 2+n {
			return u
		}
		v := b[2 : 2+n]
		switch {
		case typ == userComment && n > 0:
			u.comment = string(v[:n-1])
		case typ == userHash && n == 8:
			u.hash = binary.BigEndian.Uint64(v)
		case typ == userEpoch && n == 4:
			u.epoch = binary.BigEndian.Uint32(v)
		}
		b = b[2+n:]
	}
	return u
}

// batch is one transaction under construction: messages, and for each what it
// is about, so that an error can be laid at somebody's door.
type batch struct {
	w    writer
	ops  []operation
	seq  uint32 // of the batch's first message
	sets uint32 // new sets so far
	last int    // where the last operation begins
}

// operation is what one message does.
type operation struct {
	what   string
	object object
	culprit
	many bool // elements of one message: culprit is only the first of them
}

// culprit names what to leave out when the kernel refuses an operation; the
// zero culprit is something that all else rests on.
type culprit struct {
	program string // the first chain of a program that is refused
	set     object // an element that is refused, of this set
	elem    elem
	removal object // a chain, set or counter that cannot be deleted
	isSet   bool

	isCounter bool
}

const messageHeader = unix.SizeofNlMsghdr + 4

// begin starts a message; end completes it.
func (b *batch) begin(typ, flags uint16, f family, op operation) int {
	at := len(b.w.b)
	b.ops, b.last = append(b.ops, op), at
	b.w.b = append(b.w.b, make([]byte, messageHeader)...)
	putHeader(b.w.b[at:], unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, b.seq+uint32(len(b.ops)))
	b.w.b[at+unix.SizeofNlMsghdr] = byte(f)
	return at
}

func putHeader(h []byte, typ, flags uint16, seq uint32) {
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(h[8:], seq)
}

func (b *batch) end(at int) {
	binary.NativeEndian.PutUint32(b.w.b[at:], uint32(len(b.w.b)-at))
}

func (b *batch) table(f family, typ uint16) {
	flags := uint16(unix.NLM_F_CREATE)
	if typ == unix.NFT_MSG_DELTABLE {
		flags = 0
	}
	at := b.begin(typ, flags, f, operation{what: "table", object: object{f, TableName}})
	b.w.str(unix.NFTA_TABLE_NAME, TableName)
	if typ == unix.NFT_MSG_NEWTABLE {
		b.w.u32(unix.NFTA_TABLE_FLAGS, 0)
	}
	b.end(at)
}

func (b *batch) newChain(o object, h *hook, who culprit) {
	at := b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, o.family, operation{what: "new chain", object: o, culprit: who})
	b.w.str(unix.NFTA_CHAIN_TABLE, TableName)
	b.w.str(unix.NFTA_CHAIN_NAME, o.name)
	if h != nil {
		in := b.w.open(unix.NFTA_CHAIN_HOOK)
		b.w.u32(unix.NFTA_HOOK_HOOKNUM, h.num)
		b.w.u32(unix.NFTA_HOOK_PRIORITY, uint32(h.priority))
		b.w.close(in)
		b.w.u32(unix.NFTA_CHAIN_POLICY, verdictAccept)
		b.w.str(unix.NFTA_CHAIN_TYPE, chainType(o))
	}
	b.end(at)
}

func (b *batch) deleteChain(o object, who culprit) {
	at := b.begin(unix.NFT_MSG_DELCHAIN, 0, o.family, operation{what: "delete chain", object: o, culprit: who})
	b.w.str(unix.NFTA_CHAIN_TABLE, TableName)
	b.w.str(unix.NFTA_CHAIN_NAME, o.name)
	b.end(at)
}

// deleteRule deletes one rule, or with handle 0 all rules of the chain.
func (b *batch) deleteRule(o object, handle uint64) {
	at := b.begin(unix.NFT_MSG_DELRULE, 0, o.family, operation{what: "delete rule", object: o})
	b.w.str(unix.NFTA_RULE_TABLE, TableName)
	b.w.str(unix.NFTA_RULE_CHAIN, o.name)
	if handle != 0 {
		b.w.u64(unix.NFTA_RULE_HANDLE, handle)
	}
	b.end(at)
}

// place says where a rule goes: instead of a rule, before a rule, or, without
// either, at the chain's end.
type place struct {
	replace, before uint64
	echo            bool // have the kernel tell the rule's handle
}

// rule writes r. It returns the rule's sequence number, with which the kernel
// echoes its handle.
func (b *batch) rule(o object, r *rule, hash uint64, p place, who culprit) uint32 {
	flags := uint16(unix.NLM_F_CREATE)
	switch {
	case p.replace != 0:
		flags = unix.NLM_F_REPLACE
	case p.before == 0:
		flags |= unix.NLM_F_APPEND
	}
	if p.echo {
		flags |= unix.NLM_F_ECHO
	}
	at := b.begin(unix.NFT_MSG_NEWRULE, flags, o.family, operation{what: "rule of chain", object: o, culprit: who})
	seq := b.seq + uint32(len(b.ops))
	w := &b.w
	w.str(unix.NFTA_RULE_TABLE, TableName)
	w.str(unix.NFTA_RULE_CHAIN, o.name)
	if p.replace != 0 {
		w.u64(unix.NFTA_RULE_HANDLE, p.replace)
	} else if p.before != 0 {
		w.u64(unix.NFTA_RULE_POSITION, p.before)
	}
	in := w.open(unix.NFTA_RULE_EXPRESSIONS)
	for i := range r.matches {
		w.match(&r.matches[i])
	}
	for _, a := range r.does {
		w.action(a)
	}
	w.close(in)
	u := userdata{comment: r.comment, hash: hash, epoch: r.epoch}
	w.attr(unix.NFTA_RULE_USERDATA, u.bytes())
	b.end(at)
	return seq
}

func (b *batch) newSet(s *set) {
	b.sets++
	at := b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, s.family, operation{what: "new set", object: s.object})
	w := &b.w
	w.str(unix.NFTA_SET_TABLE, TableName)
	w.str(unix.NFTA_SET_NAME, s.name)
	w.u32(unix.NFTA_SET_FLAGS, s.flags())
	w.u32(unix.NFTA_SET_KEY_TYPE, s.keyType())
	w.u32(unix.NFTA_SET_KEY_LEN, uint32(s.keyLen()))
	if s.verdicts {
		w.u32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
	} else if s.isMap() {
		w.u32(unix.NFTA_SET_DATA_TYPE, s.data.id)
		w.u32(unix.NFTA_SET_DATA_LEN, uint32(s.data.len))
	}
	w.u32(unix.NFTA_SET_ID, b.sets) // the kernel insists, though it is found by name
	if s.size != 0 || s.ranged() {
		in := w.open(unix.NFTA_SET_DESC)
		if s.size != 0 {
			w.u32(unix.NFTA_SET_DESC_SIZE, s.size)
		}
		if s.ranged() {
			list := w.open(setDescConcat)
			for _, part := range s.key {
				field := w.open(unix.NFTA_LIST_ELEM)
				w.u32(setFieldLen, uint32(part.len))
				w.close(field)
			}
			w.close(list)
		}
		w.close(in)
	}
	if len(s.key) == 1 && (s.key[0] == typeIndex || s.key[0] == typeName || s.key[0] == typeMark) {
		// Tools print such keys right only if told that they are host-endian.
		w.attr(unix.NFTA_SET_USERDATA, append([]byte{userKeyOrder, 4}, native32(1)...))
	}
	b.end(at)
}

func (b *batch) deleteSet(o object, who culprit) {
	at := b.begin(unix.NFT_MSG_DELSET, 0, o.family, operation{what: "delete set", object: o, culprit: who})
	b.w.str(unix.NFTA_SET_TABLE, TableName)
	b.w.str(unix.NFTA_SET_NAME, o.name)
	b.end(at)
}

func (b *batch) counter(o object, typ uint16) {
	op := operation{what: "counter", object: o}
	if typ == unix.NFT_MSG_DELOBJ {
		op.culprit = culprit{removal: o, isCounter: true}
	}
	at := b.begin(typ, unix.NLM_F_CREATE, o.family, op)
	b.objectName(o, unix.NFT_OBJECT_COUNTER)
	if typ == unix.NFT_MSG_NEWOBJ {
		b.w.close(b.w.open(unix.NFTA_OBJ_DATA))
	}
	b.end(at)
}

func (b *batch) objectName(o object, kind uint32) {
	b.w.str(unix.NFTA_OBJ_TABLE, TableName)
	b.w.str(unix.NFTA_OBJ_NAME, o.name)
	b.w.u32(unix.NFTA_OBJ_TYPE, kind)
}

// mostElements is how much of a message elements may take: an attribute's
// length has 16 bits.
const mostElements = 60000

// elements adds or deletes elements of a set. targets is nil but for those
// that are valued. With single, elements that need each other go alone, so that the
// kernel's error points at them.
func (b *batch) elements(s *set, typ uint16, es []elem, targets []target, single bool) {
	keyLen := s.keyLen()
	for len(es) > 0 {
		op := operation{what: "elements", object: s.object, culprit: culprit{set: s.object, elem: es[0]}}
		flags := uint16(unix.NLM_F_CREATE)
		if typ == unix.NFT_MSG_DELSETELEM {
			flags = 0
		}
		at := b.begin(typ, flags, s.family, op)
		b.w.str(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
		b.w.str(unix.NFTA_SET_ELEM_LIST_SET, s.name)
		list := b.w.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		n := 0
		for n < len(es) && len(b.w.b)-list < mostElements {
			if single && n > 0 && es[n].flag&elemEnd == 0 {
				break
			}
			var t *target
			if targets != nil && es[n].flag&elemEnd == 0 {
				t = &targets[n]
			}
			e := &es[n]
			switch {
			case s.ranged():
				b.w.rangedElem(e.key[:keyLen], s.lastKey(*e))
			case e.flag&elemAny != 0:
				b.w.elem(s, nil, e.flag, t)
			default:
				b.w.elem(s, e.key[:keyLen], e.flag, t)
			}
			n++
		}
		b.w.close(list)
		b.end(at)
		b.ops[len(b.ops)-1].many = !single && n > 1
		es = es[n:]
		if targets != nil {
			targets = targets[n:]
		}
	}
}

// rangedElem writes an element that goes from one key to another.
func (w *writer) rangedElem(from, to []byte) {
	at := w.open(unix.NFTA_LIST_ELEM)
	w.data(unix.NFTA_SET_ELEM_KEY, from)
	w.data(setElemKeyEnd, to)
	w.close(at)
}

func (w *writer) elem(s *set, key []byte, flag uint8, t *target) {
	at := w.open(unix.NFTA_LIST_ELEM)
	if key != nil {
		w.data(unix.NFTA_SET_ELEM_KEY, key)
	}
	if flag != 0 {
		w.u32(unix.NFTA_SET_ELEM_FLAGS, uint32(flag))
	}
	switch {
	case t == nil:
	case s.data.len > 0:
		w.data(unix.NFTA_SET_ELEM_DATA, []byte(*t))
	case s.rated:
		w.rated(*t)
	case *t == "":
		w.verdict(verdictDrop, "")
	case s.leads:
		w.verdict(unix.NFT_GOTO, string(*t))
	default:
		w.verdict(unix.NFT_JUMP, string(*t))
	}
	w.close(at)
}

func (o operation) String() string { return fmt.Sprintf("%s %s", o.what, o.object.name) }
