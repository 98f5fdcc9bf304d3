package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"tortie/agent"
	"tortie/api"
	"tortie/config"
	"tortie/explain"
	"tortie/internal/nstest"
	"tortie/internal/socket"
	"tortie/store"
	"tortie/store/memory"
)

// timeout bounds every wait; none is expected to come near it.
const timeout = 10 * time.Second

// SlotsPerHost is how many workloads a host can have.
const SlotsPerHost = 4

// slot is an interface of a host that a workload may have.
type slot struct {
	name   string // "h1/0"
	host   *host
	iface  string // on the host
	wire   link   // the workload's end
	mac    string
	v4, v6 []netip.Addr
}

// external is the address outside that a workload of the slot may have.
func (s *slot) external(v6 bool) netip.Addr {
	b := s.v4[0].As4()
	if v6 {
		b := s.v6[0].As16()
		b[14] = 1
		return netip.AddrFrom16(b)
	}
	b[3] += 200
	return netip.AddrFrom4(b)
}

// slots are those of a host.
func (h *host) slots(w *World) (list []*slot) {
	for _, s := range w.slots {
		if s.host == h {
			list = append(list, s)
		}
	}
	return list
}

// host is one under an agent.
type host struct {
	t      testing.TB
	name   string
	ns     *nstest.NS
	v4, v6 netip.Addr   // of eth0, by which the hosts are linked
	more   []netip.Addr // of eth1, by which it is linked to the outside; other hosts have no route to them
	beyond link         // the outside's end of eth1
	runDir string
	raws   []raw
	send4  int
	send6  int
	log    logBuffer
	stop   func() // the agent
}

func (h *host) addrs() []netip.Addr { return append([]netip.Addr{h.v4, h.v6}, h.more...) }

// logBuffer keeps an agent's log for when it is asked for.
type logBuffer struct {
	sync.Mutex
	bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	if l.Len() > 1<<20 {
		l.Reset()
	}
	return l.Buffer.Write(p)
}

// World is two hosts with their agents, and a cluster.
type World struct {
	t       testing.TB
	data    *memory.Memory
	hosts   []*host
	slots   []*slot
	outside *nstest.NS
	wire    int // a socket for frames of all links of outside
	frame   []byte
	places  map[int]string // names of links of outside, by index
	nextID  uint32
	fence   Packet
	relayed link // that the fence is sent by

	objects map[api.Key]json.RawMessage
	cluster *explain.Cluster
	at      map[string]*api.WorkloadEndpoint // the endpoint of each slot
	owner   map[netip.Addr]string            // the host of each host's address
}

// New builds the hosts and starts their agents. The test must run in a
// binary whose TestMain is nstest.Main.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, data: memory.New(), outside: nstest.Create(t), frame: make([]byte, 65536), places: map[int]string{}, nextID: 1}
	w.outside.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	for n := range 2 {
		w.hosts = append(w.hosts, w.newHost(n+1))
	}
	w.link()
	w.relay()
	w.openWire()
	w.clear()
	w.Apply(base()...)
	for _, h := range w.hosts {
		h.openRaw()
		h.start(w.data.Client())
	}
	if err := w.settle(1); err != nil {
		t.Fatal(err)
	}
	return w
}

// base is what every cluster has.
func base() []Change {
	return []Change{
		put(`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000}}`),
		put(`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1"},"spec":{"bgp":{"ipv4Address":"192.0.2.1/24","ipv6Address":"2001:db8::1/64"}}}`),
		put(`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"h2"},"spec":{"bgp":{"ipv4Address":"192.0.2.2/24","ipv6Address":"2001:db8::2/64"}}}`),
		put(setting("node.h1", `"defaultEndpointToHostAction":"Return"`)),
		put(setting("node.h2", `"defaultEndpointToHostAction":"Drop"`)),
		put(setting("default", `"workloadSourceSpoofing":"Any"`)),
		put(`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`),
	}
}

