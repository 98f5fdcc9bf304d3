package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tortie/internal/socket"
)

// pages says which process shows what, and at which address. Problems both
// have.
var pages = map[string]struct{ process, url, what string }{
	"desired":  {"agent", "/show/desired", "what this host should have, as computed from the datastore"},
	"kernel":   {"agent", "/show/kernel", "what of it the kernel has, and foreign rules that drop its traffic"},
	"diff":     {"agent", "/show/diff", "where the two differ"},
	"problems": {"agent", "/show/problems", "what is wrong with settings and objects that concern this host, as tortie bgp sees it as well"},
	"denied":   {"agent", "/show/denied", "the last packets that policy denied, and by which rule"},
	"config":   {"agent", "/show/config", "every setting, its value and where it came from"},
	"health":   {"agent", "/health", "whether the agent enforces the present policy, as JSON"},
	"peers":    {"bgp", "/show/peers", "BGP sessions"},
	"routes":   {"bgp", "/show/routes", "routes announced and learned"},
}

func showCommand(o Options) *cobra.Command {
	names := slices.Sorted(maps.Keys(pages))
	long := &strings.Builder{}
	long.WriteString("Asks the processes of this host through their sockets in the run directory.\n\n")
	for _, name := range names {
		_, _ = fmt.Fprintf(long, "  %-9s %s (%s)\n", name, pages[name].what, pages[name].process)
	}
	return &cobra.Command{
		Use:       "show " + strings.Join(names, "|"),
		Short:     "Show what a process of this host knows and does",
		Long:      long.String(),
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "problems" {
				return o.showProblems(cmd)
			}
			page := pages[args[0]]
			body, err := o.ask(cmd.Context(), page.process, page.url)
			if err != nil {
				return fmt.Errorf("show %s: %w", args[0], err)
			}
			_, err = cmd.OutOrStdout().Write(body)
			return err
		},
	}
}

// showProblems shows what the processes know, each line once. A process that
// does not run is named; that none does is an error.
func (o Options) showProblems(cmd *cobra.Command) error {
	var lines []string
	var failures []error
	processes := []string{"agent", "bgp"}
	for _, process := range processes {
		body, err := o.ask(cmd.Context(), process, pages["problems"].url)
		if err != nil {
			failures = append(failures, fmt.Errorf("show problems: %w", err))
			continue
		}
		lines = slices.AppendSeq(lines, strings.Lines(string(body)))
	}
	if len(failures) == len(processes) {
		return errors.Join(failures...)
	}
	for _, err := range failures {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "Warning: "+err.Error())
	}
	slices.Sort(lines)
	for _, line := range slices.Compact(lines) {
		if _, err := io.WriteString(cmd.OutOrStdout(), line); err != nil {
			return err
		}
	}
	return nil
}

// ask gets a page of a process of this host.
func (o Options) ask(ctx context.Context, process, url string) ([]byte, error) {
	runDir, err := o.RunDir()
	if err != nil {
		return nil, err
	}
	path := socket.Path(runDir, process)
	body, err := socket.Get(ctx, path, url)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("tortie %s does not run here: nobody listens on %s", process, path)
	}
	return body, err
}
