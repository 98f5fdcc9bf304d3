package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tortie/store"
	"tortie/verify"
)

func verifyCommand(o Options) *cobra.Command {
	v := &verification{options: o}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that this host's kernel does what policy says, for every packet",
		Long: `Read this host's table back from the kernel, independently of the agent, and
decide for each endpoint of the host whether what it lets pass is what policy
allows: over all packets that open a connection and are forwarded, from the
endpoint outwards, from outside to it, and between it and others of the host.
Where the two differ, a packet is printed whose fate is the wrong one.

Limits of rates and of connections count as not reached. What workloads send to
the host itself, and the host to them, is not looked at.

Exit code: 0 if it is proven; 2 if a packet has the wrong fate; 1 after an error,
or where it cannot be decided.`,
		Example: "  tortie verify\n  tortie verify --peers 3\n  tortie verify -f examples/ --host compute-1",
		Args:    cobra.NoArgs,
		RunE:    v.run,
	}
	filenameFlag(cmd, &v.files)
	cmd.Flags().Lookup("filename").Usage = "compare with a manifest, a folder of manifests, or - for stdin, instead of the datastore; may be repeated"
	cmd.Flags().IntVar(&v.peers, "peers", 8, "with how many others of the host each endpoint is checked")
	namespaceFlag(cmd, &v.namespace)
	cmd.Flags().Lookup("namespace").Usage = "namespace of objects in files that name none"
	return cmd
}

// verification is what verify is asked.
type verification struct {
	options   Options
	files     []string
	namespace string
	peers     int
}

// A change may be in the datastore and not in the kernel yet, so what is wrong
// is looked at again before it is said.
const (
	verifyTries = 4
	verifyPause = 500 * time.Millisecond
)

func (v *verification) run(cmd *cobra.Command, _ []string) error {
	if v.peers < 0 {
		return fmt.Errorf("--peers %d: want 0 or more", v.peers)
	}
	host, err := v.options.Host()
	if err != nil {
		return err
	}
	if len(v.files) > 0 {
		c, err := readFiles(v.files, cmd.InOrStdin(), v.namespace)
		if err != nil {
			return err
		}
		report, err := v.check(host, c)
		if err != nil {
			return err
		}
		return tell(cmd.OutOrStdout(), host, report)
	}
	return v.options.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
		warnings := cmd.ErrOrStderr()
		for try := 1; ; try++ {
			c, err := readStore(ctx, s, warnings)
			if err != nil {
				return err
			}
			report, err := v.check(host, c)
			if err != nil {
				return err
			}
			if report.Proven() || try == verifyTries {
				return tell(cmd.OutOrStdout(), host, report)
			}
			warnings = io.Discard // they have been given
			select {
			case <-time.After(verifyPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

func (v *verification) check(host string, c *cluster) (*verify.Report, error) {
	r, err := verify.Read()
	switch {
	case errors.Is(err, verify.ErrNoTable):
		return nil, fmt.Errorf("%w: no agent has run on this host, or what it made was removed", err)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: verify must run as root", err)
	case err != nil:
		return nil, err
	}
	h := &verify.Host{Name: host, Cluster: c.Cluster, Index: verify.Interface, Peers: v.peers}
	return h.Check(r)
}

// tell prints what was found, one line each.
func tell(w io.Writer, host string, r *verify.Report) error {
	for _, f := range r.Findings {
		_, _ = fmt.Fprintln(w, f)
	}
	for _, k := range r.Absent {
		_, _ = fmt.Fprintf(w, "%s/%s: its interface is not there, and it was not checked\n", k.Namespace, k.Name)
	}
	for _, k := range r.Unchecked {
		_, _ = fmt.Fprintf(w, "%s: its policy on what passes through the host was not checked\n", k)
	}
	_, _ = fmt.Fprintf(w, "host %s: %d endpoints, %d ways, %d findings\n", host, r.Endpoints, r.Ways, len(r.Findings))
	switch {
	case r.Wrong():
		return errFound
	case !r.Proven():
		return errors.New("it could not be decided for all packets")
	}
	return nil
}
