package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/explain"
	"tortie/store"
	"tortie/store/memory"
)

// command runs the commands on a datastore and returns the exit code.
func command(s store.Store, args ...string) (code int, stdout, stderr string) {
	return commandOf(Options{Open: func(context.Context) (store.Store, func(), error) {
		if s == nil {
			return nil, nil, errors.New("there is no datastore")
		}
		return s, func() {}, nil
	}}, args...)
}

func commandOf(o Options, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	root := &cobra.Command{Use: "tortie"}
	root.AddCommand(Commands(o)...)
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	return Execute(context.Background(), root), out.String(), errs.String()
}

// TestExplainExamples: the last line and the exit code, of the manifests of the
// demo, in both families.
func TestExplainExamples(t *testing.T) {
	s := memory.New()
	if code, _, stderr := command(s, "apply", "-f", "../examples"); code != 0 {
		t.Fatal(stderr)
	}
	for n, role := range []string{"web", "app", "db", "other", "none"} {
		if _, err := store.Create(t.Context(), s, endpoint(role, byte(n+1))); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args, last string
		code       int
	}{
		{"--from web --to app --port tcp/8080", "allowed", 0},
		{"--from 10.65.0.1 --to 10.65.0.2 --port tcp/8080", "allowed", 0},
		{"--from role=web --to fd00:65::2 --port UDP/8080", "allowed", 0},
		{"--from role=web --to app --port icmp", "allowed", 0},
		{"--from web --to app --port icmp/8", "allowed", 0},
		{"--from web --to app --port icmpv6/128/0", "allowed", 0},
		{"--from web --to app --port icmpv6", "allowed", 0},
		{"--from web --to app --port icmp/13", "denied by the default action of tier application at the source's host", 2},
		{"--from 198.51.100.9 --to web --port tcp/443", "allowed", 0},
		{"--from 2001:db8:c11e::9 --to web --port tcp/443", "allowed", 0},
		{"--from 192.0.2.9 --to web --port tcp/443", "denied by the default action of tier application at the destination's host", 2},
		{"--from 2001:db8::9 --to web --port tcp/443", "denied by the default action of tier application at the destination's host", 2},
		{"--from web --to 192.0.2.9 --port 47", "denied by the default action of tier application at the source's host", 2},
		{"--from none --to web --port tcp/80 --ip-version 4", "denied at the source's host: no policy and no profile", 2},
		{"--from 192.0.2.9 --to 192.0.2.10 --port tcp/80", "allowed", 0},
		{"--from nobody --to web --port tcp/80", "", 1},
	} {
		for _, format := range []string{"text", "json", "yaml"} {
			code, stdout, stderr := command(s, append([]string{"explain", "-o", format}, strings.Fields(tt.args)...)...)
			if code != tt.code || (stderr == "") != (code != 1) {
				t.Errorf("%s -o %s: exit code %d, want %d: %s", tt.args, format, code, tt.code, stderr)
			}
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			if last := lines[len(lines)-1]; format == "text" && last != tt.last {
				t.Errorf("%s: %q, want %q", tt.args, last, tt.last)
			}
			if !strings.Contains(strings.ReplaceAll(stdout, "''", "'"), tt.last) { // YAML doubles quotes
				t.Errorf("%s -o %s does not say %q:\n%s", tt.args, format, tt.last, stdout)
			}
		}
	}
	code, _, stderr := command(s, "explain", "--from", "other", "--to", "has(role)", "--port", "tcp/1")
	want := "Error: --to has(role): 4 endpoints match, where one is meant: default/h1-lab-app-eth0, " +
		"default/h1-lab-db-eth0, default/h1-lab-other-eth0, default/h1-lab-web-eth0\n"
	if code != 1 || stderr != want {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	s.Disconnect()
	if code, _, stderr = command(s, "explain", "web"); code != 1 || !strings.HasPrefix(stderr, "Error: read the datastore: ") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestExplainDefaults: what a manifest leaves out is what apply would store, and
// no datastore is asked.
func TestExplainDefaults(t *testing.T) {
	all, _, err := readManifests([]string{"../examples"}, strings.NewReader(""), "default")
	if err != nil || len(all) == 0 {
		t.Fatal(err)
	}
	code, _, stderr := command(nil, "explain", "--from", "192.0.2.1", "--to", "192.0.2.2", "--port", "tcp/80", "-f", "../examples")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	const policy = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"ingress":[{"action":"Allow"}]}}`
	c, err := readFiles([]string{"-"}, strings.NewReader(policy), "default")
	if err != nil {
		t.Fatal(err)
	}
	w := endpoint("web", 1)
	c.put(w, nil)
	// Only the direction that has rules: types are filled in.
	if n := len(c.direction(w.Key(), api.Egress).Tiers[1].Policies); n != 0 {
		t.Errorf("%d policies of egress, want none", n)
	}
	in := c.direction(w.Key(), api.Ingress).Tiers[1]
	if in.Tier != api.DefaultTier || in.Missing || len(in.Policies) != 1 {
		t.Errorf("ingress: %+v", in)
	}
}

// ends is a cluster whose names mean several things.
func ends(t *testing.T) *cluster {
	t.Helper()
	s := memory.New()
	create := func(namespace, node, workload, id, role string, addrs ...string) {
		w := endpoint(role, 1)
		w.Spec.Node, w.Spec.Workload, w.Spec.Endpoint, w.Meta.Namespace = node, workload, id, namespace
		w.Meta.Name, w.Spec.IPNetworks = w.Spec.Identity().String(), api.ParseNets(addrs...)
		if _, err := store.Create(t.Context(), s, w); err != nil {
			t.Fatal(err)
		}
	}
	create("a", "h1", "vm", "p1", "web", "10.0.0.1", "fd00::1")
	create("b", "h2", "vm", "p2", "db", "fd00::2")
	create("b", "h2", "two", "p3", "app", "10.0.0.3", "10.0.0.4", "fd00::3")
	create("b", "h2", "two", "p4", "none", "10.0.0.3")
	create("b", "h2", "p1", "p5", "x", "10.0.0.5")
	c, err := readStore(t.Context(), s, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEnds: one endpoint is found, or the error says which there are.
func TestEnds(t *testing.T) {
	c := ends(t)
	for text, want := range map[string]string{
		"h1-lab-vm-p1":                  "h1-lab-vm-p1",
		"a/h1-lab-vm-p1":                "h1-lab-vm-p1",
		"b/h1-lab-vm-p1":                "no endpoint has this name, and it is neither an address nor a selector",
		"vm":                            "2 endpoints match, where one is meant: a/h1-lab-vm-p1, b/h2-lab-vm-p2",
		"b/vm":                          "h2-lab-vm-p2",
		"p1":                            "h2-lab-p1-p5", // the workload before the id
		"p2":                            "h2-lab-vm-p2",
		"a/p1":                          "h1-lab-vm-p1",
		"two":                           "2 endpoints match, where one is meant: b/h2-lab-two-p3, b/h2-lab-two-p4",
		"role=web":                      "h1-lab-vm-p1",
		"role == 'web'":                 "h1-lab-vm-p1",
		"role in {'web','nobody'}":      "h1-lab-vm-p1",
		"projectcalico.org/namespace=a": "h1-lab-vm-p1",
		"has(role) && !(role in {'web','app','x'})": "h2-lab-vm-p2",
		"role=":        "no endpoint is selected by role == \"\"",
		"role=nobody":  "no endpoint is selected by role == \"nobody\"",
		"role = 'web'": "selector: offset 5: expected ==, !=, in, not in, contains, starts with or ends with, found \"= 'web'\"",
		"":             "no endpoint has this name, and it is neither an address nor a selector",
		"10.0.0.4":     "h2-lab-two-p3",
		"10.0.0.3":     "2 endpoints match, where one is meant: b/h2-lab-two-p3, b/h2-lab-two-p4",
		"fd00::2/128":  "h2-lab-vm-p2",
		"10.0.0.0/24":  "no endpoint has this name, and it is neither an address nor a selector",
		"192.0.2.1":    "no endpoint has this address",
	} {
		key, err := c.only(text)
		got := key.Name
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	e, err := c.end("--from", "p3")
	if v4, _ := e.addr(4); err != nil || v4.String() != "10.0.0.3" {
		t.Errorf("%v, %v", e, err)
	}
	if _, has := e.addr(6); !has {
		t.Errorf("%v has no IPv6 address", e)
	}
	if _, err = c.end("--to", "vm"); err == nil || !strings.HasPrefix(err.Error(), "--to vm: 2 ") {
		t.Errorf("%v", err)
	}
	if e, err = c.end("--to", "::ffff:192.0.2.1"); err != nil || e.key != (api.Key{}) || fmt.Sprint(e.addrs) != "[192.0.2.1]" {
		t.Errorf("%v, %v", e, err)
	}
	var many []api.Key
	for i := range 23 {
		many = append(many, api.Key{Namespace: "n", Name: fmt.Sprint(i)})
	}
	if got := shortList(many); !strings.HasSuffix(got, "n/19, and 3 more") {
		t.Errorf("%s", got)
	}
}

func TestServices(t *testing.T) {
	tcp := explain.Packet{Protocol: 6, SrcPort: ephemeral, DstPort: 5432}
	for text, want := range map[string]service{
		"tcp/5432":     {4: tcp, 6: tcp},
		"6/5432":       {4: tcp, 6: tcp},
		"UDP/53":       {4: {Protocol: 17, SrcPort: ephemeral, DstPort: 53}, 6: {Protocol: 17, SrcPort: ephemeral, DstPort: 53}},
		"sctp":         {4: {Protocol: 132, SrcPort: ephemeral}, 6: {Protocol: 132, SrcPort: ephemeral}},
		"47":           {4: {Protocol: 47}, 6: {Protocol: 47}},
		"icmp":         {4: {Protocol: 1, ICMPType: 8}, 6: {Protocol: 58, ICMPType: 128}},
		"icmp/8":       {4: {Protocol: 1, ICMPType: 8}},
		"icmp/3/4":     {4: {Protocol: 1, ICMPType: 3, ICMPCode: 4}},
		"icmp/0":       {4: {Protocol: 1}},
		"icmpv6":       {6: {Protocol: 58, ICMPType: 128}},
		"ICMPv6/129/1": {6: {Protocol: 58, ICMPType: 129, ICMPCode: 1}},
		"58/1":         {6: {Protocol: 58, ICMPType: 1}},
	} {
		got, err := parseService(text)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b explain.Packet) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%s: %v, -want +got\n%s", text, err, diff)
		}
	}
	for text, want := range map[string]string{
		"":           `--port : "": want a protocol`,
		"http":       `--port http: "http": want a protocol`,
		"0":          `--port 0: "0": want a protocol`,
		"80":         "", // a protocol
		"256":        `--port 256: "256": want a protocol`,
		"tcp/":       "--port tcp/: want a port from 1 to 65535 after the protocol",
		"tcp/0":      "--port tcp/0: want a port",
		"tcp/65536":  "--port tcp/65536: want a port",
		"tcp/80/1":   "--port tcp/80/1: want a port",
		"tcp/http":   "--port tcp/http: want a port",
		"icmp/256":   "--port icmp/256: want a type and a code, up to 255, after the protocol",
		"icmp/8/0/1": "--port icmp/8/0/1: want a type",
		"47/1":       "--port 47/1: this protocol has no ports",
	} {
		_, err := parseService(text)
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// FuzzExplain: nothing that is asked makes explain panic or answer without a
// verdict.
func FuzzExplain(f *testing.F) {
	f.Add("web", "role=db", "tcp/80")
	f.Add("10.65.0.1", "has(role)", "icmpv6/128/0")
	f.Fuzz(func(t *testing.T, from, to, port string) {
		c := newCluster()
		c.put(endpoint("web", 1), nil)
		c.put(endpoint("db", 2), nil)
		q := question{from: from, to: to, port: port}
		x, err := q.answer(&cobra.Command{}, c)
		if err == nil && (len(x.Families) == 0 || x.Summary == "" || x.text() == "") {
			t.Errorf("%+v", x)
		}
	})
}

// TestExplainFloating: an external address is explained as what it leads to, for
// the workload itself too.
func TestExplainFloating(t *testing.T) {
	s := memory.New()
	if code, _, stderr := command(s, "apply", "-f", "../examples"); code != 0 {
		t.Fatal(stderr)
	}
	for n, role := range []string{"web", "app"} {
		w := endpoint(role, byte(n+1))
		if role == "web" {
			w.Spec.Orchestrator = "openstack"
			w.Meta.Name = w.Spec.Identity().String()
			n := api.IPNAT{}
			n.InternalIP.Addr, n.ExternalIP.Addr = netip.MustParseAddr("10.65.0.1"), netip.MustParseAddr("198.51.100.1")
			w.Spec.IPNATs = []api.IPNAT{n}
		}
		if _, err := store.Create(t.Context(), s, w); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args, says string
		code       int
	}{
		{"--from 198.51.100.9 --to 198.51.100.1 --port tcp/443", "  translated: ingress policy sees it from 198.51.100.9 to 10.65.0.1\n  ingress of WorkloadEndpoint(default/h1-openstack-web-eth0) at host h1: allowed", 0},
		{"--from web --to 198.51.100.1 --port tcp/9", "  translated: egress policy sees it to 10.65.0.1\n  egress of WorkloadEndpoint(default/h1-openstack-web-eth0) at host h1: denied", 2},
		{"--from 198.51.100.9 --to 198.51.100.2 --port tcp/443", "198.51.100.2 is outside", 0},
	} {
		code, stdout, stderr := command(s, append([]string{"explain"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stdout, tt.says) {
			t.Errorf("%s: exit code %d, want %d: %s%s", tt.args, code, tt.code, stdout, stderr)
		}
	}
}