func put(doc string) Change { return Change{Put: json.RawMessage(doc)} }

// setting is configuration of a host, or of all.
func setting(name, spec string) string {
	return fmt.Sprintf(`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{%s}}`, name, spec)
}

func (w *World) newHost(n int) *host {
	h := &host{
		t: w.t, name: fmt.Sprintf("h%d", n), ns: nstest.Create(w.t), runDir: w.t.TempDir(),
		v4: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)),
		more: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:71::%d", n))},
	}
	h.ns.Run(w.t, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.default.accept_dad=0")
	for k := range SlotsPerHost {
		s := &slot{
			name: fmt.Sprintf("%s/%d", h.name, k), host: h, iface: fmt.Sprintf("cali%d", k),
			wire: link{name: fmt.Sprintf("%sw%d", h.name, k)}, mac: fmt.Sprintf("02:00:00:00:%02x:%02x", n, k),
		}
		for i := range 4 {
			s.v4 = append(s.v4, netip.AddrFrom4([4]byte{10, 65, byte(n), byte(4*k + i)}))
			s.v6 = append(s.v6, netip.MustParseAddr(fmt.Sprintf("fd00:65:%d::%x", n, 4*k+i)))
		}
		w.slots = append(w.slots, s)
		batch(w.t, h.ns,
			"link add "+s.iface+" address "+hostMAC+" type veth peer name "+s.wire.name+" address "+s.mac+" netns "+w.outside.Name,
			"link set "+s.iface+" arp off up") // nobody answers for addresses in ranges, or says their MAC
		batch(w.t, w.outside, "link set "+s.wire.name+" arp off up")
	}
	return h
}

const (
	hostMAC  = "ee:ee:ee:ee:ee:ee" // of the hosts' ends of workloads' links
	fenceNet = "203.0.113.77"
)

// link links the hosts to each other by eth0, and to the outside by eth1. All
// neighbours are known, so that no packet waits.
func (w *World) link() {
	a, b := w.hosts[0], w.hosts[1]
	batch(w.t, a.ns, "link add eth0 address 02:00:00:01:00:01 type veth peer name eth0 address 02:00:00:01:00:02 netns "+b.ns.Name)
	for i, h := range w.hosts {
		other := w.hosts[1-i]
		h.beyond = link{name: fmt.Sprintf("outside%d", i+1)}
		mac := fmt.Sprintf("02:00:00:02:00:0%d", i+1)
		far := fmt.Sprintf("02:00:00:01:00:0%d", 2-i)
		batch(w.t, h.ns,
			"link add eth1 address "+hostMAC+" type veth peer name "+h.beyond.name+" address "+mac+" netns "+w.outside.Name,
			"link set eth0 up", "link set eth1 up",
			"addr add "+h.v4.String()+"/24 dev eth0", "addr add "+h.v6.String()+"/64 dev eth0 nodad",
			"addr add "+h.more[0].String()+"/32 dev eth1", "addr add "+h.more[1].String()+"/128 dev eth1 nodad",
			"neigh add "+other.v4.String()+" lladdr "+far+" dev eth0 nud permanent",
			"neigh add "+other.v6.String()+" lladdr "+far+" dev eth0 nud permanent",
			"neigh add 198.51.100.1 lladdr "+mac+" dev eth1 nud permanent",
			"neigh add fe80::1 lladdr "+mac+" dev eth1 nud permanent",
			fmt.Sprintf("route add 10.65.%d.0/24 via %s", 2-i, other.v4),
			fmt.Sprintf("route add fd00:65:%d::/64 via %s", 2-i, other.v6),
			"route add default via 198.51.100.1 dev eth1 onlink",
			"route add ::/0 via fe80::1 dev eth1")
		batch(w.t, w.outside, "link set "+h.beyond.name+" arp off up")
	}
}

