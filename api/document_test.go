package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// examples returns the documents of testdata/examples.txtar by path, and the
// problems that are reported of them.
func examples(t testing.TB) (values map[string][]byte, problems map[string]string) {
	archive, err := txtar.ParseFile("testdata/examples.txtar")
	if err != nil {
		t.Fatal(err)
	}
	values, problems = map[string][]byte{}, map[string]string{}
	for _, f := range archive.Files {
		if path, ok := strings.CutSuffix(f.Name, " problems"); ok {
			problems[Root+path] = string(f.Data)
		} else {
			values[Root+f.Name] = f.Data
		}
	}
	return values, problems
}

func printed(problems []Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.String())
		if p.Unsupported {
			b.WriteString(" (unsupported)")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func equalJSON(t testing.TB, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(parseAny(a, &x), parseAny(b, &y)); err != nil {
		t.Fatalf("%v\n%s\n%s", err, a, b)
	}
	return reflect.DeepEqual(x, y)
}

// Every kind, in the formats of both writers: what is reported of it, and that
// it is written back as it was stored.
func TestExamples(t *testing.T) {
	values, problems := examples(t)
	seen := map[Kind]bool{}
	for path, value := range values {
		o, got, err := DecodeKeep(path, value)
		if err != nil {
			t.Error(err)
			continue
		}
		seen[o.Key().Kind] = true
		if diff := cmp.Diff(problems[path], printed(got)); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", path, diff)
		}
		out, err := Encode(o)
		if err != nil || !equalJSON(t, value, out) {
			t.Errorf("%s: %v: written back as\n%s", path, err, out)
		}
		if !strings.Contains(path, "/default.") && o.Key().Path() != path {
			t.Errorf("%s: has path %s", path, o.Key().Path())
		}
	}
	for _, info := range Kinds() {
		if !seen[info.Kind] {
			t.Errorf("no example of %s", info.Kind)
		}
	}
}

// What was understood of an object is written so that it is understood the
// same way again.
func TestEncodeDecode(t *testing.T) {
	values, _ := examples(t)
	for path, value := range values {
		o, _, err := Decode(path, value)
		if err != nil {
			t.Fatal(err)
		}
		out, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := Decode(path, out)
		if err != nil {
			t.Fatal(err)
		}
		out2, err := Encode(again)
		if err != nil || string(out) != string(out2) {
			t.Errorf("%s: %v\n%s\n%s", path, err, out, out2)
		}
	}
}

func TestWorkloadEndpointFields(t *testing.T) {
	values, _ := examples(t)
	path := Root + "workloadendpoints/openstack/rack1--host7.example.org-openstack-6d1c2b0a--77-e2f4--09"
	o, _, err := Decode(path, values[path])
	if err != nil {
		t.Fatal(err)
	}
	w := o.(*WorkloadEndpoint)
	s := w.Spec
	got := strings.TrimSpace(fmt.Sprintln(s.Orchestrator, s.Workload, s.Node, s.Endpoint, s.InterfaceName, s.MAC, s.IPv4Gateway, s.IPv6Gateway, s.IPNetworks.Prefixes,
		s.AllowedIPs.Prefixes, w.Meta.Labels["sg.projectcalico.org/openstack-17"], w.Meta.CreationTimestamp))
	want := "openstack 6d1c2b0a-77 rack1-host7.example.org e2f4-09 tape2f4-09 fa:16:3e:0a:0b:0c 10.20.0.1 fd20::1 [10.20.0.9/32 fd20::9/128 10.20.0.200/32] [10.20.0.200/32] db 2026-03-04T05:06:07Z"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s.Identity().String() != w.Meta.Name {
		t.Errorf("identity %s", s.Identity())
	}
}

func TestBadEndpointFailsByField(t *testing.T) {
	values, _ := examples(t)
	path := Root + "workloadendpoints/openstack/h-openstack-w-e"
	o, _, err := Decode(path, values[path])
	if err != nil {
		t.Fatal(err)
	}
	s := o.(*WorkloadEndpoint).Spec
	if got := fmt.Sprintln(s.IPNetworks.Prefixes, s.IPNetworks.Bad, s.MAC.Set, s.MAC.Bad, s.IPv4Gateway.Bad, s.Profiles); got != "[10.20.0.7/32] [10.99.0.0/24/24] false fa:16 gw [p 5]\n" {
		t.Errorf("got %s", got)
	}
	if labels := o.Metadata().Labels; !maps.Equal(labels, map[string]string{"n": "5", "none": ""}) {
		t.Errorf("labels %v", labels)
	}
}

