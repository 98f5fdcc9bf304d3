package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tortie/api"
)

// put decodes an object as it is stored and puts it. What is its kind, its
// namespace or "", and its name.
func put(t testing.TB, c *Cluster, what, labels, spec string) {
	t.Helper()
	c.Put(decode(t, what, labels, spec))
}

func key(what string) api.Key {
	f := strings.Split(what, " ")
	if len(f) == 2 {
		return api.Key{Kind: api.Kind(f[0]), Name: f[1]}
	}
	return api.Key{Kind: api.Kind(f[0]), Namespace: f[1], Name: f[2]}
}

func decode(t testing.TB, what, labels, spec string) api.Object {
	t.Helper()
	k := key(what)
	doc := fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,"labels":{%s}},"spec":{%s}}`,
		k.Kind, k.Name, k.Namespace, labels, spec)
	o, _, err := api.DecodeKey(k, []byte(doc))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return o
}

// The endpoints of most tests: one web server and one database in namespace
// prod, one client in namespace dev, each with an IPv4 and an IPv6 address.
func world(t testing.TB) *Cluster {
	c := New()
	put(t, c, "WorkloadEndpoint prod web", `"role":"web"`, `"node":"h1","ipNetworks":["10.0.0.1/32","fd00::1/128"]`)
	put(t, c, "WorkloadEndpoint prod db", `"role":"db"`, `"node":"h2","ipNetworks":["10.0.0.2","fd00::2"]`)
	put(t, c, "WorkloadEndpoint dev client", `"role":"client"`, `"node":"h1","ipNetworks":["10.0.0.3","fd00::3"]`)
	return c
}

const (
	web    = "WorkloadEndpoint prod web"
	db     = "WorkloadEndpoint prod db"
	client = "WorkloadEndpoint dev client"
)

var addrs = map[string][2]string{
	web: {"10.0.0.1", "fd00::1"}, db: {"10.0.0.2", "fd00::2"}, client: {"10.0.0.3", "fd00::3"},
	"outside": {"192.0.2.9", "2001:db8::9"},
}

// both makes a packet in each family.
func both(src, dst string, p Packet) [2]Packet {
	out := [2]Packet{p, p}
	for i := range out {
		out[i].Src, out[i].Dst = netip.MustParseAddr(addrs[src][i]), netip.MustParseAddr(addrs[dst][i])
	}
	if p.Protocol == protoICMP {
		out[1].Protocol = protoICMPv6
	}
	return out
}

func tcp(port uint16) Packet { return Packet{Protocol: protoTCP, SrcPort: 40000, DstPort: port} }

// expect asks for a TCP connection in both families.
func expect(t *testing.T, c *Cluster, src, dst string, port uint16, want api.Action) {
	t.Helper()
	for _, p := range both(src, dst, tcp(port)) {
		if r := c.Connection(p); r.Verdict != want {
			t.Errorf("%s to %s port %d: %s, want %s (source %v, destination %v)", p.Src, p.Dst, port, r.Verdict, want, r.Source, r.Destination)
		}
	}
}

// expectReason asks what web's ingress policy says of a connection from db.
func expectReason(t *testing.T, c *Cluster, verdict api.Action, tier, reason string) {
	t.Helper()
	for _, p := range both(db, web, tcp(80)) {
		d := c.Endpoint(key(web), api.Ingress, p)
		if d.Verdict != verdict || d.Tier != tier || d.Reason != reason {
			t.Errorf("%s: %s in tier %q: %s; want %s in tier %q: %s", p.Src, d.Verdict, d.Tier, d.Reason, verdict, tier, reason)
		}
	}
}

const allowAll = `"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`

// Promise S2: an endpoint without policy, or that does not exist, drops
// everything, both ways.
func TestNothingConfigured(t *testing.T) {
	c := world(t)
	expect(t, c, web, "outside", 80, api.Deny)
	expect(t, c, "outside", web, 80, api.Deny)
	expect(t, c, web, db, 80, api.Deny)
	expect(t, c, "outside", "outside", 80, api.Allow) // nobody here has a say
	expectReason(t, c, api.Deny, "", "no policy and no profile")
	d := c.Endpoint(key("WorkloadEndpoint prod nobody"), api.Egress, both(web, db, tcp(80))[0])
	if d.Verdict != api.Deny || d.Reason != "no such endpoint" {
		t.Errorf("missing endpoint: %v", d)
	}
}

