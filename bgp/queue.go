package bgp

import (
	"net/netip"
	"sync"
	"time"

	gobgp "github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// event is a stretch of what happened in a speaker: the best paths that
// changed, coalesced by prefix, and after them at most one change of a peer.
type event struct {
	paths map[netip.Prefix]path
	peer  *peerEvent
}

// path is the best path to a prefix: who announced it and by which next hop.
// An invalid next hop means that there is none from a peer any more.
type path struct {
	nextHop netip.Addr
	from    netip.Addr
	// lost: the path went with the session to from, not by a withdrawal.
	lost bool
}

// peerEvent is a change of a session.
type peerEvent struct {
	peer        netip.Addr
	endOfRIB    bool // it has sent all it had
	established bool // if not endOfRIB: the session is up, else it is down
	// restart is, of a session that went down in a way that lets the peer
	// restart gracefully, how long that may take; else 0.
	restart time.Duration
	reason  string // why it went down
}

// queue takes GoBGP's events, which come one for each prefix through a queue
// without bound, and keeps the latest for each prefix until they are taken.
type queue struct {
	changed chan struct{}

	mu      sync.Mutex
	pending []event
	up      map[netip.Addr]bool          // sessions that are established
	restart map[netip.Addr]time.Duration // what the peer said it may need
}

// tail returns the event that paths go to. It is called with mu held.
func (q *queue) tail() *event {
	if n := len(q.pending); n == 0 || q.pending[n-1].peer != nil {
		q.pending = append(q.pending, event{paths: map[netip.Prefix]path{}})
	}
	return &q.pending[len(q.pending)-1]
}

func (q *queue) signal() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

func (q *queue) take() []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.pending
	q.pending = nil
	return taken
}

func (q *queue) forget(addr netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.up, addr)
	delete(q.restart, addr)
}

// bestPaths is called by GoBGP.
func (q *queue) bestPaths(paths []*apiutil.Path, _ time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range paths {
		if p == nil {
			continue
		}
		prefix, ok := prefixOf(p.Nlri)
		if !ok {
			continue
		}
		from := p.PeerAddress.Unmap()
		best := path{from: from}
		switch {
		case !from.IsValid(): // our own route
		case p.Withdrawal:
			best.lost = !q.up[from]
		default:
			best.nextHop = nextHopOf(p.Attrs)
		}
		q.tail().paths[prefix] = best
	}
	q.signal()
}

// endOfRIB is called by GoBGP.
func (q *queue) endOfRIB(p *apiutil.Path, _ time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tail().peer = &peerEvent{peer: p.PeerAddress.Unmap(), endOfRIB: true}
	q.signal()
}

// peer is called by GoBGP.
func (q *queue) peer(ev *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if ev.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	addr := ev.Peer.State.NeighborAddress.Unmap()
	up := ev.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
	q.mu.Lock()
	defer q.mu.Unlock()
	if up == q.up[addr] {
		return
	}
	e := &peerEvent{peer: addr, established: up}
	if up {
		if q.restart == nil {
			q.restart = map[netip.Addr]time.Duration{}
		}
		q.up[addr], q.restart[addr] = true, restartTime(ev.Peer.State.RemoteCap)
	} else {
		delete(q.up, addr)
		e.reason = ev.Peer.State.DisconnectMessage
		if ev.Peer.State.DisconnectReason == gobgp.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART {
			e.restart = q.restart[addr]
		}
	}
	q.tail().peer = e
	q.signal()
}

// restartTime is what the peer's capabilities say of graceful restart; 0 if
// it cannot.
func restartTime(caps []bgp.ParameterCapabilityInterface) time.Duration {
	for _, c := range caps {
		if gr, ok := c.(*bgp.CapGracefulRestart); ok && len(gr.Tuples) > 0 {
			return time.Duration(gr.Time) * time.Second
		}
	}
	return 0
}

func prefixOf(n bgp.NLRI) (netip.Prefix, bool) {
	p, ok := n.(*bgp.IPAddrPrefix)
	if !ok || !p.Prefix.IsValid() {
		return netip.Prefix{}, false
	}
	return p.Prefix.Masked(), true
}

func nextHopOf(attrs []bgp.PathAttributeInterface) netip.Addr {
	var hop netip.Addr
	for _, a := range attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			hop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			hop = a.Nexthop
		}
	}
	return hop.Unmap()
}
