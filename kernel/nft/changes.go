package nft

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// changes is what one transaction writes: the difference between what we want
// and what the kernel has.
type changes struct {
	rebuild    bool // delete our tables first; everything else is then new
	tables     []family
	counters   []object // new
	noCounters []object // to delete
	sets       map[object]*setChange
	chains     map[object]*chainChange
}

// setChange with create and remove makes the set anew, with all its elements.
type setChange struct {
	set
	create, remove bool
	dels, adds     []elem
	targets        []target // of adds, if the set is valued
}

// chainChange writes rules into a chain: either all of them, after a flush,
// or the edits.
type chainChange struct {
	chain
	create, remove bool
	rewrite        bool
	edits          []edit
	result         []haveRule // the chain's rules when it is done
	program        string     // first chain of the program that this is of
}

// edit puts rule i at its place; with i < 0 it deletes the rule of the handle.
type edit struct {
	i int
	place
	handle uint64
}

func newChanges() *changes {
	return &changes{sets: map[object]*setChange{}, chains: map[object]*chainChange{}}
}

func (c *changes) empty() bool {
	return !c.rebuild && len(c.tables)+len(c.counters)+len(c.noCounters)+len(c.sets)+len(c.chains) == 0
}

func (c *changes) set(s set) *setChange {
	sc, ok := c.sets[s.object]
	if !ok {
		sc = &setChange{set: s}
		c.sets[s.object] = sc
	}
	return sc
}

// diffChain compares a chain's rules with the kernel's by their hashes, and
// finds the edits that lead from one to the other. It is nil if they are equal.
// With force the chain is rewritten in any case.
func diffChain(want chain, h *haveChain, force bool) *chainChange {
	c := &chainChange{chain: want, create: h == nil, rewrite: force || h == nil}
	c.result = make([]haveRule, len(want.rules))
	for i := range want.rules {
		c.result[i].hash = want.rules[i].hash()
	}
	if c.rewrite {
		return c
	}
	old, fresh := h.rules, c.result
	head := 0
	for head < len(old) && head < len(fresh) && old[head].hash == fresh[head].hash {
		fresh[head].handle = old[head].handle
		head++
	}
	tail := 0
	for tail < len(old)-head && tail < len(fresh)-head && old[len(old)-1-tail].hash == fresh[len(fresh)-1-tail].hash {
		fresh[len(fresh)-1-tail].handle = old[len(old)-1-tail].handle
		tail++
	}
	oldMid, freshEnd := old[head:len(old)-tail], len(fresh)-tail
	if len(oldMid) == 0 && head == freshEnd {
		return nil
	}
	var before uint64
	if tail > 0 {
		before = old[len(old)-tail].handle
	}
	known := tail == 0 || before != 0
	for i := head; i < freshEnd; i++ {
		e := edit{i: i, place: place{before: before}}
		if i-head < len(oldMid) {
			e.place = place{replace: oldMid[i-head].handle}
			known = known && e.replace != 0
		}
		c.edits = append(c.edits, e)
	}
	for i := freshEnd - head; i < len(oldMid); i++ {
		c.edits = append(c.edits, edit{i: -1, handle: oldMid[i].handle})
		known = known && oldMid[i].handle != 0
	}
	if !known {
		c.rewrite, c.edits = true, nil
		for i := range fresh {
			fresh[i].handle = 0
		}
	}
	return c
}

// mostEchoed is above how many rules in one transaction the kernel is not
// asked for their handles: the answer must fit the socket's buffer.
const mostEchoed = 20000

// ahead splits off what has to be in the kernel before the rest. A rule that
// names a new interval set must not be there before what is in the set, which
// the kernel shows only after it has shown the rule. And no map must lead to a
// chain that is new in the same transaction: a packet goes by the rules of the
// generation in which it came, where that chain is empty and lets all pass, but
// by the elements that are there when it asks. So all that is new and that
// no packet meets yet, sets and chains, goes first. Where another set is made
// anew under its name, which new chains may name too, only lists can. It is nil
// where there is neither.
func (c *changes) ahead() *changes {
	needed, again := false, false
	for _, sc := range c.sets {
		needed = needed || sc.interval && sc.create || sc.verdicts && !sc.create && c.leadToNew(sc)
		again = again || sc.create && sc.remove
	}
	if !needed || c.rebuild {
		return nil
	}
	first := newChanges()
	first.tables, c.tables = c.tables, nil
	first.counters, c.counters = c.counters, nil
	for o, sc := range c.sets {
		if sc.create && (!again || sc.interval && !sc.verdicts) {
			first.sets[o] = sc
			delete(c.sets, o)
		}
	}
	for o, cc := range c.chains {
		if cc.create && cc.hook == nil && !again {
			first.chains[o] = cc
			delete(c.chains, o)
		}
	}
	return first
}

// leadToNew reports whether elements that are added lead to new chains.
func (c *changes) leadToNew(sc *setChange) bool {
	return slices.ContainsFunc(sc.targets, func(t target) bool {
		cc := c.chains[object{sc.family, string(t)}]
		return cc != nil && cc.create
	})
}

func (c *changes) ruleCount() int {
	n := 0
	for _, cc := range c.chains {
		if cc.rewrite {
			n += len(cc.rules)
		}
		n += len(cc.edits)
	}
	return n
}

