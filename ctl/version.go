package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
)

func versionCommand(o Options) *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and what the datastore says of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			_, _ = fmt.Fprintf(out, "Client Version:   %s\n", o.Version)
			if client {
				return nil
			}
			return o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
				key := api.Key{Kind: api.KindClusterInformation, Name: "default"}
				e, err := store.Find(ctx, s, key)
				if err != nil {
					return err
				}
				f, err := decode(e)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(out, "Cluster Version:  %s\nCluster Type:     %s\nCluster GUID:     %s\nDatastore Ready:  %s\n",
					text(f.doc.at("spec.calicoVersion")), text(f.doc.at("spec.clusterType")),
					text(f.doc.at("spec.clusterGUID")), text(f.doc.at("spec.datastoreReady")))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "do not ask the datastore")
	return cmd
}
