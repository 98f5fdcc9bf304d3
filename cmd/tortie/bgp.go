package main

import (
	"github.com/spf13/cobra"

	"tortie/bgp"
)

func bgpCommand(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "bgp",
		Short: "Announce this host's workloads to its BGP peers, and learn theirs",
		Long: `Announce this host's workloads to its BGP peers, and learn theirs, until a
signal ends it.

When it ends, nothing is withdrawn and learned routes stay: peers keep this
host's routes for the time of a graceful restart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := g.process()
			if err != nil {
				return err
			}
			defer p.close()
			_, problems := p.local.With(nil, nil)
			for _, problem := range problems {
				p.log.Warn("configuration", "field", problem.Field, "value", problem.Value, "reason", problem.Reason)
			}
			err = bgp.Run(cmd.Context(), bgp.Options{Host: p.cfg.Hostname, Store: p.store, RunDir: p.cfg.RunDir, Protocol: p.cfg.DeviceRouteProtocol, Log: p.log})
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
}
