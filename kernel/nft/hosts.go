package nft

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Policy of the host's own interfaces. Verdict maps lead from an interface's
// name to its programs, as for workloads; an element that stands for any
// interface is that of the endpoint for all. A host without such endpoints has
// none of these chains, and nothing leads to them.
//
// Policy before destination NAT has no chain of its own: a connection knows what
// it was opened to, so that program is the first part of the others.
const (
	chainHostIn    = "host-in"         // what ends in the host
	chainHostOut   = "host-out"        // what begins there
	chainRawIn     = "host-raw-in"     // before connection tracking, what comes in
	chainRawOut    = "host-raw-out"    // what goes out
	chainUntracked = "untracked"       // allowed before connection tracking
	chainAsIs      = "no-host-program" // of an interface's own endpoint that has no program there

	mapHostIn       = "host-programs-in" // interface → program of what ends in the host
	mapHostOut      = "host-programs-out"
	mapThroughIn    = "through-programs-in" // of what passes through it
	mapThroughOut   = "through-programs-out"
	mapUntrackedIn  = "untracked-programs-in" // of what is not tracked
	mapUntrackedOut = "untracked-programs-out"
	setHosts        = "host-interfaces" // that have an endpoint of their own
	setThrough      = "through-interfaces"
)

// rawPriority is after the check of sources, and fragments are whole: they have
// ports.
const rawPriority = -299

// hostDepth is maxDepth for programs of host endpoints: answers to workloads are
// one chain further, and those that look at packets lead on.
const hostDepth = maxDepth - 2

// depthOf is how many chains of a program may lead on to each other.
func depthOf(p desired.Program) int {
	if p.Host {
		return hostDepth
	}
	return maxDepth
}

// Failsafe is a port that stays reachable.
type Failsafe struct {
	Protocol uint8
	Port     uint16
	Net      netip.Prefix // of the other end; none: any
}

// hosts is what the chains for the host's interfaces depend on.
type hosts struct {
	some, any             bool // there is an endpoint; one for any interface
	passes, passesAny     bool // and it judges what passes through
	raw                   bool // or what is not tracked
	failsafeIn, failsafeO []Failsafe
}

var everyHost = hosts{some: true, any: true, passes: true, passesAny: true, raw: true}

func (t *Tables) hosts() hosts {
	h := hosts{failsafeIn: t.opts.FailsafeIn, failsafeO: t.opts.FailsafeOut}
	for name, e := range t.intent.hosts {
		passes := e.ForwardIn != "" || e.ForwardOut != ""
		h.some, h.passes = true, h.passes || passes
		h.raw = h.raw || e.UntrackedIn != "" || e.UntrackedOut != ""
		if name == desired.AnyInterface {
			h.any, h.passesAny = true, passes
		}
	}
	return h
}

// sameChains says that two call for the same chains.
func (h hosts) sameChains(o hosts) bool {
	return h.some == o.some && h.any == o.any && h.passes == o.passes && h.passesAny == o.passesAny && h.raw == o.raw
}

var (
	isUntracked = match{op: anyBit, fields: []field{ctState}, mask: native32(64)}

	// hostNeighbourTypes are what routers and neighbours say to each other: MLD,
	// solicitations and advertisements. Connections do not know of them.
	hostNeighbourTypes = list(anyOf, icmpType, []span{{[]byte{130}, []byte{136}}, {[]byte{143}, []byte{143}}})
)

// isName matches the whole name of an interface.
func isName(f field, name string) match {
	e := makeElem([]byte(name))
	return is(f, e.key[:typeName.len]...)
}

// enter leads on what is no workload's.
func (h hosts) enter(chain string) []rule {
	if !h.some {
		return nil
	}
	return []rule{when(lead(chain))}
}

// own is where what the host's own policy may have a say in goes on, between it
// and a workload: only the endpoint for any interface is for those of workloads.
func (h hosts) own(chain string) action {
	if h.any {
		return lead(chain)
	}
	return lead(chainMark)
}

// intoOriginal leads on what passes through and policy has a say in, between
// interfaces that are no workloads'.
func (h hosts) intoOriginal() []rule {
	switch {
	case h.passesAny:
		return []rule{when(lead(chainOriginal))}
	case h.passes:
		return []rule{
			when(lead(chainOriginal), member(setThrough, inName)),
			when(lead(chainOriginal), member(setThrough, outName)),
		}
	}
	return nil
}

// through judges what passes through an interface that is no workload's: by its
// program for one direction, whose name a packet of the original direction has
// in one field, and a reply in the other.
func (h hosts) through(programs string, fromOriginal, fromReply field) []rule {
	if !h.passes {
		return nil
	}
	return []rule{
		when(action{kind: lookup, field: fromOriginal, name: programs}, isOriginal),
		when(action{kind: lookup, field: fromReply, name: programs}, isReply),
	}
}

// untracked asks once more about a packet that has no connection: that another
// program may have seen to.
func (h hosts) untracked(f field, programs string) []rule {
	if !h.raw {
		return nil
	}
	return []rule{when(action{kind: lookup, field: f, name: programs}, isUntracked)}
}