// Promise S3: what no rule matches is denied.
func TestImplicitDeny(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[22]}}],"egress":[{"action":"Allow"}]`)
	expect(t, c, db, web, 22, api.Allow)
	expect(t, c, db, web, 23, api.Deny)
	expectReason(t, c, api.Deny, "default", "end of tier default")
	put(t, c, "GlobalNetworkPolicy empty", "", `"tier":"empty"`)
	put(t, c, "Tier empty", "", `"order":1`)
	expectReason(t, c, api.Deny, "empty", "end of tier empty")
}

// Promise S4: inbound and outbound rules are separate lists.
func TestDirections(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy in", "", `"selector":"role == 'web'","ingress":[{"action":"Allow"}],"types":["Ingress"]`)
	expect(t, c, "outside", web, 80, api.Allow)
	expect(t, c, web, "outside", 80, api.Deny)
	put(t, c, "GlobalNetworkPolicy in", "", `"selector":"role == 'web'","egress":[{"action":"Allow"}]`)
	expect(t, c, "outside", web, 80, api.Deny) // no types: both
	expect(t, c, web, "outside", 80, api.Allow)
	expect(t, c, web, db, 80, api.Deny) // both ends are enforced
	r := c.Connection(both(web, db, tcp(80))[0])
	if r.Source.Verdict != api.Allow || r.Destination.Verdict != api.Deny {
		t.Errorf("source %v, destination %v", r.Source, r.Destination)
	}
}

// Promise S5: protocol, prefix, port, ICMP type and code, and membership.
func TestMatches(t *testing.T) {
	icmp := func(typ, code uint8) Packet { return Packet{Protocol: protoICMP, ICMPType: typ, ICMPCode: code} }
	udp := Packet{Protocol: protoUDP, SrcPort: 53, DstPort: 1000}
	for _, tt := range []struct {
		rule   string // but for its action
		packet Packet
		v4, v6 bool
	}{
		{``, tcp(80), true, true},
		{`"ipVersion":4`, tcp(80), true, false},
		{`"ipVersion":6`, tcp(80), false, true},
		{`"protocol":"TCP"`, tcp(80), true, true},
		{`"protocol":6`, tcp(80), true, true},
		{`"protocol":"UDP"`, tcp(80), false, false},
		{`"notProtocol":"UDP"`, tcp(80), true, true},
		{`"notProtocol":"TCP"`, tcp(80), false, false},
		{`"protocol":47`, Packet{Protocol: 47}, true, true},
		{`"protocol":"ICMP"`, icmp(8, 0), true, false},
		{`"protocol":"ICMPv6"`, icmp(8, 0), false, true},
		{`"protocol":"ICMP","icmp":{"type":8}`, icmp(8, 3), true, false},
		{`"protocol":"ICMP","icmp":{"type":8,"code":0}`, icmp(8, 3), false, false},
		{`"protocol":"ICMPv6","icmp":{"type":128,"code":1}`, icmp(128, 1), false, true},
		{`"protocol":"ICMPv6","icmp":{"type":128}`, icmp(129, 1), false, false},
		{`"protocol":"ICMP","notICMP":{"type":8}`, icmp(8, 3), false, false},
		{`"protocol":"ICMP","notICMP":{"type":8,"code":0}`, icmp(8, 3), true, false},
		{`"protocol":"ICMPv6","notICMP":{"type":8}`, icmp(9, 3), false, true},
		{`"protocol":"TCP","icmp":{"type":8}`, tcp(80), false, false}, // bad: Never
		{`"source":{"nets":["10.0.0.0/8"]}`, tcp(80), true, false},
		{`"source":{"nets":["fd00::/8"]}`, tcp(80), false, true},
		{`"source":{"nets":["10.0.0.3","10.0.0.2"]}`, tcp(80), true, false},
		{`"source":{"nets":["0.0.0.0/0","::/0"]}`, tcp(80), true, true},
		{`"source":{"nets":["10.0.0.0/8","fd00::/16"],"notNets":["10.0.0.2/32","fd00::/126"]}`, tcp(80), false, false},
		{`"source":{"nets":["10.0.0.0/8","fd00::/16"],"notNets":["10.0.0.3/32","fd00::8/126"]}`, tcp(80), true, true},
		{`"source":{"notNets":["10.9.0.0/16"]}`, tcp(80), true, false}, // is about IPv4
		{`"destination":{"nets":["10.0.0.1/32"]},"source":{"nets":["fd00::/8"]}`, tcp(80), false, false},
		{`"protocol":"TCP","destination":{"ports":[22,80]}`, tcp(80), true, true},
		{`"protocol":"TCP","destination":{"ports":["79:81"]}`, tcp(80), true, true},
		{`"protocol":"TCP","destination":{"ports":["81:90",79]}`, tcp(80), false, false},
		{`"protocol":"TCP","destination":{"notPorts":[80]}`, tcp(80), false, false},
		{`"protocol":"TCP","destination":{"notPorts":["81:90"]}`, tcp(80), true, true},
		{`"protocol":"TCP","source":{"ports":[40000]}`, tcp(80), true, true},
		{`"protocol":"TCP","source":{"ports":[80]}`, tcp(80), false, false},
		{`"protocol":"UDP","source":{"ports":[53]},"destination":{"ports":["1:1000"],"notPorts":[53]}`, udp, true, true},
		{`"protocol":"TCP","destination":{"ports":["http"]}`, tcp(80), false, false}, // not built: Never
		{`"protocol":"TCP","destination":{"ports":["http",80]}`, tcp(80), true, true},
		{`"http":{"methods":["GET"]}`, tcp(80), false, false},
		{`"source":{"serviceAccounts":{"names":["x"]}}`, tcp(80), false, false},
		{`"source":{"selector":"role == 'db'"}`, tcp(80), true, true},
		{`"source":{"selector":"role == 'web'"}`, tcp(80), false, false},
		{`"source":{"selector":"!has(nothing)"}`, tcp(80), true, true},
		{`"source":{"notSelector":"role == 'db'"}`, tcp(80), false, false},
		{`"source":{"notSelector":"role == 'web'"}`, tcp(80), true, true},
		{`"source":{"selector":"has(role)","notSelector":"role == 'db'"}`, tcp(80), false, false},
		{`"source":{"selector":"role =="}`, tcp(80), false, false}, // does not parse: Never
		{`"destination":{"selector":"role == 'web'"}`, tcp(80), true, true},
	} {
		c := world(t)
		put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Allow"`+strings.TrimSuffix(","+tt.rule, ",")+`}]`)
		ps := both(db, web, tt.packet)
		for i, want := range []bool{tt.v4, tt.v6} {
			if got := c.Endpoint(key(web), api.Ingress, ps[i]).Verdict == api.Allow; got != want {
				t.Errorf("{%s} matches %v: %v, want %v", tt.rule, ps[i], got, want)
			}
		}
	}
}

