package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func manifest(kind, meta, spec string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"projectcalico.org/v3","kind":%q,"metadata":{%s},"spec":%s}`, kind, meta, spec)
}

const endpointMeta = `"name":"n-openstack-w-e","namespace":"openstack"`

func endpointSpec(more string) string {
	return `{"node":"n","orchestrator":"openstack","workload":"w","endpoint":"e","interfaceName":"tapx","ipNetworks":["10.0.0.1/32","fd00::1/128"]` + more + `}`
}

func policySpec(rule string) string { return `{"ingress":[` + rule + `]}` }

func TestValidate(t *testing.T) {
	many := func(what string, n int) string { return strings.Repeat(what+",", n-1) + what }
	np := func(more string) string { return `"name":"p","namespace":"ns"` + more }
	const gnp, name = "GlobalNetworkPolicy", `"name":"p"`
	for _, c := range []struct{ kind, meta, spec, want string }{
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"mac":"fa:16:3e:00:00:01","ipv4Gateway":"10.0.0.254","ipv6Gateway":"fd00::254","profiles":["p.q"],"ports":[{"name":"http","protocol":"TCP","port":80}],"ipNATs":[{"internalIP":"10.0.0.1","externalIP":"192.0.2.1"}],"qosControls":{"ingressBandwidth":1000,"egressPacketRate":10000}`), ""},
		{"WorkloadEndpoint", endpointMeta, `{"node":"n"}`, "spec, spec.interfaceName"},
		{"WorkloadEndpoint", `"name":"n-openstack-w-x","namespace":"openstack"`, endpointSpec(""), "metadata.name"},
		{"WorkloadEndpoint", `"name":"odd","namespace":"openstack"`, endpointSpec(""), "metadata.name, metadata.name"},
		{"WorkloadEndpoint", `"name":"n-openstack-w-e"`, endpointSpec(""), "metadata.namespace"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"ipv4Gateway":"fd00::1","ipv6Gateway":"10.0.0.1"`), "spec.ipv4Gateway, spec.ipv6Gateway"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"mac":"x","ipv4Gateway":"x"`), "spec.ipv4Gateway, spec.mac"},
		{"WorkloadEndpoint", endpointMeta, strings.Replace(endpointSpec(""), "fd00::1/128", "fd00::/64", 1), ""},
		{"WorkloadEndpoint", endpointMeta, strings.Replace(endpointSpec(""), "fd00::1/128", "::/0", 1), "spec.ipNetworks[1]"},
		{"WorkloadEndpoint", endpointMeta, strings.Replace(endpointSpec(""), "fd00::1/128", "fd00::1/64/64", 1), "spec.ipNetworks[1]"},
		{"WorkloadEndpoint", endpointMeta, strings.Replace(endpointSpec(""), "tapx", "tap0123456789abc", 1), "spec.interfaceName"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"profiles":["P"]`), "spec.profiles[0]"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"ports":[{"name":"a!","protocol":"ICMP","port":0}]`), "spec.ports[0].name, spec.ports[0].protocol, spec.ports[0].port"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"ipNATs":[{"internalIP":"10.0.0.2","externalIP":"fd00::1"}]`), "spec.ipNATs[0], spec.ipNATs[0].internalIP"},
		{"WorkloadEndpoint", endpointMeta, endpointSpec(`,"qosControls":{"ingressBandwidth":1,"egressPacketRate":10001}`), "spec.qosControls.ingressBandwidth, spec.qosControls.egressPacketRate"},
		{"WorkloadEndpoint", endpointMeta + `,"labels":{"a b":"c","x":"-y","ok.example.org/k_1":""},"annotations":{"/x":"y"}`, endpointSpec(""), "metadata.labels, metadata.labels.x, metadata.annotations"},
		{"WorkloadEndpoint", endpointMeta + `,"annotations":{"x":"` + strings.Repeat("y", 256<<10) + `"}`, endpointSpec(""), "metadata.annotations"},

		{"NetworkPolicy", np(""), `{"order":1.5,"selector":"a == 'b'","types":["Ingress","Egress"],"performanceHints":["AssumeNeededOnEveryNode"]}`, ""},
		{"NetworkPolicy", `"name":"a.b.c","namespace":"Ns"`, `{}`, "metadata.name, metadata.namespace"},
		{"NetworkPolicy", np(""), `{"namespaceSelector":"all()","applyOnForward":true}`, "spec.namespaceSelector, spec"},
		{"NetworkPolicy", np(""), `{"stagedAction":"Set"}`, "spec.stagedAction"},
		{"StagedNetworkPolicy", np(""), `{"stagedAction":"Sett"}`, "spec.stagedAction"},
		{"StagedNetworkPolicy", np(""), `{"tier":"t","stagedAction":"Delete"}`, ""},
		{"StagedNetworkPolicy", np(""), `{"stagedAction":"Delete","selector":"all()"}`, "spec.stagedAction"},
		{"StagedGlobalNetworkPolicy", name, `{"stagedAction":"Delete","egress":[{"action":"Deny"}]}`, "spec.stagedAction"},
		{gnp, `"name":"a.b.c"`, `{}`, "metadata.name"},
		{gnp, name + `,"namespace":"x"`, `{}`, "metadata.namespace"},
		{gnp, name, `{"tier":"a.b","selector":"global()","types":["Ingress","ingress"],"performanceHints":["x"]}`, "spec.tier, spec.selector, spec.types, spec.performanceHints[0]"},
		{gnp, name, `{"selector":"a == '` + strings.Repeat("x", 1024) + `'"}`, "spec.selector"},
		{gnp, name, `{"selector":"a ="}`, "spec.selector"},
		{gnp, name, `{"doNotTrack":true}`, "spec.doNotTrack"},
		{gnp, name, `{"preDNAT":true,"egress":[{"action":"Deny"}]}`, "spec.preDNAT, spec.egress"},
		{gnp, name, `{"preDNAT":true,"applyOnForward":true,"types":["Egress"]}`, "spec.egress"},
		{gnp, name, `{"preDNAT":true,"doNotTrack":true,"applyOnForward":true}`, "spec.preDNAT"},
		{gnp, name, policySpec(many(`{"action":"Deny"}`, 1024)), ""},
		{gnp, name, policySpec(`{"action":"Allow","source":{"serviceAccounts":{"names":["a","b'\"c","d'","\"e"]}}}`), "spec.ingress[0].source.serviceAccounts.names[1]"},
		{gnp, name, policySpec(many(`{"action":"Deny"}`, 1025)), "spec.ingress"},

		{gnp, name, policySpec(`{"action":"Allow","protocol":"TCP","source":{"nets":["10.0.0.0/8"],"notPorts":["1:2"]},"destination":{"ports":[80,"http"],"namespaceSelector":"global()"}}`), ""},
		{gnp, name, policySpec(`{"action":"Permit"}`), "spec.ingress[0].action"},
		{gnp, name, policySpec(`{"action":"Allow","destination":{"ports":[80]}}`), "spec.ingress[0].destination.ports"},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"UDPLite","destination":{"ports":[80]}}`), "spec.ingress[0].destination.ports"},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"TCP","destination":{"ports":[0,"9:8"]}}`), "spec.ingress[0].destination.ports[0], spec.ingress[0].destination.ports[1]"},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"TCP","destination":{"ports":[` + many("80", 51) + `]}}`), "spec.ingress[0].destination.ports"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"nets":[` + many(`"10.0.0.1"`, 257) + `]}}`), "spec.ingress[0].source.nets"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"nets":["10.0.0.1","fd00::1"]}}`), "spec.ingress[0]"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"nets":["10.0.0.1"]},"destination":{"notNets":["fd00::1"]}}`), "spec.ingress[0]"},
		{gnp, name, policySpec(`{"action":"Allow","ipVersion":6,"source":{"nets":["10.0.0.1"]}}`), "spec.ingress[0]"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"notNets":["0.0.0.0/0"]}}`), "spec.ingress[0].source.notNets"},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"ICMP","ipVersion":6},{"action":"Allow","protocol":58,"ipVersion":4}`), "spec.ingress[0].ipVersion, spec.ingress[1].ipVersion"},
		{gnp, name, policySpec(`{"action":"Allow","icmp":{"type":8}}`), "spec.ingress[0].icmp"},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"ICMP","icmp":{"type":255}}`), "spec.ingress[0].icmp"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"selector":"global()","notSelector":"a"}}`), "spec.ingress[0].source.notSelector, spec.ingress[0].source.selector"},
		{gnp, name, policySpec(`{"action":"Deny","http":{"paths":[{"exact":"a","prefix":"b"}]}}`), ""},
		{gnp, name, policySpec(`{"action":"Allow","protocol":"UDP","http":{"paths":[{"exact":"a","prefix":"b"}]}}`), "spec.ingress[0].http, spec.ingress[0].http.paths"},
		{gnp, name, policySpec(`{"action":"Allow","source":{"services":{"namespace":"a"},"nets":["10.0.0.1"]}}`), "spec.ingress[0].source.services, spec.ingress[0].source.services"},

		{"Profile", name, `{"ingress":[{"action":"Deny"}],"egress":[{"action":"Allow","ipVersion":9}],"labelsToApply":{"a":"b c"}}`, "spec.egress[0].ipVersion, spec.labelsToApply.a"},
		{"Tier", name, `{"order":5,"defaultAction":"Pass"}`, ""},
		{"Tier", `"name":"a.b"`, `{"defaultAction":"Allow"}`, "spec.defaultAction, metadata.name"},
		{"Tier", `"name":"default"`, `{"order":5,"defaultAction":"Pass"}`, "spec.order, spec.defaultAction"},
		{"NetworkSet", np(`,"labels":{"projectcalico.org/namespace":"x"}`), `{"nets":["10.0.0.0/8","x"]}`, "spec.nets[1], metadata.labels"},
		{"GlobalNetworkSet", name, `{"nets":["10.0.0.1","fd00::/8"]}`, ""},
		{"Node", name, `{"bgp":{"ipv4Address":"192.0.2.1/24","ipv6Address":"fd00::1","asNumber":"1.10","routeReflectorClusterID":"1.0.0.1"}}`, ""},
		{"Node", name, `{"bgp":{}}`, "spec.bgp"},
		{"Node", name, `{"bgp":{"ipv4Address":"fd00::1/64","ipv6Address":"x","routeReflectorClusterID":"1"}}`, "spec.bgp.ipv4Address, spec.bgp.ipv6Address, spec.bgp.routeReflectorClusterID"},
		{"BGPConfiguration", `"name":"default"`, `{"nodeToNodeMeshEnabled":true,"asNumber":65000,"listenPort":179,"bindMode":"NodeIP","nodeMeshMaxRestartTime":"120s"}`, ""},
		{"BGPConfiguration", `"name":"node.a"`, `{"asNumber":1,"bindMode":"x","logSeverityScreen":"x","nodeMeshMaxRestartTime":"x","listenPort":70000}`, "spec.listenPort, spec, spec.logSeverityScreen, spec.bindMode, spec.nodeMeshMaxRestartTime"},
		{"BGPConfiguration", `"name":"a"`, `{}`, "metadata.name"},
		{"BGPPeer", name, `{"peerIP":"[fd00::1]:179","asNumber":1,"nodeSelector":"a == 'b'"}`, ""},
		{"BGPPeer", name, `{"peerSelector":"has(rr)","nodeSelector":"all()"}`, ""},
		{"BGPPeer", name, `{"node":"a","nodeSelector":"all()"}`, "spec.nodeSelector, spec, spec.asNumber"},
		{"BGPPeer", name, `{"peerIP":"x","peerSelector":"all()","asNumber":1}`, "spec, spec.peerIP, spec.asNumber"},
		{"FelixConfiguration", `"name":"node.a"`, `{}`, ""},
		{"FelixConfiguration", `"name":"a"`, `{}`, "metadata.name"},
		{"FelixConfiguration", `"name":"a"`, `{"nodeSelector":"all()"}`, ""},
		{"ClusterInformation", `"name":"a"`, `{"clusterGUID":"x","datastoreReady":"yes"}`, "spec.datastoreReady, metadata.name, spec.clusterGUID"},
		{"IPPool", name, `{"cidr":"10.0.0.0/16"}`, ""},
	} {
		o, _, err := DecodeManifest(manifest(c.kind, c.meta, c.spec))
		if err != nil {
			t.Error(err)
			continue
		}
		problems := Validate(o)
		var fields []string
		for _, p := range problems {
			fields = append(fields, p.Field)
		}
		if got := strings.Join(fields, ", "); got != c.want {
			t.Errorf("%s {%.60s} %.200s\ngot  %s\nwant %s\n%v", c.kind, c.meta, c.spec, got, c.want, problems)
		}
	}
}

func TestManifestRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{"kind":"Tier"`: "unexpected end",
		string(manifest("Service", `"name":"a"`, "{}")):                                                      `unknown kind "Service"`,
		`{"kind":"Tier","apiVersion":"v1","metadata":{"name":"a"},"spec":{}}`:                                `apiVersion "v1"`,
		string(manifest("Tier", `"name":"a"`, `{"ordre":1,"x":{"y":1}}`)):                                    "unknown field spec.ordre, spec.x",
		string(manifest("Tier", `"name":"a","named":"b"`, `{}`)):                                             "unknown field metadata.named",
		`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"a"},"spec":{},"sepc":{}}`:    "unknown field sepc",
		string(manifest("GlobalNetworkPolicy", `"name":"a"`, policySpec(`{"action":"Allow","sources":{}}`))): "unknown field spec.ingress[0].sources",
		string(manifest("GlobalNetworkPolicy", `"name":"a"`, policySpec(`{"action":"Deny","source":[{}]}`))): "",
		string(manifest("Tier", `"name":5`, `{}`)):                                                           "number",
		string(manifest("Tier", `"name":"a"`, `5`)):                                                          "spec is not an object",
	} {
		_, _, err := DecodeManifest([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

var now = time.Date(2026, 5, 6, 7, 8, 9, 999, time.FixedZone("", 3600))

const uid = "01234567-89ab-4def-8123-456789abcdef"

// What is stored of what a user writes: section 4's facts about writing.
func TestPrepare(t *testing.T) {
	const stamps = `"uid":"` + uid + `","creationTimestamp":"2026-05-06T06:08:09Z"`
	for _, c := range []struct {
		kind, meta, spec         string
		storedMeta, storedFields string
	}{
		{
			"WorkloadEndpoint", endpointMeta + `,"resourceVersion":"7","selfLink":"x"`, endpointSpec(""),
			endpointMeta + `,` + stamps + `,"labels":{"projectcalico.org/namespace":"openstack","projectcalico.org/orchestrator":"openstack"}`, endpointSpec(""),
		},
		{
			"NetworkPolicy", `"name":"a","namespace":"n"`, `{"selector":"has(x)"}`,
			`"name":"a","namespace":"n",` + stamps + `,"labels":{"projectcalico.org/tier":"default"},"annotations":{"projectcalico.org/metadata":"{\"name\":\"a\"}"}`,
			`{"selector":"has(x)","tier":"default","types":["Ingress"]}`,
		},
		{
			"GlobalNetworkPolicy", `"name":"sec.a","uid":"u","creationTimestamp":"2020-01-01T00:00:00Z","annotations":{"x":"y"}`, `{"tier":"sec","egress":[{"action":"Deny","source":{"nets":["10.0.0.1"]}}]}`,
			`"name":"sec.a","uid":"u","creationTimestamp":"2020-01-01T00:00:00Z","labels":{"projectcalico.org/tier":"sec"},"annotations":{"x":"y","projectcalico.org/metadata":"{\"name\":\"sec.a\"}"}`,
			`{"tier":"sec","egress":[{"action":"Deny","source":{"nets":["10.0.0.1"]}}],"types":["Egress"]}`,
		},
		{
			"GlobalNetworkPolicy", `"name":"a"`, `{"ingress":[{"action":"Allow","destination":{"ports":["http"]}}],"egress":[{"action":"Deny"}]}`,
			`"name":"a",` + stamps + `,"labels":{"projectcalico.org/tier":"default"},"annotations":{"projectcalico.org/metadata":"{\"name\":\"a\"}"}`,
			`{"ingress":[{"action":"Allow","destination":{"ports":["http"]}}],"egress":[{"action":"Deny"}],"tier":"default","types":["Ingress","Egress"]}`,
		},
		{"Tier", `"name":"a"`, `{}`, `"name":"a",` + stamps, `{"order":1000000,"defaultAction":"Deny"}`},
		{"ClusterInformation", `"name":"default"`, `{"clusterType":"openstack"}`, `"name":"default",` + stamps, `{"clusterType":"openstack","clusterGUID":"0123456789ab4def8123456789abcdef","datastoreReady":true}`},
		{"ClusterInformation", `"name":"default"`, `{"clusterGUID":"00000000000000000000000000000000","datastoreReady":false}`, `"name":"default",` + stamps, `{"clusterGUID":"00000000000000000000000000000000","datastoreReady":false}`},
		{
			"IPPool", `"name":"a"`, `{"cidr":"fd00::/48"}`, `"name":"a",` + stamps,
			`{"cidr":"fd00::/48","ipipMode":"Never","vxlanMode":"Never","assignmentMode":"Automatic","nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"blockSize":122}`,
		},
		{"IPAMConfiguration", `"name":"default"`, `{"a":{"b":[1]}}`, `"name":"default",` + stamps, `{"a":{"b":[1]}}`},
	} {
		o, _, err := DecodeManifest(manifest(c.kind, c.meta, c.spec))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(c.meta, "resourceVersion") && o.Metadata().ResourceVersion != "7" {
			t.Errorf("resourceVersion %q", o.Metadata().ResourceVersion)
		}
		for range 2 { // doing it again changes nothing
			Prepare(o, now, uid)
			got, err := Encode(o)
			if want := manifest(c.kind, c.storedMeta, c.storedFields); err != nil || !equalJSON(t, want, got) {
				t.Errorf("%v: got\n%s\nwant\n%s", err, got, want)
			}
		}
		if problems := Validate(o); len(problems) > 0 {
			t.Errorf("%v", problems)
		}
	}
}

// An object that a program makes is stored as a manifest with the same fields.
func TestPrepareMadeObject(t *testing.T) {
	mac, err := ParseMAC("fa:16:3e:00:00:01")
	if err != nil {
		t.Fatal(err)
	}
	w := &WorkloadEndpoint{
		Kind: KindWorkloadEndpoint, Meta: Meta{Name: "n-openstack-w-e", Namespace: "openstack"},
		Spec: WorkloadEndpointSpec{Node: "n", Orchestrator: "openstack", Workload: "w", Endpoint: "e", InterfaceName: "tapx", MAC: mac, IPNetworks: ParseNets("10.0.0.1", "fd00::1")},
	}
	Prepare(w, now, uid)
	got, err := json.Marshal(w)
	want := manifest("WorkloadEndpoint", endpointMeta+`,"uid":"`+uid+`","creationTimestamp":"2026-05-06T06:08:09Z","labels":{"projectcalico.org/namespace":"openstack","projectcalico.org/orchestrator":"openstack"}`,
		endpointSpec(`,"mac":"fa:16:3e:00:00:01"`))
	if err != nil || !equalJSON(t, want, got) {
		t.Errorf("%v: got %s", err, got)
	}
	if problems := Validate(w); len(problems) > 0 {
		t.Errorf("%v", problems)
	}
	w.Spec.IPNetworks = ParseNets("10.0.0.1", "rubbish")
	if problems := Validate(w); len(problems) != 1 {
		t.Errorf("%v", problems)
	}
}

// What a user applies replaces what they can write, and keeps the rest.
func TestUpdate(t *testing.T) {
	path := Root + "globalnetworkpolicies/p"
	stored, _, err := DecodeKeep(path, []byte(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","uid":"u","creationTimestamp":"2020-01-01T00:00:00Z","labels":{"old":"1"},"managed":{}},`+
		`"spec":{"future":{"a":1},"order":5,"ingress":[{"action":"Allow","x":1},{"action":"Deny","ipVersion":4,"y":1},{"action":"Pass"}]},"status":{"s":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	wanted, _, err := DecodeManifest(manifest("GlobalNetworkPolicy", `"name":"p","labels":{"new":"1"},"resourceVersion":"9"`, `{"ingress":[{"action":"Allow"},{"action":"Deny","ipVersion":6},{"action":"Allow","protocol":"TCP","destination":{"ports":["http"]}}],"selector":"all()"}`))
	if err != nil {
		t.Fatal(err)
	}
	o, err := Update(stored, wanted)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Encode(o)
	want := `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","uid":"u","creationTimestamp":"2020-01-01T00:00:00Z","labels":{"new":"1"},"managed":{}},` +
		`"spec":{"future":{"a":1},"ingress":[{"action":"Allow","x":1},{"action":"Deny","ipVersion":6,"y":1},{"action":"Allow","protocol":"TCP","destination":{"ports":["http"]}}],"selector":"all()"},"status":{"s":1}}`
	if err != nil || !equalJSON(t, []byte(want), got) {
		t.Errorf("%v: got\n%s\nwant\n%s", err, got, want)
	}
	if o.Metadata().UID != "u" || o.(*Policy).Spec.Ingress[2].Never {
		t.Errorf("got %+v", o)
	}
	// A policy is of both directions for want of types, until it is given some.
	types := func(stored, wanted string) []Direction {
		t.Helper()
		doc := func(types string) []byte {
			return manifest("GlobalNetworkPolicy", `"name":"p"`, `{"ingress":[{"action":"Allow"}]`+types+`}`)
		}
		old, _, err := DecodeKeep(path, doc(stored))
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := DecodeManifest(doc(wanted))
		if err == nil {
			o, err = Update(old, o)
		}
		if err != nil {
			t.Fatal(err)
		}
		Prepare(o, time.Now(), "")
		return o.(*Policy).Spec.Types
	}
	const ingress, egress = `,"types":["Ingress"]`, `,"types":["Egress"]`
	for _, c := range []struct {
		stored, wanted string
		want           []Direction
	}{{"", "", nil}, {"", ingress, []Direction{Ingress}}, {ingress, "", []Direction{Ingress}}, {egress, "", []Direction{Ingress}}, {ingress, egress, []Direction{Egress}}} {
		if got := types(c.stored, c.wanted); !slices.Equal(got, c.want) {
			t.Errorf("%q over %q: types %q, want %q", c.wanted, c.stored, got, c.want)
		}
	}
}

func TestKeyOrder(t *testing.T) {
	a := Key{KindNetworkPolicy, "a", "b"}
	for other, want := range map[Key]int{a: 0, {KindNetworkPolicy, "a", "c"}: -1, {KindNetworkPolicy, "B", "b"}: 1, {KindTier, "", "a"}: -1} {
		if got := a.Compare(other); got != want {
			t.Errorf("%v: got %d, want %d", other, got, want)
		}
	}
	if a.String() != "NetworkPolicy(a/b)" || (Key{Kind: KindTier, Name: "t"}).String() != "Tier(t)" {
		t.Errorf("%v", a)
	}
}
