package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"tortie/store"
)

// Options is what the commands are given.
type Options struct {
	// Open connects to the datastore; close ends the connection.
	Open func(context.Context) (s store.Store, closeStore func(), err error)
	// RunDir returns the folder with the sockets of this host's processes.
	RunDir func() (string, error)
	// Host says which host this is.
	Host func() (string, error)
	// Version is that of this program.
	Version string
}

// Commands returns the operator's commands.
func Commands(o Options) []*cobra.Command {
	commands := []*cobra.Command{
		getCommand(o), applyCommand(o), createCommand(o), replaceCommand(o), deleteCommand(o),
		explainCommand(o), previewCommand(o), lintCommand(o), showCommand(o), topCommand(o), verifyCommand(o), initCommand(o), versionCommand(o),
	}
	return commands
}

// Exit is an error that is only an exit code: that of a program which was run
// on behalf of the operator, and has said itself what went wrong.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Execute runs root and prints what went wrong, each problem on a line that
// begins with "Error: ". It returns the exit code of the process: 1 after an
// error, 2 where explain says that a connection is denied, preview that some
// change, lint that something is wrong, or verify that the kernel does not do
// what policy says.
func Execute(ctx context.Context, root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(ctx)
	var exit Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.Is(err, errDenied), errors.Is(err, errFound):
		return 2
	}
	printErrors(root.ErrOrStderr(), err)
	return 1
}

func printErrors(w io.Writer, err error) {
	for line := range strings.Lines(strings.TrimSpace(err.Error())) {
		_, _ = fmt.Fprintln(w, "Error: "+strings.TrimSpace(line))
	}
}

// with runs f on the opened datastore.
func (o Options) with(ctx context.Context, f func(context.Context, store.Store) error) error {
	s, closeStore, err := o.Open(ctx)
	if err != nil {
		return err
	}
	defer closeStore()
	return f(ctx, s)
}

func namespaceFlag(cmd *cobra.Command, namespace *string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", "default", "namespace of objects that name none")
}
