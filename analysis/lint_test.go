package analysis

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tortie/api"
	"tortie/explain"
)

// seen is what trying all packets says of rules.
type seen struct {
	matches map[explain.RuleRef]bool // some packet between any addresses
	own     map[explain.RuleRef]bool // some packet of an endpoint that it applies to
	reached map[explain.RuleRef]bool
}

func bruteForce(objects []api.Object, all []explain.Packet) seen {
	c := cluster(objects)
	s := seen{map[explain.RuleRef]bool{}, map[explain.RuleRef]bool{}, map[explain.RuleRef]bool{}}
	ends := spots(c)
	for _, from := range ends {
		for _, to := range ends {
			if version(from.addr) != version(to.addr) {
				continue
			}
			e := c.Ends(from.addr, to.addr)
			applied := map[explain.RuleRef]bool{}
			for _, local := range []struct {
				spot
				dir api.Direction
			}{{from, api.Egress}, {to, api.Ingress}} {
				if local.key == (api.Key{}) {
					continue
				}
				for _, stage := range c.Stages(local.key, local.dir) {
					for _, p := range stage.Policies {
						for i := range rulesOf(p, local.dir) {
							applied[explain.RuleRef{Policy: p.Key(), Direction: local.dir, Index: i}] = true
						}
					}
				}
				for _, p := range all {
					if s.all(applied) {
						break
					}
					p.Src, p.Dst = from.addr, to.addr
					d := c.Endpoint(local.key, local.dir, p)
					for _, ref := range d.Logs {
						s.reached[ref] = true
					}
					for _, step := range d.Trail {
						if step.Rule != nil {
							s.reached[*step.Rule] = true
						}
					}
				}
			}
			for _, o := range objects {
				for _, dir := range []api.Direction{api.Ingress, api.Egress} {
					rules := rulesOf(o, dir)
					for i := range rules {
						ref := explain.RuleRef{Policy: o.Key(), Direction: dir, Index: i}
						if s.matches[ref] && (s.own[ref] || !applied[ref]) {
							continue
						}
						if slices.ContainsFunc(all, func(p explain.Packet) bool { return e.Match(o.Key().Namespace, &rules[i], p) }) {
							s.matches[ref], s.own[ref] = true, s.own[ref] || applied[ref]
						}
					}
				}
			}
		}
	}
	return s
}

// all reports whether all of some rules have been reached.
func (s seen) all(rules map[explain.RuleRef]bool) bool {
	for ref := range rules {
		if !s.reached[ref] {
			return false
		}
	}
	return true
}

func rulesOf(o api.Object, dir api.Direction) []api.Rule {
	var in, out []api.Rule
	switch o := o.(type) {
	case *api.Policy:
		in, out = o.Spec.Ingress, o.Spec.Egress
	case *api.Profile:
		in, out = o.Spec.Ingress, o.Spec.Egress
	}
	if dir == api.Egress {
		return out
	}
	return in
}

