package api

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// KubernetesPolicy is a StagedKubernetesNetworkPolicy.
type KubernetesPolicy = Resource[KubernetesPolicySpec]

// KubernetesPolicySpec is kept as it was stored. Policy is what it means; if a
// part of it cannot be read, it is not to be tried.
type KubernetesPolicySpec struct {
	Policy PolicySpec

	stored Raw
}

// MarshalJSON writes what was read.
func (s KubernetesPolicySpec) MarshalJSON() ([]byte, error) { return s.stored.MarshalJSON() }

// AsPolicy is the policy that a staged one of Kubernetes is, under its own key.
func AsPolicy(k *KubernetesPolicy) *Policy {
	return &Policy{Kind: k.Kind, Meta: k.Meta, Spec: k.Spec.Policy}
}

// kubernetesOrder is the order of policies of Kubernetes among those of the
// default tier.
const kubernetesOrder = 1000

// The spec, with the names and defaults of Kubernetes' NetworkPolicy.
type (
	kubernetesSpec struct {
		StagedAction string           `json:"stagedAction"`
		PodSelector  labelSelector    `json:"podSelector"`
		Ingress      []kubernetesRule `json:"ingress"`
		Egress       []kubernetesRule `json:"egress"`
		PolicyTypes  []Direction      `json:"policyTypes"`
	}
	kubernetesRule struct {
		From  []kubernetesPeer `json:"from"`
		To    []kubernetesPeer `json:"to"`
		Ports []kubernetesPort `json:"ports"`
	}
	kubernetesPeer struct {
		PodSelector       *labelSelector `json:"podSelector"`
		NamespaceSelector *labelSelector `json:"namespaceSelector"`
		IPBlock           *ipBlock       `json:"ipBlock"`
	}
	ipBlock struct {
		CIDR   string `json:"cidr"`
		Except Nets   `json:"except"`
	}
	kubernetesPort struct {
		Protocol Protocol `json:"protocol"`
		Port     *Port    `json:"port"`
		EndPort  uint16   `json:"endPort"`
	}
	labelSelector struct {
		MatchLabels      map[string]string  `json:"matchLabels"`
		MatchExpressions []labelRequirement `json:"matchExpressions"`
	}
	labelRequirement struct {
		Key      string   `json:"key"`
		Operator string   `json:"operator"`
		Values   []string `json:"values"`
	}
)

func (s *KubernetesPolicySpec) read(d *decoder) bool {
	d.peek()
	start, before := d.pos, d.faults
	var k kubernetesSpec
	if !d.structure(reflect.ValueOf(&k).Elem()) {
		return false
	}
	s.stored = Raw(bytes.TrimSpace(d.data[start:d.pos]))
	s.Policy = k.policy(d)
	if d.faults != before {
		s.Policy.StagedAction = StagedIgnore
	}
	return true
}

// wrong reports a member of the value being read.
func (d *decoder) wrong(field, value, reason string) {
	d.report(Problem{Field: strings.TrimPrefix(d.where()+"."+field, "."), Value: shorten(value), Reason: reason})
}

func (k *kubernetesSpec) policy(d *decoder) PolicySpec {
	if k.StagedAction == StagedDelete {
		bare := len(k.Ingress)+len(k.Egress)+len(k.PolicyTypes)+len(k.PodSelector.MatchLabels)+len(k.PodSelector.MatchExpressions) == 0
		if !bare {
			d.wrong("stagedAction", k.StagedAction, "goes with no other field")
		}
		return PolicySpec{StagedAction: StagedDelete}
	}
	if !slices.Contains([]string{"", StagedSet, StagedLearn, StagedIgnore}, k.StagedAction) {
		d.wrong("stagedAction", k.StagedAction, "want Set, Delete, Learn or Ignore")
	}
	order := float64(kubernetesOrder)
	p := PolicySpec{
		StagedAction: k.StagedAction, Tier: DefaultTier, Order: &order, Types: k.PolicyTypes,
		Selector: k.PodSelector.pods(d, "podSelector"),
	}
	for _, dir := range k.PolicyTypes {
		if dir != Ingress && dir != Egress {
			d.wrong("policyTypes", string(dir), "want Ingress or Egress")
		}
	}
	if len(p.Types) == 0 {
		if p.Types = []Direction{Ingress}; len(k.Egress) > 0 {
			p.Types = append(p.Types, Egress)
		}
	}
	for i := range k.Ingress {
		r := &k.Ingress[i]
		p.Ingress = append(p.Ingress, r.rules(d, fmt.Sprintf("ingress[%d]", i), "from", r.From, r.To)...)
	}
	for i := range k.Egress {
		r := &k.Egress[i]
		p.Egress = append(p.Egress, r.rules(d, fmt.Sprintf("egress[%d]", i), "to", r.To, r.From)...)
	}
	return p
}