// renderHosts makes the chains that are there for host endpoints alone.
func renderHosts(b base) []chain {
	h := b.hosts
	if !h.some {
		return nil
	}
	pass := action{kind: accept}
	chains := []chain{
		{object{inet, chainHostIn}, nil, h.renderEnd(inName, true)},
		{object{inet, chainHostOut}, nil, h.renderEnd(outName, false)},
		{object{inet, chainAsIs}, nil, []rule{when(action{kind: back})}},
	}
	if !h.raw {
		return chains
	}
	raw := func(name string, num uint32, f field, to, from []rule, programs string) {
		rules := []rule{when(pass, isName(f, loopback))}
		rules = append(rules, forPrefixes(b.prefixes, f, nil, pass)...)
		rules = append(rules, when(pass, ipv6, isICMPv6, hostNeighbourTypes))
		rules = append(append(rules, to...), from...)
		rules = append(rules, when(action{kind: lookup, field: f, name: programs}))
		chains = append(chains, chain{object{inet, name}, &hook{num, rawPriority}, rules})
	}
	raw(chainRawIn, unix.NF_INET_PRE_ROUTING, inName,
		failsafes(h.failsafeIn, l4proto, end{sources, l4Destination}),
		failsafes(h.failsafeO, l4proto, end{sources, l4Source}), mapUntrackedIn)
	raw(chainRawOut, unix.NF_INET_LOCAL_OUT, outName,
		failsafes(h.failsafeO, l4proto, end{destinations, l4Destination}),
		failsafes(h.failsafeIn, l4proto, end{destinations, l4Source}), mapUntrackedOut)
	// A workload's own policy needs the connection: it is asked in any case. So
	// does what translates addresses.
	untracked := append(forPrefixes(b.prefixes, inName, nil, action{kind: back}), forPrefixes(b.prefixes, outName, nil, action{kind: back})...)
	for f, set := range []string{setLocal4, setLocal6} {
		untracked = append(untracked,
			when(action{kind: back}, familyIs[f], member(set, sources[f])),
			when(action{kind: back}, familyIs[f], member(set, destinations[f])),
			when(action{kind: back}, familyIs[f], member(floatSets[f].name, destinations[f])))
	}
	for f, size := range []int{4, 16} {
		if spans := netSpans(b.ranges.nets, 4+2*f); len(spans) > 0 {
			untracked = append(untracked,
				when(action{kind: back}, appendNets([]match{familyIs[f]}, sources[f], spans, size, false)...),
				when(action{kind: back}, appendNets([]match{familyIs[f]}, destinations[f], spans, size, false)...))
		}
	}
	untracked = append(untracked, rule{does: []action{{kind: noTrack}, pass}})
	return append(chains, chain{object{inet, chainUntracked}, nil, untracked})
}

const loopback = "lo"

// renderEnd judges what ends in the host (in) or begins there. A connection is
// judged by what it was opened as: in a reply, the interface's other program.
func (h hosts) renderEnd(f field, in bool) []rule {
	pass := action{kind: accept}
	rules := []rule{when(pass, isName(f, loopback))}
	if !h.any {
		rules = append(rules, when(pass, match{op: notIn, fields: []field{f}, set: setHosts}))
	}
	rules = append(rules, when(pass, ipv6, isICMPv6, hostNeighbourTypes))
	opened, answered, raw := mapHostIn, mapHostOut, mapUntrackedIn
	to := failsafes(h.failsafeIn, l4proto, end{sources, l4Destination})
	replies := failsafes(h.failsafeO, ctProtocol, end{dialledTo, ctDestinationPort})
	if !in {
		opened, answered, raw = mapHostOut, mapHostIn, mapUntrackedOut
		to = failsafes(h.failsafeO, l4proto, end{destinations, l4Destination})
		replies = failsafes(h.failsafeIn, ctProtocol, end{openedBy, ctDestinationPort})
	}
	rules = append(rules, to...)
	for _, r := range replies {
		r.matches = append([]match{isReply}, r.matches...)
		rules = append(rules, r)
	}
	rules = append(rules, h.untracked(f, raw)...)
	return append(rules,
		rule{matches: []match{noConnection}, does: counted(counterInvalid)},
		when(action{kind: lookup, field: f, name: opened}, isOriginal),
		when(action{kind: lookup, field: f, name: answered}, isReply),
		when(lead(chainMark)))
}

// The ends of a connection, by family.
var (
	openedBy  = addrFields{ctSource4, ctSource6}
	dialledTo = addrFields{ctDestination4, ctDestination6}
)

