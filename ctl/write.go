package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
)

// write is apply, create or replace.
type write struct {
	verb      string
	do        func(context.Context, store.Store, api.Object) (store.Outcome, error)
	files     []string
	namespace string
	wait      time.Duration // 0: do not wait
	confirm   time.Duration // 0: it stays
}

// defaultWait is how long apply --wait waits.
const defaultWait = 30 * time.Second

// defaultConfirm is how long apply --confirm waits for an answer.
const defaultConfirm = time.Minute

func applyCommand(o Options) *cobra.Command {
	w := &write{verb: "apply", do: store.Apply}
	cmd := w.command(o, "Create objects, or make those that exist as the files say")
	cmd.Long = cmd.Short + `.

Fields that this program does not know are kept as they are stored. Where
nothing would change, nothing is written. With --wait it returns only when every
live host enforces what was written, and fails naming those that do not.

With --confirm what was written is taken back unless somebody presses Enter
within that time: also when the session ends, which a policy for hosts may
bring about, when a file fails after others, or hosts do not enforce it.`
	cmd.Example = "  tortie apply -f examples/\n  tortie apply -f policy.yaml --wait=10s\n  cat policy.json | tortie apply -f -"
	cmd.Flags().DurationVar(&w.wait, "wait", 0, "wait, at most so long, until every live host enforces it")
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait.String()
	cmd.Flags().DurationVar(&w.confirm, "confirm", 0, "take everything back unless Enter is pressed within this time")
	cmd.Flags().Lookup("confirm").NoOptDefVal = defaultConfirm.String()
	return cmd
}

func createCommand(o Options) *cobra.Command {
	return (&write{verb: "create", do: store.Create}).command(o, "Create objects that must not exist")
}

func replaceCommand(o Options) *cobra.Command {
	return (&write{verb: "replace", do: store.Replace}).command(o, "Make objects that must exist as the files say")
}

func (w *write) command(o Options, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   w.verb + " -f FILE|DIR|-",
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return w.run(cmd, o) },
	}
	filenameFlag(cmd, &w.files)
	_ = cmd.MarkFlagRequired("filename") // it is there
	namespaceFlag(cmd, &w.namespace)
	return cmd
}

func (w *write) run(cmd *cobra.Command, o Options) error {
	if w.wait < 0 || w.confirm < 0 {
		return errors.New("--wait and --confirm need a duration above 0")
	}
	if w.confirm > 0 && slices.Contains(w.files, "-") {
		return errors.New("--confirm reads the answer from the standard input, so the objects cannot come from there")
	}
	all, warnings, err := readManifests(w.files, cmd.InOrStdin(), w.namespace)
	if err != nil {
		return err
	}
	if err := checkAllWritable(w.verb, all); err != nil {
		return err
	}
	for _, warning := range warnings {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "Warning: "+warning)
	}
	return o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
		if err := checkTiers(all, stored(ctx, s)); err != nil {
			return err
		}
		if w.wait > 0 {
			release, err := request(ctx, s)
			if err != nil {
				return err
			}
			defer release()
		}
		if w.confirm == 0 {
			return w.enforce(ctx, s, all, cmd.OutOrStdout())
		}
		t := newTrial(w.confirm)
		defer t.end()
		w.do = t.apply
		err := w.enforce(ctx, s, all, cmd.OutOrStdout())
		if err == nil {
			err = t.confirmed(cmd)
		}
		if err != nil {
			err = t.takeBack(ctx, s, cmd.OutOrStdout(), err)
		}
		return err
	})
}

// enforce writes everything and, if it is to, waits for the hosts.
func (w *write) enforce(ctx context.Context, s store.Store, all []manifest, out io.Writer) error {
	revision, err := w.writeAll(ctx, s, all, out)
	if err != nil || w.wait == 0 {
		return err
	}
	return w.awaitHosts(ctx, s, revision, out)
}

// writeAll writes one object after the other, in the order of the files, and
// says of each what it did. It returns the highest revision of any.
func (w *write) writeAll(ctx context.Context, s store.Store, all []manifest, out io.Writer) (int64, error) {
	var revision int64
	err := each(all, func(m manifest) error {
		done, err := w.do(ctx, s, m.object)
		if err != nil {
			return fmt.Errorf("%s: %w", m.where(), err)
		}
		revision = max(revision, done.Revision)
		_, err = fmt.Fprintf(out, "%v %s\n", m.object.Key(), done.Did)
		return err
	})
	return revision, err
}

