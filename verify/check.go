package verify

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"tortie/api"
	"tortie/explain"
	"tortie/space"
)

// Host is what is asked about a host.
type Host struct {
	Name    string
	Cluster *explain.Cluster
	Index   func(name string) uint32 // of an interface, 0 if there is none
	Peers   int                      // with how many others of the host each endpoint is checked

	within func(s *space.Space, from *local) space.Set // if given, only these headers are asked about
}

// auditPeers is with how many others of the host an audit checks each endpoint.
const auditPeers = 2

// Findings reads the kernel's rules and compares them with what policy says. It
// returns a line for each finding.
func (r *Reader) Findings(host string, c *explain.Cluster, index func(name string) uint32) ([]string, error) {
	rules, err := r.Read()
	if err != nil {
		return nil, err
	}
	h := &Host{Name: host, Cluster: c, Index: index, Peers: auditPeers}
	report, err := h.Check(rules)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, f := range report.Findings {
		lines = append(lines, f.String())
	}
	return lines, nil
}

// Interface is the index of an interface in the network namespace of the calling
// thread, 0 if there is none.
func Interface(name string) uint32 {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

// Outside is the interface that stands for all that are no workload's.
const Outside = "outside"

// outsideIndex is its index, which no interface has.
const outsideIndex = 0x7ffffff0

// Kinds of findings.
const (
	Passes    = "passes"    // and must not
	Dropped   = "dropped"   // and must pass
	Astray    = "astray"    // passes, and not to the address that it should
	Undecided = "undecided" // what becomes of it is not known
)

// Finding is where the kernel is not known to do what policy says.
type Finding struct {
	Kind     string
	From, To api.Key // the zero key is outside
	Packet   space.Packet
	Why      []string // with Undecided: what is not known
}

// String prints it as one line.
func (f Finding) String() string {
	name := func(k api.Key) string {
		if k == (api.Key{}) {
			return Outside
		}
		return k.Namespace + "/" + k.Name
	}
	s := fmt.Sprintf("from %s to %s: %s", name(f.From), name(f.To), f.Packet)
	switch f.Kind {
	case Passes:
		return s + " passes, and policy denies it"
	case Dropped:
		return s + " is dropped, and policy allows it"
	case Astray:
		return s + " is led to another address than it should"
	}
	return fmt.Sprintf("%s: it cannot be decided: %q", s, f.Why)
}

// Report is what Check says.
type Report struct {
	Generation uint32    // of the ruleset
	Endpoints  int       // that were checked
	Ways       int       // between two interfaces
	Absent     []api.Key // endpoints that have no interface, which nothing reaches
	Unchecked  []api.Key // host endpoints with policy on what passes by their interfaces
	Findings   []Finding
	Nodes      int // of the largest diagram
}

// Proven says that the kernel does what policy says, in every way.
func (r *Report) Proven() bool { return len(r.Findings) == 0 }

// Wrong says that there is a packet with the wrong fate.
func (r *Report) Wrong() bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Kind != Undecided })
}

// local is an endpoint of the host or, without one, an interface of the host
// itself, whose policy is that of a host endpoint, if it has one.
type local struct {
	*api.WorkloadEndpoint
	device
	ingress, egress []explain.Section
	externals       map[netip.Addr]netip.Addr // that lead to it, and where
}

// Check compares a ruleset with what policy says.
func (h *Host) Check(r *Ruleset) (*Report, error) {
	report := &Report{Generation: r.Generation}
	locals := h.locals(report)
	for _, w := range h.ways(locals, h.outsides(report)) {
		if err := h.way(r, report, locals, w[0], w[1]); err != nil {
			return nil, err
		}
	}
	report.Endpoints = len(locals)
	return report, nil
}

// outsides are the interfaces of the host itself that are checked: one that no
// host endpoint names, and each that one names. What policy does to packets
// that are not tracked nobody looks at, so those of its endpoints are left out.
func (h *Host) outsides(report *Report) []*local {
	var list []*local
	add := func(d device) {
		l := &local{device: d}
		k, ok := h.Cluster.HostEndpoint(h.Name, explain.Interface{Name: d.name})
		if ok {
			l.ingress, l.egress = h.Cluster.SectionsThrough(k, api.Ingress), h.Cluster.SectionsThrough(k, api.Egress)
		}
		if !ok || !h.has(k, explain.Untracked) {
			list = append(list, l)
		}
	}
	add(device{Outside, outsideIndex})
	for _, k := range h.Cluster.HostsOn(h.Name) {
		name := ""
		if _, i, _ := h.Cluster.Interface(k); i.Name != "" {
			if own, _ := h.Cluster.HostEndpoint(h.Name, explain.Interface{Name: i.Name}); own == k {
				name = i.Name
			}
		}
		index := h.Index(name)
		if name != "" && index != 0 {
			add(device{name, index})
		}
		any, _ := h.Cluster.HostEndpoint(h.Name, explain.Interface{Name: Outside})
		if h.has(k, explain.Untracked) || k != any && (name == "" || index == 0) && h.has(k, explain.PreDNAT, explain.Forward) {
			report.Unchecked = append(report.Unchecked, k)
		}
	}
	return list
}