// rules are one for each peer and protocol; other are the peers that belong to
// the other direction.
func (r *kubernetesRule) rules(d *decoder, field, side string, peers, other []kubernetesPeer) []Rule {
	if len(other) > 0 {
		d.wrong(field, "", "only "+side+" has peers in this direction")
	}
	ends := make([]EntityRule, 0, len(peers))
	for i := range peers {
		ends = append(ends, peers[i].entity(d, fmt.Sprintf("%s.%s[%d]", field, side, i)))
	}
	if len(ends) == 0 {
		ends = []EntityRule{{}}
	}
	var out []Rule
	for _, match := range r.services(d, field) {
		for _, e := range ends {
			rule := match
			if side == "from" {
				rule.Source = e
			} else {
				e.Ports = rule.Destination.Ports
				rule.Destination = e
			}
			out = append(out, rule)
		}
	}
	return out
}

// services are the protocols and ports of a rule, one for each protocol.
func (r *kubernetesRule) services(d *decoder, field string) []Rule {
	if len(r.Ports) == 0 {
		return []Rule{{Action: Allow}}
	}
	var out []Rule
	for i, p := range r.Ports {
		proto := p.Protocol
		if proto.IsZero() {
			proto = Protocol{Number: 6, Text: "TCP"}
		}
		at := fmt.Sprintf("%s.ports[%d]", field, i)
		if !isPortProtocol(proto) {
			d.wrong(at+".protocol", proto.String(), "want TCP, UDP or SCTP")
		}
		if p.EndPort != 0 && (p.Port == nil || p.Port.Name != "" || p.EndPort < p.Port.Min) {
			d.wrong(at+".endPort", fmt.Sprint(p.EndPort), "want a port that is not less than port, which is a number")
		}
		n := slices.IndexFunc(out, func(r Rule) bool { return r.Protocol.Number == proto.Number })
		switch {
		case n < 0:
			out = append(out, Rule{Action: Allow, Protocol: proto})
			n = len(out) - 1
		case len(out[n].Destination.Ports) == 0:
			continue // all ports already
		}
		if p.Port == nil {
			out[n].Destination.Ports = nil
			continue
		}
		port := *p.Port
		port.Max = max(port.Max, p.EndPort)
		out[n].Destination.Ports = append(out[n].Destination.Ports, port)
	}
	return out
}

func (p *kubernetesPeer) entity(d *decoder, field string) (e EntityRule) {
	if b := p.IPBlock; b != nil {
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			d.wrong(field+".ipBlock", b.CIDR, "not together with a selector")
		}
		prefix, err := ParsePrefix(b.CIDR)
		if err != nil {
			d.wrong(field+".ipBlock.cidr", b.CIDR, "want a prefix")
		}
		e.Nets.Prefixes, e.NotNets = append(e.Nets.Prefixes, prefix), b.Except
		return e
	}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		d.wrong(field, "", "want podSelector, namespaceSelector or ipBlock")
	}
	e.Selector = p.PodSelector.pods(d, field+".podSelector")
	if s := p.NamespaceSelector; s != nil {
		if e.NamespaceSelector = s.selector(d, field+".namespaceSelector", ""); e.NamespaceSelector.Text == "" {
			e.NamespaceSelector = ParseSelector("all()")
		}
	}
	return e
}

// pods selects endpoints of Kubernetes.
func (s *labelSelector) pods(d *decoder, field string) Selector {
	return s.selector(d, field, LabelOrchestrator+" == 'k8s'")
}

// selector writes a selector of Kubernetes, and more, as one of ours. What could
// end a label or a value is refused.
func (s *labelSelector) selector(d *decoder, field, more string) Selector {
	var terms []string
	if more != "" {
		terms = append(terms, more)
	}
	if s == nil {
		return ParseSelector(more)
	}
	c := &checker{}
	c.labels(field+".matchLabels", s.MatchLabels)
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, fmt.Sprintf("%s == '%s'", k, s.MatchLabels[k]))
	}
	for i, r := range s.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		c.qualified(at+".key", r.Key)
		for _, v := range r.Values {
			c.need(labelValueRE.MatchString(v), at+".values", v, "want the value of a label")
		}
		form, valued := map[string]string{"In": "%s in {'%s'}", "NotIn": "%s not in {'%s'}", "Exists": "has(%s)", "DoesNotExist": "!has(%s)"}[r.Operator], strings.HasSuffix(r.Operator, "In")
		c.need(form != "", at+".operator", r.Operator, "want In, NotIn, Exists or DoesNotExist")
		c.need((len(r.Values) > 0) == valued, at+".values", strings.Join(r.Values, ","), "goes with In and NotIn, and only with them")
		switch {
		case valued:
			terms = append(terms, fmt.Sprintf(form, r.Key, strings.Join(r.Values, "','")))
		case form != "":
			terms = append(terms, fmt.Sprintf(form, r.Key))
		}
	}
	for _, p := range c.problems {
		d.wrong(p.Field, p.Value, p.Reason)
	}
	if len(c.problems) > 0 {
		return ParseSelector(more)
	}
	return ParseSelector(strings.Join(terms, " && "))
}
