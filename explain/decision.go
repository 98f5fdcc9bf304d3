package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// Packet is one that opens a connection. Ports are those of protocols that
// have ports, ICMPType and ICMPCode those of ICMP and ICMPv6.
type Packet struct {
	Src, Dst           netip.Addr
	Protocol           uint8
	SrcPort, DstPort   uint16
	ICMPType, ICMPCode uint8
}

// Result is what becomes of a connection. An end that is no workload endpoint
// is nil: it decides nothing.
type Result struct {
	Verdict     api.Action // Allow, or Deny if one end denies
	Source      *Decision  // of the sender's egress policy
	Destination *Decision  // of the receiver's ingress policy
}

// Decision is the verdict of one endpoint in one direction.
type Decision struct {
	Endpoint  api.Key
	Direction api.Direction
	Verdict   api.Action // Allow or Deny
	Tier      string     // in which it was decided; "" after all tiers
	Rule      *RuleRef   // that decided; nil if none did
	Reason    string     // one phrase
	Logs      []RuleRef  // Log rules that matched before, in order
}

// RuleRef names a rule of a policy or profile.
type RuleRef struct {
	Policy    api.Key
	Direction api.Direction
	Index     int // in the list of that direction, from 0
}

// String prints the reference as <kind>/<namespace>/<name>/<direction>/<index>.
func (r RuleRef) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%d", r.Policy.Kind, r.Policy.Namespace, r.Policy.Name, r.Direction, r.Index)
}

// String prints the decision as one line.
func (d Decision) String() string {
	return fmt.Sprintf("%s %s of %s: %s", d.Verdict, d.Direction, d.Endpoint, d.Reason)
}

// Connection says what becomes of a connection between whatever has its
// addresses. Of several endpoints with an address, the one on the sender's
// host receives; else, and for the sender, the one with the lowest key counts.
func (c *Cluster) Connection(p Packet) Result {
	p = p.unmapped()
	r := Result{Verdict: api.Allow}
	sources, destinations := c.owners[p.Src], c.owners[p.Dst]
	if len(sources) > 0 {
		d := c.Endpoint(sources[0], api.Egress, p)
		r.Source = &d
	}
	if len(destinations) > 0 {
		at := 0
		if r.Source != nil {
			host := c.host(sources[0])
			at = max(0, slices.IndexFunc(destinations, func(k api.Key) bool { return c.host(k) == host }))
		}
		d := c.Endpoint(destinations[at], api.Ingress, p)
		r.Destination = &d
	}
	for _, d := range []*Decision{r.Source, r.Destination} {
		if d != nil && d.Verdict != api.Allow {
			r.Verdict = api.Deny
		}
	}
	return r
}

func (p Packet) unmapped() Packet {
	p.Src, p.Dst = p.Src.Unmap(), p.Dst.Unmap()
	return p
}

// host returns the host of an endpoint, by its name if that has the parts it
// should have.
func (c *Cluster) host(k api.Key) string {
	if n, err := api.ParseWorkloadName(k.Name); err == nil {
		return n.Node
	}
	return c.endpoints[k].Spec.Node
}

// Endpoint says what the policy of one endpoint decides on a packet that it
// sends (Egress) or that is sent to it (Ingress), whether or not the packet
// has its address.
func (c *Cluster) Endpoint(key api.Key, dir api.Direction, p Packet) Decision {
	d := Decision{Endpoint: key, Direction: dir, Verdict: api.Deny}
	w := c.endpoints[key]
	if w == nil {
		d.Reason = "no such endpoint"
		return d
	}
	e := c.newEvaluation(p.unmapped(), &d)
	stages := c.stages(w, dir)
	for _, s := range stages {
		switch e.policies(s.policies) {
		case decided:
			d.Tier = s.tier
			return d
		case fellThrough:
			if !s.pass {
				d.Tier, d.Reason = s.tier, "end of tier "+s.tier
				return d
			}
		}
	}
	if e.profiles(w.Spec.Profiles) == decided {
		return d
	}
	d.Reason = "no profile matched"
	if len(stages) == 0 && len(w.Spec.Profiles) == 0 {
		d.Reason = "no policy and no profile"
	}
	return d
}

// outcome is how far a list of rules brought a packet.
type outcome int

const (
	fellThrough outcome = iota // no rule allowed, denied or passed
	passed                     // on to the next tier
	decided
)

// policies evaluates the policies of one tier in order.
func (e *evaluation) policies(list []*api.Policy) outcome {
	for _, p := range list {
		rules := p.Spec.Ingress
		if e.decision.Direction == api.Egress {
			rules = p.Spec.Egress
		}
		if o := e.rules(p.Key(), rules); o != fellThrough {
			return o
		}
	}
	return fellThrough
}

// profiles evaluates profiles in order. Nothing comes after them, so a rule
// that passes ends them.
func (e *evaluation) profiles(names []string) outcome {
	for _, name := range names {
		key := api.Key{Kind: api.KindProfile, Name: name}
		if name == api.DefaultAllowProfile {
			return e.rules(key, []api.Rule{{Action: api.Allow}})
		}
		p := e.cluster.profiles[name]
		if p == nil {
			continue
		}
		rules := p.Spec.Ingress
		if e.decision.Direction == api.Egress {
			rules = p.Spec.Egress
		}
		if o := e.rules(key, rules); o != fellThrough {
			return o
		}
	}
	return fellThrough
}

// rules evaluates the rules of one policy or profile in order.
func (e *evaluation) rules(owner api.Key, rules []api.Rule) outcome {
	for i := range rules {
		if !e.match(owner.Namespace, &rules[i]) {
			continue
		}
		ref := RuleRef{Policy: owner, Direction: e.decision.Direction, Index: i}
		switch rules[i].Action {
		case api.Log:
			e.decision.Logs = append(e.decision.Logs, ref)
			continue
		case api.Pass:
			return passed
		case api.Allow:
			e.decision.Verdict = api.Allow
		default:
			e.decision.Verdict = api.Deny
		}
		e.decision.Rule = &ref
		e.decision.Reason = fmt.Sprintf("rule %d of %s %s", i, strings.ToLower(string(ref.Direction)), owner)
		return decided
	}
	return fellThrough
}
