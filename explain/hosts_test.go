package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tortie/api"
)

// hostWorld is a host h1 with two interfaces and a workload that has an
// external address too, and a host h2 with a workload.
func hostWorld(t testing.TB) *Cluster {
	c := New()
	put(t, c, "Tier default", "", `"order":1000000`)
	put(t, c, "Node h1", "", `"bgp":{"ipv4Address":"192.0.2.1/24","ipv6Address":"2001:db8::1/64"}`)
	put(t, c, "Node h2", "", `"bgp":{"ipv4Address":"192.0.2.2/24","ipv6Address":"2001:db8::2/64"}`)
	put(t, c, "FelixConfiguration default", "", `"defaultEndpointToHostAction":"Return"`)
	put(t, c, "GlobalNetworkSet far", `"far":""`, `"nets":["198.51.100.0/24","2001:db8:9::/64"]`)
	put(t, c, "GlobalNetworkSet external", `"external":""`, `"nets":["203.0.113.1","2001:db8:f::1"]`)
	put(t, c, "WorkloadEndpoint prod web", `"role":"web"`, `"orchestrator":"openstack","node":"h1","profiles":["projectcalico-default-allow"],"ipNetworks":["10.0.0.1/32","fd00::1/128"],
		"ipNATs":[{"internalIP":"10.0.0.1","externalIP":"203.0.113.1"},{"internalIP":"fd00::1","externalIP":"2001:db8:f::1"}]`)
	put(t, c, "WorkloadEndpoint prod db", `"role":"db"`, `"orchestrator":"openstack","node":"h2","profiles":["projectcalico-default-allow"],"ipNetworks":["10.0.0.2","fd00::2"]`)
	return c
}

// The ends of packets, in each family.
var hostAddrs = map[string][2]string{
	"web": {"10.0.0.1", "fd00::1"}, "db": {"10.0.0.2", "fd00::2"}, "outside": {"198.51.100.9", "2001:db8:9::9"},
	"h1": {"192.0.2.1", "2001:db8::1"}, "h2": {"192.0.2.2", "2001:db8::2"}, "float": {"203.0.113.1", "2001:db8:f::1"},
}

// said asks about TCP in both families, which must say the same, and gives the
// verdict and who decides what, and why.
func said(t *testing.T, c *Cluster, src, dst string, port uint16) string {
	t.Helper()
	var each [2]string
	for i := range each {
		p := tcp(port)
		p.Src, p.Dst = netip.MustParseAddr(hostAddrs[src][i]), netip.MustParseAddr(hostAddrs[dst][i])
		r := c.Connection(p)
		out := []string{string(r.Verdict) + ":"}
		for _, d := range r.Decisions() {
			word := fmt.Sprintf("%s %s %s of %s: %s", d.Verdict, d.Kind, d.Direction, d.Endpoint.Name, d.Reason)
			if d.Untracked {
				word += ", untracked"
			}
			out = append(out, word)
		}
		each[i] = strings.Join(out, "\n")
	}
	if each[0] != each[1] {
		t.Errorf("%s to %s: over IPv4\n%s\nover IPv6\n%s", src, dst, each[0], each[1])
	}
	return each[0]
}

const (
	onHosts  = `"selector":"has(host)",`
	noPolicy = "no policy and no profile"
	byRule   = "rule 0 of ingress GlobalNetworkPolicy(p)"
	nothing  = "no policy decides on what passes through"
	profile  = "rule 0 of %s Profile(projectcalico-default-allow)"
)

