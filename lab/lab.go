package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"tortie/store"
)

// Options says where a lab is and what runs in it.
type Options struct {
	Name   string // "": lab; part of the names of its namespaces
	Dir    string // of its state; "": /run/tortie-lab/<Name>
	Binary string // tortie itself

	// OpenStore connects to the datastore at a URL and returns it with the
	// function that closes it.
	OpenStore func(endpoint string) (store.Store, func() error, error)

	// Progress gets one line for each step of what takes long; nil: nothing.
	Progress io.Writer
}

// Host is one host of the lab.
type Host struct {
	Name   string
	Number int // from 1
	IPv4   netip.Addr
	IPv6   netip.Addr
}

// Workload is one workload: a namespace with an interface, behind a host.
type Workload struct {
	Name      string
	Host      string
	Number    int    // on its host, from 1
	Interface string // on the host
	IPv4      netip.Addr
	IPv6      netip.Addr
}

// state is what the directory holds of a lab. Objects are recorded before
// they are made, so not all of it need be there.
type state struct {
	Name      string
	Binary    string
	Hosts     []Host
	Workloads []Workload
	Routed    bool
	// Namespaces has all that were ever begun and are not surely gone.
	Namespaces []string
}

// Lab is a lab that exists.
type Lab struct {
	opts  Options
	state state

	proxy *proxy
	store store.Store
	close func() error
}

// Addresses on the fabric. The datastore is in the fabric's own namespace.
const (
	fabric4Bits = 24
	storePort   = 2379
	maxHosts    = 62 // what a routed fabric has room for
	maxPerHost  = 200
)

var storeAddress = netip.MustParseAddr("192.0.2.254")

// fabricNets returns the addresses of a host on the fabric, with the length of
// the networks that they are of.
func (s *state) fabricNets(host int) (netip.Prefix, netip.Prefix) {
	v6 := netip.MustParseAddr("2001:db8:fab::").As16()
	if s.Routed {
		v6[7], v6[15] = byte(host), 2
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(4*host + 2)}), 30), netip.PrefixFrom(netip.AddrFrom16(v6), 64)
	}
	v6[15] = byte(host)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(host)}), fabric4Bits), netip.PrefixFrom(netip.AddrFrom16(v6), 64)
}

// routerAddresses are those of a routed fabric in the networks of a host.
func routerAddresses(net4, net6 netip.Prefix) (netip.Addr, netip.Addr) {
	return net4.Addr().Prev(), net6.Addr().Prev()
}

// Router returns the addresses that a host reaches a routed fabric by.
func (l *Lab) Router(h Host) (netip.Addr, netip.Addr) {
	return routerAddresses(l.state.fabricNets(h.Number))
}

func workloadAddresses(host, number int) (netip.Addr, netip.Addr) {
	v6 := netip.MustParseAddr("fd00:65::").As16()
	v6[7], v6[15] = byte(host), byte(number)
	return netip.AddrFrom4([4]byte{10, 65, byte(host), byte(number)}), netip.AddrFrom16(v6)
}

// storeURL is where processes on the fabric find the datastore.
func storeURL() string { return fmt.Sprintf("http://%s:%d", storeAddress, storePort) }

// ErrNoLab says that there is no lab of this name.
var ErrNoLab = errors.New("no such lab")

var goodName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (o *Options) normalise() error {
	if o.Name == "" {
		o.Name = "lab"
	}
	if !goodName.MatchString(o.Name) {
		return fmt.Errorf("lab %q: want a name of lower-case letters, digits and dashes", o.Name)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join("/run/tortie-lab", o.Name)
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	var err error
	o.Dir, err = filepath.Abs(o.Dir)
	return err
}

// Open returns a lab that is up.
func Open(opts Options) (*Lab, error) {
	if err := opts.normalise(); err != nil {
		return nil, err
	}
	l := &Lab{opts: opts}
	if err := l.load(); err != nil {
		return nil, err
	}
	return l, nil
}

// Close lets go of the lab, which stays as it is.
func (l *Lab) Close() error {
	var err error
	if l.close != nil {
		err = l.close()
	}
	if l.proxy != nil {
		err = errors.Join(err, l.proxy.close())
	}
	l.store, l.close, l.proxy = nil, nil, nil
	return err
}

// Store returns the lab's datastore.
func (l *Lab) Store() (store.Store, error) {
	if l.store != nil {
		return l.store, nil
	}
	if l.opts.OpenStore == nil {
		return nil, errors.New("open the lab's datastore: no way to open one was given")
	}
	if l.proxy == nil {
		p, err := newProxy(l.fabric(), netip.AddrPortFrom(storeAddress, storePort))
		if err != nil {
			return nil, fmt.Errorf("reach the lab's datastore: %w", err)
		}
		l.proxy = p
	}
	s, closer, err := l.opts.OpenStore(l.proxy.url())
	if err != nil {
		return nil, fmt.Errorf("open the lab's datastore: %w", err)
	}
	l.store, l.close = s, closer
	return s, nil
}

// Hosts lists the hosts.
func (l *Lab) Hosts() []Host { return l.state.Hosts }

// Workloads lists the workloads.
func (l *Lab) Workloads() []Workload { return l.state.Workloads }

// Dir is the lab's state directory.
func (l *Lab) Dir() string { return l.opts.Dir }

// RunDir is where the sockets, logs and process ids of a host's processes are.
func (l *Lab) RunDir(host string) string { return filepath.Join(l.opts.Dir, host) }

func (l *Lab) host(name string) (Host, error) {
	for _, h := range l.state.Hosts {
		if h.Name == name {
			return h, nil
		}
	}
	return Host{}, fmt.Errorf("lab %s has no host %q", l.opts.Name, name)
}

func (l *Lab) workload(name string) (Workload, error) {
	for _, w := range l.state.Workloads {
		if w.Name == name {
			return w, nil
		}
	}
	return Workload{}, fmt.Errorf("lab %s has no workload %q", l.opts.Name, name)
}

// fabric is the name of the fabric's namespace, and of what runs there.
func (l *Lab) fabric() string { return l.namespace(fabricName) }

const fabricName = "fabric"

func (l *Lab) namespace(of string) string { return namespacePrefix + l.opts.Name + "-" + of }

func (l *Lab) step(format string, args ...any) {
	_, _ = fmt.Fprintf(l.opts.Progress, format+"\n", args...)
}

func (l *Lab) stateFile() string { return filepath.Join(l.opts.Dir, "state.json") }

func (l *Lab) load() error {
	b, err := os.ReadFile(l.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s (in %s)", ErrNoLab, l.opts.Name, l.opts.Dir)
	}
	if err != nil {
		return fmt.Errorf("read the lab's state: %w", err)
	}
	if err := json.Unmarshal(b, &l.state); err != nil {
		return fmt.Errorf("read the lab's state: %s: %w", l.stateFile(), err)
	}
	if l.state.Name != l.opts.Name {
		return fmt.Errorf("read the lab's state: %s is that of lab %q, not %q", l.stateFile(), l.state.Name, l.opts.Name)
	}
	if l.opts.Binary == "" {
		l.opts.Binary = l.state.Binary
	}
	return nil
}

// save writes the state; a reader sees the old or the new.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l.state, "", "  ")
	if err == nil {
		err = os.WriteFile(l.stateFile()+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(l.stateFile()+".new", l.stateFile())
	}
	if err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return nil
}

// Down ends the lab of these options: its processes, its namespaces and its
// directory. It needs nothing but the directory.
func Down(ctx context.Context, opts Options) error {
	l, err := Open(opts)
	if err != nil {
		return err
	}
	return l.Down(ctx)
}
