package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/api"
)

// Two hosts, two workloads: up, looked at, used, and down by the directory
// alone.
func TestUpDown(t *testing.T) {
	opts := options(t, "updown")
	ctx := limited(t)
	shape := Shape{Hosts: 2, Workloads: DefaultWorkloads(2, 1)}
	for i := range shape.Workloads {
		shape.Workloads[i].Profiles = []string{api.DefaultAllowProfile}
	}
	up, err := Up(ctx, opts, shape)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = up.Down(ctx) })
	if _, err := Up(ctx, opts, shape); err == nil || !strings.Contains(err.Error(), "there is one already") {
		t.Errorf("a second one: %v", err)
	}
	err = up.AddWorkload(ctx, WorkloadSpec{Name: "w", Host: "host-1", Labels: map[string]string{"role": "a b"}})
	if err == nil || !strings.Contains(err.Error(), `metadata.labels.role: "a b"`) {
		t.Errorf("a bad label: %v", err)
	}
	if err := up.Close(); err != nil {
		t.Fatal(err)
	}

	l, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	status := func() string {
		t.Helper()
		list, err := l.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, s := range list {
			b.WriteString(s.String())
		}
		return b.String()
	}
	const routes = "routes 1 local, 1 learned for IPv4; 1 local, 1 learned for IPv6"
	for strings.Count(status(), routes) != 2 {
		if ctx.Err() != nil {
			t.Fatalf("the routes have not come:\n%s", status())
		}
	}
	t.Log("\n" + status())
	m, err := l.Matrix(ctx, MatrixOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + m.String())
	if len(m.Cells) != 12 || m.Reached() != 12 || len(m.Wrong()) != 0 {
		t.Errorf("%d of %d reached, %d wrong", m.Reached(), len(m.Cells), len(m.Wrong()))
	}

	out, err := l.Output(ctx, "host-1", "sh", "-c", "ip -br link; echo $FELIX_FELIXHOSTNAME $ETCD_ENDPOINTS")
	if err != nil || !strings.Contains(out, "cali0101") || !strings.Contains(out, "host-1 http://192.0.2.254:2379") {
		t.Errorf("exec: %v:\n%s", err, out)
	}
	if _, err := l.Output(ctx, "nowhere", "true"); err == nil {
		t.Error("exec nowhere is no error")
	}
	before, err := l.PID("host-1", Agent)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restart("host-1", Agent); err != nil {
		t.Fatal(err)
	}
	if after, err := l.PID("host-1", Agent); err != nil || after == before {
		t.Errorf("process %d, then %d; %v", before, after, err)
	}
	if err := l.WaitHealthy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	opts.OpenStore, opts.Binary = nil, ""
	if err := Down(ctx, opts); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, opts)
	if err := Down(ctx, opts); !errors.Is(err, ErrNoLab) {
		t.Errorf("down again: %v", err)
	}
}

// cancelAt ends a context when so many lines of progress were written.
type cancelAt struct {
	t      *testing.T
	lines  int
	cancel context.CancelFunc
}

func (c *cancelAt) Write(b []byte) (int, error) {
	if c.lines--; c.lines == 0 {
		c.t.Logf("interrupted at %q", b)
		c.cancel()
	}
	return len(b), nil
}

// Interrupted at any step, Up takes back what it did.
func TestInterrupted(t *testing.T) {
	for lines := 1; lines <= 5; lines++ {
		t.Run(fmt.Sprint(lines), func(t *testing.T) {
			opts := options(t, "interrupted")
			ctx, cancel := context.WithCancel(limited(t))
			opts.Progress = &cancelAt{t: t, lines: lines, cancel: cancel}
			if _, err := Up(ctx, opts, Shape{Hosts: 1, Workloads: DefaultWorkloads(1, 2)}); err == nil {
				t.Error("no error")
			}
			nothingLeft(t, opts)
		})
	}
}

