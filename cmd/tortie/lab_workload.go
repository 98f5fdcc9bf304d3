package main

import (
	"github.com/spf13/cobra"

	"tortie/lab"
)

func labAddWorkloadCommand(o *lab.Options) *cobra.Command {
	var w lab.WorkloadSpec
	cmd := &cobra.Command{
		Use:     "add-workload NAME",
		Short:   "Add a workload behind a host",
		Example: "  tortie lab add-workload web-9 --on host-2 --labels role=web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w.Name = args[0]
			return inLab(o, func(l *lab.Lab) error { return l.AddWorkload(cmd.Context(), w) })
		},
	}
	cmd.Flags().StringVar(&w.Host, "on", "host-1", "the host that it is behind")
	cmd.Flags().StringToStringVarP(&w.Labels, "labels", "l", nil, "labels of its endpoint")
	cmd.Flags().StringSliceVar(&w.Profiles, "profiles", nil, "profiles of its endpoint")
	cmd.Flags().StringVarP(&w.Namespace, "namespace", "n", "default", "namespace of its endpoint in the datastore")
	return cmd
}
