package nft

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tortie/desired"
)

// differ computes one transaction: what is wanted against what we know the
// kernel to have, of all or of what is pending.
type differ struct {
	*Tables
	want    *desired.State
	ch      *changes
	force   map[object]bool               // chains to rewrite, since a set they name is made anew
	seen    map[object]bool               // chains that are wanted
	lists   map[string]map[object]content // by owner of the chains looked at: the lists they name
	owned   map[string][]object           // by program looked at: its chains
	counted map[string][]string           // and its counters
	changed map[desired.SetKey]*setChange // of ch.sets
	held    pending                       // left out, since the kernel refused it before
	moved   []netip.Addr                  // external addresses that lead elsewhere than before
}

// diff computes what to write.
func (t *Tables) diff(want *desired.State) *differ {
	d := t.newDiffer(want)
	if t.all && t.have.odd != "" {
		t.log.Warn("our nftables were changed beyond repair, making them anew", "why", t.have.odd)
		t.have = newHave()
		d.ch.rebuild = true
	}
	if t.all {
		d.tables()
	}
	d.sets()
	d.elements()
	d.members()
	d.grow()
	d.programs()
	d.counters()
	d.orphans()
	if t.all || t.todo.base {
		d.base()
	}
	d.listSets()
	if t.all {
		d.rubbish()
	}
	return d
}

func (t *Tables) newDiffer(want *desired.State) *differ {
	d := &differ{
		Tables: t, want: want, ch: newChanges(), force: map[object]bool{},
		seen: map[object]bool{}, lists: map[string]map[object]content{}, owned: map[string][]object{}, counted: map[string][]string{},
		changed: map[desired.SetKey]*setChange{},
	}
	d.held.reset()
	return d
}

// finish is called when the kernel has everything but what was held.
func (t *Tables) finish(d *differ) {
	if t.all {
		clear(t.lists)
		clear(t.owned)
		clear(t.owners)
		clear(t.counted)
		clear(t.counts)
	}
	for first, chains := range d.owned {
		for _, o := range t.owned[first] {
			if t.owners[o]--; t.owners[o] == 0 {
				delete(t.owners, o)
			}
		}
		for _, o := range chains {
			t.owners[o]++
		}
		if t.owned[first] = chains; len(chains) == 0 {
			delete(t.owned, first)
		}
	}
	t.todo, t.all = d.held, false
	t.keepLists(d)
	t.keepCounters(d)
}

// keepLists remembers which lists the chains written name.
func (t *Tables) keepLists(d *differ) {
	for owner, lists := range d.lists {
		delete(t.lists, owner)
		if len(lists) > 0 {
			t.lists[owner] = slices.Collect(maps.Keys(lists))
		}
	}
}

func (d *differ) tables() {
	for _, f := range []family{inet, arp} {
		if !d.have.tables[f] {
			d.ch.tables = append(d.ch.tables, f)
		}
	}
	for _, o := range baseCounters {
		if !d.have.counters[o] {
			d.ch.counters = append(d.ch.counters, o)
		}
	}
	for _, s := range baseSets {
		if d.have.sets[s.object] == nil {
			d.ch.set(s).create = true
		}
	}
}

// sets creates and removes selectors' sets. Members of a set that goes need no
// operation of their own.
func (d *differ) sets() {
	check := func(k desired.SetKey) {
		_, wanted := d.want.Sets.Get(k)
		have := d.have.members[k]
		switch {
		case wanted && have == nil:
			d.ch.set(memberSet(k)).create = true
		case !wanted && have != nil:
			if d.bad[culprit{removal: have.object, isSet: true}] != nil {
				d.held.sets[k] = struct{}{}
				return
			}
			d.ch.set(have.set).remove = true
		}
	}
	if !d.all {
		for k := range d.todo.sets {
			check(k)
		}
		return
	}
	for k := range d.want.Sets.All() {
		check(k)
	}
	for k := range d.have.members {
		check(k)
	}
}

// elements compares the sets that come from interfaces.
func (d *differ) elements() {
	if !d.all {
		for e := range d.todo.elems {
			d.element(e.set, e.key)
		}
		return
	}
	for _, s := range baseSets {
		if s.object == dueSet || s.dynamic {
			continue
		}
		for e := range d.intent.elems[s.object] {
			d.element(s.object, e)
		}
		if h := d.have.sets[s.object]; h != nil {
			d.extra(h, func(e elem) bool { return d.intent.elems[s.object][e] != nil })
		}
	}
}

