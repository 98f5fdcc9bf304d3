package explain

import (
	"net/netip"
	"testing"

	"tortie/api"
)

// translated is a world in which web has an external address in each family,
// and a pool that all addresses of workloads are in.
func translated(t testing.TB) *Cluster {
	c := world(t)
	put(t, c, web, `"role":"web"`, `"node":"h1","orchestrator":"openstack","ipNetworks":["10.0.0.1/32","fd00::1/128"],`+
		`"ipNATs":[{"internalIP":"10.0.0.1","externalIP":"198.51.100.1"},{"internalIP":"fd00::1","externalIP":"2001:db8:7::1"}]`)
	put(t, c, "IPPool p4", "", `"cidr":"10.0.0.0/24","disabled":true`)
	put(t, c, "IPPool p6", "", `"cidr":"fd00::/64"`)
	put(t, c, "GlobalNetworkPolicy all", "", `"selector":"all()","types":["Ingress","Egress"],"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`)
	return c
}

var externalOf = [2]string{"198.51.100.1", "2001:db8:7::1"}

func packet(src, dst string) Packet {
	return Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 6, SrcPort: 1000, DstPort: 80}
}

// sees checks what policy at both ends sees of a connection; "" is nothing.
func sees(t *testing.T, r Result, p Packet, sentTo, receivedFrom, receivedAt string) {
	t.Helper()
	sent, received := p, p
	if r.Sent != nil {
		sent = *r.Sent
	}
	if r.Received != nil {
		received = *r.Received
	}
	if sent.Src != p.Src || sent.Dst.String() != sentTo || received.Src.String() != receivedFrom || received.Dst.String() != receivedAt {
		t.Errorf("%v to %v: sent to %v, received from %v at %v; want %s, %s, %s", p.Src, p.Dst, sent.Dst, received.Src, received.Dst, sentTo, receivedFrom, receivedAt)
	}
}

// What a connection to, or from, a workload with an external address is to
// policy at both ends.
func TestTranslated(t *testing.T) {
	c := translated(t)
	for i := range 2 {
		e, w, d, cl, out := externalOf[i], addrs[web][i], addrs[db][i], addrs[client][i], addrs["outside"][i]
		for _, test := range []struct{ src, dst, sentTo, receivedFrom, receivedAt string }{
			{out, e, e, out, w},   // from outside
			{cl, e, w, cl, w},     // of the same host
			{d, e, e, d, w},       // of another host, which does not know where it leads
			{w, e, w, w, w},       // itself
			{w, d, d, w, d},       // inside, to another host
			{w, out, out, w, out}, // what outside sees is nothing to policy
			{cl, w, w, cl, w},
		} {
			p := packet(test.src, test.dst)
			r := c.Connection(p)
			sees(t, r, p, test.sentTo, test.receivedFrom, test.receivedAt)
			if r.Verdict != api.Allow {
				t.Errorf("%s to %s: %s", test.src, test.dst, r.Verdict)
			}
			if (r.Destination != nil) != (test.dst != out) {
				t.Errorf("%s to %s: destination %v", test.src, test.dst, r.Destination)
			}
		}
	}
	// An external address of another host: the source leaves with its own.
	put(t, c, db, `"role":"db"`, `"node":"h2","orchestrator":"openstack","ipNetworks":["10.0.0.2","fd00::2"],"ipNATs":[{"internalIP":"10.0.0.2","externalIP":"198.51.100.2"}]`)
	p := packet("10.0.0.1", "198.51.100.2")
	sees(t, c.Connection(p), p, "198.51.100.2", "198.51.100.1", "10.0.0.2")
	c.Delete(key("IPPool p4")) // without a pool nobody knows what is outside
	sees(t, c.Connection(p), p, "198.51.100.2", "10.0.0.1", "10.0.0.2")
	if k, internal, ok := c.Floating(netip.MustParseAddr("198.51.100.2")); !ok || k != key(db) || internal.String() != "10.0.0.2" {
		t.Errorf("Floating: %v %v %v", k, internal, ok)
	}
}

// Policy that selects the workload holds for its external address, and one that
// names that address does not.
func TestPolicyOfTranslated(t *testing.T) {
	for i := range 2 {
		c := translated(t)
		put(t, c, "GlobalNetworkPolicy all", "", `"selector":"role == 'client'","egress":[{"action":"Allow","destination":{"selector":"role == 'web'"}}]`)
		put(t, c, "GlobalNetworkPolicy web", "", `"selector":"role == 'web'","ingress":[{"action":"Allow","destination":{"nets":["10.0.0.1/32","fd00::1/128"]}}],"egress":[{"action":"Allow"}]`)
		if r := c.Connection(packet(addrs[client][i], externalOf[i])); r.Verdict != api.Allow {
			t.Errorf("client: %+v", r)
		}
		put(t, c, "GlobalNetworkPolicy web", "", `"selector":"role == 'web'","ingress":[{"action":"Allow","destination":{"nets":["198.51.100.0/24","2001:db8:7::/64"]}}]`)
		if r := c.Connection(packet(addrs[client][i], externalOf[i])); r.Verdict != api.Deny {
			t.Errorf("client, policy names the external address: %+v", r)
		}
	}
}

