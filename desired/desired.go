package desired

import (
	"fmt"
	"net/netip"

	"tortie/api"
	"tortie/table"
)

// State is everything this host should have. calc fills it; the kernel
// packages read what is dirty and clear what they have applied.
type State struct {
	Endpoints  *table.Table[api.Key, Endpoint]       // for status; in store order of no meaning
	Interfaces *table.Table[string, Interface]       // by interface name
	Controls   *table.Table[string, Controls]        // by interface name: limits and marks
	Hosts      *table.Table[string, HostEndpoint]    // by interface name, or AnyInterface
	Programs   *table.Table[ProgramID, Program]      // shared by all endpoints with the same policy list
	Sets       *table.Table[SetKey, Set]             // which sets exist
	Members    *table.Table[Member, struct{}]        // of all sets
	Routes     *table.Table[RouteKey, Route]         // local routes
	Neighbours *table.Table[NeighbourKey, Neighbour] // permanent and proxy entries
	Gateways   *table.Table[netip.Addr, struct{}]    // gateway addresses of workloads, 169.254.1.1 included

	Floating   *table.Table[netip.Addr, netip.Addr] // external address → the local workload's own that it leads to
	External   *table.Table[netip.Addr, netip.Addr] // local workload's address → the external one with which it reaches outside
	Masquerade *table.Table[netip.Addr, struct{}]   // addresses of local workloads that reach outside with the host's; External goes first
	Inside     *table.Table[netip.Prefix, struct{}] // to these no source is translated; where a family has none, External is not used

	// Tightened says that something allowed before may be forbidden now, or be
	// limited or marked for the first time, so
	// the policy epoch must be bumped once the tables are in the kernel.
	// calc sets it, the agent clears it after the bump.
	Tightened bool
}

// Endpoint is what is reported of a local endpoint, of a workload or of the host.
type Endpoint struct {
	Interface string // of a host endpoint, all that it has, separated by commas
	Present   bool   // the interface exists
	Up        bool   // and is operationally up
	Error     string // not empty: the endpoint, or part of it, is not in force, and why
	Warning   string // not empty: something the operator should know; does not make the status an error
}

// Interface is a workload interface that is bound to an endpoint. An
// interface that is not in the table passes nothing.
type Interface struct {
	Endpoint api.Key
	Index    int // the kernel's index; an interface that does not exist is not in the table
	MAC      [6]byte
	HasMAC   bool
	Addrs    []netip.Addr   // sorted; what it may send from
	Ranges   []netip.Prefix // sorted; the same, but for addresses in them that another interface has
	Spoofed  []netip.Prefix // sorted; sources that it may use, whoever else's they are
	Ingress  ProgramID      // judges what is sent to the endpoint
	Egress   ProgramID      // judges what the endpoint sends
}

// ProgramID names a program by what makes it shareable: the ordered list of
// its policies and its direction; not by the contents of the rules.
type ProgramID string

// Program judges connections in one direction. Stages are run in order; a
// connection that no stage decides is denied.
type Program struct {
	Stages []Stage
	Host   bool // of a host endpoint

	// Trial is what Stages would be if staged policies were in force, where that
	// is something else. It decides nothing: what has an ID is counted, what has
	// none is in force already.
	Trial []Stage
}

// Stage is one tier, or the profiles.
type Stage struct {
	Name  string // of the tier; "profiles" for the last
	View  View
	Rules []Rule
	End   Verdict // Deny, Next, or of the last stage, where that is not to deny, Allow
	EndID string  // "<kind>/<namespace>/<name>/<Ingress|Egress>/end": identifies the end as an ID does a rule

	// Dispatch is a faster way to the same verdict for connections of some
	// protocols, Others for those of all others where there is any Dispatch. Both
	// follow from Rules.
	Dispatch []Dispatch
	Others   *List
}

// Dispatch leads a connection of one protocol by its destination port to the
// list that decides it: from Starts[i] on, up to the next, Lists[i]. Without
// Starts there is one list, for whatever port.
type Dispatch struct {
	Protocol uint8
	Starts   []uint16 // ascending; the first is 0
	Lists    []*List
}

// List is what is left to compare a connection with where part of it is known.
// It is compared with the steps in order; where none decides, it is led by its
// address or to the rest. Otherwise the stage ends. Lists lead to each other,
// never in circles.
type List struct {
	Steps     []Step
	Addresses *Addresses
	Rest      *List
}

// Step is a rule without the conditions that are known to hold. If To is given,
// what matches is led there for good, instead of the verdict.
type Step struct {
	Rule
	To *List
}

// Addresses leads from each address on, up to the next of its family, to a
// list. There is one for each family's first address.
type Addresses struct {
	Destination bool // look at that; otherwise at the source
	Starts      []netip.Addr
	Lists       []*List
}

// Verdict is what follows when a rule matches.
type Verdict uint8

// The verdicts. The zero Verdict denies.
const (
	Deny Verdict = iota
	Allow
	Next // on to the next stage
	Log  // note it and go on with the next rule
)