// TestLintAgainstExplain: of random clusters, what is said of each rule and
// policy is what trying all packets that rules can tell apart says.
func TestLintAgainstExplain(t *testing.T) {
	all := services()
	counts := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		byKey := map[api.Key]api.Object{}
		for range 4 + d.n(8) {
			o := d.object(t)
			byKey[o.Key()] = o
		}
		objects := values(byKey)
		findings, err := Lint(objects)
		if err != nil {
			rt.Fatal(err)
		}
		of := map[string]string{}
		for _, f := range findings {
			counts[f.Check]++
			of[fmt.Sprint(f.Object, f.Field)] += f.Check + " "
		}
		s := bruteForce(objects, all)
		c := cluster(objects)
		applies := map[api.Key]bool{}
		for _, o := range objects {
			for _, dir := range []api.Direction{api.Ingress, api.Egress} {
				for _, stage := range c.Stages(o.Key(), dir) {
					for _, p := range stage.Policies {
						applies[p.Key()] = true
						if got := strings.Contains(of[fmt.Sprint(p.Key(), "spec.tier")], CheckMissingTier); got == stage.Exists {
							rt.Fatalf("%v: %s of tier %s, which exists: %v", p.Key(), of[fmt.Sprint(p.Key(), "spec.tier")], stage.Tier, stage.Exists)
						}
					}
				}
			}
		}
		for _, o := range objects {
			_, isPolicy := o.(*api.Policy)
			if got := strings.Contains(of[fmt.Sprint(o.Key(), "spec")], CheckSelectsNothing); got != (isPolicy && !applies[o.Key()]) {
				rt.Fatalf("%v: selects nothing: %v; it applies: %v", o.Key(), got, applies[o.Key()])
			}
			for _, dir := range []api.Direction{api.Ingress, api.Egress} {
				for i := range rulesOf(o, dir) {
					ref := explain.RuleRef{Policy: o.Key(), Direction: dir, Index: i}
					got := strings.TrimSpace(of[fmt.Sprint(o.Key(), field(ref))])
					want := s.want(ref, isPolicy && appliesIn(c, ref))
					if want == CheckUnreachable && (got == CheckRedundant || got == CheckContradicted) {
						continue
					}
					if got != want {
						text, _ := json.Marshal(o)
						rt.Fatalf("%s: %q, want %q: %s", ref, got, want, text)
					}
				}
			}
		}
	})
	if len(counts) < 5 { // each is in TestLint
		t.Errorf("only %v was ever found", counts)
	}
}

// appliesIn reports whether a rule is in what applies to some address.
func appliesIn(c *explain.Cluster, ref explain.RuleRef) bool {
	for _, at := range spots(c) {
		for _, stage := range c.Stages(at.key, ref.Direction) {
			if slices.ContainsFunc(stage.Policies, func(p *api.Policy) bool { return p.Key() == ref.Policy }) {
				return true
			}
		}
	}
	return false
}

func (s seen) want(ref explain.RuleRef, applies bool) string {
	switch {
	case !s.matches[ref]:
		return CheckMatchesNothing
	case !applies || s.reached[ref]:
		return ""
	case !s.own[ref]:
		return CheckNotItsEndpoint
	}
	return CheckUnreachable
}

// lintOf returns the findings as "CHECK FIELD" of objects by name.
func lintOf(t *testing.T, objects ...api.Object) []string {
	t.Helper()
	findings, err := Lint(append(objects,
		decode(t, "WorkloadEndpoint n1 web", `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"]`),
		decode(t, "WorkloadEndpoint n1 db", `"role":"db"`, `"ipNetworks":["10.0.0.2","fd00::2"]`),
		decode(t, "Tier default", "", "")))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range findings {
		list = append(list, strings.TrimSpace(f.Check+" "+f.Object.Name+" "+f.Field))
	}
	return list
}

