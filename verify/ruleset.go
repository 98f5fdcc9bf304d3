package verify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is that of the table that is read, of family inet.
const TableName = "tortie"

// Ruleset is a table as the kernel has it.
type Ruleset struct {
	Generation uint32
	chains     map[string]*chain
	sets       map[string]*set
}

type chain struct {
	name     string
	base     bool
	hook     uint32
	priority int32
	kind     string // filter, nat or route
	policy   uint32
	rules    []rule
}

type rule struct {
	handle uint64
	exprs  []expr
}

// expr is an expression: its name, and its attributes by number.
type expr struct {
	name  string
	attrs attrs
}

type set struct {
	name    string
	flags   uint32
	keyLen  int
	parts   []int // lengths of the parts of a key, in whole registers
	elems   []elem
	verdict bool // the data are verdicts
}

type elem struct {
	key, end []byte
	data     []byte
	verdict  *verdict
	flags    uint32
	exprs    []expr
}

// Verdicts that are not of nftables alone.
const (
	codeDrop   = 0
	codeAccept = 1
)

type verdict struct {
	code  int32
	chain string
}

// Flags of elements.
const (
	elemIntervalEnd = 1
	elemCatchAll    = 2
)

// attrs are netlink attributes, without their flags.
type attrs []netlink.Attribute

const attrTypeMask = 0x3fff

var errMalformed = errors.New("malformed message from the kernel")

func decode(b []byte) (attrs, error) {
	list, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	for i := range list {
		list[i].Type &= attrTypeMask
	}
	return list, nil
}

func (a attrs) get(typ uint16) []byte {
	for _, x := range a {
		if x.Type == typ {
			return x.Data
		}
	}
	return nil
}

func (a attrs) has(typ uint16) bool {
	return slices.ContainsFunc(a, func(x netlink.Attribute) bool { return x.Type == typ })
}

