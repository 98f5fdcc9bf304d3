package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"tortie/analysis"
	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
)

const previewBase = `
kind: WorkloadEndpoint
apiVersion: projectcalico.org/v3
metadata: {name: h1-lab-web-eth0, namespace: shop, labels: {role: web}}
spec: {orchestrator: lab, workload: web, node: h1, endpoint: eth0, interfaceName: cali1, ipNetworks: [10.65.0.1, "fd00:65::1"]}
---
kind: WorkloadEndpoint
apiVersion: projectcalico.org/v3
metadata: {name: h2-lab-db-eth0, namespace: shop, labels: {role: db}}
spec: {orchestrator: lab, workload: db, node: h2, endpoint: eth0, interfaceName: cali2, ipNetworks: [10.65.0.3, "fd00:65::3"]}
---
kind: GlobalNetworkPolicy
apiVersion: projectcalico.org/v3
metadata: {name: send}
spec: {order: 20, types: [Egress], egress: [{action: Allow}]}
`

const previewChange = `
kind: GlobalNetworkPolicy
apiVersion: projectcalico.org/v3
metadata: {name: db}
spec:
  selector: role == 'db'
  ingress: [{action: Allow, protocol: TCP, source: {selector: role == 'web'}, destination: {ports: [5432]}}]
`

// TestPreviewAndLint: from files and from the datastore, with the exit codes
// that scripts ask for.
func TestPreviewAndLint(t *testing.T) {
	dir, s := t.TempDir(), memory.New()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base, change := file("base.yaml", previewBase), file("change.yaml", previewChange)
	bad := file("bad.yaml", strings.Replace(previewChange, "Allow", "Alow", 1))
	nobody := file("nobody.yaml", strings.Replace(previewChange, "== 'db'", "== 'bd'", 1))
	run := func(want int, args ...string) string {
		t.Helper()
		return runTortie(t, s, want, args...)
	}
	run(0, "init")
	run(0, "apply", "-f", base)
	var got struct{ Changes []analysis.Change }
	for _, args := range [][]string{{"preview", "-f", change, "-o", "json"}, {"preview", "-f", change, "--base", base, "-o", "json"}} {
		if err := json.Unmarshal([]byte(run(2, args...)), &got); err != nil {
			t.Fatal(err)
		}
		if c := got.Changes; len(c) != 1 || c[0].Effect != analysis.Gained || strings.Join(c[0].From, " ") != "shop/h1-lab-web-eth0" ||
			strings.Join(c[0].To, " ") != "shop/h2-lab-db-eth0" || strings.Join(c[0].Traffic, " ") != "tcp/5432" || len(c[0].IPVersions) != 2 ||
			c[0].By.Rule == nil || c[0].By.Rule.Policy.Name != "db" || c[0].Before.Reason != "no policy and no profile" {
			t.Errorf("%q: %+v", args, c)
		}
	}
	if out := run(0, "get", "globalnetworkpolicies", "-o", "name"); strings.Contains(out, "/db") {
		t.Errorf("the change was made: %s", out)
	}
	if out := run(0, "preview", "-f", nobody); out != "No connection is gained or lost.\n" {
		t.Error(out)
	}
	run(1, "preview", "--delete", "-f", change)
	if out := run(1, "preview", "-f", bad); !strings.Contains(out, "spec.ingress[0].action") {
		t.Error(out)
	}
	noTier := file("tier.yaml", strings.Replace(previewChange, "spec:", "spec:\n  tier: missing", 1))
	for _, args := range [][]string{{"apply", "-f", noTier}, {"preview", "-f", noTier}, {"preview", "-f", noTier, "--base", base}} {
		if out := run(1, args...); !strings.Contains(out, `GlobalNetworkPolicy(db): spec.tier: "missing": there is no such tier`) {
			t.Errorf("%q: %s", args, out)
		}
	}
	builtIn := file("profile.yaml", "kind: Profile\napiVersion: projectcalico.org/v3\nmetadata: {name: projectcalico-default-allow}\n")
	if out := run(1, "preview", "-f", builtIn); !strings.Contains(out, "it is built in") {
		t.Error(out)
	}
	run(1, "preview", "-f", change, "-o", "name")
	run(1, "preview")
	run(0, "apply", "-f", change)
	if out := run(2, "preview", "--delete", "-f", change); !strings.Contains(out, "lost") {
		t.Error(out)
	}
	if out := run(0, "lint"); out != "Nothing found.\n" {
		t.Error(out)
	}
	if out := run(2, "lint", "-f", nobody, "-o", "yaml"); !strings.Contains(out, "check: selects-nothing") {
		t.Error(out)
	}
	if out := run(0, "lint", "-o", "json"); strings.Join(strings.Fields(out), "") != `{"findings":[]}` {
		t.Error(out)
	}
}

// TestPreviewKeepsTypes: a policy that is stored without types is of both
// directions, and stays so when a manifest without types takes its place. With
// its own types it would leave what db sends to the profile, which allows it.
func TestPreviewKeepsTypes(t *testing.T) {
	dir, s := t.TempDir(), memory.New()
	base, change := filepath.Join(dir, "base.yaml"), filepath.Join(dir, "change.yaml")
	endpoints, _, _ := strings.Cut(previewBase, "---\nkind: GlobalNetworkPolicy")
	endpoints = strings.ReplaceAll(endpoints, "spec: {", "spec: {profiles: [projectcalico-default-allow], ")
	if err := errors.Join(os.WriteFile(base, []byte(endpoints), 0o600), os.WriteFile(change, []byte(previewChange), 0o600)); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) string {
		t.Helper()
		return runTortie(t, s, want, args...)
	}
	run(0, "init")
	run(0, "apply", "-f", base)
	stored := `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"db"},` +
		`"spec":{"tier":"default","selector":"role == 'db'","ingress":[{"action":"Deny"}]}}`
	key := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "db"}
	if _, err := s.Commit(t.Context(), store.Op{Path: key.Path(), Value: []byte(stored), If: store.AnyRevision}); err != nil {
		t.Fatal(err)
	}
	sends := []string{"explain", "--from", "db", "--to", "web", "--port", "tcp/80"}
	run(2, sends...)
	var got struct{ Changes []analysis.Change }
	if err := json.Unmarshal([]byte(run(2, "preview", "-f", change, "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Changes; len(c) != 1 || c[0].Effect != analysis.Gained || strings.Join(c[0].Traffic, " ") != "tcp/5432" {
		t.Errorf("%+v", c)
	}
	run(0, "apply", "-f", change)
	run(2, sends...)
	if out := run(0, "preview", "-f", change); out != "No connection is gained or lost.\n" {
		t.Error(out)
	}
}

// runTortie runs a command on what is stored; its exit code must be want.
func runTortie(t *testing.T, s store.Store, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	root := &cobra.Command{Use: "tortie"}
	root.AddCommand(Commands(Options{Open: func(context.Context) (store.Store, func(), error) { return s, func() {}, nil }})...)
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	if got := Execute(t.Context(), root); got != want {
		t.Errorf("%q: exit code %d, want %d: %s", args, got, want, &out)
	}
	return out.String()
}