func (d *differ) element(o object, e elem) {
	s, _, _ := describeSet(o)
	h := d.have.sets[o]
	if h != nil {
		s = h.set
	}
	if d.bad[culprit{set: o, elem: e}] != nil {
		d.held.elems[element{set: o, key: e}] = struct{}{}
		return
	}
	w := d.intent.elems[o][e]
	if w == nil {
		if h != nil && h.contains(e) {
			d.moves(o, e)
			sc := d.ch.set(s)
			sc.dels = append(sc.dels, e)
		}
		return
	}
	to := w.target
	if s.verdicts {
		to = d.live(to)
	}
	if h != nil && h.has(e, to) {
		return
	}
	d.moves(o, e)
	sc := d.ch.set(s)
	if h != nil && h.contains(e) {
		sc.dels = append(sc.dels, e)
	}
	sc.adds = append(sc.adds, e)
	if s.valued() {
		sc.targets = append(sc.targets, to)
	}
}

func (s *haveSet) contains(e elem) bool {
	if s.valued() {
		_, ok := s.targets[e]
		return ok
	}
	_, ok := s.elems[e]
	return ok
}

// extra deletes the elements that are not wanted.
func (d *differ) extra(h *haveSet, wanted func(elem) bool) {
	drop := func(e elem) {
		if !wanted(e) {
			d.moves(h.object, e)
			sc := d.ch.set(h.set)
			sc.dels = append(sc.dels, e)
		}
	}
	for e := range h.elems {
		drop(e)
	}
	for e := range h.targets {
		drop(e)
	}
}

var errMember = errors.New("it does not fit the set's family or kind")

// members compares the members of the selectors' sets.
func (d *differ) members() {
	if !d.all {
		for m := range d.todo.members {
			_, wanted := d.want.Members.Get(m)
			d.member(m, wanted)
		}
		d.wholeRanges()
		return
	}
	matched := map[*haveSet]int{}
	for m := range d.want.Members.All() {
		h := d.have.members[m.Set]
		es, n, _ := renderMember(m)
		there := 0
		for _, e := range es[:n] {
			if h != nil && h.contains(e) {
				there++
			}
		}
		if there > 0 {
			matched[h] += there
		}
		if there < n || n == 0 {
			d.member(m, true)
		}
	}
	var stale map[*haveSet]map[elem]bool // of sets that have more than is wanted
	for _, h := range d.have.members {
		if h.len() > matched[h] {
			if stale == nil {
				stale = map[*haveSet]map[elem]bool{}
			}
			stale[h] = map[elem]bool{}
		}
	}
	if stale != nil {
		d.stale(stale)
	}
	d.wholeRanges()
}

// stale deletes what is not wanted from sets that have more than is.
func (d *differ) stale(sets map[*haveSet]map[elem]bool) {
	for m := range d.want.Members.All() {
		if wanted := sets[d.have.members[m.Set]]; wanted != nil {
			es, n, _ := renderMember(m)
			for _, e := range es[:n] {
				wanted[e] = true
			}
		}
	}
	for h, wanted := range sets {
		if sc := d.ch.sets[h.object]; sc == nil || !sc.remove {
			d.extra(h, func(e elem) bool { return wanted[e] })
		}
	}
}

// wholeRanges has ranges go and come as a whole and in order: the kernel
// compares each edge with its neighbours, and refuses one that does not fit
// them, also where the rest of the transaction mends it.
func (d *differ) wholeRanges() {
	for o, sc := range d.ch.sets {
		if !sc.interval || sc.ranged() || sc.verdicts || sc.remove {
			continue
		}
		if h := d.have.sets[o]; h != nil {
			for _, e := range sc.adds {
				if h.contains(e) {
					sc.dels = append(sc.dels, e)
				}
			}
		}
		slices.SortFunc(sc.dels, elem.compare)
		sc.dels = slices.Compact(sc.dels)
		slices.SortFunc(sc.adds, elem.compare)
	}
}

