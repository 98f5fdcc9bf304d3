package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"tortie/api"
	"tortie/config"
	"tortie/internal/nstest"
	"tortie/internal/socket"
	"tortie/store"
	"tortie/store/memory"
)

func TestMain(m *testing.M) {
	if os.Getenv(processEnv) != "" {
		fmt.Fprintln(os.Stderr, agentProcess())
		os.Exit(1)
	}
	nstest.Main(m)
}

const timeout = 10 * time.Second

// testHost is a host in a namespace, with guests on veth and a store.
type testHost struct {
	t      *testing.T
	name   string
	ns     *nstest.NS
	store  store.Store    // the test's own handle
	link   *memory.Memory // the agent's: Disconnect is of this one
	given  store.Store    // what the agent is given, link if nothing else
	env    []string       // more variables for its configuration
	runDir string
	guests int

	verifier func() (Verifier, error) // of audits, nil for none

	stop   func()
	logged struct {
		sync.Mutex
		lines []string
	}
}

// guest is a workload: a namespace with one address of each family.
type guest struct {
	ns     *nstest.NS
	iface  string // on the host
	v4, v6 string
	mac    string
	key    api.Key
	called map[int]string // what others connect to, by family; nothing: its addresses
}

// hostMAC is that of the host's end of every guest's link.
const hostMAC = "ee:ee:ee:ee:ee:ee"

var families = []int{4, 6}

func (g *guest) addr(family int) string {
	if family == 4 {
		return g.v4
	}
	return g.v6
}

// dialled is the address that others connect to.
func (g *guest) dialled(family int) string {
	if a, ok := g.called[family]; ok {
		return a
	}
	return g.addr(family)
}

func newHost(t *testing.T) *testHost {
	data := memory.New()
	h := &testHost{t: t, name: "h1", ns: nstest.New(t), store: data, link: data.Client(), runDir: t.TempDir()}
	h.given = h.link
	return h
}

// start runs the agent and returns when it is ready, if it is to be.
func (h *testHost) start(waitReady bool) {
	h.t.Helper()
	local, err := config.Load("", h.environ())
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var runErr error
	done := h.ns.Go(func() {
		for {
			runErr = Run(ctx, Options{Store: h.given, Local: local, Log: slog.New(slog.NewTextHandler(h, nil)), Verifier: h.verifier})
			if runErr != ErrConfigChanged { //nolint:errorlint // returned as it is
				return
			}
		}
	})
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		<-done
		if runErr != nil {
			h.t.Errorf("agent: %v", runErr)
		}
	}
	h.t.Cleanup(h.stop)
	if waitReady {
		h.await("the agent to be ready", func() bool { return h.health().Ready })
	}
}

// environ is the agent's configuration.
func (h *testHost) environ() []string {
	return append([]string{
		"FELIX_FELIXHOSTNAME=" + h.name, "FELIX_RUNDIR=" + h.runDir,
		"FELIX_ENDPOINTREPORTINGENABLED=true", "FELIX_ENDPOINTREPORTINGDELAYSECS=0.05",
	}, h.env...)
}

// Write takes a line of the agent's log.
func (h *testHost) Write(p []byte) (int, error) {
	h.t.Helper()
	h.t.Log(strings.TrimSpace(string(p)))
	h.logged.Lock()
	defer h.logged.Unlock()
	h.logged.lines = append(h.logged.lines, string(p))
	return len(p), nil
}

