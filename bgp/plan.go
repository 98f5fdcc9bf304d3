package bgp

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tortie/api"
)

// Defaults of the data model.
const (
	defaultAS      = 64512
	defaultPort    = 179
	defaultRestart = 120 * time.Second
	maxRestart     = 4095 * time.Second // RFC 4724, section 3: 12 bits
)

// global is what all sessions of a speaker share. A change needs a new one.
type global struct {
	as       uint32
	routerID netip.Addr
	port     uint16
	// Where to listen, by family; invalid for nowhere.
	listen4, listen6 netip.Addr
}

// session is one BGP session. It carries unicast routes of the family that its
// addresses are of.
type session struct {
	peer, local netip.Addr
	port        uint16
	as          uint32
	passive     bool // the other side connects
	restart     time.Duration
	origin      string // which resource asks for it
}

// same says that two sessions need no reset between them.
func (s session) same(o session) bool {
	s.origin, o.origin = "", ""
	return s == o
}

// plan is what this host should speak.
type plan struct {
	global   global
	sessions map[netip.Addr]session
	waiting  string   // not empty: there is nothing to speak, and why
	problems []string // what of the resources could not be followed
}

// view is the cluster as one host sees it, while a plan is made.
type view struct {
	*cluster
	host   string
	self   *api.Node
	addr4  netip.Addr
	addr6  netip.Addr
	result *plan
}

// plan works out what host should speak. It is a function of the resources.
func (c *cluster) plan(host string) plan {
	result := plan{sessions: map[netip.Addr]session{}}
	for _, path := range slices.Sorted(maps.Keys(c.faults)) {
		result.problems = append(result.problems, c.faults[path]...)
	}
	v := view{cluster: c, host: host, self: c.nodes[host], result: &result}
	if v.self == nil {
		result.waiting = fmt.Sprintf("there is no Node %q", host)
		return result
	}
	v.checkNodes()
	v.addr4, v.addr6 = nodeAddrs(v.self)
	if !v.addr4.IsValid() && !v.addr6.IsValid() {
		result.waiting = fmt.Sprintf("Node %q has no usable BGP address", host)
		return result
	}
	result.global = v.global()
	v.explicit()
	v.mesh()
	return result
}

func (v *view) problem(format string, args ...any) {
	v.result.problems = append(v.result.problems, fmt.Sprintf(format, args...))
}

func (v *view) global() global {
	g := global{as: v.nodeAS(v.self), port: v.listenPort(v.host), routerID: v.addr4}
	if !g.routerID.IsValid() {
		g.routerID = hashRouterID(v.host)
	}
	if v.addr4.IsValid() {
		g.listen4 = netip.IPv4Unspecified()
	}
	if v.addr6.IsValid() {
		g.listen6 = netip.IPv6Unspecified()
	}
	if v.bindMode() == bindNodeIP {
		g.listen4, g.listen6 = v.addr4, v.addr6
	}
	return g
}

// The modes of listening: on all addresses, or on those of the Node.
const bindAll, bindNodeIP = "None", "NodeIP"

// bindMode is that of this host; one that does not exist is as none given.
func (v *view) bindMode() string {
	for _, name := range []string{"node." + v.host, "default"} {
		if c := v.configs[name]; c != nil && c.Spec.BindMode != "" && c.Spec.BindMode != bindAll && c.Spec.BindMode != bindNodeIP {
			v.problem("BGPConfiguration(%s) spec.bindMode: %q: want %s or %s", name, c.Spec.BindMode, bindAll, bindNodeIP)
		}
	}
	return v.setting(v.host, func(s *api.BGPConfigurationSpec) bool { return s.BindMode == bindAll || s.BindMode == bindNodeIP }).BindMode
}

// hashRouterID makes an identifier for a host without an IPv4 address.
func hashRouterID(host string) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(host))
	id := h.Sum32() | 1 // never 0.0.0.0
	return netip.AddrFrom4([4]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
}

