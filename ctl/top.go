package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tortie/internal/socket"
)

// top is what top policy is asked.
type top struct {
	interval time.Duration
	once     bool
	all      bool
	output   string
}

func topCommand(o Options) *cobra.Command {
	t := &top{}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what is used most on this host",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	policy := &cobra.Command{
		Use:   "policy",
		Short: "Show how many connections each rule decides on this host",
		Long: `Shows what each rule of the policies and profiles of this host's endpoints has
decided, and what was denied since nothing else was said: at the end of a tier,
or as no profile matched. Rules count from 0, as in the path spec.ingress[0].

A connection counts, with its packet, when it is judged: once, and once more
when policy was tightened. Each packet of one that is denied is judged. What is
between two endpoints of this host counts at both. Rules of staged policies
count what they would decide, were all that is staged in force, and so do the
ends that are marked staged. The counts of a rule last until it is gone from its
place; neither other changes nor a restart of the agent end them.

Without --once it goes on, with rates over the last interval, until it is
interrupted. -o json and yaml print once.`,
		Example: "  tortie top policy\n  tortie top policy --once -o json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return t.run(cmd, o) },
	}
	f := policy.Flags()
	f.DurationVar(&t.interval, "interval", 2*time.Second, "how often it is shown anew")
	f.BoolVar(&t.once, "once", false, "show the counts of now, and end")
	f.BoolVarP(&t.all, "all", "a", false, "show rules that decided nothing, too")
	f.StringVarP(&t.output, "output", "o", explainFormats[0], strings.Join(explainFormats, "|"))
	cmd.AddCommand(policy)
	return cmd
}

func (t *top) run(cmd *cobra.Command, o Options) error {
	if err := checkFormat(t.output, explainFormats); err != nil {
		return err
	}
	if t.interval < 100*time.Millisecond {
		return fmt.Errorf("--interval %v: want at least 100ms", t.interval)
	}
	last, err := t.counts(cmd, o)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if t.output != "text" {
		return writeAs(w, t.output, t.shown(last))
	}
	if err := t.table(w, last, nil, 0); err != nil || t.once {
		return err
	}
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for at := time.Now(); ; {
		select {
		case <-cmd.Context().Done():
			return nil
		case <-tick.C:
		}
		next, err := t.counts(cmd, o)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		if err := t.table(w, next, last, now.Sub(at)); err != nil {
			return err
		}
		last, at = next, now
	}
}

func (t *top) counts(cmd *cobra.Command, o Options) (list []socket.RuleCount, err error) {
	body, err := o.ask(cmd.Context(), "agent", socket.CountersPage)
	if err == nil {
		err = json.Unmarshal(body, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("top policy: %w", err)
	}
	return list, nil
}

// shown are the rows that are asked for.
func (t *top) shown(list []socket.RuleCount) []socket.RuleCount {
	return slices.DeleteFunc(slices.Clone(list), func(c socket.RuleCount) bool { return !t.all && c.Packets == 0 })
}

// ruleKey tells the rows of two lists apart.
type ruleKey struct {
	kind, namespace, name, direction string
	rule                             int
	staged                           bool
}

func keyOf(c socket.RuleCount) ruleKey {
	k := ruleKey{c.Kind, c.Namespace, c.Name, c.Direction, -1, c.Staged}
	if c.Rule != nil {
		k.rule = *c.Rule
	}
	return k
}

// table prints the rows, those that grew most since the last ones first.
func (t *top) table(w io.Writer, list, last []socket.RuleCount, took time.Duration) error {
	before := map[ruleKey]socket.RuleCount{}
	for _, c := range last {
		before[keyOf(c)] = c
	}
	// A counter that is smaller than it was is a new one.
	grown := func(c socket.RuleCount) (packets, bytes uint64) {
		b, ok := before[keyOf(c)]
		if !ok || b.Packets > c.Packets || b.Bytes > c.Bytes {
			return c.Packets, c.Bytes
		}
		return c.Packets - b.Packets, c.Bytes - b.Bytes
	}
	rate := func(n uint64) string {
		if took <= 0 {
			return none
		}
		return fmt.Sprintf("%.1f", float64(n)/took.Seconds())
	}
	rows := t.shown(list)
	slices.SortStableFunc(rows, func(a, b socket.RuleCount) int {
		x, _ := grown(a)
		y, _ := grown(b)
		return cmp.Or(cmp.Compare(y, x), cmp.Compare(b.Packets, a.Packets))
	})
	if last != nil {
		_, _ = io.WriteString(w, betweenTables(w))
	}
	tabs := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	_, _ = fmt.Fprintln(tabs, "TIER\tPOLICY\tRULE\tACTION\tPACKETS\tBYTES\tPACKETS/S\tBYTES/S")
	for _, c := range rows {
		packets, bytes := grown(c)
		_, _ = fmt.Fprintf(tabs, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", cmp.Or(c.Tier, none), ownerText(c), placeText(c), actionText(c),
			c.Packets, c.Bytes, rate(packets), rate(bytes))
	}
	return tabs.Flush()
}

// betweenTables clears a terminal, and is an empty line anywhere else.
func betweenTables(w io.Writer) string {
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return "\x1b[H\x1b[2J"
		}
	}
	return "\n"
}

// actionText is what a row's rule does or, with a staged policy, would do.
func actionText(c socket.RuleCount) string {
	if c.Staged {
		return c.Action + " (staged)"
	}
	return c.Action
}

// ownerText names the policy or profile of a rule.
func ownerText(c socket.RuleCount) string {
	switch {
	case c.Rule == nil:
		return none
	case c.Namespace != "":
		return c.Kind + "(" + c.Namespace + "/" + c.Name + ")"
	default:
		return c.Kind + "(" + c.Name + ")"
	}
}

func placeText(c socket.RuleCount) string {
	direction := strings.ToLower(c.Direction)
	switch {
	case c.Rule != nil:
		return fmt.Sprintf("%s[%d]", direction, *c.Rule)
	case c.Tier != "":
		return direction + "/end-of-tier"
	default:
		return direction + "/no-profile-matched"
	}
}