// said counts the lines of the agent's log that have a text.
func (h *testHost) said(text string) (n int) {
	h.logged.Lock()
	defer h.logged.Unlock()
	for _, l := range h.logged.lines {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

func (h *testHost) show(page string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	body, err := socket.Get(ctx, socket.Path(h.runDir, "agent"), page)
	return string(body), err
}

func (h *testHost) health() healthReport {
	var r healthReport
	if body, err := h.show("/health"); err == nil {
		_ = json.Unmarshal([]byte(body), &r)
	}
	return r
}

// await asks until cond holds, and fails the test at the time-out.
func (h *testHost) await(what string, cond func() bool) {
	h.t.Helper()
	h.awaitFor(timeout, what, cond)
}

func (h *testHost) awaitFor(limit time.Duration, what string, cond func() bool) {
	h.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	over := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-over:
			h.t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

// put writes a document and returns the store's revision.
func (h *testHost) put(key api.Key, doc string) int64 {
	h.t.Helper()
	rev, err := h.write(key, doc)
	if err != nil {
		h.t.Fatal(err)
	}
	return rev
}

// write is put for other goroutines than the test's.
func (h *testHost) write(key api.Key, doc string) (int64, error) {
	return h.store.Commit(context.Background(), store.Op{Path: key.Path(), Value: []byte(doc), If: store.AnyRevision})
}

func (h *testHost) delete(key api.Key) int64 {
	h.t.Helper()
	rev, err := h.store.Commit(context.Background(), store.Op{Path: key.Path(), Delete: true, If: store.AnyRevision})
	if err != nil {
		h.t.Fatal(err)
	}
	return rev
}

// settle waits until the kernel enforces a revision.
func (h *testHost) settle(rev int64) {
	h.t.Helper()
	h.await(fmt.Sprintf("revision %d to be applied", rev), func() bool { return h.health().AppliedRevision >= rev })
}

// init makes the datastore ready.
func (h *testHost) init() int64 {
	h.t.Helper()
	h.put(api.Key{Kind: api.KindTier, Name: "default"}, `{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000}}`)
	return h.put(api.Key{Kind: api.KindClusterInformation, Name: "default"},
		`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`)
}

// guest makes a workload's namespace and link; its endpoint is not in the
// store yet.
func (h *testHost) guest() *guest {
	h.t.Helper()
	h.guests++
	g := &guest{
		ns:    nstest.Create(h.t),
		iface: fmt.Sprintf("cali%d", h.guests),
		v4:    fmt.Sprintf("10.65.0.%d", h.guests+1),
		v6:    fmt.Sprintf("fd00:65::%x", h.guests+1),
		mac:   fmt.Sprintf("02:00:00:00:00:%02x", h.guests+1),
		key:   api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "test", Name: fmt.Sprintf("%s-openstack-w%d-eth0", h.name, h.guests)},
	}
	h.plug(g)
	return g
}

// plug links the guest to the host. The host's end has a known address, and
// with it a known link-local one, the guest's gateway.
func (h *testHost) plug(g *guest) {
	h.t.Helper()
	h.batch(h.ns,
		"link add "+g.iface+" address "+hostMAC+" type veth peer name eth0 address "+g.mac+" netns "+g.ns.Name,
		"link set "+g.iface+" up")
	h.batch(g.ns,
		"link set eth0 up",
		"addr add "+g.v4+"/32 dev eth0",
		"addr add "+g.v6+"/128 dev eth0 nodad",
		"route add 169.254.1.1 dev eth0 scope link",
		"route add default via 169.254.1.1 dev eth0",
		"route add ::/0 via fe80::ecee:eeff:feee:eeee dev eth0")
}

// batch has ip run commands in a namespace.
func (h *testHost) batch(ns *nstest.NS, commands ...string) {
	h.t.Helper()
	ns.Run(h.t, "sh", "-c", "printf '"+strings.Join(commands, "\\n")+"\\n' | ip -batch -")
}

// endpoint is the guest's document, with any MAC.
func (g *guest) endpoint(labels string) string {
	node, _, _ := strings.Cut(g.key.Name, "-")
	return fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":"test","labels":%s},`+
		`"spec":{"orchestrator":"openstack","workload":"w","node":%q,"endpoint":"eth0","interfaceName":%q,"ipNetworks":["%s/32","%s/128"]}}`,
		g.key.Name, labels, node, g.iface, g.v4, g.v6)
}

// bound is the same with its MAC.
func (g *guest) bound(labels string) string {
	return strings.Replace(g.endpoint(labels), `"interfaceName"`, fmt.Sprintf(`"mac":%q,"interfaceName"`, g.mac), 1)
}

// serve answers TCP on port 80 of both families until the test ends.
func (h *testHost) serve(g *guest) {
	h.t.Helper()
	var listeners []net.Listener
	var err error
	g.ns.Do(func() {
		for _, addr := range []string{g.v4, g.v6} {
			var l net.Listener
			if l, err = net.Listen("tcp", net.JoinHostPort(addr, "80")); err != nil {
				return
			}
			listeners = append(listeners, l)
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range listeners {
		h.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	}
}

// dial connects from a guest; it keeps trying for as long as limit.
func (g *guest) dial(to string, limit time.Duration) (c net.Conn, err error) {
	g.ns.Do(func() {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(to, "80"), limit)
	})
	return c, err
}

// reaches fails the test unless from reaches to over both families.
func (h *testHost) reaches(from, to *guest) {
	h.t.Helper()
	for _, addr := range []string{to.v4, to.v6} {
		c, err := from.dial(addr, timeout)
		if err != nil {
			h.t.Fatalf("%s does not reach %s: %v", from.v4, addr, err)
		}
		_ = c.Close()
	}
}

// refused fails the test if a connection comes about.
func (h *testHost) refused(from, to *guest) {
	h.t.Helper()
	for _, addr := range []string{to.v4, to.v6} {
		if c, err := from.dial(addr, 300*time.Millisecond); err == nil {
			_ = c.Close()
			h.t.Fatalf("%s reaches %s", from.v4, addr)
		}
	}
}

// watchKernel counts what the kernel announces of nftables, routes and
// neighbours from now on; the function that it returns ends it and says what.
func (h *testHost) watchKernel() func() string {
	h.t.Helper()
	cmd := exec.Command("nft", "monitor")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = h.ns.Start(cmd)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	// The monitor is listening when it shows this table.
	mark := func(verb string) { h.ns.Run(h.t, "nft", verb, "table", "ip", "sentry") }
	mark("add")
	for {
		select {
		case l := <-lines:
			if strings.Contains(l, "sentry") {
				return func() string {
					mark("delete")
					var seen []string
					for l := range lines {
						if strings.Contains(l, "delete table ip sentry") {
							break
						}
						if !strings.HasPrefix(l, "# new generation") && !strings.HasSuffix(l, "table ip sentry") {
							seen = append(seen, l)
						}
					}
					_ = cmd.Process.Kill()
					for range lines {
						continue
					}
					_ = cmd.Wait()
					return strings.Join(seen, "\n")
				}
			}
		case <-time.After(20 * time.Millisecond):
			mark("delete")
			mark("add")
		}
	}
}

// statusOf returns a reader of the endpoint's status key.
func (h *testHost) statusOf(g *guest) func() string {
	return func() string {
		entries, _, err := h.store.List(context.Background(), "/calico/felix/v2/no-region/host/"+h.name+"/workload/")
		if err != nil {
			h.t.Fatal(err)
		}
		id := strings.Split(g.key.Name, "-")
		for _, e := range entries {
			if strings.Contains(e.Path, "%2f"+id[2]+"/") {
				return string(e.Value)
			}
		}
		return ""
	}
}
