package agent

import (
	"context"

	"tortie/api"
	"tortie/store"
)

// decoded is a batch of the watch, read.
type decoded struct {
	changes   []change
	revision  int64
	inSync    bool
	connected bool
}

// change is one object that was put or, where object is nil, deleted. An
// object that could not be read at all has err.
type change struct {
	key      api.Key
	object   api.Object
	problems []api.Problem
	err      error
}

// follow reads the watch and hands each batch, decoded, to the loop. While the
// loop is busy the watcher collects; so memory is bounded by the number of
// objects.
func follow(ctx context.Context, w store.Watcher, to chan<- decoded) {
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return // ctx has ended
		}
		d := decoded{revision: b.Revision, inSync: b.InSync, connected: b.Connected}
		d.changes = make([]change, 0, len(b.Events))
		for _, e := range b.Events {
			d.changes = append(d.changes, decode(e))
		}
		select {
		case to <- d:
		case <-ctx.Done():
			return
		}
	}
}

func decode(e store.Event) change {
	key, err := api.ParsePath(e.Path)
	if err != nil {
		key = api.Key{Name: e.Path} // under which the problem is shown
	}
	if e.Deleted {
		return change{key: key}
	}
	if err != nil {
		return change{key: key, err: err}
	}
	object, problems, err := api.Decode(e.Path, e.Value)
	return change{key: key, object: object, problems: problems, err: err}
}

// takeObject hands one change to calc, or to the loop's own settings.
func (l *loop) takeObject(c change) {
	l.note(c)
	if c.err != nil {
		return // what was last good stays
	}
	l.tellMaker(c)
	switch c.key.Kind {
	case api.KindWorkloadEndpoint:
		o, _ := c.object.(*api.WorkloadEndpoint)
		l.calc.SetWorkload(c.key, o, c.problems)
	case api.KindHostEndpoint:
		o, _ := c.object.(*api.HostEndpoint)
		l.calc.SetHostEndpoint(c.key, o, c.problems)
	case api.KindNetworkPolicy, api.KindGlobalNetworkPolicy, api.KindStagedNetworkPolicy, api.KindStagedGlobalNetworkPolicy:
		o, _ := c.object.(*api.Policy)
		l.calc.SetPolicy(c.key, o)
	case api.KindStagedKubernetesNetworkPolicy:
		o, _ := c.object.(*api.KubernetesPolicy)
		if o == nil {
			l.calc.SetPolicy(c.key, nil)
		} else {
			l.calc.SetPolicy(c.key, api.AsPolicy(o))
		}
	case api.KindTier:
		o, _ := c.object.(*api.Tier)
		l.calc.SetTier(c.key, o)
	case api.KindProfile:
		o, _ := c.object.(*api.Profile)
		l.calc.SetProfile(c.key, o)
	case api.KindNetworkSet, api.KindGlobalNetworkSet:
		o, _ := c.object.(*api.NetworkSet)
		l.calc.SetNetworkSet(c.key, o)
	case api.KindIPPool:
		o, _ := c.object.(*api.IPPool)
		l.calc.SetPool(c.key, o)
	case api.KindNode:
		o, _ := c.object.(*api.Node)
		l.calc.SetNode(c.key, o)
	case api.KindHostAddresses:
		o, _ := c.object.(*api.HostAddresses)
		l.calc.SetAddresses(c.key.Name, o)
		if c.key.Name == l.cfg.Hostname && l.status != nil {
			l.status.CheckAddresses() // it is only for this host to write
		}
	case api.KindClusterInformation:
		if c.key.Name != "default" {
			return
		}
		o, _ := c.object.(*api.ClusterInformation)
		l.ready = o != nil && o.Spec.DatastoreReady != nil && *o.Spec.DatastoreReady
	case api.KindFelixConfiguration:
		o, _ := c.object.(*api.FelixConfiguration)
		if o == nil {
			delete(l.felix, c.key.Name)
		} else {
			l.felix[c.key.Name] = o
		}
	}
}

// note remembers and logs what is wrong with an object.
func (l *loop) note(c change) {
	problems := c.problems
	if c.err != nil {
		problems = []api.Problem{{Field: "(object)", Reason: c.err.Error()}}
	}
	for _, p := range l.problems[c.key] {
		l.metrics.problem(c.key.Kind, p, -1)
	}
	if len(problems) == 0 {
		delete(l.problems, c.key)
		return
	}
	l.problems[c.key] = problems
	for _, p := range problems {
		l.metrics.problem(c.key.Kind, p, 1)
		if p.Unsupported {
			l.log.Info("not enforced yet", "object", c.key.String(), "field", p.Field, "reason", p.Reason)
		} else {
			l.log.Warn("bad field", "object", c.key.String(), "field", p.Field, "value", p.Value, "reason", p.Reason)
		}
	}
}
