package nft

import (
	"encoding/binary"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/table"
)

// Address translation is in base chains of its own, which are not there before
// there is something to translate: a hook of this type costs every new
// connection. What is translated to what are elements, so that an address
// moves without a change of rules. The last chain of all stays, though empty:
// the kernel translates packets of open connections only while it has one.

// The chains of address translation.
const (
	chainDNAT     = "dst-nat"      // what comes to an external address
	chainHostDNAT = "host-dst-nat" // the same, from the host itself
	chainSNAT     = "src-nat"      // what a workload opens to outside, or to itself
)

// The maps and sets of address translation, IPv4 and IPv6.
var (
	floatingMaps   = [2]object{{inet, "floating4"}, {inet, "floating6"}}     // external address → a workload's own
	externalMaps   = [2]object{{inet, "external4"}, {inet, "external6"}}     // a workload's own address → external one
	floatSets      = [2]object{{inet, "floats4"}, {inet, "floats6"}}         // external addresses, alone
	masqueradeSets = [2]object{{inet, "masquerade4"}, {inet, "masquerade6"}} // workloads' addresses
)

// natHooks has the chains of type nat.
var natHooks = map[object]*hook{
	{inet, chainDNAT}:     {unix.NF_INET_PRE_ROUTING, -100},
	{inet, chainHostDNAT}: {unix.NF_INET_LOCAL_OUT, -100},
	{inet, chainSNAT}:     {unix.NF_INET_POST_ROUTING, 100},
}

const typeFilter, typeNAT = "filter", "nat"

// chainType is the kernel's type of a base chain of ours.
func chainType(o object) string {
	if natHooks[o] != nil {
		return typeNAT
	}
	return typeFilter
}

// nat is what the chains of address translation depend on; by family.
type nat struct {
	floating   [2]bool // there are external addresses
	masquerade [2]bool // there are addresses that reach outside with the host's
	inside     []netip.Prefix
	address    netip.Addr // of the host, to use for these; none: that of the interface
	ports      [2]uint16
	kept       bool // there is a chain already, which stays
}

// nat is what the desired state asks of these chains.
func (i *intent) nat(opts *Options) nat {
	n := nat{inside: i.inside, address: opts.NATAddress, ports: opts.NATPorts}
	for f := range 2 {
		n.floating[f] = len(i.elems[floatingMaps[f]]) > 0
		n.masquerade[f] = len(i.elems[masqueradeSets[f]]) > 0
	}
	return n
}

// addrFields are a field of an address in both families.
type addrFields [2]field

var (
	sources      = addrFields{ip4Source, ip6Source}
	destinations = addrFields{ip4Destination, ip6Destination}
	dialled      = addrFields{ctDialled4, ctDialled6}
	familyIs     = [2]match{ipv4, ipv6}
	homeSets     = [2]string{setHome4, setHome6}
)

// renderNAT makes the chains that there is something to translate for.
func renderNAT(prefixes []string, n nat) []chain {
	var chains []chain
	add := func(name string, rules []rule) {
		if len(rules) > 0 {
			o := object{inet, name}
			chains = append(chains, chain{o, natHooks[o], rules})
		}
	}
	var in []rule
	for f := range 2 {
		if n.floating[f] {
			to := &translation{family: f, key: destinations[f], set: floatingMaps[f].name}
			in = append(in, when(action{kind: translate, nat: to}, familyIs[f]))
		}
	}
	add(chainDNAT, in)
	add(chainHostDNAT, in)
	add(chainSNAT, renderSNAT(prefixes, n))
	if len(chains) == 0 && n.kept {
		o := object{inet, chainSNAT}
		chains = append(chains, chain{o, natHooks[o], nil})
	}
	return chains
}

// renderSNAT begins with a workload that reaches itself by its external
// address: to answer by its host it must see that one as the source. Whatever
// else goes to a workload or to inside keeps its source.
func renderSNAT(prefixes []string, n nat) []rule {
	var self, out []rule
	done := action{kind: accept}
	wasDialled := match{op: anyBit, fields: []field{ctStatus}, mask: native32(destinationTranslated)}
	for f := range 2 {
		inside := netSpans(n.inside, 4+2*f)
		external := n.floating[f] && len(inside) > 0
		if n.floating[f] {
			self = append(self, when(action{kind: translate, nat: &translation{source: true, family: f, key: dialled[f]}},
				familyIs[f], wasDialled, member(homeSets[f], outIndex, sources[f])))
		}
		if !external && !n.masquerade[f] {
			continue
		}
		if len(inside) > 0 {
			size := [2]int{4, 16}[f]
			out = append(out, when(done, appendNets([]match{familyIs[f]}, destinations[f], inside, size, false)...))
		}
		if external {
			to := &translation{source: true, family: f, key: sources[f], set: externalMaps[f].name}
			out = append(out, when(action{kind: translate, nat: to}, familyIs[f]))
		}
		if n.masquerade[f] {
			out = append(out, n.masquerades(f)...)
		}
	}
	if len(out) > 0 {
		self = append(self, forPrefixes(prefixes, outName, nil, done)...)
	}
	return append(self, out...)
}

