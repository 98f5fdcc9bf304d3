package nft

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// have is what we know the kernel to hold of our tables: what it acknowledged,
// or what was read back.
type have struct {
	tables   map[family]bool
	chains   map[object]*haveChain
	sets     map[object]*haveSet
	members  map[desired.SetKey]*haveSet // the selectors' sets among sets
	counters map[object]bool
	epochs   map[uint32]bool // found in the rules that carry one
	odd      string          // not empty: something only a rebuild sets right
}

type haveChain struct {
	hook  *hook
	rules []haveRule
}

// haveRule identifies a rule; handle is 0 where it is not known.
type haveRule struct{ hash, handle uint64 }

type haveSet struct {
	set
	elems   map[elem]struct{} // of a set
	targets map[elem]target   // of one that is valued
}

func newHave() *have {
	return &have{
		tables: map[family]bool{}, chains: map[object]*haveChain{}, sets: map[object]*haveSet{},
		members: map[desired.SetKey]*haveSet{}, counters: map[object]bool{},
		epochs: map[uint32]bool{},
	}
}

func newHaveSet(s set, room int) *haveSet {
	h := &haveSet{set: s}
	if s.valued() {
		h.targets = make(map[elem]target, room)
	} else {
		h.elems = make(map[elem]struct{}, room)
	}
	return h
}

func (s *haveSet) len() int { return len(s.elems) + len(s.targets) }

func (s *haveSet) has(e elem, t target) bool {
	if s.valued() {
		got, ok := s.targets[e]
		return ok && got == t
	}
	_, ok := s.elems[e]
	return ok
}

// equal says whether two views are of the same ruleset. Handles that one of
// them does not know are not compared.
func (h *have) equal(o *have) bool {
	if h.odd != o.odd || len(h.tables) != len(o.tables) || len(h.chains) != len(o.chains) ||
		len(h.sets) != len(o.sets) || len(h.counters) != len(o.counters) {
		return false
	}
	for name, c := range h.chains {
		d, ok := o.chains[name]
		if !ok || !sameHook(c.hook, d.hook) || len(c.rules) != len(d.rules) {
			return false
		}
		for i, r := range c.rules {
			s := d.rules[i]
			if r.hash != s.hash || r.handle != s.handle && r.handle != 0 && s.handle != 0 {
				return false
			}
		}
	}
	for name, s := range h.sets {
		t, ok := o.sets[name]
		if !ok || s.len() != t.len() {
			return false
		}
		for e := range s.elems {
			if !t.has(e, "") {
				return false
			}
		}
		for e, to := range s.targets {
			if !t.has(e, to) {
				return false
			}
		}
	}
	for name := range h.counters {
		if !o.counters[name] {
			return false
		}
	}
	return true
}

func sameHook(a, b *hook) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// generation is the number of the namespace's last commit.
func (c *conn) generation() (gen uint32, err error) {
	err = c.query(unix.NFT_MSG_GETGEN, false, 0, nil, func(_ family, attrs []byte) error {
		each(attrs, func(typ uint16, v []byte) {
			if typ == unix.NFTA_GEN_ID {
				gen = attrUint32(v)
			}
		})
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation: %w", err)
	}
	return gen, nil
}

func each(attrs []byte, f func(typ uint16, v []byte)) {
	for {
		typ, v, rest, ok := nextAttr(attrs)
		if !ok {
			return
		}
		f(typ, v)
		attrs = rest
	}
}

// readBack reads our tables. gen is the generation that the view is of, or 0
// if others committed meanwhile, so that it may not be of one moment.
func (c *conn) readBack() (h *have, gen uint32, err error) {
	gen, err = c.generation()
	if err != nil {
		return nil, 0, err
	}
	h = newHave()
	for _, read := range []func(*have) error{c.readTables, c.readChains, c.readRules, c.readCounters, c.readSets} {
		err := read(h)
		if errors.Is(err, errInterrupted) {
			gen = 0
		} else if err != nil {
			return nil, 0, err
		}
	}
	return h, gen, nil
}

// checkHooks looks for chains of ours that are attached where they should not
// be, or no longer where they should: that cannot be changed in a chain.
func (h *have) checkHooks() {
	want := map[object]*hook{}
	for _, c := range renderBase(base{controls: everyControl, hosts: everyHost}) {
		want[c.object] = c.hook
	}
	for o, at := range natHooks {
		want[o] = at
	}
	for o, c := range h.chains {
		if w, ours := want[o]; (ours || strings.HasPrefix(o.name, "p-")) && !sameHook(c.hook, w) {
			h.odd = "chain " + o.name + " is attached elsewhere"
		}
	}
}

func (c *conn) readTables(h *have) error {
	return wrap("tables", c.query(unix.NFT_MSG_GETTABLE, true, 0, nil, h.addTable))
}

func (h *have) addTable(fam family, attrs []byte) error {
	var name string
	var flags uint32
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_TABLE_NAME:
			name = attrString(v)
		case unix.NFTA_TABLE_FLAGS:
			flags = attrUint32(v)
		}
	})
	if name != TableName || fam != inet && fam != arp {
		return nil
	}
	h.tables[fam] = true
	if flags != 0 {
		h.odd = "the table has flags"
	}
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// chainInfo is what a chain message tells.
type chainInfo struct {
	family      family
	table, name string
	hook        *hook
	kind        string
	policy      uint32
}

