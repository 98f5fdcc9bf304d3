package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tortie/internal/nstest"
	"tortie/store"
	"tortie/store/etcd"
)

// buildDir is where the binary is built. The process that comes before the one
// in its own namespaces makes it and removes it.
const buildDir = "TORTIE_LAB_TEST_DIR"

func TestMain(m *testing.M) {
	if os.Getenv(buildDir) != "" {
		nstest.Main(m)
	}
	dir, err := os.MkdirTemp("", "tortie-lab-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), buildDir+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	_ = os.RemoveAll(dir)
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// tortie is the real binary: TORTIE_BINARY, or built for the test.
var tortie = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("TORTIE_BINARY"); b != "" {
		return b, nil
	}
	b := filepath.Join(os.Getenv(buildDir), "tortie")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", b, "tortie/cmd/tortie").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build tortie: %w\n%s", err, out)
	}
	return b, nil
})

func options(t *testing.T, name string) Options {
	t.Helper()
	nstest.Create(t) // skips, or fails, where namespaces cannot be made
	// The test stays in the namespace of the test binary, where all of its
	// goroutines are.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := tortie()
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Name: name, Dir: filepath.Join(t.TempDir(), name), Binary: b,
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

// limited is a context that bounds a test of the whole.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// nothingLeft checks that no namespace, process or file of the lab is there.
func nothingLeft(t *testing.T, opts Options) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(namespaceDir, namespacePrefix+opts.Name+"*"))
	if err != nil || len(names) > 0 {
		t.Errorf("namespaces are left: %v (%v)", names, err)
	}
	if _, err := os.Stat(opts.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
	for _, pid := range marked(t, opts.Dir) {
		b, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		t.Errorf("process %s is left: %q", pid, b)
	}
}

// marked lists processes with the lab's mark that are not zombies.
func marked(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains("\x00"+string(b), "\x00"+marker+"="+dir+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// pair is a lab in miniature without processes: two workloads whose interfaces
// are joined directly.
func pair(t *testing.T) *Lab {
	t.Helper()
	nstest.New(t)
	l := &Lab{opts: Options{Name: "pair", Dir: t.TempDir()}, state: state{Name: "pair"}}
	if err := l.opts.normalise(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		w := Workload{Name: []string{"a", "b"}[i], Host: "none", Number: i + 1}
		w.IPv4, w.IPv6 = workloadAddresses(1, i+1)
		l.state.Workloads = append(l.state.Workloads, w)
		if err := l.newNamespace(w.Name); err != nil {
			t.Fatal(err)
		}
		if err := setSysctls(l.namespace(w.Name), map[string]string{"net/ipv6/conf/default/accept_dad": "0"}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := deleteNamespace(l.namespace(w.Name)); err != nil {
				t.Error(err)
			}
		})
	}
	a, b := l.state.Workloads[0], l.state.Workloads[1]
	ea := end{namespace: l.namespace("a"), link: "eth0", addrs: []string{a.IPv4.String() + "/24", a.IPv6.String() + "/64"}}
	eb := end{namespace: l.namespace("b"), link: "eth0", addrs: []string{b.IPv4.String() + "/24", b.IPv6.String() + "/64"}}
	if err := connect(ea, eb); err != nil {
		t.Fatal(err)
	}
	for _, e := range []end{ea, eb} {
		if err := raise(e, ""); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// nft runs nft in workload b.
func (l *Lab) nft(t *testing.T, command string) {
	t.Helper()
	cmd := exec.Command("nft", command)
	out := strings.Builder{}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.Run("b", cmd); err != nil {
		t.Fatalf("nft %s: %v: %s", command, err, out.String())
	}
}

func at(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 8080) }
