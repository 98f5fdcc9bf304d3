package ctl

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tortie/analysis"
	"tortie/api"
)

// errFound ends preview, lint and verify where there is something, which has been said.
var errFound = errors.New("found")

var analysisFormats = []string{"table", "wide", "yaml", "json"}

// analyst is what preview and lint are given.
type analyst struct {
	files, base []string
	remove      bool
	namespace   string
	output      string
}

func (a *analyst) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", analysisFormats[0], strings.Join(analysisFormats, "|"))
	filenameFlag(cmd, &a.files)
	namespaceFlag(cmd, &a.namespace)
	cmd.Flags().Lookup("namespace").Usage = "namespace of objects in files that name none"
}

func previewCommand(o Options) *cobra.Command {
	a := &analyst{}
	cmd := &cobra.Command{
		Use:   "preview -f FILE",
		Short: "Say which connections a change would gain and lose, before it is made",
		Long: `Say which connections would be allowed that are not, and which no longer, if
manifests were applied (or deleted, with --delete), and which rules decide that
now and then. All packets are looked at: all endpoints and all addresses outside,
IPv4 and IPv6, all protocols and ports. Nothing is changed.

Any endpoint of FROM can open any connection of TRAFFIC to any of TO: protocols
with destination ports ("from" source ports), or types and codes of ICMP. An
address or range stands for what is in it and is of no endpoint. Addresses are
those of the endpoints; external ones, and addresses behind translation, are not
looked at. Long lists are cut short but in -o wide, yaml and json.

Exit code: 0 if nothing changes; 1 after an error; 2 if something does.`,
		Example: "  tortie preview -f change.yaml\n  tortie preview --delete -f old.yaml -o json\n" +
			"  tortie preview -f change.yaml --base site/ --base endpoints.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.preview(cmd, o) },
	}
	a.flags(cmd)
	_ = cmd.MarkFlagRequired("filename") // it is there
	cmd.Flags().StringArrayVar(&a.base, "base", nil, "manifest or folder with what there is, instead of the datastore; may be repeated")
	cmd.Flags().BoolVar(&a.remove, "delete", false, "what the files name would be deleted, not applied")
	return cmd
}

func lintCommand(o Options) *cobra.Command {
	a := &analyst{}
	cmd := &cobra.Command{
		Use:   "lint [-f FILE]",
		Short: "Find rules and policies that have no effect, or not the one they seem to have",
		Long: `Find what in policy has no effect, or not the one that it seems to have. All
packets are looked at, between all endpoints and all addresses outside.

  missing-tier      a policy's tier does not exist
  missing-profile   an endpoint's profile does not exist
  selects-nothing   a policy applies to no endpoint
  matches-nothing   a rule matches no packet at all: its fields exclude each
                    other, or it selects nothing that there is
  not-its-packets   a rule matches packets, but none of its policy's endpoints
  redundant         all that a rule matches has been decided before, the same way
  contradicted      ... the other way
  unreachable       ... in some other way, or several
  order-tie         policies of the same order decide differently on some packets
  not-in-force      a field could not be read or is not built

Rules of profiles, and of policies that apply to host endpoints, are looked at
for matches-nothing alone. Exit code: 0 if there is nothing; 1 after an error;
2 if there is something.`,
		Example: "  tortie lint\n  tortie lint -f site/ -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.lint(cmd, o) },
	}
	a.flags(cmd)
	cmd.Flags().Lookup("filename").Usage = "look at a manifest, a folder of manifests, or - for stdin, instead of the datastore; may be repeated"
	return cmd
}

func (a *analyst) preview(cmd *cobra.Command, o Options) error {
	if err := checkFormat(a.output, analysisFormats); err != nil {
		return err
	}
	manifests, warnings, err := readManifests(a.files, cmd.InOrStdin(), a.namespace)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "Warning: "+w)
	}
	c, err := o.read(cmd, a.base, a.namespace)
	if err != nil {
		return err
	}
	after, err := a.changed(c.objects, manifests)
	if err != nil {
		return err
	}
	changes, err := analysis.Preview(sorted(c.objects), sorted(after))
	if err != nil {
		return err
	}
	rows := [][]string{{"EFFECT", "FROM", "TO", "IP", "TRAFFIC", "BY", "BEFORE"}}
	for _, x := range changes {
		versions := strings.Trim(strings.ReplaceAll(fmt.Sprint(x.IPVersions), " ", ","), "[]")
		rows = append(rows, []string{x.Effect, a.short(x.From, ", "), a.short(x.To, ", "), versions, a.short(x.Traffic, " "), causeText(x.By), causeText(x.Before)})
	}
	return a.print(cmd, map[string]any{"changes": append([]analysis.Change{}, changes...)}, rows, "No connection is gained or lost.")
}