// A selector means known addresses only, a negated one everything else too.
func TestSelectorsAndOutside(t *testing.T) {
	for rule, want := range map[string]api.Action{
		`"source":{"selector":"all()"}`:                                        api.Deny,
		`"source":{"selector":"!has(role)"}`:                                   api.Deny,
		`"source":{"notSelector":"has(role)"}`:                                 api.Allow,
		`"source":{"notSelector":"all()"}`:                                     api.Allow,
		`"source":{"namespaceSelector":"all()"}`:                               api.Deny,
		`"source":{"selector":""}`:                                             api.Allow,
		`"source":{"selector":"all()"},"destination":{"selector":"has(role)"}`: api.Deny,
	} {
		c := world(t)
		put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Allow",`+rule+`}]`)
		expect(t, c, "outside", web, 80, want)
	}
	c := world(t)
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Deny","source":{"selector":"bad =="}},{"action":"Allow"}]`)
	expect(t, c, "outside", web, 80, api.Deny) // a Deny rule loses its bad field
}

// Promise S6: the first Allow or Deny is final; Log goes on.
func TestFirstMatchIsFinal(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Log"},{"action":"Allow","ipVersion":4,"source":{"nets":["1.2.3.4"]}},`+
		`{"action":"log","protocol":"TCP"},{"action":"Deny"},{"action":"Allow"},{"action":"Log"}]`)
	expectReason(t, c, api.Deny, "default", "rule 3 of ingress GlobalNetworkPolicy(p)")
	d := c.Endpoint(key(web), api.Ingress, both(db, web, tcp(80))[1])
	if got := fmt.Sprint(d.Logs); got != "[GlobalNetworkPolicy//p/Ingress/0 GlobalNetworkPolicy//p/Ingress/2]" {
		t.Errorf("logs: %s", got)
	}
	if d.Rule == nil || d.Rule.String() != "GlobalNetworkPolicy//p/Ingress/3" {
		t.Errorf("rule: %v", d.Rule)
	}
	if got := d.String(); got != "Deny Ingress of WorkloadEndpoint(prod/web): rule 3 of ingress GlobalNetworkPolicy(p)" {
		t.Errorf("decision prints %q", got)
	}
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Allow"},{"action":"Deny"}]`)
	expectReason(t, c, api.Allow, "default", "rule 0 of ingress GlobalNetworkPolicy(p)")
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Permit"},{"action":"Allow"}]`)
	expectReason(t, c, api.Deny, "default", "rule 0 of ingress GlobalNetworkPolicy(p)")
}

// Promise S7: each NIC of one machine has its own policy.
func TestTwoNICs(t *testing.T) {
	c := New()
	put(t, c, "WorkloadEndpoint prod vm-a", `"net":"front"`, `"workload":"vm","endpoint":"a","ipNetworks":["10.0.0.1","fd00::1"]`)
	put(t, c, "WorkloadEndpoint prod vm-b", `"net":"back"`, `"workload":"vm","endpoint":"b","ipNetworks":["10.0.0.2","fd00::2"]`)
	put(t, c, "GlobalNetworkPolicy p", "", `"selector":"net == 'back'","ingress":[{"action":"Allow"}]`)
	expect(t, c, "outside", web, 80, api.Deny) // the address of vm-a
	expect(t, c, "outside", db, 80, api.Allow) // the address of vm-b
}

