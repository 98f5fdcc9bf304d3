package nstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// childEnv marks the re-executed test binary.
const childEnv = "TORTIE_NSTEST_CHILD"

// Main runs m in a new network and mount namespace and exits. Without root it
// runs m where it is; New then skips.
func Main(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := Prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "nstest:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	before := sysctls()
	code := 0
	var exit *exec.ExitError
	if err := Again(childEnv); errors.As(err, &exit) && exit.ExitCode() > 0 {
		code = exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		code = 1
	}
	for path, old := range before {
		now, err := os.ReadFile(path)
		if err == nil && string(now) != old && !counts(path) {
			fmt.Fprintf(os.Stderr, "nstest: %s of the first namespace was %q, is %q\n", path, old, now)
			code = 1
		}
	}
	os.Exit(code)
}

// Again runs this program again in a new network and mount namespace, with the
// same arguments and env set to 1 in its environment, and waits for its end.
// That process calls Prepare first.
func Again(env string) error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// Prepare keeps what this process mounts to itself, gives it an empty list of
// named namespaces and a /sys of its own network namespace, and sets the
// loopback of that up.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	// A fuzzing worker is run in the namespaces of its coordinator, which has
	// mounted it.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return nil
}

func sysctls() map[string]string {
	values := map[string]string{}
	_ = filepath.WalkDir("/proc/sys/net", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if v, err := os.ReadFile(path); err == nil {
				values[path] = string(v)
			}
		}
		return nil
	})
	return values
}

// counts says that a file under /proc/sys/net is a reading, not a setting.
func counts(path string) bool {
	return strings.HasSuffix(path, "/nf_conntrack_count")
}

// NS is a network namespace.
type NS struct {
	Name string // as ip netns knows it

	handle netns.NsHandle
}

var serial atomic.Int64

// New makes a namespace with its loopback up and puts the calling goroutine
// into it until the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	n := Create(t)
	n.Enter(t)
	return n
}

// Create makes a namespace with its loopback up. It is gone when the test has
// ended and nothing holds it any more.
func Create(t testing.TB) *NS {
	t.Helper()
	if os.Getenv(childEnv) == "" {
		if os.Getenv("TORTIE_TEST_PRIVILEGED") == "1" {
			t.Fatal("nstest: this test must run as root, with nstest.Main in its TestMain")
		}
		t.Skip("needs root")
	}
	n := &NS{Name: fmt.Sprintf("tt%d-%d", os.Getpid(), serial.Add(1))}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.NewNamed(n.Name)
		n.handle = h
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("nstest: new namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.DeleteNamed(n.Name); err != nil {
			t.Errorf("nstest: delete namespace %s: %v", n.Name, err)
		}
		if err := n.handle.Close(); err != nil {
			t.Errorf("nstest: close namespace %s: %v", n.Name, err)
		}
	})
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

// Enter puts the calling goroutine into the namespace until the test ends.
func (n *NS) Enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err == nil {
		err = netns.Set(n.handle)
	}
	if err != nil {
		t.Fatalf("nstest: enter %s: %v", n.Name, err)
	}
	t.Cleanup(func() {
		if err := netns.Set(old); err != nil {
			t.Fatalf("nstest: leave %s: %v", n.Name, err)
		}
		_ = old.Close()
		runtime.UnlockOSThread()
	})
}

// Go runs f in the namespace, on a thread of its own that f keeps, and returns
// a channel that is closed when f has returned.
func (n *NS) Go(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(n.handle); err != nil {
			panic(fmt.Sprintf("nstest: enter %s: %v", n.Name, err))
		}
		f()
	}()
	return done
}

// Do runs f in the namespace and waits for it. f must not call t.Fatal.
func (n *NS) Do(f func()) { <-n.Go(f) }

// Run runs a command in the namespace and returns what it printed. The test
// fails if the command does.
func (n *NS) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		t.Fatalf("%s: %s %s: %v\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for a command that may fail.
func (n *NS) Try(name string, args ...string) (string, error) {
	var out []byte
	var err error
	n.Do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	return string(out), err
}

// Start starts a prepared command in the namespace. The caller waits for it.
func (n *NS) Start(cmd *exec.Cmd) error {
	var err error
	n.Do(func() { err = cmd.Start() })
	return err
}

// Veth links a to b by a pair of virtual Ethernet devices, both up.
func Veth(t testing.TB, a *NS, aName string, b *NS, bName string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b.Name)
	a.Run(t, "ip", "link", "set", aName, "up")
	b.Run(t, "ip", "link", "set", bName, "up")
}

// Index returns the index of a link in the namespace of the calling goroutine.
func Index(t testing.TB, link string) int {
	t.Helper()
	i, err := net.InterfaceByName(link)
	if err != nil {
		t.Fatal(err)
	}
	return i.Index
}

// Limit bounds every wait of a test.
const Limit = 10 * time.Second

// Context returns a context that ends with the test, or after ten seconds.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	t.Cleanup(cancel)
	return ctx
}

// Receive returns what comes next from a channel, for which it waits ten
// seconds.
func Receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatal("the channel was closed")
		}
		return v
	case <-time.After(Limit):
		t.Fatal("nothing was received")
	}
	panic("unreachable")
}

// Checksum is that of RFC 1071.
func Checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
