package agent

import (
	"log/slog"
	"strings"
	"testing"

	"tortie/api"
	"tortie/calc"
	"tortie/config"
	"tortie/store"
)

// documents is one good document for each kind that the agent follows.
var documents = map[api.Kind]string{
	api.KindClusterInformation: `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`,
	api.KindFelixConfiguration: `{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"interfacePrefix":"cali,tap","routeRefreshInterval":"90s","reportingIntervalSecs":30,"ipipEnabled":true}}`,
	api.KindTier:               `{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000,"defaultAction":"Pass"}}`,
	api.KindProfile:            `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"ingress":[{"action":"Allow","source":{"tag":"x"}}],"egress":[{"action":"Allow"}],"labelsToApply":{"a":"b"}}}`,
	api.KindGlobalNetworkPolicy: `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"g"},"spec":{"tier":"default","order":1.5,"selector":"a == \"b\" || has(c)","types":["Ingress","Egress"],` +
		`"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"a in {\"b\"}","notNets":["10.0.0.0/8","fd00::/8"]},"destination":{"ports":[80,"100:200","http"],"notPorts":[81]}},` +
		`{"action":"Log"},{"action":"Pass","protocol":"ICMPv6","icmp":{"type":128,"code":0}},{"action":"Deny","notProtocol":6,"ipVersion":4,"notICMP":{"type":8}}],"egress":[{"action":"Allow","http":{"methods":["GET"]}}],` +
		`"doNotTrack":true,"applyOnForward":true,"preDNAT":true}}`,
	api.KindNetworkPolicy:    `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"n","namespace":"test"},"spec":{"selector":"all()","egress":[{"action":"Allow","destination":{"namespaceSelector":"global()","nets":["::/0","0.0.0.0/0"]}}]}}`,
	api.KindGlobalNetworkSet: `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","labels":{"a":"b"}},"spec":{"nets":["10.0.0.0/8","10.1.0.0/16","0.0.0.0/0","::/0","fd00::1"]}}`,
	api.KindNetworkSet:       `{"kind":"NetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"test","labels":{"a":"b"}},"spec":{"nets":["10.0.0.1"],"allowedEgressDomains":["a.b"]}}`,
	api.KindWorkloadEndpoint: `{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1-openstack-w-eth0","namespace":"test","labels":{"a":"b"}},"spec":{"orchestrator":"openstack","workload":"w","node":"h1","endpoint":"eth0",` +
		`"interfaceName":"cali1","mac":"02:00:00:00:00:01","ipNetworks":["10.65.0.2/32","fd00:65::2/128"],"ipv4Gateway":"10.65.0.1","ipv6Gateway":"fd00:65::1","profiles":["p"],"ports":[{"name":"http","protocol":"TCP","port":80}],"allowedIps":["10.65.0.3"],"ipNATs":[{"internalIP":"10.65.0.2","externalIP":"192.0.2.2"},{"internalIP":"fd00:65::2","externalIP":"192.0.2.3"}]}}`,
	api.KindHostEndpoint:                  `{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h"},"spec":{"node":"h1","interfaceName":"eth0","expectedIPs":["192.0.2.1"]}}`,
	api.KindStagedGlobalNetworkPolicy:     `{"kind":"StagedGlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"g"},"spec":{"selector":"all()","stagedAction":"Set"}}`,
	api.KindStagedNetworkPolicy:           `{"kind":"StagedNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"g","namespace":"test"},"spec":{"selector":"all()"}}`,
	api.KindStagedKubernetesNetworkPolicy: `{"kind":"StagedKubernetesNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"g","namespace":"test"},"spec":{"podSelector":{}}}`,
	api.KindLiveMigration:                 `{"kind":"LiveMigration","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1-openstack-w-eth0","namespace":"test"},"spec":{}}`,
	api.KindNode:                          `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1"},"spec":{"bgp":{"ipv4Address":"192.0.2.1/24","ipv6Address":"2001:db8::1/64"}}}`,
	api.KindKubeControllersConfiguration:  `{"kind":"KubeControllersConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"controllers":{"node":{"hostEndpoint":{"autoCreate":"Enabled","templates":[{"generateName":"a","interfacePattern":"eth.*","labels":{"a":"b"}}]}}}}}`,
	api.KindHostAddresses:                 `{"spec":{"interfaces":[{"name":"eth0","addresses":["192.0.2.9","2001:db8::9","fe80::1"]}]}}`,
	api.KindIPPool:                        `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"cidr":"10.65.0.0/16","natOutgoing":true}}`,
}

// Whatever is stored under a key of whatever kind that the agent follows,
// nothing panics, and what was there before can be taken back.
func FuzzStore(f *testing.F) {
	for i, k := range kinds {
		doc := documents[k]
		if doc == "" {
			f.Fatalf("no document of kind %s", k)
		}
		f.Add(uint8(i), "default", doc, uint8(i+1), "test/h1-openstack-w-eth0", strings.ReplaceAll(doc, `"a"`, `null`))
		f.Add(uint8(i), "test/x", "{}", uint8(i), "x", `{"spec":[]}`)
		f.Add(uint8(i), "x%2f/%", doc[:len(doc)/2], uint8(i), "x", strings.ReplaceAll(doc, `"spec":{`, `"spec":{"x":1,`))
		f.Add(uint8(i), "default", strings.ReplaceAll(doc, `default`, `\u0000`), uint8(7), "g", strings.ReplaceAll(doc, `[`, `[[`))
	}
	local, err := config.Load("", []string{"FELIX_FELIXHOSTNAME=h1"})
	if err != nil {
		f.Fatal(err)
	}
	cfg, _ := local.With(nil, nil)
	f.Fuzz(func(t *testing.T, kindA uint8, nameA, docA string, kindB uint8, nameB, docB string) {
		l := newLoop(Options{Local: local, Log: slog.New(slog.DiscardHandler)}, cfg)
		put := func(path, doc string) {
			l.takeObject(decode(store.Event{Entry: store.Entry{Path: path, Value: []byte(doc)}, Deleted: doc == ""}))
			l.calc.Flush(l.want)
			_, _ = l.opts.Local.With(l.felix["default"], l.felix["node.h1"])
		}
		text := func() string {
			var b strings.Builder
			if err := l.want.WriteText(&b); err != nil {
				t.Fatal(err)
			}
			if err := l.showProblems(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		l.calc.SetInterface("cali1", &calc.HostInterface{Index: 2, Up: true})
		for _, k := range kinds {
			put(good(k), documents[k])
		}
		before := text()
		pathA := api.Prefix(kinds[int(kindA)%len(kinds)]) + nameA
		pathB := api.Prefix(kinds[int(kindB)%len(kinds)]) + nameB
		put(pathA, docA)
		put(pathB, docB)
		put(pathA, docB)
		put(pathB, docA)
		_ = text()
		put(pathA, "")
		put(pathB, "")
		for _, k := range kinds {
			put(good(k), documents[k])
		}
		if after := text(); after != before {
			t.Errorf("not as before: %s", firstDifference(after, before))
		}
	})
}

// good is the path of a kind's document.
func good(k api.Kind) string {
	name := map[api.Kind]string{
		api.KindClusterInformation: "default", api.KindFelixConfiguration: "default", api.KindTier: "default",
		api.KindWorkloadEndpoint: "h1-openstack-w-eth0", api.KindLiveMigration: "h1-openstack-w-eth0",
	}[k]
	if name == "" {
		name = "x"
	}
	key := api.Key{Kind: k, Name: name}
	if info, _ := api.Info(k); info.Namespaced {
		key.Namespace = "test"
	}
	return key.Path()
}