// setting returns the settings of a host's own BGPConfiguration if it has what
// is asked for, else those of the default one, else none.
func (v *view) setting(host string, has func(*api.BGPConfigurationSpec) bool) api.BGPConfigurationSpec {
	for _, name := range []string{"node." + host, "default"} {
		if c := v.configs[name]; c != nil && has(&c.Spec) {
			return c.Spec
		}
	}
	return api.BGPConfigurationSpec{}
}

func (v *view) listenPort(host string) uint16 {
	port := v.setting(host, func(s *api.BGPConfigurationSpec) bool { return s.ListenPort != 0 }).ListenPort
	return cmp.Or(port, defaultPort)
}

func (v *view) nodeAS(n *api.Node) uint32 {
	if n.Spec.BGP != nil && n.Spec.BGP.ASNumber != nil && *n.Spec.BGP.ASNumber != 0 {
		return uint32(*n.Spec.BGP.ASNumber)
	}
	if c := v.configs["default"]; c != nil && c.Spec.ASNumber != nil && *c.Spec.ASNumber != 0 {
		return uint32(*c.Spec.ASNumber)
	}
	return defaultAS
}

// nodeAddrs returns the addresses that a node speaks BGP from; invalid where
// it has none of a family.
func nodeAddrs(n *api.Node) (v4, v6 netip.Addr) {
	if n.Spec.BGP == nil {
		return v4, v6
	}
	if a, err := nodeAddr(n.Spec.BGP.IPv4Address); err == nil && a.Is4() {
		v4 = a
	}
	if a, err := nodeAddr(n.Spec.BGP.IPv6Address); err == nil && a.Is6() && !a.Is4In6() {
		v6 = a
	}
	return v4, v6
}

// checkNodes reports addresses of nodes that are none.
func (v *view) checkNodes() {
	for _, name := range slices.Sorted(maps.Keys(v.nodes)) {
		n := v.nodes[name]
		a4, a6 := nodeAddrs(n)
		if n.Spec.BGP == nil {
			continue
		}
		if text := n.Spec.BGP.IPv4Address; text != "" && !a4.IsValid() {
			v.problem("Node(%s): ipv4Address %q is not an IPv4 address", name, text)
		}
		if text := n.Spec.BGP.IPv6Address; text != "" && !a6.IsValid() {
			v.problem("Node(%s): ipv6Address %q is not an IPv6 address", name, text)
		}
	}
}

func nodeAddr(text string) (netip.Addr, error) {
	text, _, _ = strings.Cut(text, "/")
	return netip.ParseAddr(text)
}

func reflects(n *api.Node) bool {
	return n.Spec.BGP != nil && n.Spec.BGP.RouteReflectorClusterID != ""
}

// mesh adds a session for each family that this host shares with another node.
// Route reflectors are no part of the mesh.
func (v *view) mesh() {
	restart := defaultRestart
	if c := v.configs["default"]; c != nil {
		if c.Spec.NodeToNodeMeshEnabled != nil && !*c.Spec.NodeToNodeMeshEnabled {
			return
		}
		restart = v.restartTime(c)
	}
	if reflects(v.self) {
		v.problem("Node(%s): routeReflectorClusterID: this host takes no part in the mesh, but reflecting routes is not built yet", v.host)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(v.nodes)) {
		if n := v.nodes[name]; name != v.host && !reflects(n) {
			v.toNode(n, session{restart: restart, origin: "mesh with " + name}, true)
		}
	}
}