// encode appends the changes to b, in an order in which each operation finds
// what it needs. It returns by sequence number where the kernel's handles go.
func (c *changes) encode(b *batch, single map[object]bool) map[uint32]*uint64 {
	if c.rebuild {
		for _, f := range []family{inet, arp} {
			b.table(f, unix.NFT_MSG_NEWTABLE) // so that there is one to delete
			b.table(f, unix.NFT_MSG_DELTABLE)
		}
	}
	for _, f := range c.tables {
		b.table(f, unix.NFT_MSG_NEWTABLE)
	}
	for _, o := range c.counters {
		b.counter(o, unix.NFT_MSG_NEWOBJ)
	}
	sets := slices.SortedFunc(maps.Keys(c.sets), object.compare)
	chains := slices.SortedFunc(maps.Keys(c.chains), object.compare)
	// Rules go before the sets they name, and these before they are made anew.
	for _, o := range chains {
		if cc := c.chains[o]; !cc.create && (cc.rewrite || cc.remove) {
			b.deleteRule(o, 0)
		}
	}
	for _, o := range sets {
		sc := c.sets[o]
		if sc.create && sc.remove {
			b.deleteSet(o, culprit{})
		}
		if sc.create {
			b.newSet(&sc.set)
		}
		if !sc.verdicts {
			b.elements(&sc.set, unix.NFT_MSG_DELSETELEM, sc.dels, nil, single[o])
			b.elements(&sc.set, unix.NFT_MSG_NEWSETELEM, sc.adds, sc.targets, single[o])
		}
	}
	for _, o := range chains {
		if cc := c.chains[o]; cc.create {
			b.newChain(o, cc.hook, culprit{program: cc.program})
		}
	}
	handles := c.encodeRules(b, chains)
	for _, o := range sets {
		if sc := c.sets[o]; sc.verdicts {
			b.elements(&sc.set, unix.NFT_MSG_DELSETELEM, sc.dels, nil, single[o])
			b.elements(&sc.set, unix.NFT_MSG_NEWSETELEM, sc.adds, sc.targets, single[o])
		}
	}
	c.encodeRemovals(b, sets, chains)
	return handles
}

func (c *changes) encodeRules(b *batch, chains []object) map[uint32]*uint64 {
	handles := map[uint32]*uint64{}
	echo := c.ruleCount() <= mostEchoed
	put := func(cc *chainChange, i int, p place) {
		p.echo = echo
		seq := b.rule(cc.object, &cc.rules[i], cc.result[i].hash, p, culprit{program: cc.program})
		if echo {
			handles[seq] = &cc.result[i].handle
		}
	}
	for _, o := range chains {
		cc := c.chains[o]
		if cc.rewrite {
			for i := range cc.rules {
				put(cc, i, place{})
			}
		}
		for _, e := range cc.edits {
			if e.i < 0 {
				b.deleteRule(o, e.handle)
			} else {
				put(cc, e.i, e.place)
			}
		}
	}
	return handles
}

// encodeRemovals deletes sets before chains, since verdict maps lead to
// chains, and counters last.
func (c *changes) encodeRemovals(b *batch, sets, chains []object) {
	for _, o := range sets {
		if sc := c.sets[o]; sc.remove && !sc.create {
			b.deleteSet(o, culprit{removal: o, isSet: true})
		}
	}
	for _, o := range chains {
		if cc := c.chains[o]; cc.remove && !cc.create {
			b.deleteChain(o, culprit{removal: o})
		}
	}
	for _, o := range c.noCounters {
		b.counter(o, unix.NFT_MSG_DELOBJ)
	}
}

// done tells the view of the kernel what the kernel accepted.
func (c *changes) done(h *have) {
	for _, f := range c.tables {
		h.tables[f] = true
	}
	for _, o := range c.counters {
		h.counters[o] = true
	}
	for _, o := range c.noCounters {
		delete(h.counters, o)
	}
	for o, cc := range c.chains {
		if cc.remove && !cc.create {
			delete(h.chains, o)
			continue
		}
		h.chains[o] = &haveChain{hook: cc.hook, rules: cc.result}
	}
	for o, sc := range c.sets {
		_, key, _ := describeSet(o)
		if sc.remove {
			delete(h.sets, o)
			delete(h.members, key)
		}
		if sc.create {
			h.sets[o] = newHaveSet(sc.set, len(sc.adds))
			if key.ID != 0 {
				h.members[key] = h.sets[o]
			}
		}
		if hs := h.sets[o]; hs != nil {
			hs.update(sc)
		}
	}
}

func (s *haveSet) update(sc *setChange) {
	for _, e := range sc.dels {
		delete(s.elems, e)
		delete(s.targets, e)
	}
	for i, e := range sc.adds {
		if s.valued() {
			s.targets[e] = sc.targets[i]
		} else {
			s.elems[e] = struct{}{}
		}
	}
}

// writes counts objects, rules and elements.
func (c *changes) writes() int {
	n := len(c.tables) + len(c.counters) + len(c.noCounters)
	for _, sc := range c.sets {
		n += len(sc.adds) + len(sc.dels)
		if sc.create || sc.remove {
			n++
		}
	}
	for _, cc := range c.chains {
		n += len(cc.edits)
		if cc.create || cc.remove {
			n++
		}
		if cc.rewrite {
			n += len(cc.rules)
		}
	}
	return n
}

// write commits the changes and, if the kernel took them, records them in h.
func (c *conn) write(ch *changes, h *have, gen uint32, single map[object]bool) error {
	b := c.newBatch(gen)
	b.w.b = slices.Grow(b.w.b, 64*ch.writes()+600*ch.ruleCount()) // about what it takes
	handles := ch.encode(b, single)
	echoed, err := c.commit(b)
	if err != nil {
		return err
	}
	for seq, handle := range echoed {
		if at, ok := handles[seq]; ok {
			*at = handle
		}
	}
	ch.done(h)
	return nil
}
