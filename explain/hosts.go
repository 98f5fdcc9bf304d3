package explain

import (
	"net/netip"
	"slices"

	"tortie/api"
)

// Kind is what a policy judges at a host endpoint.
type Kind string

// The kinds. Policy that applies on forward is normal policy too.
const (
	Normal    Kind = ""               // what ends in the host or begins there
	Forward   Kind = "applyOnForward" // what passes through it
	PreDNAT   Kind = "preDNAT"        // both, before the others, with the addresses that it came with
	Untracked Kind = "doNotTrack"     // each packet that comes in or that the host sends, before all of it
)

// Kinds are all of them.
var Kinds = []Kind{Normal, Forward, PreDNAT, Untracked}

// Interface is one of a host itself. It may have no name that is known.
type Interface struct {
	Name  string
	Addrs []netip.Addr
}

// Side is where a packet comes into a host or leaves it. The zero Side is the
// host itself: the packet begins or ends there.
type Side struct {
	Workload  api.Key    // by the interface of this endpoint, or
	Interface *Interface // by one of the host's own
}

func (s Side) isHost() bool { return s.Workload == (api.Key{}) && s.Interface == nil }

// Crossing is a packet at one host, of no connection yet.
type Crossing struct {
	Host    string
	In, Out Side
	Came    Packet // as it comes in
	Judged  Packet // as policy sees it: its destination may be translated
}

// loopback is the interface that no endpoint judges.
const loopback = "lo"

// HostEndpoint returns the host endpoint that an interface of a host has: one
// that names it, else one that expects an address of it, else the one for any.
// Of several that is the one with the lowest key.
func (c *Cluster) HostEndpoint(host string, i Interface) (api.Key, bool) {
	if i.Name == loopback {
		return api.Key{}, false
	}
	tests := []func(h *api.HostEndpoint) bool{
		func(h *api.HostEndpoint) bool { return i.Name != "" && h.Spec.InterfaceName == i.Name },
		func(h *api.HostEndpoint) bool {
			return h.Spec.InterfaceName == "" && slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return expects(h, a) })
		},
		func(h *api.HostEndpoint) bool { return h.Spec.InterfaceName == api.AnyInterface },
	}
	for _, test := range tests {
		if keys := c.hostsThat(func(h *api.HostEndpoint) bool { return h.Spec.Node == host && test(h) }); len(keys) > 0 {
			return keys[0], true
		}
	}
	return api.Key{}, false
}

// hostsThat returns the host endpoints that pass a test, lowest key first.
func (c *Cluster) hostsThat(test func(*api.HostEndpoint) bool) []api.Key {
	var keys []api.Key
	for k, h := range c.hosts {
		if test(h) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, api.Key.Compare)
	return keys
}

// Cross says what the policy of a host and of its workloads decides on a packet.
func (c *Cluster) Cross(x Crossing) Result {
	x.Came, x.Judged = x.Came.unmapped(), x.Judged.unmapped()
	var r Result
	kind := Forward
	if x.In.isHost() || x.Out.isHost() {
		kind = Normal
	}
	switch {
	case x.In.Interface != nil:
		if k, ok := c.HostEndpoint(x.Host, *x.In.Interface); ok {
			r.Entering = c.judge(k, api.Ingress, kind, &x)
		}
	case !x.In.isHost():
		r.Source = c.sends(x.In.Workload, x.Judged)
		if x.Out.isHost() {
			r.Entering = c.fromWorkload(&x)
		}
	}
	switch {
	case r.Entering != nil && r.Entering.Untracked, x.Out.isHost():
	case x.Out.Interface != nil:
		if k, ok := c.HostEndpoint(x.Host, *x.Out.Interface); ok {
			r.Leaving = c.judge(k, api.Egress, kind, &x)
		}
	case x.In.isHost(): // the endpoint for any interface alone is for those of workloads
		if k, ok := c.HostEndpoint(x.Host, Interface{}); ok {
			r.Leaving = c.judge(k, api.Egress, kind, &x)
		}
		r.Destination = &Decision{Endpoint: x.Out.Workload, Host: x.Host, Direction: api.Ingress, Verdict: api.Allow, Reason: "its own host reaches it"}
	default:
		d := c.Endpoint(x.Out.Workload, api.Ingress, x.Judged)
		r.Destination = &d
	}
	r.conclude()
	return r
}

// conclude sets the overall verdict.
func (r *Result) conclude() {
	r.Verdict = api.Allow
	for _, d := range r.Decisions() {
		if d.Verdict != api.Allow {
			r.Verdict = api.Deny
		}
	}
}

