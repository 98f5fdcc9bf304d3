package proof

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/explain"
)

// Fate is what should become of a packet that is of no connection yet.
type Fate struct {
	Place   string // where it arrives, "" if nowhere
	As      Ends   // with which addresses
	Why     string // where that was not policy's
	Said    []*explain.Decision
	Verdict api.Action // of policy
	hops    []hop
	aside   bool // an answer that takes another way back
}

// hop is a packet at one host on its way.
type hop struct {
	explain.Crossing
	left      explain.Packet // as it leaves the host
	untracked bool
}

func (f Fate) String() string {
	if f.Why != "" {
		return f.Why
	}
	out := string(f.Verdict)
	for _, d := range f.Said {
		out += "\n" + d.String()
	}
	return out
}

// Expect says what should become of a packet. Policy is what explain says; the
// rest is what the data path promises beside it: a workload sends from its own
// addresses and those that it may use besides, and nobody else does; an interface
// without an endpoint passes nothing, and what connection tracking has no
// connection for passes no interface that has policy.
func (w *World) Expect(p Packet) Fate {
	f := w.follow(p, Fate{})
	f.As = w.translated(p)
	return f
}

// ExpectAnswer says what should become of an answer to a packet whose fate is
// known. A host that has the connection passes it, but for policy that looks at
// packets.
func (w *World) ExpectAnswer(answer Packet, to Fate) Fate {
	f := w.follow(answer, to)
	f.As = Ends{answer.Src, answer.Dst}
	if n := len(f.hops); n > 0 {
		f.As = ends(f.hops[n-1].left)
	}
	return f
}

// follow follows a packet from host to host. Of hosts that a packet passed
// which it may answer, some have the connection.
func (w *World) follow(p Packet, answered Fate) Fate {
	f := Fate{Verdict: api.Allow}
	h, in := w.start(p.From)
	came := p.Packet
	for range len(w.hosts) + 1 {
		if f.Why = w.refused(h, p, in, came); f.Why != "" {
			return f
		}
		x := hop{Crossing: explain.Crossing{Host: h.name, In: in, Came: came, Judged: came}}
		next, place, ok := w.cross(&f, &x, p.opens(), answered)
		if !ok {
			return f
		}
		f.hops = append(f.hops, x)
		if next == nil {
			f.Place = place
			return f
		}
		h, in = next, explain.Side{Interface: next.eth(0)}
		came = x.left
	}
	f.Why = "it goes round in circles"
	return f
}

// cross takes a packet past one host.
func (w *World) cross(f *Fate, x *hop, opens bool, answered Fate) (next *host, place string, ok bool) {
	h := w.host(x.Host)
	for i := range answered.hops {
		if of := &answered.hops[i]; of.Host == x.Host && !of.untracked {
			return w.crossBack(f, x, of)
		}
	}
	k, internal, floats := w.cluster.Floating(x.Came.Dst)
	if floats && opens && w.cluster.Host(k) == x.Host { // without a connection nothing is translated
		x.Judged.Dst = internal
	}
	x.Out, next, place = w.route(h, x.Came.Dst)
	x.left = x.Came
	if x.In.Workload != (api.Key{}) && x.Out.Interface != nil && opens {
		x.left = w.leaves(x.In.Workload, x.Came, x.Out)
	}
	x.left.Dst = x.Judged.Dst
	return next, place, w.passes(f, x, opens)
}

// crossBack takes an answer past a host that knows the connection.
func (w *World) crossBack(f *Fate, x, of *hop) (next *host, place string, ok bool) {
	h := w.host(x.Host)
	x.left = x.Came // translated back
	x.left.Src, x.left.Dst = of.Came.Dst, of.Came.Src
	x.Out, next, place = w.route(h, x.left.Dst)
	if back := of.In.Interface; back != nil && (x.Out.Interface == nil || x.Out.Interface.Name != back.Name) {
		f.aside = true
	}
	r := w.cluster.Cross(x.Crossing)
	raw, said := ofPackets(x.Crossing, r)
	switch raw {
	case api.Deny:
		f.Said, f.Verdict = r.Decisions(), api.Deny
		return nil, "", false
	case api.Allow: // and what is not tracked is not translated
		f.Said, x.untracked, x.left = append(f.Said, said), true, x.Came
		x.Out, next, place = w.route(h, x.Came.Dst)
	}
	return next, place, true
}

