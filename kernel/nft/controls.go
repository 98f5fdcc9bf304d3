package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Limits and marks are applied to what policy has allowed, and are there only
// while an endpoint asks for them. They see every packet, also those of
// connections that policy knows: of forwarded ones the mark says whether an end
// has any, so that others pay nothing. What goes to the host is led to them by
// base chains that come after those of policy. An endpoint is one element: its
// rate is in the element itself.
const (
	chainControls     = "controls"         // forwarded packets; and a base chain of the arp table
	chainHostControls = "controls-to-host" // base chain of packets to the host itself
	chainDSCP         = "dscp-"            // and the code point: sets it
	limitsOf          = "limits-"          // and the name of a base chain: what it leads to

	setControlled = "controlled"       // interface indexes of endpoints with any of these but the last
	setRateFrom   = "rate-from"        // packets that an interface sends
	setRateTo     = "rate-to"          // that are sent to it
	mapCountFrom  = "connections-from" // to a chain of its own, named after this and the interface
	mapCountTo    = "connections-to"
	mapDSCP       = "dscp-from"
	setHostRate   = "host-rate" // packets to the host that cost it most; in both tables

	counterRate     = "over-packet-rate"
	counterCount    = "over-connections"
	counterHostRate = "over-host-rate"
)

// controlsPriority is after that of the chains of policy.
const controlsPriority = 1

var controlSets = []set{
	{object: object{inet, setControlled}, key: []keyPart{typeIndex}},
	{object: object{inet, setRateFrom}, key: []keyPart{typeIndex}, rated: true},
	{object: object{inet, setRateTo}, key: []keyPart{typeIndex}, rated: true},
	{object: object{inet, mapCountFrom}, key: []keyPart{typeIndex}, verdicts: true},
	{object: object{inet, mapCountTo}, key: []keyPart{typeIndex}, verdicts: true},
	{object: object{inet, mapDSCP}, key: []keyPart{typeIndex}, verdicts: true},
	{object: object{inet, setHostRate}, key: []keyPart{typeIndex}, rated: true},
	{object: object{arp, setHostRate}, key: []keyPart{typeIndex}, rated: true},
}

var controlCounters = []object{
	{inet, counterRate}, {inet, counterCount}, {inet, counterHostRate}, {arp, counterHostRate},
}

// controls says which of the rules are needed.
type controls struct {
	forwarded                            bool // any of the next six
	rateFrom, rateTo, countFrom, countTo bool
	dscp                                 uint64            // bit n: code point n
	counts                               map[string]uint32 // chains of connection limits, and the limits
	hostRate                             bool
}

var everyControl = controls{true, true, true, true, true, 1, map[string]uint32{countChain(mapCountTo, 1): 1}, true}

func (t *Tables) controls() (c controls) {
	has := func(set string) bool { return len(t.intent.elems[object{inet, set}]) > 0 }
	c = controls{t.controlled(), has(setRateFrom), has(setRateTo), has(mapCountFrom), has(mapCountTo), 0, map[string]uint32{}, t.opts.HostRate > 0}
	for _, v := range t.intent.controls {
		if v.Mark {
			c.dscp |= 1 << v.DSCP
		}
		if n := v.Egress.Connections; n != 0 {
			c.counts[countChain(mapCountFrom, v.Index)] = n
		}
		if n := v.Ingress.Connections; n != 0 {
			c.counts[countChain(mapCountTo, v.Index)] = n
		}
	}
	return c
}

// controlled says whether an endpoint has limits or marks of its own, on more
// than its bandwidth.
func (t *Tables) controlled() bool { return len(t.intent.elems[object{inet, setControlled}]) > 0 }

var (
	isTCP = is(l4proto, unix.IPPROTO_TCP)
	isNew = match{op: anyBit, fields: []field{ctState}, mask: native32(8)}

	// costly is what the host answers, or keeps state for, by itself: ICMP, IGMP,
	// neighbour discovery, and requests to its DNS and DHCP servers.
	costlyProtocols = list(anyOf, l4proto, []span{{[]byte{unix.IPPROTO_ICMP}, []byte{unix.IPPROTO_IGMP}}, {[]byte{unix.IPPROTO_ICMPV6}, []byte{unix.IPPROTO_ICMPV6}}})
	costlyPorts     = list(anyOf, l4Destination, []span{onePort(53), onePort(67), onePort(547)})
)

func onePort(p uint16) span {
	b := binary.BigEndian.AppendUint16(nil, p)
	return span{b, b}
}

