package api

import (
	"fmt"
	"net/netip"
	"regexp"
)

// KubeControllersConfiguration is the resource of a KubeControllersConfigurationSpec.
type KubeControllersConfiguration = Resource[KubeControllersConfigurationSpec]

// KubeControllersConfigurationSpec says what controllers are to do. All but what
// makes host endpoints is for those of Kubernetes, and kept as it is.
type KubeControllersConfigurationSpec struct {
	LogSeverityScreen      Raw         `json:"logSeverityScreen,omitempty"`
	HealthChecks           Raw         `json:"healthChecks,omitempty"`
	EtcdV3CompactionPeriod Raw         `json:"etcdV3CompactionPeriod,omitempty"`
	PrometheusMetricsPort  Raw         `json:"prometheusMetricsPort,omitempty"`
	DebugProfilePort       Raw         `json:"debugProfilePort,omitempty"`
	Controllers            Controllers `json:"controllers,omitzero"`
}

// Controllers are the controllers that there are.
type Controllers struct {
	Node             *NodeController `json:"node,omitempty"`
	Policy           Raw             `json:"policy,omitempty"`
	WorkloadEndpoint Raw             `json:"workloadEndpoint,omitempty"`
	ServiceAccount   Raw             `json:"serviceAccount,omitempty"`
	Namespace        Raw             `json:"namespace,omitempty"`
	LoadBalancer     Raw             `json:"loadBalancer,omitempty"`
	Migration        Raw             `json:"migration,omitempty"`
}

// NodeController follows nodes.
type NodeController struct {
	ReconcilerPeriod Raw                `json:"reconcilerPeriod,omitempty"`
	SyncLabels       Raw                `json:"syncLabels,omitempty"`
	HostEndpoint     *AutoHostEndpoints `json:"hostEndpoint,omitempty"`
	LeakGracePeriod  Raw                `json:"leakGracePeriod,omitempty"`
}

// What may be turned on or off is Enabled or Disabled.
const (
	Enabled  = "Enabled"
	Disabled = "Disabled"
)

// AutoHostEndpoints says which host endpoints are made by themselves.
type AutoHostEndpoints struct {
	AutoCreate                string                 `json:"autoCreate,omitempty"`                // Enabled or, if none is given, Disabled
	CreateDefaultHostEndpoint string                 `json:"createDefaultHostEndpoint,omitempty"` // of each host, for all interfaces: Enabled, if none is given, or Disabled
	Templates                 []HostEndpointTemplate `json:"templates,omitempty"`
}

// HostEndpointTemplate makes endpoints of interfaces, or of addresses. It needs
// a name, and a pattern or prefixes; without them it makes none.
type HostEndpointTemplate struct {
	GenerateName     string            `json:"generateName,omitempty"`     // is in the endpoints' names
	InterfaceCIDRs   Nets              `json:"interfaceCIDRs,omitzero"`    // in which an address must be
	InterfacePattern string            `json:"interfacePattern,omitempty"` // regular expression
	Labels           map[string]string `json:"labels,omitempty"`           // of the endpoints, before those of the Node
	NodeSelector     Selector          `json:"nodeSelector,omitzero"`
}

// Check says what is wrong with a template, "" if it can be followed.
func (t *HostEndpointTemplate) Check() (field, value, reason string) {
	_, err := regexp.Compile(t.InterfacePattern)
	switch {
	case t.GenerateName == "":
		return "generateName", "", "want a name"
	case nameSubdomain(t.GenerateName) != "":
		return "generateName", t.GenerateName, nameSubdomain(t.GenerateName)
	case t.InterfacePattern == "" && t.InterfaceCIDRs.IsZero():
		return "interfacePattern", "", "want a pattern, or interfaceCIDRs"
	case err != nil:
		return "interfacePattern", t.InterfacePattern, "want a regular expression: " + err.Error()
	}
	return "", "", ""
}

// Contains reports whether an address is in one of the template's prefixes, or it
// has none.
func (t *HostEndpointTemplate) Contains(a netip.Addr) bool {
	if t.InterfaceCIDRs.IsZero() {
		return true
	}
	for _, p := range t.InterfaceCIDRs.Prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// HostEndpoints is what is said of host endpoints that are made, nil if nothing is.
func (s *KubeControllersConfigurationSpec) HostEndpoints() *AutoHostEndpoints {
	if n := s.Controllers.Node; n != nil {
		return n.HostEndpoint
	}
	return nil
}

// Clear reports whether all that it says can be followed: what cannot must not be
// the reason to undo what was made.
func (a *AutoHostEndpoints) Clear() bool {
	for _, v := range []string{a.AutoCreate, a.CreateDefaultHostEndpoint} {
		if v != "" && v != Enabled && v != Disabled {
			return false
		}
	}
	for i := range a.Templates {
		t := &a.Templates[i]
		if _, _, reason := t.Check(); reason != "" || t.NodeSelector.Err != nil || len(t.InterfaceCIDRs.Bad) > 0 {
			return false
		}
	}
	return true
}

// closeSpec reports what makes no endpoints.
func (s *KubeControllersConfigurationSpec) closeSpec(d *decoder, _ Kind) {
	n := s.Controllers.Node
	if n == nil || n.HostEndpoint == nil {
		return
	}
	const path = "spec.controllers.node.hostEndpoint."
	wrong := func(field, value, reason string) {
		d.report(Problem{Field: path + field, Value: shorten(value), Reason: reason})
	}
	for _, f := range [][2]string{{"autoCreate", n.HostEndpoint.AutoCreate}, {"createDefaultHostEndpoint", n.HostEndpoint.CreateDefaultHostEndpoint}} {
		if f[1] != "" && f[1] != Enabled && f[1] != Disabled {
			wrong(f[0], f[1], "want Enabled or Disabled; taken as Disabled")
		}
	}
	names := map[string]bool{}
	for i := range n.HostEndpoint.Templates {
		t := &n.HostEndpoint.Templates[i]
		at := fmt.Sprintf("templates[%d].", i)
		if field, value, reason := t.Check(); reason != "" {
			wrong(at+field, value, reason)
		}
		if t.GenerateName != "" && names[t.GenerateName] {
			wrong(at+"generateName", t.GenerateName, "an earlier template has this name")
		}
		names[t.GenerateName] = true
	}
}