func (a attrs) text(typ uint16) string {
	b := a.get(typ)
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// u32 is a big-endian number, 0 if it is not there.
func (a attrs) u32(typ uint16) uint32 {
	if b := a.get(typ); len(b) >= 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (a attrs) u64(typ uint16) uint64 {
	if b := a.get(typ); len(b) >= 8 {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (a attrs) nest(typ uint16) (attrs, error) { return decode(a.get(typ)) }

// value is a nested constant.
func (a attrs) value(typ uint16) []byte {
	in, err := a.nest(typ)
	if err != nil {
		return nil
	}
	return in.get(unix.NFTA_DATA_VALUE)
}

// verdict is a nested verdict, nil if there is none.
func (a attrs) verdict(typ uint16) *verdict { //nolint:unparam // attributes of two kinds of objects, which happen to have one number
	in, err := a.nest(typ)
	if err != nil || !in.has(unix.NFTA_DATA_VERDICT) {
		return nil
	}
	v, err := in.nest(unix.NFTA_DATA_VERDICT)
	if err != nil {
		return nil
	}
	return &verdict{int32(v.u32(unix.NFTA_VERDICT_CODE)), v.text(unix.NFTA_VERDICT_CHAIN)}
}

// ErrNoTable is that there is nothing to read.
var ErrNoTable = fmt.Errorf("there is no table inet %s", TableName)

// attempts bounds how often the table is read while others change it.
const attempts = 20

// Reader reads our table in one network namespace.
type Reader struct{ c *netlink.Conn }

// Open returns a reader for the network namespace of the calling thread.
func Open() (*Reader, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	_ = c.SetReadBuffer(32 << 20)
	return &Reader{c}, nil
}

// Close closes it.
func (r *Reader) Close() { _ = r.c.Close() }

// Read reads our table in the network namespace of the calling thread.
func Read() (*Ruleset, error) {
	r, err := Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Read()
}

// Read reads the table, all of it as of one generation.
func (r *Reader) Read() (*Ruleset, error) {
	c := r.c
	var err error
	for range attempts {
		var before, after uint32
		var r *Ruleset
		if before, err = generation(c); err == nil {
			if r, err = readTable(c); err == nil {
				after, err = generation(c)
			}
		}
		if err == nil && before == after {
			r.Generation = after
			return r, nil
		}
		if errors.Is(err, ErrNoTable) {
			return nil, err
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, errInterrupted) {
			break
		}
	}
	if err == nil {
		err = errInterrupted
	}
	return nil, fmt.Errorf("read table inet %s: %w", TableName, err)
}

var errInterrupted = errors.New("it changes all the time")

// request asks the kernel and returns the answers' attributes.
func request(c *netlink.Conn, typ uint16, dump bool, ask ...netlink.Attribute) ([]attrs, error) {
	flags := netlink.Request
	if dump {
		flags |= netlink.Dump
	}
	body, err := netlink.MarshalAttributes(ask)
	if err != nil {
		return nil, err
	}
	const inet = 1
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: flags},
		Data:   append([]byte{inet, 0, 0, 0}, body...),
	})
	if err != nil {
		return nil, err
	}
	var list []attrs
	for _, m := range answers {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return nil, errInterrupted
		}
		if len(m.Data) < 4 {
			return nil, errMalformed
		}
		a, err := decode(m.Data[4:])
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

func generation(c *netlink.Conn) (uint32, error) {
	answers, err := request(c, unix.NFT_MSG_GETGEN, false)
	if err != nil || len(answers) == 0 {
		return 0, err
	}
	return answers[0].u32(unix.NFTA_GEN_ID), nil
}

func text(typ uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: append([]byte(s), 0)}
}

func readTable(c *netlink.Conn) (*Ruleset, error) {
	r := &Ruleset{chains: map[string]*chain{}, sets: map[string]*set{}}
	chains, err := request(c, unix.NFT_MSG_GETCHAIN, true)
	if err != nil {
		return nil, err
	}
	for _, a := range chains {
		if err := r.chain(a); err != nil {
			return nil, err
		}
	}
	if len(r.chains) == 0 {
		return nil, ErrNoTable
	}
	rules, err := request(c, unix.NFT_MSG_GETRULE, true, text(unix.NFTA_RULE_TABLE, TableName))
	if err != nil {
		return nil, err
	}
	for _, a := range rules {
		if err := r.rule(a); err != nil {
			return nil, err
		}
	}
	sets, err := request(c, unix.NFT_MSG_GETSET, true, text(unix.NFTA_SET_TABLE, TableName))
	if err != nil {
		return nil, err
	}
	for _, a := range sets {
		if err := r.set(a); err != nil {
			return nil, err
		}
	}
	for name := range r.sets {
		lists, err := request(c, unix.NFT_MSG_GETSETELEM, true, text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName), text(unix.NFTA_SET_ELEM_LIST_SET, name))
		if err != nil {
			return nil, err
		}
		for _, a := range lists {
			if err := r.elements(name, a); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func (r *Ruleset) chain(a attrs) error {
	if a.text(unix.NFTA_CHAIN_TABLE) != TableName {
		return nil
	}
	c := &chain{name: a.text(unix.NFTA_CHAIN_NAME), base: a.has(unix.NFTA_CHAIN_HOOK), kind: a.text(unix.NFTA_CHAIN_TYPE), policy: a.u32(unix.NFTA_CHAIN_POLICY)}
	if c.base {
		h, err := a.nest(unix.NFTA_CHAIN_HOOK)
		if err != nil {
			return err
		}
		c.hook, c.priority = h.u32(unix.NFTA_HOOK_HOOKNUM), int32(h.u32(unix.NFTA_HOOK_PRIORITY))
	}
	r.chains[c.name] = c
	return nil
}

func (r *Ruleset) rule(a attrs) error {
	if a.text(unix.NFTA_RULE_TABLE) != TableName {
		return nil
	}
	c := r.chains[a.text(unix.NFTA_RULE_CHAIN)]
	if c == nil {
		return errInterrupted
	}
	list, err := exprs(a.get(unix.NFTA_RULE_EXPRESSIONS))
	c.rules = append(c.rules, rule{a.u64(unix.NFTA_RULE_HANDLE), list})
	return err
}

// exprs decodes a list of expressions.
func exprs(b []byte) ([]expr, error) {
	list, err := decode(b)
	if err != nil {
		return nil, err
	}
	var out []expr
	for _, x := range list {
		e, err := oneExpr(x.Data)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func oneExpr(b []byte) (e expr, err error) {
	a, err := decode(b)
	if err != nil {
		return e, err
	}
	e.name = a.text(unix.NFTA_EXPR_NAME)
	e.attrs, err = a.nest(unix.NFTA_EXPR_DATA)
	return e, err
}

// verdictType is the kernel's number of the type of verdicts.
const verdictType = 0xffffff00

func (r *Ruleset) set(a attrs) error {
	if a.text(unix.NFTA_SET_TABLE) != TableName {
		return nil
	}
	s := &set{
		name: a.text(unix.NFTA_SET_NAME), flags: a.u32(unix.NFTA_SET_FLAGS), keyLen: int(a.u32(unix.NFTA_SET_KEY_LEN)),
		verdict: a.u32(unix.NFTA_SET_DATA_TYPE) == verdictType,
	}
	desc, err := a.nest(unix.NFTA_SET_DESC)
	if err != nil {
		return err
	}
	const descConcat, fieldLen = 2, 1
	parts, err := desc.nest(descConcat)
	if err != nil {
		return err
	}
	for _, p := range parts {
		f, err := decode(p.Data)
		if err != nil {
			return err
		}
		s.parts = append(s.parts, (int(f.u32(fieldLen))+3)/4*4)
	}
	r.sets[s.name] = s
	return nil
}

func (r *Ruleset) elements(name string, a attrs) error {
	s := r.sets[name]
	list, err := a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	if err != nil {
		return err
	}
	for _, x := range list {
		f, err := decode(x.Data)
		if err != nil {
			return err
		}
		e := elem{
			key: f.value(unix.NFTA_SET_ELEM_KEY), end: f.value(elemKeyEnd), flags: f.u32(unix.NFTA_SET_ELEM_FLAGS),
			data: f.value(unix.NFTA_SET_ELEM_DATA), verdict: f.verdict(unix.NFTA_SET_ELEM_DATA),
		}
		if f.has(elemObjref) || f.has(unix.NFTA_SET_ELEM_TIMEOUT) {
			e.exprs = append(e.exprs, expr{name: "an element that expires or refers to an object"})
		}
		if f.has(unix.NFTA_SET_ELEM_EXPR) {
			one, err := oneExpr(f.get(unix.NFTA_SET_ELEM_EXPR))
			if err != nil {
				return err
			}
			e.exprs = append(e.exprs, one)
		}
		more, err := exprs(f.get(elemExpressions))
		if err != nil {
			return err
		}
		e.exprs = append(e.exprs, more...)
		s.elems = append(s.elems, e)
	}
	return nil
}

// Attributes of elements that the constants of the system package lack.
const (
	elemObjref      = 9
	elemKeyEnd      = 10
	elemExpressions = 11
)
