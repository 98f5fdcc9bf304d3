package labelindex

import (
	"iter"
	"net/netip"
	"slices"

	"tortie/api"
	"tortie/selector"
)

// Ports says where the ports are that selectors and names stand for: a member
// is an address, or range, with a protocol and a port. It is apart from Index,
// since few items name ports. Create it with NewPorts.
type Ports struct {
	items  map[api.Key]*portItem
	byName map[string]map[*portItem]struct{}
	slots  map[uint64]*portSlot
	named  map[string]map[*portSlot]struct{} // by the names that they ask for
	gone   map[uint64]map[PortMember]bool    // what is left to deliver of slots deleted
}

// PortMember is where a named port is.
type PortMember struct {
	Prefix   netip.Prefix
	Protocol uint8
	Port     uint16
}

// PortChange is a member that came to a selector and its names, or left them.
type PortChange struct {
	Selector uint64
	PortMember
	Add bool
}

type portItem struct {
	labels   map[string]string
	prefixes []netip.Prefix
	ports    []api.NamedPort
}

// portKey is what ranges need to have in common to be one cover.
type portKey struct {
	protocol uint8
	port     uint16
}

type portSlot struct {
	selector *selector.Selector
	names    []string
	singles  map[PortMember]int // and how many items have it
	ranges   map[portKey]*ranges
	pending  map[PortMember]bool // since the last delivery: true for one that came
}

// NewPorts returns an empty index.
func NewPorts() *Ports {
	return &Ports{
		items:  map[api.Key]*portItem{},
		byName: map[string]map[*portItem]struct{}{},
		slots:  map[uint64]*portSlot{},
		named:  map[string]map[*portSlot]struct{}{},
		gone:   map[uint64]map[PortMember]bool{},
	}
}

// SetItem adds or replaces an item; one without names or addresses is as good
// as none. The labels must not be changed afterwards.
func (x *Ports) SetItem(k api.Key, labels map[string]string, prefixes []netip.Prefix, ports []api.NamedPort) {
	ports = slices.DeleteFunc(slices.Clone(ports), func(p api.NamedPort) bool { return !places(p) })
	old := x.items[k]
	if old == nil && (len(ports) == 0 || len(prefixes) == 0) {
		return
	}
	x.count(old, -1)
	delete(x.items, k)
	if len(ports) == 0 || len(prefixes) == 0 {
		return
	}
	i := &portItem{labels: labels, prefixes: normalise(nil, prefixes), ports: ports}
	x.items[k] = i
	x.count(i, 1)
}

// DeleteItem removes an item, if it is there.
func (x *Ports) DeleteItem(k api.Key) { x.SetItem(k, nil, nil, nil) }

// places says that a port of an endpoint is somewhere that rules can name.
func places(p api.NamedPort) bool { return p.Name != "" && p.Port != 0 && p.Protocol.HasPorts() }

// count adds an item to the slots that want it, or takes it out of them.
func (x *Ports) count(i *portItem, n int) {
	if i == nil {
		return
	}
	asked := map[*portSlot]struct{}{}
	for _, p := range i.ports {
		edits(x.byName, p.Name, i, n > 0)
		for s := range x.named[p.Name] {
			asked[s] = struct{}{}
		}
	}
	for s := range asked {
		s.count(i, n)
	}
}

// edits puts a value into one of the sets of a map, or takes it out.
func edits[V comparable](m map[string]map[V]struct{}, name string, v V, in bool) {
	if in && m[name] == nil {
		m[name] = map[V]struct{}{}
	}
	if in {
		m[name][v] = struct{}{}
	} else if delete(m[name], v); len(m[name]) == 0 {
		delete(m, name)
	}
}

// count counts what an item contributes to a slot, once for each of its ports
// that the slot asks for.
func (s *portSlot) count(i *portItem, n int) {
	if !s.selector.Match(i.labels) {
		return
	}
	for _, p := range i.ports {
		if !slices.Contains(s.names, p.Name) {
			continue
		}
		for _, q := range i.prefixes {
			s.countMember(PortMember{q, p.Protocol.Number, p.Port}, n)
		}
	}
}

func (s *portSlot) countMember(m PortMember, n int) {
	if isRange(m.Prefix) {
		k := portKey{m.Protocol, m.Port}
		r := s.ranges[k]
		if r == nil {
			r = &ranges{}
			s.ranges[k] = r
		}
		if n > 0 {
			r.add(m.Prefix)
		} else {
			r.remove(m.Prefix)
		}
		for p, came := range r.pending {
			s.note(PortMember{p, m.Protocol, m.Port}, came)
		}
		clear(r.pending)
		return
	}
	was := s.singles[m]
	if s.singles[m] += n; s.singles[m] == 0 {
		delete(s.singles, m)
	}
	if is := was + n; (was > 0) != (is > 0) {
		s.note(m, is > 0)
	}
}

func (s *portSlot) note(m PortMember, came bool) {
	if was, ok := s.pending[m]; ok && was != came {
		delete(s.pending, m)
	} else {
		s.pending[m] = came
	}
}

// SetSelector makes a selector with names active: its members are among the
// next changes. An id stands for one selector and list of names; setting one
// that is active does nothing.
func (x *Ports) SetSelector(id uint64, sel *selector.Selector, names []string) {
	if x.slots[id] != nil {
		return
	}
	s := &portSlot{
		selector: sel, names: names, singles: map[PortMember]int{},
		ranges: map[portKey]*ranges{}, pending: x.gone[id],
	}
	delete(x.gone, id)
	if s.pending == nil {
		s.pending = map[PortMember]bool{}
	}
	x.slots[id] = s
	items := map[*portItem]struct{}{}
	for _, name := range names {
		edits(x.named, name, s, true)
		for i := range x.byName[name] {
			items[i] = struct{}{}
		}
	}
	for i := range items {
		s.count(i, 1)
	}
}

// DeleteSelector makes a selector inactive: that its members left it is among
// the next changes.
func (x *Ports) DeleteSelector(id uint64) {
	s := x.slots[id]
	if s == nil {
		return
	}
	delete(x.slots, id)
	for _, name := range s.names {
		edits(x.named, name, s, false)
	}
	for m := range s.singles {
		s.note(m, false)
	}
	for k, r := range s.ranges {
		for _, root := range r.roots {
			root.top(func(p netip.Prefix) bool { s.note(PortMember{p, k.protocol, k.port}, false); return true })
		}
	}
	if len(s.pending) > 0 {
		x.gone[id] = s.pending
	}
}

// Changes iterates over what changed since it was last iterated over, in no
// particular order. No member of a selector occurs twice, nor what came and
// went meanwhile.
func (x *Ports) Changes() iter.Seq[PortChange] {
	return func(yield func(PortChange) bool) {
		for id, pending := range x.gone {
			if !deliver(id, pending, yield) {
				return
			}
			delete(x.gone, id)
		}
		for id, s := range x.slots {
			if len(s.pending) > 0 && !deliver(id, s.pending, yield) {
				return
			}
		}
	}
}

// deliver yields changes and forgets each that was taken.
func deliver(id uint64, pending map[PortMember]bool, yield func(PortChange) bool) bool {
	for m, came := range pending {
		delete(pending, m)
		if !yield(PortChange{id, m, came}) {
			return false
		}
	}
	return true
}