// destinationTranslated is the bit of a connection's status (IPS_DST_NAT).
const destinationTranslated = 0x20

// masquerades makes the rules for what reaches outside with the host's address.
func (n *nat) masquerades(f int) []rule {
	to := translation{source: true, family: f, masquerade: true}
	if n.address.IsValid() && n.address.Is4() == (f == 0) {
		to.masquerade, to.address = false, n.address
	}
	m := []match{familyIs[f], member(masqueradeSets[f].name, sources[f])}
	rest := when(action{kind: translate, nat: &to}, m...)
	if n.ports == [2]uint16{} {
		return []rule{rest}
	}
	ported := to
	ported.ports = n.ports
	m = append(m[:len(m):len(m)], list(anyOf, l4proto, portProtocols()))
	return []rule{when(action{kind: translate, nat: &ported}, m...), rest}
}

// translation is what an action does to a connection's addresses.
type translation struct {
	source     bool  // it is the source that is changed, else the destination
	family     int   // 0 IPv4, 1 IPv6
	key        field // it is what the map says of this field, or the field itself
	set        string
	address    netip.Addr // or this
	masquerade bool       // or that of the interface
	ports      [2]uint16  // and a port of these; 0: any
}

// appendText writes a translation as people do.
func (n *translation) appendText(b []byte) []byte {
	what := "dnat "
	if n.source {
		what = "snat "
	}
	switch {
	case n.masquerade:
		b = append(b, "masquerade"...)
		if n.ports != [2]uint16{} {
			b = append(b, " to "...)
		}
	default:
		b = append(append(b, what...), [2]string{"ip to ", "ip6 to "}[n.family]...)
	}
	switch {
	case n.masquerade:
	case n.address.IsValid():
		b = n.address.AppendTo(b)
	case n.set != "":
		b = append(append(b, fields[n.key].text...), " map @"...)
		b = append(b, n.set...)
	default:
		b = append(b, fields[n.key].text...)
	}
	if n.ports != [2]uint16{} {
		b = strconv.AppendUint(append(b, ':'), uint64(n.ports[0]), 10)
		b = strconv.AppendUint(append(b, '-'), uint64(n.ports[1]), 10)
	}
	return b
}