// relay makes a way from outside to outside that is as long as the longest of
// packets, past two hosts, without being up to what is tested.
func (w *World) relay() {
	near, far := nstest.Create(w.t), nstest.Create(w.t)
	batch(w.t, near,
		"link add in address "+hostMAC+" type veth peer name fence netns "+w.outside.Name,
		"link add out type veth peer name in address "+hostMAC+" netns "+far.Name,
		"link set in up", "link set out up", "route add "+fenceNet+" dev out",
		"neigh add "+fenceNet+" lladdr "+hostMAC+" dev out nud permanent")
	batch(w.t, far,
		"link add out type veth peer name fenced netns "+w.outside.Name,
		"link set in up", "link set out up", "route add "+fenceNet+" dev out",
		"neigh add "+fenceNet+" lladdr "+hostMAC+" dev out nud permanent")
	batch(w.t, w.outside, "link set fence arp off up", "link set fenced arp off up")
	for _, ns := range []*nstest.NS{near, far} {
		ns.Run(w.t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.in.rp_filter=0")
	}
	w.fence = Packet{From: "fence", Packet: explain.Packet{Src: netip.MustParseAddr("198.51.100.99"), Dst: netip.MustParseAddr(fenceNet), Protocol: 17, SrcPort: 1, DstPort: 1}}
}

// batch has ip run commands in a namespace.
func batch(t testing.TB, ns *nstest.NS, commands ...string) {
	t.Helper()
	ns.Run(t, "sh", "-c", "printf '"+strings.Join(commands, "\\n")+"\\n' | ip -batch -")
}

// start runs the host's agent until the test ends.
func (h *host) start(s store.Store) {
	local, err := config.Load("", []string{
		"FELIX_FELIXHOSTNAME=" + h.name, "FELIX_RUNDIR=" + h.runDir,
		"FELIX_ENDPOINTREPORTINGENABLED=false", "FELIX_ENDPOINTTOHOSTPACKETRATE=0",
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var runErr error
	done := h.ns.Go(func() {
		for {
			runErr = agent.Run(ctx, agent.Options{Store: s, Local: local, Log: slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelError}))})
			if runErr != agent.ErrConfigChanged { //nolint:errorlint // returned as it is
				return
			}
		}
	})
	h.stop = func() {
		cancel()
		<-done
	}
	h.t.Cleanup(func() {
		h.stop()
		if runErr != nil {
			h.t.Errorf("agent of %s: %v", h.name, runErr)
		}
		if h.t.Failed() {
			h.log.Lock()
			h.t.Logf("agent of %s says\n%s", h.name, tail(h.log.String(), 4000))
			h.log.Unlock()
		}
	})
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// settle waits until both agents enforce a revision.
func (w *World) settle(revision int64) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, h := range w.hosts {
		var health struct {
			Ready           bool
			AppliedRevision int64
			Failure         string
		}
		for {
			body, err := socket.Get(ctx, socket.Path(h.runDir, "agent"), "/health")
			if err == nil {
				health.Failure = "" // it is left out where there is none
				err = json.Unmarshal(body, &health)
			}
			if err == nil && health.Ready && health.AppliedRevision >= revision {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("waited %s for %s to apply revision %d: %s", timeout, h.name, revision, health.Failure)
			}
		}
	}
	return nil
}

// clear empties what is known of the cluster.
func (w *World) clear() {
	w.objects, w.cluster = map[api.Key]json.RawMessage{}, explain.New()
	w.at, w.owner = map[string]*api.WorkloadEndpoint{}, map[netip.Addr]string{}
	for _, h := range w.hosts {
		for _, a := range h.addrs() {
			w.owner[a] = h.name
		}
	}
}

// Change changes the cluster and waits until both agents enforce it. The error
// is that one does not.
func (w *World) Change(changes ...Change) error {
	w.t.Helper()
	rev := w.Apply(changes...)
	if rev == 0 {
		return nil
	}
	if err := w.settle(rev); err != nil {
		return err
	}
	return w.hear()
}

