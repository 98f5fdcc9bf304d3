package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Names of our chains, sets and counters that are always there.
const (
	chainRaw          = "raw"            // spoof check, before connection tracking
	chainSource       = "source"         // the source is no endpoint's: is it a workload's interface?
	chainSpoof        = "spoof"          // what no spoof set has
	chainSpecial      = "special"        // packets without a source address of their own
	chainForward      = "forward"        //
	chainJudge        = "judge"          // is one of the interfaces a workload's?
	chainServer       = "dhcp-server"    // answers of DHCP that open a connection
	chainOriginal     = "judge-original" // judges a packet of the original direction, and with it the connection
	chainReply        = "judge-reply"    // the same with the interfaces' roles exchanged
	chainFromStranger = "from-stranger"  // the connection's source is not in the map
	chainToStranger   = "to-stranger"    // its destination is not
	chainSettle       = "settle"         // allowed: may the verdict be remembered?
	chainMark         = "allowed"        // remembers the verdict in the connection, and accepts
	chainInput        = "input"
	chainToHost       = "to-host"
	chainLocal        = "from-workload"
	chainOutput       = "output"
	chainFromHost     = "from-host"
	chainWorkload     = "to-workload"
	chainAnswer       = "host-reply" // answers of the host to workloads
	chainARP          = "input"      // in the arp table
	chainARPSpoof     = "spoof"
	chainRemember     = "remembered" // reached by nothing; its rules' userdata are our notes

	mapFrom = "programs-from" // interface → program of what it sends
	mapTo   = "programs-to"   // interface → program of what is sent to it

	setBound  = "bound"     // interface indexes of endpoints
	setOpen   = "any-mac"   // those of them that may use any MAC
	setMAC    = "macs"      // the MACs of the others
	setAddr4  = "addr4"     // addresses of endpoints that may use any MAC
	setAddr6  = "addr6"     //
	setMAC4   = "mac-addr4" // MACs and addresses of the others
	setMAC6   = "mac-addr6" //
	setHome4  = "home4"     // interface indexes of endpoints and their addresses
	setHome6  = "home6"     //
	setLocal4 = "local4"    // the addresses alone
	setLocal6 = "local6"    //
	setEpoch  = "epoch"     // the policy epoch, alone
	setDue    = "bump-due"  // not empty while a commit waits for its bump of the epoch
	setARP    = "addr"      // in the arp table
	setMACARP = "mac-addr"

	counterUnmatched = "unmatched"         // came to the end of a program
	counterSpoofed   = "spoofed"           // source address, MAC or ARP sender not the endpoint's, its address from elsewhere, or an answer of DHCP
	counterUnknown   = "unknown-interface" // to or from a workload interface that no endpoint has
	counterInvalid   = "invalid"           // connection tracking has no connection for it
	counterHost      = "to-host"           // to the host itself, by HostAction Drop or to its loopback
)

// LogGroup is the nflog group that Log rules write to.
const LogGroup = 7101

// Our bits of the connection mark, of which only the policy epoch says what was
// allowed.
const (
	EpochMask    = 0x7fffff // the epoch at which the connection was allowed
	controlsMark = 0x800000 // an end of it has limits or marks
)

// HostActions are the values of Options.HostAction.
const (
	HostDrop   = "Drop"
	HostReturn = "Return"
	HostAccept = "Accept"
)

// base is what the chains that all endpoints share depend on.
type base struct {
	prefixes   []string
	hostAction string
	epoch      uint32
	anyMAC     bool // there are endpoints that may use any MAC
	fixedMAC   bool // there are endpoints with a MAC of their own
	controls   controls
	ranges     ranges
	hosts      hosts
}

var baseCounters = append([]object{
	{inet, counterUnmatched},
	{inet, counterSpoofed},
	{inet, counterUnknown},
	{inet, counterInvalid},
	{inet, counterHost},
	{arp, counterSpoofed},
}, controlCounters...)

var (
	markChain = object{inet, chainMark}
	epochSet  = object{inet, setEpoch}
	dueSet    = object{inet, setDue}
)