// renderControls: a connection over the limit is refused with a reset, so
// that the peer knows at once; only TCP counts, whose connections end.
func renderControls(c controls) (chains []chain) {
	fast := func(set string, f field) rule {
		return rule{matches: []match{member(set, f)}, does: counted(counterRate)}
	}
	crowded := func(counts string, f field) rule {
		return when(action{kind: lookup, field: f, name: counts}, isTCP, isNew)
	}
	var both, host, asks []rule
	add := func(is bool, to *[]rule, r ...rule) {
		if is {
			*to = append(*to, r...)
		}
	}
	add(c.rateFrom, &both, fast(setRateFrom, inIndex))
	add(c.rateTo, &both, fast(setRateTo, outIndex))
	add(c.countFrom, &both, crowded(mapCountFrom, inIndex))
	add(c.countTo, &both, crowded(mapCountTo, outIndex))
	add(c.dscp != 0, &both, when(action{kind: lookup, field: inIndex, name: mapDSCP}))
	add(c.rateFrom, &host, fast(setRateFrom, inIndex))
	add(c.countFrom, &host, crowded(mapCountFrom, inIndex))
	limited := member(setHostRate, inIndex)
	add(c.hostRate, &host,
		rule{matches: []match{costlyProtocols, limited}, does: counted(counterHostRate)},
		rule{matches: []match{isUDP, costlyPorts, limited}, does: counted(counterHostRate)})
	add(c.hostRate, &asks, rule{matches: []match{limited}, does: counted(counterHostRate)})
	if c.forwarded {
		chains = append(chains, chain{object{inet, chainControls}, nil, both})
	}
	base := func(o object, num uint32, rules []rule) {
		if len(rules) > 0 {
			chains = append(chains,
				chain{o, &hook{num, controlsPriority}, []rule{when(lead(limitsOf + o.name))}},
				chain{object{o.family, limitsOf + o.name}, nil, rules})
		}
	}
	base(object{inet, chainHostControls}, unix.NF_INET_LOCAL_IN, host)
	base(object{arp, chainControls}, 0, asks)
	for dscp := range uint8(64) {
		if c.dscp&(1<<dscp) != 0 {
			chains = append(chains, chain{object{inet, dscpChain(dscp)}, nil, []rule{
				when(action{kind: setDSCP, name: "ip", dscp: dscp}, ipv4),
				when(action{kind: setDSCP, name: "ip6", dscp: dscp}, ipv6),
			}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.counts)) {
		chains = append(chains, chain{object{inet, name}, nil, []rule{
			{does: []action{{kind: over, connections: c.counts[name]}, {kind: count, name: counterCount}, {kind: reset}}},
		}})
	}
	return chains
}

// countChain is the chain that counts the connections of an interface. A set
// whose elements count would do without, but the kernel removes from such a set
// each element that has nothing to count.
func countChain(of string, index int) string { return of + "-" + strconv.Itoa(index) }

func dscpChain(dscp uint8) string { return chainDSCP + strconv.Itoa(int(dscp)) }

// isControl says whether a chain is one of renderControls, which come and go.
func isControl(o object) bool {
	name := strings.TrimPrefix(o.name, limitsOf)
	return name == chainControls || o.family == inet && (name == chainHostControls || strings.HasPrefix(name, chainDSCP) ||
		strings.HasPrefix(name, mapCountFrom+"-") || strings.HasPrefix(name, mapCountTo+"-"))
}

// renderLimits is what an interface's limits and marks ask for.
func renderLimits(c desired.Controls) (es []element) {
	add := func(set string, to target) {
		es = append(es, element{object{inet, set}, makeElem(native32(uint32(c.Index))), to})
	}
	for _, l := range []struct {
		desired.Limits
		rate, count string
	}{{c.Egress, setRateFrom, mapCountFrom}, {c.Ingress, setRateTo, mapCountTo}} {
		if l.PacketRate != 0 {
			add(l.rate, rateTarget(l.PacketRate, l.PacketBurst))
		}
		if l.Connections != 0 {
			add(l.count, target(countChain(l.count, c.Index)))
		}
	}
	if c.Mark {
		add(mapDSCP, target(dscpChain(c.DSCP)))
	}
	if c.OnPackets() {
		add(setControlled, "")
	}
	return es
}

// renderHostRate limits what an endpoint sends to the host. Twice the rate may
// come at once: a guest that boots says much in little time.
func renderHostRate(i desired.Interface, rate int) []element {
	if rate <= 0 {
		return nil
	}
	key, to := makeElem(native32(uint32(i.Index))), rateTarget(uint32(rate), 2*uint32(rate))
	return []element{{object{inet, setHostRate}, key, to}, {object{arp, setHostRate}, key, to}}
}

// mergeControls replaces what an interface's limits and marks ask for.
func (t *Tables) mergeControls(name string, want *desired.State) {
	if old, ok := t.intent.controls[name]; ok {
		t.release(renderLimits(old))
		delete(t.intent.controls, name)
	}
	if c, ok := want.Controls.Get(name); ok {
		t.intent.controls[name] = c
		t.refer(renderLimits(c))
	}
}

const rateText = "limit rate over %d/second burst %d packets"

func rateTarget(rate, burst uint32) target { return target(fmt.Sprintf(rateText, rate, burst)) }

// What golang.org/x/sys does not have.
const (
	connlimitCount = 1 // NFTA_CONNLIMIT_COUNT
	connlimitFlags = 2
	connlimitOver  = 1 // NFT_CONNLIMIT_F_INV
)

// rated writes what an element does: the match fails unless there are more
// packets than its target says.
func (w *writer) rated(t target) {
	var n, burst uint32
	_, _ = fmt.Sscanf(string(t), rateText, &n, &burst)
	at := w.open(unix.NFTA_SET_ELEM_EXPR)
	w.str(unix.NFTA_EXPR_NAME, "limit")
	in := w.open(unix.NFTA_EXPR_DATA)
	w.rate(rate{n, burst})
	w.u32(unix.NFTA_LIMIT_FLAGS, unix.NFT_LIMIT_F_INV)
	w.close(in)
	w.close(at)
}

// parseRated is the inverse of rated.
func parseRated(attrs []byte) target {
	name := ""
	var a exprAttrs
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			name = attrString(v)
		case unix.NFTA_EXPR_DATA:
			each(v, func(typ uint16, v []byte) {
				if int(typ) < len(a) {
					a[typ] = v
				}
			})
		}
	})
	if name == "limit" && attrUint64(a[unix.NFTA_LIMIT_UNIT]) == 1 && attrUint32(a[unix.NFTA_LIMIT_TYPE]) == unix.NFT_LIMIT_PKTS &&
		attrUint32(a[unix.NFTA_LIMIT_FLAGS]) == unix.NFT_LIMIT_F_INV && attrUint64(a[unix.NFTA_LIMIT_RATE])>>32 == 0 {
		return rateTarget(uint32(attrUint64(a[unix.NFTA_LIMIT_RATE])), attrUint32(a[unix.NFTA_LIMIT_BURST]))
	}
	return otherVerdict
}