// start is the host that sees a packet from a place first, and how it comes.
func (w *World) start(from string) (*host, explain.Side) {
	if s := w.slot(from); s != nil {
		if e := w.at[from]; e != nil {
			return s.host, explain.Side{Workload: e.Key()}
		}
		return s.host, explain.Side{Workload: api.Key{Kind: api.KindWorkloadEndpoint, Name: from}}
	}
	for _, h := range w.hosts {
		if h.beyond.name == from {
			return h, explain.Side{Interface: h.eth(1)}
		}
	}
	return w.host(from), explain.Side{}
}

// host is the one of that name.
func (w *World) host(name string) *host {
	i := slices.IndexFunc(w.hosts, func(h *host) bool { return h.name == name })
	return w.hosts[i]
}

// eth is an interface of the host: that to the other host, or to the outside.
func (h *host) eth(n int) *explain.Interface {
	addrs := h.more
	if n == 0 {
		addrs = []netip.Addr{h.v4, h.v6}
	}
	return &explain.Interface{Name: fmt.Sprintf("eth%d", n), Addrs: addrs}
}

// route is where a host sends what is for an address: what it leaves by, the
// host that comes next, and else the place where it arrives.
func (w *World) route(h *host, dst netip.Addr) (out explain.Side, next *host, place string) {
	if _, internal, ok := w.cluster.Floating(dst); ok {
		dst = internal // it is routed there, also where it is not translated
	}
	if slices.Contains(h.addrs(), dst) {
		return out, nil, h.name
	}
	place = w.place(dst)
	if s := w.slot(place); s != nil && s.host == h {
		return explain.Side{Workload: w.at[place].Key()}, nil, place
	}
	other := w.hosts[0]
	if other == h {
		other = w.hosts[1]
	}
	if slices.ContainsFunc(other.nets(), func(n netip.Prefix) bool { return n.Contains(dst) }) {
		return explain.Side{Interface: h.eth(0)}, other, ""
	}
	return explain.Side{Interface: h.eth(1)}, nil, Outside
}

// nets are what the other host has routes to by this one.
func (h *host) nets() []netip.Prefix {
	n := h.v4.As4()[3]
	return []netip.Prefix{
		netip.PrefixFrom(h.v4, 32), netip.PrefixFrom(h.v6, 128),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, n, 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:65:%d::/64", n)),
	}
}

// refused says why a host takes no notice of a packet, whatever it is; "" if it
// does.
func (w *World) refused(h *host, p Packet, in explain.Side, came explain.Packet) string {
	if in.Interface != nil {
		for _, k := range w.cluster.Owners(came.Src) {
			if w.cluster.Host(k) == h.name && slices.Contains(w.cluster.Addresses(k), came.Src) {
				return "a workload's address from elsewhere"
			}
		}
	}
	s := w.slot(p.From)
	if s == nil || in.Workload == (api.Key{}) {
		return ""
	}
	e := w.at[p.From]
	switch {
	case e == nil:
		return "no endpoint"
	case p.MAC != "" && e.Spec.MAC.Set:
		return "not the workload's MAC"
	case !w.sendsFrom(e, came.Src):
		return "not the workload's address"
	}
	return ""
}

// sendsFrom says whether a workload may send from an address: its own, one in a
// range of its own that is not another's here, or one that it may use besides.
func (w *World) sendsFrom(e *api.WorkloadEndpoint, a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	others := e.Spec.AllowSpoofedSourcePrefixes.Prefixes
	if in(others) || slices.Contains(w.cluster.Addresses(e.Key()), a) {
		return true
	}
	owners := w.cluster.Owners(a)
	switch {
	case len(owners) > 0 && slices.Contains(w.cluster.Addresses(owners[0]), a):
		return false
	case a.Is4() && len(others) == 0: // the kernel looks where it has a route to it
		return len(owners) > 0 && owners[0] == e.Key()
	}
	// Of those with one range, the first has it.
	own := slices.DeleteFunc(slices.Clone(e.Spec.IPNetworks.Prefixes), func(n netip.Prefix) bool {
		for _, other := range w.at {
			if other.Spec.Node == e.Spec.Node && other.Key().Compare(e.Key()) < 0 && slices.Contains(other.Spec.IPNetworks.Prefixes, n) {
				return true
			}
		}
		return false
	})
	return in(own)
}