// The driver of OpenStack writes the length of an address behind an address
// pair that is a range. A range of all addresses is none.
func TestRangesOfEndpoint(t *testing.T) {
	path := Root + "workloadendpoints/openstack/h-openstack-w-e"
	for text, want := range map[string]string{
		"10.99.0.7": "10.99.0.7/32", "10.99.0.7/32": "10.99.0.7/32", "10.99.0.7/24": "10.99.0.0/24",
		"10.99.0.0/24/32": "10.99.0.0/24", "fd00:1::/64/128": "fd00:1::/64", "fd00:1::5/128": "fd00:1::5/128",
		"10.99.0.0/24/24": "", "10.99.0.0/32/24": "", "10.99.0.0//32": "", "/32": "", "fd00::/64/32": "", "10.99.0.0/24/128": "",
		"0.0.0.0/0": "", "::/0": "", "0.0.0.0/0/32": "", "::/0/128": "",
	} {
		o, problems, err := Decode(path, fmt.Appendf(nil, `{"spec":{"ipNetworks":["10.0.0.1",%q]}}`, text))
		if err != nil {
			t.Fatal(err)
		}
		nets := o.(*WorkloadEndpoint).Spec.IPNetworks
		got := ""
		if len(nets.Prefixes) == 2 {
			got = nets.Prefixes[1].String()
		}
		if got != want || (want == "") != (slices.Equal(nets.Bad, []string{text}) && len(problems) == 1 && strings.HasPrefix(problems[0].String(), "spec.ipNetworks[1]")) {
			t.Errorf("%s: got %q, problems %v, want %q", text, got, problems, want)
		}
	}
}

func TestDecodeUnusable(t *testing.T) {
	path := Root + "globalnetworkpolicies/p"
	for _, value := range []string{"", "null", "[]", `"x"`, "{", `{"spec":`, `{"spec":{}}x`, `{"spec":5}`, `{"spec":[]}`, "\x00", `{"spec":{"ingress":` + strings.Repeat("[", 5000)} {
		if o, _, err := Decode(path, []byte(value)); err == nil {
			t.Errorf("%.20q: accepted as %v", value, o)
		}
	}
	if _, _, err := Decode("/calico/ipam/v2/config", []byte("{}")); !errors.Is(err, ErrPath) {
		t.Errorf("got %v", err)
	}
	if _, _, err := DecodeKey(Key{Kind: "Service"}, []byte("{}")); err == nil {
		t.Error("a kind that is not stored was decoded")
	}
}

func TestKeyPrevailsOverDocument(t *testing.T) {
	o, problems, err := Decode(Root+"networksets/a/b", []byte(`{"kind":"Tier","apiVersion":"v1","metadata":{"name":"c","namespace":"d"},"spec":{}}`))
	if err != nil || o.Key() != (Key{KindNetworkSet, "a", "b"}) || len(problems) != 4 {
		t.Errorf("got %v, %v, %v", o.Key(), problems, err)
	}
	if _, problems, _ := Decode(Root+"networksets/a/b", []byte(`{}`)); len(problems) > 0 {
		t.Errorf("got %v", problems)
	}
}

