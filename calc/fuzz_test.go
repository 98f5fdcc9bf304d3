package calc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/calc"
	"tortie/desired"
)

// FuzzObjects sets, on a host with an endpoint, whatever the store may have
// under some key: nothing panics, and the state is that of the oracle.
func FuzzObjects(f *testing.F) {
	keys := []api.Key{
		{Kind: api.KindWorkloadEndpoint, Namespace: "n1", Name: "h1-lab-a-eth0"},
		{Kind: api.KindWorkloadEndpoint, Namespace: "n1", Name: "h2-lab-a-eth0"},
		{Kind: api.KindWorkloadEndpoint, Namespace: "n1", Name: "-"},
		{Kind: api.KindNetworkPolicy, Namespace: "n1", Name: "p"},
		{Kind: api.KindGlobalNetworkPolicy, Name: "p"},
		{Kind: api.KindTier, Name: "default"},
		{Kind: api.KindProfile, Name: "kns.n1"},
		{Kind: api.KindNetworkSet, Namespace: "n1", Name: "s"},
		{Kind: api.KindGlobalNetworkSet, Name: "s"},
		{Kind: api.KindHostEndpoint, Name: "h"},
		{Kind: api.KindHostAddresses, Name: "h2"},
	}
	for i, doc := range []string{
		`{"spec":{"node":"h1","interfaceName":"cali1","ipNetworks":["10.0.0.1","::ffff:10.0.0.1","10.0.0.1/32"],"ipv4Gateway":"fd00::1","ipv6Gateway":"10.0.0.1"}}`,
		`{"spec":{"node":"h1","ipNetworks":["10.0.0.9"],"profiles":["kns.n1","kns.n1"]},"metadata":{"labels":{"a":""}}}`,
		`{"spec":{"node":"h1","interfaceName":"cali1","ipNetworks":["0.0.0.0","ff02::1","fe80::1%eth0"]}}`,
		`{"spec":{"ingress":[{"action":"Allow","icmp":{"type":300},"protocol":1},{"action":"allow","source":{"ports":["5:1","a"],"nets":["::/0","1.2.3.4/40"]}}]}}`,
		`{"spec":{"selector":"global()","order":1e308,"ingress":[{"action":"Pass","source":{"selector":"a in {}"}}],"egress":[{"action":"Deny","destination":{"notNets":["0.0.0.0/0"]}}]}}`,
		`{"spec":{"order":-1e308,"defaultAction":"pass"}}`,
		`{"spec":{"labelsToApply":{"pcns.a":"x","projectcalico.org/namespace":"other"}}}`,
		`{"spec":{"nets":["10.0.0.0/8","10.0.0.0/8","::ffff:0:0/90","0.0.0.0/0"]}}`,
		`{"spec":{"node":"h1","interfaceName":"*","expectedIPs":["::ffff:10.0.0.1","nonsense","10.0.0.1"],"profiles":["kns.n1","kns.n1"]}}`,
		`{"spec":{"interfaces":[{"name":"eth0","addresses":["::ffff:10.0.0.1","nonsense","fe80::1%eth0"]},{"name":"eth0"}]}}`,
		`{"spec":null}`,
	} {
		f.Add(i, []byte(doc))
	}
	f.Fuzz(func(t *testing.T, which int, doc []byte) {
		if which < 0 || which >= len(keys) {
			t.Skip()
		}
		o, problems, err := api.DecodeKey(keys[which], doc)
		if err != nil {
			t.Skip()
		}
		base, err := stored([]byte(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1-lab-z-eth0","namespace":"n1","labels":{"a":"x"}},
			"spec":{"node":"h1","interfaceName":"cali1","ipNetworks":["10.0.0.1","fd00::1"],"profiles":["kns.n1"]}}`))
		if err != nil {
			t.Fatal(err)
		}
		steps := []step{
			base,
			{object: object{iface: "cali1"}, value: &calc.HostInterface{Index: 1, Up: true}},
			{object: object{key: keys[which]}, value: o, problems: problems},
			{},
		}
		want := text(oracleState(testOptions, worldAfter(steps)))
		c, d := calc.New(testOptions), desired.New()
		for _, s := range steps {
			s.do(c, d)
		}
		if diff := cmp.Diff(want, text(d)); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
