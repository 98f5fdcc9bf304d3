package calc

import (
	"net/netip"
	"strings"

	"tortie/api"
	"tortie/compile"
	"tortie/desired"
	"tortie/labelindex"
)

// Options say for which host a Calc computes.
type Options struct {
	// Host is the name by which endpoints refer to this host. It cannot
	// change: SetOptions does not look at it.
	Host string
	// WorkloadPrefixes begin the names of interfaces that may belong to
	// workloads; an endpoint cannot have any other.
	WorkloadPrefixes []string
	// FloatingIPs says that external addresses count of all endpoints, not only
	// of those of OpenStack.
	FloatingIPs bool
	// HostsInside says that the addresses of hosts are inside, as pools are.
	HostsInside bool
	// SourceSpoofing says that endpoints may use the sources that they are
	// allowed besides their own.
	SourceSpoofing bool
}

// HostInterface is what the host knows of a network interface.
type HostInterface struct {
	Index int
	Up    bool
	Addrs []netip.Addr // of the host on it
}

// Calc holds the state of the cluster, as far as it matters here.
type Calc struct {
	opts   Options
	prefix string // of the names of this host's endpoints
	index  *labelindex.Index
	ports  *labelindex.Ports

	workloads  *registry
	hosts      map[string]*local                 // the host endpoint of an interface, or of desired.AnyInterface
	learners   map[api.Key]*learner              // host endpoints that depend on what
	learned    map[string]*api.HostAddressesSpec // hosts say of their addresses
	inheritors map[api.Key]*inheritor
	locals     map[api.Key]*local           // endpoints of this host, of workloads and of itself
	having     map[netip.Prefix]set[*local] // which local endpoints have an address or range
	winners    map[netip.Prefix]*local      // to which of them it belongs
	interfaces map[string]*iface
	gateways   map[netip.Addr]int // by how many local endpoints each is used
	profiles   map[string]*profile
	tiers      map[string]*tier
	policies   map[api.Key]*policy
	candidates candidates
	programs   map[desired.ProgramID]*program
	parts      compile.Cache
	selectors  map[desired.SetID]*selectorUse

	translation translation

	dirty   dirty
	started bool // a Flush was made
}

// set is a set of what a stage has to look at.
type set[T comparable] map[T]struct{}

func (s set[T]) add(v T)      { s[v] = struct{}{} }
func (s set[T]) has(v T) bool { _, ok := s[v]; return ok }

// dirty is what the stages of the next Flush have to look at.
type dirty struct {
	profiles   set[*profile]
	bindings   set[string]       // interfaces: who claims them
	nets       set[netip.Prefix] // addresses and ranges: to whom they belong
	locals     set[*local]
	policies   set[*policy]
	tiers      set[*tier]
	order      set[*local]
	programs   set[*program]
	selectors  set[desired.SetID]
	interfaces set[string] // what is shown of them
	routes     set[netip.Prefix]
	gateways   set[netip.Addr]
	statuses   set[api.Key]
	floating   set[netip.Addr] // external addresses
	pools      bool
	hosts      bool // which host endpoint each interface has
}

func newDirty() dirty {
	return dirty{
		profiles:   set[*profile]{},
		bindings:   set[string]{},
		nets:       set[netip.Prefix]{},
		locals:     set[*local]{},
		policies:   set[*policy]{},
		tiers:      set[*tier]{},
		order:      set[*local]{},
		programs:   set[*program]{},
		selectors:  set[desired.SetID]{},
		interfaces: set[string]{},
		routes:     set[netip.Prefix]{},
		gateways:   set[netip.Addr]{},
		statuses:   set[api.Key]{},
		floating:   set[netip.Addr]{},
	}
}

// New returns a Calc that knows of nothing.
func New(opts Options) *Calc {
	c := &Calc{
		opts:        opts,
		prefix:      strings.TrimSuffix(api.WorkloadName{Node: opts.Host}.Prefix(), "-"),
		index:       labelindex.New(),
		ports:       labelindex.NewPorts(),
		workloads:   newRegistry(),
		learners:    map[api.Key]*learner{},
		learned:     map[string]*api.HostAddressesSpec{},
		inheritors:  map[api.Key]*inheritor{},
		locals:      map[api.Key]*local{},
		hosts:       map[string]*local{},
		having:      map[netip.Prefix]set[*local]{},
		winners:     map[netip.Prefix]*local{},
		interfaces:  map[string]*iface{},
		gateways:    map[netip.Addr]int{},
		profiles:    map[string]*profile{},
		tiers:       map[string]*tier{},
		policies:    map[api.Key]*policy{},
		candidates:  newCandidates(),
		programs:    map[desired.ProgramID]*program{},
		selectors:   map[desired.SetID]*selectorUse{},
		translation: newTranslation(),
		dirty:       newDirty(),
	}
	c.profile(api.DefaultAllowProfile).spec = &api.ProfileSpec{
		Ingress: []api.Rule{{Action: api.Allow}},
		Egress:  []api.Rule{{Action: api.Allow}},
	}
	return c
}

// SetOptions changes the options at run time, all but Host.
func (c *Calc) SetOptions(opts Options) {
	opts.Host = c.opts.Host
	c.opts = opts
	for name := range c.interfaces {
		c.dirty.bindings.add(name)
	}
	for a := range c.translation.claims {
		c.dirty.floating.add(a)
	}
	c.dirty.pools, c.dirty.hosts = true, true
}

// Flush brings d, which must be the same State each time, to what was set. The
// keys that changed are dirty in d's tables afterwards, besides those that
// were before.
func (c *Calc) Flush(d *desired.State) {
	c.flushProfiles()
	c.flushBindings()
	c.flushNets()
	c.flushHosts()
	c.flushLocals()
	c.flushPolicies()
	c.flushOrder()
	tightened, former := c.flushPrograms(d)
	c.flushSelectors(d)
	tightened = c.flushMembers(d) || tightened
	tightened = c.flushInterfaces(d, former) || tightened
	tightened = c.flushHostEndpoints(d) || tightened
	c.flushFloating(d)
	c.flushPools(d)
	tightened = c.flushRoutes(d) || tightened
	c.flushGateways(d)
	c.flushStatuses(d)
	if tightened && c.started {
		d.Tightened = true
	}
	c.started = true
}
