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
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol uint8      `json:"protocol"`
	SrcPort  uint16     `json:"srcPort,omitempty"`
	DstPort  uint16     `json:"dstPort,omitempty"`
	ICMPType uint8      `json:"icmpType,omitempty"`
	ICMPCode uint8      `json:"icmpCode,omitempty"`
}

// Result is what becomes of a connection. What is nil has no say: an end that is
// no workload endpoint, an interface without a host endpoint.
type Result struct {
	Verdict     api.Action `json:"verdict"`               // Allow, or Deny if one of them denies
	Source      *Decision  `json:"source,omitempty"`      // of the sender's egress policy
	Leaving     *Decision  `json:"leaving,omitempty"`     // of the host endpoint by which it leaves the sender's host
	Entering    *Decision  `json:"entering,omitempty"`    // of the one by which it comes to the receiver's host
	Destination *Decision  `json:"destination,omitempty"` // of the receiver's ingress policy
	FromHost    string     `json:"fromHost,omitempty"`    // where an end is a host itself
	ToHost      string     `json:"toHost,omitempty"`      //
	Sent        *Packet    `json:"sent,omitempty"`        // what egress policy sees, where addresses are translated before
	Received    *Packet    `json:"received,omitempty"`    // what ingress policy sees, where they are translated before
}

// Decisions are those that there are, in the order of the way.
func (r Result) Decisions() []*Decision {
	return slices.DeleteFunc([]*Decision{r.Source, r.Leaving, r.Entering, r.Destination}, func(d *Decision) bool { return d == nil })
}

// Decision is the verdict of one endpoint in one direction.
type Decision struct {
	Endpoint  api.Key       `json:"endpoint,omitzero"` // none where the host itself decides on what its workloads send to it
	Host      string        `json:"host"`              // where it is enforced
	Direction api.Direction `json:"direction"`
	Kind      Kind          `json:"kind,omitempty"`      // of a host endpoint: Forward, for what passes through
	Untracked bool          `json:"untracked,omitempty"` // allowed before there is a connection: there is none, and answers are judged too
	Verdict   api.Action    `json:"verdict"`             // Allow or Deny
	Tier      string        `json:"tier,omitempty"`      // in which it was decided; "" after all tiers
	Rule      *RuleRef      `json:"rule,omitempty"`      // that decided; nil if none did
	Reason    string        `json:"reason"`              // one phrase
	Logs      []RuleRef     `json:"logs,omitempty"`      // Log rules that matched before, in order
	Trail     []Step        `json:"trail"`               // the way to it: the last step is the one that decided
}

// Step is one tier on the way to a decision, or the profiles, which come after
// all tiers.
type Step struct {
	Tier     string     `json:"tier,omitempty"`     // "" for the profiles or, of Forward, the end of all
	Kind     Kind       `json:"kind,omitempty"`     // PreDNAT or Untracked: policy that is asked before the rest
	Policies []api.Key  `json:"policies,omitempty"` // or profiles, that apply, in order
	Rule     *RuleRef   `json:"rule,omitempty"`     // that allowed, denied or led to the next tier; nil if none did
	Action   api.Action `json:"action"`             // Allow or Deny, and there the way ends, or Pass
}

// RuleRef names a rule of a policy or profile.
type RuleRef struct {
	Policy    api.Key       `json:"policy"`
	Direction api.Direction `json:"direction"`
	Index     int           `json:"index"` // in the list of that direction, from 0
}

// String prints the reference as <kind>/<namespace>/<name>/<direction>/<index>.
func (r RuleRef) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%d", r.Policy.Kind, r.Policy.Namespace, r.Policy.Name, r.Direction, r.Index)
}

// String prints the decision as one line.
func (d Decision) String() string {
	return fmt.Sprintf("%s %s of %s: %s", d.Verdict, d.Direction, d.Endpoint, d.Reason)
}

// answersDHCP reports whether a packet is one that a DHCP server sends to a
// client. From a workload it is refused, unless it was asked.
func (p Packet) answersDHCP() bool {
	if p.Src.Is4() {
		return p.Protocol == protoUDP && p.SrcPort == 67 && p.DstPort == 68
	}
	return p.Protocol == protoUDP && p.SrcPort == 547 && p.DstPort == 546
}

func (p Packet) unmapped() Packet {
	p.Src, p.Dst = p.Src.Unmap(), p.Dst.Unmap()
	return p
}