// Up is killed so that it cannot take anything back, in the worst place: a
// process runs that is not recorded, a namespace is recorded that is not made,
// and one is half made. Down finds all of it.
func TestKilled(t *testing.T) {
	opts := options(t, "killed")
	l := &Lab{opts: opts, state: state{Name: opts.Name, Binary: opts.Binary}}
	if err := l.claim(); err != nil {
		t.Fatal(err)
	}
	if err := l.buildFabric(); err != nil {
		t.Fatal(err)
	}
	if err := l.buildHost(1); err != nil {
		t.Fatal(err)
	}
	if err := l.Start(fabricName, Datastore); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.pidFile(fabricName, Datastore)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.pidFile("host-1", Agent), []byte("12"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.state.Namespaces = append(l.state.Namespaces, l.namespace("never"), l.namespace("half"))
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(namespaceDir, l.namespace("half")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if len(marked(t, opts.Dir)) != 1 {
		t.Fatalf("processes: %v, want the datastore", marked(t, opts.Dir))
	}
	if err := Down(limited(t), Options{Name: opts.Name, Dir: opts.Dir}); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, opts)
}

// sleeper starts a process that does nothing and is ended with the test.
func sleeper(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Env = append(os.Environ(), env...)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// A process is the lab's if its id and start time are recorded, or if it has
// the mark and is in a namespace of the lab.
func TestEndsOnlyItsOwn(t *testing.T) {
	opts := options(t, "own")
	l := &Lab{opts: opts, state: state{Name: opts.Name, Binary: opts.Binary}}
	if err := l.claim(); err != nil {
		t.Fatal(err)
	}
	if err := l.buildFabric(); err != nil {
		t.Fatal(err)
	}
	if err := l.buildHost(1); err != nil {
		t.Fatal(err)
	}
	mark := marker + "=" + opts.Dir
	outside, unmarked, other, own := sleeper(t, mark), sleeper(t), sleeper(t, mark+"2"), sleeper(t, mark)
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{unmarked, other, own} {
		if err := in(l.namespace("host-1"), cmd.Start); err != nil {
			t.Fatal(err)
		}
	}
	// The id of a process that is not the lab's, with another's start time.
	if err := os.WriteFile(l.pidFile("host-1", Agent), fmt.Appendf(nil, "%d 1\n", outside.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if l.Running("host-1", Agent) {
		t.Error("a process with another start time is taken for the recorded one")
	}
	// The right one.
	recorded := sleeper(t)
	if err := recorded.Start(); err != nil {
		t.Fatal(err)
	}
	if err := writeProcess(l.pidFile("host-1", BGP), recorded.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := l.Down(limited(t)); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		cmd   *exec.Cmd
		alive bool
	}{
		"marked, but elsewhere":            {outside, true},
		"in the namespace, without a mark": {unmarked, true},
		"in the namespace, of another lab": {other, true},
		"in the namespace, with the mark":  {own, false},
		"recorded by id and start time":    {recorded, false},
	} {
		fd, err := unix.PidfdOpen(c.cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := &process{fd: fd}
		if alive := !p.ended(0); alive != c.alive {
			t.Errorf("%s: alive %v, want %v", what, alive, c.alive)
		}
		p.close()
	}
}

// More workloads than a host's addresses are refused before anything is made.
func TestTooMany(t *testing.T) {
	opts := Options{Name: "many", Dir: filepath.Join(t.TempDir(), "many"), Binary: "/proc/self/exe"}
	_, err := Up(t.Context(), opts, Shape{Hosts: 2, Workloads: DefaultWorkloads(2, maxPerHost+1)})
	if err == nil || !strings.Contains(err.Error(), "has more than 200 workloads") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(opts.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is there: %v", err)
	}
}

// What is not a lab's directory is not removed.
func TestNotALab(t *testing.T) {
	opts := Options{Name: "x", Dir: t.TempDir()}
	if err := Down(t.Context(), opts); !errors.Is(err, ErrNoLab) {
		t.Errorf("error %v, want ErrNoLab", err)
	}
	for _, content := range []string{"", "{}", `{"Name":"y"}`} {
		if err := os.WriteFile(filepath.Join(opts.Dir, "state.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Down(t.Context(), opts); err == nil {
			t.Errorf("state %q is taken for that of the lab", content)
		}
	}
	if _, err := os.Stat(opts.Dir); err != nil {
		t.Error(err)
	}
	if err := deleteNamespace("other"); err == nil {
		t.Error("deletes a namespace that is not a lab's")
	}
	if _, err := Open(Options{Name: "../x"}); err == nil {
		t.Error("takes a bad name")
	}
}