// translate writes the expressions of a translation.
func (w *writer) translate(n *translation) {
	reg, ports := uint32(firstReg), uint32(firstReg)
	switch {
	case n.masquerade:
	case n.address.IsValid():
		w.constant(reg, n.address.AsSlice())
		ports += uint32(n.address.BitLen() / 32)
	default:
		w.load(n.key, reg)
		if n.set != "" {
			at := w.expr("lookup")
			w.str(unix.NFTA_LOOKUP_SET, n.set)
			w.u32(unix.NFTA_LOOKUP_SREG, reg)
			w.u32(unix.NFTA_LOOKUP_DREG, reg)
			w.done(at)
		}
	}
	if n.ports != [2]uint16{} {
		for i, p := range n.ports {
			w.constant(ports+uint32(i), binary.BigEndian.AppendUint16(nil, p))
		}
	}
	name, minimum, maximum := "nat", uint16(unix.NFTA_NAT_REG_PROTO_MIN), uint16(unix.NFTA_NAT_REG_PROTO_MAX)
	if n.masquerade {
		name, minimum, maximum = "masq", unix.NFTA_MASQ_REG_PROTO_MIN, unix.NFTA_MASQ_REG_PROTO_MAX
	}
	at := w.expr(name)
	if !n.masquerade {
		w.u32(unix.NFTA_NAT_TYPE, map[bool]uint32{true: unix.NFT_NAT_SNAT, false: unix.NFT_NAT_DNAT}[n.source])
		w.u32(unix.NFTA_NAT_FAMILY, [2]uint32{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[n.family])
		w.u32(unix.NFTA_NAT_REG_ADDR_MIN, reg)
		w.u32(unix.NFTA_NAT_REG_ADDR_MAX, reg)
	}
	if n.ports != [2]uint16{} {
		if n.masquerade { // the kernel finds this out only of the other kind
			w.u32(unix.NFTA_MASQ_FLAGS, portsGiven)
		}
		w.u32(minimum, ports)
		w.u32(maximum, ports+1)
	}
	w.done(at)
}

// portsGiven is the kernel's NF_NAT_RANGE_PROTO_SPECIFIED.
const portsGiven = 2

// constant puts a value into registers.
func (w *writer) constant(reg uint32, v []byte) {
	at := w.expr("immediate")
	w.u32(unix.NFTA_IMMEDIATE_DREG, reg)
	w.data(unix.NFTA_IMMEDIATE_DATA, v)
	w.done(at)
}

// immediateValue is the constant that an expression puts into registers, nil
// if it is none.
func immediateValue(data []byte) (value []byte) {
	each(data, func(typ uint16, v []byte) {
		if typ != unix.NFTA_IMMEDIATE_DATA {
			return
		}
		if typ, v, _, ok := nextAttr(v); ok && typ == unix.NFTA_DATA_VALUE {
			value = v
		}
	})
	return value
}

// translation decodes the expression that ends a translation.
func (d *decoder) translation(name string, a *exprAttrs) {
	n := &translation{masquerade: name == "masq", set: d.mapped}
	if !n.masquerade {
		n.source = attrUint32(a[unix.NFTA_NAT_TYPE]) == unix.NFT_NAT_SNAT
		if attrUint32(a[unix.NFTA_NAT_FAMILY]) == unix.NFPROTO_IPV6 {
			n.family = 1
		}
		if len(d.loaded) > 0 {
			n.key = d.loaded[0]
		} else if len(d.values) > 0 {
			n.address, _ = netip.AddrFromSlice(d.values[0])
			d.values = d.values[1:]
		}
	}
	if len(d.values) == 2 && len(d.values[0]) == 2 && len(d.values[1]) == 2 {
		n.ports = [2]uint16{binary.BigEndian.Uint16(d.values[0]), binary.BigEndian.Uint16(d.values[1])}
	}
	d.action(action{kind: translate, nat: n})
}

// mergeNAT takes what changed of address translation into the pending work.
func (t *Tables) mergeNAT(want *desired.State) {
	before := t.intent.nat(&t.opts)
	for a := range natKeys(want.Floating, t.all) {
		to, ok := want.Floating.Get(a)
		t.translate(floatingMaps, a, target(to.AsSlice()), ok)
		t.translate(floatSets, a, "", ok)
	}
	for a := range natKeys(want.External, t.all) {
		to, ok := want.External.Get(a)
		t.translate(externalMaps, a, target(to.AsSlice()), ok)
	}
	for a := range natKeys(want.Masquerade, t.all) {
		_, ok := want.Masquerade.Get(a)
		t.translate(masqueradeSets, a, "", ok)
	}
	if t.all || want.Inside.DirtyLen() > 0 {
		t.intent.inside = slices.Collect(maps.Keys(maps.Collect(want.Inside.All())))
		t.todo.base = true
	}
	after := t.intent.nat(&t.opts)
	t.todo.base = t.todo.base || before.floating != after.floating || before.masquerade != after.masquerade
}

// natKeys are the keys of a table, all or those that changed.
func natKeys[K comparable, V any](tb *table.Table[K, V], all bool) iter.Seq[K] {
	if all {
		return maps.Keys(maps.Collect(tb.All()))
	}
	return tb.Dirty()
}

// translate wants an element for an address, or wants it no more.
func (t *Tables) translate(sets [2]object, a netip.Addr, to target, is bool) {
	o, e := sets[0], makeElem(a.AsSlice())
	if a.Is6() {
		o = sets[1]
	}
	delete(t.intent.elems[o], e)
	if is {
		t.intent.elems[o][e] = &wanted{refs: 1, target: to}
	}
	t.todo.elems[element{set: o, key: e}] = struct{}{}
}

// moves notes the external address whose element this is, if it is one.
func (d *differ) moves(o object, e elem) {
	for f, m := range floatingMaps {
		if o == m {
			a, _ := netip.AddrFromSlice(e.key[:[2]int{4, 16}[f]])
			d.moved = append(d.moved, a)
		}
	}
}

// TakeMoved returns the external addresses that lead elsewhere in the kernel
// than when it was last called: connections by them lead where they led before.
func (t *Tables) TakeMoved() []netip.Addr {
	moved := t.moved
	t.moved = nil
	return moved
}