// passes asks one host. What is of no connection and opens none is policy's only
// where that looks at packets.
func (w *World) passes(f *Fate, x *hop, opens bool) bool {
	if isNeighbour(x.Came) && x.In.Workload != (api.Key{}) && isLocal(x.Out) {
		f.Why = "neighbour discovery"
		return true
	}
	r := w.cluster.Cross(x.Crossing)
	said := r.Decisions()
	raw, rawSaid := ofPackets(x.Crossing, r)
	if opens || raw == api.Deny {
		f.Said = append(f.Said, said...)
		if raw == api.Allow {
			x.untracked = true
		}
		f.Verdict = r.Verdict
		return r.Verdict == api.Allow
	}
	if raw == api.Allow {
		x.untracked = true
		f.Said = append(f.Said, rawSaid)
		return true
	}
	if w.needsConnection(x.Crossing, said) {
		f.Why = "of no connection"
		return false
	}
	return true
}

// ofPackets is what policy that looks at packets decides: Allow or Deny, or ""
// if it does not.
func ofPackets(x explain.Crossing, r explain.Result) (api.Action, *explain.Decision) {
	d := r.Entering
	if isLocal(x.In) {
		d = r.Leaving
	}
	switch {
	case d == nil:
	case d.Untracked:
		return api.Allow, d
	case d.Verdict == api.Deny && len(d.Trail) > 0 && d.Trail[len(d.Trail)-1].Kind == explain.Untracked:
		return api.Deny, d
	}
	return "", nil
}

// isLocal says that a packet begins in the host, or ends there.
func isLocal(s explain.Side) bool { return s.Workload == (api.Key{}) && s.Interface == nil }

// needsConnection says whether a host drops what connection tracking does not
// know, where those said something who are asked.
func (w *World) needsConnection(x explain.Crossing, said []*explain.Decision) bool {
	switch {
	case isLocal(x.In) || isLocal(x.Out) && x.In.Interface != nil:
		for _, d := range said {
			if d.Endpoint.Kind == api.KindHostEndpoint {
				return len(d.Trail) > 0 // else it passes in any case
			}
		}
		return false
	case x.In.Interface == nil || x.Out.Interface == nil:
		return true
	}
	// Between interfaces of the host only where some policy is about that.
	any, _ := w.cluster.HostEndpoint(x.Host, explain.Interface{})
	in, _ := w.cluster.HostEndpoint(x.Host, *x.In.Interface)
	out, _ := w.cluster.HostEndpoint(x.Host, *x.Out.Interface)
	return slices.ContainsFunc([]api.Key{any, in, out}, func(k api.Key) bool {
		return w.has(k, api.Ingress, explain.Forward) || w.has(k, api.Ingress, explain.PreDNAT) || w.has(k, api.Egress, explain.Forward)
	})
}

// has says whether an endpoint has policy of a kind.
func (w *World) has(k api.Key, dir api.Direction, kind explain.Kind) bool {
	return slices.ContainsFunc(w.cluster.StagesOf(k, dir, kind), func(s explain.Stage) bool { return len(s.Policies) > 0 })
}

// Ends are the addresses of a packet.
type Ends struct{ Src, Dst netip.Addr }

func ends(p explain.Packet) Ends { return Ends{p.Src, p.Dst} }

// translated are the addresses with which a packet arrives, if it does.
func (w *World) translated(p Packet) Ends {
	as := Ends{p.Src, p.Dst}
	if !p.opens() {
		return as
	}
	if _, internal, ok := w.cluster.Floating(p.Dst); ok {
		as.Dst = internal
	}
	from := w.slot(p.From)
	if from == nil || w.at[p.From] == nil {
		return as
	}
	place := w.place(as.Dst)
	switch to := w.slot(place); {
	case to == from && as.Dst != p.Dst && slices.Contains(w.cluster.Addresses(w.at[p.From].Key()), p.Src):
		as.Src = p.Dst // so that it answers by its host
	case place == from.host.name, to != nil && to.host == from.host:
	default:
		out, _, _ := w.route(from.host, p.Dst)
		as.Src = w.leaves(w.at[p.From].Key(), p.Packet, out).Src
	}
	return as
}

// leaves is a workload's packet as it leaves its host. The host's address is that
// of the interface.
func (w *World) leaves(from api.Key, p explain.Packet, out explain.Side) explain.Packet {
	p = w.cluster.Leaves(from, p)
	if out.Interface != nil && w.owner[p.Src] == w.cluster.Host(from) {
		i := slices.IndexFunc(out.Interface.Addrs, func(a netip.Addr) bool { return a.Is4() == p.Src.Is4() })
		p.Src = out.Interface.Addrs[i]
	}
	return p
}

// isNeighbour says that a packet is one that every workload may send to its
// host.
func isNeighbour(p explain.Packet) bool {
	return p.Dst.Is6() && p.Protocol == unix.IPPROTO_ICMPV6 && slices.Contains([]uint8{131, 132, 133, 135, 143}, p.ICMPType)
}