// baseSets are the sets whose elements come from interfaces and of address
// translation, epochSet, dueSet and deniedSet.
var baseSets = slices.Concat([]set{
	{object: object{inet, mapFrom}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapTo}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, setBound}, key: []keyPart{typeIndex}},
	{object: object{inet, setOpen}, key: []keyPart{typeIndex}},
	{object: object{inet, setMAC}, key: []keyPart{typeIndex, typeMAC}},
	{object: object{inet, setAddr4}, key: []keyPart{typeIndex, typeIP4}},
	{object: object{inet, setAddr6}, key: []keyPart{typeIndex, typeIP6}},
	{object: object{inet, setMAC4}, key: []keyPart{typeIndex, typeMAC, typeIP4}},
	{object: object{inet, setMAC6}, key: []keyPart{typeIndex, typeMAC, typeIP6}},
	{object: object{inet, setHome4}, key: []keyPart{typeIndex, typeIP4}},
	{object: object{inet, setHome6}, key: []keyPart{typeIndex, typeIP6}},
	{object: object{inet, setLocal4}, key: []keyPart{typeIP4}},
	{object: object{inet, setLocal6}, key: []keyPart{typeIP6}},
	{object: epochSet, key: []keyPart{typeMark}},
	{object: dueSet, key: []keyPart{typeMark}},
	{object: floatingMaps[0], key: []keyPart{typeIP4}, data: typeIP4},
	{object: floatingMaps[1], key: []keyPart{typeIP6}, data: typeIP6},
	{object: floatSets[0], key: []keyPart{typeIP4}},
	{object: floatSets[1], key: []keyPart{typeIP6}},
	{object: externalMaps[0], key: []keyPart{typeIP4}, data: typeIP4},
	{object: externalMaps[1], key: []keyPart{typeIP6}, data: typeIP6},
	{object: masqueradeSets[0], key: []keyPart{typeIP4}},
	{object: masqueradeSets[1], key: []keyPart{typeIP6}},
	{object: deniedSet, key: []keyPart{typeMark, typeIndex, typeIndex}, dynamic: true, size: deniedSize},
	{object: object{inet, mapHostIn}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapHostOut}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapThroughIn}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapThroughOut}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapUntrackedIn}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, mapUntrackedOut}, key: []keyPart{typeName}, verdicts: true},
	{object: object{inet, setHosts}, key: []keyPart{typeName}},
	{object: object{inet, setThrough}, key: []keyPart{typeName}},
	{object: object{arp, setARP}, key: []keyPart{typeIndex, typeIP4}},
	{object: object{arp, setMACARP}, key: []keyPart{typeIndex, typeMAC, typeMAC, typeIP4}},
}, controlSets, rangeSets)

func lead(chain string) action { return action{kind: goTo, name: chain} }

func counted(name string) []action {
	return []action{{kind: count, name: name}, {kind: drop}}
}

func is(f field, value ...byte) match { return match{op: equal, fields: []field{f}, value: value} }

func member(name string, f ...field) match { return match{op: in, fields: f, set: name} }

func when(does action, m ...match) rule { return rule{matches: m, does: []action{does}} }

func isPort(f field, port uint16) match { return is(f, binary.BigEndian.AppendUint16(nil, port)...) }

// forPrefixes makes one rule for each workload prefix.
func forPrefixes(prefixes []string, f field, more []match, does ...action) []rule {
	rules := make([]rule, 0, len(prefixes))
	for _, p := range prefixes {
		rules = append(rules, rule{matches: append([]match{is(f, []byte(p)...)}, more...), does: does})
	}
	return rules
}

var (
	ipv4 = is(nfproto, unix.NFPROTO_IPV4)
	ipv6 = is(nfproto, unix.NFPROTO_IPV6)

	isUDP    = is(l4proto, unix.IPPROTO_UDP)
	isICMPv6 = is(l4proto, unix.IPPROTO_ICMPV6)

	isReply    = is(ctDirection, reply)
	isOriginal = is(ctDirection, original)
	linkLocal  = match{op: equal, fields: []field{ip6Source}, value: prefixBytes(netip.MustParsePrefix("fe80::/10")), mask: maskBytes(10, 16)}

	// isRelated: the packet is an ICMP error about a connection, or one that
	// another was expected to open.
	isRelated = match{op: anyBit, fields: []field{ctState}, mask: native32(4)}

	// noConnection: conntrack calls the packet invalid, or does not track it.
	noConnection = match{op: anyBit, fields: []field{ctState}, mask: native32(1 | 64)}

	dhcp4Request = []match{ipv4, isUDP, isPort(l4Source, 68), isPort(l4Destination, 67)}
	dhcp6Request = []match{ipv6, isUDP, isPort(l4Source, 546), isPort(l4Destination, 547)}
	dhcp4Answer  = []match{ipv4, isUDP, isPort(l4Source, 67), isPort(l4Destination, 68)}
	dhcp6Answer  = []match{ipv6, isUDP, isPort(l4Source, 547), isPort(l4Destination, 546)}

	// neighbourTypes are what a guest sends to find its neighbours and to join
	// groups: MLD report and done, router and neighbour solicitation, MLDv2
	// report. Neighbour advertisement (136) is apart, since it claims an
	// address; router advertisement and redirect are not for guests.
	neighbourTypes = list(anyOf, icmpType, []span{
		{[]byte{131}, []byte{133}}, {[]byte{135}, []byte{135}}, {[]byte{143}, []byte{143}},
	})
	isNeighbourAdvert = is(icmpType, 136)
)

