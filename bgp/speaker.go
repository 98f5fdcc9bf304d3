package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	gobgp "github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Timers of a session.
const (
	holdTime     = 90 // seconds
	connectRetry = 2  // seconds; GoBGP's least
	// sendDeferral is how long a restarted speaker waits for its peers'
	// routes before it sends its own, in seconds. RFC 4724 would have it wait
	// for all peers, since what it sends could depend on them. This one sends
	// only what it finds in its own kernel, so one peer that is away need not
	// hold that up; GoBGP's least is one second.
	sendDeferral = 1
	// announceChunk is how many routes are handed over at a time, so that
	// sessions are served in between.
	announceChunk = 1000
)

// speaker is a BGP speaker: GoBGP behind the few methods that another one,
// run as a separate program, has to offer in its place. Configure, Announce,
// Next and Peers are all that the rest of the package uses while it runs.
//
// Its methods are for one goroutine, except that Changed may be waited on
// anywhere.
type speaker struct {
	server     *server.BgpServer
	log        *slog.Logger
	cancel     context.CancelFunc
	restarting bool // the sessions of the first Configure say that we restarted
	sessions   map[netip.Addr]session
	counted    map[netip.Addr]messages // what total has of each live session
	total      messages

	events queue
}

// messages counts UPDATE messages.
type messages struct{ sent, received uint64 }

// peerStatus is what is shown of a session.
type peerStatus struct {
	session
	established bool
	state       string
	since       time.Time // of being established
	received    uint64    // routes
}

// startSpeaker opens the listening sockets. With restarting, the speaker tells
// the peers of the first Configure that it forwarded all the while.
func startSpeaker(ctx context.Context, g global, restarting bool, log *slog.Logger) (*speaker, error) {
	s := &speaker{
		server:     server.NewBgpServer(server.LoggerOption(slog.New(warnings{log.Handler()}).With("part", "gobgp"), nil)),
		log:        log,
		restarting: restarting,
		sessions:   map[netip.Addr]session{},
		counted:    map[netip.Addr]messages{},
		events:     queue{changed: make(chan struct{}, 1), up: map[netip.Addr]bool{}},
	}
	watch, cancel := context.WithCancel(ctx)
	s.cancel = cancel
	go s.server.Serve()
	if err := s.start(watch, g); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// warnings passes on what is at least a warning; the loop logs the sessions.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }

func (s *speaker) start(ctx context.Context, g global) error {
	var listen []string
	for _, a := range []netip.Addr{g.listen4, g.listen6} {
		if a.IsValid() {
			listen = append(listen, a.String())
		}
	}
	err := s.server.StartBgp(ctx, &gobgp.StartBgpRequest{Global: &gobgp.Global{
		Asn:             g.as,
		RouterId:        g.routerID.String(),
		ListenPort:      int32(g.port),
		ListenAddresses: listen,
	}})
	if err != nil {
		return fmt.Errorf("start BGP on port %d: %w", g.port, err)
	}
	if err := s.exportLocalOnly(ctx); err != nil {
		return err
	}
	err = s.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnBestPath:   s.events.bestPaths,
		OnPathEor:    s.events.endOfRIB,
		OnPeerUpdate: s.events.peer,
	}, server.WatchBestPath(false), server.WatchEor(false), server.WatchPeer())
	if err != nil {
		return fmt.Errorf("watch best paths: %w", err)
	}
	return nil
}

