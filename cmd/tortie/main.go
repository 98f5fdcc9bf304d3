// Tortie gives workloads one flat, routed IP network with policy enforced at
// both ends of every flow. This is its only binary: each subcommand is a process
// of a host, a tool, or a command of the operator. The files here read flags and
// call the packages that do the work, one file for each subcommand.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tortie/ctl"
)

// version is set when the binary is linked.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := ctl.Execute(ctx, rootCommand())
	stop()
	os.Exit(code)
}

func rootCommand() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:               "tortie",
		Short:             "A routed layer-3 network with policy, for virtual machines, containers and hosts",
		Version:           version,
		Args:              cobra.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	g.flags(root)
	root.AddGroup(
		&cobra.Group{ID: "process", Title: "Processes:"},
		&cobra.Group{ID: "operator", Title: "Operator's commands:"},
	)
	for _, c := range []*cobra.Command{agentCommand(g), bgpCommand(g), datastoreCommand(g), cleanupCommand(g), labCommand(g)} {
		c.GroupID = "process"
		root.AddCommand(c)
	}
	for _, c := range ctl.Commands(ctl.Options{Open: g.open, RunDir: g.socketDir, Host: g.hostName, Version: version}) {
		c.GroupID = "operator"
		root.AddCommand(c)
	}
	return root
}
