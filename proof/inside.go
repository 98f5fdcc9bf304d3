package proof

import (
	"tortie/api"
	"tortie/explain"
	"tortie/store"
)

// HostNames are the names of the hosts.
func (w *World) HostNames() []string {
	var names []string
	for _, h := range w.hosts {
		names = append(names, h.name)
	}
	return names
}

// Do runs f in the namespace of a host.
func (w *World) Do(host string, f func()) {
	for _, h := range w.hosts {
		if h.name == host {
			h.ns.Do(f)
		}
	}
}

// Stop stops the agent of a host; what is in the kernel stays.
func (w *World) Stop(host string) {
	for _, h := range w.hosts {
		if h.name == host {
			h.stop()
		}
	}
}

// Store is what the agents follow.
func (w *World) Store() store.Store { return w.data.Client() }

// Cluster is the cluster as explain has it.
func (w *World) Cluster() *explain.Cluster { return w.cluster }

// PlaceOf is the place of an endpoint.
func (w *World) PlaceOf(key api.Key) string { return slotOf(key) }

// Where sends packets, of connections that there are none of yet, and says
// where each arrived, "" if nowhere, whatever its source was translated to.
func (w *World) Where(packets []Packet) []string {
	w.t.Helper()
	places := make([]string, len(packets))
	for i, at := range w.Send(packets, func(p Packet) Ends { return Ends{Dst: w.translated(p).Dst} }) {
		if len(at) > 0 {
			places[i] = at[0].Place
		}
	}
	return places
}

// BeyondOf is the place beyond a host.
func (w *World) BeyondOf(host string) string {
	for _, h := range w.hosts {
		if h.name == host {
			return h.beyond.name
		}
	}
	return ""
}

// Start draws what fills a world: an endpoint in each slot and some policy.
func (d *Draw) Start(n int) []Change {
	var list []Change
	for _, s := range d.w.slots {
		list = append(list, d.endpoint(s))
	}
	for range n {
		list = append(list, d.Change())
	}
	return list
}
