package proof

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// Draw draws objects and packets from a seed, in a world so small that they
// meet.
type Draw struct {
	*rand.Rand
	Hosts bool // host endpoints and their policy too
	w     *World
}

// NewDraw draws for a world.
func NewDraw(w *World, seed uint64) *Draw { return &Draw{Rand: rand.New(rand.NewPCG(seed, 0)), w: w} }

var (
	drawNames      = []string{"a", "b", "c", "d"}
	drawSpaces     = []string{"n1", "n2"}
	drawTiers      = []string{"default", "default", "default", "t1", "t2", "t3"}
	drawProfiles   = []string{"kns.n1", "kns.n2", "p1", "p2", "missing"}
	drawSelectors  = []string{"", "all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "a in {'x','y'}", "b == 'x' && has(a)", "a == 'x' || b == 'y'", "a == ", "pcns.env == 'x'", "p starts with 'q'", "a not in {'z'}"}
	drawNamespaces = []string{"all()", "global()", "env == 'x'", "!has(env)", "bad ="}
	drawPorts      = []uint16{1, 53, 80, 443, 1024, 8080, 65535}
	drawRanges     = []string{"80", `"1:79"`, `"80:443"`, `"1024:65535"`, `"0:65535"`, `"444:8080"`, "53", "8080", "65535", "1", `"web"`, `"dns"`}
	drawAccounts   = []string{"s1", "s2"}
	drawTypes      = []uint8{0, 3, 8, 8, 8, 13, 128, 128, 128, 129, 139}
	drawNets       = []string{
		"10.65.0.0/16", "10.65.1.0/24", "10.65.2.0/24", "10.65.1.0/31", "10.65.1.2/31", "10.65.2.4/30", "10.65.1.4", "10.65.2.0/32", "0.0.0.0/0", "10.65.1.192/26", "10.65.2.200/29", "198.51.100.0/25", "192.0.2.0/30",
		"fd00:65::/32", "fd00:65:1::/64", "fd00:65:2::/64", "fd00:65:1::/127", "fd00:65:1::2/127", "fd00:65:2::4/126", "fd00:65:1::4", "fd00:65:2::", "::/0", "fd00:65:1::100/120", "fd00:65:2::100/121", "2001:db8:1::/49", "2001:db8::/64", "nonsense",
	}
	drawPools   = []string{"10.65.0.0/16", "10.65.1.0/24", "10.65.2.0/28", "198.51.100.0/25", "fd00:65::/32", "fd00:65:2::/64", "fd00:65:1::/124", "2001:db8:1::/49"}
	drawOutside = []string{"198.51.100.10", "198.51.100.200", "10.65.1.77", "10.65.2.150", "2001:db8:1::10", "2001:db8:1:ffff::1", "fd00:65:1::77", "fd00:65:2::200"}
)

func of[T any](d *Draw, list []T) T { return list[d.IntN(len(list))] }

func (d *Draw) oneIn(n int) bool { return d.IntN(n) == 0 }

// some is up to most of a list, as a JSON list.
func (d *Draw) some(most int, list []string) string {
	var out []string
	for range d.IntN(most + 1) {
		out = append(out, fmt.Sprintf("%q", of(d, list)))
	}
	return "[" + strings.Join(out, ",") + "]"
}

// members is an object of the members that are not empty.
func members(m ...string) string {
	var out []string
	for _, s := range m {
		if s != "" {
			out = append(out, s)
		}
	}
	return "{" + strings.Join(out, ",") + "}"
}

// sometimes is a member in one of n cases.
func (d *Draw) sometimes(n int, format string, args ...any) string {
	if !d.oneIn(n) {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func (d *Draw) labels() string {
	return members(
		d.sometimes(2, `"a":%q`, of(d, []string{"x", "y", "z"})), d.sometimes(2, `"b":%q`, of(d, []string{"x", "y"})),
		d.sometimes(9, `"pcns.env":"x"`))
}

// Change draws one change of the cluster. One in six deletes; policy is
// changed most.
func (d *Draw) Change() Change {
	kind, namespace, name := api.KindGlobalNetworkPolicy, "", of(d, drawNames)
	if d.Hosts && d.oneIn(6) {
		return d.hostChange()
	}
	var spec string
	switch n := d.IntN(20); {
	case n < 4:
		return d.endpoint(of(d, d.w.slots))
	case n < 9:
		kind, namespace, spec = api.KindNetworkPolicy, of(d, drawSpaces), d.policy()
	case n < 14:
		spec = d.globalPolicy()
	case n < 15:
		kind, namespace = api.KindStagedNetworkPolicy, of(d, drawSpaces)
		if d.oneIn(2) {
			kind, namespace = api.KindStagedGlobalNetworkPolicy, ""
		}
		spec = strings.TrimSuffix(d.policy(), "}") + fmt.Sprintf(`,"stagedAction":%q}`, of(d, []string{"Set", "Set", "Learn", "Delete", "Ignore"}))
	case n < 16:
		kind, name, spec = api.KindTier, of(d, drawTiers), members(d.order(), fmt.Sprintf(`"defaultAction":%q`, of(d, []string{"Pass", "Pass", "Deny", "Maybe"})))
	case n < 18:
		kind, name = api.KindProfile, of(d, drawProfiles[:4])
		spec = members(`"ingress":`+d.rules(), `"egress":`+d.rules(), d.sometimes(2, `"labelsToApply":%s`,
			members(d.sometimes(2, `"a":%q`, of(d, []string{"x", "y"})), d.sometimes(2, `"p":"qq"`), d.sometimes(2, `"pcsa.team":"x"`), d.sometimes(2, `"pcns.env":%q`, of(d, []string{"x", "y"})))))
	case n < 19 && d.oneIn(2):
		kind, spec = api.KindIPPool, members(fmt.Sprintf(`"cidr":%q`, of(d, drawPools)), d.sometimes(2, `"natOutgoing":true`))
	case n < 19:
		kind, namespace, spec = api.KindNetworkSet, of(d, drawSpaces), members(`"nets":`+d.some(3, drawNets))
	default:
		kind, spec = api.KindGlobalNetworkSet, members(`"nets":`+d.some(3, drawNets))
	}
	if d.oneIn(6) && name != "default" {
		return Change{Delete: fmt.Sprintf("%s/%s/%s", kind, namespace, name)}
	}
	return put(document(kind, namespace, name, d.labels(), spec))
}

func document(kind api.Kind, namespace, name, labels, spec string) string {
	return fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,"labels":%s},"spec":%s}`, kind, name, namespace, labels, spec)
}

// endpoint draws the workload of a slot: one or two addresses of each family,
// seldom none. Its namespace is that of the slot's number.
func (d *Draw) endpoint(s *slot) Change {
	node, number, _ := strings.Cut(s.name, "/")
	name := api.WorkloadName{Node: node, Orchestrator: "openstack", Workload: number, Endpoint: "eth0"}.String()
	namespace := drawSpaces[int(number[0]-'0')%2]
	if d.oneIn(8) {
		return Change{Delete: fmt.Sprintf("%s/%s/%s", api.KindWorkloadEndpoint, namespace, name)}
	}
	var addrs []string
	for _, pool := range [][]netip.Addr{s.v4, s.v6} {
		list := d.Perm(len(pool))[:of(d, []int{0, 1, 1, 1, 1, 1, 2, 2})]
		if len(list) > 0 && !slices.Contains(list, 0) && d.oneIn(2) {
			list[0] = 0 // which external addresses lead to most
		}
		for _, i := range list {
			addrs = append(addrs, fmt.Sprintf("%q", netip.PrefixFrom(pool[i], pool[i].BitLen())))
		}
	}
	for d.oneIn(5) {
		addrs = append(addrs, fmt.Sprintf("%q", of(d, s.ranges())))
	}
	profiles := d.some(2, append(drawProfiles, api.DefaultAllowProfile, api.DefaultAllowProfile, "kns."+namespace))
	return put(document(api.KindWorkloadEndpoint, namespace, name, d.labels(), members(
		`"orchestrator":"openstack"`, fmt.Sprintf(`"node":%q,"workload":%q,"endpoint":"eth0","interfaceName":%q`, node, number, s.iface),
		unless(d.oneIn(4), `"mac":%q`, s.mac), unless(!d.oneIn(5), `"allowSpoofedSourcePrefixes":[%q,%q]`, of(d, s.others()), of(d, s.others())), d.sometimes(2, `"serviceAccountName":%q`, of(d, drawAccounts)), d.sometimes(2, `"ports":[%s]`, d.namedPorts()),
		d.externals(s), fmt.Sprintf(`"ipNetworks":[%s]`, strings.Join(addrs, ",")), `"profiles":`+profiles)))
}

// unless is a member, if not.
func unless(not bool, format string, args ...any) string {
	if not {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// externals gives a workload its external addresses, more or less well: what
// each leads to may be none of its own, and another of its host may claim it too.
func (d *Draw) externals(s *slot) string {
	if d.oneIn(2) {
		return ""
	}
	var nats []string
	for _, pool := range [][]netip.Addr{s.v4, s.v6} {
		of := s
		if d.oneIn(6) {
			of = s.host.slots(d.w)[d.IntN(SlotsPerHost)]
		}
		nats = append(nats, fmt.Sprintf(`{"internalIP":%q,"externalIP":%q}`, pool[max(0, d.IntN(4)-1)], of.external(pool[0].Is6())))
	}
	return fmt.Sprintf(`"ipNATs":[%s]`, strings.Join(nats, ","))
}

// namedPorts gives ports that rules know by name.
func (d *Draw) namedPorts() string {
	var list []string
	for range 1 + d.IntN(3) {
		list = append(list, fmt.Sprintf(`{"name":%q,"protocol":%q,"port":%d}`, of(d, []string{"web", "dns"}), of(d, []string{"TCP", "UDP", "SCTP"}), of(d, drawPorts)))
	}
	return strings.Join(list, ",")
}

func (d *Draw) order() string {
	return of(d, []string{"", "", `"order":1`, `"order":2`, `"order":-3.5`})
}

func (d *Draw) policy() string {
	types := of(d, []string{"", "", "", `"types":["Ingress"]`, `"types":["Egress"]`, `"types":["Ingress","Egress"]`})
	return members(d.order(), d.sometimes(2, `"tier":%q`, of(d, drawTiers)), d.sometimes(2, `"selector":%q`, of(d, drawSelectors)),
		d.sometimes(8, `"namespaceSelector":%q`, of(d, []string{"all()", "env == 'x'", "!has(env)", "bad ="})),
		d.sometimes(9, `"serviceAccountSelector":%q`, of(d, []string{"team == 'x'", "all()", "!has(team)"})),
		types, `"ingress":`+d.rules(), `"egress":`+d.rules())
}

// rules draws a list of rules, seldom one so long that it is led to by port.
func (d *Draw) rules() string {
	n := d.IntN(4)
	if d.oneIn(12) {
		n = 9 + d.IntN(8)
	}
	var out []string
	for range n {
		out = append(out, d.rule())
	}
	return "[" + strings.Join(out, ",") + "]"
}

func (d *Draw) rule() string {
	kind, ports := "", false
	switch n := d.IntN(12); {
	case n < 5:
		kind, ports = fmt.Sprintf(`"protocol":%s`, of(d, []string{`"TCP"`, `"UDP"`, `"SCTP"`, `"UDPLite"`, `6`, `17`, `"17"`, `132`, `136`})), true
	case n < 7:
		kind = fmt.Sprintf(`"protocol":%s`, of(d, []string{`"ICMP"`, `1`, `"ICMPv6"`, `58`}))
		kind += of(d, []string{"", "", `,"icmp":` + d.icmp(), `,"icmp":` + d.icmp(), `,"notICMP":` + d.icmp(), `,"icmp":` + d.icmp() + `,"notICMP":` + d.icmp()})
	case n < 8:
		kind = fmt.Sprintf(`"protocol":%s`, of(d, []string{`47`, `89`, `115`, `253`, `"253"`, `"frob"`}))
	case n < 9:
		kind = fmt.Sprintf(`"notProtocol":%s`, of(d, []string{`"TCP"`, `17`, `"ICMP"`, `58`, `132`, `89`}))
	}
	ports = ports || d.oneIn(30) // without a protocol that has ports, which is a mistake
	return members(fmt.Sprintf(`"action":%q`, of(d, []string{"Allow", "Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"})), kind,
		d.sometimes(8, `"ipVersion":%d`, 4+2*d.IntN(2)), d.sometimes(3, `"source":%s`, d.entity(ports)), d.sometimes(2, `"destination":%s`, d.entity(ports)))
}

func (d *Draw) icmp() string {
	return members(fmt.Sprintf(`"type":%d`, of(d, drawTypes)), d.sometimes(2, `"code":%d`, d.IntN(2)))
}

func (d *Draw) entity(ports bool) string {
	list := ""
	if ports {
		list = of(d, []string{"", `"ports":[` + d.ranges() + `]`, `"ports":[` + d.ranges() + `]`, `"notPorts":[` + d.ranges() + `]`, `"ports":[` + d.ranges() + `],"notPorts":[` + d.ranges() + `]`})
	}
	return members(list, d.sometimes(5, `"nets":%s`, d.some(3, drawNets)), d.sometimes(8, `"notNets":%s`, d.some(2, drawNets)),
		d.sometimes(4, `"selector":%q`, of(d, drawSelectors)), d.sometimes(9, `"notSelector":%q`, of(d, drawSelectors)),
		d.sometimes(8, `"namespaceSelector":%q`, of(d, drawNamespaces)),
		d.sometimes(12, `"serviceAccounts":%s`, members(d.sometimes(2, `"names":%s`, d.some(2, drawAccounts)), d.sometimes(2, `"selector":%q`, of(d, []string{"team == 'x'", "all()", "!has(team)"})))))
}

func (d *Draw) ranges() string {
	list := []string{of(d, drawRanges)}
	for range d.IntN(3) {
		list = append(list, of(d, drawRanges))
	}
	return strings.Join(list, ",")
}

// port is at or beside a bound that rules have.
func (d *Draw) port() uint16 {
	if d.oneIn(8) {
		return uint16(d.IntN(65535)) + 1
	}
	return max(1, of(d, drawPorts)+of(d, []uint16{0, 0, 1, 0xffff}))
}

// Packets draws packets of connections of which no two are one, nor one the
// other's answer.
func (d *Draw) Packets(n int) []Packet {
	taken := map[string]bool{}
	var out []Packet
	for range 20 * n {
		if len(out) == n {
			break
		}
		if p, ok := d.packet(); ok && d.w.apart(p, taken) {
			out = append(out, p)
		}
	}
	return out
}

// Apart returns those of packets of which no two are of one connection, nor one
// the other's answer.
func (w *World) Apart(list []Packet) []Packet {
	taken := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(list), func(p Packet) bool { return !w.apart(p, taken) })
}

// apart says whether a packet is of none of the connections that are taken, and
// takes its own.
func (w *World) apart(p Packet, taken map[string]bool) bool {
	as := w.translated(p)
	keys := []string{ // as it is sent, and as it is translated: only protocols with ports can tell two such apart
		fmt.Sprint(p.Src, p.SrcPort, p.Dst, p.DstPort, p.Protocol), fmt.Sprint(p.Dst, p.DstPort, p.Src, p.SrcPort, p.Protocol),
		fmt.Sprint(as.Src, p.SrcPort, as.Dst, p.DstPort, p.Protocol), fmt.Sprint(as.Dst, p.DstPort, as.Src, p.SrcPort, p.Protocol),
	}
	if slices.ContainsFunc(keys, func(k string) bool { return taken[k] }) {
		return false
	}
	for _, k := range keys {
		taken[k] = true
	}
	return true
}

// packet draws one, false if there is none between the ends that it drew.
func (d *Draw) packet() (p Packet, ok bool) {
	v6 := d.oneIn(2)
	source, sourceOK := d.end(v6, &p.From)
	dest, destOK := d.end(v6, new(string))
	if a := of(d, d.w.slots).external(v6); d.oneIn(4) {
		_, _, destOK = d.w.cluster.Floating(a)
		dest = a
	}
	if !sourceOK || !destOK || source == dest {
		return p, false
	}
	p.Src, p.Dst = source, dest
	p.Protocol = of(d, append([]uint8{6, 6, 6, 6, 17, 17, 17, 132, 1, 58, 1, 58}, protocols...))
	switch p.Protocol {
	case 1, 58:
		if !d.oneIn(12) {
			p.Protocol = map[bool]uint8{false: 1, true: 58}[v6]
		}
		p.SrcPort, p.ICMPType, p.ICMPCode = uint16(d.IntN(65535))+1, of(d, drawTypes), uint8(d.IntN(2))
	case 6, 17, 132, 136:
		p.SrcPort, p.DstPort = d.port(), d.port()
		if p.Protocol == 6 && d.oneIn(6) {
			p.Kind = of(d, []string{Midway, Answer})
		}
	}
	if d.w.slot(p.From) != nil && d.oneIn(25) {
		p.MAC = "02:00:00:00:99:99"
	}
	if isDHCP(p) || isHost(p.From) && d.w.owner[p.Dst] == p.From {
		return p, false
	}
	return p, true
}

// end draws an address and a place that has it, or seldom, for a workload,
// does not.
func (d *Draw) end(v6 bool, place *string) (netip.Addr, bool) {
	switch n := d.IntN(16); {
	case n < 11:
		s := of(d, d.w.slots)
		*place = s.name
		pool := s.v4
		if v6 {
			pool = s.v6
		}
		if e := d.w.at[s.name]; e != nil && !d.oneIn(30) {
			pool = d.addresses(e, v6)
		}
		if len(pool) == 0 {
			return netip.Addr{}, false
		}
		return of(d, pool), true
	case n < 13:
		h := of(d, d.w.hosts)
		*place = h.name
		return of(d, slices.DeleteFunc(h.addrs(), func(a netip.Addr) bool { return a.Is6() != v6 })), true
	}
	*place = of(d, d.w.hosts).beyond.name
	half := drawOutside[:len(drawOutside)/2]
	if v6 {
		half = drawOutside[len(drawOutside)/2:]
	}
	return netip.MustParseAddr(of(d, half)), true
}

// addresses are those of a family that an endpoint may send from: its own, some
// in its ranges, and seldom others.
func (d *Draw) addresses(e *api.WorkloadEndpoint, v6 bool) (pool []netip.Addr) {
	for _, a := range d.w.cluster.Addresses(e.Key()) {
		if a.Is6() == v6 {
			pool = append(pool, a)
		}
	}
	more := slices.DeleteFunc(slices.Clone(e.Spec.IPNetworks.Prefixes), func(p netip.Prefix) bool { return p.IsSingleIP() })
	if d.oneIn(4) {
		more = append(more, e.Spec.AllowSpoofedSourcePrefixes.Prefixes...)
	}
	for _, p := range more {
		if a := p.Addr(); a.Is6() == v6 {
			for range d.IntN(4) { // the last bits are those that differ
				a = a.Next()
			}
			pool = append(pool, a)
		}
	}
	return pool
}

// isDHCP says that policy is not asked.
func isDHCP(p Packet) bool {
	return p.Protocol == 17 && (p.DstPort == 67 || p.DstPort == 547 || p.DstPort == 68 || p.DstPort == 546)
}