// TestHostEndpoints: who has a say in what begins in a host, ends there and
// passes through it, in which order.
func TestHostEndpoints(t *testing.T) {
	in, out := fmt.Sprintf(profile, "ingress"), fmt.Sprintf(profile, "egress")
	const forward = onHosts + `"applyOnForward":true,"types":["Ingress"],`
	for _, tt := range []struct {
		name, hep string // what the spec of h1's endpoint has besides the node
		policy    string // what its policy's has
		from, to  string
		port      uint16
		want      string
	}{
		{"no endpoint, no say", "", "", "outside", "h1", 80, "Allow:"},
		{"to the host", `"interfaceName":"eth0"`, "", "outside", "h1", 80, "Deny:\nDeny  Ingress of h: " + noPolicy},
		{"from the host", `"interfaceName":"eth0"`, "", "h1", "outside", 80, "Deny:\nDeny  Egress of h: " + noPolicy},
		{"to another host", `"interfaceName":"eth0"`, "", "outside", "h2", 80, "Allow:"},
		{"for any interface", `"interfaceName":"*"`, "", "outside", "h1", 80, "Deny:\nDeny  Ingress of h: " + noPolicy},
		{"by its address", `"expectedIPs":["192.0.2.1","2001:db8::1"]`, "", "outside", "h1", 80, "Deny:\nDeny  Ingress of h: " + noPolicy},
		{"a rule", `"interfaceName":"eth0"`, onHosts + `"ingress":[{"action":"Allow","source":{"selector":"has(far)"}}]`, "outside", "h1", 80, "Allow:\nAllow  Ingress of h: " + byRule},
		{"a rule for others", `"interfaceName":"eth0"`, onHosts + `"ingress":[{"action":"Allow","source":{"selector":"has(far)"}}]`, "h2", "h1", 80, "Deny:\nDeny  Ingress of h: end of tier default"},
		{"profiles", `"interfaceName":"eth0","profiles":["projectcalico-default-allow"]`, "", "outside", "h1", 80, "Allow:\nAllow  Ingress of h: " + in},
		{"failsafe", `"interfaceName":"eth0"`, "", "outside", "h1", 22, "Allow:\nAllow  Ingress of h: a failsafe port"},
		{"failsafe, of the other direction", `"interfaceName":"eth0"`, "", "h1", "outside", 22, "Deny:\nDeny  Egress of h: " + noPolicy},
		{"failsafe, passing through", `"interfaceName":"eth0"`, forward + `"ingress":[{"action":"Deny"}]`, "outside", "web", 22, "Deny:\nDeny applyOnForward Ingress of h: " + byRule + "\nAllow  Ingress of web: " + in},
		{"through, no policy", `"interfaceName":"eth0"`, onHosts + `"ingress":[{"action":"Deny"}]`, "outside", "web", 80, "Allow:\nAllow applyOnForward Ingress of h: " + nothing + "\nAllow  Ingress of web: " + in},
		{"through", `"interfaceName":"eth0"`, forward + `"ingress":[{"action":"Deny","source":{"selector":"has(far)"}}]`, "db", "web", 80, "Deny:\nAllow  Egress of db: " + out + "\nDeny applyOnForward Ingress of h: end of tier default\nAllow  Ingress of web: " + in},
		{"through, out", `"interfaceName":"eth0"`, onHosts + `"applyOnForward":true,"types":["Egress"],"egress":[{"action":"Deny"}]`, "web", "outside", 80, "Deny:\nAllow  Egress of web: " + out + "\nDeny applyOnForward Egress of h: rule 0 of egress GlobalNetworkPolicy(p)"},
		{"before NAT, denied", `"interfaceName":"eth0"`, forward + `"preDNAT":true,"ingress":[{"action":"Deny","destination":{"selector":"has(external)"}}]`, "outside", "float", 80, "Deny:\nDeny applyOnForward Ingress of h: " + byRule + "\nAllow  Ingress of web: " + in},
		{"before NAT, not dialled", `"interfaceName":"eth0"`, forward + `"preDNAT":true,"ingress":[{"action":"Deny","destination":{"selector":"has(external)"}}]`, "outside", "web", 80, "Allow:\nAllow applyOnForward Ingress of h: " + nothing + "\nAllow  Ingress of web: " + in},
		{"before NAT, allowed", `"interfaceName":"eth0"`, forward + `"preDNAT":true,"ingress":[{"action":"Allow"}]`, "outside", "h1", 80, "Allow:\nAllow  Ingress of h: " + byRule},
		{"untracked", `"interfaceName":"eth0"`, forward + `"doNotTrack":true,"ingress":[{"action":"Allow"}]`, "outside", "h1", 80, "Allow:\nAllow  Ingress of h: " + byRule + ", untracked"},
		{"untracked, undecided", `"interfaceName":"eth0"`, forward + `"doNotTrack":true,"ingress":[{"action":"Allow","protocol":"UDP"}]`, "outside", "h1", 80, "Deny:\nDeny  Ingress of h: " + noPolicy},
		{"untracked, to a workload", `"interfaceName":"eth0"`, forward + `"doNotTrack":true,"ingress":[{"action":"Allow"}]`, "outside", "float", 80, "Allow:\nAllow applyOnForward Ingress of h: " + nothing + "\nAllow  Ingress of web: " + in},
		{"untracked, denied to a workload", `"interfaceName":"eth0"`, forward + `"doNotTrack":true,"ingress":[{"action":"Deny"}]`, "outside", "web", 80, "Deny:\nDeny applyOnForward Ingress of h: " + byRule + "\nAllow  Ingress of web: " + in},
		{"untracked, failsafe", `"interfaceName":"eth0"`, forward + `"doNotTrack":true,"ingress":[{"action":"Deny"}]`, "outside", "web", 22, "Allow:\nAllow applyOnForward Ingress of h: " + nothing + "\nAllow  Ingress of web: " + in},
		{"a workload to its host", `"interfaceName":"eth0"`, "", "web", "h1", 80, "Allow:\nAllow  Egress of web: " + out + "\nAllow  Ingress of : DefaultEndpointToHostAction is Return, and no host endpoint is for any interface"},
		{"a workload to its host, any", `"interfaceName":"*"`, "", "web", "h1", 80, "Deny:\nAllow  Egress of web: " + out + "\nDeny  Ingress of h: " + noPolicy},
		{"a host to its workload", `"interfaceName":"eth0"`, "", "h1", "web", 80, "Allow:\nAllow  Ingress of web: its own host reaches it"},
		{"a host to its workload, any", `"interfaceName":"*"`, "", "h1", "web", 80, "Deny:\nDeny  Egress of h: " + noPolicy + "\nAllow  Ingress of web: its own host reaches it"},
		{"a workload to another host", `"interfaceName":"eth0"`, "", "db", "h1", 80, "Deny:\nAllow  Egress of db: " + out + "\nDeny  Ingress of h: " + noPolicy},
		{"within the host", `"interfaceName":"*"`, "", "h1", "h1", 80, "Allow:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := hostWorld(t)
			if tt.hep != "" {
				put(t, c, "HostEndpoint h", `"host":"yes"`, `"node":"h1",`+tt.hep)
			}
			if tt.policy != "" {
				put(t, c, "GlobalNetworkPolicy p", "", tt.policy)
			}
			if got := said(t, c, tt.from, tt.to, tt.port); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func packetOf(src, dst string, family int) Packet {
	p := tcp(80)
	p.Src, p.Dst = netip.MustParseAddr(hostAddrs[src][family]), netip.MustParseAddr(hostAddrs[dst][family])
	return p
}

// TestWhoseInterface: an interface has the endpoint that names it, else one
// that expects an address of it, else the one for any; of several, the first.
func TestWhoseInterface(t *testing.T) {
	c := New()
	put(t, c, "HostEndpoint b", "", `"node":"h1","interfaceName":"eth0"`)
	put(t, c, "HostEndpoint a", "", `"node":"h1","expectedIPs":["192.0.2.1","2001:db8::1"]`)
	put(t, c, "HostEndpoint c", "", `"node":"h1","interfaceName":"eth0","expectedIPs":["192.0.2.9"]`)
	put(t, c, "HostEndpoint z", "", `"node":"h1","interfaceName":"*"`)
	put(t, c, "HostEndpoint 0", "", `"node":"h2","interfaceName":"eth0"`)
	for _, tt := range []struct {
		name string
		addr string
		want string
	}{
		{"eth0", "192.0.2.1", "b"},
		{"eth1", "192.0.2.1", "a"},
		{"eth1", "2001:db8::1", "a"},
		{"eth1", "192.0.2.9", "z"}, // that endpoint is for eth0
		{"", "2001:db8::1", "a"},
		{"lo", "192.0.2.1", ""},
	} {
		k, _ := c.HostEndpoint("h1", Interface{tt.name, []netip.Addr{netip.MustParseAddr(tt.addr)}})
		if k.Name != tt.want {
			t.Errorf("%s with %s has %q, want %q", tt.name, tt.addr, k.Name, tt.want)
		}
	}
	c.Delete(key("HostEndpoint z"))
	if k, ok := c.HostEndpoint("h1", Interface{Name: "eth2"}); ok {
		t.Errorf("eth2 has %v", k)
	}
}

// TestHostKinds: each kind of policy has its place, whatever its tier, and what
// early policy passes on goes to the rest.
func TestHostKinds(t *testing.T) {
	c := hostWorld(t)
	put(t, c, "Tier last", "", `"order":2000000`)
	put(t, c, "HostEndpoint h", `"host":"yes"`, `"node":"h1","interfaceName":"eth0"`)
	put(t, c, "NetworkPolicy prod n", "", `"ingress":[{"action":"Allow"}]`)
	put(t, c, "GlobalNetworkPolicy spaced", "", `"namespaceSelector":"all()","ingress":[{"action":"Allow"}]`)
	put(t, c, "GlobalNetworkPolicy accounted", "", `"serviceAccountSelector":"all()","ingress":[{"action":"Allow"}]`)
	put(t, c, "GlobalNetworkPolicy raw", "", onHosts+`"tier":"last","doNotTrack":true,"applyOnForward":true,"ingress":[{"action":"Pass"}]`)
	put(t, c, "GlobalNetworkPolicy early", "", onHosts+`"tier":"last","preDNAT":true,"applyOnForward":true,"ingress":[{"action":"Deny","protocol":"UDP"}]`)
	put(t, c, "GlobalNetworkPolicy on", "", onHosts+`"applyOnForward":true,"ingress":[{"action":"Pass","protocol":"TCP"}]`)
	put(t, c, "GlobalNetworkPolicy p", "", onHosts+`"tier":"last","types":["Ingress"],"ingress":[{"action":"Allow"}]`)
	steps := func(dst string) string {
		var out []string
		r := c.Connection(packetOf("outside", dst, 0))
		for _, s := range r.Entering.Trail {
			var names []string
			for _, k := range s.Policies {
				names = append(names, k.Name)
			}
			out = append(out, fmt.Sprintf("%s %s %v %s", s.Kind, s.Tier, names, s.Action))
		}
		return strings.Join(out, "\n")
	}
	if got, want := steps("h1"), "doNotTrack last [raw] Pass\npreDNAT last [early] Pass\n default [on] Pass\n last [p] Allow"; got != want {
		t.Errorf("to the host\n%s\nwant\n%s", got, want)
	}
	if got, want := steps("web"), "doNotTrack last [raw] Pass\npreDNAT last [early] Pass\n default [on] Pass\n last [] Pass\napplyOnForward  [] Allow"; got != want {
		t.Errorf("through the host\n%s\nwant\n%s", got, want)
	}
	if n := len(c.StagesOf(key("WorkloadEndpoint prod web"), api.Ingress, Untracked)); n != 0 {
		t.Errorf("a workload has %d tiers of untracked policy", n)
	}
}

// TestFailsafes: what configuration says counts, that of the host first.
func TestFailsafes(t *testing.T) {
	c := hostWorld(t)
	put(t, c, "HostEndpoint h", "", `"node":"h1","interfaceName":"eth0"`)
	ask := func(src, dst string, port uint16, want api.Action) {
		t.Helper()
		for f := range 2 {
			p := packetOf(src, dst, f)
			p.DstPort = port
			if r := c.Connection(p); r.Verdict != want {
				t.Errorf("%s to %s port %d: %s, want %s", p.Src, p.Dst, port, r.Verdict, want)
			}
		}
	}
	ask("outside", "h1", 6443, api.Allow)
	ask("h1", "outside", 2379, api.Allow)
	put(t, c, "FelixConfiguration default", "", `"failsafeInboundHostPorts":[],"failsafeOutboundHostPorts":[{"protocol":"tcp","port":80,"net":"198.51.100.0/24"},{"protocol":"TCP","port":80,"net":"2001:db8:9::9"}]`)
	ask("outside", "h1", 22, api.Deny)
	ask("h1", "outside", 2379, api.Deny)
	ask("h1", "outside", 80, api.Allow)
	ask("h1", "h2", 80, api.Deny)
	put(t, c, "FelixConfiguration node.h1", "", `"failsafeInboundHostPorts":[{"port":23}]`)
	ask("outside", "h1", 23, api.Allow)
	put(t, c, "FelixConfiguration node.h1", "", `"failsafeInboundHostPorts":null`)
	ask("outside", "h1", 23, api.Deny)
}

// TestToHostAction: what a workload's own policy allows is up to its host.
func TestToHostAction(t *testing.T) {
	c := hostWorld(t)
	put(t, c, "HostEndpoint h", "", `"node":"h1","interfaceName":"*"`)
	for action, want := range map[string]string{
		`"Drop"`: "DefaultEndpointToHostAction is Drop", `"Accept"`: "DefaultEndpointToHostAction is Accept", `"Return"`: noPolicy, `null`: "DefaultEndpointToHostAction is Drop",
	} {
		put(t, c, "FelixConfiguration default", "", `"defaultEndpointToHostAction":`+action)
		for f := range 2 {
			if r := c.Connection(packetOf("web", "h1", f)); r.Entering.Reason != want || r.Source.Verdict != api.Allow || (r.Verdict == api.Allow) != (action == `"Accept"`) {
				t.Errorf("%s: %s: %s", action, r.Verdict, r.Entering)
			}
		}
	}
}

// TestUplink: where several interfaces might be meant, the one that is told
// counts, then the one with the host's address.
func TestUplink(t *testing.T) {
	c := hostWorld(t)
	put(t, c, "HostEndpoint a", "", `"node":"h1","interfaceName":"eth0"`)
	put(t, c, "HostEndpoint b", "", `"node":"h1","interfaceName":"eth1","expectedIPs":["192.0.2.1","2001:db8::1"]`)
	put(t, c, "HostEndpoint c", "", `"node":"h1","expectedIPs":["192.0.2.77","2001:db8::77"]`)
	hostAddrs := map[int][]string{0: {"192.0.2.77", "10.0.0.1"}, 1: {"2001:db8::77", "fd00::1"}}
	for f := range 2 {
		p := packetOf("outside", "h1", f)
		for _, tt := range []struct {
			way  Way
			dst  string
			want string
		}{
			{Way{}, p.Dst.String(), "b"},
			{Way{}, hostAddrs[f][1], "b"},
			{Way{}, hostAddrs[f][0], "c"},
			{Way{To: key("HostEndpoint a")}, p.Dst.String(), "a"},
			{Way{Via: map[string]Interface{"h1": {Name: "eth0"}}}, hostAddrs[f][1], "a"},
			{Way{Via: map[string]Interface{"h2": {Name: "eth0"}}}, hostAddrs[f][1], "b"},
		} {
			p.Dst = netip.MustParseAddr(tt.dst)
			if r := c.Along(tt.way, p); r.Entering == nil || r.Entering.Endpoint.Name != tt.want {
				t.Errorf("%v to %s: %v, want %s", tt.way, tt.dst, r.Entering, tt.want)
			}
		}
	}
	c.Delete(key("HostEndpoint b"))
	c.Delete(key("HostEndpoint c"))
	if r := c.Connection(packetOf("outside", "web", 0)); r.Entering == nil || r.Entering.Endpoint.Name != "a" {
		t.Errorf("the only one: %v", r.Entering)
	}
}
