package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tortie/internal/nstest"
	"tortie/lab"
	"tortie/store"
	"tortie/store/etcd"
)

// workDir has the binary and the labs' directories. The process that comes
// before the one in its own namespaces makes it, and removes what is left.
const workDir = "TORTIE_E2E_DIR"

func TestMain(m *testing.M) {
	if os.Getenv(workDir) != "" {
		nstest.Main(m)
	}
	os.Exit(outer(m))
}

func outer(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // which skips, or fails
	}
	dir, err := os.MkdirTemp("", "tortie-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "tortie"), "tortie/cmd/tortie")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b := os.Getenv("TORTIE_BINARY"); b != "" {
		build = exec.Command("cp", b, filepath.Join(dir, "tortie"))
	}
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tortie: %v\n%s", err, out)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), workDir+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	// A test that panicked, or ran out of time, has left its lab's processes.
	labs, _ := filepath.Glob(filepath.Join(dir, "*", "state.json"))
	for _, l := range labs {
		name := filepath.Base(filepath.Dir(l))
		if errDown := lab.Down(context.Background(), lab.Options{Name: name, Dir: filepath.Dir(l)}); errDown != nil {
			fmt.Fprintln(os.Stderr, errDown)
		}
		fmt.Fprintf(os.Stderr, "lab %s was left\n", name)
		err = errors.Join(err, errors.New("left"))
	}
	if err != nil {
		return 1
	}
	return 0
}

func builtBinary() string { return filepath.Join(os.Getenv(workDir), "tortie") }

// options are those of a lab of the test.
func options(t *testing.T, name string) lab.Options {
	t.Helper()
	nstest.Create(t) // skips, or fails, where namespaces cannot be made
	// The test stays in the namespace of the test binary, where all of its
	// goroutines are.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return lab.Options{
		Name: name, Dir: filepath.Join(os.Getenv(workDir), name), Binary: builtBinary(),
		OpenStore: func(endpoint string) (store.Store, func() error, error) {
			s, err := etcd.Open(etcd.Config{Endpoints: []string{endpoint}})
			if err != nil {
				return nil, nil, err
			}
			return s, s.Close, nil
		},
		Progress: testWriter{t},
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// up brings up a lab for the test, with all routes learned.
func up(t *testing.T, name string, shape lab.Shape) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	l, err := lab.Up(ctx, options(t, name), shape)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Lab: l, ctx: ctx}
	t.Cleanup(func() {
		if t.Failed() {
			s.logs(t)
		}
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// logs shows what the processes wrote last.
func (s *site) logs(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(s.Dir(), "*", "*.log"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && len(b) > 0 {
			t.Logf("%s:\n%s", strings.TrimPrefix(f, s.Dir()), b[max(0, len(b)-3000):])
		}
	}
}