// hear waits until each host says which addresses it has, if an endpoint of it
// depends on that, and until both agents have heard it.
func (w *World) hear() error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, h := range w.hosts {
		key := api.Key{Kind: api.KindHostAddresses, Name: h.name}
		for {
			list, _, err := w.data.List(ctx, key.Path())
			if err != nil {
				return fmt.Errorf("read what %s says: %w", h.name, err)
			}
			if w.depends(h.name) == (len(list) == 1) {
				if err := w.heard(key, list); err != nil {
					return err
				}
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("waited %s for what %s says of its addresses: there is %d", timeout, h.name, len(list))
			}
		}
	}
	return nil
}

// heard takes over what a host says, if anything.
func (w *World) heard(key api.Key, list []store.Entry) error {
	w.cluster.Delete(key)
	if len(list) == 0 {
		return nil
	}
	obj, _, err := api.DecodeKey(key, list[0].Value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	w.cluster.Put(obj)
	return w.settle(list[0].Revision)
}

// depends says whether an endpoint of a host is known by what the host says.
func (w *World) depends(host string) bool {
	return w.anyEndpoint(func(at string, i explain.Interface) bool { return at == host && len(i.Addrs) == 0 })
}

// Apply changes the cluster and returns the store's last revision.
func (w *World) Apply(changes ...Change) (revision int64) {
	w.t.Helper()
	for _, c := range changes {
		key, err := c.key()
		if err != nil {
			w.t.Fatal(err)
		}
		op := store.Op{Path: key.Path(), If: store.AnyRevision}
		if c.Put == nil {
			if _, ok := w.objects[key]; !ok {
				continue
			}
			op.Delete = true
			delete(w.objects, key)
			w.forget(key)
		} else {
			obj, _, err := api.DecodeKey(key, c.Put)
			if err != nil {
				w.t.Fatalf("%s: %v", c.Put, err)
			}
			op.Value = c.Put
			w.forget(key)
			w.objects[key] = c.Put
			w.learn(obj)
		}
		if revision, err = w.data.Commit(context.Background(), op); err != nil {
			w.t.Fatal(err)
		}
	}
	return revision
}

func (w *World) forget(key api.Key) {
	if s := slotOf(key); s != "" {
		delete(w.at, s)
	}
	w.cluster.Delete(key)
}

func (w *World) learn(obj api.Object) {
	w.cluster.Put(obj)
	if e, ok := obj.(*api.WorkloadEndpoint); ok {
		w.at[slotOf(e.Key())] = e
	}
}

// place is where what is sent to an address arrives, if nothing is in the way.
func (w *World) place(a netip.Addr) string {
	if h := w.owner[a]; h != "" {
		return h
	}
	if keys := w.cluster.Owners(a); len(keys) > 0 {
		return slotOf(keys[0])
	}
	return Outside
}

// anyEndpoint says whether there is one of a host, by what it is about.
func (w *World) anyEndpoint(is func(host string, i explain.Interface) bool) bool {
	for key := range w.objects {
		if at, i, ok := w.cluster.Interface(key); ok && is(at, i) {
			return true
		}
	}
	return false
}

// slotOf is the slot of an endpoint by its name.
func slotOf(key api.Key) string {
	n, err := api.ParseWorkloadName(key.Name)
	if key.Kind != api.KindWorkloadEndpoint || err != nil {
		return ""
	}
	return n.Node + "/" + n.Workload
}

// Reset brings the cluster back to nothing.
func (w *World) Reset() error {
	w.t.Helper()
	var changes []Change
	for key := range w.objects {
		changes = append(changes, Change{Delete: deletion(key)})
	}
	keep := base()
	for _, c := range keep {
		key, _ := c.key()
		for i := range changes {
			if changes[i].Delete == deletion(key) {
				changes[i] = c
			}
		}
	}
	return w.Change(changes...)
}

// pinned runs f on one processor.
func pinned(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer pin(t)()
	f()
}