// rawHook comes before fragments are put together (-400), which the kernel does
// without regard to the interface that each came by: a guest that could add one
// with another's address would have a part in that one's packets.
var rawHook = &hook{unix.NF_INET_PRE_ROUTING, -450}

// renderSkeleton is the closed table of a host that knows nothing yet.
func renderSkeleton(prefixes []string) []chain {
	none := []match(nil)
	in := forPrefixes(prefixes, inName, none, action{kind: drop})
	out := forPrefixes(prefixes, outName, none, action{kind: drop})
	return []chain{
		{object{inet, chainRaw}, rawHook, in},
		{object{inet, chainForward}, &hook{unix.NF_INET_FORWARD, 0}, append(in[:len(in):len(in)], out...)},
		{object{inet, chainInput}, &hook{unix.NF_INET_LOCAL_IN, 0}, in},
		{object{inet, chainOutput}, &hook{unix.NF_INET_LOCAL_OUT, 0}, out},
		{object{arp, chainARP}, &hook{0, 0}, in},
	}
}

// renderBase is every chain but the programs and our notes.
func renderBase(b base) []chain {
	known := func(mask uint32) match {
		return match{op: in, fields: []field{ctMark}, mask: native32(mask), set: setEpoch}
	}
	enter := func(name string, hookNum uint32, mask uint32, next string) chain {
		return chain{object{inet, name}, &hook{hookNum, 0}, []rule{when(action{kind: accept}, known(mask)), when(lead(next))}}
	}
	forwarded := uint32(EpochMask)
	var judge []rule
	if b.controls.forwarded {
		forwarded |= controlsMark
		judge = []rule{when(lead(chainControls), known(EpochMask))}
	}
	plain := func(name string, rules []rule) chain { return chain{object{inet, name}, nil, rules} }
	intoOriginal := forPrefixes(b.prefixes, inName, nil, lead(chainOriginal))
	intoOriginal = append(intoOriginal, forPrefixes(b.prefixes, outName, nil, lead(chainOriginal))...)
	chains := append(renderControls(b.controls), renderHosts(b)...)
	return append(chains, []chain{
		renderRaw(b),
		plain(chainSource, renderSource(b.prefixes)),
		plain(chainSpoof, renderSpoof()),
		plain(chainSpecial, renderSpecial(&b.ranges)),
		enter(chainForward, unix.NF_INET_FORWARD, forwarded, chainJudge),
		plain(chainJudge, slices.Concat(judge, intoOriginal, b.hosts.intoOriginal())),
		plain(chainOriginal, append(b.hosts.untracked(inName, mapUntrackedIn), []rule{
			{matches: []match{noConnection}, does: counted(counterInvalid)},
			when(lead(chainReply), isReply),
			when(action{kind: jump, name: chainServer}, isUDP, isPort(l4Source, 67)),
			when(action{kind: jump, name: chainServer}, isUDP, isPort(l4Source, 547)),
			when(action{kind: lookup, field: inName, name: mapFrom}),
			when(action{kind: lookup, field: outName, name: mapTo}),
			when(lead(chainSettle)),
		}...)),
		plain(chainServer, renderServer(b.prefixes)),
		plain(chainReply, []rule{
			when(action{kind: lookup, field: outName, name: mapFrom}),
			when(action{kind: lookup, field: inName, name: mapTo}),
			when(lead(chainSettle)),
		}),
		plain(chainSettle, renderSettle(&b)),
		plain(chainFromStranger, append(renderStranger(b.prefixes, inName, outName), b.hosts.through(mapThroughIn, inName, outName)...)),
		plain(chainToStranger, append(renderStranger(b.prefixes, outName, inName), b.hosts.through(mapThroughOut, outName, inName)...)),
		renderMark(b.epoch, b.controls.forwarded),
		renderDenied(),
		enter(chainInput, unix.NF_INET_LOCAL_IN, EpochMask, chainToHost),
		plain(chainToHost, append(forPrefixes(b.prefixes, inName, nil, lead(chainLocal)), b.hosts.enter(chainHostIn)...)),
		plain(chainLocal, renderLocal(b)),
		enter(chainOutput, unix.NF_INET_LOCAL_OUT, EpochMask, chainFromHost),
		plain(chainFromHost, append(forPrefixes(b.prefixes, outName, nil, lead(chainWorkload)), b.hosts.enter(chainHostOut)...)),
		plain(chainWorkload, renderWorkload(b.hosts)),
		plain(chainAnswer, renderAnswer(b)),
		{object{arp, chainARP}, &hook{0, 0}, renderARP(b)},
		{object{arp, chainARPSpoof}, nil, forPrefixes(b.prefixes, inName, nil, counted(counterSpoofed)...)},
	}...)
}