// Promise S8: membership follows endpoints and profile changes by itself.
func TestMembershipFollows(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy p", "", `"selector":"role == 'web'","ingress":[{"action":"Allow","source":{"selector":"trusted == 'yes'"}}]`)
	put(t, c, "GlobalNetworkPolicy out", "", `"egress":[{"action":"Allow"}],"types":["Egress"]`)
	expect(t, c, db, web, 80, api.Deny)
	put(t, c, db, `"role":"db","trusted":"yes"`, `"ipNetworks":["10.0.0.2","fd00::2"]`)
	expect(t, c, db, web, 80, api.Allow)
	put(t, c, db, `"role":"db"`, `"ipNetworks":["10.0.0.2","fd00::2"],"profiles":["p1","p2"]`)
	expect(t, c, db, web, 80, api.Deny)
	put(t, c, "Profile p2", "", `"labelsToApply":{"trusted":"yes"}`)
	expect(t, c, db, web, 80, api.Allow)
	put(t, c, "Profile p1", "", `"labelsToApply":{"trusted":"no"}`) // the first wins
	expect(t, c, db, web, 80, api.Deny)
	c.Delete(key("Profile p1"))
	expect(t, c, db, web, 80, api.Allow)
	put(t, c, db, `"role":"db","trusted":"no"`, `"ipNetworks":["10.0.0.2","fd00::2"],"profiles":["p2"]`) // its own wins
	expect(t, c, db, web, 80, api.Deny)
	put(t, c, "GlobalNetworkSet s", `"trusted":"yes"`, `"nets":["192.0.2.0/24","10.0.0.2","2001:db8::/32","fd00::2"]`)
	expect(t, c, db, web, 80, api.Allow)
	expect(t, c, "outside", web, 80, api.Allow)
	c.Delete(key("GlobalNetworkSet s"))
	expect(t, c, "outside", web, 80, api.Deny)
	put(t, c, db, `"trusted":"yes"`, `"ipNetworks":["10.0.0.77","fd00::77"]`) // the address moves on
	expect(t, c, db, web, 80, api.Deny)
	c.Delete(key(db))
	c.Delete(key(web))
	expect(t, c, db, web, 80, api.Allow) // both are outside now
}

// Promise S9: one rule gives the members of a group access to a database.
func TestDatabaseUsers(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy out", "", `"egress":[{"action":"Allow"}],"types":["Egress"]`)
	put(t, c, "GlobalNetworkPolicy db", "", `"selector":"role == 'db'","types":["Ingress"],`+
		`"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"has(db-user)"},"destination":{"ports":[5432]}}]`)
	expect(t, c, web, db, 5432, api.Deny)
	put(t, c, web, `"role":"web","db-user":""`, `"ipNetworks":["10.0.0.1","fd00::1"]`)
	expect(t, c, web, db, 5432, api.Allow)
	expect(t, c, web, db, 5433, api.Deny)
	expect(t, c, client, db, 5432, api.Deny)
	put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"]`)
	expect(t, c, web, db, 5432, api.Deny)
}

func TestTierOrder(t *testing.T) {
	c := world(t)
	deny, allow := `"ingress":[{"action":"Deny"}]`, `"ingress":[{"action":"Allow"}]`
	put(t, c, "GlobalNetworkPolicy zz-missing", "", `"tier":"a-missing",`+allow)
	expectReason(t, c, api.Allow, "a-missing", "rule 0 of ingress GlobalNetworkPolicy(zz-missing)")
	put(t, c, "Tier z", "", "")
	put(t, c, "GlobalNetworkPolicy z", "", `"tier":"z",`+deny) // no order, but it exists
	expectReason(t, c, api.Deny, "z", "rule 0 of ingress GlobalNetworkPolicy(z)")
	put(t, c, "Tier y", "", "")
	put(t, c, "GlobalNetworkPolicy y", "", `"tier":"y",`+allow) // equal order: by name
	expectReason(t, c, api.Allow, "y", "rule 0 of ingress GlobalNetworkPolicy(y)")
	put(t, c, "Tier zz", "", `"order":1e9`)
	put(t, c, "GlobalNetworkPolicy zz", "", `"tier":"zz",`+deny)
	expectReason(t, c, api.Deny, "zz", "rule 0 of ingress GlobalNetworkPolicy(zz)")
	put(t, c, "Tier zzz", "", `"order":-1`)
	put(t, c, "GlobalNetworkPolicy zzz", "", `"tier":"zzz",`+allow)
	expectReason(t, c, api.Allow, "zzz", "rule 0 of ingress GlobalNetworkPolicy(zzz)")
	c.Delete(key("Tier zzz")) // now it is missing, and after a-missing
	expectReason(t, c, api.Deny, "zz", "rule 0 of ingress GlobalNetworkPolicy(zz)")
}

func TestTierEndsAndPass(t *testing.T) {
	c := world(t)
	put(t, c, web, "", `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["allow"]`)
	put(t, c, "Profile allow", "", allowAll)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)")
	put(t, c, "Tier first", "", `"order":1,"defaultAction":"Pass"`)
	put(t, c, "GlobalNetworkPolicy a", "", `"tier":"first"`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)")
	put(t, c, "Tier second", "", `"order":2,"defaultAction":"pass"`) // not exactly Pass
	put(t, c, "GlobalNetworkPolicy b", "", `"tier":"second"`)
	expectReason(t, c, api.Deny, "second", "end of tier second")
	put(t, c, "GlobalNetworkPolicy b", "", `"tier":"second","types":["Egress"]`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)") // not in this direction
	put(t, c, "GlobalNetworkPolicy b", "", `"tier":"second","selector":"role == 'db'"`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)") // not this endpoint
	put(t, c, "GlobalNetworkPolicy b", "", `"tier":"second","ingress":[{"action":"Pass"},{"action":"Deny"}]`)
	put(t, c, "GlobalNetworkPolicy c", "", `"tier":"second","ingress":[{"action":"Deny"}]`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)")
	put(t, c, "GlobalNetworkPolicy d", "", `"tier":"third"`) // no such tier: Deny
	expectReason(t, c, api.Deny, "third", "end of tier third")
	put(t, c, "Tier third", "", `"defaultAction":"Pass"`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(allow)")
}

