package nft

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Limits and marks are applied to what policy has allowed: their base chains
// come after those of policy, and are there only while an endpoint asks for
// them. They see every packet, also those of connections that policy knows. An
// endpoint is one element: its limit is in the element itself.
const (
	chainControls     = "controls"         // forwarded packets
	chainHostControls = "controls-to-host" // packets to the host itself
	chainARPControls  = "controls"         // in the arp table
	chainDSCP         = "dscp-"            // and the code point: sets it
	limitsOf          = "limits-"          // and the name of a base chain: what it leads to

	setRateFrom  = "rate-from" // packets that an interface sends
	setRateTo    = "rate-to"   // that are sent to it
	setCountFrom = "connections-from"
	setCountTo   = "connections-to"
	mapDSCP      = "dscp-from"
	setHostRate  = "host-rate" // packets to the host that cost it most; in both tables

	counterRate     = "over-packet-rate"
	counterCount    = "over-connections"
	counterHostRate = "over-host-rate"
)

// controlsPriority is after that of the chains of policy.
const controlsPriority = 1

// statement is what each element of a set does when it is matched: the match
// fails unless the limit is exceeded.
type statement uint8

const (
	nothing    statement = iota
	rateOver             // packets a second
	countsOver           // connections at a time
)

var controlSets = []set{
	{object: object{inet, setRateFrom}, key: []keyPart{typeIndex}, each: rateOver},
	{object: object{inet, setRateTo}, key: []keyPart{typeIndex}, each: rateOver},
	{object: object{inet, setCountFrom}, key: []keyPart{typeIndex}, each: countsOver},
	{object: object{inet, setCountTo}, key: []keyPart{typeIndex}, each: countsOver},
	{object: object{inet, mapDSCP}, key: []keyPart{typeIndex}, verdicts: true},
	{object: object{inet, setHostRate}, key: []keyPart{typeIndex}, each: rateOver},
	{object: object{arp, setHostRate}, key: []keyPart{typeIndex}, each: rateOver},
}

var controlCounters = []object{
	{inet, counterRate}, {inet, counterCount}, {inet, counterHostRate}, {arp, counterHostRate},
}

// controls says which of the rules are needed.
type controls struct {
	rateFrom, rateTo, countFrom, countTo bool
	dscp                                 uint64 // bit n: code point n
	hostRate                             bool
}

var everyControl = controls{true, true, true, true, 1, true}

func (t *Tables) controls() (c controls) {
	has := func(set string) bool { return len(t.intent.elems[object{inet, set}]) > 0 }
	c = controls{has(setRateFrom), has(setRateTo), has(setCountFrom), has(setCountTo), 0, t.opts.HostRate > 0}
	for _, v := range t.intent.controls {
		if v.Mark {
			c.dscp |= 1 << v.DSCP
		}
	}
	return c
}

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
	over := func(set string, f field) rule {
		return rule{matches: []match{member(set, f)}, does: counted(counterRate)}
	}
	crowded := func(set string, f field) rule {
		return rule{matches: []match{isTCP, isNew, member(set, f)}, does: []action{{kind: count, name: counterCount}, {kind: reset}}}
	}
	var both, host, asks []rule
	add := func(is bool, to *[]rule, r ...rule) {
		if is {
			*to = append(*to, r...)
		}
	}
	add(c.rateFrom, &both, over(setRateFrom, inIndex))
	add(c.rateTo, &both, over(setRateTo, outIndex))
	add(c.countFrom, &both, crowded(setCountFrom, inIndex))
	add(c.countTo, &both, crowded(setCountTo, outIndex))
	add(c.dscp != 0, &both, when(action{kind: lookup, field: inIndex, name: mapDSCP}))
	add(c.rateFrom, &host, over(setRateFrom, inIndex))
	add(c.countFrom, &host, crowded(setCountFrom, inIndex))
	limited := member(setHostRate, inIndex)
	add(c.hostRate, &host,
		rule{matches: []match{costlyProtocols, limited}, does: counted(counterHostRate)},
		rule{matches: []match{isUDP, costlyPorts, limited}, does: counted(counterHostRate)})
	add(c.hostRate, &asks, rule{matches: []match{limited}, does: counted(counterHostRate)})
	base := func(o object, num uint32, rules []rule) {
		if len(rules) > 0 {
			chains = append(chains,
				chain{o, &hook{num, controlsPriority}, []rule{when(lead(limitsOf + o.name))}},
				chain{object{o.family, limitsOf + o.name}, nil, rules})
		}
	}
	base(object{inet, chainControls}, unix.NF_INET_FORWARD, both)
	base(object{inet, chainHostControls}, unix.NF_INET_LOCAL_IN, host)
	base(object{arp, chainARPControls}, 0, asks)
	for dscp := range uint8(64) {
		if c.dscp&(1<<dscp) != 0 {
			chains = append(chains, chain{object{inet, dscpChain(dscp)}, nil, []rule{
				when(action{kind: setDSCP, name: "ip", dscp: dscp}, ipv4),
				when(action{kind: setDSCP, name: "ip6", dscp: dscp}, ipv6),
			}})
		}
	}
	return chains
}

