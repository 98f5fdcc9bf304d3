package desired

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/table"
)

// WriteText writes the state as text: one line an object, the rules of a
// program and the members of a set below it, everything sorted, so that equal
// states give equal text. Sets are in the order of their selectors.
func (s *State) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, k := range sortedFunc(s.Endpoints, api.Key.Compare) {
		v, _ := s.Endpoints.Get(k)
		line(b, "endpoint "+k.String(), v.String())
	}
	for _, k := range sortedFunc(s.Interfaces, strings.Compare) {
		v, _ := s.Interfaces.Get(k)
		line(b, "interface "+k, v.String())
	}
	for _, k := range sortedFunc(s.Controls, strings.Compare) {
		v, _ := s.Controls.Get(k)
		line(b, "controls "+k, v.String())
	}
	for _, k := range sortedFunc(s.Hosts, strings.Compare) {
		v, _ := s.Hosts.Get(k)
		line(b, "host "+k, v.text())
	}
	for _, k := range sortedFunc(s.Programs, cmp.Compare[ProgramID]) {
		v, _ := s.Programs.Get(k)
		line(b, "program "+string(k), "")
		writeProgram(b, v)
	}
	s.writeSets(b)
	routes := sortedFunc(s.Routes, func(a, b RouteKey) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), a.Metric-b.Metric)
	})
	for _, k := range routes {
		v, _ := s.Routes.Get(k)
		line(b, fmt.Sprintf("route %s metric=%d", k.Prefix, k.Metric), fmt.Sprintf("dev=%s index=%d", v.Interface, v.Index))
	}
	for _, k := range sortedFunc(s.Neighbours, compareNeighbours) {
		v, _ := s.Neighbours.Get(k)
		if k.Proxy {
			line(b, "neighbour "+k.Interface, k.Addr.String()+" proxy", fmt.Sprintf("index=%d", v.Index))
			continue
		}
		line(b, "neighbour "+k.Interface, k.Addr.String(), fmt.Sprintf("mac=%s index=%d", net.HardwareAddr(v.MAC[:]), v.Index))
	}
	for _, k := range sortedFunc(s.Gateways, netip.Addr.Compare) {
		line(b, "gateway "+k.String())
	}
	s.writeNAT(b)
	return b.Flush()
}

func (s *State) writeNAT(b *bufio.Writer) {
	for _, k := range sortedFunc(s.Floating, netip.Addr.Compare) {
		v, _ := s.Floating.Get(k)
		line(b, "floating "+k.String(), "to="+v.String())
	}
	for _, k := range sortedFunc(s.External, netip.Addr.Compare) {
		v, _ := s.External.Get(k)
		line(b, "external "+k.String(), "as="+v.String())
	}
	for _, k := range sortedFunc(s.Masquerade, netip.Addr.Compare) {
		line(b, "masquerade "+k.String())
	}
	for _, k := range sortedFunc(s.Inside, netip.Prefix.Compare) {
		line(b, "inside "+k.String())
	}
}

func (s *State) writeSets(b *bufio.Writer) {
	members := map[SetKey][]Member{}
	for m := range s.Members.All() {
		members[m.Set] = append(members[m.Set], m)
	}
	selector := func(k SetKey) string {
		v, _ := s.Sets.Get(k)
		return v.Selector
	}
	keys := sortedFunc(s.Sets, func(a, b SetKey) int {
		return cmp.Or(strings.Compare(selector(a), selector(b)), strings.Compare(a.String(), b.String()))
	})
	for _, k := range keys {
		line(b, "set "+k.String(), selector(k))
		slices.SortFunc(members[k], func(a, b Member) int {
			return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
		})
		for _, m := range members[k] {
			line(b, m.String())
		}
		delete(members, k)
	}
	// A member of a set that does not exist would be a fault in calc: show it.
	var strays []string
	for _, stray := range members {
		for _, m := range stray {
			strays = append(strays, m.String()+" (no such set)")
		}
	}
	slices.Sort(strays)
	for _, s := range strays {
		line(b, s)
	}
}

func writeProgram(b *bufio.Writer, p Program) {
	writeStages(b, "stage", p.Stages)
	writeStages(b, "trial", p.Trial)
}

func writeStages(b *bufio.Writer, word string, stages []Stage) {
	for _, st := range stages {
		line(b, "  "+word+" "+st.Name, st.View.String(), "end="+st.End.String())
		for _, r := range st.Rules {
			line(b, "    "+r.String())
		}
	}
}

// String is the member as it is shown.
func (m Member) String() string {
	text := "member " + m.Set.String() + " " + prefixText(m.Prefix)
	if m.Set.Ports {
		text += fmt.Sprintf(" proto=%d port=%d", m.Protocol, m.Port)
	}
	return text
}

