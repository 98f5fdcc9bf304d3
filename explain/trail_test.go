package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
)

// path prints a trail, a line for each step: the tier, what applies there, the
// rule if there is one, and what the step ends with.
func path(d Decision) string {
	var b strings.Builder
	for _, s := range d.Trail {
		var names []string
		for _, k := range s.Policies {
			names = append(names, k.Name)
		}
		rule := "-"
		if s.Rule != nil {
			rule = fmt.Sprintf("%s/%d", s.Rule.Policy.Name, s.Rule.Index)
		}
		fmt.Fprintf(&b, "%q %v %s %s\n", s.Tier, names, rule, s.Action)
	}
	return b.String()
}

// TestTrail: every tier that is gone through has its step, and none after the
// one that decides, in both families.
func TestTrail(t *testing.T) {
	base := func() *Cluster {
		c := world(t)
		put(t, c, "Tier default", "", `"order":1000000,"defaultAction":"Deny"`)
		put(t, c, "Tier first", "", `"order":1,"defaultAction":"Pass"`)
		put(t, c, "Tier second", "", `"order":2`)
		put(t, c, "GlobalNetworkPolicy other", "", `"tier":"second","selector":"role == 'db'","ingress":[{"action":"Deny"}]`)
		return c
	}
	const nothing = "\"first\" [] - Pass\n\"second\" [] - Pass\n\"default\" [] - Pass\n"
	for _, tt := range []struct {
		name     string
		profiles string
		objects  [][2]string // what it is, and its spec
		want     string
	}{
		{name: "no policy and no profile", want: nothing + "\"\" [] - Deny\n"},
		{
			name: "a profile that is missing", profiles: `"gone"`,
			want: nothing + "\"\" [gone] - Deny\n",
		},
		{
			name: "a rule of a profile", profiles: `"log","yes","no"`,
			objects: [][2]string{
				{"Profile log", `"ingress":[{"action":"Log"}]`},
				{"Profile yes", `"ingress":[{"action":"Deny","protocol":"UDP"},{"action":"Allow"}]`},
			},
			want: nothing + "\"\" [log yes no] yes/1 Allow\n",
		},
		{
			name: "the built-in profile", profiles: `"projectcalico-default-allow"`,
			want: nothing + "\"\" [projectcalico-default-allow] projectcalico-default-allow/0 Allow\n",
		},
		{
			name: "a profile that passes", profiles: `"p","projectcalico-default-allow"`,
			objects: [][2]string{{"Profile p", `"ingress":[{"action":"Pass"}]`}},
			want:    nothing + "\"\" [p projectcalico-default-allow] - Deny\n",
		},
		{
			name:    "the default action of a tier passes, that of the next denies",
			objects: [][2]string{{"GlobalNetworkPolicy a", `"tier":"first"`}, {"GlobalNetworkPolicy b", `"tier":"second","order":2`}, {"NetworkPolicy prod c", `"tier":"second","order":1`}},
			want:    "\"first\" [a] - Pass\n\"second\" [c b] - Deny\n",
		},
		{
			name: "a rule passes, and the second policy of the last tier allows",
			objects: [][2]string{
				{"GlobalNetworkPolicy a", `"tier":"second","ingress":[{"action":"Log"},{"action":"Pass"},{"action":"Deny"}]`},
				{"GlobalNetworkPolicy b", `"order":1,"ingress":[{"action":"Deny","protocol":"UDP"}]`},
				{"GlobalNetworkPolicy c", `"order":2,"ingress":[{"action":"Deny","protocol":"SCTP"},{"action":"Allow"}]`},
			},
			want: "\"first\" [] - Pass\n\"second\" [a] a/1 Pass\n\"default\" [b c] c/1 Allow\n",
		},
		{
			name:    "a tier that does not exist comes last",
			objects: [][2]string{{"GlobalNetworkPolicy a", `"tier":"absent"`}},
			want:    nothing + "\"absent\" [a] - Deny\n",
		},
		{
			name:    "a policy of the other direction",
			objects: [][2]string{{"GlobalNetworkPolicy a", `"types":["Egress"]`}},
			want:    nothing + "\"\" [] - Deny\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := base()
			put(t, c, web, `"role":"web"`, `"node":"h1","ipNetworks":["10.0.0.1/32","fd00::1/128"],"profiles":[`+tt.profiles+`]`)
			for _, o := range tt.objects {
				put(t, c, o[0], "", o[1])
			}
			for _, p := range both(db, web, tcp(80)) {
				d := *c.Connection(p).Destination
				if diff := cmp.Diff(tt.want, path(d)); diff != "" {
					t.Errorf("%s: -want +got\n%s", p.Src, diff)
				}
				if d.Host != "h1" {
					t.Errorf("host %q", d.Host)
				}
			}
		})
	}
}

// TestBetween: the ends that are named decide, though others have the address.
func TestBetween(t *testing.T) {
	c := world(t)
	put(t, c, "WorkloadEndpoint prod twin", `"role":"twin"`, `"node":"h9","ipNetworks":["10.0.0.1","fd00::1"]`)
	put(t, c, "GlobalNetworkPolicy p", "", `"selector":"role != 'twin'",`+allowAll)
	twin := key("WorkloadEndpoint prod twin")
	for _, p := range both(web, db, tcp(80)) {
		if r := c.Along(Way{From: key(web), To: key(db)}, p); r.Verdict != api.Allow || r.Source.Endpoint != key(web) {
			t.Errorf("%s from web: %v", p.Src, r.Source)
		}
		if r := c.Along(Way{From: twin}, p); r.Verdict != api.Deny || r.Source.Endpoint != twin || r.Destination.Endpoint != key(db) {
			t.Errorf("%s from twin: %v, %v", p.Src, r.Source, r.Destination)
		}
		if r := c.Along(Way{To: key("WorkloadEndpoint prod nobody")}, p); r.Verdict != api.Deny || r.Destination.Reason != "no such endpoint" {
			t.Errorf("%s to nobody: %v", p.Src, r.Destination)
		}
		if got := c.Owners(p.Src); !slices.Equal(got, []api.Key{twin, key(web)}) {
			t.Errorf("%s has %v", p.Src, got)
		}
	}
}

func TestSelect(t *testing.T) {
	c := world(t)
	put(t, c, "Profile kns.prod", "", `"labelsToApply":{"pcns.env":"live"}`)
	put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["kns.prod"]`)
	for text, want := range map[string][]api.Key{
		"all()":                                {key(client), key(db), key(web)},
		"pcns.env == 'live'":                   {key(web)},
		"role in {'db','x'}":                   {key(db)},
		"role == 'nobody'":                     nil,
		"this is no selector":                  nil,
		"projectcalico.org/namespace == 'dev'": {key(client)},
	} {
		if got := c.Select(api.ParseSelector(text)); !slices.Equal(got, want) {
			t.Errorf("%s selects %v, want %v", text, got, want)
		}
	}
	want := map[string]string{"role": "web", "pcns.env": "live", "projectcalico.org/namespace": "prod"}
	if diff := cmp.Diff(want, c.Labels(key(web))); diff != "" {
		t.Errorf("labels: -want +got\n%s", diff)
	}
	if got := c.Labels(key("WorkloadEndpoint prod nobody")); got != nil {
		t.Errorf("nobody has labels %v", got)
	}
}
