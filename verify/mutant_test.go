package verify

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// mutant changes one thing of the kernel's table, and back.
type mutant struct {
	what     string
	do, undo func(*netlink.Conn) error
}

// message is one of a transaction.
type message struct {
	typ   uint16
	flags netlink.HeaderFlags
	attrs []netlink.Attribute
}

// commit sends messages in one transaction.
func commit(c *netlink.Conn, list ...message) error {
	bound := func(typ uint16) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	messages := []netlink.Message{bound(unix.NFNL_MSG_BATCH_BEGIN)}
	for i, m := range list {
		body, err := netlink.MarshalAttributes(m.attrs)
		if err != nil {
			return err
		}
		if i == len(list)-1 {
			m.flags |= netlink.Acknowledge
		}
		messages = append(messages, netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | m.typ), Flags: netlink.Request | m.flags},
			Data:   append([]byte{1, 0, 0, 0}, body...),
		})
	}
	_, err := c.SendMessages(append(messages, bound(unix.NFNL_MSG_BATCH_END)))
	if err == nil {
		_, err = c.Receive()
	}
	return err
}

const nested = unix.NLA_F_NESTED

// rawRule is a rule as the kernel tells it.
type rawRule struct {
	chain  string
	handle uint64
	exprs  []netlink.Attribute // each an expression
}

// rawRules are those of our table, by chain and in order.
func rawRules(c *netlink.Conn) ([]rawRule, error) {
	answers, err := request(c, unix.NFT_MSG_GETRULE, true, text(unix.NFTA_RULE_TABLE, TableName))
	var list []rawRule
	for _, a := range answers {
		if a.text(unix.NFTA_RULE_TABLE) != TableName {
			continue
		}
		exprs, err := decode(a.get(unix.NFTA_RULE_EXPRESSIONS))
		if err != nil {
			return nil, err
		}
		list = append(list, rawRule{a.text(unix.NFTA_RULE_CHAIN), a.u64(unix.NFTA_RULE_HANDLE), exprs})
	}
	slices.SortStableFunc(list, func(a, b rawRule) int { return cmp.Compare(a.chain, b.chain) })
	return list, err
}

// replace puts expressions in the place of those of rules, by number.
func replace(what map[int][]netlink.Attribute) func(*netlink.Conn) error {
	return func(c *netlink.Conn) error {
		rules, err := rawRules(c) // a replaced rule has a new handle
		if err != nil {
			return err
		}
		var list []message
		for n, exprs := range what {
			exprs = slices.Clone(exprs)
			for i := range exprs {
				exprs[i].Type = unix.NFTA_LIST_ELEM | nested
			}
			body, err := netlink.MarshalAttributes(exprs)
			if err != nil {
				return err
			}
			handle := make([]byte, 8)
			for i := range handle {
				handle[i] = byte(rules[n].handle >> (56 - 8*i))
			}
			list = append(list, message{unix.NFT_MSG_NEWRULE, netlink.Replace, []netlink.Attribute{
				text(unix.NFTA_RULE_TABLE, TableName), text(unix.NFTA_RULE_CHAIN, rules[n].chain),
				{Type: unix.NFTA_RULE_HANDLE, Data: handle},
				{Type: unix.NFTA_RULE_EXPRESSIONS | nested, Data: body},
			}})
		}
		return commit(c, list...)
	}
}

// aside are beginnings of the names of chains that packets never come to that
// are forwarded, or that decide nothing.
var aside = []string{"from-", "to-", "host-", "input", "output", "denied", "remembered", "special"}