// Host returns the host of an endpoint, by its name if that has the parts it
// should have.
func (c *Cluster) Host(k api.Key) string {
	if n, err := api.ParseWorkloadName(k.Name); err == nil {
		return n.Node
	}
	if w := c.endpoints[k]; w != nil {
		return w.Spec.Node
	}
	return ""
}

// Endpoint says what the policy of one endpoint decides on a packet that it
// sends (Egress) or that is sent to it (Ingress), whether or not the packet
// has its address.
func (c *Cluster) Endpoint(key api.Key, dir api.Direction, p Packet) Decision {
	d := Decision{Endpoint: key, Host: c.Host(key), Direction: dir, Verdict: api.Deny}
	w := c.endpoints[key]
	if w == nil {
		d.Reason = "no such endpoint"
		return d
	}
	c.newEvaluation(p.unmapped(), &d).all(c.Stages(key, dir), w.Spec.Profiles)
	return d
}

// all evaluates all tiers and then profiles. What nothing allows is denied.
func (e *evaluation) all(stages []Stage, profiles []string) {
	if e.stages(stages) || e.profiles(profiles) == decided {
		return
	}
	e.decision.Reason = "no profile matched"
	if len(profiles) == 0 && !slices.ContainsFunc(stages, func(s Stage) bool { return len(s.Policies) > 0 }) {
		e.decision.Reason = "no policy and no profile"
	}
}

// stages evaluates tiers and reports whether one decided.
func (e *evaluation) stages(list []Stage) bool {
	for _, s := range list {
		if e.stage(s) {
			e.decision.Tier = s.Tier
			return true
		}
	}
	return false
}

// outcome is how far a list of rules brought a packet.
type outcome int

const (
	fellThrough outcome = iota // no rule allowed, denied or passed
	passed                     // on to the next tier
	decided
)

// begin adds a step to the trail. Until a rule says otherwise it ends with
// action.
func (e *evaluation) begin(tier string, action api.Action) *Step {
	e.decision.Trail = append(e.decision.Trail, Step{Tier: tier, Action: action})
	return &e.decision.Trail[len(e.decision.Trail)-1]
}

// stage evaluates the policies of one tier in order and reports whether the
// tier decided.
func (e *evaluation) stage(s Stage) bool {
	step := e.begin(s.Tier, api.Pass)
	for _, p := range s.Policies {
		step.Policies = append(step.Policies, p.Key())
	}
	for _, p := range s.Policies {
		if o := e.rules(step, p.Key(), e.direction(p.Spec.Ingress, p.Spec.Egress)); o != fellThrough {
			return o == decided
		}
	}
	if s.Pass || len(s.Policies) == 0 {
		return false
	}
	step.Action, e.decision.Reason = api.Deny, "end of tier "+s.Tier
	return true
}

func (e *evaluation) direction(ingress, egress []api.Rule) []api.Rule {
	if e.decision.Direction == api.Egress {
		return egress
	}
	return ingress
}

// profiles evaluates profiles in order. Nothing comes after them, so a rule
// that passes ends them, and what none allows is denied.
func (e *evaluation) profiles(names []string) outcome {
	step := e.begin("", api.Deny)
	for _, name := range names {
		step.Policies = append(step.Policies, api.Key{Kind: api.KindProfile, Name: name})
	}
	for _, key := range step.Policies {
		var rules []api.Rule
		if p := e.cluster.profiles[key.Name]; p != nil {
			rules = e.direction(p.Spec.Ingress, p.Spec.Egress)
		}
		if key.Name == api.DefaultAllowProfile {
			rules = []api.Rule{{Action: api.Allow}}
		}
		if o := e.rules(step, key, rules); o != fellThrough {
			return o
		}
	}
	return fellThrough
}

// rules evaluates the rules of one policy or profile in order.
func (e *evaluation) rules(step *Step, owner api.Key, rules []api.Rule) outcome {
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
			if step.Tier != "" { // nothing comes after the profiles
				step.Rule = &ref
			}
			return passed
		case api.Allow:
			e.decision.Verdict = api.Allow
		default:
			e.decision.Verdict = api.Deny
		}
		step.Rule, step.Action = &ref, e.decision.Verdict
		e.decision.Rule = &ref
		e.decision.Reason = fmt.Sprintf("rule %d of %s %s", i, strings.ToLower(string(ref.Direction)), owner)
		return decided
	}
	return fellThrough
}
