package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tortie/desired"
)

// intent is what the desired state asks of the sets that endpoints share, and
// the names behind our chains. The rest of the desired state is not copied:
// rules and members are looked up where they are.
type intent struct {
	elems    map[object]map[elem]*wanted
	ifaces   map[string]desired.Interface
	controls map[string]desired.Controls
	hosts    map[string]desired.HostEndpoint
	programs map[target]desired.ProgramID
	inside   []netip.Prefix
	anyMAC   int // interfaces that may use any MAC
	fixedMAC int
	others   int                  // interfaces that may use other sources
	ranges   map[netip.Prefix]int // of endpoints, and how many interfaces have them
	errors   map[string]error     // by object, what of the desired state cannot be
}

// wanted is an element that so many interfaces ask for.
type wanted struct {
	refs   int
	target target // the program's chain, whether or not the kernel has it
}

// pending is what may differ between desired state and kernel.
type pending struct {
	programs map[desired.ProgramID]struct{}
	sets     map[desired.SetKey]struct{}
	members  map[desired.Member]struct{}
	elems    map[element]struct{} // of base sets, without target
	base     bool
}

func (p *pending) reset() {
	*p = pending{
		programs: map[desired.ProgramID]struct{}{}, sets: map[desired.SetKey]struct{}{},
		members: map[desired.Member]struct{}{}, elems: map[element]struct{}{},
	}
}

func (i *intent) reset() {
	*i = intent{
		elems: map[object]map[elem]*wanted{}, ifaces: map[string]desired.Interface{}, controls: map[string]desired.Controls{},
		hosts:    map[string]desired.HostEndpoint{},
		programs: map[target]desired.ProgramID{}, errors: map[string]error{}, ranges: map[netip.Prefix]int{},
	}
	for _, s := range baseSets {
		i.elems[s.object] = map[elem]*wanted{}
	}
	for _, e := range strangers() {
		i.elems[e.set][e.key] = &wanted{refs: 1, target: e.target}
	}
}

// merge takes what changed in the desired state into the pending work.
func (t *Tables) merge(want *desired.State) {
	if t.all {
		t.intent.reset()
		t.setEpoch(t.epoch)
		for id := range want.Programs.All() {
			t.intent.programs[target(programChain(id))] = id
		}
		for name := range want.Interfaces.All() {
			t.mergeInterface(name, want)
		}
		t.mergeNAT(want)
		for name := range want.Controls.All() {
			t.mergeControls(name, want)
		}
		t.mergeHosts(want)
		return
	}
	for id := range want.Programs.Dirty() {
		chain := target(programChain(id))
		t.todo.programs[id] = struct{}{}
		_, had := t.intent.programs[chain]
		_, has := want.Programs.Get(id)
		if has {
			t.intent.programs[chain] = id
		} else {
			delete(t.intent.programs, chain)
		}
		if who := (culprit{program: string(chain)}); had != has || t.bad[who] != nil {
			t.clearBad(who)
		}
	}
	for name := range want.Interfaces.Dirty() {
		t.mergeInterface(name, want)
	}
	t.mergeNAT(want)
	t.mergeHosts(want)
	if want.Controls.DirtyLen() > 0 {
		for name := range want.Controls.Dirty() {
			t.mergeControls(name, want)
		}
		t.todo.base = true
	}
	for k := range want.Sets.Dirty() {
		t.todo.sets[k] = struct{}{}
	}
	for m := range want.Members.Dirty() {
		t.todo.members[m] = struct{}{}
	}
}

// touchProgram looks again at where the maps lead for the endpoints of a
// program: they lead to a chain only if the kernel has it.
func (t *Tables) touchProgram(chain target) {
	id := t.intent.programs[chain]
	for name, i := range t.intent.ifaces {
		if id == "" && (chainName(i.Egress) == chain || chainName(i.Ingress) == chain) || id != "" && (i.Egress == id || i.Ingress == id) {
			t.touch(renderInterface(name, i, chainName))
		}
	}
	for name, h := range t.intent.hosts {
		t.touch(renderHost(name, h, chainName)) // there are few
	}
}

func (t *Tables) touch(es []element) {
	for _, e := range es {
		e.target = ""
		t.todo.elems[e] = struct{}{}
	}
}

func chainName(id desired.ProgramID) target {
	if id == "" {
		return ""
	}
	return target(programChain(id))
}

var errName = errors.New("its name has no workload prefix or is too long, so nothing of it is judged")

// mergeInterface replaces what an interface asks for.
func (t *Tables) mergeInterface(name string, want *desired.State) {
	in := &t.intent
	before := [3]bool{in.anyMAC > 0, in.fixedMAC > 0, in.others > 0}
	if old, ok := in.ifaces[name]; ok {
		t.countMACs(old, -1)
		t.countRanges(old, -1)
		t.release(t.elementsOf(name, old))
		delete(in.ifaces, name)
	}
	delete(in.errors, "interface "+name)
	if i, ok := want.Interfaces.Get(name); ok {
		fits := func(p string) bool { return strings.HasPrefix(name, p) && len(name) < int(typeName.len) }
		if !slices.ContainsFunc(t.opts.WorkloadPrefixes, fits) {
			in.errors["interface "+name] = fmt.Errorf("interface %s: %w", name, errName)
			return
		}
		i.Addrs, i.Ranges, i.Spoofed = slices.Clone(i.Addrs), slices.Clone(i.Ranges), slices.Clone(i.Spoofed)
		in.ifaces[name] = i
		t.countMACs(i, 1)
		t.countRanges(i, 1)
		t.refer(t.elementsOf(name, i))
	}
	if before != [3]bool{in.anyMAC > 0, in.fixedMAC > 0, in.others > 0} {
		t.todo.base = true
	}
}

// elementsOf is what an interface asks for, but for its controls.
func (t *Tables) elementsOf(name string, i desired.Interface) []element {
	return append(renderInterface(name, i, chainName), renderHostRate(i, t.opts.HostRate)...)
}

// refer counts one more that asks for elements, release one less.
func (t *Tables) refer(es []element) {
	for _, e := range es {
		w := t.intent.elems[e.set][e.key]
		if w == nil {
			w = &wanted{}
			t.intent.elems[e.set][e.key] = w
		}
		w.refs++
		w.target = e.target
	}
	t.touch(es)
}

func (t *Tables) release(es []element) {
	for _, e := range es {
		if w := t.intent.elems[e.set][e.key]; w != nil {
			if w.refs--; w.refs == 0 {
				delete(t.intent.elems[e.set], e.key)
			}
		}
	}
	t.touch(es)
}

func (t *Tables) countMACs(i desired.Interface, by int) {
	if i.HasMAC {
		t.intent.fixedMAC += by
	} else {
		t.intent.anyMAC += by
	}
}

// live resolves where a map leads: to a chain that the kernel will have, else
// to drop.
func (t *Tables) live(to target) target {
	if to == chainAsIs || to == chainFromStranger || to == chainToStranger || isControl(object{inet, string(to)}) {
		return to
	}
	if _, ok := t.intent.programs[to]; !ok {
		return ""
	}
	if _, refused := t.bad[culprit{program: string(to)}]; refused && t.have.chains[object{inet, string(to)}] == nil {
		return ""
	}
	return to
}
