package proof

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/explain"
)

// Fate is what should become of a packet that is of no connection yet.
type Fate struct {
	Place string // where it arrives, "" if nowhere
	As    Ends   // with which addresses
	Why   string // where that was not policy's
	Ends  explain.Result
}

func (f Fate) String() string {
	if f.Why != "" {
		return f.Why
	}
	out := string(f.Ends.Verdict)
	for _, d := range []*explain.Decision{f.Ends.Source, f.Ends.Destination} {
		if d != nil {
			out += "\n" + d.String()
		}
	}
	return out
}

// Expect says what should become of a packet. Policy is what explain says; the
// rest is what the data path promises beside it: a workload sends from its own
// addresses only, an interface without an endpoint passes nothing, what
// connection tracking has no connection for does not pass a workload's
// interface, a host reaches its own workloads, and what a workload sends to
// its host is up to the host.
func (w *World) Expect(p Packet) Fate {
	f := w.expect(p)
	f.As = w.translated(p)
	return f
}

func (w *World) expect(p Packet) Fate {
	dst := p.Dst
	if _, internal, ok := w.cluster.Floating(dst); ok {
		dst = internal // it is routed there, also where it is not translated
	}
	place, ok := w.owner[dst]
	if !ok {
		place = Outside
	}
	to, from := w.slot(place), w.slot(p.From)
	drop := func(why string) Fate { return Fate{Why: why} }
	switch {
	case from != nil && w.at[p.From] == nil:
		return drop("no endpoint")
	case from != nil && !slices.Contains(w.cluster.Addresses(w.at[p.From].Key()), p.Src):
		return drop("not the workload's address")
	case from == nil && to == nil: // no workload's
		return Fate{Place: place, Why: "no workload"}
	case to != nil && dst != p.Dst && !p.opens():
		return drop("of no connection that could be translated")
	case to != nil && p.From == to.host.name:
		return Fate{Place: place, Why: "from the workload's host"}
	case from != nil && place == from.host.name && isNeighbour(p):
		return Fate{Place: place, Why: "neighbour discovery"}
	case !p.opens():
		return drop("of no connection")
	}
	f := Fate{Place: place, Ends: w.cluster.Connection(p.Packet)}
	if f.Ends.Verdict != api.Allow {
		f.Place = ""
	}
	return f
}

// Ends are the addresses of a packet.
type Ends struct{ Src, Dst netip.Addr }

// translated are the addresses with which a packet arrives, if it does.
func (w *World) translated(p Packet) Ends {
	as := Ends{p.Src, p.Dst}
	if !p.opens() {
		return as
	}
	if _, internal, ok := w.cluster.Floating(p.Dst); ok {
		as.Dst = internal
	}
	from, place := w.slot(p.From), w.owner[as.Dst]
	if from == nil || w.at[p.From] == nil {
		return as
	}
	switch to := w.slot(place); {
	case to == from && as.Dst != p.Dst:
		as.Src = p.Dst // so that it answers by its host
	case place == from.host.name, to != nil && to.host == from.host:
	default:
		as.Src = w.cluster.Leaves(w.at[p.From].Key(), p.Packet).Src
	}
	return as
}

// isNeighbour says that a packet is one that every workload may send to its
// host.
func isNeighbour(p Packet) bool {
	return p.Dst.Is6() && p.Protocol == unix.IPPROTO_ICMPV6 && slices.Contains([]uint8{131, 132, 133, 135, 143}, p.ICMPType)
}
