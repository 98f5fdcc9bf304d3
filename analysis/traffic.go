package analysis

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/space"
)

// Protocols of ICMP.
const (
	protoICMP   = 1
	protoICMPv6 = 58
)

// portProtocols have ports, and names for messages.
var portProtocols = []uint8{6, 17, 132, 33, 136}

var protocolNames = map[uint8]string{6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 136: "udplite", protoICMP: "icmp", protoICMPv6: "icmpv6"}

// traffic is what a rule matches in a family, whatever the addresses; of ports
// that have names, all.
func (u *universe) traffic(r *api.Rule, version int) space.Set {
	s := u.space
	if r.Never || r.IPVersion != 0 && r.IPVersion != version {
		return s.None()
	}
	set := s.All()
	if !r.Protocol.IsZero() {
		set = u.protocol(r.Protocol.Number, version)
	}
	if !r.NotProtocol.IsZero() {
		set = set.Minus(s.Proto(r.NotProtocol.Number))
	}
	if r.ICMP != nil {
		set = set.And(u.icmp(r.ICMP))
	}
	if r.NotICMP != nil {
		set = set.Minus(u.icmp(r.NotICMP))
	}
	for _, end := range []struct {
		e *api.EntityRule
		f space.Field
	}{{&r.Source, space.SrcPort}, {&r.Destination, space.DstPort}} {
		if !slices.ContainsFunc(slices.Concat(end.e.Ports, end.e.NotPorts), func(p api.Port) bool { return p.Name != "" }) {
			set = set.And(u.ports(end.e, end.f, func([]api.Port) space.Set { return s.None() }))
		}
	}
	return set
}

// protocol is a protocol in a family. ICMP is of IPv4, ICMPv6 of IPv6; 0 is
// one that could not be read.
func (u *universe) protocol(number uint8, version int) space.Set {
	if number == 0 || number == protoICMP && version != 4 || number == protoICMPv6 && version != 6 {
		return u.space.None()
	}
	return u.space.Proto(number)
}

func (u *universe) icmp(m *api.ICMP) space.Set {
	set := u.space.Proto(protoICMP, protoICMPv6)
	for _, want := range []struct {
		f     space.Field
		value *int
	}{{space.ICMPType, m.Type}, {space.ICMPCode, m.Code}} {
		switch {
		case want.value == nil:
		case *want.value < 0 || *want.value > 255:
			return u.space.None()
		default:
			set = set.And(u.space.ICMP(want.f, uint8(*want.value)))
		}
	}
	return set
}

// ports is the traffic whose port at an end is one that a rule means there.
func (u *universe) ports(e *api.EntityRule, f space.Field, named func([]api.Port) space.Set) space.Set {
	if len(e.Ports) == 0 && len(e.NotPorts) == 0 {
		return u.space.All()
	}
	union := func(list []api.Port) space.Set {
		set := named(list)
		for _, p := range list {
			if p.Name == "" && p.Bad == "" {
				set = set.Or(u.space.Ports(f, p.Min, max(p.Min, p.Max)))
			}
		}
		return set
	}
	set := u.space.HasPorts()
	if len(e.Ports) > 0 {
		set = set.And(union(e.Ports))
	}
	return set.Minus(union(e.NotPorts))
}

// cuts are where rules cut protocols, ports, types and codes: between two of
// them, all are alike.
type cuts struct {
	protocols map[uint8]bool
	values    map[space.Field]map[int]bool // the first value of each part
}

func newCuts() cuts {
	c := cuts{map[uint8]bool{}, map[space.Field]map[int]bool{}}
	for p := range protocolNames {
		c.protocols[p] = true
	}
	for _, f := range []space.Field{space.SrcPort, space.DstPort, space.ICMPType, space.ICMPCode} {
		c.values[f] = map[int]bool{0: true}
	}
	return c
}

func (c cuts) at(f space.Field, low, high int) { c.values[f][low], c.values[f][high+1] = true, true }

func (c cuts) rule(r *api.Rule) {
	c.protocols[r.Protocol.Number], c.protocols[r.NotProtocol.Number] = true, true
	for _, m := range []*api.ICMP{r.ICMP, r.NotICMP} {
		if m != nil && m.Type != nil {
			c.at(space.ICMPType, *m.Type, *m.Type)
		}
		if m != nil && m.Code != nil {
			c.at(space.ICMPCode, *m.Code, *m.Code)
		}
	}
	for f, e := range map[space.Field]*api.EntityRule{space.SrcPort: &r.Source, space.DstPort: &r.Destination} {
		for _, p := range slices.Concat(e.Ports, e.NotPorts) {
			if p.Name == "" {
				c.at(f, int(p.Min), int(max(p.Min, p.Max)))
			}
		}
	}
}