func (w *write) awaitHosts(ctx context.Context, s store.Store, revision int64, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, w.wait)
	defer cancel()
	hosts, err := waitEnforced(ctx, s, revision)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("revision %d is enforced by all %d live hosts", revision, hosts)
	switch hosts {
	case 0:
		text = fmt.Sprintf("no host is alive to enforce revision %d", revision)
	case 1:
		text = fmt.Sprintf("revision %d is enforced by the only live host", revision)
	}
	_, err = fmt.Fprintln(out, text)
	return err
}

// remover is delete.
type remover struct {
	files         []string
	namespace     string
	skipNotExists bool
}

// doomed is an object to delete.
type doomed struct {
	key     api.Key
	version string // if only this one may be deleted
}

func deleteCommand(o Options) *cobra.Command {
	r := &remover{}
	cmd := &cobra.Command{
		Use:     "delete -f FILE|DIR|- | KIND NAME...",
		Short:   "Delete objects",
		Long:    "Delete objects. Those of files are deleted from the last to the first, so that\nwhat others refer to goes after them.",
		Example: "  tortie delete gnp web app\n  tortie delete -f examples/ --skip-not-exists",
		RunE:    func(cmd *cobra.Command, args []string) error { return r.run(cmd, o, args) },
	}
	filenameFlag(cmd, &r.files)
	namespaceFlag(cmd, &r.namespace)
	cmd.Flags().BoolVarP(&r.skipNotExists, "skip-not-exists", "s", false, "it is no error if an object does not exist")
	return cmd
}

func (r *remover) run(cmd *cobra.Command, o Options, args []string) error {
	list, err := r.list(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	return o.with(cmd.Context(), func(ctx context.Context, s store.Store) error {
		return each(list, func(d doomed) error {
			done, err := r.remove(ctx, s, d)
			if err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%v %s\n", d.key, done)
			}
			return err
		})
	})
}

// list is what to delete, in that order.
func (r *remover) list(stdin io.Reader, args []string) ([]doomed, error) {
	var list []doomed
	if (len(r.files) > 0) == (len(args) > 0) {
		return nil, errors.New("want either -f or KIND NAME")
	}
	if len(args) > 0 {
		_, keys, err := targets(args, r.namespace)
		if err == nil && len(keys) == 0 {
			err = errors.New("want the name of what to delete")
		}
		for _, key := range keys {
			list = append(list, doomed{key: key})
		}
		return list, err
	}
	sources, err := readSources(r.files, stdin)
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Backward(sources) {
		var head struct {
			Kind     api.Kind `json:"kind"`
			Metadata struct {
				Name            string `json:"name"`
				Namespace       string `json:"namespace"`
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
		}
		err := s.err
		if err == nil {
			err = readJSON(s.json, &head)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %s", s.where(), oneLine(err))
		}
		info, known := api.Info(head.Kind)
		if !known || head.Metadata.Name == "" {
			return nil, fmt.Errorf("%s: want a known kind and a name, not %q and %q", s.where(), head.Kind, head.Metadata.Name)
		}
		key := api.Key{Kind: head.Kind, Name: head.Metadata.Name}
		if key.Namespace = head.Metadata.Namespace; info.Namespaced && key.Namespace == "" {
			key.Namespace = r.namespace
		}
		list = append(list, doomed{key, head.Metadata.ResourceVersion})
	}
	return list, nil
}

// remove deletes one object and says what came of it.
func (r *remover) remove(ctx context.Context, s store.Store, d doomed) (string, error) {
	if err := checkWritable("delete", d.key); err != nil {
		return "", err
	}
	if d.key.Kind == api.KindTier {
		if slices.Contains(builtInTiers, d.key.Name) {
			return "", notSupported("delete", d.key, "it is built in")
		}
		if err := checkTierUnused(ctx, s, d.key); err != nil {
			return "", err
		}
	}
	done, err := store.Delete(ctx, s, d.key, d.version)
	if r.skipNotExists && errors.Is(err, store.ErrNotFound) {
		return "does not exist", nil
	}
	return done.Did, err
}

func filenameFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "manifest, folder of manifests, or - for stdin; may be repeated")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json") // it is there
}
