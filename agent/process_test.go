package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/config"
	"tortie/store/etcd"
)

// processEnv marks a test binary that is to be an agent.
const processEnv = "TORTIE_AGENT_PROCESS"

// agentProcess is what "tortie agent" is, until it fails. It ends with its
// parent.
func agentProcess() error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	local, err := config.Load("", os.Environ())
	if err != nil {
		return err
	}
	cfg, _ := local.With(nil, nil)
	s, err := etcd.Open(etcd.Config{Endpoints: cfg.EtcdEndpoints})
	if err != nil {
		return err
	}
	for {
		err := Run(context.Background(), Options{Store: s, Local: local, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if !errors.Is(err, ErrConfigChanged) {
			return err
		}
	}
}

// process is an agent of its own, which can be killed.
type process struct {
	h     *testHost
	cmd   *exec.Cmd
	log   chan string
	ended chan struct{}
}

// spawn starts one.
func (h *testHost) spawn() *process {
	h.t.Helper()
	p := &process{h: h, cmd: exec.Command("/proc/self/exe"), log: make(chan string, 1000), ended: make(chan struct{})}
	p.cmd.Env = append(append(os.Environ(), processEnv+"=1"), h.environ()...)
	_, err := p.cmd.StdinPipe()
	var out io.ReadCloser
	if err == nil {
		out, err = p.cmd.StderrPipe()
	}
	if err == nil {
		err = h.ns.Start(p.cmd)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		defer close(p.log)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case p.log <- s.Text():
			default: // nobody listens any more
			}
		}
		_ = p.cmd.Wait()
	}()
	h.t.Cleanup(p.kill)
	return p
}

// kill ends it by SIGKILL and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(unix.SIGKILL)
	<-p.ended
}

// says waits for a line of its log.
func (p *process) says(text string) {
	p.h.t.Helper()
	limit := time.After(timeout)
	for {
		select {
		case line, ok := <-p.log:
			if !ok {
				p.h.t.Fatalf("the agent ended before it said %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-limit:
			p.h.t.Fatalf("waited %s for the agent to say %q", timeout, text)
		}
	}
}

// etcd replaces the host's store by a real one, and lets processes of the host
// reach it.
func (h *testHost) etcd() {
	h.t.Helper()
	var server *etcd.Server
	var err error
	served := make(chan struct{})
	go func() { // not in the host's namespace, where the test is
		defer close(served)
		server, err = etcd.Serve(etcd.ServeConfig{Dir: filepath.Join(h.runDir, "etcd"), Listen: []string{"http://127.0.0.1:0"}})
	}()
	if <-served; err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(server.Close)
	client, err := etcd.Open(etcd.Config{Endpoints: server.Endpoints()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = client.Close() })
	h.store = client
	var door net.Listener
	h.ns.Do(func() { door, err = net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = door.Close() })
	h.env = append(h.env, "ETCD_ENDPOINTS=http://"+door.Addr().String())
	target := strings.TrimPrefix(server.Endpoints()[0], "http://")
	go func() {
		for {
			c, err := door.Accept()
			if err != nil {
				return
			}
			go pass(c, target)
		}
	}()
}

// pass passes a connection on.
func pass(c net.Conn, target string) {
	defer func() { _ = c.Close() }()
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	go func() {
		_, _ = io.Copy(far, c)
		_ = far.Close()
	}()
	_, _ = io.Copy(c, far)
}

// An agent that is killed again and again, at whatever it is just doing, and
// started again, costs not one allowed packet and lets no denied one pass.
//
// Promise F6: kill -9 under traffic loses no packet. Promise F12: it can stop
// and start at any time without risk. Promise F7: with it dead, what is allowed
// passes and what is denied does not.
func TestKilledUnderTraffic(t *testing.T) {
	s := newScenarioOn(t, (*testHost).etcd)
	p := s.spawn()
	s.settle(s.revision)
	allowed, denied := s.streams()
	want := s.kernelText()
	// Something is always being changed that is no concern of the streams.
	churned, stop := make(chan error, 1), make(chan struct{})
	go func() { churned <- s.churn(stop) }()
	for i := range 10 {
		switch i % 4 {
		case 0:
			p.says("in sync")
		case 1:
			p.says("connected=true")
		case 2: // at once
		default:
			s.await("the agent to be ready", func() bool { return s.health().Ready })
		}
		p.kill()
		for j := range allowed {
			allowed[j].flows()
			denied[j].quiet()
		}
		p = s.spawn()
	}
	close(stop)
	if err := <-churned; err != nil {
		t.Fatal(err)
	}
	s.settle(s.put(policyOf("churn"), policyDoc("churn", `role == "nobody"`, "", "")))
	for j := range allowed {
		allowed[j].complete()
		denied[j].never()
	}
	if text := s.kernelText(); text != want {
		t.Errorf("the kernel is not as before: %s", firstDifference(text, want))
	}
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, "", allow)))
	s.serve(s.server)
	s.refused(s.client, s.server)
	p.kill()
}

// churn changes policies and sets that are no concern of the streams, each
// time the store has taken the change before.
func (s *scenario) churn(stop <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		selector := []string{`role == "nobody"`, `role == "other"`}[i%2]
		rule := fmt.Sprintf(`{"action":"Allow","protocol":"TCP","destination":{"ports":[%d]}}`, 1+i%60000)
		if _, err := s.write(policyOf("churn"), policyDoc("churn", selector, rule, allow)); err != nil {
			return err
		}
	}
}
