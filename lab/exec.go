package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// place is the host whose environment a command gets that runs on a host, in a
// workload or, as "fabric", beside the datastore.
func (l *Lab) place(name string) (host string, err error) {
	if name == fabricName {
		return fabricName, nil
	}
	if h, err := l.host(name); err == nil {
		return h.Name, nil
	}
	w, err := l.workload(name)
	if err != nil {
		return "", fmt.Errorf("lab %s has neither a host nor a workload %q", l.opts.Name, name)
	}
	return w.Host, nil
}

// Command prepares a command to be run on a host, in a workload, or in
// "fabric". Start it with Run, since it must be started there.
func (l *Lab) Command(ctx context.Context, where, name string, args ...string) (*exec.Cmd, error) {
	host, err := l.place(where)
	if err != nil {
		return nil, err
	}
	if name == "tortie" {
		name = l.opts.Binary // this process's PATH need not lead to it
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = l.environ(host)
	return cmd, nil
}

// In runs f on a thread that is in the namespace of a host, of a workload, or
// of "fabric". Goroutines that f starts are not; sockets that it opens stay.
func (l *Lab) In(where string, f func() error) error {
	if _, err := l.place(where); err != nil {
		return err
	}
	return in(l.namespace(where), f)
}

// Run runs a prepared command where it was prepared for.
func (l *Lab) Run(where string, cmd *exec.Cmd) error {
	if err := in(l.namespace(where), cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// Exec runs a command with the caller's standard input and outputs.
func (l *Lab) Exec(ctx context.Context, where string, command ...string) error {
	if len(command) == 0 {
		return errors.New("no command is given")
	}
	cmd, err := l.Command(ctx, where, command[0], command[1:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return l.Run(where, cmd)
}

// Output runs a command and returns all that it wrote.
func (l *Lab) Output(ctx context.Context, where, name string, args ...string) (string, error) {
	cmd, err := l.Command(ctx, where, name, args...)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err = l.Run(where, cmd)
	return out.String(), err
}

// Get asks a process of a host on its socket, for /health say.
func (l *Lab) Get(ctx context.Context, host, process, path string) (string, error) {
	socket := filepath.Join(l.RunDir(host), process+".sock")
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+process+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask %s of %s: %w", process, host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("ask %s of %s: %s: %s", process, host, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// WaitHealthy returns when all processes of all hosts say that they are well.
func (l *Lab) WaitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, h := range l.state.Hosts {
		for _, p := range Processes() {
			err := l.poll(ctx, h.Name, p, func() error {
				_, err := l.Get(ctx, h.Name, p, "/health")
				return err
			})
			if err != nil {
				return fmt.Errorf("wait for %s of %s: %w", p, h.Name, err)
			}
		}
	}
	l.step("all processes are well")
	return nil
}

// HostStatus is what can be seen of one host.
type HostStatus struct {
	Host      Host
	Processes []ProcessStatus
	// Routes of the host by family, 4 and 6: to its own workloads, and to
	// those of others.
	Local, Learned map[int]int
	Workloads      []Workload
}

// ProcessStatus is what can be seen of one process.
type ProcessStatus struct {
	Name   string
	PID    int // 0: it does not run
	Health string
}

// Status looks at all hosts.
func (l *Lab) Status(ctx context.Context) ([]HostStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out []HostStatus
	for _, h := range l.state.Hosts {
		s := HostStatus{Host: h, Local: map[int]int{}, Learned: map[int]int{}}
		for _, p := range Processes() {
			ps := ProcessStatus{Name: p}
			if ps.PID, _ = l.PID(h.Name, p); ps.PID != 0 {
				ps.Health = l.health(ctx, h.Name, p)
			}
			s.Processes = append(s.Processes, ps)
		}
		routes, err := l.Routes(h.Name)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			family := 4
			if r.Family == unix.AF_INET6 {
				family = 6
			}
			switch {
			case r.Protocol == protocolLearned:
				s.Learned[family]++
			case r.LinkIndex != loopback:
				s.Local[family]++
			}
		}
		for _, w := range l.state.Workloads {
			if w.Host == h.Name {
				s.Workloads = append(s.Workloads, w)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// health is one phrase.
func (l *Lab) health(ctx context.Context, host, process string) string {
	body, err := l.Get(ctx, host, process, "/health")
	if err != nil {
		return err.Error()
	}
	var any map[string]json.RawMessage
	if json.Unmarshal([]byte(body), &any) != nil {
		return "answers, but not in JSON"
	}
	return "well"
}

// Routes that tortie writes are known by their protocol.
const (
	protocolLocal   = 80
	protocolLearned = 81
	loopback        = 1 // index of lo
)

// Routes lists tortie's routes in a host's kernel, both families, by
// destination.
func (l *Lab) Routes(host string) ([]netlink.Route, error) {
	if _, err := l.host(host); err != nil {
		return nil, err
	}
	h, ns, err := linkHandle(l.namespace(host))
	if err != nil {
		return nil, err
	}
	defer h.Close()
	defer func() { _ = ns.Close() }()
	var out []netlink.Route
	for _, p := range []netlink.RouteProtocol{protocolLocal, protocolLearned} {
		err := error(netlink.ErrDumpInterrupted)
		var list []netlink.Route
		for i := 0; i < 20 && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
			list, err = h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: p}, netlink.RT_FILTER_PROTOCOL)
		}
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", host, err)
		}
		out = append(out, list...)
	}
	slices.SortFunc(out, func(a, b netlink.Route) int { return strings.Compare(a.Dst.String(), b.Dst.String()) })
	return out, nil
}

// String prints the status as a few lines.
func (s HostStatus) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %s\n", s.Host.Name, s.Host.IPv4, s.Host.IPv6)
	for _, p := range s.Processes {
		if p.PID == 0 {
			fmt.Fprintf(&b, "  %-6s does not run\n", p.Name)
		} else {
			fmt.Fprintf(&b, "  %-6s process %d, %s\n", p.Name, p.PID, p.Health)
		}
	}
	fmt.Fprintf(&b, "  routes %d local, %d learned for IPv4; %d local, %d learned for IPv6\n", s.Local[4], s.Learned[4], s.Local[6], s.Learned[6])
	for _, w := range s.Workloads {
		fmt.Fprintf(&b, "  %-6s %s %s on %s\n", w.Name, w.IPv4, w.IPv6, w.Interface)
	}
	return b.String()
}