// drawMutant draws one, nil if what it drew cannot be changed so.
func drawMutant(c *netlink.Conn, r *rand.Rand) (*mutant, error) {
	if r.IntN(3) == 0 {
		return drawElement(c, r)
	}
	rules, err := rawRules(c)
	if err != nil {
		return nil, err
	}
	n := r.IntN(len(rules))
	for range 3 { // rather one for packets that are forwarded
		if slices.ContainsFunc(aside, func(name string) bool { return strings.HasPrefix(rules[n].chain, name) }) {
			n = r.IntN(len(rules))
		}
	}
	old := rules[n].exprs
	change := func(what string, next []netlink.Attribute) *mutant {
		return &mutant{
			fmt.Sprintf("rule %d of chain %s: %s", n, rules[n].chain, what),
			replace(map[int][]netlink.Attribute{n: next}), replace(map[int][]netlink.Attribute{n: old}),
		}
	}
	switch r.IntN(8) {
	case 0, 1:
		if len(old) > 0 {
			return change("gone", nil), nil
		}
	case 2:
		if n+1 < len(rules) && rules[n+1].chain == rules[n].chain {
			m := change("exchanged with the next", nil)
			m.do = replace(map[int][]netlink.Attribute{n: rules[n+1].exprs, n + 1: old})
			m.undo = replace(map[int][]netlink.Attribute{n: old, n + 1: rules[n+1].exprs})
			return m, nil
		}
	default:
		for _, i := range r.Perm(len(old)) {
			e, err := oneExpr(old[i].Data)
			if err != nil {
				return nil, err
			}
			if what, data := otherwise(e, old[i].Data, r); data != nil {
				next := slices.Clone(old)
				next[i].Data = data
				return change(what, next), nil
			}
		}
	}
	return nil, nil
}

// otherwise is an expression that says something else, nil if there is none.
func otherwise(e expr, data []byte, r *rand.Rand) (what string, out []byte) {
	a := e.attrs
	edit := func(old []byte, change func(b []byte)) []byte {
		at := bytes.LastIndex(data, old)
		if len(old) == 0 || at < 0 {
			return nil
		}
		out := slices.Clone(data)
		change(out[at : at+len(old)])
		return out
	}
	flip := func(old []byte) []byte { return edit(old, func(b []byte) { b[r.IntN(len(b))] ^= 1 << r.IntN(8) }) }
	switch {
	case e.name == "cmp" && r.IntN(3) == 0: // the other way round: the operator is before the constant
		old := []byte{8, 0, unix.NFTA_CMP_OP, 0, 0, 0, 0, byte(a.u32(unix.NFTA_CMP_OP))}
		return "compared the other way", edit(old, func(b []byte) { b[7] ^= 1 })
	case e.name == "cmp":
		return "another constant", flip(a.value(unix.NFTA_CMP_DATA))
	case e.name == "range":
		return "another bound", flip(a.value([]uint16{unix.NFTA_RANGE_FROM_DATA, unix.NFTA_RANGE_TO_DATA}[r.IntN(2)]))
	case e.name == "bitwise":
		return "another mask", flip(a.value([]uint16{unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR}[r.IntN(2)]))
	case e.name == "lookup" && !a.has(unix.NFTA_LOOKUP_DREG):
		old := []byte{8, 0, unix.NFTA_LOOKUP_FLAGS, 0, 0, 0, 0, byte(a.u32(unix.NFTA_LOOKUP_FLAGS))}
		return "looked up the other way", edit(old, func(b []byte) { b[7] ^= 1 })
	case e.name == "payload" && a.has(unix.NFTA_PAYLOAD_DREG):
		old := []byte{8, 0, unix.NFTA_PAYLOAD_OFFSET, 0, 0, 0, 0, byte(a.u32(unix.NFTA_PAYLOAD_OFFSET))}
		return "another field", edit(old, func(b []byte) {
			b[7] ^= map[byte]byte{0: 2, 2: 2, 8: 8 ^ 24, 24: 8 ^ 24, 12: 12 ^ 16, 16: 12 ^ 16}[b[7]] | b[7]&1
		})
	case e.name == "immediate" && a.verdict(unix.NFTA_IMMEDIATE_DATA) != nil:
		v := a.verdict(unix.NFTA_IMMEDIATE_DATA)
		if v.code != codeAccept && v.code != codeDrop {
			return "", nil
		}
		code := []byte{8, 0, unix.NFTA_VERDICT_CODE, 0, 0, 0, 0, byte(v.code)}
		return "another verdict", edit(code, func(b []byte) {
			if r.IntN(3) == 0 {
				copy(b[4:], []byte{0xff, 0xff, 0xff, 0xfb}) // return
			} else {
				b[7] ^= 1
			}
		})
	}
	return "", nil
}