// changed is what there would be after the manifests; what apply or delete
// would refuse is refused.
func (a *analyst) changed(before map[api.Key]api.Object, manifests []manifest) (map[api.Key]api.Object, error) {
	after := maps.Clone(before)
	if a.remove {
		for _, m := range manifests {
			key := m.object.Key()
			if after[key] == nil {
				return nil, fmt.Errorf("%s: %v does not exist", m.where(), key)
			}
			delete(after, key)
		}
		return after, checkAllWritable("delete", manifests)
	}
	err := checkAllWritable("apply", manifests)
	if err == nil {
		err = checkTiers(manifests, func(key api.Key) (bool, error) { return before[key] != nil, nil })
	}
	if err != nil {
		return nil, err
	}
	for _, m := range manifests {
		key := m.object.Key()
		if after[key] != nil {
			if m.object, err = api.Update(after[key], m.object); err != nil {
				return nil, fmt.Errorf("%s: %w", m.where(), err)
			}
		}
		api.Prepare(m.object, time.Now(), "")
		after[key] = m.object
	}
	return after, nil
}

func causeText(c analysis.Cause) string { return c.End + ": " + c.Reason }

func sorted(objects map[api.Key]api.Object) []api.Object {
	return slices.SortedFunc(maps.Values(objects), func(a, b api.Object) int { return a.Key().Compare(b.Key()) })
}

func (a *analyst) lint(cmd *cobra.Command, o Options) error {
	if err := checkFormat(a.output, analysisFormats); err != nil {
		return err
	}
	c, err := o.read(cmd, a.files, a.namespace)
	if err != nil {
		return err
	}
	findings, err := analysis.Lint(sorted(c.objects))
	if err != nil {
		return err
	}
	for key, problems := range c.problems {
		for _, p := range problems {
			findings = append(findings, analysis.Finding{Check: "not-in-force", Object: key, Field: p.Field, Message: p.Reason})
		}
	}
	slices.SortStableFunc(findings, func(x, y analysis.Finding) int {
		return cmp.Or(x.Object.Compare(y.Object), cmp.Compare(x.Field, y.Field), cmp.Compare(x.Check, y.Check))
	})
	rows := [][]string{{"CHECK", "OBJECT", "FIELD", "MESSAGE"}}
	for _, f := range findings {
		rows = append(rows, []string{f.Check, f.Object.String(), cmp.Or(f.Field, none), f.Message})
	}
	return a.print(cmd, map[string]any{"findings": append([]analysis.Finding{}, findings...)}, rows, "Nothing found.")
}

// short joins a list, and cuts it unless all is wanted.
func (a *analyst) short(list []string, between string) string {
	const most = 4
	if a.output == "wide" || len(list) <= most {
		return strings.Join(list, between)
	}
	return strings.Join(list[:most-1], between) + fmt.Sprintf("%sand %d more", between, len(list)-most+1)
}

// print writes a table, below its heading, or all in another format.
func (a *analyst) print(cmd *cobra.Command, all any, rows [][]string, nothing string) error {
	w := cmd.OutOrStdout()
	var err error
	switch {
	case a.output == "yaml" || a.output == "json":
		err = writeAs(w, a.output, all)
	case len(rows) == 1:
		_, err = io.WriteString(w, nothing+"\n")
	default:
		tabs := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
		for _, r := range rows {
			_, _ = fmt.Fprintln(tabs, strings.Join(r, "\t"))
		}
		err = tabs.Flush()
	}
	if err == nil && len(rows) > 1 {
		err = errFound
	}
	return err
}