func TestPolicyOrder(t *testing.T) {
	for _, tt := range []struct{ first, second string }{ // "what|order"
		{"GlobalNetworkPolicy z|1", "GlobalNetworkPolicy a|2"},
		{"GlobalNetworkPolicy z|-0.5", "GlobalNetworkPolicy a|0"},
		{"GlobalNetworkPolicy z|1e30", "GlobalNetworkPolicy a|"},
		{"GlobalNetworkPolicy a|", "GlobalNetworkPolicy b|"},
		{"GlobalNetworkPolicy a-b|7", "GlobalNetworkPolicy a|7"}, // '-' comes before '/'
		{"GlobalNetworkPolicy a|", "NetworkPolicy prod a|"},      // an empty namespace before another
		{"NetworkPolicy prod a|", "GlobalNetworkPolicy b|"},
	} {
		c := world(t)
		for i, what := range []string{tt.second, tt.first} {
			what, order, _ := strings.Cut(what, "|")
			if order != "" {
				order = `"order":` + order + ","
			}
			put(t, c, what, "", order+`"ingress":[{"action":"`+[]string{"Deny", "Allow"}[i]+`"}]`)
		}
		what, _, _ := strings.Cut(tt.first, "|")
		expectReason(t, c, api.Allow, "default", "rule 0 of ingress "+key(what).String())
	}
}

