package agent

import (
	"fmt"
	"strings"
	"testing"

	"tortie/api"
)

// object is a document of a kind, in a namespace or none.
func object(kind api.Kind, namespace, name, labels, spec string) (api.Key, string) {
	k := api.Key{Kind: kind, Namespace: namespace, Name: name}
	return k, fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":%q,"labels":{%s}},"spec":{%s}}`, kind, name, namespace, labels, spec)
}

// written is an object of a case: kind, namespace and name, separated by
// slashes, and its spec.
type written struct{ id, spec string }

const (
	inOnly  = `"types":["Ingress"],`
	ours    = `"selector":"role == \"server\"",` + inOnly
	letIn   = `"ingress":[{"action":"Allow"}]`
	keepOut = `"ingress":[{"action":"Deny"}]`
	passOn  = `"ingress":[{"action":"Pass"}]`
	ofOther = `{"action":"Allow","source":{"selector":"role == \"other\""}}`
)

// modelCases are objects, who of the client and the other then reaches the
// server, and the problem that is shown, if any.
var modelCases = []struct {
	name          string
	objects       []written
	client, other bool
	problem       string
}{
	{"no policy: profiles", nil, false, false, ""},
	{"a profile's rules", []written{{"Profile//p", `"ingress":[` + ofOther + `]`}}, false, true, ""},
	{"a policy comes before profiles", []written{{"Profile//p", letIn}, {"GlobalNetworkPolicy//a", ours + `"ingress":[` + ofOther + `]`}}, false, true, ""},
	{"one of the other direction does not", []written{{"Profile//p", letIn}, {"GlobalNetworkPolicy//a", `"selector":"role == \"server\"","types":["Egress"],` + keepOut}}, true, true, ""},
	{"one without types is of both", []written{{"Profile//p", letIn}, {"GlobalNetworkPolicy//a", `"selector":"role == \"server\"","egress":[{"action":"Allow"}]`}}, false, false, ""},
	{"the lower order is first", []written{{"GlobalNetworkPolicy//a", ours + `"order":2.5,` + keepOut}, {"GlobalNetworkPolicy//b", ours + `"order":-1,` + letIn}}, true, true, ""},
	{"no order is last", []written{{"GlobalNetworkPolicy//a", ours + keepOut}, {"GlobalNetworkPolicy//b", ours + `"order":1e9,` + letIn}}, true, true, ""},
	{"of one order the name decides", []written{{"GlobalNetworkPolicy//b", ours + `"order":1,` + keepOut}, {"GlobalNetworkPolicy//a", ours + `"order":1,` + letIn}}, true, true, ""},
	{"of tiers too", []written{
		{"Tier//x", `"order":5`},
		{"Tier//y", `"order":5`},
		{"GlobalNetworkPolicy//y.a", `"tier":"y",` + ours + keepOut},
		{"GlobalNetworkPolicy//x.a", `"tier":"x",` + ours + letIn},
	}, true, true, ""},
	{"a tier ends with Deny", []written{{"Tier//x", `"order":5`}, {"GlobalNetworkPolicy//x.a", `"tier":"x",` + ours + `"ingress":[` + ofOther + `]`}, {"GlobalNetworkPolicy//z", ours + letIn}}, false, true, ""},
	{"or with Pass", []written{{"Tier//x", `"order":5,"defaultAction":"Pass"`}, {"GlobalNetworkPolicy//x.a", `"tier":"x",` + ours + `"ingress":[{"action":"Deny","source":{"selector":"role == \"other\""}}]`}, {"GlobalNetworkPolicy//z", ours + letIn}}, true, false, ""},
	{"a rule passes on to the next", []written{{"Tier//x", `"order":5`}, {"GlobalNetworkPolicy//x.a", `"tier":"x",` + ours + passOn}, {"GlobalNetworkPolicy//z", ours + letIn}}, true, true, ""},
	{"and from the last to profiles", []written{{"GlobalNetworkPolicy//z", ours + passOn}, {"Profile//p", `"ingress":[` + ofOther + `]`}}, false, true, ""},
	{"a tier that is missing is last", []written{{"GlobalNetworkPolicy//a", `"tier":"nowhere","order":1,` + ours + keepOut}, {"GlobalNetworkPolicy//b", ours + letIn}}, true, true, `spec.tier: "nowhere": there is no such tier`},
	{"and denies", []written{{"GlobalNetworkPolicy//a", `"tier":"nowhere","order":1,` + ours + `"ingress":[` + ofOther + `]`}, {"Profile//p", letIn}}, false, true, `spec.tier: "nowhere": there is no such tier`},
	{"what is staged is not in force", []written{{"StagedGlobalNetworkPolicy//a", `"order":1,"stagedAction":"Set",` + ours + keepOut}, {"StagedNetworkPolicy/test/a", `"stagedAction":"Delete",` + ours + keepOut}, {"GlobalNetworkPolicy//z", ours + letIn}}, true, true, ""},
	{"a namespace's policy is of its endpoints", []written{{"NetworkPolicy/test/a", inOnly + letIn}, {"NetworkPolicy/elsewhere/a", `"order":1,` + inOnly + keepOut}}, true, true, ""},
	{"its selectors are of its namespace", []written{{"NetworkPolicy/test/a", inOnly + `"ingress":[{"action":"Allow","source":{"selector":"role == \"set\""}}]`}, {"NetworkSet/test/s", `"nets":["10.65.0.2/32","fd00:65::2/128"]`}, {"NetworkSet/elsewhere/s", `"nets":["10.65.0.4/32","fd00:65::4/128"]`}}, true, false, ""},
	{"all() is of all namespaces", []written{{"NetworkPolicy/test/a", inOnly + `"ingress":[{"action":"Allow","source":{"selector":"role == \"set\"","namespaceSelector":"all()"}}]`}, {"NetworkSet/elsewhere/s", `"nets":["10.65.0.4/32","fd00:65::4/128"]`}}, false, true, ""},
	{"global() is of none", []written{{"NetworkPolicy/test/a", inOnly + `"ingress":[{"action":"Allow","source":{"selector":"role == \"set\"","namespaceSelector":"global()"}}]`}, {"NetworkSet/test/s", `"nets":["10.65.0.2/32","fd00:65::2/128"]`}, {"GlobalNetworkSet//g", `"nets":["10.65.0.4/32","fd00:65::4/128"]`}}, false, true, ""},
	{"a namespace by its labels", []written{{"GlobalNetworkPolicy//a", ours + `"ingress":[{"action":"Allow","source":{"namespaceSelector":"env == \"prod\""}}]`}, {"Profile//kns.client", `"labelsToApply":{"pcns.env":"prod"}`}}, true, false, ""},
	{"a service account by its name", []written{{"NetworkPolicy/test/a", inOnly + `"ingress":[{"action":"Allow","source":{"serviceAccounts":{"names":["web"]}}}]`}}, true, false, ""},
	{"or by its labels", []written{{"NetworkPolicy/test/a", inOnly + `"ingress":[{"action":"Allow","source":{"serviceAccounts":{"selector":"team == \"red\""}}}]`}, {"Profile//kns.client", `"labelsToApply":{"pcsa.team":"red"}`}}, true, false, ""},
	{"hints change nothing", []written{{"GlobalNetworkPolicy//a", ours + `"performanceHints":["AssumeNeededOnEveryNode"],"ingress":[` + ofOther + `]`}}, false, true, ""},
	{"what only HTTP could tell is not allowed", []written{{"GlobalNetworkPolicy//a", ours + `"ingress":[{"action":"Allow","http":{"methods":["GET"]}},` + ofOther + `]`}}, false, true, "spec.ingress[0].http"},
	{"and is denied", []written{{"GlobalNetworkPolicy//a", ours + `"ingress":[{"action":"Deny","source":{"selector":"role == \"client\""},"http":{"paths":[{"exact":"/x"}]}},{"action":"Allow"}]`}}, false, true, "spec.ingress[0].http"},
	{"what a rule says of itself changes nothing", []written{{"GlobalNetworkPolicy//a", ours + `"ingress":[{"action":"Allow","metadata":{"annotations":{"why":"the other"}},"source":{"selector":"role == \"other\""}}]`}}, false, true, ""},
}

