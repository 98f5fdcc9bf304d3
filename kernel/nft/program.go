package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// maxDepth is how many chains of one program may lead on to each other: the
// kernel nests 16; 4 lead to a program (forward, judge, original, reply), and one
// follows it (denied).
const maxDepth = 11

var (
	errTiers    = errors.New("too many tiers with pass rules: the kernel cannot nest that many chains")
	errPorts    = errors.New("ports need a protocol that has them")
	errNoSet    = errors.New("the selector has no set")
	errFamilies = errors.New("family is neither 0, 4 nor 6")
)

func hash64(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}

// programChain is the name of the chain that a program starts with.
func programChain(id desired.ProgramID) string { return fmt.Sprintf("p-%016x", hash64(string(id))) }

var endOfProgram = carrying{}.end(&desired.Stage{})

// denyAll stands for a program that cannot be expressed.
func denyAll(id desired.ProgramID) []chain {
	return []chain{{object: object{inet, programChain(id)}, rules: []rule{endOfProgram}}}
}

// renderProgram makes the chains of a program. Allow returns to whatever asked,
// Deny drops.
func renderProgram(id desired.ProgramID, p desired.Program, how carrying) ([]chain, error) {
	return programRenderer{first: programChain(id), carrying: how, most: depthOf(p)}.chains(p.Stages)
}

// chains makes the chains of stages.
func (r programRenderer) chains(stages []desired.Stage) ([]chain, error) {
	for _, led := range []bool{true, false} {
		r := r
		r.led, r.buckets = led, map[target]bool{}
		first, err := r.program(stages)
		if led && errors.Is(err, errTiers) {
			continue // buckets take a chain more for each stage
		}
		return append([]chain{first}, r.lists...), err
	}
	return nil, errTiers
}

// programRenderer makes the chains of one program.
type programRenderer struct {
	carrying
	first   string
	trial   bool            // to count only
	sees    view            // of the stage
	led     bool            // connections are led to buckets, where stages have a Dispatch
	most    int             // chains that may lead on to each other
	depth   int             // chains that lead on to each other so far
	lists   []chain         // the buckets
	buckets map[target]bool // that are among them
}

// program makes the chain that a program starts with. Each chain before the
// last leads to the one after it, so the last is made first: all but the first
// are buckets, which programs that end alike share.
func (r *programRenderer) program(stages []desired.Stage) (chain, error) {
	groups := r.groups(stages)
	next := ""
	for g := len(groups) - 1; g >= 0; g-- {
		c := chain{object: object{family: inet}}
		r.depth++
		for i := range groups[g] {
			s := &groups[g][i]
			end, err := r.stage(&c, s, next, g == len(groups)-1 && i == len(groups[g])-1)
			if err != nil {
				return chain{}, err
			}
			if i == len(groups[g])-1 {
				c.rules = append(c.rules, end)
			}
		}
		switch {
		case r.depth > r.most:
			return chain{}, errTiers
		case g == 0:
			c.name = r.first
			return c, nil
		}
		next = string(r.keep(c))
	}
	c := chain{object: object{inet, r.first}}
	if !r.trial {
		c.rules = []rule{endOfProgram}
	}
	return c, nil
}

// groups are the stages that are in one chain each. A stage goes on in the chain
// of the stage before it, unless something has to lead to it. What nothing gets to
// is in none.
func (r *programRenderer) groups(stages []desired.Stage) (groups [][]desired.Stage) {
	onward := true
	for i, s := range stages {
		if !r.led {
			s.Dispatch = nil
		}
		if onward {
			groups = append(groups, nil)
		}
		at := &groups[len(groups)-1]
		*at = append(*at, s)
		onward = slices.ContainsFunc(s.Rules, func(r desired.Rule) bool { return r.Verdict == desired.Next }) ||
			s.End == desired.Next && len(s.Dispatch) > 0
		if i == len(stages)-1 || !onward && s.End != desired.Next {
			break
		}
	}
	return groups
}