func (v *view) restartTime(c *api.BGPConfiguration) time.Duration {
	text := c.Spec.NodeMeshMaxRestartTime
	if text == "" {
		return defaultRestart
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > maxRestart {
		v.problem("BGPConfiguration(%s): nodeMeshMaxRestartTime %q is not from 1s to %s", c.Meta.Name, text, maxRestart)
		return defaultRestart
	}
	return d
}

// toNode adds the sessions to another node. In the mesh one side connects and
// the other waits, by the rule that upstream's mesh has, for two connections
// that cross can end each other; other sessions are opened by both.
func (v *view) toNode(n *api.Node, s session, mesh bool) {
	addr4, addr6 := nodeAddrs(n)
	for _, pair := range [][2]netip.Addr{{v.addr4, addr4}, {v.addr6, addr6}} {
		s.local, s.peer = pair[0], pair[1]
		if !s.local.IsValid() || !s.peer.IsValid() {
			continue
		}
		s.as, s.port = v.nodeAS(n), v.listenPort(n.Meta.Name)
		s.passive = mesh && s.peer.String() > s.local.String()
		v.add(s)
	}
}

// add adds a session. Of two to one address the first stays.
func (v *view) add(s session) {
	if s.peer == v.addr4 || s.peer == v.addr6 {
		if !strings.HasPrefix(s.origin, "mesh") {
			return // a peer of all hosts that is this host
		}
		v.problem("%s: it has the address of this host, %s", s.origin, s.peer)
		return
	}
	old, ok := v.result.sessions[s.peer]
	if !ok {
		v.result.sessions[s.peer] = s
		return
	}
	if old.as != s.as {
		v.problem("%s: %s is AS %d here and AS %d by %s, which stays", s.origin, s.peer, s.as, old.as, old.origin)
	}
}

// explicit adds the sessions that BGPPeer resources ask for.
func (v *view) explicit() {
	for _, name := range slices.Sorted(maps.Keys(v.peers)) {
		p := v.peers[name]
		s := session{restart: defaultRestart, origin: "BGPPeer " + name}
		switch {
		case p.Spec.PeerIP != "":
			if v.ours(p, v.self) {
				v.toAddress(p, s)
			}
		case p.Spec.PeerSelector.Text != "":
			v.toSelected(p, s)
		default:
			v.problem("BGPPeer(%s): it names no peerIP and no peerSelector", name)
		}
	}
}

// ours says whether a BGPPeer is for node n.
func (v *view) ours(p *api.BGPPeer, n *api.Node) bool {
	if p.Spec.Node != "" {
		return p.Spec.Node == n.Meta.Name
	}
	return p.Spec.NodeSelector.Text == "" || selects(&p.Spec.NodeSelector, n)
}

func selects(s *api.Selector, n *api.Node) bool {
	return s.Expr != nil && s.Expr.Match(n.Meta.Labels)
}

func (v *view) toAddress(p *api.BGPPeer, s session) {
	peer, err := peerAddr(p.Spec.PeerIP)
	if err != nil {
		v.problem("BGPPeer(%s): peerIP: %v", p.Meta.Name, err)
		return
	}
	addr := peer.Addr()
	if p.Spec.ASNumber == 0 {
		v.problem("BGPPeer(%s): asNumber is missing", p.Meta.Name)
		return
	}
	s.peer, s.port, s.as = addr, peer.Port(), uint32(p.Spec.ASNumber)
	s.local = v.addr4
	if addr.Is6() {
		s.local = v.addr6
	}
	if !s.local.IsValid() {
		v.problem("BGPPeer(%s): this host has no address of the family of %s", p.Meta.Name, addr)
		return
	}
	if s.port == 0 {
		s.port = v.portOf(addr)
	}
	v.add(s)
}

// portOf is the port that a peer listens on, if nothing else is said.
func (v *view) portOf(addr netip.Addr) uint16 {
	for name, n := range v.nodes {
		if a4, a6 := nodeAddrs(n); addr == a4 || addr == a6 {
			return v.listenPort(name)
		}
	}
	return defaultPort
}

// toSelected adds the sessions of a BGPPeer between nodes: the nodes it is for
// speak to those that it selects, and these speak back.
func (v *view) toSelected(p *api.BGPPeer, s session) {
	here, there := v.ours(p, v.self), selects(&p.Spec.PeerSelector, v.self)
	if !here && !there {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(v.nodes)) {
		n := v.nodes[name]
		if name == v.host {
			continue
		}
		if here && selects(&p.Spec.PeerSelector, n) || there && v.ours(p, n) {
			v.toNode(n, s, false)
		}
	}
}

// peerAddr reads the address of a peer, with an optional port; without one the
// port is 0.
func peerAddr(text string) (netip.AddrPort, error) {
	peer, err := api.ParsePeerIP(text)
	if err == nil && (peer.Addr().IsUnspecified() || peer.Addr().IsMulticast()) {
		err = fmt.Errorf("%q: not the address of a host", text)
	}
	return peer, err
}
