// Command bench measures, with a real etcd and a real kernel, what the agent,
// calc and bgp cost and how fast packets are forwarded, and writes
// bench/results.json: each row has its target, and what was not measured has no
// row. "make bench" runs it as root; it runs itself again in a network and mount
// namespace of its own, so the machine's network is left as it is.
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
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"tortie/internal/nstest"
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

// Which way is better.
const (
	lower  = "lower"
	higher = "higher"
)

// suite is a group of rows that one set-up measures.
type suite struct {
	name string // prefix of its rows
	run  func(*bench) error
}

var suites = []suite{
	{"calc/", benchCalc},
	{"agent/scale/1k", func(b *bench) error { return benchScale(b, "1k", 1000, 0) }},
	{"agent/scale/10k", func(b *bench) error { return benchScale(b, "10k", 10_000, 0) }},
	{"agent/scale/100k", func(b *bench) error { return benchScale(b, "100k", 100_000, 0) }},
	{"agent/scale/100x10", func(b *bench) error { return benchScale(b, "100x10", 1000, 98) }},
	{"agent/churn", benchChurn},
	{"bgp/", benchBGP},
	{"dataplane/", benchDataplane},
	{"policy/", benchRevocation},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		slog.Error("bench", "err", err)
		os.Exit(1)
	}
}

func run(only []string) error {
	if os.Getenv(childEnv) == "" {
		if os.Geteuid() != 0 {
			return errors.New("must run as root: it makes network namespaces")
		}
		signal.Ignore(syscall.SIGINT) // the child gets it too, and ends
		return nstest.Again(childEnv)
	}
	if err := nstest.Prepare(); err != nil {
		return err
	}
	b, err := newBench(len(only) > 0)
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

// add records a row of which less is better.
func (b *bench) add(name string, value float64, unit string, target float64) {
	b.record(result{Name: name, Value: value, Unit: unit, Target: target, Better: lower})
}

func (b *bench) record(r result) {
	b.results[r.Name] = r
	b.log.Info("measured", "name", r.Name, "value", r.Value, "unit", r.Unit, "target", r.Target)
}

// rows are the results by name.
func (b *bench) rows() []result {
	return slices.SortedFunc(maps.Values(b.results), func(x, y result) int { return cmp.Compare(x.Name, y.Name) })
}

// save writes the rows, those of earlier runs that were not measured again
// included.
func (b *bench) save() error {
	text, err := json.MarshalIndent(b.rows(), "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(resultsFile, append(text, '\n'), 0o644)
}

// print shows all rows and how they stand to their targets.
func (b *bench) print() {
	for _, r := range b.rows() {
		verdict := "ok"
		if r.Better == higher && r.Value < r.Target || r.Better != higher && r.Value > r.Target {
			verdict = "MISSED"
		}
		_, _ = fmt.Fprintf(os.Stdout, "%-34s %12.3f %-6s target %8g  %s\n", r.Name, r.Value, r.Unit, r.Target, verdict)
	}
}
