package api

import (
	"encoding/json"
	"maps"
	"strings"
	"time"
)

// DefaultTierOrder is the order of tiers that are written without one.
const DefaultTierOrder = 1000000

// Prepare fills in what is stored with each object that is written: identity
// and time of creation, if it has none, and the defaults of its kind. now and
// uid, a random UUID, are used only for what is missing.
func Prepare(o Object, now time.Time, uid string) {
	m := o.Metadata()
	if m.UID == "" {
		m.UID = uid
	}
	if m.CreationTimestamp == "" {
		m.CreationTimestamp = Timestamp(now)
	}
	switch r := o.(type) {
	case *WorkloadEndpoint:
		setLabel(m, LabelNamespace, m.Namespace)
		setLabel(m, LabelOrchestrator, r.Spec.Orchestrator)
	case *Policy:
		preparePolicy(r)
	case *Tier:
		if r.Spec.Order == nil {
			order := float64(DefaultTierOrder)
			r.Spec.Order = &order
		}
		if r.Spec.DefaultAction == "" {
			r.Spec.DefaultAction = Deny
		}
	case *IPPool:
		preparePool(&r.Spec)
	case *ClusterInformation:
		if r.Spec.DatastoreReady == nil {
			ready := true
			r.Spec.DatastoreReady = &ready
		}
		if r.Spec.ClusterGUID == "" {
			r.Spec.ClusterGUID = strings.ReplaceAll(uid, "-", "")
		}
	}
}

// setLabel sets a label without touching a map that others may have.
func setLabel(m *Meta, label, value string) {
	if value == "" || m.Labels[label] == value {
		return
	}
	if m.Labels = maps.Clone(m.Labels); m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[label] = value
}

func preparePolicy(p *Policy) {
	if p.Spec.Tier == "" {
		p.Spec.Tier = DefaultTier
	}
	setLabel(&p.Meta, LabelTier, p.Spec.Tier)
	if name, err := json.Marshal(struct {
		Name string `json:"name"`
	}{p.Meta.Name}); err == nil && p.Kind.IsPolicy() {
		if p.Meta.Annotations = maps.Clone(p.Meta.Annotations); p.Meta.Annotations == nil {
			p.Meta.Annotations = map[string]string{}
		}
		p.Meta.Annotations[annotationPolicyName] = string(name)
	}
	if len(p.Spec.Types) > 0 || p.untyped || p.Spec.StagedAction == StagedDelete {
		return
	}
	if len(p.Spec.Ingress) > 0 || len(p.Spec.Egress) == 0 {
		p.Spec.Types = append(p.Spec.Types, Ingress)
	}
	if len(p.Spec.Egress) > 0 {
		p.Spec.Types = append(p.Spec.Types, Egress)
	}
}

func preparePool(s *IPPoolSpec) {
	for _, f := range []struct {
		field   *string
		builtIn string
	}{{&s.IPIPMode, "Never"}, {&s.VXLANMode, "Never"}, {&s.AssignmentMode, "Automatic"}} {
		if *f.field == "" {
			*f.field = f.builtIn
		}
	}
	if s.NodeSelector.IsZero() {
		s.NodeSelector = ParseSelector("all()")
	}
	if len(s.AllowedUses) == 0 {
		s.AllowedUses = []string{"Workload", "Tunnel"}
	}
	if p, err := ParsePrefix(s.CIDR); err == nil && s.BlockSize == 0 {
		if s.BlockSize = 26; p.Addr().Is6() {
			s.BlockSize = 122
		}
	}
}
