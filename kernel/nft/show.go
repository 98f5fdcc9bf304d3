package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cleanup removes our two tables, if they are there, and nothing else.
func (t *Tables) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := t.conn.newBatch(0)
	for _, f := range []family{inet, arp} {
		b.table(f, unix.NFT_MSG_NEWTABLE) // so that there is one to delete
		b.table(f, unix.NFT_MSG_DELTABLE)
	}
	if _, err := t.conn.commit(b); err != nil {
		return fmt.Errorf("remove nftables: %w", err)
	}
	t.applied, t.bumpDue, t.notes = false, false, map[string]string{}
	t.Resync()
	return nil
}

// Dump reads our tables and prints them, in an order that does not change. It
// may be called from any goroutine.
func (t *Tables) Dump(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	h, _, err := t.conn.readBack()
	if err != nil {
		return "", fmt.Errorf("dump nftables: %w", err)
	}
	rules, err := t.conn.ruleTexts(h)
	if err != nil {
		return "", fmt.Errorf("dump nftables: %w", err)
	}
	counters, err := t.Counters(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		fmt.Fprintf(&b, "counter %s packets %d bytes %d\n", name, counters[name].Packets, counters[name].Bytes)
	}
	for _, o := range slices.SortedFunc(maps.Keys(h.sets), object.compare) {
		b.WriteString(h.sets[o].text())
	}
	for _, o := range slices.SortedFunc(maps.Keys(h.chains), object.compare) {
		c := chain{object: o, hook: h.chains[o].hook}
		b.WriteString(c.text())
		for _, r := range rules[o] {
			b.WriteString("\t" + r + "\n")
		}
	}
	return b.String(), nil
}

// text prints a set with its elements, in order of their text.
func (s *haveSet) text() string {
	kind := "set "
	if s.isMap() {
		kind = "map "
	}
	if s.family == arp {
		kind += "arp "
	}
	head := kind + s.name
	if s.size != 0 {
		head += " size " + strconv.Itoa(int(s.size))
	}
	if len(s.key) == 0 {
		return head + " of unknown kind\n"
	}
	var lines []string
	for e := range s.elems {
		lines = append(lines, "\t"+s.elemText(e)+"\n")
	}
	for e, to := range s.targets {
		does := "drop"
		switch {
		case s.data.len > 0:
			does = string(appendValue(nil, s.data, []byte(to)))
		case to == otherVerdict:
			does = "other"
		case s.rated:
			does = string(to)
		case to != "":
			does = "jump " + string(to)
		}
		lines = append(lines, "\t"+s.elemText(e)+" : "+does+"\n")
	}
	slices.Sort(lines)
	return head + "\n" + strings.Join(lines, "")
}

// ruleTexts reads our rules and writes each as render would have, as far as it
// is made of what render uses.
func (c *conn) ruleTexts(h *have) (map[object][]string, error) {
	texts := map[object][]string{}
	err := c.ofBoth(unix.NFT_MSG_GETRULE, ofTable, h, func(fam family, attrs []byte) error {
		chain, text := ruleText(attrs)
		o := object{fam, chain}
		texts[o] = append(texts[o], text)
		return nil
	})
	if errors.Is(err, errInterrupted) {
		err = nil
	}
	return texts, err
}

func ruleText(attrs []byte) (chain, text string) {
	var d decoder
	var u userdata
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			chain = attrString(v)
		case unix.NFTA_RULE_EXPRESSIONS:
			eachExpr(v, d.expr)
		case unix.NFTA_RULE_USERDATA:
			u = parseUserdata(v)
		}
	})
	text = strings.Join(d.words, " ")
	if u.comment != "" {
		text += " # " + u.comment
	}
	return chain, text
}

// decoder turns expressions back into the text of matches and actions.
type decoder struct {
	words  []string
	loaded []field // into registers, not used yet
	mask   []byte
	xor    []byte
	mapped string   // the map that the field was looked up in
	values [][]byte // constants in registers
}

// exprAttrs are the attributes of an expression by type.
type exprAttrs [12][]byte

