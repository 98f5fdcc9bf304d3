package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/internal/nstest"
	"tortie/store"
	"tortie/store/memory"
)

// hostEnv makes the test binary a speaker for the host it names: GoBGP allows
// one a process.
const hostEnv = "TORTIE_BGP_TEST_HOST"

func TestMain(m *testing.M) {
	if host := os.Getenv(hostEnv); host != "" {
		os.Exit(speak(host))
	}
	nstest.Main(m)
}

// write is a change of the store, as it is sent to a speaker's process.
type write struct {
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value,omitempty"` // none: delete
	Start bool            `json:"start,omitempty"` // the snapshot is complete
	Down  bool            `json:"down,omitempty"`  // the store does not answer
	Up    bool            `json:"up,omitempty"`    // it does again
}

// speak runs the process under test with a store that follows standard input,
// and ends with it. It returns the exit status.
func speak(host string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s := memory.New()
	client := s.Client()
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	next := func() bool {
		var w write
		if !in.Scan() || json.Unmarshal(in.Bytes(), &w) != nil {
			os.Exit(0) // the test has ended
		}
		switch {
		case w.Start:
			return false
		case w.Down:
			client.Disconnect()
			return true
		case w.Up:
			client.Reconnect()
			return true
		}
		if _, err := s.Commit(ctx, store.Op{Path: w.Path, Value: w.Value, Delete: w.Value == nil, If: store.AnyRevision}); err != nil {
			panic(err)
		}
		return true
	}
	for next() {
	}
	go func() {
		for {
			next()
		}
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	opts := Options{Host: host, Store: client, RunDir: os.Getenv("TORTIE_BGP_TEST_RUN"), Log: log}
	opts.Deferral, _ = time.ParseDuration(os.Getenv("TORTIE_BGP_TEST_DEFERRAL"))
	if err := Run(ctx, opts); err != nil {
		log.Error("the process ends", "error", err)
		return 1
	}
	return 0
}

// settle is how long sessions may take to come up, and a change to spread.
const settle = 30 * time.Second

// site is some hosts on one layer-2 fabric, with one store.
type site struct {
	t        testing.TB
	fabric   *nstest.NS
	hosts    map[string]*host
	stored   map[string]json.RawMessage
	deferral string
}

// host is a network namespace with a speaker in it.
type host struct {
	*nstest.NS
	site   *site
	name   string
	number int
	v4, v6 string
	run    string
	routes *lines
	log    *lines

	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{}
}

func newSite(t testing.TB) *site {
	if p, ok := t.(interface{ Parallel() }); ok {
		p.Parallel() // the tests spend their time waiting
	}
	s := &site{t: t, fabric: nstest.Create(t), hosts: map[string]*host{}, stored: map[string]json.RawMessage{}}
	s.fabric.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	s.fabric.Run(t, "ip", "link", "set", "br0", "up")
	return s
}

// join connects a namespace to the fabric as 172.16.0.n and fd00:16::n.
func (s *site) join(ns *nstest.NS, n int) (v4, v6 string) {
	port := fmt.Sprintf("p%d", n)
	nstest.Veth(s.t, s.fabric, port, ns, "eth0")
	s.fabric.Run(s.t, "ip", "link", "set", port, "master", "br0")
	v4, v6 = fmt.Sprintf("172.16.0.%d", n), fmt.Sprintf("fd00:16::%x", n)
	ns.Run(s.t, "ip", "addr", "add", v4+"/24", "dev", "eth0")
	ns.Run(s.t, "ip", "addr", "add", v6+"/64", "dev", "eth0", "nodad")
	return v4, v6
}

// host adds a host and its Node; the speaker is not started.
func (s *site) host(n int) *host {
	s.t.Helper()
	h := s.bare(n)
	h.v4, h.v6 = s.join(h.NS, n)
	s.put(api.KindNode, h.name, fmt.Sprintf(`{"bgp":{"ipv4Address":"%s/24","ipv6Address":"%s/64"}}`, h.v4, h.v6))
	return h
}

// bare adds a host without a link to others.
func (s *site) bare(n int) *host {
	s.t.Helper()
	h := &host{NS: nstest.Create(s.t), site: s, name: fmt.Sprintf("h%d", n), number: n, run: s.t.(interface{ TempDir() string }).TempDir()}
	nstest.Veth(s.t, h.NS, "tap0", h.NS, "guest0")
	h.routes = watchRoutes(s.t, h.NS)
	h.log = newLines(h.name)
	s.hosts[h.name] = h
	return h
}

func resourcePath(kind api.Kind, name string) string { return api.Key{Kind: kind, Name: name}.Path() }

func (s *site) put(kind api.Kind, name, spec string) {
	doc := fmt.Sprintf(`{"kind":%q,"apiVersion":%q,"metadata":{"name":%q},"spec":%s}`, kind, api.APIVersion, name, spec)
	s.write(resourcePath(kind, name), json.RawMessage(doc))
}

func (s *site) remove(kind api.Kind, name string) { s.write(resourcePath(kind, name), nil) }

// write changes the stores of all speakers that run.
func (s *site) write(path string, value json.RawMessage) {
	s.t.Helper()
	if s.stored[path] = value; value == nil {
		delete(s.stored, path)
	}
	for _, h := range s.hosts {
		if h.cmd != nil {
			h.send(write{Path: path, Value: value})
		}
	}
}

func (h *host) send(w write) {
	h.site.t.Helper()
	b, err := json.Marshal(w)
	if err == nil {
		_, err = h.stdin.Write(append(b, '\n'))
	}
	if err != nil {
		h.site.t.Fatalf("%s: write to the store: %v", h.name, err)
	}
}

// start starts the host's speaker.
func (h *host) start() { h.startWith(write{}) }

// startWith starts the host's speaker after one more change of its store.
func (h *host) startWith(last write) {
	t := h.site.t
	t.Helper()
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Env = append(os.Environ(), hostEnv+"="+h.name, "TORTIE_BGP_TEST_RUN="+h.run, "TORTIE_BGP_TEST_DEFERRAL="+h.site.deferral)
	h.cmd.Stderr = h.log
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err == nil {
		err = h.Start(h.cmd)
	}
	if err != nil {
		t.Fatalf("%s: start: %v", h.name, err)
	}
	h.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(h.cmd, h.ended)
	t.Cleanup(func() {
		h.kill()
		h.log.checkCrash(t)
	})
	for path, value := range h.site.stored {
		h.send(write{Path: path, Value: value})
	}
	if last.Down {
		h.send(last)
	}
	h.send(write{Start: true})
}

// kill ends the speaker by SIGKILL.
func (h *host) kill() { h.end(syscall.SIGKILL) }

func (h *host) end(sig syscall.Signal) {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(sig)
	select {
	case <-h.ended:
	case <-time.After(5 * time.Second):
		h.site.t.Errorf("%s: the speaker does not end on %s", h.name, sig)
		_ = h.cmd.Process.Kill()
		<-h.ended
	}
	h.cmd = nil
}

// lines collects lines of text and lets one wait for them.
type lines struct {
	name string // to print each as it comes, if asked for

	mu   sync.Mutex
	all  []string
	rest string
	more chan struct{} // closed and replaced when there are more
}

// checkCrash fails the test if a speaker's output has a panic or a data race.
// One race is GoBGP's own and known: it marks the paths of a session that went
// down as stale while it reports them. Nothing here looks at that mark.
func (l *lines) checkCrash(t testing.TB) {
	text := l.complete()
	bad := strings.Contains(text, "panic:") || strings.Contains(text, "the process ends")
	for i, report := range strings.Split(text, "WARNING: DATA RACE") {
		known := strings.Contains(report, "(*Path).MarkStale") && strings.Contains(report, "(*Path).IsStale")
		bad = bad || i > 0 && !known
	}
	if bad {
		t.Errorf("%s printed:\n%s", l.name, text)
	}
}

// complete is all text, to the end of a report of a data race that is being
// printed.
func (l *lines) complete() string {
	deadline := time.After(5 * time.Second)
	for {
		l.mu.Lock()
		text, more := strings.Join(l.all, "\n"), l.more
		l.mu.Unlock()
		if strings.Count(text, "==================")%2 == 0 { // one before a report, one after it
			return text
		}
		select {
		case <-more:
		case <-deadline:
			return text
		}
	}
}

func newLines(name string) *lines { return &lines{name: name, more: make(chan struct{})} }

// Write makes lines a command's output.
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	split := strings.Split(l.rest+string(b), "\n")
	l.rest = split[len(split)-1]
	for _, line := range split[:len(split)-1] {
		l.all = append(l.all, line)
		if os.Getenv("TORTIE_BGP_TEST_LOG") != "" {
			fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().Format("05.000"), l.name, line)
		}
	}
	close(l.more)
	l.more = make(chan struct{})
	return len(b), nil
}