// String spells the verdict as it is shown.
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Next:
		return "next"
	case Log:
		return "log"
	default:
		return "deny"
	}
}

// Rule matches a connection by its original tuple, addresses and ports as
// they are after destination NAT. Everything given is ANDed, lists are ORed.
type Rule struct {
	ID          string // "<kind>/<namespace>/<name>/<Ingress|Egress>/<index>"
	Verdict     Verdict
	Family      int // 4, 6, or 0 for both
	Protocol    uint8
	NotProtocol uint8
	ICMP        *ICMP
	NotICMP     *ICMP
	Source      Peer
	Destination Peer
	Note        string // the rule's annotations, for people
}

// ICMP matches by type and, where Code is at least 0, by code.
type ICMP struct {
	Type uint8
	Code int
}

// Peer matches one end of a connection. Set names a selector, which in the
// kernel is all SetKeys of that ID that State.Sets has: a positive match means
// the address is in any of them, a negated one that it is in none. Named and
// NotNamed name the places of named ports in the same way: sets of an address,
// protocol and port.
type Peer struct {
	Nets     []netip.Prefix
	NotNets  []netip.Prefix
	Set      SetID // 0 for none
	NotSet   SetID
	Ports    []PortRange
	NotPorts []PortRange
	Named    SetID // 0 for none
	NotNamed SetID
}

// PortRange is an inclusive range.
type PortRange struct{ Min, Max uint16 }

// SetID identifies a selector, with the names of ports where it stands for
// their places, by a hash of its canonical text; never 0.
type SetID uint64

// SetKey is one kernel set of a selector. A selector in use always has the two
// sets of single addresses, IPv4 and IPv6; it has a set of ranges only while
// that has members. calc keeps the ranges of a set disjoint, and touches every
// program that names a selector when a set of it comes or goes.
type SetKey struct {
	ID     SetID
	Family uint8 // 4 or 6
	Ranges bool
	Ports  bool // of places of named ports
}

// String is the set's name in the kernel and in the text that is shown.
func (k SetKey) String() string {
	kind := "h"
	switch {
	case k.Ranges && k.Ports:
		kind = "q"
	case k.Ranges:
		kind = "r"
	case k.Ports:
		kind = "p"
	}
	return fmt.Sprintf("s%d%s-%016x", k.Family, kind, uint64(k.ID))
}

// Set describes a set.
type Set struct {
	Selector string // canonical text, and the names of ports
}

// Member is one element of a set: a /32 or /128 in a set of single addresses.
type Member struct {
	Set      SetKey
	Prefix   netip.Prefix
	Protocol uint8 // with Ports
	Port     uint16
}

// RouteKey is what the kernel tells our routes apart by.
type RouteKey struct {
	Prefix netip.Prefix
	Metric int
}

// Route sends a prefix to an interface of this host.
type Route struct {
	Interface string
	Index     int
}

// NeighbourKey is an entry of the neighbour table.
type NeighbourKey struct {
	Interface string
	Addr      netip.Addr
	Proxy     bool
}

// Neighbour is a permanent entry, or a proxy entry, which has no MAC.
type Neighbour struct {
	Index int
	MAC   [6]byte
}

// New returns an empty state.
func New() *State {
	return &State{
		Endpoints:  table.New[api.Key](func(a, b Endpoint) bool { return a == b }),
		Interfaces: table.New[string](equalInterface),
		Controls:   table.New[string](func(a, b Controls) bool { return a == b }),
		Hosts:      table.New[string](func(a, b HostEndpoint) bool { return a == b }),
		Programs:   table.New[ProgramID](equalProgram),
		Sets:       table.New[SetKey](func(a, b Set) bool { return a == b }),
		Members:    table.New[Member](func(struct{}, struct{}) bool { return true }),
		Routes:     table.New[RouteKey](func(a, b Route) bool { return a == b }),
		Neighbours: table.New[NeighbourKey](func(a, b Neighbour) bool { return a == b }),
		Gateways:   table.New[netip.Addr](func(struct{}, struct{}) bool { return true }),
		Floating:   table.New[netip.Addr](func(a, b netip.Addr) bool { return a == b }),
		External:   table.New[netip.Addr](func(a, b netip.Addr) bool { return a == b }),
		Masquerade: table.New[netip.Addr](func(struct{}, struct{}) bool { return true }),
		Inside:     table.New[netip.Prefix](func(struct{}, struct{}) bool { return true }),
	}
}

// ClearDirty forgets what changed, in all tables. The agent calls it when
// every kernel package has taken the changed keys into its own pending work.
func (s *State) ClearDirty() {
	s.Endpoints.Clear()
	s.Interfaces.Clear()
	s.Controls.Clear()
	s.Hosts.Clear()
	s.Programs.Clear()
	s.Sets.Clear()
	s.Members.Clear()
	s.Routes.Clear()
	s.Neighbours.Clear()
	s.Gateways.Clear()
	s.Floating.Clear()
	s.External.Clear()
	s.Masquerade.Clear()
	s.Inside.Clear()
}
