package main

import (
	"errors"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"tortie/agent"
	"tortie/verify"
)

func agentCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Make this host's kernel enforce what the datastore says",
		Long: `Make this host's kernel enforce what the datastore says, until a signal ends it.

When it ends, the kernel keeps what it has; "tortie cleanup" removes that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := g.process()
			if err != nil {
				return err
			}
			defer p.close()
			if os.Getenv("GOGC") == "" {
				// What the agent holds is large and changes little; collecting
				// it somewhat more often keeps the host's memory for guests.
				debug.SetGCPercent(60)
			}
			for {
				err := agent.Run(cmd.Context(), agent.Options{
					Store: p.store, Local: p.local, Log: p.log, Level: p.level,
					Verifier: func() (agent.Verifier, error) { return verify.Open() },
				})
				switch {
				case cmd.Context().Err() != nil:
					return nil
				case !errors.Is(err, agent.ErrConfigChanged):
					return err
				}
				p.log.Info("configuration changed; beginning anew")
			}
		},
	}
}