func (c cuts) names(ports []api.NamedPort) {
	for _, p := range ports {
		c.at(space.SrcPort, int(p.Port), int(p.Port))
		c.at(space.DstPort, int(p.Port), int(p.Port))
	}
}

// part is the values of a field from low to high.
type part struct{ low, high int }

// parts returns the parts of a field, whose greatest value is most.
func (c cuts) parts(f space.Field, most int) []part {
	var list []part
	starts := slices.DeleteFunc(slices.Sorted(maps.Keys(c.values[f])), func(v int) bool { return v < 0 || v > most })
	for i, low := range starts {
		high := most
		if i+1 < len(starts) {
			high = starts[i+1] - 1
		}
		list = append(list, part{low, high})
	}
	return list
}

// describe puts traffic into words, one for each protocol; what has all the
// protocols that nothing is said of is what it is not.
func (u *universe) describe(set space.Set) []string {
	if set.IsAll() {
		return []string{"all"}
	}
	protocols := slices.SortedFunc(maps.Keys(u.cuts.protocols), func(a, b uint8) int { return slices.Index(order, a) - slices.Index(order, b) })
	if rest := u.space.Proto(protocols...).Not(); !set.And(rest).IsEmpty() {
		return append([]string{"all but"}, u.describe(set.Not())...)
	}
	var words []string
	for _, p := range protocols {
		one := u.space.Proto(p)
		x := set.And(one)
		name := protocolNames[p]
		if name == "" {
			name = strconv.Itoa(int(p))
		}
		switch {
		case x.IsEmpty():
		case x.Equal(one):
			words = append(words, name)
		case slices.Contains(portProtocols, p):
			words = append(words, u.fields(name, x, one, fieldPair{space.DstPort, space.SrcPort, 65535, " from "})...)
		default:
			words = append(words, u.fields(name, x, one, fieldPair{space.ICMPType, space.ICMPCode, 255, "/"})...)
		}
	}
	return words
}

// order is that of protocols in words: those with names first.
var order = func() []uint8 {
	list := slices.Concat(portProtocols, []uint8{protoICMP, protoICMPv6})
	for p := range 256 {
		if !slices.Contains(list, uint8(p)) {
			list = append(list, uint8(p))
		}
	}
	return list
}()

// fieldPair is two fields of a protocol: the one that is said first, and the
// one that is said only where not all of it is meant.
type fieldPair struct {
	first, second space.Field
	most          int
	between       string
}

// fields puts a set of one protocol into words.
func (u *universe) fields(name string, set, protocol space.Set, f fieldPair) []string {
	bySecond := map[string][]part{} // "" is all
	for _, p := range u.cuts.parts(f.first, f.most) {
		slice := u.within(f.first, p).And(protocol)
		x := set.And(slice)
		if x.IsEmpty() {
			continue
		}
		second := ""
		if !x.Equal(slice) {
			var list []part
			for _, q := range u.cuts.parts(f.second, f.most) {
				if !x.And(u.within(f.second, q)).IsEmpty() {
					list = append(list, q)
				}
			}
			second = f.between + joined(list)
		}
		bySecond[second] = append(bySecond[second], p)
	}
	var words []string
	for _, second := range slices.Sorted(maps.Keys(bySecond)) {
		words = append(words, name+"/"+joined(bySecond[second])+second)
	}
	return words
}

func (u *universe) within(f space.Field, p part) space.Set {
	return u.space.Range(f, []byte{byte(p.low >> 8), byte(p.low)}, []byte{byte(p.high >> 8), byte(p.high)})
}

// joined prints parts, those that touch as one.
func joined(list []part) string {
	var whole []part
	for _, p := range list {
		if n := len(whole); n > 0 && whole[n-1].high+1 == p.low {
			whole[n-1].high = p.high
		} else {
			whole = append(whole, p)
		}
	}
	var words []string
	for _, p := range whole {
		if p.low == p.high {
			words = append(words, strconv.Itoa(p.low))
		} else {
			words = append(words, fmt.Sprintf("%d-%d", p.low, p.high))
		}
	}
	return strings.Join(words, ",")
}
