package route

import (
	"fmt"
	"net/netip"
	"sync"

	"tortie/desired"
)

// Metrics of our routes. They are never equal across owners, since the kernel
// replaces by prefix and metric, whatever the protocol.
const (
	MetricMigrating = 512  // local, for the target of a live migration
	MetricLocal     = 1024 // local
	MetricLearned   = 2048 // by another host
	MetricGateway   = 65535
)

// Protocols of our routes.
const (
	ProtocolLocal   = 80
	ProtocolLearned = 81
)

// loopback is the index of lo, the same in every namespace.
const loopback = 1

type kind uint8

const (
	kindRoute kind = iota
	kindNeighbour
	kindProxy
)

// object identifies one thing that we write, as the kernel tells it apart.
type object struct {
	kind   kind
	prefix netip.Prefix // of a neighbour: its address
	metric int          // of a route
	link   string       // of a neighbour
}

func (o object) String() string {
	switch o.kind {
	case kindNeighbour:
		return fmt.Sprintf("neighbour %s dev %s", o.prefix.Addr(), o.link)
	case kindProxy:
		return fmt.Sprintf("proxy neighbour %s dev %s", o.prefix.Addr(), o.link)
	default:
		return fmt.Sprintf("route %s metric %d", o.prefix, o.metric)
	}
}

// entry is the rest of it: what can change.
type entry struct {
	index int // of the link; -1 for a route that is not just "to that link"
	mac   [6]byte
}

func routeObject(k desired.RouteKey) object {
	return object{prefix: k.Prefix, metric: k.Metric}
}

func gatewayObject(a netip.Addr) object {
	return object{prefix: netip.PrefixFrom(a, a.BitLen()), metric: MetricGateway}
}

func neighbourObject(k desired.NeighbourKey) object {
	o := object{kind: kindNeighbour, prefix: netip.PrefixFrom(k.Addr, k.Addr.BitLen()), link: k.Interface}
	if k.Proxy {
		o.kind = kindProxy
	}
	return o
}

// wanted says what o should be, and the name of its link.
func wanted(want *desired.State, o object) (e entry, link string, ok bool) {
	switch {
	case o.kind != kindRoute:
		k := desired.NeighbourKey{Interface: o.link, Addr: o.prefix.Addr(), Proxy: o.kind == kindProxy}
		n, ok := want.Neighbours.Get(k)
		e := entry{index: n.Index}
		if !k.Proxy {
			e.mac = n.MAC
		}
		return e, o.link, ok
	case o.metric == MetricGateway:
		_, ok := want.Gateways.Get(o.prefix.Addr())
		return entry{index: loopback}, "lo", ok && o.prefix.Addr().Is4() && o.prefix.IsSingleIP()
	default:
		r, ok := want.Routes.Get(desired.RouteKey{Prefix: o.prefix, Metric: o.metric})
		return entry{index: r.Index}, r.Interface, ok
	}
}

// everyWanted iterates over all objects that want names; changed over those
// whose keys changed.
func everyWanted(want *desired.State, yield func(object)) {
	for k := range want.Routes.All() {
		yield(routeObject(k))
	}
	for a := range want.Gateways.All() {
		yield(gatewayObject(a))
	}
	for k := range want.Neighbours.All() {
		yield(neighbourObject(k))
	}
}

func changed(want *desired.State, yield func(object)) {
	for k := range want.Routes.Dirty() {
		yield(routeObject(k))
	}
	for a := range want.Gateways.Dirty() {
		yield(gatewayObject(a))
	}
	for k := range want.Neighbours.Dirty() {
		yield(neighbourObject(k))
	}
}

// ledger is what we take the kernel to hold. The loop writes it, before each
// request rather than after the answer, so that the monitor, which only reads
// it, never takes a foreign change for one of an object we do not have.
type ledger struct {
	mu     sync.Mutex
	have   map[object]entry
	byLink map[int]map[object]struct{}
}

func newLedger() *ledger {
	return &ledger{have: map[object]entry{}, byLink: map[int]map[object]struct{}{}}
}

func (l *ledger) get(o object) (entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.have[o]
	return e, ok
}

func (l *ledger) set(o object, e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlink(o)
	l.have[o] = e
	if l.byLink[e.index] == nil {
		l.byLink[e.index] = map[object]struct{}{}
	}
	l.byLink[e.index][o] = struct{}{}
}

func (l *ledger) drop(o object) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlink(o)
	delete(l.have, o)
}

func (l *ledger) unlink(o object) {
	old, ok := l.have[o]
	if !ok {
		return
	}
	delete(l.byLink[old.index], o)
	if len(l.byLink[old.index]) == 0 {
		delete(l.byLink, old.index)
	}
}

// replace sets the whole ledger.
func (l *ledger) replace(have map[object]entry) {
	l.mu.Lock()
	l.have, l.byLink = map[object]entry{}, map[int]map[object]struct{}{}
	l.mu.Unlock()
	for o, e := range have {
		l.set(o, e)
	}
}

// onLink returns the objects on a link.
func (l *ledger) onLink(index int) []object {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]object, 0, len(l.byLink[index]))
	for o := range l.byLink[index] {
		out = append(out, o)
	}
	return out
}

// neighbour finds the neighbour that we have by what a notification says.
func (l *ledger) neighbour(m neighbourMessage) (object, entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for o := range l.byLink[m.index] {
		if o.kind != kindRoute && o.prefix.Addr() == m.addr && (o.kind == kindProxy) == m.proxy {
			return o, l.have[o], true
		}
	}
	return object{}, entry{}, false
}
