package lab

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"tortie/api"
	"tortie/store"
)

// Shape is what a lab is to have.
type Shape struct {
	Hosts     int // named host-1, host-2, …
	Workloads []WorkloadSpec
	// Routed makes the fabric a router, with a network of its own to each
	// host and a default route back, instead of a bridge. It has no routes to
	// workloads: what speaks BGP there is the caller's to start.
	Routed bool
}

// WorkloadSpec describes a workload to add.
type WorkloadSpec struct {
	Name     string
	Host     string
	Labels   map[string]string
	Profiles []string
	// Namespace of the endpoint in the datastore; "": default.
	Namespace string
}

// hostSideMAC is that of every workload's interface on its host, so that a
// workload knows its IPv6 gateway, hostSideIPv6, beforehand.
const (
	hostSideMAC  = "ee:ee:ee:ee:ee:ee"
	hostSideIPv6 = "fe80::ecee:eeff:feee:eeee"
	hostSideIPv4 = "169.254.1.1"
)

// DefaultWorkloads returns perHost workloads for each of the hosts: web-1,
// app-1, db-1, web-2, …, labelled role=web and so on, those of one role on
// different hosts. Their profile allows everything until a policy selects them.
func DefaultWorkloads(hosts, perHost int) []WorkloadSpec {
	roles := []string{"web", "app", "db"}
	var out []WorkloadSpec
	for i := range hosts * perHost {
		role := roles[i%len(roles)]
		out = append(out, WorkloadSpec{
			Name:     fmt.Sprintf("%s-%d", role, i/len(roles)+1),
			Host:     hostName((i+i/hosts)%hosts + 1),
			Labels:   map[string]string{"role": role},
			Profiles: []string{api.DefaultAllowProfile},
		})
	}
	return out
}

func hostName(number int) string { return fmt.Sprintf("host-%d", number) }

// Up makes a lab and returns when its processes run and its datastore answers.
// If it fails or is interrupted, it takes back what it did.
func Up(ctx context.Context, opts Options, shape Shape) (*Lab, error) {
	if err := opts.normalise(); err != nil {
		return nil, err
	}
	if shape.Hosts < 1 || shape.Hosts > maxHosts {
		return nil, fmt.Errorf("make lab %s: %d hosts; want 1 to %d", opts.Name, shape.Hosts, maxHosts)
	}
	perHost := map[string]int{}
	for _, w := range shape.Workloads {
		if perHost[w.Host]++; perHost[w.Host] > maxPerHost {
			return nil, fmt.Errorf("make lab %s: %s has more than %d workloads", opts.Name, w.Host, maxPerHost)
		}
	}
	binary, err := filepath.Abs(opts.Binary)
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		return nil, fmt.Errorf("make lab %s: the binary: %w", opts.Name, err)
	}
	opts.Binary = binary
	l := &Lab{opts: opts, state: state{Name: opts.Name, Binary: binary, Routed: shape.Routed}}
	if err := l.claim(); err != nil {
		return nil, fmt.Errorf("make lab %s: %w", opts.Name, err)
	}
	if err := l.build(ctx, shape); err != nil {
		err = fmt.Errorf("make lab %s: %w", opts.Name, err)
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// claim makes the state directory, which must not be there.
func (l *Lab) claim() error {
	if err := os.MkdirAll(filepath.Dir(l.opts.Dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(l.opts.Dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("there is one already in %s", l.opts.Dir)
		}
		return err
	}
	return l.save()
}

func (l *Lab) build(ctx context.Context, shape Shape) error {
	l.step("fabric: a %s in namespace %s", map[bool]string{false: "bridge", true: "router"}[shape.Routed], l.fabric())
	if err := l.buildFabric(); err != nil {
		return err
	}
	for i := range shape.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.buildHost(i + 1); err != nil {
			return err
		}
	}
	if err := l.startDatastore(ctx); err != nil {
		return err
	}
	for _, h := range l.state.Hosts {
		if err := l.register(ctx, h); err != nil {
			return err
		}
		for _, p := range Processes() {
			if err := l.Start(h.Name, p); err != nil {
				return err
			}
		}
		l.step("%s: %s and %s on the fabric, agent and bgp started", h.Name, h.IPv4, h.IPv6)
	}
	for _, w := range shape.Workloads {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.AddWorkload(ctx, w); err != nil {
			return err
		}
	}
	return l.WaitHealthy(ctx)
}

// newNamespace records a namespace and makes it.
func (l *Lab) newNamespace(of string) error {
	l.state.Namespaces = append(l.state.Namespaces, l.namespace(of))
	if err := l.save(); err != nil {
		return err
	}
	return createNamespace(l.namespace(of))
}

const bridgeName = "br0"

func (l *Lab) buildFabric() error {
	if err := os.Mkdir(l.RunDir(fabricName), 0o700); err != nil {
		return err
	}
	config := fmt.Sprintf("InterfacePrefix: cali\nEtcdEndpoints: %s\n", storeURL())
	if err := os.WriteFile(l.configFile(), []byte(config), 0o600); err != nil {
		return err
	}
	if err := l.newNamespace(fabricName); err != nil {
		return err
	}
	if l.state.Routed {
		forward := map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
		store := end{namespace: l.fabric(), link: "lo", addrs: []string{storeAddress.String() + "/32"}}
		return errors.Join(setSysctls(l.fabric(), forward), raise(store, ""))
	}
	h, ns, err := linkHandle(l.fabric())
	if err != nil {
		return err
	}
	defer h.Close()
	defer func() { _ = ns.Close() }()
	snoop := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}, MulticastSnooping: &snoop}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", bridgeName, l.fabric(), err)
	}
	addr := netip.PrefixFrom(storeAddress, fabric4Bits).String()
	return raiseWith(h, end{link: bridgeName, addrs: []string{addr}}, "", nil)
}

