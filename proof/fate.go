package proof

import (
	"slices"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/explain"
)

// Fate is what should become of a packet that is of no connection yet.
type Fate struct {
	Place string // where it arrives, "" if nowhere
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
	place, ok := w.owner[p.Dst]
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
	} else if from != nil && place == from.host.name && from.host.action == "Drop" {
		return drop("hosts take nothing")
	}
	return f
}

// isNeighbour says that a packet is one that every workload may send to its
// host.
func isNeighbour(p Packet) bool {
	return p.Dst.Is6() && p.Protocol == unix.IPPROTO_ICMPV6 && slices.Contains([]uint8{131, 132, 133, 135, 143}, p.ICMPType)
}
