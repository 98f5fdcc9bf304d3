package main

import (
	"github.com/spf13/cobra"

	"tortie/store/etcd"
)

func datastoreCommand(g *global) *cobra.Command {
	var s etcd.ServeConfig
	var clientAuth bool
	cmd := &cobra.Command{
		Use:   "datastore",
		Short: "Serve an etcd with one member, for small sites and the lab",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, cfg, err := g.local()
			if err != nil {
				return err
			}
			s.Log, _ = g.log(cfg)
			if !clientAuth {
				s.ClientCAFile = ""
			}
			server, err := etcd.Serve(s)
			if err != nil {
				return err
			}
			defer server.Close()
			s.Log.Info("serving", "endpoints", server.Endpoints(), "data", s.Dir)
			select {
			case <-cmd.Context().Done():
				return nil
			case err := <-server.Err():
				return err
			}
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.Dir, "data-dir", "/var/lib/tortie/datastore", "folder of the data")
	f.StringSliceVar(&s.Listen, "listen", []string{"http://127.0.0.1:2379"}, "URLs to serve on; http://[::]:2379 is every address")
	f.StringVar(&s.CertFile, "cert-file", "", "PEM file of the server's certificate, for https")
	f.StringVar(&s.KeyFile, "key-file", "", "PEM file of its key")
	f.StringVar(&s.ClientCAFile, "trusted-ca-file", "", "PEM file of the authority that signs clients' certificates")
	f.BoolVar(&clientAuth, "client-cert-auth", false, "clients must show a certificate of that authority")
	cmd.MarkFlagsRequiredTogether("cert-file", "key-file")
	cmd.MarkFlagsRequiredTogether("trusted-ca-file", "client-cert-auth")
	return cmd
}