// has says whether a host endpoint has policy of some kinds.
func (h *Host) has(k api.Key, kinds ...explain.Kind) bool {
	for _, kind := range kinds {
		for _, dir := range []api.Direction{api.Ingress, api.Egress} {
			if slices.ContainsFunc(h.Cluster.StagesOf(k, dir, kind), func(s explain.Stage) bool { return len(s.Policies) > 0 }) {
				return true
			}
		}
	}
	return false
}

// ways are those that are checked, each from one end to another.
func (h *Host) ways(locals, outsides []*local) [][2]*local {
	var list [][2]*local
	for _, o := range outsides {
		list = append(list, [2]*local{o, o})
		for _, l := range locals {
			list = append(list, [2]*local{l, o}, [2]*local{o, l})
		}
	}
	for i, l := range locals {
		for n := range min(h.Peers, len(locals)-1) {
			list = append(list, [2]*local{l, locals[(i+1+n)%len(locals)]})
		}
	}
	return list
}

func (h *Host) locals(report *Report) []*local {
	var list []*local
	for _, w := range h.Cluster.On(h.Name) {
		l := &local{WorkloadEndpoint: w, device: device{w.Spec.InterfaceName, h.Index(w.Spec.InterfaceName)}, externals: map[netip.Addr]netip.Addr{}}
		if l.index == 0 {
			report.Absent = append(report.Absent, w.Key())
			continue
		}
		l.ingress, l.egress = h.Cluster.Sections(w.Key(), api.Ingress), h.Cluster.Sections(w.Key(), api.Egress)
		for _, n := range w.Spec.IPNATs {
			external := n.ExternalIP.Unmap()
			if k, internal, ok := h.Cluster.Floating(external); ok && k == w.Key() {
				l.externals[external] = internal
			}
		}
		list = append(list, l)
	}
	return list
}

// nets are the addresses of an endpoint.
func nets(l *local) []netip.Prefix {
	if l.WorkloadEndpoint == nil {
		return nil
	}
	return l.Spec.IPNetworks.Prefixes
}

// singles are those that are no ranges.
func singles(l *local) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(nets(l)), func(n netip.Prefix) bool { return !n.IsSingleIP() })
}

// key names an end; the zero key is outside.
func (l *local) key() api.Key {
	if l.WorkloadEndpoint == nil {
		return api.Key{}
	}
	return l.Key()
}

// way checks what goes from one interface to another.
func (h *Host) way(r *Ruleset, report *Report, locals []*local, from, to *local) error {
	s := space.New(0)
	domain, want := h.question(s, locals, from, to)
	w := way{in: from.device, out: to.device, hooks: forwarded, mac: noMAC}
	if from.WorkloadEndpoint != nil && from.Spec.MAC.Set {
		w.mac = from.Spec.MAC.Addr[:]
	}
	m := newMachine(s, r, w)
	passes := m.run(domain)
	undecided := m.undecided.And(domain)
	known := domain.Minus(undecided)
	straight := led(m, to)
	for _, c := range []struct {
		kind string
		set  space.Set
	}{{Passes, passes.And(known).Minus(want)}, {Dropped, want.And(known).Minus(passes)}, {Astray, want.And(known).And(passes).Minus(straight)}, {Undecided, undecided}} {
		if p, ok := witness(c.set); ok {
			f := Finding{Kind: c.kind, From: from.key(), To: to.key(), Packet: p}
			if c.kind == Undecided {
				f.Why = m.why
			}
			report.Findings = append(report.Findings, f)
		}
	}
	report.Ways++
	report.Nodes = max(report.Nodes, s.Size())
	if err := s.Err(); err != nil {
		return fmt.Errorf("from %v to %v: %w", from.key(), to.key(), err)
	}
	return nil
}

// question returns the headers that a way is asked about, and those of them
// that must pass.
func (h *Host) question(s *space.Space, locals []*local, from, to *local) (domain, want space.Set) {
	domain = opening(s).And(arrives(s, locals, to))
	if h.within != nil {
		domain = domain.And(h.within(s, from))
	}
	return domain, domain.And(sent(s, locals, from)).And(policy(s, from, to))
}

// led are the headers whose destination, after all hooks, is what it should be:
// what an external address leads to, or else what it was.
func led(m *machine, to *local) space.Set {
	same := m.All()
	for i, b := range m.Field(space.DstAddr) {
		if x := b.Xor(m.dst[i]); !x.IsEmpty() {
			same = same.Minus(x)
		}
	}
	for external, internal := range to.externals {
		same = m.Addrs(space.DstAddr, external, external).Choose(m.equal(m.dst[:internal.BitLen()], internal.AsSlice()), same)
	}
	return same
}