// exportLocalOnly keeps what peers announce from being passed on: this host
// speaks for itself and no one else.
func (s *speaker) exportLocalOnly(ctx context.Context) error {
	local := &gobgp.Policy{Name: "local-routes", Statements: []*gobgp.Statement{{
		Name:       "local-route",
		Conditions: &gobgp.Conditions{RouteType: gobgp.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &gobgp.Actions{RouteAction: gobgp.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := s.server.AddPolicy(ctx, &gobgp.AddPolicyRequest{Policy: local}); err != nil {
		return fmt.Errorf("add export policy: %w", err)
	}
	err := s.server.SetPolicyAssignment(ctx, &gobgp.SetPolicyAssignmentRequest{Assignment: &gobgp.PolicyAssignment{
		Direction:     gobgp.PolicyDirection_POLICY_DIRECTION_EXPORT,
		Policies:      []*gobgp.Policy{{Name: local.Name}},
		DefaultAction: gobgp.RouteAction_ROUTE_ACTION_REJECT,
	}})
	if err != nil {
		return fmt.Errorf("assign export policy: %w", err)
	}
	return nil
}

// close ends all sessions in the way of a crash, so that the peers keep our
// routes, and frees the sockets. Stop would send a notification that withdraws
// everything; a process that ends need not even call close.
func (s *speaker) close() {
	s.cancel()
	if err := s.server.StopBgp(context.Background(), &gobgp.StopBgpRequest{AllowGracefulRestart: true}); err != nil {
		s.log.Warn("stopping BGP", "error", err)
	}
}

// Configure makes the sessions those of want.
func (s *speaker) Configure(ctx context.Context, want map[netip.Addr]session) error {
	for _, addr := range slices.SortedFunc(maps.Keys(s.sessions), netip.Addr.Compare) {
		if w, ok := want[addr]; ok && w.same(s.sessions[addr]) {
			s.sessions[addr] = w
			continue
		}
		if err := s.deletePeer(ctx, addr); err != nil {
			return err
		}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(want), netip.Addr.Compare) {
		if _, ok := s.sessions[addr]; ok {
			continue
		}
		if err := s.server.AddPeer(ctx, &gobgp.AddPeerRequest{Peer: s.neighbor(want[addr])}); err != nil {
			return fmt.Errorf("add peer %s: %w", addr, err)
		}
		s.sessions[addr] = want[addr]
	}
	s.restarting = false
	return nil
}

func (s *speaker) deletePeer(ctx context.Context, addr netip.Addr) error {
	if err := s.count(ctx); err != nil {
		return err
	}
	if err := s.server.DeletePeer(ctx, &gobgp.DeletePeerRequest{Address: addr.String()}); err != nil {
		return fmt.Errorf("delete peer %s: %w", addr, err)
	}
	delete(s.sessions, addr)
	delete(s.counted, addr)
	s.events.forget(addr)
	return nil
}

func (s *speaker) neighbor(n session) *gobgp.Peer {
	family := &gobgp.Family{Afi: gobgp.Family_AFI_IP, Safi: gobgp.Family_SAFI_UNICAST}
	if n.peer.Is6() {
		family.Afi = gobgp.Family_AFI_IP6
	}
	return &gobgp.Peer{
		Conf: &gobgp.PeerConf{NeighborAddress: n.peer.String(), PeerAsn: n.as, Description: n.origin},
		AfiSafis: []*gobgp.AfiSafi{{
			Config:            &gobgp.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &gobgp.MpGracefulRestart{Config: &gobgp.MpGracefulRestartConfig{Enabled: true}},
		}},
		// Hosts of different racks are several hops apart.
		EbgpMultihop: &gobgp.EbgpMultihop{Enabled: true, MultihopTtl: 255},
		GracefulRestart: &gobgp.GracefulRestart{
			Enabled:         true,
			RestartTime:     uint32(n.restart / time.Second),
			DeferralTime:    sendDeferral,
			LocalRestarting: s.restarting,
		},
		Timers: &gobgp.Timers{Config: &gobgp.TimersConfig{
			ConnectRetry:           connectRetry,
			HoldTime:               holdTime,
			KeepaliveInterval:      holdTime / 3,
			IdleHoldTimeAfterReset: connectRetry,
		}},
		Transport: &gobgp.Transport{LocalAddress: n.local.String(), RemotePort: uint32(n.port), PassiveMode: n.passive},
	}
}

// Announce starts and ends announcing prefixes as routes to this host. It may
// be called before Configure, and then precedes the first End-of-RIB.
func (s *speaker) Announce(add, remove []netip.Prefix) error {
	for chunk := range slices.Chunk(add, announceChunk) {
		paths, err := localPaths(chunk, false)
		if err == nil {
			_, err = s.server.AddPath(apiutil.AddPathRequest{Paths: paths})
		}
		if err != nil {
			return fmt.Errorf("announce %d routes from %s on: %w", len(chunk), chunk[0], err)
		}
	}
	for chunk := range slices.Chunk(remove, announceChunk) {
		paths, err := localPaths(chunk, true)
		if err == nil {
			err = s.server.DeletePath(apiutil.DeletePathRequest{Paths: paths})
		}
		if err != nil {
			return fmt.Errorf("withdraw %d routes from %s on: %w", len(chunk), chunk[0], err)
		}
	}
	return nil
}

// localPaths makes paths whose next hop GoBGP replaces by the address that a
// session is spoken from.
func localPaths(prefixes []netip.Prefix, withdraw bool) ([]*apiutil.Path, error) {
	paths := make([]*apiutil.Path, 0, len(prefixes))
	for _, p := range prefixes {
		nlri, err := bgp.NewIPAddrPrefix(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		path := &apiutil.Path{Family: bgp.RF_IPv4_UC, Nlri: nlri, Withdrawal: withdraw, Age: time.Now().Unix()}
		var hop bgp.PathAttributeInterface
		if p.Addr().Is4() {
			hop, err = bgp.NewPathAttributeNextHop(netip.IPv4Unspecified())
		} else {
			path.Family = bgp.RF_IPv6_UC
			hop, err = bgp.NewPathAttributeMpReachNLRI(path.Family, []bgp.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		path.Attrs = []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), hop}
		paths = append(paths, path)
	}
	return paths, nil
}

// Changed has an element when Next has news.
func (s *speaker) Changed() <-chan struct{} { return s.events.changed }

// Next returns what happened since the last call, in its order, and never
// blocks.
func (s *speaker) Next() []event { return s.events.take() }

// Peers returns the state of all sessions, by address, and how many UPDATE
// messages this speaker has sent and received.
func (s *speaker) Peers(ctx context.Context) ([]peerStatus, messages, error) {
	var list []peerStatus
	err := s.server.ListPeer(ctx, &gobgp.ListPeerRequest{}, func(p *gobgp.Peer) {
		addr, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if err != nil {
			return
		}
		st := peerStatus{session: s.sessions[addr], state: stateName(p.State.SessionState)}
		st.established = p.State.SessionState == gobgp.PeerState_SESSION_STATE_ESTABLISHED
		if st.established {
			st.since = p.GetTimers().GetState().GetUptime().AsTime()
		}
		for _, family := range p.AfiSafis {
			st.received += family.GetState().GetReceived()
		}
		m := messages{p.State.GetMessages().GetSent().GetUpdate(), p.State.GetMessages().GetReceived().GetUpdate()}
		s.total.sent += m.sent - s.counted[addr].sent
		s.total.received += m.received - s.counted[addr].received
		s.counted[addr] = m
		list = append(list, st)
	})
	if err != nil {
		return nil, messages{}, fmt.Errorf("list peers: %w", err)
	}
	slices.SortFunc(list, func(a, b peerStatus) int { return a.peer.Compare(b.peer) })
	return list, s.total, nil
}

// count takes the counters of all sessions into the total.
func (s *speaker) count(ctx context.Context) error {
	_, _, err := s.Peers(ctx)
	return err
}

// stateName spells a state as RFC 4271 does.
func stateName(s gobgp.PeerState_SessionState) string {
	switch s {
	case gobgp.PeerState_SESSION_STATE_CONNECT:
		return "Connect"
	case gobgp.PeerState_SESSION_STATE_ACTIVE:
		return "Active"
	case gobgp.PeerState_SESSION_STATE_OPENSENT:
		return "OpenSent"
	case gobgp.PeerState_SESSION_STATE_OPENCONFIRM:
		return "OpenConfirm"
	case gobgp.PeerState_SESSION_STATE_ESTABLISHED:
		return "Established"
	default:
		return "Idle"
	}
}