// stage adds a stage to a chain, but for its end, which it returns: what the stage
// leaves to the next one goes there or, if that is in the same chain, comes to it.
func (r *programRenderer) stage(cur *chain, s *desired.Stage, next string, last bool) (end rule, err error) {
	end = r.end(s)
	switch {
	case s.End == desired.Next && !last:
		end = when(lead(next))
	case s.End == desired.Allow:
		end = when(action{kind: back})
	}
	r.sees = viewOf(s.View, r.carrying)
	st := &stageRenderer{programRenderer: r, next: next, last: last, end: end, made: map[*desired.List]target{}}
	if len(s.Dispatch) == 0 {
		for i := range s.Rules {
			if err := st.rule(cur, s.Rules[i]); err != nil {
				return end, err
			}
		}
		return end, nil
	}
	return end, st.lists(cur, s)
}

// renderRule makes the rules that together match what r does: one for each
// family, and for each of the sets that a selector is in.
func renderRule(r *desired.Rule, next string, v *view) ([]rule, error) {
	does, err := v.verdict(r, next)
	if err != nil {
		return nil, err
	}
	var rules []rule
	families, err := ruleFamilies(r)
	if err != nil {
		return nil, err
	}
	for _, fam := range families {
		sources, err := renderPeer(&r.Source, fam, v.source, v)
		if err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
		destinations, err := renderPeer(&r.Destination, fam, v.destination, v)
		if err != nil {
			return nil, fmt.Errorf("destination: %w", err)
		}
		rest, err := renderTransport(r, fam, v)
		if err != nil {
			return nil, err
		}
		for _, s := range sources {
			for _, d := range destinations {
				var m []match
				if fam != 0 && (v.packet || len(s)+len(d) == 0) {
					m = append(m, is(nfproto, familyNumber(fam)))
				}
				m = slices.Concat(m, rest, s, d)
				rules = append(rules, rule{matches: m, does: does, comment: comment(r)})
			}
		}
	}
	return rules, nil
}

// comment is a rule's ID and, if there is room for them, its annotations. What
// nft could not read again from its own listing, where a comment is in quotes,
// is left out of these: anybody who may write a policy may write them.
func comment(r *desired.Rule) string {
	id := shorten(r.ID)
	note := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '_'
		}
		return c
	}, r.Note)
	if note == "" || len(id)+1+len(note) > maxComment {
		return id
	}
	return id + " " + note
}

// ruleFamilies are the families to render a rule for: 0 alone if it looks at
// nothing that differs between them.
func ruleFamilies(r *desired.Rule) ([]int, error) {
	plain := func(p *desired.Peer) bool {
		return len(p.Nets) == 0 && len(p.NotNets) == 0 && p.Set == 0 && p.NotSet == 0 && p.Named == 0 && p.NotNamed == 0
	}
	switch r.Family {
	case 4, 6:
		return []int{r.Family}, nil
	case 0:
		icmp := (r.ICMP != nil || r.NotICMP != nil) && r.Protocol == 0
		if plain(&r.Source) && plain(&r.Destination) && !icmp {
			return []int{0}, nil
		}
		return []int{4, 6}, nil
	}
	return nil, fmt.Errorf("%w: %d", errFamilies, r.Family)
}