func TestProfiles(t *testing.T) {
	c := world(t)
	profiles := func(list string) {
		put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":[`+list+`]`)
	}
	profiles(`"missing"`)
	expectReason(t, c, api.Deny, "", "no profile matched")
	profiles(`"missing","projectcalico-default-allow"`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(projectcalico-default-allow)")
	put(t, c, "Profile projectcalico-default-allow", "", `"ingress":[{"action":"Deny"}],"labelsToApply":{"x":"y"}`) // it is built in
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(projectcalico-default-allow)")
	put(t, c, "Profile no", "", `"ingress":[{"action":"Log"},{"action":"Deny","protocol":"TCP"}]`)
	profiles(`"no","projectcalico-default-allow"`)
	expectReason(t, c, api.Deny, "", "rule 1 of ingress Profile(no)")
	put(t, c, "Profile no", "", `"ingress":[{"action":"Pass"}],"egress":[{"action":"Deny"}]`)
	expectReason(t, c, api.Deny, "", "no profile matched") // after profiles comes nothing
	put(t, c, "Profile no", "", `"egress":[{"action":"Deny"}]`)
	expectReason(t, c, api.Allow, "", "rule 0 of ingress Profile(projectcalico-default-allow)")
	if d := c.Endpoint(key(web), api.Egress, both(web, db, tcp(80))[0]); d.Verdict != api.Deny || d.Rule.String() != "Profile//no/Egress/0" {
		t.Errorf("egress: %v", d)
	}
	put(t, c, "GlobalNetworkPolicy p", "", "") // a tier that decides
	expectReason(t, c, api.Deny, "default", "end of tier default")
}

func TestNamespaces(t *testing.T) {
	base := func() *Cluster {
		c := world(t)
		put(t, c, "Profile kns.prod", "", `"labelsToApply":{"pcns.env":"live","pcns.projectcalico.org/name":"prod"}`)
		put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["kns.prod"]`)
		put(t, c, db, `"role":"db","projectcalico.org/namespace":"dev"`, `"ipNetworks":["10.0.0.2","fd00::2"],"profiles":["kns.prod"],"serviceAccountName":"sa","orchestrator":"openstack"`)
		put(t, c, client, `"role":"client","pcns.env":"live","pcsa.x":"y"`, `"ipNetworks":["10.0.0.3","fd00::3"]`) // it only claims to be
		put(t, c, "GlobalNetworkPolicy out", "", `"egress":[{"action":"Allow"}],"types":["Egress"]`)
		return c
	}
	for _, tt := range []struct {
		policy, source              string
		fromDB, fromClient, outside bool
	}{
		{"NetworkPolicy prod p", ``, true, true, true},
		{"NetworkPolicy prod p", `"selector":"has(role)"`, true, false, false},
		{"NetworkPolicy prod p", `"selector":"all()"`, true, false, false},
		{"NetworkPolicy prod p", `"selector":"role == 'client'"`, false, false, false},
		{"NetworkPolicy prod p", `"selector":"role == 'client'","namespaceSelector":"all()"`, false, true, false},
		{"NetworkPolicy prod p", `"namespaceSelector":"all()"`, true, true, false},
		{"NetworkPolicy prod p", `"namespaceSelector":"env == 'live'"`, true, false, false},
		{"NetworkPolicy prod p", `"namespaceSelector":"projectcalico.org/name == 'prod'","selector":"role == 'db'"`, true, false, false},
		{"NetworkPolicy prod p", `"namespaceSelector":"global()"`, false, false, true},
		{"NetworkPolicy prod p", `"notSelector":"role == 'client'"`, true, false, true}, // in any namespace
		{"NetworkPolicy dev p", ``, false, false, false},                                // selects dev's endpoints only
		{"GlobalNetworkPolicy p", `"selector":"has(role)"`, true, true, false},
		{"GlobalNetworkPolicy p", `"selector":"projectcalico.org/namespace == 'prod'"`, true, false, false},
		{"GlobalNetworkPolicy p", `"selector":"projectcalico.org/namespace == 'dev'"`, false, true, false},
		{"GlobalNetworkPolicy p", `"selector":"projectcalico.org/serviceaccount == 'sa'"`, true, false, false},
		{"GlobalNetworkPolicy p", `"selector":"projectcalico.org/orchestrator == 'openstack'"`, true, false, false},
		{"GlobalNetworkPolicy p", `"selector":"has(pcns.env)"`, true, false, false},
		{"GlobalNetworkPolicy p", `"selector":"has(pcsa.x)"`, false, false, false},
		{"GlobalNetworkPolicy p", `"namespaceSelector":"env != 'live'"`, false, true, true},
	} {
		c := base()
		// What is outside is in a global set, and claims to be in prod.
		put(t, c, "GlobalNetworkSet s", `"threat":"yes","projectcalico.org/namespace":"prod"`, `"nets":["192.0.2.0/24","2001:db8::/32"]`)
		put(t, c, tt.policy, "", `"types":["Ingress"],"ingress":[{"action":"Allow","source":{`+tt.source+`}}]`)
		for src, want := range map[string]bool{db: tt.fromDB, client: tt.fromClient, "outside": tt.outside} {
			verdict := api.Deny
			if want {
				verdict = api.Allow
			}
			t.Run(tt.policy+" "+tt.source+" "+src, func(t *testing.T) { expect(t, c, src, web, 80, verdict) })
		}
	}
}

func TestNetworkSetOfNamespace(t *testing.T) {
	c := world(t)
	put(t, c, "NetworkPolicy prod p", "", `"ingress":[{"action":"Allow","source":{"selector":"kind == 'lb'"}}]`)
	put(t, c, "NetworkSet dev s", `"kind":"lb"`, `"nets":["192.0.2.0/24","2001:db8::/32"]`)
	expect(t, c, "outside", web, 80, api.Deny)
	put(t, c, "NetworkSet prod s", `"kind":"lb"`, `"nets":["192.0.2.0/24","2001:db8::/32"]`)
	expect(t, c, "outside", web, 80, api.Allow)
	put(t, c, "NetworkPolicy prod p", "", `"ingress":[{"action":"Allow","source":{"namespaceSelector":"env == 'live'"}}]`)
	expect(t, c, "outside", web, 80, api.Deny)
	put(t, c, "Profile kns.prod", "", `"labelsToApply":{"pcns.env":"live"}`)
	expect(t, c, "outside", web, 80, api.Allow)
	c.Delete(key("NetworkSet prod s"))
	expect(t, c, "outside", web, 80, api.Deny)
}

func TestPolicySelection(t *testing.T) {
	for spec, want := range map[string]bool{
		``:                                        true,
		`"selector":"all()"`:                      true,
		`"selector":"role == 'web'"`:              true,
		`"selector":"role == 'db'"`:               false,
		`"selector":"role = 'web'"`:               false, // does not parse: nothing
		`"namespaceSelector":"env == 'live'"`:     true,
		`"namespaceSelector":"env == 'test'"`:     false,
		`"namespaceSelector":"all()"`:             true,
		`"namespaceSelector":"env =="`:            false,
		`"serviceAccountSelector":"all()"`:        false, // it has none
		`"serviceAccountSelector":"!has(any)"`:    false,
		`"doNotTrack":true,"applyOnForward":true`: false,
		`"preDNAT":true,"applyOnForward":true`:    false,
		`"applyOnForward":true`:                   true,
		`"types":["Egress"]`:                      false,
		`"types":["Egress","Ingress"]`:            true,
	} {
		c := world(t)
		put(t, c, "Profile kns.prod", "", `"labelsToApply":{"pcns.env":"live"}`)
		put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["kns.prod"]`)
		put(t, c, "GlobalNetworkPolicy p", "", strings.TrimSuffix(`"ingress":[{"action":"Allow"}],`+spec, ","))
		if d := c.Endpoint(key(web), api.Ingress, both(db, web, tcp(80))[0]); (d.Verdict == api.Allow) != want {
			t.Errorf("{%s} selects web: %v, want %v", spec, d, want)
		}
	}
	c := world(t)
	put(t, c, "Profile ksa.prod.sa", "", `"labelsToApply":{"pcsa.any":"x"}`)
	put(t, c, web, "", `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["ksa.prod.sa"],"serviceAccountName":"sa"`)
	put(t, c, "GlobalNetworkPolicy p", "", `"serviceAccountSelector":"has(any)",`+allowAll)
	expectReason(t, c, api.Allow, "default", "rule 0 of ingress GlobalNetworkPolicy(p)")
}

func TestStagedPoliciesAreNotEnforced(t *testing.T) {
	c := world(t)
	put(t, c, "StagedGlobalNetworkPolicy s", "", allowAll)
	put(t, c, "StagedNetworkPolicy prod s", "", allowAll)
	put(t, c, "HostEndpoint h", "", `"node":"h1","expectedIPs":["10.0.0.1"]`)
	expectReason(t, c, api.Deny, "", "no policy and no profile")
}