// member compares one member.
func (d *differ) member(m desired.Member, wanted bool) {
	if _, ok := d.want.Sets.Get(m.Set); !ok {
		return // the set goes, and its members with it
	}
	es, n, ok := renderMember(m)
	if !ok {
		name := "member " + m.Prefix.String() + " of " + m.Set.String()
		delete(d.intent.errors, name)
		if wanted {
			d.intent.errors[name] = fmt.Errorf("%s: %w", name, errMember)
		}
		return
	}
	if len(d.bad) > 0 {
		o := object{inet, m.Set.String()}
		if d.bad[culprit{set: o, elem: es[0]}] != nil || d.bad[culprit{set: o, elem: es[n-1]}] != nil {
			d.held.members[m] = struct{}{}
			return
		}
	}
	h := d.have.members[m.Set]
	has := h != nil && h.contains(es[0]) && h.contains(es[n-1])
	switch {
	case wanted && (!has || m.Set.Ranges && !m.Set.Ports): // one with other edges may go
		sc := d.memberChange(m.Set)
		sc.adds = append(sc.adds, es[:n]...)
	case !wanted && has:
		sc := d.memberChange(m.Set)
		sc.dels = append(sc.dels, es[:n]...)
	}
}

// memberChange is the change of a selector's set; its name is made only once.
func (d *differ) memberChange(k desired.SetKey) *setChange {
	sc := d.changed[k]
	if sc == nil {
		s := memberSet(k)
		if h := d.have.members[k]; h != nil {
			s = h.set
		}
		sc = d.ch.set(s)
		d.changed[k] = sc
	}
	return sc
}

// grow gives new sets their size, and makes a set anew that gets too small,
// with the chains that name it.
func (d *differ) grow() {
	for o, sc := range d.ch.sets {
		h := d.have.sets[o]
		switch {
		case sc.interval || sc.remove || sc.dynamic:
			continue
		case sc.create:
			sc.size = capacity(len(sc.adds))
			continue
		case h.len()+len(sc.adds)-len(sc.dels) <= int(h.size):
			continue
		}
		sc.create, sc.remove = true, true
		gone := map[elem]bool{}
		for _, e := range slices.Concat(sc.dels, sc.adds) {
			gone[e] = true
		}
		for e := range h.elems {
			if !gone[e] {
				sc.adds = append(sc.adds, e)
			}
		}
		for e, to := range h.targets {
			if !gone[e] {
				sc.adds, sc.targets = append(sc.adds, e), append(sc.targets, to)
			}
		}
		sc.dels = nil
		sc.size = capacity(len(sc.adds))
		d.forceUsers(o)
	}
}

// forceUsers rewrites the chains that name a set.
func (d *differ) forceUsers(o object) {
	_, key, _ := describeSet(o)
	if key.ID == 0 {
		for _, c := range d.shared() {
			d.force[c.object] = true
		}
		d.todo.base = true
		return
	}
	names := func(p *desired.Peer) bool {
		return slices.Contains([]desired.SetID{p.Set, p.NotSet, p.Named, p.NotNamed}, key.ID)
	}
	for id, p := range d.want.Programs.All() {
		for _, s := range slices.Concat(p.Stages, p.Trial) {
			if slices.ContainsFunc(s.Rules, func(r desired.Rule) bool { return names(&r.Source) || names(&r.Destination) }) {
				d.todo.programs[id] = struct{}{}
				d.force[object{inet, programChain(id)}] = true
			}
		}
	}
}

func (d *differ) programs() {
	if !d.all {
		for id := range d.todo.programs {
			d.program(id)
		}
		return
	}
	for id := range d.want.Programs.All() {
		d.program(id)
	}
}

func (d *differ) program(id desired.ProgramID) {
	first := programChain(id)
	if d.bad[culprit{program: first}] != nil {
		d.held.programs[id] = struct{}{}
		d.owned[first] = d.Tables.owned[first]
		d.counted[first] = d.Tables.counted[first]
		return
	}
	var chains []chain
	delete(d.intent.errors, "program "+first)
	p, ok := d.want.Programs.Get(id)
	if ok {
		var err error
		how := d.carrying(d.want)
		chains, err = renderProgram(id, p, how)
		if err != nil {
			d.intent.errors["program "+first] = fmt.Errorf("program %s denies everything: %w", id, err)
			chains = denyAll(id)
		}
		if chains, err = addTrial(chains, p.Trial, how); err != nil {
			d.log.Warn("staged policies are not evaluated", "program", id, "error", err)
		}
	}
	d.lists[first] = map[object]content{}
	d.owned[first], d.counted[first] = nil, programCounters(p)
	for _, c := range chains {
		d.chain(c, first, d.force[object{inet, first}])
		d.owned[first] = append(d.owned[first], c.object)
	}
}