// drawElement takes an element out of a set, or has one of a map lead to where
// another does.
func drawElement(c *netlink.Conn, r *rand.Rand) (*mutant, error) {
	sets, err := request(c, unix.NFT_MSG_GETSET, true, text(unix.NFTA_SET_TABLE, TableName))
	if err != nil {
		return nil, err
	}
	sets = slices.DeleteFunc(sets, func(a attrs) bool {
		return a.text(unix.NFTA_SET_TABLE) != TableName || a.u32(unix.NFTA_SET_FLAGS)&(unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_EVAL) != 0
	})
	slices.SortFunc(sets, func(a, b attrs) int { return cmp.Compare(a.text(unix.NFTA_SET_NAME), b.text(unix.NFTA_SET_NAME)) })
	if len(sets) == 0 {
		return nil, nil
	}
	set := sets[r.IntN(len(sets))].text(unix.NFTA_SET_NAME)
	list, err := rawElements(c, set)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	n := r.IntN(len(list))
	chosen := list[n : n+1]
	if e := chosen[0]; e.first && !e.whole {
		if n+1 == len(list) {
			return nil, nil
		}
		chosen = list[n : n+2] // and the end of the range
	} else if !e.first {
		return nil, nil
	}
	m := &mutant{
		fmt.Sprintf("set %s: element %x gone", set, chosen[0].key),
		func(c *netlink.Conn) error { return commit(c, elements(unix.NFT_MSG_DELSETELEM, set, chosen...)) },
		func(c *netlink.Conn) error { return commit(c, elements(unix.NFT_MSG_NEWSETELEM, set, chosen...)) },
	}
	other := list[r.IntN(len(list))]
	if len(chosen) == 1 && chosen[0].data != nil && r.IntN(2) == 0 {
		next := chosen[0]
		next.raw = bytes.Replace(next.raw, next.data, other.data, 1)
		if bytes.Equal(next.raw, chosen[0].raw) || len(other.data) != len(next.data) {
			return nil, nil
		}
		m.what = fmt.Sprintf("map %s: element %x leads elsewhere", set, next.key)
		m.do = func(c *netlink.Conn) error {
			return commit(c, elements(unix.NFT_MSG_DELSETELEM, set, chosen...), elements(unix.NFT_MSG_NEWSETELEM, set, next))
		}
		m.undo = func(c *netlink.Conn) error {
			return commit(c, elements(unix.NFT_MSG_DELSETELEM, set, next), elements(unix.NFT_MSG_NEWSETELEM, set, chosen...))
		}
	}
	return m, nil
}

// rawElement is an element as the kernel tells it.
type rawElement struct {
	raw, key, data []byte
	first          bool // of a range, or all of it
	whole          bool
}

// rawElements are those of a set, by key.
func rawElements(c *netlink.Conn, set string) ([]rawElement, error) {
	lists, err := request(c, unix.NFT_MSG_GETSETELEM, true, text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName), text(unix.NFTA_SET_ELEM_LIST_SET, set))
	if err != nil {
		return nil, err
	}
	var list []rawElement
	ranges := false
	for _, a := range lists {
		elems, err := a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		if err != nil {
			return nil, err
		}
		for _, x := range elems {
			f, err := decode(x.Data)
			if err != nil {
				return nil, err
			}
			end := f.u32(unix.NFTA_SET_ELEM_FLAGS)&elemIntervalEnd != 0
			ranges = ranges || end
			if f.has(unix.NFTA_SET_ELEM_KEY) {
				list = append(list, rawElement{x.Data, f.value(unix.NFTA_SET_ELEM_KEY), f.get(unix.NFTA_SET_ELEM_DATA), !end, f.has(elemKeyEnd)})
			}
		}
	}
	for i := range list {
		list[i].whole = list[i].whole || !ranges
	}
	slices.SortStableFunc(list, func(a, b rawElement) int { return bytes.Compare(a.key, b.key) })
	return list, nil
}

func elements(typ uint16, set string, list ...rawElement) message {
	var raw []netlink.Attribute
	for _, e := range list {
		raw = append(raw, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | nested, Data: e.raw})
	}
	body, err := netlink.MarshalAttributes(raw)
	if err != nil {
		panic(err) // it was unmarshaled before
	}
	m := message{typ: typ, attrs: []netlink.Attribute{
		text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName), text(unix.NFTA_SET_ELEM_LIST_SET, set),
		{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | nested, Data: body},
	}}
	if typ == unix.NFT_MSG_NEWSETELEM {
		m.flags = netlink.Create
	}
	return m
}