// TestLint: each finding by an example, and what is right has none.
func TestLint(t *testing.T) {
	gnp := func(name, spec string) api.Object { return decode(t, "GlobalNetworkPolicy "+name, "", spec) }
	for name, c := range map[string]struct {
		objects []api.Object
		want    string
	}{
		"nothing": {[]api.Object{gnp("p", `"selector":"role == 'db'","ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"role == 'web'"},"destination":{"ports":[5432]}},{"action":"Deny"}]`)}, ""},
		"redundant": {
			[]api.Object{gnp("p", `"ingress":[{"action":"Allow","protocol":"TCP"},{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}]`)},
			"redundant p spec.ingress[1]",
		},
		"contradicted by two together": {
			[]api.Object{gnp("p", `"ingress":[{"action":"Deny","ipVersion":4},{"action":"Deny","protocol":"TCP","ipVersion":6},{"action":"Allow","protocol":"TCP"}]`)},
			"contradicted p spec.ingress[2]",
		},
		"behind the end of a tier": {
			[]api.Object{decode(t, "Tier first", "", `"order":1`), gnp("first.p", `"tier":"first","ingress":[{"action":"Pass","protocol":"UDP"}]`), gnp("q", `"ingress":[{"action":"Allow","protocol":"TCP"},{"action":"Allow","protocol":"UDP"}]`)},
			"contradicted q spec.ingress[0]",
		},
		"behind allow and deny": {
			[]api.Object{gnp("p", `"ingress":[{"action":"Allow","protocol":"TCP"},{"action":"Deny","notProtocol":"TCP"},{"action":"Allow"}]`)},
			"unreachable p spec.ingress[2]",
		},
		"fields that exclude each other": {
			[]api.Object{gnp("p", `"ingress":[{"action":"Allow","protocol":"TCP","notProtocol":"TCP"},{"action":"Allow","source":{"nets":["10.0.0.0/9"],"notNets":["10.0.0.0/8"]}},{"action":"Allow","source":{"nets":["10.0.0.0/8"]},"destination":{"nets":["fd00::/8"]}}]`)},
			"matches-nothing p spec.ingress[0], matches-nothing p spec.ingress[1], matches-nothing p spec.ingress[2]",
		},
		"a selector of no one": {[]api.Object{gnp("p", `"ingress":[{"action":"Allow","source":{"selector":"role == 'wbe'"}}]`)}, "matches-nothing p spec.ingress[0]"},
		"a policy for no one":  {[]api.Object{gnp("p", `"selector":"role == 'wbe'"`)}, "selects-nothing p spec"},
		"policies for a host alone": {
			[]api.Object{
				decode(t, "HostEndpoint h", `"role":"host"`, `"node":"h1","interfaceName":"eth0","expectedIPs":["192.0.2.1","2001:db8::1"],"profiles":["none"]`),
				gnp("p", `"selector":"role == 'host'","ingress":[{"action":"Allow"},{"action":"Allow","protocol":"TCP"}]`),
				gnp("q", `"selector":"role == 'host'","preDNAT":true,"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Deny"}]`),
				gnp("r", `"selector":"role == 'host'","doNotTrack":true,"applyOnForward":true,"egress":[{"action":"Deny"}]`),
				gnp("s", `"selector":"role == 'guest'","doNotTrack":true,"applyOnForward":true,"egress":[{"action":"Deny"}]`),
				gnp("t", `"selector":"role == 'db'","ingress":[{"action":"Allow","ipVersion":4,"source":{"selector":"role == 'host'"}},{"action":"Allow","ipVersion":6,"source":{"selector":"role == 'host'"}}]`),
			},
			"selects-nothing s spec, missing-profile h spec.profiles[0]",
		},
		"not to the policy's endpoints": {[]api.Object{gnp("p", `"selector":"role == 'db'","ingress":[{"action":"Allow","destination":{"selector":"role == 'web'"}}]`)}, "not-its-packets p spec.ingress[0]"},
		"no such tier":                  {[]api.Object{gnp("t.p", `"tier":"t","ingress":[{"action":"Allow"}]`)}, "missing-tier t.p spec.tier"},
		"a tie that decides":            {[]api.Object{gnp("p", `"order":1,"ingress":[{"action":"Deny","protocol":"TCP"}]`), gnp("q", `"order":1,"ingress":[{"action":"Allow"}]`)}, "order-tie q spec.order"},
		"a tie that decides nothing":    {[]api.Object{gnp("p", `"order":1,"ingress":[{"action":"Deny","protocol":"TCP"}]`), gnp("q", `"order":1,"ingress":[{"action":"Allow","protocol":"UDP"}]`)}, ""},
		"no tie":                        {[]api.Object{gnp("p", `"order":1,"ingress":[{"action":"Deny","protocol":"TCP"}]`), gnp("q", `"order":2,"ingress":[{"action":"Allow"}]`)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(lintOf(t, c.objects...), ", "); got != c.want {
				t.Errorf("got %s\nwant %s", got, c.want)
			}
		})
	}
}