// Who has an external address.
func TestFloatingOwner(t *testing.T) {
	external := netip.MustParseAddr("198.51.100.1")
	is := func(c *Cluster, when, want string) {
		t.Helper()
		got := ""
		if k, _, ok := c.Floating(external); ok {
			got = k.Namespace + "/" + k.Name
		}
		if got != want {
			t.Errorf("%s: it is that of %q, want %q", when, got, want)
		}
	}
	c := translated(t)
	is(c, "one", "prod/web")
	const nat = `"ipNATs":[{"internalIP":"10.0.0.2","externalIP":"198.51.100.1"}]`
	put(t, c, db, "", `"node":"h2","ipNetworks":["10.0.0.2"],`+nat)
	is(c, "not of OpenStack", "prod/web")
	put(t, c, "FelixConfiguration node.h2", "", `"floatingIPs":"Enabled"`)
	is(c, "turned on", "prod/db")
	put(t, c, "FelixConfiguration node.h2", "", `"floatingIPs":"Disabled"`)
	put(t, c, "FelixConfiguration default", "", `"floatingIPs":"Enabled"`)
	is(c, "turned on, but not on that host", "prod/web")
	put(t, c, db, "", `"node":"h2","orchestrator":"openstack","ipNetworks":["10.0.0.3"],`+nat)
	is(c, "internal address not its own", "prod/web")
	put(t, c, client, "", `"node":"h1","ipNetworks":["198.51.100.1"]`)
	is(c, "somebody's own", "")
	c.Delete(key(client))
	is(c, "nobody's own again", "prod/web")
	c.Delete(key(web))
	is(c, "gone", "")
}

// What a pool masquerades comes to another host, if that is outside of all
// pools, with an address of its host.
func TestMasqueraded(t *testing.T) {
	c := world(t)
	put(t, c, "IPPool p", "", `"cidr":"10.0.0.0/31","natOutgoing":true`)
	p := packet("10.0.0.1", "10.0.0.2")
	sees(t, c.Connection(p), p, "10.0.0.2", "0.0.0.0", "10.0.0.2")
	put(t, c, "Node h1", "", `"bgp":{"ipv4Address":"172.16.0.1/24"}`)
	sees(t, c.Connection(p), p, "10.0.0.2", "172.16.0.1", "10.0.0.2")
	put(t, c, "FelixConfiguration default", "", `"natOutgoingAddress":"192.0.2.77"`)
	sees(t, c.Connection(p), p, "10.0.0.2", "192.0.2.77", "10.0.0.2")
	same := packet("10.0.0.1", "10.0.0.3")
	sees(t, c.Connection(same), same, "10.0.0.3", "10.0.0.1", "10.0.0.3")
	put(t, c, "IPPool q", "", `"cidr":"10.0.0.0/24","disabled":true`)
	sees(t, c.Connection(p), p, "10.0.0.2", "10.0.0.1", "10.0.0.2")
	six := packet("fd00::1", "fd00::2")
	sees(t, c.Connection(six), six, "fd00::2", "fd00::1", "fd00::2")
	put(t, c, "IPPool six", "", `"cidr":"fd00::/127","natOutgoing":true`)
	put(t, c, "Node h1", "", `"bgp":{"ipv6Address":"2001:db8::9/64"}`)
	sees(t, c.Connection(six), six, "fd00::2", "2001:db8::9", "fd00::2")
}

// With another source comes a source port that the host may choose.
func TestMasqueradedPort(t *testing.T) {
	for _, fam := range []struct{ pool, node, src, dst string }{
		{"10.0.0.0/31", `"ipv4Address":"172.16.0.1/24"`, "10.0.0.1", "10.0.0.2"},
		{"fd00::/127", `"ipv6Address":"2001:db8::9/64"`, "fd00::1", "fd00::2"},
	} {
		c := world(t)
		put(t, c, "IPPool p", "", `"cidr":"`+fam.pool+`","natOutgoing":true`)
		put(t, c, "Node h1", "", `"bgp":{`+fam.node+`}`)
		for _, x := range []struct {
			setting    string
			port, want uint16
		}{
			{``, 500, 32768},
			{``, 40000, 40000},
			{``, 61000, 32768},
			{`"natPortRange":"100:200"`, 500, 100},
			{`"natPortRange":"100:200"`, 150, 150},
			{`"natPortRange":7`, 500, 7},
		} {
			put(t, c, "FelixConfiguration default", "", x.setting)
			p := packet(fam.src, fam.dst)
			p.SrcPort = x.port
			if got := c.Connection(p).Received; got == nil || got.SrcPort != x.want {
				t.Errorf("%s from port %d: received as %+v, want port %d", x.setting, x.port, got, x.want)
			}
		}
	}
}

// A host looks at the source that it translates, not at who sends from it.
func TestMasqueradedByWhoeverSends(t *testing.T) {
	for _, fam := range []struct{ pool, node, src, dst string }{
		{"10.0.0.0/31", `"ipv4Address":"172.16.0.1/24"`, "10.0.0.1", "10.0.0.2"},
		{"fd00::/127", `"ipv6Address":"2001:db8::9/64"`, "fd00::1", "fd00::2"},
	} {
		c := world(t)
		put(t, c, "IPPool p", "", `"cidr":"`+fam.pool+`","natOutgoing":true`)
		put(t, c, "Node h1", "", `"bgp":{`+fam.node+`}`)
		put(t, c, client, "", `"node":"h1","ipNetworks":["10.0.9.9"],"allowSpoofedSourcePrefixes":["0.0.0.0/0","::/0"]`)
		for _, at := range []struct{ host, want string }{{"h1", c.nodeAddress("h1", fam.src == "10.0.0.1").String()}, {"h3", fam.src}} {
			put(t, c, web, "", `"node":"`+at.host+`","ipNetworks":["`+fam.src+`"]`)
			if got := c.Leaves(key(client), packet(fam.src, fam.dst)).Src.String(); got != at.want {
				t.Errorf("%s, of a workload of %s: leaves h1 as %s, want %s", fam.src, at.host, got, at.want)
			}
		}
	}
}
