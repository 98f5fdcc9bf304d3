package calc_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"tortie/api"
	"tortie/calc"
	"tortie/desired"
)

// object names one thing that a Calc can be told of.
type object struct {
	key   api.Key
	iface string // not empty: an interface, key is empty
}

func (o object) compare(p object) int {
	if c := strings.Compare(o.iface, p.iface); c != 0 {
		return c
	}
	return o.key.Compare(p.key)
}

// step sets an object; a nil value means that it is gone. A step without an
// object is a Flush.
type step struct {
	object
	value    any // *api.WorkloadEndpoint, *calc.HostInterface, …
	problems []api.Problem
	doc      string // what value was decoded from, for messages
}

func (s step) String() string {
	switch {
	case s.isFlush():
		return "flush"
	case s.value == nil:
		return "delete " + s.key.String() + " " + s.iface
	case s.iface != "":
		return fmt.Sprintf("put %s %+v", s.iface, s.value)
	default:
		return "put " + s.doc
	}
}

func (s step) isFlush() bool { return s.object == object{} }

// do takes the step.
func (s step) do(c *calc.Calc, d *desired.State) {
	switch s.key.Kind {
	case api.KindWorkloadEndpoint:
		v, _ := s.value.(*api.WorkloadEndpoint)
		c.SetWorkload(s.key, v, s.problems)
	case api.KindHostEndpoint:
		v, _ := s.value.(*api.HostEndpoint)
		c.SetHostEndpoint(s.key, v, s.problems)
	case api.KindHostAddresses:
		v, _ := s.value.(*api.HostAddresses)
		c.SetAddresses(s.key.Name, v)
	case api.KindTier:
		v, _ := s.value.(*api.Tier)
		c.SetTier(s.key, v)
	case api.KindProfile:
		v, _ := s.value.(*api.Profile)
		c.SetProfile(s.key, v)
	case api.KindNetworkSet, api.KindGlobalNetworkSet:
		v, _ := s.value.(*api.NetworkSet)
		c.SetNetworkSet(s.key, v)
	case api.KindIPPool:
		v, _ := s.value.(*api.IPPool)
		c.SetPool(s.key, v)
	case api.KindNode:
		v, _ := s.value.(*api.Node)
		c.SetNode(s.key, v)
	case "":
		if s.isFlush() {
			c.Flush(d)
			return
		}
		v, _ := s.value.(*calc.HostInterface)
		c.SetInterface(s.iface, v)
	default:
		v, _ := s.value.(*api.Policy)
		c.SetPolicy(s.key, v)
	}
}

// world is the last value of every object that is there.
type world map[object]step

func worldAfter(steps []step) world {
	w := world{}
	for _, s := range steps {
		w.apply(s)
	}
	return w
}

func (w world) apply(s step) {
	switch {
	case s.isFlush():
	case s.value == nil:
		delete(w, s.object)
	default:
		w[s.object] = s
	}
}

// steps returns the steps that make the world from nothing, in order.
func (w world) steps() []step {
	var out []step
	for _, o := range slices.SortedFunc(maps.Keys(w), object.compare) {
		out = append(out, w[o])
	}
	return out
}

// replays are histories that end in the same world as steps does.
func replays(steps []step, seed uint64) map[string][]step {
	flush := step{}
	final := worldAfter(steps).steps()
	restart := append(slices.Clone(final), flush)
	var reversed, doubled []step
	for _, s := range slices.Backward(final) {
		reversed = append(reversed, s, flush)
	}
	for _, s := range steps {
		doubled = append(doubled, s, flush, s, flush)
	}
	once := slices.DeleteFunc(slices.Clone(steps), step.isFlush)
	once = append(once, flush)
	return map[string][]step{
		"restart":     restart,
		"reversed":    reversed,
		"doubled":     doubled,
		"all at once": once,
		"shuffled":    shuffled(steps, seed),
	}
}

// shuffled interleaves the histories of the objects at random, with flushes at
// random.
func shuffled(steps []step, seed uint64) []step {
	rnd := rand.New(rand.NewPCG(seed, 1))
	histories := map[object][]step{}
	for _, s := range steps {
		if !s.isFlush() {
			histories[s.object] = append(histories[s.object], s)
		}
	}
	objects := slices.SortedFunc(maps.Keys(histories), object.compare)
	var out []step
	for len(objects) > 0 {
		i := rnd.IntN(len(objects))
		o := objects[i]
		out = append(out, histories[o][0])
		if histories[o] = histories[o][1:]; len(histories[o]) == 0 {
			objects = slices.Delete(objects, i, i+1)
		}
		if rnd.IntN(3) == 0 {
			out = append(out, step{})
		}
	}
	return append(out, step{})
}