// sends is what a workload's own policy says of what it sends.
func (c *Cluster) sends(from api.Key, p Packet) *Decision {
	d := c.Endpoint(from, api.Egress, p)
	if p.answersDHCP() {
		d = Decision{Endpoint: d.Endpoint, Host: d.Host, Direction: d.Direction, Verdict: api.Deny, Reason: "a workload is no DHCP server"}
	}
	return &d
}

// fromWorkload is what a host says of what its workload sends to it, beside the
// workload's own policy.
func (c *Cluster) fromWorkload(x *Crossing) *Decision {
	action := c.around.setting(x.Host, "defaultEndpointToHostAction")
	if action == "" {
		action = "Drop"
	}
	d := &Decision{Host: x.Host, Direction: api.Ingress, Verdict: api.Allow, Reason: "DefaultEndpointToHostAction is " + action}
	switch action {
	case "Accept":
	case "Return":
		if k, ok := c.HostEndpoint(x.Host, Interface{}); ok {
			return c.judge(k, api.Ingress, Normal, x)
		}
		d.Reason += ", and no host endpoint is for any interface"
	default:
		d.Verdict = api.Deny
	}
	return d
}

// judge says what a host endpoint decides on a packet that comes in by its
// interface or leaves by it.
func (c *Cluster) judge(key api.Key, dir api.Direction, kind Kind, x *Crossing) *Decision {
	d := &Decision{Endpoint: key, Host: x.Host, Direction: dir, Kind: kind, Verdict: api.Deny}
	came := c.newEvaluation(x.Came, d)
	// Packets are looked at where they come in and where the host sends them.
	raw := dir == api.Ingress && x.In.Interface != nil || dir == api.Egress && x.In.isHost() && x.Out.Interface != nil
	if raw && !c.spared(x.Host, dir, x.Came) && came.early(c.StagesOf(key, dir, Untracked), Untracked) {
		if d.Verdict == api.Deny {
			return d
		}
		if !c.isLocal(x.Host, x.Came.Src) && !c.isLocal(x.Host, x.Came.Dst) {
			d.Untracked = true
			return d
		}
		// A workload's own policy needs the connection, and with one the rest is asked.
		d.Trail[len(d.Trail)-1].Action = api.Pass
		d.Verdict, d.Rule, d.Tier, d.Reason = api.Deny, nil, "", ""
	}
	if why := c.passes(x, dir); kind == Normal && why != "" {
		d.Verdict, d.Trail, d.Reason = api.Allow, nil, why
		return d
	}
	if came.early(c.StagesOf(key, dir, PreDNAT), PreDNAT) {
		return d
	}
	e := c.newEvaluation(x.Judged, d)
	if kind == Forward {
		e.forward(c.StagesOf(key, dir, kind))
	} else {
		e.all(c.StagesOf(key, dir, kind), c.hosts[key].Spec.Profiles)
	}
	return d
}

// early evaluates policy that leaves what it does not decide to what comes
// after it, whatever its tiers say, and reports whether it decided.
func (e *evaluation) early(stages []Stage, kind Kind) bool {
	for _, s := range stages {
		if len(s.Policies) == 0 {
			continue
		}
		s.Pass = true
		done := e.stage(s)
		e.decision.Trail[len(e.decision.Trail)-1].Kind = kind
		if done {
			e.decision.Tier = s.Tier
			return true
		}
	}
	return false
}

// forward evaluates policy of what passes through: it goes on where no tier
// decides, and profiles are not asked.
func (e *evaluation) forward(stages []Stage) {
	if e.stages(stages) {
		return
	}
	e.begin("", api.Allow).Kind = Forward
	e.decision.Verdict, e.decision.Reason = api.Allow, "no policy decides on what passes through"
}

// isLocal reports whether an address is that of a workload of a host.
func (c *Cluster) isLocal(host string, a netip.Addr) bool {
	for k, w := range c.endpoints {
		if c.Host(k) == host && contains(networks(w), a) {
			return true
		}
	}
	k, _, ok := c.Floating(a)
	return ok && c.Host(k) == host
}

// isNeighbour reports whether a packet is one by which routers and neighbours
// find each other: it always passes a host's own policy.
func (p Packet) isNeighbour() bool {
	return p.Dst.Is6() && p.Protocol == protoICMPv6 && (130 <= p.ICMPType && p.ICMPType <= 136 || p.ICMPType == 143)
}