func (l *Lab) buildHost(number int) error {
	h := Host{Name: hostName(number), Number: number}
	net4, net6 := l.state.fabricNets(number)
	h.IPv4, h.IPv6 = net4.Addr(), net6.Addr()
	l.state.Hosts = append(l.state.Hosts, h)
	if err := os.Mkdir(l.RunDir(h.Name), 0o700); err != nil {
		return err
	}
	if err := l.newNamespace(h.Name); err != nil {
		return err
	}
	port := end{namespace: l.fabric(), link: h.Name}
	uplink := end{namespace: l.namespace(h.Name), link: "eth0", addrs: []string{net4.String(), net6.String()}}
	if err := connect(port, uplink); err != nil {
		return err
	}
	if !l.state.Routed {
		return errors.Join(raise(port, bridgeName), raise(uplink, ""))
	}
	router4, router6 := routerAddresses(net4, net6)
	port.addrs = []string{netip.PrefixFrom(router4, net4.Bits()).String(), netip.PrefixFrom(router6, net6.Bits()).String()}
	return errors.Join(raise(port, ""), raise(uplink, "", router4.String(), router6.String()))
}

const startTimeout = 60 * time.Second

// startDatastore starts etcd and makes it that of a site.
func (l *Lab) startDatastore(ctx context.Context) error {
	l.step("datastore: etcd on %s", storeURL())
	if err := l.Start(fabricName, Datastore); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	address := fmt.Sprintf("%s:%d", storeAddress, storePort)
	err := l.poll(ctx, fabricName, Datastore, func() error {
		c, err := dialIn(ctx, l.fabric(), "tcp", address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return fmt.Errorf("wait for the datastore: %w", err)
	}
	out, err := l.Output(ctx, fabricName, l.opts.Binary, "init", "--config", l.configFile())
	if err != nil {
		return fmt.Errorf("make the datastore that of a site: %w: %s", err, out)
	}
	return nil
}

// poll calls ready until it has no error, as long as the process that it waits
// for is alive. Nothing tells when such a process is ready.
func (l *Lab) poll(ctx context.Context, host, process string, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if !l.Running(host, process) {
			return fmt.Errorf("%s of %s has ended; it wrote:\n%s", process, host, l.lastLines(host, process))
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// lastLines is the end of what a process wrote.
func (l *Lab) lastLines(host, process string) string {
	b, err := os.ReadFile(l.LogFile(host, process))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// register writes the Node of a host.
func (l *Lab) register(ctx context.Context, h Host) error {
	net4, net6 := l.state.fabricNets(h.Number)
	_, err := l.Put(ctx, &api.Node{
		Kind: api.KindNode, Meta: api.Meta{Name: h.Name},
		Spec: api.NodeSpec{BGP: &api.NodeBGP{
			IPv4Address: net4.String(),
			IPv6Address: net6.String(),
		}},
	})
	return err
}

// Put writes objects to the datastore, whatever is there, one transaction
// each. It returns the revision of the last.
func (l *Lab) Put(ctx context.Context, objects ...api.Object) (int64, error) {
	s, err := l.Store()
	if err != nil {
		return 0, err
	}
	var revision int64
	for _, o := range objects {
		api.Prepare(o, time.Now(), newUID())
		value, err := api.Encode(o)
		if err == nil {
			revision, err = s.Commit(ctx, store.Op{Path: o.Key().Path(), Value: value, If: store.AnyRevision})
		}
		if err != nil {
			return 0, fmt.Errorf("write %v: %w", o.Key(), err)
		}
	}
	return revision, nil
}

func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// AddWorkload makes a workload: its namespace, its link to its host, and its
// endpoint in the datastore.
func (l *Lab) AddWorkload(ctx context.Context, spec WorkloadSpec) error {
	w, err := l.plan(spec)
	if err != nil {
		return fmt.Errorf("add workload %q: %w", spec.Name, err)
	}
	l.state.Workloads = append(l.state.Workloads, w)
	if err := l.newNamespace(w.Name); err != nil {
		return err
	}
	// A workload's addresses are known to be its own.
	if err := setSysctls(l.namespace(w.Name), map[string]string{"net/ipv6/conf/default/accept_dad": "0"}); err != nil {
		return err
	}
	hostSide := end{namespace: l.namespace(w.Host), link: w.Interface, mac: hostSideMAC}
	inside := end{namespace: l.namespace(w.Name), link: "eth0", mac: w.mac(), addrs: []string{w.IPv4.String() + "/32", w.IPv6.String() + "/128"}}
	if err := connect(hostSide, inside); err != nil {
		return err
	}
	if err := errors.Join(raise(hostSide, ""), raise(inside, "", hostSideIPv4, hostSideIPv6)); err != nil {
		return err
	}
	if _, err := l.Put(ctx, w.endpoint(spec)); err != nil {
		return err
	}
	l.step("%s: %s and %s on %s, labels %s", w.Name, w.IPv4, w.IPv6, w.Host, cmp.Or(labelText(spec.Labels), "-"))
	return nil
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, name+"="+labels[name])
	}
	return strings.Join(parts, ",")
}

// plan gives a workload its number and addresses.
func (l *Lab) plan(spec WorkloadSpec) (Workload, error) {
	h, err := l.host(spec.Host)
	if err != nil {
		return Workload{}, err
	}
	if _, err := l.host(spec.Name); err == nil || spec.Name == fabricName || !goodName.MatchString(spec.Name) {
		return Workload{}, errors.New("want a name of lower-case letters, digits and dashes that no host has")
	}
	if _, err := l.workload(spec.Name); err == nil {
		return Workload{}, errors.New("there is one of this name")
	}
	used := map[int]bool{}
	for _, w := range l.state.Workloads {
		used[w.Number] = used[w.Number] || w.Host == h.Name
	}
	number := 1
	for used[number] {
		number++
	}
	if number > maxPerHost {
		return Workload{}, fmt.Errorf("%s has %d workloads already", h.Name, maxPerHost)
	}
	w := Workload{Name: spec.Name, Host: h.Name, Number: number, Interface: fmt.Sprintf("cali%02x%02x", h.Number, number)}
	w.IPv4, w.IPv6 = workloadAddresses(h.Number, number)
	e := w.endpoint(spec)
	api.Prepare(e, time.Now(), "")
	for _, p := range api.Validate(e) {
		return Workload{}, errors.New(p.String())
	}
	return w, nil
}

func (w Workload) mac() string {
	b := w.IPv4.As4()
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:01", b[0], b[1], b[2], b[3])
}

func (w Workload) endpoint(spec WorkloadSpec) *api.WorkloadEndpoint {
	name := api.WorkloadName{Node: w.Host, Orchestrator: "lab", Workload: w.Name, Endpoint: "eth0"}
	e := &api.WorkloadEndpoint{
		Kind: api.KindWorkloadEndpoint,
		Meta: api.Meta{Name: name.String(), Namespace: spec.Namespace, Labels: spec.Labels},
		Spec: api.WorkloadEndpointSpec{
			Orchestrator: name.Orchestrator, Workload: w.Name, Node: w.Host, Endpoint: "eth0",
			InterfaceName: w.Interface, Profiles: spec.Profiles,
			IPNetworks: api.Nets{Prefixes: []netip.Prefix{netip.PrefixFrom(w.IPv4, 32), netip.PrefixFrom(w.IPv6, 128)}},
		},
	}
	if e.Meta.Namespace == "" {
		e.Meta.Namespace = "default"
	}
	if mac, err := net.ParseMAC(w.mac()); err == nil {
		e.Spec.MAC = api.MAC{Addr: [6]byte(mac), Set: true}
	}
	return e
}

// Endpoint returns what the datastore should hold of a workload, to be changed
// and written with Put.
func (l *Lab) Endpoint(spec WorkloadSpec) (*api.WorkloadEndpoint, error) {
	w, err := l.workload(spec.Name)
	if err != nil {
		return nil, err
	}
	return w.endpoint(spec), nil
}

// Down ends the lab. Errors do not keep it from ending what it can; it can be
// called again.
func (l *Lab) Down(ctx context.Context) error {
	errs := []error{l.Close()}
	for _, h := range append([]Host{{Name: fabricName}}, l.state.Hosts...) {
		for _, p := range []string{Agent, BGP, Datastore} {
			errs = append(errs, l.Kill(h.Name, p))
		}
	}
	errs = append(errs, l.killMarked(ctx))
	for _, n := range l.state.Namespaces {
		errs = append(errs, deleteNamespace(n))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end lab %s: %w", l.opts.Name, err)
	}
	if err := os.RemoveAll(l.opts.Dir); err != nil {
		return fmt.Errorf("end lab %s: %w", l.opts.Name, err)
	}
	l.step("lab %s is gone", l.opts.Name)
	return nil
}