func (d *decoder) expr(name string, data []byte) {
	var a exprAttrs
	each(data, func(typ uint16, v []byte) {
		if int(typ) < len(a) {
			a[typ] = v
		}
	})
	value := func(typ uint16) []byte {
		_, v, _, _ := nextAttr(a[typ])
		return v
	}
	switch name {
	case "meta":
		if a[unix.NFTA_META_SREG] != nil {
			mark := action{kind: markIt}
			if len(d.values) > 0 {
				mark.value = nativeUint32(d.values[0])
			}
			d.action(mark)
			return
		}
		d.load(loadMeta, attrUint32(a[unix.NFTA_META_KEY]), 0, 0)
	case "notrack":
		d.action(action{kind: noTrack})
	case "reject":
		d.action(action{kind: reset})
	case "payload":
		if a[unix.NFTA_PAYLOAD_SREG] != nil {
			d.dscp(&a)
			return
		}
		d.load(loadPayload, attrUint32(a[unix.NFTA_PAYLOAD_BASE]), attrUint32(a[unix.NFTA_PAYLOAD_OFFSET]), attrUint32(a[unix.NFTA_PAYLOAD_LEN]))
	case "ct":
		d.ct(&a)
	case "bitwise":
		d.mask, d.xor = value(unix.NFTA_BITWISE_MASK), value(unix.NFTA_BITWISE_XOR)
	case "cmp":
		o := equal + op(attrUint32(a[unix.NFTA_CMP_OP]))
		if v := value(unix.NFTA_CMP_DATA); d.mask != nil && o == notEqual && strings.Trim(string(v), "\x00") == "" {
			d.match(match{op: anyBit, mask: d.mask})
		} else {
			d.match(match{op: o, value: v, mask: d.mask})
		}
	case "range":
		o := within + op(attrUint32(a[unix.NFTA_RANGE_OP]))
		d.match(match{op: o, ranges: []span{{value(unix.NFTA_RANGE_FROM_DATA), value(unix.NFTA_RANGE_TO_DATA)}}})
	case "lookup":
		set := attrString(a[unix.NFTA_LOOKUP_SET])
		switch {
		case a[unix.NFTA_LOOKUP_DREG] != nil && attrUint32(a[unix.NFTA_LOOKUP_DREG]) != unix.NFT_REG_VERDICT:
			d.mapped = set
		case a[unix.NFTA_LOOKUP_DREG] != nil && len(d.loaded) > 0:
			d.action(action{kind: lookup, field: d.loaded[0], name: set})
		default:
			d.match(match{op: in + op(attrUint32(a[unix.NFTA_LOOKUP_FLAGS])), set: set, mask: d.mask})
		}
	case "objref":
		d.action(action{kind: count, name: attrString(a[unix.NFTA_OBJREF_IMM_NAME])})
	case "log":
		d.action(action{kind: logs, name: attrString(a[unix.NFTA_LOG_PREFIX])})
	case "connlimit":
		d.action(action{kind: over, connections: attrUint32(a[connlimitCount])})
	case "nat", "masq":
		d.translation(name, &a)
	case "limit":
		d.action(action{kind: limit, rate: parseRate(data)})
	case "dynset":
		d.action(limitByOf(&a))
	case "immediate":
		d.immediate(data)
	default:
		d.words = append(d.words, "["+name+"]")
	}
}

// load finds the field; length 0 is any.
func (d *decoder) load(from loader, key, offset, length uint32) {
	for f, i := range fields {
		if i.from == from && i.key == key && i.offset == offset && (length == 0 || uint32(i.part.len) == length) {
			d.loaded = append(d.loaded, field(f))
			return
		}
	}
	d.words = append(d.words, fmt.Sprintf("[load %d %d %d]", from, key, offset))
}

func (d *decoder) ct(a *exprAttrs) {
	if a[unix.NFTA_CT_SREG] != nil {
		set := action{kind: setMark}
		if len(d.mask) == 4 && len(d.xor) == 4 {
			set.bits, set.mark = ^binary.NativeEndian.Uint32(d.mask), binary.NativeEndian.Uint32(d.xor)
		}
		d.action(set)
		return
	}
	dir := uint32(noDirection)
	if v := a[unix.NFTA_CT_DIRECTION]; len(v) == 1 {
		dir = uint32(v[0])
	}
	d.load(loadCT, attrUint32(a[unix.NFTA_CT_KEY]), dir, 0)
}

func (d *decoder) match(m match) {
	m.fields = d.loaded
	if len(m.fields) == 0 || m.op > anyBit || (m.op == within || m.op == notWithin) && len(m.ranges) == 0 {
		d.words = append(d.words, "[match]")
	} else {
		d.words = append(d.words, string(m.appendText(nil)))
	}
	d.loaded, d.mask, d.xor = nil, nil, nil
}

func (d *decoder) action(a action) {
	d.words = append(d.words, string(a.appendText(nil)))
	d.loaded, d.mask, d.xor, d.mapped, d.values = nil, nil, nil, "", nil
}

func (d *decoder) immediate(data []byte) {
	code, chain, ok := immediateVerdict(data)
	kinds := map[int32]actionKind{
		verdictAccept: accept, verdictDrop: drop,
		unix.NFT_RETURN: back, unix.NFT_JUMP: jump, unix.NFT_GOTO: goTo,
	}
	if kind, known := kinds[code]; ok && known {
		d.action(action{kind: kind, name: chain})
		return
	}
	if v := immediateValue(data); v != nil {
		d.values = append(d.values, v)
		return
	}
	d.words = append(d.words, "[immediate]")
}
