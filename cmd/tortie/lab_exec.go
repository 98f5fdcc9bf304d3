package main

import (
	"errors"
	"fmt"
	"os/exec"

	"github.com/spf13/cobra"

	"tortie/ctl"
	"tortie/lab"
)

func labExecCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:     "exec HOST|WORKLOAD|fabric -- COMMAND [ARG...]",
		Short:   "Run a command on a host or in a workload",
		Long:    "Run a command on a host or in a workload, and exit with its exit code.",
		Example: "  tortie lab exec host-1 -- tortie show peers\n  tortie lab exec web-1 -- ping 10.65.2.1",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := inLab(o, func(l *lab.Lab) error { return l.Exec(cmd.Context(), args[0], args[1:]...) })
			var ran *exec.ExitError
			if errors.As(err, &ran) && ran.Exited() {
				return ctl.Exit(ran.ExitCode())
			}
			return err
		},
	}
}

func labStatusCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the hosts, their processes, routes and workloads",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return inLab(o, func(l *lab.Lab) error {
				hosts, err := l.Status(cmd.Context())
				for _, h := range hosts {
					_, _ = fmt.Fprint(cmd.OutOrStdout(), h.String())
				}
				return err
			})
		},
	}
}
