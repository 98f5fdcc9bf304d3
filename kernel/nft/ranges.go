package nft

import (
	"net/netip"
	"slices"

	"tortie/desired"
)

// Ranges that endpoints have, and sources that they may use besides, are looked
// up where all that is exact was: who has none pays nothing for those of
// others. An address in a range that another endpoint of this host has is that
// one's; to a source that an endpoint may use besides this does not matter.
const (
	setRange4   = "range4" // ranges of endpoints, and their interface indexes
	setRange6   = "range6"
	setOther4   = "other-source4" // what they may use besides
	setOther6   = "other-source6"
	setARPRange = "range" // in the arp table: both
	setMACRange = "mac-range"
)

var rangeSets = []set{
	{object: object{inet, setRange4}, key: []keyPart{typeIP4, typeIndex}, interval: true},
	{object: object{inet, setRange6}, key: []keyPart{typeIP6, typeIndex}, interval: true},
	{object: object{inet, setOther4}, key: []keyPart{typeIP4, typeIndex}, interval: true},
	{object: object{inet, setOther6}, key: []keyPart{typeIP6, typeIndex}, interval: true},
	{object: object{arp, setARPRange}, key: []keyPart{typeIP4, typeIndex}, interval: true},
	{object: object{arp, setMACRange}, key: []keyPart{typeIP4, typeIndex, typeMAC, typeMAC}, interval: true},
}

// ranges is what the chains that all endpoints share depend on.
type ranges struct {
	own    bool           // endpoints have ranges
	others bool           // endpoints may use other sources
	nets   []netip.Prefix // the ranges
}

// renderSources is what an endpoint may send from that is not exact. A
// link-local address is never in a range: it says nothing of who sends.
func (r *ranges) renderSources() []rule {
	var rules []rule
	pass := action{kind: accept}
	if r.own || r.others {
		rules = append(rules, rule{matches: []match{ipv6, linkLocal}, does: counted(counterSpoofed)})
	}
	if r.others {
		rules = append(rules,
			when(pass, ipv4, member(setOther4, ip4Source, inIndex)),
			when(pass, ipv6, member(setOther6, ip6Source, inIndex)))
	}
	if r.own {
		rules = append(rules,
			rule{matches: []match{ipv4, member(setLocal4, ip4Source)}, does: counted(counterSpoofed)},
			rule{matches: []match{ipv6, member(setLocal6, ip6Source)}, does: counted(counterSpoofed)},
			when(pass, ipv4, member(setRange4, ip4Source, inIndex)),
			when(pass, ipv6, member(setRange6, ip6Source, inIndex)))
	}
	return rules
}

// renderHome is as renderSettle, for ranges.
func (r *ranges) renderHome(pass action) []rule {
	if !r.own {
		return nil
	}
	rules := []rule{
		when(lead(chainMark), ipv4, member(setRange4, ip4Destination, outIndex)),
		when(lead(chainMark), ipv6, member(setRange6, ip6Destination, outIndex)),
	}
	for f, size := range []int{4, 16} {
		if spans := netSpans(r.nets, 4+2*f); len(spans) > 0 {
			rules = append(rules, when(pass, appendNets([]match{familyIs[f]}, destinations[f], spans, size, false)...))
		}
	}
	return rules
}

func (r *ranges) renderARP(b *base) []rule {
	var rules []rule
	if b.fixedMAC && (r.own || r.others) {
		rules = append(rules, when(action{kind: accept}, member(setMACRange, arpSenderIP, inIndex, etherSource, arpSenderMAC)))
	}
	if b.anyMAC && (r.own || r.others) {
		rules = append(rules, when(action{kind: accept}, member(setARPRange, arpSenderIP, inIndex)))
	}
	return rules
}

// renderRanges are the elements of one endpoint's ranges.
func renderRanges(i desired.Interface) []element {
	var es []element
	index, mac := native32(uint32(i.Index)), append(i.MAC[:], 0, 0)
	add := func(o object, p netip.Prefix, parts ...[]byte) {
		es = append(es, element{set: o, key: makeRange(p, parts...)})
	}
	for _, l := range []struct {
		nets []netip.Prefix
		sets [2]string
	}{{i.Ranges, [2]string{setRange4, setRange6}}, {i.Spoofed, [2]string{setOther4, setOther6}}} {
		for _, p := range cover(l.nets) {
			if p.Addr().Is4() {
				add(object{inet, l.sets[0]}, p, index)
			} else {
				add(object{inet, l.sets[1]}, p, index)
			}
		}
	}
	for _, p := range cover(slices.Concat(i.Ranges, i.Spoofed)) {
		switch {
		case !p.Addr().Is4():
		case i.HasMAC:
			add(object{arp, setMACRange}, p, index, mac, mac)
		default:
			add(object{arp, setARPRange}, p, index)
		}
	}
	return es
}

// cover leaves out what is in another: the kernel refuses a range in a range.
func cover(nets []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range nets {
		if !slices.ContainsFunc(nets, func(q netip.Prefix) bool { return q.Bits() < p.Bits() && q.Contains(p.Addr()) }) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// makeRange is an element of a set of ranges of several parts, the first of
// which is an address or a prefix.
func makeRange(p netip.Prefix, parts ...[]byte) elem {
	e := makeElem(slices.Insert(parts, 0, p.Addr().AsSlice())...)
	if !p.IsSingleIP() {
		e.bits = uint8(p.Bits()) + 1
	}
	return e
}

// countRanges keeps track of the ranges of all interfaces.
func (t *Tables) countRanges(i desired.Interface, by int) {
	t.intent.others += by * min(1, len(i.Spoofed))
	for _, p := range i.Ranges {
		before := t.intent.ranges[p]
		if t.intent.ranges[p] = before + by; before+by == 0 {
			delete(t.intent.ranges, p)
		}
		if before == 0 || before+by == 0 {
			t.todo.base = true
		}
	}
}

// allRanges is what the desired state asks of the chains that all share.
func (i *intent) allRanges() ranges {
	r := ranges{own: len(i.ranges) > 0, others: i.others > 0}
	for p := range i.ranges {
		r.nets = append(r.nets, p)
	}
	return r
}
