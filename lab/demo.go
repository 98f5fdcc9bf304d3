package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// DemoOptions says what a demo is made of. Its Progress is the demo's output.
type DemoOptions struct {
	Options
	Examples string // folder of the manifests to apply
}

// demo is a run of Demo.
type demo struct {
	*Lab
	examples string
	rows     []demoRow
}

// demoRow is one line of the summary.
type demoRow struct {
	what, figure, want string
	ok                 bool
}

// Demo makes a lab, shows on it what tortie is for, and takes it down,
// whatever happens. It fails if anything is not as it should be.
func Demo(ctx context.Context, opts DemoOptions) (err error) {
	if err := opts.normalise(); err != nil {
		return err
	}
	examples, err := filepath.Abs(opts.Examples)
	if err == nil {
		_, err = os.Stat(examples)
	}
	if err != nil {
		return fmt.Errorf("find the examples: %w", err)
	}
	if err := removeStale(ctx, opts.Options); err != nil {
		return err
	}
	d := &demo{examples: examples}
	d.Lab = &Lab{opts: opts.Options}
	start := time.Now()
	d.title("Three hosts, six workloads, a datastore, BGP")
	l, err := Up(ctx, opts.Options, Shape{Hosts: 3, Workloads: DefaultWorkloads(3, 2)})
	if err != nil {
		return err
	}
	d.Lab = l
	defer func() {
		d.step("")
		err = errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}()
	busy, err := lockDir(l.Dir())
	if err != nil {
		return err
	}
	defer func() { _ = busy.Close() }()
	if err := d.run(ctx); err != nil {
		return err
	}
	return d.summary(time.Since(start))
}

func (d *demo) run(ctx context.Context) error {
	for _, s := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Routes: each host learns the others' workloads by BGP", d.routes},
		{"Before policy: everybody reaches everybody", d.open},
		{"The policies of " + d.examples, d.apply},
		{"A label changes, under traffic", d.relabel},
		{"1,000 policy changes, and the routes", d.churn},
		{"kill -9 of agent and bgp on each host, under traffic", d.kill},
		{"Both ends enforce: one host loses its rules", d.ends},
		{"At the end: all is as it was", d.again},
	} {
		d.title(s.title)
		switch err := s.do(ctx); {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil:
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

func (d *demo) title(s string) { d.step("\n\033[1m== %s\033[0m", s) }

// check notes a line of the summary.
func (d *demo) check(what string, ok bool, want, format string, args ...any) {
	r := demoRow{what: what, figure: fmt.Sprintf(format, args...), want: want, ok: ok}
	d.rows = append(d.rows, r)
	d.step("   %s %s: %s", r.mark(), r.what, r.figure)
}

func (r demoRow) mark() string {
	if r.ok {
		return "ok  "
	}
	return "FAIL"
}

// summary prints the lines noted, and fails if one of them is bad.
func (d *demo) summary(took time.Duration) error {
	d.title("Summary")
	bad := 0
	w := tabwriter.NewWriter(d.opts.Progress, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\twhat\tobserved\twanted")
	for _, r := range d.rows {
		if !r.ok {
			bad++
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.mark(), r.what, r.figure, r.want)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	d.step("in %.0f s", took.Seconds())
	if bad > 0 {
		return fmt.Errorf("%d of %d are not as wanted", bad, len(d.rows))
	}
	return nil
}

// quote prints what a command wrote.
func (d *demo) quote(text string) {
	for line := range strings.Lines(text) {
		_, _ = io.WriteString(d.opts.Progress, "   "+strings.TrimRight(line, "\n")+"\n")
	}
}

// lockDir marks a directory as in use until it is closed or this process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use: %w", dir, err)
	}
	return f, nil
}

// removeStale takes down what a demo left that was killed. One that runs is
// left alone.
func removeStale(ctx context.Context, opts Options) error {
	l, err := Open(opts)
	if errors.Is(err, ErrNoLab) {
		return nil
	}
	if err != nil {
		return err
	}
	busy, err := lockDir(l.Dir())
	if err != nil {
		return err
	}
	defer func() { _ = busy.Close() }()
	l.step("an earlier demo did not end: removing what it left")
	return l.Down(ctx)
}