// With what is staged in force, in both families: in the place of a policy, or
// without it.
func TestStaged(t *testing.T) {
	for text, c := range map[string]struct {
		kind, spec string
		want       api.Action
	}{
		"nothing":           {"", "", api.Deny},
		"set":               {"StagedGlobalNetworkPolicy p", allowAll, api.Allow},
		"set by name":       {"StagedGlobalNetworkPolicy p", `"stagedAction":"Set",` + allowAll, api.Allow},
		"learn":             {"StagedGlobalNetworkPolicy p", `"stagedAction":"Learn",` + allowAll, api.Allow},
		"ignore":            {"StagedGlobalNetworkPolicy p", `"stagedAction":"Ignore",` + allowAll, api.Deny},
		"of no known kind":  {"StagedGlobalNetworkPolicy p", `"stagedAction":"Merge",` + allowAll, api.Deny},
		"delete":            {"StagedGlobalNetworkPolicy p", `"stagedAction":"Delete"`, api.Allow},
		"delete another":    {"StagedGlobalNetworkPolicy q", `"stagedAction":"Delete"`, api.Deny},
		"set before":        {"StagedGlobalNetworkPolicy q", `"order":1,` + allowAll, api.Allow},
		"set after":         {"StagedGlobalNetworkPolicy q", `"order":9,` + allowAll, api.Deny},
		"another namespace": {"StagedNetworkPolicy other q", `"order":1,` + allowAll, api.Deny},
		"its namespace":     {"StagedNetworkPolicy prod q", `"order":1,` + allowAll, api.Allow},
		"selects nothing":   {"StagedGlobalNetworkPolicy p", `"selector":"has(no)"`, api.Allow},
		"for the raw table": {"StagedGlobalNetworkPolicy p", `"doNotTrack":true,"applyOnForward":true,` + allowAll, api.Deny},
	} {
		cluster := world(t)
		put(t, cluster, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["projectcalico-default-allow"]`)
		put(t, cluster, db, `"role":"db"`, `"ipNetworks":["10.0.0.2","fd00::2"],"profiles":["projectcalico-default-allow"]`)
		put(t, cluster, "GlobalNetworkPolicy p", "", `"order":5,"types":["Ingress"],"ingress":[{"action":"Deny"}]`)
		if c.kind != "" {
			put(t, cluster, c.kind, "", c.spec)
		}
		for _, p := range both(db, web, tcp(80)) {
			if r := cluster.Connection(p); r.Verdict != api.Deny {
				t.Errorf("%s: in force already: %+v", text, r)
			}
			if r := cluster.Staged().Connection(p); r.Verdict != c.want {
				t.Errorf("%s: %s to %s: %v, want %s", text, p.Src, p.Dst, r.Destination, c.want)
			}
		}
		if c.kind != "" {
			cluster.Delete(key(c.kind))
			if r := cluster.Staged().Connection(both(db, web, tcp(80))[0]); r.Verdict != api.Deny {
				t.Errorf("%s: deleted, and still tried: %+v", text, r)
			}
		}
	}
}

func TestSharedAddress(t *testing.T) {
	c := New()
	put(t, c, "WorkloadEndpoint ns h1-openstack-b-b", `"role":"b"`, `"ipNetworks":["10.0.0.1","fd00::1"]`)
	put(t, c, "WorkloadEndpoint ns h1-openstack-a-a", `"role":"a"`, `"ipNetworks":["10.0.0.1","fd00::1"]`)
	put(t, c, "WorkloadEndpoint ns h2-openstack-c-c", `"role":"c"`, `"ipNetworks":["10.0.0.1","fd00::1"]`)
	put(t, c, "WorkloadEndpoint ns h2-openstack-d-d", `"role":"d"`, `"ipNetworks":["10.0.0.2","fd00::2"]`)
	put(t, c, "WorkloadEndpoint ns e", `"role":"e"`, `"node":"h2","ipNetworks":["10.0.0.3","fd00::3"]`)
	put(t, c, "GlobalNetworkPolicy p", "", `"selector":"role == 'd'","ingress":[{"action":"Allow","source":{"selector":"role == 'b'"}}],"egress":[{"action":"Allow"}]`)
	for i := range 2 {
		one := both(web, db, tcp(80))[i]
		r := c.Connection(one)
		if got := r.Source.Endpoint.Name; got != "h1-openstack-a-a" {
			t.Errorf("%s is sent by %s, want the lowest key", one.Src, got)
		}
		if r.Destination.Verdict != api.Allow {
			t.Errorf("the address is no member of what selects b alone: %v", r.Destination)
		}
		for _, src := range []string{db, client} { // both on h2, by name and by spec
			if r = c.Connection(both(src, web, tcp(80))[i]); r.Destination.Endpoint.Name != "h2-openstack-c-c" {
				t.Errorf("the receiver is %s, want the one on the sender's host", r.Destination.Endpoint)
			}
		}
	}
	c.Delete(key("WorkloadEndpoint ns h1-openstack-a-a"))
	c.Delete(key("WorkloadEndpoint ns h2-openstack-c-c"))
	r := c.Connection(both(db, web, tcp(80))[0])
	if r.Destination.Endpoint.Name != "h1-openstack-b-b" {
		t.Errorf("the receiver is %s, want the one that is left", r.Destination.Endpoint)
	}
}

func TestMappedAddresses(t *testing.T) {
	c := world(t)
	put(t, c, "GlobalNetworkPolicy p", "", `"ingress":[{"action":"Allow","ipVersion":4}],"egress":[{"action":"Allow","ipVersion":4}]`)
	p := tcp(80)
	p.Src, p.Dst = netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2")
	if r := c.Connection(p); r.Verdict != api.Allow || r.Source == nil || r.Destination == nil {
		t.Errorf("mapped addresses: %v", r)
	}
}

func TestNamedPorts(t *testing.T) {
	for rule, want := range map[string]api.Action{
		`"destination":{"ports":["http"]}`:                                                       api.Allow,
		`"protocol":"TCP","destination":{"ports":[22,"http"]}`:                                   api.Allow,
		`"protocol":"UDP","destination":{"ports":["http"]}`:                                      api.Deny,
		`"destination":{"ports":["dns"]}`:                                                        api.Deny, // names UDP
		`"destination":{"selector":"role == 'db'","ports":["http"]}`:                             api.Deny, // db has another
		`"destination":{"selector":"role == 'web'","ports":["http"]}`:                            api.Allow,
		`"destination":{"notPorts":["http"]}`:                                                    api.Deny,
		`"destination":{"notPorts":["dns"]}`:                                                     api.Allow,
		`"source":{"ports":["http"]}`:                                                            api.Deny,
		`"source":{"serviceAccounts":{"names":["sa","x"]}}`:                                      api.Allow,
		`"source":{"serviceAccounts":{"names":["x"]}}`:                                           api.Deny,
		`"source":{"serviceAccounts":{"names":["sa"],"selector":"team == 'a'"}}`:                 api.Allow,
		`"source":{"serviceAccounts":{"selector":"team == 'b'"}}`:                                api.Deny,
		`"source":{"serviceAccounts":{"selector":"!has(nothing)"}}`:                              api.Allow,
		`"destination":{"serviceAccounts":{"selector":"!has(nothing)"}}`:                         api.Deny, // it has none
		`"source":{"services":{"name":"s"}}`:                                                     api.Deny, // not built: no wider
		`"http":{"methods":["GET"]}`:                                                             api.Deny,
		`"source":{"selector":"all()","serviceAccounts":{"names":["sa"]},"nets":["10.0.0.0/8"]}`: api.Deny, // in IPv6
	} {
		c := world(t)
		put(t, c, "Profile ksa", "", `"labelsToApply":{"pcsa.team":"a"}`)
		put(t, c, db, `"role":"db"`, `"ipNetworks":["10.0.0.2","fd00::2"],"serviceAccountName":"sa","profiles":["ksa"],"ports":[{"name":"http","protocol":"TCP","port":8080}]`)
		put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"ports":[{"name":"http","protocol":"TCP","port":80},{"name":"dns","protocol":"UDP","port":80}]`)
		put(t, c, "GlobalNetworkPolicy p", "", `"performanceHints":["AssumeNeededOnEveryNode"],"types":["Ingress"],"ingress":[{"action":"Allow",`+rule+`}]`)
		p := both(db, web, tcp(80))[1]
		if d := c.Endpoint(key(web), api.Ingress, p); d.Verdict != want {
			t.Errorf("%s: %v, want %s", rule, d, want)
		}
	}
}