// failsafes passes what has a port in one field and, where they are limited to
// networks, the other end's address in another.
func failsafes(list []Failsafe, protocol field, at end) (rules []rule) {
	compare := func(a, b Failsafe) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Net.Compare(b.Net), cmp.Compare(a.Port, b.Port))
	}
	sorted := slices.Compact(slices.SortedFunc(slices.Values(list), compare))
	for len(sorted) > 0 {
		first, n := sorted[0], 0
		var ports []desired.PortRange
		for n < len(sorted) && sorted[n].Protocol == first.Protocol && sorted[n].Net == first.Net {
			ports = append(ports, desired.PortRange{Min: sorted[n].Port, Max: sorted[n].Port})
			n++
		}
		sorted = sorted[n:]
		var m []match
		if p := first.Net; p.IsValid() {
			fam := 4 + 2*b2i(p.Addr().Is6())
			m = append(m, is(nfproto, familyNumber(fam)))
			m = appendNets(m, at.addrs[fam/2-2], netSpans([]netip.Prefix{p}, fam), p.Addr().BitLen()/8, false)
		}
		m = appendPorts(append(m, is(protocol, first.Protocol)), at.port, ports, false)
		rules = append(rules, when(action{kind: accept}, m...))
	}
	return rules
}

// renderWorkload is what the host sends to a workload.
func renderWorkload(h hosts) []rule {
	rules := []rule{
		{matches: []match{{op: notIn, fields: []field{outIndex}, set: setBound}}, does: counted(counterUnknown)},
		when(lead(chainAnswer), isReply),
	}
	if h.any { // to serve addresses is not to reach
		rules = append(rules, when(lead(chainMark), dhcp4Answer...), when(lead(chainMark), dhcp6Answer...))
	}
	return append(rules, when(h.own(chainHostOut)))
}

// renderAnswer is what the host answers to a workload.
func renderAnswer(b base) []rule {
	return []rule{
		when(lead(chainMark), dhcp4Answer...),
		when(lead(chainMark), dhcp6Answer...),
		when(action{kind: lookup, field: outName, name: mapFrom}),
		toHost(b, b.hosts.own(chainHostOut)),
	}
}

// isHostChain says whether a chain is one of renderHosts, which come and go.
func isHostChain(o object) bool {
	return o.family == inet && slices.Contains([]string{chainHostIn, chainHostOut, chainRawIn, chainRawOut, chainUntracked, chainAsIs}, o.name)
}

// renderHost is what is particular to one host endpoint. One of an interface
// has a place in each map, lest the one for any be asked.
func renderHost(name string, h desired.HostEndpoint, chainOf func(desired.ProgramID) target) []element {
	key := makeElem([]byte(name))
	any := name == desired.AnyInterface
	if any {
		key = elem{flag: elemAny}
	}
	es := []element{
		{object{inet, mapHostIn}, key, chainOf(h.Ingress)},
		{object{inet, mapHostOut}, key, chainOf(h.Egress)},
	}
	for _, p := range []struct {
		name string
		id   desired.ProgramID
	}{
		{mapThroughIn, h.ForwardIn}, {mapThroughOut, h.ForwardOut}, {mapUntrackedIn, h.UntrackedIn}, {mapUntrackedOut, h.UntrackedOut},
	} {
		to := target(chainAsIs)
		if p.id != "" {
			to = chainOf(p.id)
		}
		es = append(es, element{object{inet, p.name}, key, to})
	}
	if !any {
		es = append(es, element{object{inet, setHosts}, key, ""})
		if h.ForwardIn != "" || h.ForwardOut != "" {
			es = append(es, element{object{inet, setThrough}, key, ""})
		}
	}
	return es
}

var errLongName = errors.New("its name is too long, so nothing of it is judged")

// hostTrouble is Trouble of an interface of the host.
func (t *Tables) hostTrouble(name string) error {
	h, ok := t.intent.hosts[name]
	if !ok {
		return nil
	}
	var errs []error
	for _, e := range renderHost(name, h, chainName) {
		errs = append(errs, t.bad[culprit{set: e.set, elem: e.key}])
	}
	for _, id := range []desired.ProgramID{h.Ingress, h.Egress, h.ForwardIn, h.ForwardOut, h.UntrackedIn, h.UntrackedOut} {
		if id != "" {
			errs = append(errs, t.programTrouble(id))
		}
	}
	return errors.Join(errs...)
}

// programTrouble says why a program is not in the kernel as it should be.
func (t *Tables) programTrouble(id desired.ProgramID) error {
	first := programChain(id)
	return errors.Join(t.bad[culprit{program: first}], t.intent.errors["program "+first])
}

// mergeHosts takes what changed of host endpoints into the pending work.
func (t *Tables) mergeHosts(want *desired.State) {
	before := t.hosts()
	for name := range natKeys(want.Hosts, t.all) {
		if old, ok := t.intent.hosts[name]; ok {
			t.release(renderHost(name, old, chainName))
			delete(t.intent.hosts, name)
		}
		delete(t.intent.errors, "interface "+name)
		h, ok := want.Hosts.Get(name)
		if ok && len(name) >= int(typeName.len) {
			t.intent.errors["interface "+name] = fmt.Errorf("interface %s: %w", name, errLongName)
			continue
		}
		if ok {
			t.intent.hosts[name] = h
			t.refer(renderHost(name, h, chainName))
		}
	}
	t.todo.base = t.todo.base || !before.sameChains(t.hosts())
}