// witness is a packet of a set, of those in it that are easily sent and read.
func witness(set space.Set) (space.Packet, bool) {
	s := set.Space()
	src, dst := s.Field(space.SrcAddr), s.Field(space.DstAddr)
	differ := s.IP(4).Choose(src[31].Xor(dst[31]), src[127].Xor(dst[127])) // no packet to its sender
	for _, some := range []space.Set{
		s.Proto(6), s.Proto(6, 17), s.Proto(6, 17).Or(s.IsICMP()),
		s.Ports(space.SrcPort, 49152, 65535), s.Ports(space.DstPort, 1, 65535),
		s.Nets(space.SrcAddr, unusual).Not(), s.Nets(space.DstAddr, unusual).Not(), differ,
	} {
		if some = some.And(set); !some.IsEmpty() {
			set = some
		}
	}
	return set.Witness()
}

// unusual are addresses that few have.
var unusual = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("::/3")}

// opening are the headers of packets that open a connection and are forwarded,
// one for each packet. Of ICMP that is queries. Connection tracking does not
// know the ports of DCCP; what IPv6 has as extension headers is no protocol.
func opening(s *space.Space) space.Set {
	types := func(version int, protocol uint8, list ...uint8) space.Set {
		set := s.None()
		for _, t := range list {
			set = set.Or(s.ICMP(space.ICMPType, t))
		}
		return set.And(s.IP(version)).And(s.Proto(protocol))
	}
	set := s.Proto(1, 33, 58).Not()
	set = set.Minus(s.IP(6).And(s.Proto(0, 43, 44, 51, 59, 60, 135)))
	set = set.Or(types(4, 1, 8, 13, 15, 17)).Or(types(6, 58, 128, 139))
	for _, f := range []space.Field{space.SrcAddr, space.DstAddr} {
		set = set.Minus(s.Nets(f, notForwarded))
	}
	return set.And(s.WellFormed())
}

var notForwarded = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// noMAC is the address of a sender that is no endpoint, and of an endpoint that
// may use any.
var noMAC = []byte{2, 255, 255, 255, 255, 254}

// sent are the headers with sources that the way in admits: those that an
// endpoint may send from, or single addresses of no endpoint here. A workload is
// no DHCP server.
func sent(s *space.Space, locals []*local, from *local) space.Set {
	var taken, ranges []netip.Prefix
	for _, l := range locals {
		taken = append(taken, singles(l)...)
	}
	others := s.Nets(space.SrcAddr, taken).Not()
	if from.WorkloadEndpoint == nil {
		return others
	}
	for _, n := range nets(from) { // of those with one range, the first has it
		if !slices.ContainsFunc(locals, func(l *local) bool { return l.Key().Compare(from.Key()) < 0 && slices.Contains(nets(l), n) }) {
			ranges = append(ranges, n)
		}
	}
	own := s.Nets(space.SrcAddr, slices.Concat(singles(from), from.Spec.AllowSpoofedSourcePrefixes.Prefixes))
	own = own.Or(s.Nets(space.SrcAddr, ranges).And(others))
	answer := func(version int, from, to uint16) space.Set {
		return s.IP(version).And(s.Proto(17)).And(s.Ports(space.SrcPort, from, from)).And(s.Ports(space.DstPort, to, to))
	}
	return own.Minus(answer(4, 67, 68)).Minus(answer(6, 547, 546))
}

func all(locals []*local) []netip.Prefix {
	var list []netip.Prefix
	for _, l := range locals {
		list = append(list, nets(l)...)
	}
	return list
}

// arrives are the headers that are routed to an interface: to an endpoint's
// addresses, its external ones too, or to those of no endpoint here.
func arrives(s *space.Space, locals []*local, to *local) space.Set {
	set, taken := s.Nets(space.DstAddr, nets(to)), s.Nets(space.DstAddr, all(locals))
	for _, l := range locals {
		for external := range l.externals {
			one := s.Addrs(space.DstAddr, external, external)
			taken = taken.Or(one)
			if l == to {
				set = set.Or(one)
			}
		}
	}
	if to.WorkloadEndpoint == nil {
		return taken.Not()
	}
	return set
}

// policy are the headers that both ends allow: each sees the destination to
// which the packet goes.
func policy(s *space.Space, from, to *local) space.Set {
	leaves, enters := from.egress, to.ingress
	if from.WorkloadEndpoint == nil { // what comes in there
		leaves = from.ingress
	}
	if to.WorkloadEndpoint == nil {
		enters = to.egress
	}
	both := func(dst netip.Addr) space.Set {
		n := &intent{s, dst}
		set := s.All()
		if from.WorkloadEndpoint != nil || len(leaves) > 0 {
			set = n.allowed(leaves)
		}
		if to.WorkloadEndpoint != nil || len(enters) > 0 {
			set = set.And(n.allowed(enters))
		}
		return set
	}
	set := both(netip.Addr{})
	for external, internal := range to.externals {
		one := s.Addrs(space.DstAddr, external, external)
		set = one.Choose(both(internal), set)
	}
	return set
}
