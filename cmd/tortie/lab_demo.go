package main

import (
	"github.com/spf13/cobra"

	"tortie/lab"
)

func labDemoCommand(o *lab.Options) *cobra.Command {
	d := lab.DemoOptions{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show on a lab of its own what tortie is for, and take it down",
		Long: `Show on a lab of its own what tortie is for, and take it down: routes, policy
expected and observed, a label change, policy changes that move no route, crashes
under traffic, and both ends enforcing. It fails if anything is not so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.Options = *o
			if !cmd.Flags().Changed("name") {
				d.Name = "demo" // beside one that is up
			}
			d.Progress = cmd.OutOrStdout()
			return lab.Demo(cmd.Context(), d)
		},
	}
	cmd.Flags().StringVar(&d.Examples, "examples", "examples", "folder of the manifests to apply")
	return cmd
}
