package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tortie/config"
	"tortie/lab"
	"tortie/store"
)

func labCommand(*global) *cobra.Command {
	var o lab.Options
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A data centre in network namespaces, running this binary",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// What a lab command began it takes back also when the terminal goes.
			ctx, _ := signal.NotifyContext(cmd.Context(), syscall.SIGHUP, syscall.SIGPIPE)
			cmd.SetContext(ctx)
			o.Progress = cmd.ErrOrStderr()
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return fmt.Errorf("find this binary: %w", err)
			}
			return nil
		},
	}
	cmd.PersistentFlags().StringVar(&o.Name, "name", "lab", "name of the lab")
	cmd.PersistentFlags().StringVar(&o.Dir, "dir", "", "folder of its state, instead of one in /run/tortie-lab")
	o.OpenStore = func(endpoint string) (store.Store, func() error, error) {
		s, closeStore, err := connect(config.Config{EtcdEndpoints: []string{endpoint}}, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, nil, err
		}
		return s, func() error { closeStore(); return nil }, nil
	}
	cmd.AddCommand(labUpCommand(&o), labDownCommand(&o), labStatusCommand(&o), labExecCommand(&o),
		labAddWorkloadCommand(&o), labMatrixCommand(&o), labDemoCommand(&o))
	return cmd
}

// inLab runs f on a lab that is up.
func inLab(o *lab.Options, f func(*lab.Lab) error) error {
	l, err := lab.Open(*o)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // only what this process holds of it
	return f(l)
}