// orphans removes the chains that no program has any more.
func (d *differ) orphans() {
	if d.all {
		return // rubbish does
	}
	gained := map[object]int{}
	for first, chains := range d.owned {
		for _, o := range d.Tables.owned[first] {
			gained[o]--
		}
		for _, o := range chains {
			gained[o]++
		}
	}
	for o, n := range gained {
		switch {
		case n >= 0 || d.owners[o]+n > 0 || d.have.chains[o] == nil:
		case d.bad[culprit{removal: o}] == nil: // otherwise it is rubbish from now on
			d.ch.chains[o] = &chainChange{chain: chain{object: o}, remove: true}
		}
	}
}

// baseOwner owns the lists of the chains that all endpoints share.
const baseOwner = ""

// chain compares one chain; owner is the first chain of its program, if any.
func (d *differ) chain(c chain, owner string, force bool) {
	again := d.seen[c.object] && c.object != markChain
	d.seen[c.object] = true
	for i := range c.rules {
		for j := range c.rules[i].matches {
			if m := &c.rules[i].matches[j]; m.op == anyOf || m.op == noneOf {
				d.lists[owner][object{c.family, m.set}] = content{ranges: m.ranges}
			}
		}
		for _, a := range c.rules[i].does {
			if a.leads != nil {
				d.lists[owner][object{c.family, a.name}] = content{leads: a.leads}
			}
		}
	}
	if again {
		return // another program has it too
	}
	if cc := diffChain(c, d.have.chains[c.object], force); cc != nil {
		cc.program = owner
		d.ch.chains[c.object] = cc
	}
}

// shared describes the chains that all endpoints share.
func (t *Tables) shared() []chain {
	all := renderBase(base{
		prefixes: t.opts.WorkloadPrefixes, hostAction: t.opts.HostAction, epoch: t.epoch,
		anyMAC: t.intent.anyMAC > 0, fixedMAC: t.intent.fixedMAC > 0,
		controls: t.controls(), ranges: t.intent.allRanges(), hosts: t.hosts(),
	})
	n := t.intent.nat(&t.opts)
	n.kept = t.have.chains[object{inet, chainSNAT}] != nil
	return append(all, renderNAT(t.opts.WorkloadPrefixes, n)...)
}

// base compares the chains that all endpoints share, and our notes.
func (d *differ) base() {
	d.lists[baseOwner] = map[object]content{}
	for _, c := range append(d.shared(), renderNotes(d.notes)) {
		d.chain(c, baseOwner, d.force[c.object])
	}
	for o := range d.have.chains { // no others come and go
		if (natHooks[o] != nil || isControl(o) || isHostChain(o)) && !d.all && !d.seen[o] && d.bad[culprit{removal: o}] == nil {
			d.ch.chains[o] = &chainChange{chain: chain{object: o}, remove: true}
		}
	}
}

// rubbish removes from our tables what nobody wants there.
func (d *differ) rubbish() {
	unsure := d.unsure()
	for o := range d.have.chains {
		left := d.bad[culprit{removal: o}] != nil || d.bad[culprit{program: programOf(o)}] != nil ||
			strings.HasPrefix(o.name, bucketPrefix) && unsure
		if !d.seen[o] && !left {
			d.ch.chains[o] = &chainChange{chain: chain{object: o}, remove: true}
		}
	}
	for o, h := range d.have.sets {
		if len(h.key) == 0 && d.bad[culprit{removal: o, isSet: true}] == nil {
			d.ch.set(h.set).remove = true
		}
	}
	d.strayCounters()
}

// unsure says that there may be chains that name we do not know what: those of
// a program that was refused, and one that cannot be removed.
func (d *differ) unsure() bool {
	for c := range d.bad {
		if c.removal != (object{}) {
			return true
		}
	}
	return len(d.held.programs) > 0
}

// programOf is the first chain of the program that a chain would be of.
func programOf(o object) string {
	const length = len("p-") + 16
	return o.name[:min(length, len(o.name))]
}