func familyNumber(fam int) byte {
	if fam == 4 {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// renderPeer gives the alternatives, each a list of matches, of one end of a
// connection in one family. No alternative: nothing of the family matches.
func renderPeer(p *desired.Peer, fam int, at end, v *view) ([][]match, error) {
	if fam == 0 {
		return [][]match{nil}, nil
	}
	f, size := at.addrs[0], 4
	if fam == 6 {
		f, size = at.addrs[1], 16
	}
	address, place := []field{f}, []field{f, v.protocol, at.port}
	var m []match
	if len(p.Nets) > 0 {
		spans := netSpans(p.Nets, fam)
		if len(spans) == 0 {
			return nil, nil
		}
		m = appendNets(m, f, spans, size, false)
	}
	if spans := netSpans(p.NotNets, fam); len(spans) > 0 {
		if everything(spans) {
			return nil, nil
		}
		m = appendNets(m, f, spans, size, true)
	}
	for _, not := range []struct {
		id     desired.SetID
		fields []field
	}{{p.NotSet, address}, {p.NotNamed, place}} {
		notIns, err := setMatches(not.id, fam, not.fields, notIn, v.has)
		if err != nil {
			return nil, err
		}
		m = append(m, notIns...)
	}
	alternatives := [][]match{m}
	for _, one := range []struct {
		id     desired.SetID
		fields []field
	}{{p.Set, address}, {p.Named, place}} {
		if one.id == 0 {
			continue
		}
		ins, err := setMatches(one.id, fam, one.fields, in, v.has)
		if err != nil {
			return nil, err
		}
		var more [][]match
		for _, a := range alternatives {
			for _, i := range ins {
				more = append(more, append(a[:len(a):len(a)], i))
			}
		}
		alternatives = more
	}
	return alternatives, nil
}

// setMatches looks the fields up in the sets of an ID: addresses, or with more
// than one field the places of named ports.
func setMatches(id desired.SetID, fam int, fields []field, o op, has func(desired.SetKey) bool) ([]match, error) {
	if id == 0 {
		return nil, nil
	}
	var ms []match
	for _, ranges := range []bool{false, true} {
		key := desired.SetKey{ID: id, Family: uint8(fam), Ranges: ranges, Ports: len(fields) > 1}
		if has(key) {
			ms = append(ms, match{op: o, fields: fields, set: key.String()})
		} else if !ranges {
			return nil, fmt.Errorf("%w: %s", errNoSet, key)
		}
	}
	return ms, nil
}

// appendNets adds the match of merged ranges, which is cheapest for one prefix.
func appendNets(m []match, f field, spans []span, size int, not bool) []match {
	if everything(spans) {
		return m
	}
	var o op
	if not {
		o = 1
	}
	if len(spans) > 1 {
		return append(m, list(anyOf+o, f, spans))
	}
	bits, ok := prefixBits(spans[0])
	switch {
	case !ok:
		return append(m, match{op: within + o, fields: []field{f}, ranges: spans})
	case bits%8 == 0:
		return append(m, match{op: equal + o, fields: []field{f}, value: spans[0].from[:bits/8]})
	default:
		return append(m, match{op: equal + o, fields: []field{f}, value: spans[0].from, mask: maskBytes(bits, size)})
	}
}

// renderTransport matches protocol, ports and ICMP type of the connection.
func renderTransport(r *desired.Rule, fam int, v *view) ([]match, error) {
	var m []match
	proto := r.Protocol
	if proto == 0 && (r.ICMP != nil || r.NotICMP != nil) {
		proto = unix.IPPROTO_ICMP
		if fam == 6 {
			proto = unix.IPPROTO_ICMPV6
		}
	}
	s, d := &r.Source, &r.Destination
	named := s.NotNamed != 0 || d.NotNamed != 0 // what is named has ports, what is not may have none
	ported := named || len(s.Ports)+len(s.NotPorts)+len(d.Ports)+len(d.NotPorts) > 0
	switch {
	case proto != 0 && ported && !hasPorts(proto):
		return nil, fmt.Errorf("%w: protocol %d", errPorts, proto)
	case proto != 0:
		m = append(m, is(v.protocol, proto))
	case ported:
		m = append(m, list(anyOf, v.protocol, portProtocols()))
	}
	if r.NotProtocol != 0 {
		m = append(m, match{op: notEqual, fields: []field{v.protocol}, value: []byte{r.NotProtocol}})
	}
	if r.ICMP != nil {
		m = append(m, match{op: equal, fields: []field{v.icmp}, value: icmpValue(r.ICMP)})
	}
	if r.NotICMP != nil {
		m = append(m, match{op: notEqual, fields: []field{v.icmp}, value: icmpValue(r.NotICMP)})
	}
	m = appendPorts(m, v.source.port, s.Ports, false)
	m = appendPorts(m, v.source.port, s.NotPorts, true)
	m = appendPorts(m, v.destination.port, d.Ports, false)
	return appendPorts(m, v.destination.port, d.NotPorts, true), nil
}

// portedProtocols, ascending: TCP, UDP, DCCP, SCTP, UDP-Lite.
var portedProtocols = []uint8{6, 17, 33, 132, 136}

func hasPorts(proto uint8) bool { return slices.Contains(portedProtocols, proto) }

func portProtocols() []span {
	var spans []span
	for _, p := range portedProtocols {
		spans = append(spans, span{[]byte{p}, []byte{p}})
	}
	return spans
}

func icmpValue(i *desired.ICMP) []byte {
	if i.Code < 0 {
		return []byte{i.Type}
	}
	return []byte{i.Type, uint8(i.Code)}
}

func appendPorts(m []match, f field, ports []desired.PortRange, not bool) []match {
	if len(ports) == 0 {
		return m
	}
	var o op
	if not {
		o = 1
	}
	spans := make([]span, 0, len(ports))
	for _, p := range ports {
		if p.Min <= p.Max {
			spans = append(spans, span{binary.BigEndian.AppendUint16(nil, p.Min), binary.BigEndian.AppendUint16(nil, p.Max)})
		}
	}
	spans = mergeSpans(spans)
	switch {
	case len(spans) == 1 && bytes.Equal(spans[0].from, spans[0].to):
		return append(m, match{op: equal + o, fields: []field{f}, value: spans[0].from})
	case len(spans) == 1:
		return append(m, match{op: within + o, fields: []field{f}, ranges: spans})
	default:
		return append(m, list(anyOf+o, f, spans))
	}
}

// netSpans are the prefixes of one family, as disjoint ranges in order that do
// not touch.
func netSpans(nets []netip.Prefix, fam int) []span {
	var spans []span
	for _, n := range nets {
		n = n.Masked()
		if n.IsValid() && n.Addr().Is4() == (fam == 4) {
			spans = append(spans, span{n.Addr().AsSlice(), lastAddr(n)})
		}
	}
	return mergeSpans(spans)
}

func mergeSpans(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.from, b.from) })
	out := spans[:0]
	for _, s := range spans {
		if len(out) == 0 {
			out = append(out, s)
			continue
		}
		last := &out[len(out)-1]
		after, more := increment(last.to)
		if more && bytes.Compare(s.from, after) > 0 {
			out = append(out, s)
		} else if bytes.Compare(s.to, last.to) > 0 {
			last.to = s.to
		}
	}
	return out
}