// String is the endpoint's state as it is shown.
func (e Endpoint) String() string {
	var f fields
	state := "absent"
	if e.Present {
		state = "down"
		if e.Up {
			state = "up"
		}
	}
	f.add("interface", e.Interface)
	f.add("link", state)
	if e.Error != "" {
		f.add("error", strconv.Quote(e.Error))
	}
	if e.Warning != "" {
		f.add("warning", strconv.Quote(e.Warning))
	}
	return f.String()
}

// String is the interface as it is shown.
func (i Interface) String() string {
	var f fields
	f = append(f, "("+i.Endpoint.String()+")")
	f.add("index", strconv.Itoa(i.Index))
	if i.HasMAC {
		f.add("mac", net.HardwareAddr(i.MAC[:]).String())
	}
	f.add("addrs", list(i.Addrs, netip.Addr.String))
	f.add("ranges", list(i.Ranges, netip.Prefix.String))
	f.add("spoofed", list(i.Spoofed, netip.Prefix.String))
	f.add("ingress", string(i.Ingress))
	f.add("egress", string(i.Egress))
	return f.String()
}

// String is the rule as it is shown: verdict, conditions, identity.
func (r Rule) String() string {
	f := fields{r.Verdict.String()}
	if r.Family != 0 {
		f = append(f, fmt.Sprintf("ipv%d", r.Family))
	}
	if r.Protocol != 0 {
		f.add("proto", strconv.Itoa(int(r.Protocol)))
	}
	if r.NotProtocol != 0 {
		f.add("not-proto", strconv.Itoa(int(r.NotProtocol)))
	}
	f.add("icmp", r.ICMP.text())
	f.add("not-icmp", r.NotICMP.text())
	f.addPeer("from", &r.Source)
	f.addPeer("to", &r.Destination)
	f.add("id", r.ID)
	if r.Note != "" {
		f.add("note", strconv.Quote(r.Note))
	}
	return f.String()
}

func (i *ICMP) text() string {
	if i == nil {
		return ""
	}
	if i.Code < 0 {
		return strconv.Itoa(int(i.Type))
	}
	return fmt.Sprintf("%d/%d", i.Type, i.Code)
}

// String is the range as it is written in a policy.
func (r PortRange) String() string {
	if r.Min == r.Max {
		return strconv.Itoa(int(r.Min))
	}
	return fmt.Sprintf("%d:%d", r.Min, r.Max)
}

// String is the identifier as it occurs in the names of sets.
func (id SetID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

type fields []string

func (f *fields) add(name, value string) {
	if value != "" {
		*f = append(*f, name+"="+value)
	}
}

func (f *fields) addPeer(name string, p *Peer) {
	f.add(name, list(p.Nets, prefixText))
	f.add(name+"-not", list(p.NotNets, prefixText))
	if p.Set != 0 {
		f.add(name+"-set", p.Set.String())
	}
	if p.NotSet != 0 {
		f.add(name+"-not-set", p.NotSet.String())
	}
	f.add(name+"-ports", list(p.Ports, PortRange.String))
	f.add(name+"-not-ports", list(p.NotPorts, PortRange.String))
	if p.Named != 0 {
		f.add(name+"-named", p.Named.String())
	}
	if p.NotNamed != 0 {
		f.add(name+"-not-named", p.NotNamed.String())
	}
}

func (f fields) String() string { return strings.Join(f, " ") }

func list[T any](items []T, text func(T) string) string {
	parts := make([]string, len(items))
	for i, v := range items {
		parts[i] = text(v)
	}
	return strings.Join(parts, ",")
}

// prefixText writes a single address without its length.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// line writes the parts that are not empty. An error stays in b until Flush.
func line(b *bufio.Writer, parts ...string) {
	for i, p := range parts {
		if p == "" {
			continue
		}
		if i > 0 {
			_ = b.WriteByte(' ')
		}
		_, _ = b.WriteString(p)
	}
	_ = b.WriteByte('\n')
}

func sortedFunc[K comparable, V any](t *table.Table[K, V], compare func(a, b K) int) []K {
	keys := make([]K, 0, t.Len())
	for k := range t.All() {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compare)
	return keys
}

func compareNeighbours(a, b NeighbourKey) int {
	proxy := 0
	if a.Proxy != b.Proxy {
		proxy = 1
		if b.Proxy {
			proxy = -1
		}
	}
	return cmp.Or(strings.Compare(a.Interface, b.Interface), proxy, a.Addr.Compare(b.Addr))
}
