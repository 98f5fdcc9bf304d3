// Command bench measures the rows that docs/performance.md lists, with a real
// etcd and a real kernel, and writes bench/results.json. "make bench" runs it
// as root; it runs itself again in a network and mount namespace of its own,
// so the machine's network is left as it is.
//
// With arguments it measures only rows whose name begins with one of them and
// keeps the others as they were in the file.
//
// One goroutine drives each measurement; processes under test are the real
// binary, bin/tortie.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	childEnv    = "TORTIE_BENCH_CHILD"
	resultsFile = "bench/results.json"
)

// result is one row of the results. Better says which way is better.
type result struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Target float64 `json:"target"`
	Better string  `json:"better"`
}

// suite is a group of rows that one set-up measures.
type suite struct {
	name string // prefix of its rows
	run  func(*bench) error
}

var suites = []suite{
	{"calc/", benchCalc},
	{"agent/scale/1k", func(b *bench) error { return benchScale(b, "1k", 1000) }},
	{"agent/scale/10k", func(b *bench) error { return benchScale(b, "10k", 10_000) }},
	{"agent/scale/100k", func(b *bench) error { return benchScale(b, "100k", 100_000) }},
	{"agent/churn", benchChurn},
	{"bgp/", benchBGP},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		slog.Error("bench", "err", err)
		os.Exit(1)
	}
}

func run(only []string) error {
	if os.Getenv(childEnv) == "" {
		return reexec()
	}
	if err := privateMounts(); err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupted
		b.close()
		os.Exit(130)
	}()
	var failed []error
	for _, s := range suites {
		if !selected(s.name, only) {
			continue
		}
		b.log.Info("suite", "name", s.name)
		if err := s.run(b); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		if err := b.save(); err != nil {
			return err
		}
	}
	b.print()
	return errors.Join(failed...)
}

func selected(name string, only []string) bool {
	return len(only) == 0 || slices.ContainsFunc(only, func(o string) bool {
		return strings.HasPrefix(name, o) || strings.HasPrefix(o, name)
	})
}

// reexec runs this program again in namespaces of its own.
func reexec() error {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it makes network namespaces")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	signal.Ignore(syscall.SIGINT) // the child gets it too, and ends
	return cmd.Run()
}

func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// add records a row.
func (b *bench) add(name string, value float64, unit string, target float64) {
	b.results[name] = result{Name: name, Value: value, Unit: unit, Target: target, Better: "lower"}
	b.log.Info("measured", "name", name, "value", value, "unit", unit, "target", target)
}

// save writes the rows, those of earlier runs that were not measured again
// included.
func (b *bench) save() error {
	rows := make([]result, 0, len(b.results))
	for _, r := range b.results {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(x, y result) int { return cmp.Compare(x.Name, y.Name) })
	text, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(resultsFile, append(text, '\n'), 0o644)
}

// print shows all rows and how they stand to their targets.
func (b *bench) print() {
	rows := make([]result, 0, len(b.results))
	for _, r := range b.results {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(x, y result) int { return cmp.Compare(x.Name, y.Name) })
	for _, r := range rows {
		verdict := "ok"
		if r.Value > r.Target {
			verdict = "MISSED"
		}
		_, _ = fmt.Fprintf(os.Stdout, "%-34s %12.3f %-6s target %8g  %s\n", r.Name, r.Value, r.Unit, r.Target, verdict)
	}
}
