package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"tortie/internal/socket"
	"tortie/store"
	"tortie/store/etcd"
)

const (
	tortie     = "bin/tortie"
	benchHost  = "h1"
	endpoint   = "http://127.0.0.1:2379"
	localCount = 1000 // local endpoints of the scale suites
	spareCount = 120  // interfaces for endpoints that appear while it is measured
)

// bench is one run: its folder, its processes and its rows.
type bench struct {
	log     *slog.Logger
	dir     string
	results map[string]result
	running []*process
	links   int // interfaces made so far
	peers   netns.NsHandle
}

// newBench makes a run; with keep it begins with the rows of earlier ones.
func newBench(keep bool) (*bench, error) {
	dir, err := os.MkdirTemp("", "tortie-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{
		log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
		dir:     dir,
		results: map[string]result{},
		peers:   netns.None(),
	}
	if text, err := os.ReadFile(resultsFile); err == nil && keep {
		var rows []result
		if err := json.Unmarshal(text, &rows); err != nil {
			return nil, fmt.Errorf("%s: %w", resultsFile, err)
		}
		for _, r := range rows {
			b.results[r.Name] = r
		}
	}
	return b, nil
}

func (b *bench) close() {
	for i := len(b.running) - 1; i >= 0; i-- {
		b.running[i].kill()
	}
	b.running = nil
	_ = os.RemoveAll(b.dir)
}

// process is one process under test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// start runs the binary; what it logs goes to a file in the run's folder.
func (b *bench) start(name string, args ...string) (*process, error) {
	out, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(tortie, args...)
	cmd.Env = append(os.Environ(), "ETCD_ENDPOINTS="+endpoint)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the process dies with the thread that started it
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	b.running = append(b.running, p)
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// cpu is the processor time that the process and its reaped children used.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, fmt.Errorf("unexpected /proc stat: %q", text)
	}
	ticks := 0
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// peakRSS is the process's largest resident size so far, in bytes.
func (p *process) peakRSS() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) * 1024, err
		}
	}
	return 0, errors.New("no VmHWM in /proc status")
}

// datastore starts an empty etcd and returns a store on it.
func (b *bench) datastore() (store.Store, *process, error) {
	data, err := os.MkdirTemp(b.dir, "etcd-")
	if err != nil {
		return nil, nil, err
	}
	p, err := b.start("datastore", "datastore", "--data-dir", data, "--listen", endpoint)
	if err != nil {
		return nil, nil, err
	}
	s, err := etcd.Open(etcd.Config{Endpoints: []string{endpoint}, Log: b.log})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if _, _, err := s.List(ctx, "/none/"); err == nil {
			return s, p, nil
		} else if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("etcd does not answer: %w", err)
		}
	}
}

func (b *bench) runDir() string { return filepath.Join(b.dir, "run") }

// agent starts the agent and waits until it is ready; it returns how long that
// took.
func (b *bench) agent() (*process, time.Duration, error) {
	begin := time.Now()
	p, err := b.start("agent", "agent", "--host", benchHost, "--run-dir", b.runDir())
	if err != nil {
		return nil, 0, err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if b.ready() {
			return p, time.Since(begin), nil
		}
		select {
		case <-p.done:
			log, _ := os.ReadFile(filepath.Join(b.dir, "agent.log"))
			return nil, 0, fmt.Errorf("the agent ended: %s", tail(log))
		default:
		}
		if time.Since(begin) > 2*time.Minute {
			return nil, 0, errors.New("the agent is not ready after two minutes")
		}
	}
	return nil, 0, nil
}

func tail(log []byte) string {
	return string(log[max(0, len(log)-2000):])
}

func (b *bench) ready() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	body, err := socket.Get(ctx, socket.Path(b.runDir(), "agent"), "/health")
	if err != nil && !errors.Is(err, io.EOF) && body == nil {
		return false
	}
	var h struct {
		Ready bool `json:"ready"`
	}
	return json.Unmarshal(body, &h) == nil && h.Ready
}

// interfaces makes workload interfaces up to a count: veth pairs whose other
// ends are up in a namespace of their own.
func (b *bench) interfaces(count int) error {
	runtime.LockOSThread() // which visits the other namespace
	defer runtime.UnlockOSThread()
	if b.peers == netns.None() {
		here, err := netns.Get()
		if err != nil {
			return err
		}
		defer func() { _ = here.Close() }()
		if b.peers, err = netns.New(); err != nil { // also enters it
			return err
		}
		if err := netns.Set(here); err != nil {
			return err
		}
	}
	inside, err := netlink.NewHandleAt(b.peers)
	if err != nil {
		return err
	}
	defer inside.Close()
	for ; b.links < count; b.links++ {
		name := interfaceName(b.links)
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(b.peers)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		peer, err := inside.LinkByName(name)
		if err != nil {
			return err
		}
		if err := errors.Join(inside.LinkSetUp(peer), netlink.LinkSetUp(veth)); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

func interfaceName(i int) string { return fmt.Sprintf("tap%07d", i) }

// stop ends a process that is not needed any more, gently, so that its files
// are whole.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}
