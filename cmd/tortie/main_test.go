package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"tortie/ctl"
)

// TestFlagsCountFirst: a flag counts before the environment, whatever name and
// case the environment uses.
func TestFlagsCountFirst(t *testing.T) {
	t.Setenv("FELIX_FelixHostname", "from-environment")
	t.Setenv("FELIX_HOSTNAME", "from-environment-too")
	t.Setenv("FELIX_RUNDIR", "/run/from-environment")
	t.Setenv("FELIX_LOGSEVERITYSCREEN", "Error")
	for _, tc := range []struct {
		g                  global
		host, dir, logging string
	}{
		{global{}, "from-environment", "/run/from-environment", "Error"},
		{global{host: "h1", runDir: "/run/h1", logLevel: "debug"}, "h1", "/run/h1", "Debug"},
	} {
		_, cfg, err := tc.g.local()
		if err != nil {
			t.Fatal(err)
		}
		want := []string{tc.host, tc.dir, tc.logging}
		if diff := cmp.Diff(want, []string{cfg.Hostname, cfg.RunDir, cfg.LogSeverityScreen}); diff != "" {
			t.Errorf("%+v: -want +got\n%s", tc.g, diff)
		}
	}
}

// TestCommands: every process and every operator's command is there, no flag
// of one hides one of the root, and a wrong command is one line and exit code 1.
func TestCommands(t *testing.T) {
	root := rootCommand()
	var names []string
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		names = append(names, c.CommandPath())
		if c.Short == "" {
			t.Errorf("%s says nothing of itself", c.CommandPath())
		}
		_ = c.InheritedFlags() // panics where a shorthand stands for two flags
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, want := range strings.Fields("agent bgp datastore cleanup lab get apply create replace delete explain preview lint show top init version") {
		if !slices.Contains(names, "tortie "+want) {
			t.Errorf("there is no tortie %s", want)
		}
	}
	for _, want := range strings.Fields("up down status exec add-workload matrix demo") {
		if !slices.Contains(names, "tortie lab "+want) {
			t.Errorf("there is no tortie lab %s", want)
		}
	}
	for _, tc := range []struct{ args, want string }{
		{"--nonsense", `unknown flag: --nonsense`},
		{"nonsense", `unknown command "nonsense" for "tortie"`},
		{"top nonsense", `unknown command "nonsense" for "tortie top"`},
		{"lab nonsense", `unknown command "nonsense" for "tortie lab"`},
		{"show config --log-format xml", `show config: --log-format xml: want text or json`},
		{"show config --log-level loud", `show config: --log-level loud: want Debug, Info, Warning or Error`},
	} {
		var out bytes.Buffer
		root := rootCommand()
		root.SetErr(&out)
		root.SetArgs(strings.Fields(tc.args + " --config="))
		if code := ctl.Execute(t.Context(), root); code != 1 || out.String() != "Error: "+tc.want+"\n" {
			t.Errorf("%s: exit code %d, %q, want %q", tc.args, code, out.String(), tc.want)
		}
	}
}
