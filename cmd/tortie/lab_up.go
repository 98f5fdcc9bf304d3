package main

import (
	"github.com/spf13/cobra"

	"tortie/lab"
)

func labUpCommand(o *lab.Options) *cobra.Command {
	var hosts int
	var workloads uint
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make a lab and start its processes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Up(cmd.Context(), *o, lab.Shape{Hosts: hosts, Workloads: lab.DefaultWorkloads(hosts, int(workloads))})
			if err != nil {
				return err
			}
			return l.Close()
		},
	}
	cmd.Flags().IntVar(&hosts, "hosts", 3, "how many hosts")
	cmd.Flags().UintVar(&workloads, "workloads", 2, "how many workloads on each, with role=web, app or db")
	return cmd
}

func labDownCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End a lab: its processes, its namespaces and its folder",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return lab.Down(cmd.Context(), *o) },
	}
}