// count is how many lines contain all words.
func (l *lines) count(words ...string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.all {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// wait waits until cond holds; it looks again when there are more lines.
func (l *lines) wait(t testing.TB, what string, timeout time.Duration, cond func() bool) {
	t.Helper()
	deadline := time.After(timeout)
	for {
		l.mu.Lock()
		more := l.more
		l.mu.Unlock()
		if cond() {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%s: waited in vain for %s", timeout, what)
		}
	}
}

var bigBuffer = netlink.RouteSubscribeOptions{ReceiveBufferSize: 16 << 20, ReceiveBufferForceSize: true}

// watchRoutes collects the kernel's notifications of routes in a namespace, as
// lines like "Deleted 10.1.0.1 via 172.16.0.1".
func watchRoutes(t testing.TB, ns *nstest.NS) *lines {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	var err error
	ns.Do(func() { err = netlink.RouteSubscribeWithOptions(updates, done, bigBuffer) })
	if err != nil {
		t.Fatalf("%s: watch routes: %v", ns.Name, err)
	}
	m := newLines(ns.Name)
	go func() {
		for u := range updates {
			what := ""
			if u.Type == unix.RTM_DELROUTE {
				what = "Deleted "
			}
			dst := "default"
			if u.Dst != nil {
				dst = strings.TrimSuffix(strings.TrimSuffix(u.Dst.String(), "/32"), "/128")
			}
			_, _ = fmt.Fprintf(m, "%s%s via %s\n", what, dst, u.Gw)
		}
	}()
	t.Cleanup(func() { close(done) })
	return m
}

// local adds routes to workloads, as the agent does.
func (h *host) local(prefixes ...string) {
	for _, p := range prefixes {
		h.Run(h.site.t, "ip", "route", "add", p, "dev", "tap0", "proto", "80", "metric", "1024")
	}
}

func (h *host) delLocal(prefixes ...string) {
	for _, p := range prefixes {
		h.Run(h.site.t, "ip", "route", "del", p, "dev", "tap0", "proto", "80", "metric", "1024")
	}
}

var routeLine = regexp.MustCompile(`^(\S+)(?: nhid \d+)? via (\S+) dev eth0 .*metric 2048`)

// learned returns the learned routes in the host's kernel: prefix and gateway.
func (h *host) learned() map[string]string {
	got := map[string]string{}
	for _, fam := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.Run(h.site.t, "ip", fam, "route", "show", "proto", "81")) {
			if f := routeLine.FindStringSubmatch(line); f != nil {
				got[f[1]] = f[2]
			} else {
				h.site.t.Errorf("%s: a learned route of an unexpected form: %s", h.name, line)
			}
		}
	}
	return got
}