// over writes that the rule goes on if there are more connections.
func (w *writer) over(connections uint32) {
	at := w.expr("connlimit")
	w.u32(connlimitCount, connections)
	w.u32(connlimitFlags, connlimitOver)
	w.done(at)
}

// Where DSCP is within the first two bytes of an IP header.
var dscpPlace = map[string]struct {
	keep  []byte
	shift int
}{
	"ip":  {[]byte{0xff, 0x03}, 2},
	"ip6": {[]byte{0xf0, 0x3f}, 6},
}

func (w *writer) dscp(a action) {
	at := dscpPlace[a.name]
	w.load(ipHead, firstReg)
	w.bitwise(at.keep, binary.BigEndian.AppendUint16(nil, uint16(a.dscp)<<at.shift))
	e := w.expr("payload")
	w.u32(unix.NFTA_PAYLOAD_SREG, firstReg)
	w.u32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
	w.u32(unix.NFTA_PAYLOAD_OFFSET, 0)
	w.u32(unix.NFTA_PAYLOAD_LEN, 2)
	if a.name == "ip" {
		w.u32(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_INET)
		w.u32(unix.NFTA_PAYLOAD_CSUM_OFFSET, 10)
	}
	w.done(e)
}

// dscp reads what writer.dscp wrote last.
func (d *decoder) dscp(a *exprAttrs) {
	name := "ip6"
	if attrUint32(a[unix.NFTA_PAYLOAD_CSUM_TYPE]) == unix.NFT_PAYLOAD_CSUM_INET {
		name = "ip"
	}
	value := uint16(0)
	if len(d.xor) == 2 {
		value = binary.BigEndian.Uint16(d.xor) >> dscpPlace[name].shift
	}
	d.action(action{kind: setDSCP, name: name, dscp: uint8(value)})
}