func parseChain(fam family, attrs []byte) chainInfo {
	i := chainInfo{family: fam, policy: verdictAccept}
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			i.table = attrString(v)
		case unix.NFTA_CHAIN_NAME:
			i.name = attrString(v)
		case unix.NFTA_CHAIN_TYPE:
			i.kind = attrString(v)
		case unix.NFTA_CHAIN_POLICY:
			i.policy = attrUint32(v)
		case unix.NFTA_CHAIN_HOOK:
			i.hook = &hook{}
			each(v, func(typ uint16, v []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					i.hook.num = attrUint32(v)
				case unix.NFTA_HOOK_PRIORITY:
					i.hook.priority = int32(attrUint32(v))
				}
			})
		}
	})
	return i
}

func (c *conn) readChains(h *have) error {
	return wrap("chains", c.query(unix.NFT_MSG_GETCHAIN, true, 0, nil, h.addChain))
}

func (h *have) addChain(fam family, attrs []byte) error {
	i := parseChain(fam, attrs)
	if i.table != TableName || fam != inet && fam != arp {
		return nil
	}
	h.chains[object{fam, i.name}] = &haveChain{hook: i.hook}
	if i.hook != nil && (i.kind != chainType(object{fam, i.name}) || i.policy != verdictAccept) {
		h.odd = "chain " + i.name + " has another type or policy"
	}
	return nil
}

// ofTable asks for what is in our table only. The table's name is attribute 1
// of every request.
func ofTable(w *writer) { w.str(unix.NFTA_RULE_TABLE, TableName) }

func (c *conn) readRules(h *have) error {
	return wrap("rules", c.ofBoth(unix.NFT_MSG_GETRULE, ofTable, h, h.addRule))
}

func (h *have) addRule(fam family, attrs []byte) error {
	var chain, user []byte
	var r haveRule
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			chain = v
		case unix.NFTA_RULE_HANDLE:
			r.handle = attrUint64(v)
		case unix.NFTA_RULE_USERDATA:
			user = v
		}
	})
	in, ok := h.chains[object{fam, attrString(chain)}]
	if !ok {
		return nil // made since the chains were read
	}
	u := parseUserdata(user)
	r.hash = u.hash
	in.rules = append(in.rules, r)
	if u.epoch != 0 {
		h.epochs[u.epoch] = true
	}
	return nil
}

// ofBoth dumps something of each of our tables that is there.
func (c *conn) ofBoth(typ uint16, attrs func(*writer), h *have, f func(family, []byte) error) error {
	var interrupted error
	for _, fam := range []family{inet, arp} {
		if !h.tables[fam] {
			continue
		}
		switch err := c.query(typ, true, fam, attrs, f); {
		case errors.Is(err, unix.ENOENT): // gone since
		case errors.Is(err, errInterrupted):
			interrupted = err
		case err != nil:
			return err
		}
	}
	return interrupted
}

func (c *conn) readCounters(h *have) error {
	return wrap("counters", c.ofBoth(unix.NFT_MSG_GETOBJ, ofTable, h, h.addObject))
}

func (h *have) addObject(fam family, attrs []byte) error {
	o := parseObject(attrs)
	if o.table != TableName {
		return nil
	}
	if o.kind != unix.NFT_OBJECT_COUNTER {
		h.odd = "object " + o.name + " is no counter"
	}
	h.counters[object{fam, o.name}] = true
	return nil
}

// objectInfo is what the message of a named object tells.
type objectInfo struct {
	table, name string
	kind        uint32
	Counter
}

func parseObject(attrs []byte) (o objectInfo) {
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_OBJ_TABLE:
			o.table = attrString(v)
		case unix.NFTA_OBJ_NAME:
			o.name = attrString(v)
		case unix.NFTA_OBJ_TYPE:
			o.kind = attrUint32(v)
		case unix.NFTA_OBJ_DATA:
			each(v, func(typ uint16, v []byte) {
				switch typ {
				case unix.NFTA_COUNTER_PACKETS:
					o.Packets = attrUint64(v)
				case unix.NFTA_COUNTER_BYTES:
					o.Bytes = attrUint64(v)
				}
			})
		}
	})
	return o
}

