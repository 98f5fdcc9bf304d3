package analysis

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tortie/api"
	"tortie/explain"
)

// What random objects are made of, and all headers that can be told apart by
// what is made of it: one address, port and protocol at least of each part.
var (
	someAddrs     = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2", "fd00::3", "2001:db8::1"}
	moreAddrs     = []string{"10.0.0.9", "10.0.0.0", "10.0.1.2", "192.0.2.1", "fd00::9", "2001:db8::9", "fd00::"}
	someRanges    = append([]string{"10.0.1.0/29", "fd00::/126", "10.0.0.0/30"}, someAddrs...)
	someNets      = []string{"10.0.0.0/24", "10.0.0.2/32", "0.0.0.0/0", "10.0.0.2/31", "fd00::/64", "fd00::2", "::/0", "nonsense"}
	someSelectors = []string{"", "all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "a in {'x','y'}", "a == ", "pcns.env == 'x'", "global()"}
	someTiers     = []string{"", "default", "t1", "t2", "t3"}
	someNames     = []string{"p", "q", "r", "s"}
	someProfiles  = []string{"p1", "p2", "kns.n1", "projectcalico-default-allow", "missing"}
)

// decode makes an object of "KIND NAME" or "KIND NAMESPACE NAME".
func decode(t testing.TB, what, labels, spec string) api.Object {
	t.Helper()
	f := strings.Fields(what)
	k := api.Key{Kind: api.Kind(f[0]), Name: f[len(f)-1]}
	if len(f) == 3 {
		k.Namespace = f[1]
	}
	o, _, err := api.DecodeKey(k, []byte(fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,"labels":{%s}},"spec":{%s}}`,
		k.Kind, k.Name, k.Namespace, labels, spec)))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return o
}

type draw struct{ t *rapid.T }

func (d draw) of(list ...string) string { return rapid.SampledFrom(list).Draw(d.t, "of") }
func (d draw) n(most int) int           { return rapid.IntRange(0, most).Draw(d.t, "n") }

func (d draw) list(most int, of []string) string {
	var out []string
	for range d.n(most) {
		out = append(out, fmt.Sprintf("%q", d.of(of...)))
	}
	return strings.Join(out, ",")
}

func (d draw) labels() string {
	return d.of("", fmt.Sprintf(`"a":%q`, d.of("x", "y", "z")), `"a":"x","pcns.env":"x"`)
}

func (d draw) entity() string {
	var f []string
	add := func(odds int, format string, args ...any) {
		if d.n(odds) == 0 {
			f = append(f, fmt.Sprintf(format, args...))
		}
	}
	add(4, `"nets":[%s]`, d.list(2, someNets))
	add(5, `"notNets":[%s]`, d.list(2, someNets))
	add(3, `"selector":%q`, d.of(someSelectors...))
	add(5, `"notSelector":%q`, d.of(someSelectors...))
	add(6, `"namespaceSelector":%q`, d.of("all()", "global()", "env == 'x'", "bad"))
	add(4, `"ports":[%s]`, d.of(`80,"1000:2000","http"`, `"http","web"`, `"web"`, `80,443`))
	add(5, `"notPorts":[%s]`, d.of("80", `"1:79"`, `"web"`))
	add(8, `"serviceAccounts":%s`, d.of(`{"names":["p","q"]}`, `{}`))
	return "{" + strings.Join(f, ",") + "}"
}

func (d draw) action() string {
	return fmt.Sprintf(`{"action":%q,`, d.of("Allow", "Allow", "Deny", "Pass", "Log", "Sink"))
}

// match is a rule after its action.
func (d draw) match() string {
	return fmt.Sprintf(`"source":%s,"destination":%s`, d.entity(), d.entity()) +
		d.of("", "", "", `,"ipVersion":4`, `,"ipVersion":6`) +
		d.of("", `,"protocol":"TCP"`, `,"protocol":"TCP"`, `,"protocol":"UDP"`, `,"protocol":"ICMP","icmp":{"type":8}`, `,"notProtocol":"TCP"`,
			`,"protocol":"ICMPv6","notICMP":{"type":128,"code":0}`, `,"protocol":"frob"`, `,"protocol":"TCP","notProtocol":"TCP"`) + "}"
}

func (d draw) rules() string {
	list := func() string {
		var rs []string
		match := d.match()
		for range d.n(3) {
			if d.n(2) > 0 { // or what a rule before matches too
				match = d.match()
			}
			rs = append(rs, d.action()+match)
		}
		return strings.Join(rs, ",")
	}
	return fmt.Sprintf(`"ingress":[%s],"egress":[%s]`, list(), list())
}

func (d draw) object(t testing.TB) api.Object {
	order := func() string { return d.of("", "", `"order":1,`, `"order":2,`) }
	switch d.n(9) {
	case 0, 1, 2, 3:
		return decode(t, "WorkloadEndpoint "+d.of("n1", "n2")+" "+d.of(someNames...), d.labels(),
			fmt.Sprintf(`"node":"h1","ipNetworks":[%s],"profiles":[%s],"serviceAccountName":%q,"ports":[%s]`, d.list(3, someRanges),
				d.list(2, someProfiles), d.of("", "p", "r"), d.of("", `{"name":"http","protocol":"TCP","port":80}`,
					`{"name":"web","protocol":"UDP","port":1},{"name":"web","protocol":"TCP","port":1500}`)))
	case 4, 5, 6:
		return decode(t, d.of("NetworkPolicy n1 ", "NetworkPolicy n2 ", "GlobalNetworkPolicy ")+d.of(someNames...), "",
			order()+d.of("", `"types":["Ingress"],`, `"types":["Ingress","Egress"],`)+
				fmt.Sprintf(`"tier":%q,"selector":%q,`, d.of(someTiers...), d.of(someSelectors...))+d.rules())
	case 7:
		return decode(t, "Tier "+d.of(someTiers[1:]...), "", order()+fmt.Sprintf(`"defaultAction":%q`, d.of("", "Deny", "Pass")))
	case 8:
		return decode(t, "Profile "+d.of(someProfiles[:3]...), "", fmt.Sprintf(`"labelsToApply":{%s},`, d.labels())+d.rules())
	}
	return decode(t, d.of("NetworkSet n1 ", "GlobalNetworkSet ")+d.of(someNames...), d.labels(), fmt.Sprintf(`"nets":[%s]`, d.list(3, someNets)))
}

func cluster(objects []api.Object) *explain.Cluster {
	c := explain.New()
	for _, o := range objects {
		c.Put(o)
	}
	return c
}

// services are all that random rules can tell apart, without addresses.
func services() []explain.Packet {
	var list []explain.Packet
	for _, protocol := range []uint8{6, 17} {
		for _, src := range []uint16{0, 1, 80, 81, 443, 1500} {
			for _, dst := range []uint16{0, 1, 79, 80, 81, 443, 1500, 2001} {
				list = append(list, explain.Packet{Protocol: protocol, SrcPort: src, DstPort: dst})
			}
		}
	}
	for _, protocol := range []uint8{1, 58} {
		for _, typ := range []uint8{0, 8, 128, 255} {
			for _, code := range []uint8{0, 1} {
				list = append(list, explain.Packet{Protocol: protocol, ICMPType: typ, ICMPCode: code})
			}
		}
	}
	return append(list, explain.Packet{Protocol: 0}, explain.Packet{Protocol: 47}, explain.Packet{Protocol: 132, DstPort: 80}, explain.Packet{Protocol: 132, DstPort: 5})
}

// spot is one end of packets: an address, and the endpoint that it is of.
type spot struct {
	key    api.Key // zero for one outside
	addr   netip.Addr
	single bool // some endpoint has it as an address, not only in a range
}

// spots returns all ends that there are in any of the states.
func spots(states ...*explain.Cluster) []spot {
	var list []spot
	for _, text := range append(append([]string{}, someAddrs...), moreAddrs...) {
		a := netip.MustParseAddr(text)
		owners, single := map[api.Key]bool{}, false
		for _, c := range states {
			for _, key := range c.Owners(a) {
				owners[key] = true
				single = single || slices.Contains(c.Addresses(key), a)
			}
		}
		for key := range owners {
			list = append(list, spot{key, a, single})
		}
		if len(owners) == 0 {
			list = append(list, spot{addr: a})
		}
	}
	return list
}
