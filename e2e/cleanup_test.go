package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/lab"
)

// objects is what of a host's kernel Tortie could have left something in.
func (s *site) objects(t *testing.T, host string) string {
	var b strings.Builder
	for _, command := range []string{
		"nft list ruleset",
		"ip -4 route show table all",
		"ip -6 route show table all",
		"ip rule", "ip -6 rule",
		"ip neigh show nud permanent", "ip -6 neigh show nud permanent",
		"ip neigh show proxy", "ip -6 neigh show proxy",
		"ip -o link show",
		"sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra net.ipv4.conf.all.rp_filter",
	} {
		fmt.Fprintf(&b, "# %s\n%s", command, s.sh(t, host, strings.Fields(command)...))
	}
	return regexp.MustCompile(` (expires \d+sec|state \S+)`).ReplaceAllString(b.String(), "")
}

// tortie cleanup leaves no kernel object of ours, puts settings back, and
// leaves the workloads' interfaces alone. Started again, all is as before.
func testCleanup(t *testing.T, s *site) {
	const host = "host-2"
	clean := func() string {
		s.kill(t, host, lab.Agent, lab.BGP)
		s.sh(t, host, "tortie", "cleanup")
		return s.objects(t, host)
	}
	first := clean()
	for _, ours := range []string{"tortie", "proto 80", "proto 81", "169.254.1.1", "PERMANENT", "ip_forward = 1", "all.forwarding = 1"} {
		if strings.Contains(first, ours) {
			t.Errorf("%q is left:\n%s", ours, first)
		}
	}
	if !strings.Contains(first, "cali0201") {
		t.Errorf("a workload's interface is gone:\n%s", first)
	}
	s.start(t, host, lab.Agent, lab.BGP)
	s.settle(t)
	if m := s.matrix(t, lab.MatrixOptions{}); m.Reached() != len(m.Cells) {
		t.Errorf("%s", m)
	}
	if second := clean(); second != first {
		t.Errorf("cleaned up once:\n%s\nand again:\n%s", first, second)
	}
}

// left is what there is of labs: namespaces, processes, links.
func left(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/run/netns/ttlab-*")
	if err != nil {
		t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if b, err := os.ReadFile(p); err == nil && strings.Contains("\x00"+string(b), "\x00TORTIE_LAB="+os.Getenv(workDir)) {
			command, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
			found = append(found, fmt.Sprintf("%s %q", p, command))
		}
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		if !strings.Contains(line, ": lo: ") {
			found = append(found, line)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.Getenv(workDir), "*", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	return append(found, dirs...)
}

// cli runs `tortie lab` as an operator does.
func cli(t *testing.T, args ...string) string {
	t.Helper()
	dir := filepath.Join(os.Getenv(workDir), "cli")
	out, err := exec.Command(builtBinary(), append([]string{"lab", "--name", "cli", "--dir", dir}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("tortie lab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The lab's commands, each in a process of its own; nothing is left of it.
func TestLabCommands(t *testing.T) {
	options(t, "cli")
	t.Cleanup(func() { same(t, "left behind", left(t), nil) })
	cli(t, "up", "--hosts", "2", "--workloads", "1")
	cli(t, "add-workload", "extra", "--on", "host-2", "--labels", "role=extra", "--profiles", "projectcalico-default-allow")
	if m := cli(t, "matrix", "--from", "extra", "--tcp", "80"); !strings.Contains(m, "8 of 8 reached; 0 are not as expected") {
		t.Errorf("matrix:\n%s", m)
	}
	if out := cli(t, "status"); !strings.Contains(out, "host-2") || !strings.Contains(out, "extra") {
		t.Errorf("status:\n%s", out)
	}
	if out := cli(t, "exec", "host-1", "--", "tortie", "show", "peers"); !strings.Contains(strings.ToLower(out), "established") {
		t.Errorf("peers:\n%s", out)
	}
	if out := cli(t, "exec", "host-1", "--", "tortie", "show", "problems"); out != "" {
		t.Errorf("problems of either process:\n%s", out)
	}
	for code, command := range map[int][]string{0: {"true"}, 1: {"false"}, 7: {"sh", "-c", "exit 7"}} {
		args := append([]string{"lab", "--name", "cli", "--dir", filepath.Join(os.Getenv(workDir), "cli"), "exec", "host-2", "--"}, command...)
		cmd := exec.Command(builtBinary(), args...)
		if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != code || len(out) > 0 {
			t.Errorf("%q exits with %d, and says %q", command, cmd.ProcessState.ExitCode(), out)
		}
	}
	cli(t, "down")
}

// The demo is interrupted when its routes are there, and when its lab is half
// built: nothing is left.
func TestDemoInterrupted(t *testing.T) {
	options(t, "interrupted")
	for _, at := range []string{"datastore:", "routes learned"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, builtBinary(), "lab", "demo", "--name", "interrupted",
				"--dir", filepath.Join(os.Getenv(workDir), "interrupted"), "--examples", "../examples")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
			r, w := io.Pipe()
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait(); _ = w.Close() }()
			var seen strings.Builder
			b := make([]byte, 4096)
			for interrupted := false; ; {
				n, err := r.Read(b)
				seen.Write(b[:n])
				if !interrupted && strings.Contains(seen.String(), at) {
					interrupted = true
					if err := cmd.Process.Signal(os.Interrupt); err != nil {
						t.Fatal(err)
					}
				}
				if err != nil {
					break
				}
			}
			if err := <-ended; err == nil {
				t.Error("an interrupted demo exits with 0")
			}
			if !strings.Contains(seen.String(), at) || strings.Contains(seen.String(), "Summary") {
				t.Errorf("not interrupted at %q:\n%s", at, seen.String())
			}
			same(t, "left behind", left(t), nil)
		})
	}
}