// text is the state in the form in which it is shown.
func text(d *desired.State) string {
	var b strings.Builder
	if err := d.WriteText(&b); err != nil {
		panic(err) // a strings.Builder does not fail
	}
	return b.String()
}

// rows returns the state as one comparable row for each object: what it is,
// and its value as text.
func rows(d *desired.State) map[string]string {
	out := map[string]string{}
	for k, v := range d.Endpoints.All() {
		out[rowEndpoint(k)] = v.String()
	}
	for k, v := range d.Interfaces.All() {
		out[rowInterface(k)] = v.String()
	}
	for k, v := range d.Controls.All() {
		out["controls "+k] = v.String()
	}
	for k, v := range d.Hosts.All() {
		out["host "+k] = fmt.Sprint(v)
	}
	for k, v := range d.Programs.All() {
		out[rowProgram(k)] = fmt.Sprint(v)
	}
	for k, v := range d.Sets.All() {
		out[rowSet(k)] = v.Selector
	}
	for k := range d.Members.All() {
		out[rowMember(k)] = ""
	}
	for k, v := range d.Routes.All() {
		out[rowRoute(k)] = fmt.Sprint(v)
	}
	for k, v := range d.Neighbours.All() {
		out[rowNeighbour(k)] = fmt.Sprint(v)
	}
	for k := range d.Gateways.All() {
		out["gateway "+k.String()] = ""
	}
	for k, v := range d.Floating.All() {
		out["floating "+k.String()] = v.String()
	}
	for k, v := range d.External.All() {
		out["external "+k.String()] = v.String()
	}
	for k := range d.Masquerade.All() {
		out["masquerade "+k.String()] = ""
	}
	for k := range d.Inside.All() {
		out["inside "+k.String()] = ""
	}
	return out
}

// dirtyRows returns the rows that the state's tables say are dirty.
func dirtyRows(d *desired.State) []string {
	var out []string
	for k := range d.Endpoints.Dirty() {
		out = append(out, rowEndpoint(k))
	}
	for k := range d.Interfaces.Dirty() {
		out = append(out, rowInterface(k))
	}
	for k := range d.Controls.Dirty() {
		out = append(out, "controls "+k)
	}
	for k := range d.Hosts.Dirty() {
		out = append(out, "host "+k)
	}
	for k := range d.Programs.Dirty() {
		out = append(out, rowProgram(k))
	}
	for k := range d.Sets.Dirty() {
		out = append(out, rowSet(k))
	}
	for k := range d.Members.Dirty() {
		out = append(out, rowMember(k))
	}
	for k := range d.Routes.Dirty() {
		out = append(out, rowRoute(k))
	}
	for k := range d.Neighbours.Dirty() {
		out = append(out, rowNeighbour(k))
	}
	for k := range d.Gateways.Dirty() {
		out = append(out, "gateway "+k.String())
	}
	for k := range d.Floating.Dirty() {
		out = append(out, "floating "+k.String())
	}
	for k := range d.External.Dirty() {
		out = append(out, "external "+k.String())
	}
	for k := range d.Masquerade.Dirty() {
		out = append(out, "masquerade "+k.String())
	}
	for k := range d.Inside.Dirty() {
		out = append(out, "inside "+k.String())
	}
	slices.Sort(out)
	return out
}

func rowEndpoint(k api.Key) string          { return "endpoint " + k.String() }
func rowInterface(k string) string          { return "interface " + k }
func rowProgram(k desired.ProgramID) string { return "program " + string(k) }
func rowSet(k desired.SetKey) string        { return "set " + k.String() }
func rowMember(k desired.Member) string {
	text := "member " + k.Set.String() + " " + k.Prefix.String()
	if k.Set.Ports {
		text += fmt.Sprintf(" %d/%d", k.Protocol, k.Port)
	}
	return text
}

func rowRoute(k desired.RouteKey) string {
	return fmt.Sprintf("route %s metric=%d", k.Prefix, k.Metric)
}

func rowNeighbour(k desired.NeighbourKey) string {
	return fmt.Sprintf("neighbour %s %s %v", k.Interface, k.Addr, k.Proxy)
}