// Section 4.4: annotation present or absent, legacy names, other tiers.
func TestPolicyNames(t *testing.T) {
	for _, c := range []struct{ kind, key, tier, annotation, want string }{
		{"GlobalNetworkPolicy", "a", "", "", "a"},
		{"GlobalNetworkPolicy", "a", "default", `{"name":"a"}`, "a"},
		{"GlobalNetworkPolicy", "default.a", "", "", "a"},
		{"GlobalNetworkPolicy", "default.a", "default", "", "a"},
		{"GlobalNetworkPolicy", "default.a", "default", `{"name":"default.a"}`, "default.a"},
		{"GlobalNetworkPolicy", "default.a", "sec", "", "default.a"},
		{"GlobalNetworkPolicy", "sec.a", "sec", "", "sec.a"},
		{"GlobalNetworkPolicy", "a", "", `rubbish`, "a"},
		{"StagedGlobalNetworkPolicy", "default.a", "", "", "a"},
	} {
		value := fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{"name":%q,"annotations":{"x":"y"}},"spec":{"tier":%q}}`, c.kind, APIVersion, c.key, c.tier)
		if c.annotation != "" {
			value = []byte(strings.Replace(string(value), `"x":"y"`, fmt.Sprintf(`"x":"y",%q:%q`, annotationPolicyName, c.annotation), 1))
		}
		o, problems, err := DecodeKeep(Key{Kind: Kind(c.kind), Name: c.key}.Path(), value)
		if err != nil || o.Metadata().Name != c.want || len(o.Metadata().Annotations) != 1 {
			t.Errorf("%+v: got %v, %v, %v, %v", c, o.Key(), o.Metadata().Annotations, problems, err)
		}
		if out, err := Encode(o); err != nil || !equalJSON(t, value, out) {
			t.Errorf("%+v: %v: written back as %s", c, err, out)
		}
	}
}

// Section 8: what an agent or a user of this model changes is all that changes.
func TestReadModifyWrite(t *testing.T) {
	values, _ := examples(t)
	path := Root + "workloadendpoints/k8s-ns/n1-k8s-web--0-eth0"
	o, _, err := DecodeKeep(path, values[path])
	if err != nil {
		t.Fatal(err)
	}
	w := o.(*WorkloadEndpoint)
	w.Meta.Labels = map[string]string{"new": "label"}
	w.Spec.IPNATs[0].ExternalIP = IP{Addr: w.Spec.IPNetworks.Prefixes[0].Addr()}
	w.Spec.Pod = ""
	out, err := Encode(o)
	want := strings.NewReplacer(`"creationTimestamp":null`, `"creationTimestamp":null,"labels":{"new":"label"}`, `"externalIP":"192.0.2.4"`, `"externalIP":"10.21.0.4"`, `"pod":"web-0",`, "").Replace(string(values[path]))
	if err != nil || !equalJSON(t, []byte(want), out) {
		t.Errorf("%v: got\n%s\nwant\n%s", err, out, want)
	}
}

// Rules keep what was not understood of them when others come, go and move.
func TestChangeOfRules(t *testing.T) {
	const a, b, c = `{"action":"Allow","protocol":"TCP","destination":{"ports":["http"]}}`, `{"action":"Allow","source":{"selector":7}}`, `{"action":"Deny","x":{}}`
	value := fmt.Appendf(nil, `{"metadata":{"name":"p"},"spec":{"ingress":[%s,%s,%s],"y":1}}`, a, b, c)
	for _, step := range []struct {
		name   string
		change func(rules []Rule) []Rule
		want   string
	}{
		{"append", func(r []Rule) []Rule { return append(r, Rule{Action: Pass}) }, a + "," + b + "," + c + `,{"action":"Pass"}`},
		{"remove", func(r []Rule) []Rule { return r[1:] }, b + "," + c},
		{"swap", func(r []Rule) []Rule { return []Rule{r[2], r[1], r[0]} }, c + "," + b + "," + a},
		{"change", func(r []Rule) []Rule { r[1].IPVersion = 4; return r }, a + `,{"action":"Allow","source":{"selector":7},"ipVersion":4},` + c},
		{"repair", func(r []Rule) []Rule { r[1].Source.Selector = ParseSelector("all()"); return r }, a + `,{"action":"Allow","source":{"selector":"all()"}},` + c},
	} {
		for _, decode := range []func(string, []byte) (Object, []Problem, error){Decode, DecodeKeep} {
			o, _, err := decode(Root+"globalnetworkpolicies/p", value)
			if err != nil {
				t.Fatal(err)
			}
			p := o.(*Policy)
			p.Spec.Ingress = step.change(p.Spec.Ingress)
			out, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Spec struct{ Ingress json.RawMessage }
			}
			if err := json.Unmarshal(out, &got); err != nil || !equalJSON(t, []byte("["+step.want+"]"), got.Spec.Ingress) {
				t.Errorf("%s: %v: got %s", step.name, err, got.Spec.Ingress)
			}
		}
	}
}

// Random unknown and damaged fields survive a change of something else.
func TestRandomChangeKeepsTheRest(t *testing.T) {
	values, _ := examples(t)
	paths := slices.Sorted(maps.Keys(values))
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		path := paths[rng.IntN(len(paths))]
		var doc map[string]any
		if err := json.Unmarshal(values[path], &doc); err != nil {
			t.Fatal(err)
		}
		for range 1 + rng.IntN(3) {
			damage(rng, doc["spec"])
		}
		if rng.IntN(2) == 0 {
			doc["metadata"].(map[string]any)["unknown"] = junk(rng)
		}
		value, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		o, _, err := DecodeKeep(path, value)
		if err != nil {
			t.Fatalf("%v: %s", err, value)
		}
		m := o.Metadata()
		m.Annotations = maps.Clone(m.Annotations)
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations["changed"] = "yes"
		out, err := Encode(o)
		if err != nil {
			t.Fatalf("%v: %s", err, value)
		}
		meta := doc["metadata"].(map[string]any)
		if _, ok := meta["annotations"]; !ok {
			meta["annotations"] = map[string]any{}
		}
		meta["annotations"].(map[string]any)["changed"] = "yes"
		if want, err := json.Marshal(doc); err != nil || !equalJSON(t, want, out) {
			t.Fatalf("%v: stored %s\nwritten %s", err, value, out)
		}
	}
}

func junk(rng *rand.Rand) any {
	return []any{map[string]any{"x": 1.0}, []any{[]any{}}, true, -1.0, "!!", 1e99, "\x00", []any{"!!"}, map[string]any{"!!": "!!"}}[rng.IntN(9)]
}

// damage puts a value that no field has for good in a random place of v, or
// renames a member. It returns false where v has no places.
func damage(rng *rand.Rand, v any) bool {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			return false
		}
		name := slices.Sorted(maps.Keys(v))[rng.IntN(len(v))]
		switch {
		case rng.IntN(2) == 0 && damage(rng, v[name]):
		case rng.IntN(4) == 0:
			v[name+"!"] = v[name]
			delete(v, name)
		default:
			v[name] = junk(rng)
		}
		return true
	case []any:
		if len(v) == 0 {
			return false
		}
		if i := rng.IntN(len(v)); rng.IntN(2) == 0 || !damage(rng, v[i]) {
			v[i] = junk(rng)
		}
		return true
	}
	return false
}

func TestDecodeRetainsNothing(t *testing.T) {
	values, _ := examples(t)
	for path, value := range values {
		o, problems, err := Decode(path, value)
		if err != nil {
			t.Fatal(err)
		}
		before, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		reported := printed(problems)
		for i := range value {
			value[i] = 'x'
		}
		if after, err := Encode(o); err != nil || string(after) != string(before) || printed(problems) != reported {
			t.Errorf("%s: %v: changed with the value it came from: %s", path, err, after)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	value := `{"spec":{"nets":[` + strings.Repeat("5,", 10000) + "5]}}"
	o, problems, err := Decode(Root+"globalnetworksets/a", []byte(value))
	if err != nil || len(problems) != maxProblems || len(o.(*NetworkSet).Spec.Nets.Bad) != 10001 {
		t.Errorf("%d problems, %v", len(problems), err)
	}
	long := `{"spec":{"` + strings.Repeat("k", 1e6) + `":"` + strings.Repeat("v", 1e6) + `"}}`
	if _, problems, err := Decode(Root+"tiers/a", []byte(long)); err != nil || len(problems) != 1 || len(problems[0].String()) > 1000 {
		t.Errorf("%v, %v", problems, err)
	}
}

func FuzzDecode(f *testing.F) {
	values, _ := examples(f)
	for path, value := range values {
		f.Add(strings.TrimPrefix(path, Root), value)
	}
	f.Fuzz(func(t *testing.T, path string, value []byte) {
		o, _, err := DecodeKeep(Root+path, value)
		if err != nil {
			return
		}
		if !json.Valid(value) {
			t.Fatalf("%q was accepted", value)
		}
		out, err := Encode(o)
		if err != nil || string(out) != string(value) {
			t.Fatalf("%v: %s was written back as %s", err, value, out)
		}
		plain, _, err := Decode(Root+path, value)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Encode(plain); err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		Prepare(o, time.Unix(0, 0), "00000000-0000-4000-8000-000000000000")
		Validate(o)
		if out, err = Encode(o); err != nil || !json.Valid(out) {
			t.Fatalf("%s: %v: %s", value, err, out)
		}
		if _, _, err := DecodeManifest(value); err == nil && len(value) == 0 {
			t.Fatal("an empty manifest was accepted")
		}
	})
}

func TestSameJSON(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{`{"a": [1, "x\u0026", null], "b": {}}`, `{"b":{},"a":[1.0,"x&",null]}`, true},
		{`10`, `1e1`, true},
		{`-0`, `0`, true},
		{`9007199254740993`, `9007199254740992`, false},
		{`1e999`, `1e999`, true},
		{`1e999`, `2e999`, false},
		{`[1]`, `[1,1]`, false},
		{`{"a":null}`, `{}`, false},
		{`"1"`, `1`, false},
		{`[`, `[`, false},
	} {
		if got := SameJSON([]byte(c.a), []byte(c.b)); got != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
	}
}