// What a DHCP server sends to a client is refused from a workload, whatever its
// policy allows; the question, and the answer to a relay, are policy's.
func TestWorkloadIsNoDHCPServer(t *testing.T) {
	c := New()
	put(t, c, web, "", `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["projectcalico-default-allow"]`)
	put(t, c, db, "", `"ipNetworks":["10.0.0.2","fd00::2"],"profiles":["projectcalico-default-allow"]`)
	for _, p := range []struct {
		src, dst string
		from, to uint16
		want     api.Action
	}{
		{"10.0.0.1", "10.0.0.2", 67, 68, api.Deny},
		{"fd00::1", "fd00::2", 547, 546, api.Deny},
		{"10.0.0.1", "10.0.0.2", 68, 67, api.Allow},
		{"fd00::1", "fd00::2", 546, 547, api.Allow},
		{"10.0.0.1", "10.0.0.2", 67, 67, api.Allow},
		{"fd00::1", "fd00::2", 67, 68, api.Allow},
		{"10.0.0.1", "10.0.0.2", 547, 546, api.Allow},
		{"192.0.2.1", "10.0.0.2", 67, 68, api.Allow}, // no workload
	} {
		r := c.Connection(Packet{Src: netip.MustParseAddr(p.src), Dst: netip.MustParseAddr(p.dst), Protocol: protoUDP, SrcPort: p.from, DstPort: p.to})
		if r.Verdict != p.want || p.want == api.Deny && r.Source.Reason != "a workload is no DHCP server" {
			t.Errorf("%+v: %s %+v", p, r.Verdict, r.Source)
		}
	}
}