// renderMark has the epoch in a rule of its own, without a verdict: the kernel
// looks at the whole table again when a rule with one is replaced. An ICMP
// error passes, but it is no reason to remember a verdict: the connection that
// it is about has not gone where it does, and the host, which sends some before
// it has judged what they are about, is an end of none of them.
func renderMark(epoch uint32, controlled bool) chain {
	rules := []rule{
		when(action{kind: accept}, isRelated),
		{does: []action{{kind: setMark, bits: EpochMask, mark: epoch}}, epoch: epoch},
	}
	if controlled {
		rules = append(rules, when(lead(chainControls), match{op: anyBit, fields: []field{ctMark}, mask: native32(controlsMark)}))
	}
	return chain{markChain, nil, append(rules, when(action{kind: accept}))}
}

// renderRaw looks an interface and source address up; a rule for a kind of
// endpoint that the host does not have would cost every packet a lookup.
func renderRaw(b base) chain {
	var rules []rule
	pass := action{kind: accept}
	if b.fixedMAC {
		rules = append(rules,
			when(pass, ipv4, member(setMAC4, inIndex, etherSource, ip4Source)),
			when(pass, ipv6, member(setMAC6, inIndex, etherSource, ip6Source)))
	}
	if b.anyMAC {
		rules = append(rules,
			when(pass, ipv4, member(setAddr4, inIndex, ip4Source)),
			when(pass, ipv6, member(setAddr6, inIndex, ip6Source)))
	}
	rules = append(rules, when(lead(chainSource)))
	return chain{object{inet, chainRaw}, rawHook, rules}
}

// renderSource refuses endpoints' addresses to what is no workload. Each packet
// is looked up, not only one that opens a connection: with the tuple of one
// that there is, a stranger's is in it, and policy is not asked.
func renderSource(prefixes []string) []rule {
	return append(forPrefixes(prefixes, inName, nil, lead(chainSpoof)),
		rule{matches: []match{ipv4, member(setLocal4, ip4Source)}, does: counted(counterSpoofed)},
		rule{matches: []match{ipv6, member(setLocal6, ip6Source)}, does: counted(counterSpoofed)})
}

// renderSpoof tells interfaces without an endpoint from endpoints that use an
// address or MAC that is not theirs.
func renderSpoof() []rule {
	return []rule{
		{matches: []match{{op: notIn, fields: []field{inIndex}, set: setBound}}, does: counted(counterUnknown)},
		when(lead(chainSpecial), member(setOpen, inIndex)),
		when(lead(chainSpecial), member(setMAC, inIndex, etherSource)),
		{does: counted(counterSpoofed)},
	}
}