// want waits until the learned routes are exactly these.
func (h *host) want(want map[string]string) {
	h.site.t.Helper()
	var got map[string]string
	h.routes.wait(failLater{h.site.t, func() string { return fmt.Sprintf("; it has %v\n%s", got, h.peers()) }}, fmt.Sprintf("%s to have learned %v", h.name, want), settle, func() bool {
		got = h.learned()
		if len(got) != len(want) {
			return false
		}
		for p, via := range want {
			if got[p] != via {
				return false
			}
		}
		return true
	})
}

// failLater adds what is known at the time of the failure.
type failLater struct {
	testing.TB
	detail func() string
}

func (f failLater) Fatalf(format string, args ...any) {
	f.Helper()
	f.TB.Fatalf("%s%s", fmt.Sprintf(format, args...), f.detail())
}

// get asks the host's speaker.
func (h *host) get(path string) (int, string, error) {
	sock := filepath.Join(h.run, "bgp.sock")
	c := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sock)
		},
	}}
	r, err := c.Get("http://bgp" + path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

func (h *host) peers() string {
	_, body, err := h.get("/show/peers")
	return fmt.Sprint(body, err)
}

// metric reads one of the speaker's metrics.
func (h *host) metric(name string) float64 {
	h.site.t.Helper()
	status, body, err := h.get("/metrics")
	if err != nil || status != http.StatusOK {
		h.site.t.Fatalf("%s: metrics: %d %v", h.name, status, err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				h.site.t.Fatal(err)
			}
			return v
		}
	}
	h.site.t.Fatalf("%s: no metric %s", h.name, name)
	return 0
}
