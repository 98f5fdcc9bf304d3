package calc_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/calc"
)

// generator makes random steps in a universe so small that everything
// collides.
type generator struct {
	*rand.Rand
	unique bool // no two endpoints share an address or an interface
}

var (
	genHosts     = []string{"h1", "h1", "h2", "h3"} // h1 is local
	genNames     = []string{"a", "b", "c", "d"}
	genSpaces    = []string{"n1", "n2"}
	genAddrs     = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2", "fd00::1:1", "10.0.1.0/24", "10.0.0.0/30", "fd00::/64", "fd00::/126", "0.0.0.0/0"}
	genNets      = []string{"10.0.0.0/24", "10.0.0.0/31", "10.0.0.2", "10.0.0.0/16", "0.0.0.0/0", "192.0.2.0/25", "fd00::/64", "fd00::/127", "fd00::2", "::/0", "nonsense"}
	genIfaces    = []string{"cali1", "cali2", "tap3", "eth0", ""}
	genProfiles  = []string{"p1", "p2", "kns.n1", "kns.n2", "projectcalico-default-allow", "missing"}
	genTiers     = []string{"", "default", "t1", "t2", "t3"}
	genSelectors = []string{"", "all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "a in {'x','y'}", "b == 'x' && has(a)", "a == 'x' || b == 'y'", "a == ", "pcns.env == 'x'", "global()", "p starts with 'q'", "a in {}"}
)

func (g *generator) of(list []string) string { return list[g.IntN(len(list))] }
func (g *generator) oneIn(n int) bool        { return g.IntN(n) == 0 }

// some returns up to most of a list, as a JSON list.
func (g *generator) some(most int, of []string) string {
	var out []string
	for range g.IntN(most + 1) {
		out = append(out, fmt.Sprintf("%q", g.of(of)))
	}
	return "[" + strings.Join(out, ",") + "]"
}

// object joins the members that are not empty.
func members(m ...string) string {
	var out []string
	for _, s := range m {
		if s != "" {
			out = append(out, s)
		}
	}
	return "{" + strings.Join(out, ",") + "}"
}

// sometimes returns a member in one of n cases.
func (g *generator) sometimes(n int, format string, args ...any) string {
	if !g.oneIn(n) {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func (g *generator) labels() string {
	return members(
		g.sometimes(2, `"a":%q`, g.of([]string{"x", "y", "z"})),
		g.sometimes(2, `"b":%q`, g.of([]string{"x", "y"})),
		g.sometimes(6, `"pcns.env":"x"`),
		g.sometimes(9, `"projectcalico.org/namespace":"n1"`))
}

// step returns a random step that is not a flush.
func (g *generator) step() step {
	if g.oneIn(6) {
		return g.iface()
	}
	kind, ns := api.KindWorkloadEndpoint, g.of(genSpaces)
	hosts := g.oneIn(10)
	var name, spec string
	labels := g.labels()
	switch n := g.IntN(20); {
	case hosts && g.oneIn(4):
		kind, ns, name, spec = api.KindHostAddresses, "", g.of(genHosts), g.addresses()
	case hosts:
		kind, ns, name, spec = api.KindHostEndpoint, "", g.of(genNames), g.host()
	case n < 8:
		name, spec = g.workload()
		if g.unique {
			ns = genSpaces[int(name[len("h1-lab-")]-'a')%2]
		}
	case n < 12:
		kind, name, spec = api.KindNetworkPolicy, g.of(genNames), g.policy()
	case n < 15:
		kind, ns, name, spec = api.KindGlobalNetworkPolicy, "", g.of(genNames), g.policy()
	case n < 16 && g.oneIn(2):
		kind, ns, name, spec = api.KindStagedGlobalNetworkPolicy, "", g.of(genNames), g.staged()
	case n < 16:
		kind, name, spec = api.KindStagedNetworkPolicy, g.of(genNames), g.staged()
	case n < 17:
		kind, ns, name = api.KindTier, "", g.of(genTiers[1:])
		spec = members(g.order(), g.sometimes(2, `"defaultAction":%q`, g.of([]string{"Pass", "Deny", "Maybe"})))
	case n < 18:
		kind, ns, name = api.KindProfile, "", g.of(genProfiles[:5])
		spec = members(`"ingress":`+g.rules(), `"egress":`+g.rules(),
			g.sometimes(2, `"labelsToApply":{"a":%q,%q:"x","pcsa.a":"x","pcns.env":%q}`, g.of([]string{"x", "y"}), g.of([]string{"b", "p"}), g.of([]string{"x", "y"})))
	case g.oneIn(3):
		kind, ns, name = api.KindIPPool, "", g.of(genNames)
		spec = members(fmt.Sprintf(`"cidr":%q`, g.of(genNets)), g.sometimes(2, `"natOutgoing":true`), g.sometimes(3, `"disabled":true`))
	case g.oneIn(6):
		kind, ns, name = api.KindNode, "", g.of(genHosts)
		spec = members(fmt.Sprintf(`"bgp":{"ipv4Address":"172.16.0.%d/24"}`, g.IntN(3)))
	case n < 19:
		kind, name, spec = api.KindNetworkSet, g.of(genNames), members(`"nets":`+g.some(3, genNets))
	default:
		kind, ns, name, spec = api.KindGlobalNetworkSet, "", g.of(genNames), members(`"nets":`+g.some(3, genNets))
	}
	doc := fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,"labels":%s},"spec":%s}`, kind, name, ns, labels, spec)
	s := step{object: object{key: api.Key{Kind: kind, Namespace: ns, Name: name}}, doc: doc}
	if g.oneIn(4) {
		return s
	}
	o, problems, err := api.DecodeKey(s.key, []byte(doc))
	if err != nil {
		panic(fmt.Sprintf("%s: %v", doc, err))
	}
	s.value, s.problems = o, problems
	return s
}

func (g *generator) iface() step {
	s := step{object: object{iface: g.of([]string{"cali1", "cali2", "tap3", "eth0", "eth0", "eth1", "lo"})}}
	if g.unique {
		s.iface = "cali" + g.of(genNames)
	}
	if !g.oneIn(4) {
		i := &calc.HostInterface{Index: 10 + g.IntN(3), Up: !g.oneIn(3)}
		for _, a := range []string{"172.16.0.1", "172.16.0.2", "fd16::1", "fe80::1", "127.0.0.9"} {
			if g.oneIn(3) {
				i.Addrs = append(i.Addrs, netip.MustParseAddr(a))
			}
		}
		s.value = i
	}
	return s
}

func (g *generator) workload() (name, spec string) {
	host, workload := g.of(genHosts), g.of(genNames)
	addrs, iface := g.some(3, genAddrs), g.of(genIfaces)
	if g.unique {
		n := strings.Index("abcd", workload) + 4*strings.Index("h1h2h3", host)
		addrs = fmt.Sprintf(`["10.0.%d.%d","fd00::%d:%d"%s%s]`, n&1, n, n&1, n,
			g.sometimes(2, `,"10.1.%d.0/%d"`, 16*n, 20+g.IntN(9)), g.sometimes(2, `,"fd01:%d::/%d"`, n, 32+g.IntN(60)))
		iface = "cali" + workload
	}
	name = api.WorkloadName{Node: host, Orchestrator: "lab", Workload: workload, Endpoint: "eth0"}.String()
	if !g.unique && g.oneIn(20) {
		name = workload // then spec.node says whose it is
	}
	return name, members(fmt.Sprintf(`"node":%q`, host), `"ipNetworks":`+addrs, fmt.Sprintf(`"interfaceName":%q`, iface),
		g.sometimes(1, `"orchestrator":%q`, g.of([]string{"lab", "", "openstack", "openstack"})),
		g.sometimes(2, `"ipNATs":%s`, g.ipNATs(addrs)), g.sometimes(2, `"profiles":%s`, g.some(2, genProfiles)),
		g.sometimes(2, `"mac":"02:00:00:00:00:0%d"`, g.IntN(3)), g.sometimes(9, `"mac":"nonsense"`),
		g.sometimes(3, `"ipv4Gateway":%q`, g.of([]string{"10.0.0.254", "169.254.1.1"})),
		g.sometimes(3, `"ipv6Gateway":%q`, g.of([]string{"fd00::fe", "10.0.0.254"})),
		g.sometimes(2, `"ports":%s`, g.namedPorts()),
		g.sometimes(4, `"serviceAccountName":%q`, g.of(genNames)),
		g.sometimes(3, `"qosControls":%s`, g.controls()),
		g.sometimes(3, `"allowSpoofedSourcePrefixes":%s`, g.some(3, genNets)))
}

// host is a host endpoint, most often of this host.
func (g *generator) host() string {
	return members(g.sometimes(1, `"node":%q`, g.of(genHosts)), g.sometimes(2, `"interfaceName":%q`, g.of([]string{"eth0", "eth1", "*", "cali1", "lo"})),
		g.sometimes(2, `"expectedIPs":%s`, g.some(3, []string{"172.16.0.1", "172.16.0.2", "fd16::1", "10.0.0.1", "nonsense"})),
		g.sometimes(2, `"profiles":%s`, g.some(2, genProfiles)), g.sometimes(2, `"ports":%s`, g.namedPorts()))
}

// addresses is what a host says of its own.
func (g *generator) addresses() string {
	var list []string
	for _, name := range []string{"eth0", "eth1"} {
		if g.oneIn(2) {
			list = append(list, fmt.Sprintf(`{"name":%q,"addresses":%s}`, name, g.some(2, []string{"172.16.0.1", "172.16.0.2", "fd16::1", "nonsense"})))
		}
	}
	return `{"interfaces":[` + strings.Join(list, ",") + `]}`
}

func (g *generator) controls() string {
	return members(g.sometimes(2, `"ingressBandwidth":%d`, []int{8000, 16000, 1}[g.IntN(3)]), g.sometimes(2, `"egressPacketRate":%d`, 1+g.IntN(2)),
		g.sometimes(3, `"egressMaxConnections":%d`, 1+g.IntN(2)), g.sometimes(3, `"dscp":%q`, g.of([]string{"EF", "0", "gold"})),
		g.sometimes(3, `"egressBurst":9000`))
}

// ipNATs are of addresses that are the endpoint's more often than others'.
func (g *generator) ipNATs(addrs string) string {
	own := strings.FieldsFunc(addrs, func(r rune) bool { return strings.ContainsRune(`[",]`, r) })
	internals := append(slices.Concat(own, own, own), genAddrs[0])
	externals := []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.3", "nonsense"}
	var out []string
	for range g.IntN(3) {
		out = append(out, fmt.Sprintf(`{"internalIP":%q,"externalIP":%q}`, g.of(internals), g.of(externals)))
	}
	return "[" + strings.Join(out, ",") + "]"
}

func (g *generator) namedPorts() string {
	var out []string
	for range g.IntN(3) {
		out = append(out, fmt.Sprintf(`{"name":%q,"protocol":%q,"port":%d}`, g.of([]string{"http", "web", ""}), g.of([]string{"TCP", "UDP"}), []int{80, 443, 0}[g.IntN(3)]))
	}
	return "[" + strings.Join(out, ",") + "]"
}

func (g *generator) order() string {
	return g.of([]string{"", "", `"order":1`, `"order":2`, `"order":-3.5`})
}

func (g *generator) policy() string {
	return members(g.order(), g.sometimes(2, `"tier":%q`, g.of(genTiers)),
		g.sometimes(2, `"selector":%q`, g.of(genSelectors)),
		g.sometimes(5, `"namespaceSelector":%q`, g.of([]string{"all()", "env == 'x'", "!has(env)", "bad ="})),
		g.sometimes(9, `"serviceAccountSelector":%q`, g.of([]string{"all()", "has(a)"})),
		g.sometimes(3, `"types":%s`, g.some(2, []string{"Ingress", "Egress"})),
		g.sometimes(12, `"preDNAT":true`), g.sometimes(12, `"doNotTrack":true`), g.sometimes(4, `"applyOnForward":true`),
		`"ingress":`+g.rules(), `"egress":`+g.rules())
}

// staged is what a staged policy says.
func (g *generator) staged() string {
	return strings.TrimSuffix(g.policy(), "}") + "," + fmt.Sprintf(`"stagedAction":%q`, g.of([]string{"Set", "Set", "Learn", "Delete", "Ignore"})) + "}"
}

func (g *generator) rules() string {
	var out []string
	for range g.IntN(4) {
		out = append(out, g.rule())
	}
	return "[" + strings.Join(out, ",") + "]"
}

func (g *generator) rule() string {
	proto := g.of([]string{
		"", "", `"protocol":"TCP"`, `"protocol":17`, `"notProtocol":"TCP"`, `"protocol":"TCP","notProtocol":"UDP"`,
		`"protocol":"ICMP","icmp":{"type":8}`, `"protocol":"ICMPv6","notICMP":{"type":128,"code":0}`, `"protocol":"ICMP"`,
	})
	return members(fmt.Sprintf(`"action":%q`, g.of([]string{"Allow", "Allow", "Deny", "Pass", "Log"})),
		proto, g.sometimes(5, `"ipVersion":%d`, 4+2*g.IntN(2)),
		g.sometimes(2, `"source":%s`, g.entity()), g.sometimes(2, `"destination":%s`, g.entity()))
}

func (g *generator) entity() string {
	return members(
		g.sometimes(3, `"nets":%s`, g.some(2, genNets)), g.sometimes(5, `"notNets":%s`, g.some(2, genNets)),
		g.sometimes(3, `"selector":%q`, g.of(genSelectors)), g.sometimes(5, `"notSelector":%q`, g.of(genSelectors)),
		g.sometimes(5, `"namespaceSelector":%q`, g.of([]string{"all()", "global()", "env == 'x'", "!has(env)", "bad ="})),
		g.sometimes(6, `"serviceAccounts":%s`, g.of([]string{`{"names":["a","b"]}`, `{"selector":"has(a)"}`, `{"names":["c"],"selector":"a == 'x'"}`, `{}`, `{"selector":"a =="}`})),
		g.sometimes(5, `"ports":%s`, g.of([]string{"[80]", `["1:79",80]`, `["http",443]`, `["web"]`, `["web","http"]`, `["0:65535"]`})),
		g.sometimes(7, `"notPorts":%s`, g.of([]string{"[80]", `["1:79"]`, `["web"]`, `["http",80]`, `["1:65535"]`})))
}
