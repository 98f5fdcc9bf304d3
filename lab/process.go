package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is the variable that names the lab in the environment of whatever
// runs in it.
const marker = "TORTIE_LAB"

// The processes of a host, and the one of the fabric.
const (
	Agent     = "agent"
	BGP       = "bgp"
	Datastore = "datastore"
)

// Processes lists what runs on every host.
func Processes() []string { return []string{Agent, BGP} }

// Start starts a process of a host, if it does not run. It outlives the caller.
func (l *Lab) Start(host, process string) error {
	if l.Running(host, process) {
		return nil
	}
	args := []string{process, "--config", l.configFile(), "--host", host, "--run-dir", l.RunDir(host)}
	if process == Datastore {
		args = []string{process, "--config", l.configFile(), "--data-dir", filepath.Join(l.RunDir(fabricName), "etcd"), "--listen", storeURL()}
	}
	if err := l.start(host, process, args); err != nil {
		return fmt.Errorf("start %s of %s: %w", process, host, err)
	}
	return nil
}

func (l *Lab) start(host, process string, args []string) error {
	log, err := os.OpenFile(l.LogFile(host, process), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(l.opts.Binary, args...)
	cmd.Env = l.environ(host)
	cmd.Dir = l.RunDir(host)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt of the caller is not its own
	if err := in(l.namespace(host), cmd.Start); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // whoever ends it, it is reaped
	return writeProcess(l.pidFile(host, process), cmd.Process.Pid)
}

// environ is the environment of what runs on a host: tortie's commands find
// the host's sockets and the datastore.
func (l *Lab) environ(host string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name == "PATH" {
			e = "PATH=" + filepath.Dir(l.opts.Binary) + ":" + os.Getenv("PATH")
		}
		if name != marker && name != "NOTIFY_SOCKET" && !strings.HasPrefix(name, "FELIX_") && !strings.HasPrefix(name, "ETCD_") {
			env = append(env, e)
		}
	}
	return append(env, marker+"="+l.opts.Dir, "ETCD_ENDPOINTS="+storeURL(),
		"FELIX_FELIXHOSTNAME="+host, "FELIX_RUNDIR="+l.RunDir(host))
}

// LogFile is where a process writes.
func (l *Lab) LogFile(host, process string) string {
	return filepath.Join(l.RunDir(host), process+".log")
}

func (l *Lab) pidFile(host, process string) string {
	return filepath.Join(l.RunDir(host), process+".pid")
}

func (l *Lab) configFile() string { return filepath.Join(l.opts.Dir, "tortie.yaml") }

// Running says whether a process of a host is alive.
func (l *Lab) Running(host, process string) bool {
	p, err := openProcess(l.pidFile(host, process))
	if err != nil {
		return false
	}
	defer p.close()
	return !p.ended(0)
}

// PID returns the process id of a process that runs.
func (l *Lab) PID(host, process string) (int, error) {
	p, err := openProcess(l.pidFile(host, process))
	if err != nil {
		return 0, fmt.Errorf("find %s of %s: %w", process, host, err)
	}
	defer p.close()
	return p.pid, nil
}

// Kill ends a process of a host at once, as a crash would, and returns when it
// is gone. One that does not run is fine.
func (l *Lab) Kill(host, process string) error {
	p, err := openProcess(l.pidFile(host, process))
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill %s of %s: %w", process, host, err)
	}
	defer p.close()
	if err := p.kill(); err != nil {
		return fmt.Errorf("kill %s of %s: %w", process, host, err)
	}
	return nil
}

// Restart is Kill and Start.
func (l *Lab) Restart(host, process string) error {
	if err := l.Kill(host, process); err != nil {
		return err
	}
	return l.Start(host, process)
}

// process is a process that cannot be mistaken for a later one of its id.
type process struct {
	pid int
	fd  int
}

var errNotRunning = errors.New("it does not run")

func (p *process) close() { _ = unix.Close(p.fd) }

// openProcess finds the process that a file names, by id and start time.
func openProcess(file string) (*process, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, err
	}
	var pid int
	var started string
	if _, err := fmt.Sscan(string(b), &pid, &started); err != nil {
		return nil, errNotRunning // interrupted while it was written
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: fd}
	if now, err := startTime(pid); err != nil || now != started {
		p.close()
		return nil, errNotRunning // another has its id
	}
	return p, nil
}

// ended waits, at most so long, until the process has ended.
func (p *process) ended(wait time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(wait); ; {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		if n > 0 {
			return true
		}
		if !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

func (p *process) kill() error {
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	if !p.ended(10 * time.Second) {
		return fmt.Errorf("process %d does not end", p.pid)
	}
	return nil
}

func writeProcess(file string, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(file, fmt.Appendf(nil, "%d %s\n", pid, started), 0o600)
}

// startTime is when a process started, in ticks since the kernel did: field 22
// of proc_pid_stat(5), the 20th after the name, which may have anything in it.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("process %d has no start time", pid)
	}
	return fields[19], nil
}

// killMarked ends what runs in one of the namespaces and carries the lab's
// mark: processes whose start was not recorded because Up was killed, and what
// Exec left in the background. It needs both proofs.
func (l *Lab) killMarked(ctx context.Context) error {
	ours := map[fileID]bool{}
	for _, n := range l.state.Namespaces {
		if id, err := identify(filepath.Join(namespaceDir, n)); err == nil {
			ours[id] = true
		}
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() || ctx.Err() != nil {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		p := &process{pid: pid, fd: fd}
		if l.isMarked(pid, ours) {
			errs = append(errs, p.kill())
		}
		p.close()
	}
	return errors.Join(append(errs, ctx.Err())...)
}

type fileID struct{ dev, ino uint64 }

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return fileID{st.Dev, st.Ino}, err
}

func (l *Lab) isMarked(pid int, ours map[fileID]bool) bool {
	if id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || !ours[id] {
		return false
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for _, e := range bytes.Split(env, []byte{0}) {
		if string(e) == marker+"="+l.opts.Dir {
			return true
		}
	}
	return false
}