// renderSpecial passes what an endpoint sends before it has an address, from its
// link-local one, or from a range.
func renderSpecial(r *ranges) []rule {
	pass := action{kind: accept}
	rules := []rule{when(pass, append([]match{ipv4, is(ip4Source, 0, 0, 0, 0)}, dhcp4Request[1:]...)...)}
	unspecified := is(ip6Source, make([]byte, 16)...)
	for _, source := range []match{linkLocal, unspecified} {
		rules = append(rules, when(pass, ipv6, source, isICMPv6, neighbourTypes))
	}
	rules = append(rules,
		when(pass, ipv6, linkLocal, isICMPv6, isNeighbourAdvert),
		when(pass, append([]match{ipv6, linkLocal}, dhcp6Request[1:]...)...))
	rules = append(rules, r.renderSources()...)
	return append(rules, rule{does: counted(counterSpoofed)})
}

// renderServer refuses answers of DHCP from workloads that nobody asked: guests
// would take their addresses and gateways from another. One that a guest asked
// by its address answers in that connection.
func renderServer(prefixes []string) []rule {
	return append(forPrefixes(prefixes, inName, dhcp4Answer, counted(counterSpoofed)...),
		forPrefixes(prefixes, inName, dhcp6Answer, counted(counterSpoofed)...)...)
}

// renderStranger is where a verdict map leads that does not know an interface.
// A workload's interface is refused; any other passes on. The map of what
// interfaces send is asked for the one that the connection came from, the
// other map for the one that it goes to.
func renderStranger(prefixes []string, fromOriginal, fromReply field) []rule {
	rules := forPrefixes(prefixes, fromOriginal, []match{isOriginal}, counted(counterUnknown)...)
	return append(rules, forPrefixes(prefixes, fromReply, []match{isReply}, counted(counterUnknown)...)...)
}

// renderSettle keeps a verdict that was given while an endpoint's address was
// routed past it, where its policy had no say, from being remembered: once the
// route is there, the connection is judged again. Before that it notes in the
// connection whether one of the interfaces has limits or marks.
func renderSettle(b *base) (rules []rule) {
	pass := action{kind: accept}
	if b.controls.forwarded {
		pass = lead(chainControls)
		note := action{kind: setMark, bits: controlsMark, mark: controlsMark}
		rules = append(rules,
			when(note, member(setControlled, inIndex)),
			when(note, member(setControlled, outIndex)),
			when(pass, isRelated))
	}
	rules = append(rules,
		when(lead(chainMark), ipv4, member(setHome4, outIndex, ip4Destination)),
		when(lead(chainMark), ipv6, member(setHome6, outIndex, ip6Destination)),
		when(pass, ipv4, member(setLocal4, ip4Destination)),
		when(pass, ipv6, member(setLocal6, ip6Destination)))
	return append(append(rules, b.ranges.renderHome(pass)...), when(lead(chainMark)))
}

// renderLocal judges what a workload sends to the host itself.
func renderLocal(b base) []rule {
	toMark := lead(chainMark)
	pass := action{kind: accept}
	advert := []match{ipv6, isICMPv6, isNeighbourAdvert}
	claims := func(m ...match) rule { return when(pass, append(advert[:3:3], m...)...) }
	linkLocalTarget := match{op: equal, fields: []field{ndTarget}, value: linkLocal.value, mask: linkLocal.mask}
	rules := []rule{
		when(pass, ipv6, isICMPv6, neighbourTypes),
		claims(member(setMAC6, inIndex, etherSource, ndTarget)),
		claims(member(setAddr6, inIndex, ndTarget)),
		claims(linkLocalTarget),
	}
	if b.ranges.own {
		rules = append(rules, claims(member(setRange6, ndTarget, inIndex)))
	}
	rules = append(rules, []rule{
		{matches: advert, does: counted(counterSpoofed)},
		when(toMark, dhcp4Request...),
		when(toMark, dhcp6Request...),
		{matches: []match{noConnection}, does: counted(counterInvalid)},
		{matches: []match{toLoopback}, does: counted(counterHost)},
	}...)
	// The host opened it, and the host may reach its workloads.
	onward := b.hosts.own(chainHostIn)
	rules = append(rules, renderError(b, onward)...)
	return append(rules, []rule{
		when(onward, isReply),
		{matches: dhcp4Answer, does: counted(counterSpoofed)},
		{matches: dhcp6Answer, does: counted(counterSpoofed)},
		when(action{kind: lookup, field: inName, name: mapFrom}),
		toHost(b, b.hosts.own(chainHostIn)),
	}...)
}