func dscpChain(dscp uint8) string { return chainDSCP + strconv.Itoa(int(dscp)) }

// isControl says whether a chain is one of renderControls, which come and go.
func isControl(o object) bool {
	name := strings.TrimPrefix(o.name, limitsOf)
	return name == chainControls || o.family == inet && (name == chainHostControls || strings.HasPrefix(name, chainDSCP))
}

// renderLimits is what an interface's limits and marks ask for.
func renderLimits(c desired.Controls) (es []element) {
	add := func(set string, to target) {
		es = append(es, element{object{inet, set}, makeElem(native32(uint32(c.Index))), to})
	}
	for _, l := range []struct {
		desired.Limits
		rate, count string
	}{{c.Egress, setRateFrom, setCountFrom}, {c.Ingress, setRateTo, setCountTo}} {
		if l.PacketRate != 0 {
			add(l.rate, rateTarget(l.PacketRate, l.PacketBurst))
		}
		if l.Connections != 0 {
			add(l.count, countTarget(l.Connections))
		}
	}
	if c.Mark {
		add(mapDSCP, target(dscpChain(c.DSCP)))
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

const (
	rateText  = "limit rate over %d/second burst %d packets"
	countText = "ct count over %d"
)

func rateTarget(rate, burst uint32) target { return target(fmt.Sprintf(rateText, rate, burst)) }

func countTarget(n uint32) target { return target(fmt.Sprintf(countText, n)) }

// What golang.org/x/sys does not have.
const (
	connlimitCount = 1 // NFTA_CONNLIMIT_COUNT
	connlimitFlags = 2
	connlimitOver  = 1 // NFT_CONNLIMIT_F_INV
)

// statement writes what an element does.
func (w *writer) statement(kind statement, t target) {
	at := w.open(unix.NFTA_SET_ELEM_EXPR)
	var n, burst uint32
	if kind == rateOver {
		_, _ = fmt.Sscanf(string(t), rateText, &n, &burst)
		w.str(unix.NFTA_EXPR_NAME, "limit")
		in := w.open(unix.NFTA_EXPR_DATA)
		w.u64(unix.NFTA_LIMIT_RATE, uint64(n))
		w.u64(unix.NFTA_LIMIT_UNIT, 1)
		w.u32(unix.NFTA_LIMIT_BURST, burst)
		w.u32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
		w.u32(unix.NFTA_LIMIT_FLAGS, unix.NFT_LIMIT_F_INV)
		w.close(in)
	} else {
		_, _ = fmt.Sscanf(string(t), countText, &n)
		w.str(unix.NFTA_EXPR_NAME, "connlimit")
		in := w.open(unix.NFTA_EXPR_DATA)
		w.u32(connlimitCount, n)
		w.u32(connlimitFlags, connlimitOver)
		w.close(in)
	}
	w.close(at)
}

// parseStatement is the inverse of statement.
func parseStatement(attrs []byte) target {
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
	switch {
	case name == "limit" && attrUint64(a[unix.NFTA_LIMIT_UNIT]) == 1 && attrUint32(a[unix.NFTA_LIMIT_TYPE]) == unix.NFT_LIMIT_PKTS &&
		attrUint32(a[unix.NFTA_LIMIT_FLAGS]) == unix.NFT_LIMIT_F_INV && attrUint64(a[unix.NFTA_LIMIT_RATE])>>32 == 0:
		return rateTarget(uint32(attrUint64(a[unix.NFTA_LIMIT_RATE])), attrUint32(a[unix.NFTA_LIMIT_BURST]))
	case name == "connlimit" && attrUint32(a[connlimitFlags]) == connlimitOver:
		return countTarget(attrUint32(a[connlimitCount]))
	}
	return otherVerdict
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
