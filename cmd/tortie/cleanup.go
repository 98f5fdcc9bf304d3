package main

import (
	"github.com/spf13/cobra"

	"tortie/agent"
)

func cleanupCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from this host's kernel all that Tortie made there",
		Long: `Remove from this host's kernel all that Tortie made there, and put host-wide
settings back to what they were. Stop the agent and bgp first. Interfaces of
workloads stay; so does all that others made.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			local, cfg, err := g.local()
			if err != nil {
				return err
			}
			log, _ := g.log(cfg)
			return agent.Cleanup(cmd.Context(), local, log)
		},
	}
}