// What tiers, orders, types, namespaces, service accounts, profiles, staged
// policies and fields that a host cannot see mean, to real packets, over both
// families: the client and the other reach the server or do not.
func TestPolicyModel(t *testing.T) {
	s := newScenario(t)
	s.delete(policyOf("servers"))
	s.delete(policyOf("clients"))
	const profiles = `"profiles":["p"],`
	endpoint := func(g *guest, role, more string) {
		s.revision = s.put(g.key, strings.Replace(g.bound(`{"role":"`+role+`"}`), `"ipNetworks"`, more+`"ipNetworks"`, 1))
	}
	endpoint(s.client, "client", `"profiles":["p","kns.client"],"serviceAccountName":"web",`)
	endpoint(s.other, "other", `"profiles":["p"],"serviceAccountName":"db",`)
	endpoint(s.server, "server", profiles)
	free := `"selector":"all()","order":1,"types":["Egress"],"egress":[{"action":"Allow"}]`
	base := func(name string) int64 { // so that none is missing
		key, doc := object(api.KindProfile, "", name, "", "")
		return s.put(key, doc)
	}
	base("p")
	base("kns.client")
	_, doc := object(api.KindGlobalNetworkPolicy, "", "free", "", free)
	s.revision = s.put(policyOf("free"), doc)
	s.run()
	s.serve(s.server)
	for _, c := range modelCases {
		var keys []api.Key
		for _, o := range c.objects {
			id := strings.Split(o.id, "/")
			key, doc := object(api.Kind(id[0]), id[1], id[2], `"role":"set"`, o.spec)
			keys, s.revision = append(keys, key), s.put(key, doc)
		}
		s.settle(s.revision)
		for from, want := range map[*guest]bool{s.client: c.client, s.other: c.other} {
			if t.Logf("%s: %s reaches the server: %v", c.name, from.key.Name, want); want {
				s.reaches(from, s.server)
			} else {
				s.refused(from, s.server)
			}
		}
		text, err := s.show("/show/problems")
		if err != nil || (c.problem == "") != (text == "") || !strings.Contains(text, c.problem) {
			t.Errorf("%s: problems: %v\n%s", c.name, err, text)
		}
		if c.name == "what a rule says of itself changes nothing" && !strings.Contains(s.ns.Run(t, "nft", "list", "table", "inet", "tortie"), "why=the other") {
			t.Error("the rule's annotation is not in the kernel")
		}
		for _, k := range keys {
			if s.revision = s.delete(k); k.Kind == api.KindProfile {
				s.revision = base(k.Name)
			}
		}
	}
}
