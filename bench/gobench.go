package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// calcRows says which metric of which benchmark of package calc is which row.
// A row is measured with 3,000 distinct label sets and, by the suffix, with
// as many as there are endpoints.
var calcRows = []struct {
	benchmark, metric string
	row, unit         string
	target            float64
}{
	{"BenchmarkStart250k/sets", "start-s", "calc/start-250k", "s", 2},
	{"BenchmarkStart250k/distinct", "start-s", "calc/start-250k/distinct", "s", 6},
	{"BenchmarkHeap250k/sets", "MiB", "calc/heap-250k", "MiB", 150},
	{"BenchmarkHeap250k/distinct", "MiB", "calc/heap-250k/distinct", "MiB", 500},
	{"BenchmarkRemote250k/sets", "p99-ms", "calc/remote-p99", "ms", 1},
	{"BenchmarkRemote250k/distinct", "p99-ms", "calc/remote-p99/distinct", "ms", 1},
}

// benchCalc runs the benchmarks of package calc: it is pure, so they are where
// its tests are.
func benchCalc(b *bench) error {
	measured := map[string]float64{}
	for _, run := range []struct{ pattern, times string }{{"Start250k|Heap250k", "3x"}, {"Remote250k", "5000x"}} {
		if err := goBench("./calc", run.pattern, run.times, measured); err != nil {
			return err
		}
	}
	for _, r := range calcRows {
		v, ok := measured[r.benchmark+" "+r.metric]
		if !ok {
			return fmt.Errorf("package calc measured no %s of %s", r.metric, r.benchmark)
		}
		b.add(r.row, v, r.unit, r.target)
	}
	return nil
}

// benchBGP runs the benchmark of package bgp: two speakers in processes and
// namespaces of their own, from one kernel to the other.
func benchBGP(b *bench) error {
	measured := map[string]float64{}
	if err := goBench("./bgp", "Converge10k", "3x", measured); err != nil {
		return err
	}
	worst := 0.0
	for name, v := range measured {
		if strings.HasPrefix(name, "BenchmarkConverge10k/") && strings.HasSuffix(name, " s/converge") {
			worst = max(worst, v)
		}
	}
	if worst == 0 {
		return errors.New("package bgp measured nothing")
	}
	b.add("bgp/converge-10k", worst, "s", 4)
	return nil
}

// goBench runs benchmarks of a package and adds what they report, by the name
// of the benchmark and the unit.
func goBench(pkg, pattern, times string, measured map[string]float64) error {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", pattern, "-benchtime", times, pkg)
	cmd.Env = append(os.Environ(), "TORTIE_TEST_PRIVILEGED=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go test %s: %w: %s", pkg, err, tail(out))
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := fields[0]
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i] // without the number of processors
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				measured[name+" "+fields[i+1]] = v
			}
		}
	}
	return nil
}