// readSets reads our sets and their elements. Sets of other names are noted
// without their elements: they only have to go.
func (c *conn) readSets(h *have) error {
	err := c.ofBoth(unix.NFT_MSG_GETSET, ofTable, h, h.addSet)
	if err != nil && !errors.Is(err, errInterrupted) {
		return wrap("sets", err)
	}
	interrupted := err
	for o, s := range h.sets {
		if len(s.key) == 0 || s.dynamic {
			continue
		}
		ask := func(w *writer) {
			w.str(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
			w.str(unix.NFTA_SET_ELEM_LIST_SET, s.name)
		}
		switch err := c.query(unix.NFT_MSG_GETSETELEM, true, s.family, ask, s.addElements); {
		case errors.Is(err, errInterrupted):
			interrupted = err
		case errors.Is(err, unix.ENOENT): // gone since
		case err != nil:
			return wrap("elements of "+o.name, err)
		}
	}
	return interrupted
}

func (h *have) addSet(fam family, attrs []byte) error {
	var name string
	var size, flags, keyType, keyLen, dataLen uint32
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_SET_NAME:
			name = attrString(v)
		case unix.NFTA_SET_FLAGS:
			flags = attrUint32(v)
		case unix.NFTA_SET_KEY_TYPE:
			keyType = attrUint32(v)
		case unix.NFTA_SET_KEY_LEN:
			keyLen = attrUint32(v)
		case unix.NFTA_SET_DATA_LEN:
			dataLen = attrUint32(v)
		case unix.NFTA_SET_DESC:
			each(v, func(typ uint16, v []byte) {
				if typ == unix.NFTA_SET_DESC_SIZE {
					size = attrUint32(v)
				}
			})
		}
	})
	if flags&unix.NFT_SET_ANONYMOUS != 0 {
		return nil // it goes with its rule
	}
	o := object{fam, name}
	s, key, ours := describeSet(o)
	if ours && (flags != s.flags() || keyType != s.keyType() || keyLen != uint32(s.keyLen()) || dataLen != uint32(s.data.len) && !s.verdicts || !s.interval && size == 0) {
		h.odd = "set " + name + " is of another kind"
	}
	s.size = size
	h.sets[o] = newHaveSet(s, 0)
	if key.ID != 0 {
		h.members[key] = h.sets[o]
	}
	return nil
}

// describeSet tells what a set of that name should be; ours is false, and the
// set without a key, if there is no such set.
func describeSet(o object) (s set, key desired.SetKey, ours bool) {
	for i := range baseSets {
		if baseSets[i].object == o {
			return baseSets[i], key, true
		}
	}
	if key, ok := parseSetKey(o.name); ok && o.family == inet {
		return memberSet(key), key, true
	}
	if s, ok := listSet(o); ok {
		return s, key, true
	}
	return set{object: o}, key, false
}

// parseSetKey is the inverse of SetKey.String.
func parseSetKey(name string) (k desired.SetKey, ok bool) {
	if len(name) != 20 || name[0] != 's' || name[3] != '-' {
		return k, false
	}
	id, err := strconv.ParseUint(name[4:], 16, 64)
	if err != nil || name[1] != '4' && name[1] != '6' || !strings.ContainsRune("hrpq", rune(name[2])) {
		return k, false
	}
	k = desired.SetKey{ID: desired.SetID(id), Family: name[1] - '0', Ranges: name[2] == 'r' || name[2] == 'q', Ports: name[2] == 'p' || name[2] == 'q'}
	return k, id != 0 && k.String() == name
}

func (s *haveSet) addElements(_ family, attrs []byte) error {
	each(attrs, func(typ uint16, v []byte) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		each(v, func(_ uint16, v []byte) {
			e, t := parseElem(v, &s.set)
			if s.valued() {
				s.targets[e] = t
			} else {
				s.elems[e] = struct{}{}
			}
		})
	})
	return nil
}

// otherVerdict is a target that is never wanted: what it stands for was not
// written by us.
const otherVerdict target = "\x00"

func parseElem(attrs []byte, s *set) (e elem, t target) {
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case setElemKeyEnd:
			if typ, last, _, ok := nextAttr(v); ok && typ == unix.NFTA_DATA_VALUE && s.ranged() {
				e.bits = s.bitsTo(e, last)
			}
		case unix.NFTA_SET_ELEM_KEY:
			if typ, key, _, ok := nextAttr(v); ok && typ == unix.NFTA_DATA_VALUE {
				copy(e.key[:], key)
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			e.flag = uint8(attrUint32(v))
		case unix.NFTA_SET_ELEM_EXPR:
			if s.rated {
				t = parseRated(v)
			}
		case unix.NFTA_SET_ELEM_DATA:
			switch typ, d, _, ok := nextAttr(v); {
			case ok && typ == unix.NFTA_DATA_VERDICT && s.verdicts:
				t = parseTarget(d, s.leads)
			case ok && typ == unix.NFTA_DATA_VALUE && s.data.len > 0:
				t = target(d)
			}
		}
	})
	return e, t
}

func parseTarget(attrs []byte, leads bool) target {
	switch code, chain := parseVerdict(attrs); {
	case code == verdictDrop:
		return ""
	case code == unix.NFT_JUMP && !leads, code == unix.NFT_GOTO && leads:
		return target(chain)
	}
	return otherVerdict
}

func parseVerdict(attrs []byte) (code int32, chain string) {
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			code = int32(attrUint32(v))
		case unix.NFTA_VERDICT_CHAIN:
			chain = attrString(v)
		}
	})
	return code, chain
}
