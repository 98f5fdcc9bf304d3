package compile

import (
	"encoding/binary"
	"slices"

	"tortie/desired"
)

// mostListed is how many rules a connection may be compared with one after the
// other; for more it is led to those that can match it.
const mostListed = 8

// mostRepeated is in how many lists a rule may be, on average. Many rules that
// match every port, beside many that match few, would fill the kernel; they are
// compared one after the other.
const mostRepeated = 64

// dispatched are the protocols whose connections are led by port: TCP, UDP,
// DCCP, SCTP and UDP-Lite.
var dispatched = []uint8{6, 17, 33, 132, 136}

// dispatch finds, for each protocol of which many rules can match, the rules
// that can match each port. A rule that has the conditions of an earlier one,
// protocol and port aside, cannot be reached and is left out.
func dispatch(rules []desired.Rule) []desired.Dispatch {
	var out []desired.Dispatch
	if len(rules) <= mostListed {
		return nil
	}
	conditions := intern(rules)
	for _, proto := range dispatched {
		var can []int
		named := false // one that no rule names is not worth the kernel's room
		for i := range rules {
			if canMatch(&rules[i], proto) {
				can = append(can, i)
				named = named || rules[i].Protocol == proto
			}
		}
		if named && len(can) > mostListed {
			if d := byPort(rules, conditions, can, proto); listed(d) <= mostRepeated*len(can) {
				out = append(out, d)
			}
		}
	}
	return out
}

// listed is how many rules there are in all lists.
func listed(d desired.Dispatch) (n int) {
	for _, l := range d.Lists {
		n += len(l)
	}
	return n
}

// canMatch says whether a connection of a protocol that has ports can match.
func canMatch(r *desired.Rule, proto uint8) bool {
	return (r.Protocol == 0 || r.Protocol == proto) && r.NotProtocol != proto && r.ICMP == nil && r.NotICMP == nil
}

// intern numbers the conditions that are left of each rule when protocol and
// destination port are known.
func intern(rules []desired.Rule) []int {
	numbers := map[string]int{}
	out := make([]int, len(rules))
	var key []byte
	for i := range rules {
		r := &rules[i]
		key = append(key[:0], byte(r.Family))
		key = appendPeer(key, &r.Source)
		key = appendRanges(appendRanges(key, r.Source.Ports), r.Source.NotPorts)
		key = appendPeer(key, &r.Destination)
		for _, id := range []desired.SetID{r.Source.Named, r.Source.NotNamed, r.Destination.Named, r.Destination.NotNamed} {
			key = binary.BigEndian.AppendUint64(key, uint64(id))
		}
		n, ok := numbers[string(key)]
		if !ok {
			n = len(numbers)
			numbers[string(key)] = n
		}
		out[i] = n
	}
	return out
}

// appendPeer writes all conditions of one end but those on ports.
func appendPeer(b []byte, p *desired.Peer) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.Set))
	b = binary.BigEndian.AppendUint64(b, uint64(p.NotSet))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.Nets)))
	for _, n := range slices.Concat(p.Nets, p.NotNets) {
		a := n.Addr().As16()
		b = append(append(b, a[:]...), byte(n.Bits()))
	}
	return binary.BigEndian.AppendUint32(b, uint32(len(p.NotNets)))
}

func appendRanges(b []byte, ranges []desired.PortRange) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(ranges)))
	for _, r := range ranges {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, r.Min), r.Max)
	}
	return b
}

// interval is what becomes of the ports from one start to the next.
type interval struct {
	rules  []int
	seen   []uint64 // conditions of the rules that decide, as bits
	closed fams     // of which all connections are decided
}

func byPort(rules []desired.Rule, conditions, can []int, proto uint8) desired.Dispatch {
	starts := starts(rules, can)
	intervals := make([]interval, len(starts))
	words := slices.Max(conditions)/64 + 1
	seen := make([]uint64, words*len(starts))
	for i := range intervals {
		intervals[i].seen = seen[i*words : (i+1)*words]
	}
	for _, i := range can {
		r := &rules[i]
		ranges := r.Destination.Ports
		if len(ranges) == 0 {
			ranges = []desired.PortRange{{Min: 0, Max: 65535}}
		}
		for _, p := range ranges {
			at, _ := slices.BinarySearch(starts, p.Min)
			for ; at < len(starts) && starts[at] <= p.Max; at++ {
				if !within(starts[at], r.Destination.NotPorts) {
					intervals[at].add(i, r, conditions[i])
				}
			}
		}
	}
	d := desired.Dispatch{Protocol: proto}
	for i, start := range starts {
		if n := len(d.Lists); n > 0 && slices.Equal(d.Lists[n-1], intervals[i].rules) {
			continue
		}
		d.Starts = append(d.Starts, start)
		d.Lists = append(d.Lists, intervals[i].rules)
	}
	return d
}

// starts are the ports at which what can match changes: no range of a rule
// begins or ends between two of them.
func starts(rules []desired.Rule, can []int) []uint16 {
	out := []uint16{0}
	for _, i := range can {
		d := &rules[i].Destination
		for _, p := range slices.Concat(d.Ports, d.NotPorts) {
			out = append(out, p.Min)
			if p.Max < 65535 {
				out = append(out, p.Max+1)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func within(port uint16, ranges []desired.PortRange) bool {
	return slices.ContainsFunc(ranges, func(r desired.PortRange) bool { return r.Min <= port && port <= r.Max })
}

// add takes rule i, unless no connection can reach it.
func (v *interval) add(i int, r *desired.Rule, condition int) {
	word, bit := condition/64, uint64(1)<<(condition%64)
	if famsOf(r)&^v.closed == 0 || v.seen[word]&bit != 0 {
		return
	}
	v.rules = append(v.rules, i)
	if r.Verdict == desired.Log {
		return
	}
	v.seen[word] |= bit
	if bare := (desired.Rule{Source: r.Source, Destination: r.Destination}); anyButPorts(&bare) {
		v.closed |= famsOf(r)
	}
}

// anyButPorts says that a rule has no conditions but on the destination port.
func anyButPorts(r *desired.Rule) bool {
	r.Destination.Ports, r.Destination.NotPorts = nil, nil
	return anyPeer(&r.Source) && anyPeer(&r.Destination)
}
