package bgp

import (
	"net/netip"
	"time"
)

// importer decides which learned routes the kernel should have. It is told
// what peers announce, what becomes of their sessions and what the kernel has,
// and returns work; it does none. Time is an argument.
//
// A route that no peer announces any more stays in two cases: it was found in
// the kernel when the process started, and not all peers have sent their
// End-of-RIB yet (RFC 4724, section 4.1); or it went with the session to a
// peer that may restart gracefully (section 4.2). GoBGP does the latter too,
// but gives up at the first failed attempt to connect.
type importer struct {
	want  map[netip.Prefix]path // best paths that peers announce
	have  map[netip.Prefix]installed
	local map[netip.Prefix]struct{} // routes of this host's workloads
	dirty map[netip.Prefix]struct{}

	restarting bool                    // this process is
	pending    map[netip.Addr]struct{} // whose End-of-RIB is to come, while restarting
	deferral   time.Time               // when we stop waiting for them
	down       map[netip.Addr]time.Time
	expected   map[netip.Addr]session // the sessions that there are to be
}

// installed is a learned route in the kernel.
type installed struct {
	nextHop netip.Addr
	from    netip.Addr // who announced it; invalid if that was before the start
	lost    bool       // the path went with the session
}

// learnedRoute is a learned route to be written.
type learnedRoute struct {
	prefix  netip.Prefix
	nextHop netip.Addr
}

func newImporter() *importer {
	return &importer{
		want:    map[netip.Prefix]path{},
		have:    map[netip.Prefix]installed{},
		local:   map[netip.Prefix]struct{}{},
		dirty:   map[netip.Prefix]struct{}{},
		pending: map[netip.Addr]struct{}{},
		down:    map[netip.Addr]time.Time{},
	}
}

// kernelHas tells what a read of the kernel found: all learned routes.
func (m *importer) kernelHas(existing map[netip.Prefix]netip.Addr) {
	for p := range m.have {
		if _, ok := existing[p]; !ok {
			delete(m.have, p)
			m.dirty[p] = struct{}{}
		}
	}
	for p, hop := range existing {
		if h, ok := m.have[p]; !ok || h.nextHop != hop {
			m.have[p] = installed{nextHop: hop, from: h.from, lost: h.lost}
			m.dirty[p] = struct{}{}
		}
	}
}

// restart says that a new speaker is about to open these sessions. Whatever is
// in the kernel stays until all have sent their End-of-RIB.
func (m *importer) restart(sessions map[netip.Addr]session, now time.Time, deferral time.Duration) {
	clear(m.want)
	clear(m.down)
	clear(m.pending)
	for p, h := range m.have {
		m.have[p] = installed{nextHop: h.nextHop}
		m.dirty[p] = struct{}{}
	}
	m.expected = sessions
	m.restarting, m.deferral = true, now.Add(deferral)
	for addr := range sessions {
		m.pending[addr] = struct{}{}
	}
	m.checkRestart()
}

// expect tells which sessions there are from now on; nobody waits for others.
func (m *importer) expect(sessions map[netip.Addr]session) {
	m.expected = sessions
	for addr := range m.pending {
		if _, ok := sessions[addr]; !ok {
			delete(m.pending, addr)
		}
	}
	for addr := range m.down {
		if _, ok := sessions[addr]; !ok {
			m.release(addr)
		}
	}
	m.checkRestart()
}

// checkRestart ends our own restart when there is nothing to wait for.
func (m *importer) checkRestart() {
	if !m.restarting || len(m.pending) > 0 {
		return
	}
	m.restarting = false
	for p, h := range m.have {
		if !h.from.IsValid() {
			m.dirty[p] = struct{}{}
		}
	}
}

// release ends the wait for a peer that restarts.
func (m *importer) release(peer netip.Addr) {
	delete(m.down, peer)
	for p, h := range m.have {
		if h.lost && h.from == peer {
			m.dirty[p] = struct{}{}
		}
	}
}

// localRoutes tells which routes to own workloads came and went.
func (m *importer) localRoutes(add, remove []netip.Prefix) {
	for _, p := range add {
		m.local[p] = struct{}{}
		m.dirty[p] = struct{}{}
	}
	for _, p := range remove {
		delete(m.local, p)
		m.dirty[p] = struct{}{}
	}
}

// event takes in what happened in the speaker.
func (m *importer) event(ev event, now time.Time) {
	for prefix, best := range ev.paths {
		m.dirty[prefix] = struct{}{}
		if best.nextHop.IsValid() {
			m.want[prefix] = best
			continue
		}
		delete(m.want, prefix)
		if h, ok := m.have[prefix]; ok {
			h.lost = best.lost
			m.have[prefix] = h
		}
	}
	e := ev.peer
	switch {
	case e == nil:
	case e.endOfRIB:
		delete(m.pending, e.peer)
		m.checkRestart()
		m.release(e.peer)
	case e.established:
		if until, ok := m.down[e.peer]; ok {
			m.down[e.peer] = until.Add(resendTime)
		}
	case e.restart > 0:
		// The end of a session that is not to be any more may come late.
		if _, ok := m.expected[e.peer]; ok {
			m.down[e.peer] = now.Add(e.restart)
		}
	}
}

// resendTime is how long a peer that is back may take to send its routes
// beyond the time that it had to come back.
const resendTime = 60 * time.Second

// held says whether a route that nobody announces stays.
func (m *importer) held(h installed) bool {
	if !h.from.IsValid() {
		return m.restarting
	}
	_, down := m.down[h.from]
	return h.lost && down
}

// tick ends what has waited long enough.
func (m *importer) tick(now time.Time) {
	if m.restarting && !now.Before(m.deferral) {
		clear(m.pending)
		m.checkRestart()
	}
	for peer, until := range m.down {
		if !now.Before(until) {
			m.release(peer)
		}
	}
}

// deadline is when tick has something to do next, if ever.
func (m *importer) deadline() (time.Time, bool) {
	var first time.Time
	if m.restarting {
		first = m.deferral
	}
	for _, until := range m.down {
		if first.IsZero() || until.Before(first) {
			first = until
		}
	}
	return first, !first.IsZero()
}

// work returns what is to be written now. Each prefix of it stays to be done
// until written tells that it was.
func (m *importer) work() (replace []learnedRoute, remove []netip.Prefix) {
	for p := range m.dirty {
		w, wanted := m.want[p]
		h, there := m.have[p]
		_, local := m.local[p]
		switch {
		case wanted && !local && there && h.nextHop == w.nextHop:
			m.have[p] = installed{nextHop: w.nextHop, from: w.from}
			delete(m.dirty, p)
		case wanted && !local:
			replace = append(replace, learnedRoute{p, w.nextHop})
		case there && (local || !m.held(h)):
			remove = append(remove, p)
		default:
			delete(m.dirty, p)
		}
	}
	return replace, remove
}

// written tells that a route of work is in the kernel.
func (m *importer) written(r learnedRoute) {
	m.have[r.prefix] = installed{nextHop: r.nextHop, from: m.want[r.prefix].from}
	delete(m.dirty, r.prefix)
}

// removed tells that a route of work is no longer in the kernel.
func (m *importer) removed(p netip.Prefix) {
	delete(m.have, p)
	delete(m.dirty, p)
}

// stale counts the routes in the kernel that nobody announces.
func (m *importer) stale() int {
	n := 0
	for p := range m.have {
		if _, ok := m.want[p]; !ok {
			n++
		}
	}
	return n
}
