package api

import (
	"fmt"
	"strings"
	"testing"
)

func decodeKubernetes(t *testing.T, spec string) (*Policy, []Problem, Object) {
	t.Helper()
	k := Key{Kind: KindStagedKubernetesNetworkPolicy, Namespace: "shop", Name: "web"}
	o, problems, err := DecodeKey(k, []byte(`{"kind":"StagedKubernetesNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"web","namespace":"shop"},"spec":`+spec+`}`))
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	return AsPolicy(o.(*KubernetesPolicy)), problems, o
}

// kubernetesText is what a policy says, shortly.
func kubernetesText(p *Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v %v %s", p.Spec.Tier, *p.Spec.Order, p.Spec.Types, p.Spec.Selector.Text)
	end := func(e *EntityRule) string {
		return fmt.Sprintf("{%v %v %s|%s %v}", e.Nets.Prefixes, e.NotNets.Prefixes, e.NamespaceSelector.Text, e.Selector.Text, e.Ports)
	}
	for _, list := range [][]Rule{p.Spec.Ingress, p.Spec.Egress} {
		for i := range list {
			fmt.Fprintf(&b, "\n%s %s %s %s", list[i].Action, list[i].Protocol, end(&list[i].Source), end(&list[i].Destination))
		}
		b.WriteString("\n-")
	}
	return b.String()
}

// A policy of Kubernetes is one of ours: with its defaults, one rule for each
// peer and protocol.
func TestKubernetesPolicy(t *testing.T) {
	const pods = "projectcalico.org/orchestrator == 'k8s'"
	for spec, want := range map[string]string{
		`{}`: "default 1000 [Ingress] " + pods + "\n-\n-",
		`{"podSelector":{"matchLabels":{"b":"2","example.org/a":"1"},"matchExpressions":[{"key":"c","operator":"In","values":["x","y"]},{"key":"d","operator":"NotIn","values":["z"]},{"key":"e","operator":"Exists"},{"key":"f","operator":"DoesNotExist"}]},"policyTypes":["Egress"]}`: "default 1000 [Egress] " + pods +
			" && b == '2' && example.org/a == '1' && c in {'x','y'} && d not in {'z'} && has(e) && !has(f)\n-\n-",
		`{"ingress":[{}]}`: "default 1000 [Ingress] " + pods + "\nAllow 0 {[] [] | []} {[] [] | []}\n-\n-",
		`{"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"ipBlock":{"cidr":"fd00::/8"}}],"ports":[{"port":80},{"port":8000,"endPort":8080},{"protocol":"UDP","port":"dns"},{"protocol":"SCTP"},{"protocol":"SCTP","port":5}]}]}`: "default 1000 [Ingress] " + pods + `
Allow TCP {[10.0.0.0/8] [10.1.0.0/16] | []} {[] [] | [80 8000:8080]}
Allow TCP {[fd00::/8] [] | []} {[] [] | [80 8000:8080]}
Allow UDP {[10.0.0.0/8] [10.1.0.0/16] | []} {[] [] | [dns]}
Allow UDP {[fd00::/8] [] | []} {[] [] | [dns]}
Allow SCTP {[10.0.0.0/8] [10.1.0.0/16] | []} {[] [] | []}
Allow SCTP {[fd00::/8] [] | []} {[] [] | []}` + "\n-\n-",
		`{"egress":[{"to":[{"podSelector":{}},{"namespaceSelector":{}},{"namespaceSelector":{"matchLabels":{"env":"x"}},"podSelector":{"matchLabels":{"a":"1"}}}],"ports":[{"port":443}]}]}`: "default 1000 [Ingress Egress] " + pods + "\n-" + `
Allow TCP {[] [] | []} {[] [] |` + pods + ` [443]}
Allow TCP {[] [] | []} {[] [] all()|` + pods + ` [443]}
Allow TCP {[] [] | []} {[] [] env == 'x'|` + pods + ` && a == '1' [443]}` + "\n-",
	} {
		p, problems, o := decodeKubernetes(t, spec)
		if got := kubernetesText(p); got != want || len(problems) > 0 || !p.Spec.Tried() {
			t.Errorf("%s: problems %v\n%s\nwant\n%s", spec, problems, got, want)
		}
		if p.Key().Unstaged() != (Key{KindNetworkPolicy, "shop", "knp.default.web"}) || len(Validate(o)) > 0 {
			t.Errorf("%s is about %v, %v", spec, p.Key().Unstaged(), Validate(o))
		}
		if doc, err := Encode(o); err != nil || !strings.Contains(string(doc), spec) {
			t.Errorf("%s is written as %s, %v", spec, doc, err)
		}
	}
}

// What cannot be read is reported by field, and the policy is not tried.
func TestKubernetesPolicyFaults(t *testing.T) {
	for spec, field := range map[string]string{
		`{"stagedAction":"Sett"}`: "spec.stagedAction",
		`{"stagedAction":"Delete","podSelector":{"matchLabels":{"a":"b"}}}`: "spec.stagedAction",
		`{"podSelector":[]}`: "spec.podSelector",
		`{"podSelector":{"matchLabels":{"a' || all() || b":"x"}}}`:                         "spec.podSelector.matchLabels",
		`{"podSelector":{"matchLabels":{"a":"x' || all() || a == 'y"}}}`:                   "spec.podSelector.matchLabels.a",
		`{"podSelector":{"matchExpressions":[{"key":"a) || has(b","operator":"Exists"}]}}`: "spec.podSelector.matchExpressions[0].key",
		`{"podSelector":{"matchExpressions":[{"key":"a","operator":"Is"}]}}`:               "spec.podSelector.matchExpressions[0].operator",
		`{"podSelector":{"matchExpressions":[{"key":"a","operator":"In"}]}}`:               "spec.podSelector.matchExpressions[0].values",
		`{"policyTypes":["Both"]}`:                                              "spec.policyTypes",
		`{"ingress":[{"from":[{}]}]}`:                                           "spec.ingress[0].from[0]",
		`{"ingress":[{"to":[{"podSelector":{}}]}]}`:                             "spec.ingress[0]",
		`{"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/33"}}]}]}`:           "spec.ingress[0].from[0].ipBlock.cidr",
		`{"ingress":[{"from":[{"ipBlock":{"cidr":"::/0","except":["x"]}}]}]}`:   "spec.ingress[0].from[0].ipBlock.except",
		`{"ingress":[{"from":[{"ipBlock":{"cidr":"::/0"},"podSelector":{}}]}]}`: "spec.ingress[0].from[0].ipBlock",
		`{"egress":[{"ports":[{"protocol":"ICMP"}]}]}`:                          "spec.egress[0].ports[0].protocol",
		`{"egress":[{"ports":[{"port":80,"endPort":79}]}]}`:                     "spec.egress[0].ports[0].endPort",
		`{"egress":[{"ports":[{"port":"http","endPort":90}]}]}`:                 "spec.egress[0].ports[0].endPort",
		`{"egress":[{"ports":[{"port":0}]}]}`:                                   "spec.egress[0].ports[0].port",
		`{"egress":[{"ports":[{"prot":"TCP"}]}]}`:                               "spec.egress[0].ports[0].prot",
	} {
		p, problems, _ := decodeKubernetes(t, spec)
		if len(problems) != 1 || !strings.HasPrefix(problems[0].Field, field) || p.Spec.Tried() {
			t.Errorf("%s: %v, tried is %v; want a problem with %s", spec, problems, p.Spec.Tried(), field)
		}
	}
}