// renderError refuses an ICMP error about a connection that the host opened to
// another: what a workload says of those, the host would believe.
func renderError(b base, onward action) []rule {
	about := func(f int, m match) rule { return when(onward, isRelated, isReply, familyIs[f], m) }
	var rules []rule
	for f, far := range dialledTo {
		rules = append(rules, about(f, member(homeSets[f], inIndex, far)))
	}
	if b.ranges.own {
		for f, set := range []string{setRange4, setRange6} {
			rules = append(rules, about(f, member(set, dialledTo[f], inIndex)))
		}
	}
	return append(rules, rule{matches: []match{isRelated, isReply}, does: counted(counterInvalid)})
}

// toLoopback: a host may be set to take such addresses from outside, so that
// its own services are reached by ports of nodes. Workloads are outside.
var toLoopback = is(ctDialled4, 127)

// toHost ends what egress policy allowed. Return leaves the rest to the host's
// own policy, of a host endpoint for any interface, if there is one. Else it is
// Accept: a base chain's accept leaves every other table its say.
func toHost(b base, onward action) rule {
	switch b.hostAction {
	case HostDrop:
		return rule{does: counted(counterHost)}
	case HostReturn:
		return when(onward)
	}
	return when(lead(chainMark))
}

func renderARP(b base) []rule {
	var rules []rule
	pass := action{kind: accept}
	if b.fixedMAC {
		rules = append(rules, when(pass, member(setMACARP, inIndex, etherSource, arpSenderMAC, arpSenderIP)))
	}
	if b.anyMAC {
		rules = append(rules, when(pass, member(setARP, inIndex, arpSenderIP)))
	}
	rules = append(rules, b.ranges.renderARP(&b)...)
	return append(rules, when(lead(chainARPSpoof)))
}

// element is an element of a base set.
type element struct {
	set    object
	key    elem
	target target // in a verdict map
}

// strangers are the elements that catch interfaces without an endpoint.
func strangers() []element {
	any := elem{flag: elemAny}
	return []element{{object{inet, mapFrom}, any, chainFromStranger}, {object{inet, mapTo}, any, chainToStranger}}
}

// renderInterface is what is particular to one endpoint; chainOf gives the
// chain of a program, or "" where there is none and everything is denied.
func renderInterface(name string, i desired.Interface, chainOf func(desired.ProgramID) target) []element {
	index, mac := native32(uint32(i.Index)), append(i.MAC[:], 0, 0)
	add := func(es []element, f family, set string, parts ...[]byte) []element {
		return append(es, element{set: object{f, set}, key: makeElem(parts...)})
	}
	es := []element{
		{object{inet, mapFrom}, makeElem([]byte(name)), chainOf(i.Egress)},
		{object{inet, mapTo}, makeElem([]byte(name)), chainOf(i.Ingress)},
	}
	es = add(es, inet, setBound, index)
	probe := netip.AddrFrom4([4]byte{}) // an ARP probe asks before it has an address
	if i.HasMAC {
		es = add(es, inet, setMAC, index, mac)
		es = add(es, arp, setMACARP, index, mac, mac, probe.AsSlice())
	} else {
		es = add(es, inet, setOpen, index)
		es = add(es, arp, setARP, index, probe.AsSlice())
	}
	for _, a := range i.Addrs {
		a = a.Unmap().WithZone("")
		ip := a.AsSlice()
		if a.Is4() {
			es = add(es, inet, setHome4, index, ip)
			es = add(es, inet, setLocal4, ip)
		} else {
			es = add(es, inet, setHome6, index, ip)
			es = add(es, inet, setLocal6, ip)
		}
		switch {
		case a.Is4() && i.HasMAC:
			es = add(es, inet, setMAC4, index, mac, ip)
			es = add(es, arp, setMACARP, index, mac, mac, ip)
		case a.Is4():
			es = add(es, inet, setAddr4, index, ip)
			es = add(es, arp, setARP, index, ip)
		case a.Is6() && i.HasMAC:
			es = add(es, inet, setMAC6, index, mac, ip)
		case a.Is6():
			es = add(es, inet, setAddr6, index, ip)
		}
	}
	return append(es, renderRanges(i)...)
}

func makeElem(parts ...[]byte) elem {
	var e elem
	at := 0
	for _, p := range parts {
		at += copy(e.key[at:], p)
	}
	return e
}
