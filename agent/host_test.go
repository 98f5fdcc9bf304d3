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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tortie/api"
	"tortie/config"
	"tortie/internal/nstest"
	"tortie/internal/socket"
	"tortie/store"
	"tortie/store/memory"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const timeout = 10 * time.Second

// testHost is a host in a namespace, with guests on veth and a store.
type testHost struct {
	t      *testing.T
	ns     *nstest.NS
	store  *memory.Memory
	runDir string
	guests int
	stop   func()
}

// guest is a workload: a namespace with one address of each family.
type guest struct {
	ns     *nstest.NS
	iface  string // on the host
	v4, v6 string
	key    api.Key
}

func newHost(t *testing.T) *testHost {
	return &testHost{t: t, ns: nstest.New(t), store: memory.New(), runDir: t.TempDir()}
}

// start runs the agent and returns when it is ready, if it is to be.
func (h *testHost) start(waitReady bool) {
	h.t.Helper()
	file := filepath.Join(h.runDir, "tortie.yaml")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	local, err := config.Load(file, []string{
		"FELIX_FELIXHOSTNAME=h1", "FELIX_ENDPOINTREPORTINGENABLED=true", "FELIX_RUNDIR=" + h.runDir,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var runErr error
	done := h.ns.Go(func() {
		for {
			runErr = Run(ctx, Options{Store: h.store, Local: local, Log: slog.New(slog.NewTextHandler(testWriter{h.t}, nil))})
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

// testWriter sends the agent's log to the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
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
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(timeout)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			h.t.Fatalf("waited %s for %s", timeout, what)
		}
	}
}

// put writes a document and returns the store's revision.
func (h *testHost) put(key api.Key, doc string) int64 {
	h.t.Helper()
	rev, err := h.store.Commit(context.Background(), store.Op{Path: key.Path(), Value: []byte(doc), If: store.AnyRevision})
	if err != nil {
		h.t.Fatal(err)
	}
	return rev
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
		v6:    fmt.Sprintf("fd00:65::%d", h.guests+1),
		key:   api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "test", Name: fmt.Sprintf("h1-openstack-w%d-eth0", h.guests)},
	}
	h.link(g)
	return g
}

// link plugs the guest in.
func (h *testHost) link(g *guest) {
	h.t.Helper()
	nstest.Veth(h.t, h.ns, g.iface, g.ns, "eth0")
	// A known address gives a known link-local one, the guest's gateway.
	h.ns.Run(h.t, "ip", "link", "set", g.iface, "down")
	h.ns.Run(h.t, "ip", "link", "set", g.iface, "address", "ee:ee:ee:ee:ee:ee", "up")
	for _, args := range []string{
		"addr add " + g.v4 + "/32 dev eth0",
		"route add 169.254.1.1 dev eth0 scope link",
		"route add default via 169.254.1.1 dev eth0",
		"addr add " + g.v6 + "/128 dev eth0 nodad",
		"-6 route add default via fe80::ecee:eeff:feee:eeee dev eth0",
	} {
		g.ns.Run(h.t, "ip", strings.Fields(args)...)
	}
}

// endpoint is the guest's document.
func (g *guest) endpoint(labels string) string {
	return fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":"test","labels":%s},`+
		`"spec":{"orchestrator":"openstack","workload":"w","node":"h1","endpoint":"eth0","interfaceName":%q,"ipNetworks":["%s/32","%s/128"]}}`,
		g.key.Name, labels, g.iface, g.v4, g.v6)
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
		entries, _, err := h.store.List(context.Background(), "/calico/felix/v2/no-region/host/h1/workload/")
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