// everything says that the ranges leave nothing out.
func everything(spans []span) bool {
	if len(spans) != 1 {
		return false
	}
	bits, ok := prefixBits(spans[0])
	return ok && bits == 0
}

// prefixBits is the length of the prefix that is exactly the range, if any.
func prefixBits(s span) (int, bool) {
	bits, ended := 0, false
	for i := range s.from {
		for b := 7; b >= 0; b-- {
			from, to := s.from[i]>>b&1, s.to[i]>>b&1
			switch {
			case !ended && from == to:
				bits++
			case from == 0 && to == 1:
				ended = true
			default:
				return 0, false
			}
		}
	}
	return bits, true
}

// increment is the number after b, and whether there is one.
func increment(b []byte) ([]byte, bool) {
	n := bytes.Clone(b)
	for i := len(n) - 1; i >= 0; i-- {
		n[i]++
		if n[i] != 0 {
			return n, true
		}
	}
	return n, false
}

func maskBytes(bits, size int) []byte {
	m := make([]byte, size)
	for i := range m {
		switch {
		case bits >= 8*(i+1):
			m[i] = 0xff
		case bits > 8*i:
			m[i] = 0xff << (8 - (bits - 8*i))
		}
	}
	return m
}

func prefixBytes(p netip.Prefix) []byte { return p.Masked().Addr().AsSlice() }

func lastAddr(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i, m := range maskBytes(p.Bits(), len(b)) {
		b[i] |= ^m
	}
	return b
}
