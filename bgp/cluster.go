package bgp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"

	"tortie/api"
	"tortie/store"
)

// kinds are what the process watches.
var kinds = []api.Kind{api.KindNode, api.KindBGPConfiguration, api.KindBGPPeer}

// cluster is what the store says, as far as it concerns BGP.
type cluster struct {
	log     *slog.Logger
	nodes   map[string]*api.Node
	configs map[string]*api.BGPConfiguration
	peers   map[string]*api.BGPPeer
	faults  map[string][]string        // by path: why an object, or parts of it, are not in force
	stored  map[string]json.RawMessage // by path: what those above were read from
}

func newCluster(log *slog.Logger) *cluster {
	return &cluster{
		log:     log,
		nodes:   map[string]*api.Node{},
		configs: map[string]*api.BGPConfiguration{},
		peers:   map[string]*api.BGPPeer{},
		faults:  map[string][]string{},
		stored:  map[string]json.RawMessage{},
	}
}

// update takes in one change. An object that cannot be read at all keeps its
// last good state.
func (c *cluster) update(ev store.Event) {
	key, err := api.ParsePath(ev.Path)
	if err != nil {
		return // not a resource; others may keep keys beside them
	}
	delete(c.faults, ev.Path)
	if ev.Deleted {
		c.remove(key)
		delete(c.stored, ev.Path)
		return
	}
	obj, problems, err := api.Decode(ev.Path, ev.Value)
	if err != nil {
		c.faults[ev.Path] = []string{err.Error()}
		c.log.Warn("ignoring a resource that cannot be read", "resource", key.String(), "error", err)
		return
	}
	for _, p := range problems {
		c.faults[ev.Path] = append(c.faults[ev.Path], fmt.Sprintf("%s %s", key, p)) // as the agent says it
		c.log.Warn("a field is not in force", "resource", key.String(), "problem", p.String())
	}
	switch o := obj.(type) {
	case *api.Node:
		c.nodes[key.Name] = o
	case *api.BGPConfiguration:
		c.configs[key.Name] = o
	case *api.BGPPeer:
		c.peers[key.Name] = o
	default:
		return
	}
	c.stored[ev.Path] = bytes.Clone(ev.Value)
}

func (c *cluster) remove(key api.Key) {
	switch key.Kind {
	case api.KindNode:
		delete(c.nodes, key.Name)
	case api.KindBGPConfiguration:
		delete(c.configs, key.Name)
	case api.KindBGPPeer:
		delete(c.peers, key.Name)
	}
}
