package api

import (
	"encoding/json"
	"strings"
)

type (
	// HostEndpoint is the resource of a HostEndpointSpec.
	HostEndpoint = Resource[HostEndpointSpec]
	// LiveMigration is the resource of a LiveMigrationSpec.
	LiveMigration = Resource[LiveMigrationSpec]
	// IPPool is the resource of an IPPoolSpec.
	IPPool = Resource[IPPoolSpec]
	// IPReservation is the resource of an IPReservationSpec.
	IPReservation = Resource[IPReservationSpec]
	// BGPFilter is the resource of a BGPFilterSpec.
	BGPFilter = Resource[BGPFilterSpec]
	// FelixConfiguration is the resource of a FelixConfigurationSpec.
	FelixConfiguration = Resource[FelixConfigurationSpec]
	// Kept is a resource of a kind that nothing here acts on field by field.
	Kept = Resource[Verbatim]
)

// Verbatim is a spec that is kept as it was stored.
type Verbatim = Raw

// FelixConfigurationSpec has the settings of an agent by the name of their
// field; package config gives them their meaning.
type FelixConfigurationSpec map[string]json.RawMessage

func (s *FelixConfigurationSpec) read(d *decoder) bool {
	raw := d.skip()
	if d.err != nil || raw[0] == 'n' {
		return d.err == nil
	}
	if err := json.Unmarshal(raw, (*map[string]json.RawMessage)(s)); err != nil {
		return d.bad(raw, "want an object")
	}
	return true
}

// HostEndpointSpec is an interface of a host.
type HostEndpointSpec struct {
	Node          string      `json:"node,omitempty"`
	InterfaceName string      `json:"interfaceName,omitempty"` // "*": all
	ExpectedIPs   []IP        `json:"expectedIPs,omitempty"`
	Profiles      []string    `json:"profiles,omitempty"`
	Ports         []NamedPort `json:"ports,omitempty"`
}

// LiveMigrationSpec names the two endpoints that are one workload on the move.
type LiveMigrationSpec struct {
	Source MigrationEnd `json:"source,omitzero"`
	Target MigrationEnd `json:"target,omitzero"`
}

// MigrationEnd is an endpoint, or what finds it.
type MigrationEnd struct {
	WorkloadEndpoint *EndpointID `json:"workloadEndpoint,omitempty"`
	Workload         *EndpointID `json:"workload,omitempty"`
	Selector         Selector    `json:"selector,omitzero"`
}

// EndpointID names an endpoint as status keys do; WorkloadID is
// "<namespace>/<workload>".
type EndpointID struct {
	Hostname       string `json:"hostname,omitempty"`
	OrchestratorID string `json:"orchestratorID,omitempty"`
	WorkloadID     string `json:"workloadID,omitempty"`
	EndpointID     string `json:"endpointID,omitempty"`
}

// IPPoolSpec is a range that addresses are assigned from.
type IPPoolSpec struct {
	CIDR              string   `json:"cidr"`
	VXLANMode         string   `json:"vxlanMode,omitempty"`
	IPIPMode          string   `json:"ipipMode,omitempty"`
	NATOutgoing       bool     `json:"natOutgoing,omitempty"`
	Disabled          bool     `json:"disabled,omitempty"`
	DisableBGPExport  bool     `json:"disableBGPExport,omitempty" api:"unbuilt"`
	BlockSize         int      `json:"blockSize,omitempty"`
	NodeSelector      Selector `json:"nodeSelector,omitzero"`
	NamespaceSelector Selector `json:"namespaceSelector,omitzero"`
	AllowedUses       []string `json:"allowedUses,omitempty"`
	AssignmentMode    string   `json:"assignmentMode,omitempty"`
}

func (s *IPPoolSpec) closeSpec(d *decoder, _ Kind) {
	for _, m := range []struct{ name, mode string }{{"vxlanMode", s.VXLANMode}, {"ipipMode", s.IPIPMode}} {
		if m.mode != "" && m.mode != "Never" {
			d.report(Problem{Field: "spec." + m.name, Value: m.mode, Reason: "not enforced yet", Unsupported: true})
		}
	}
}

// IPReservationSpec has ranges that are not assigned automatically.
type IPReservationSpec struct {
	ReservedCIDRs Nets `json:"reservedCIDRs,omitzero"`
}

// BGPFilterSpec says which routes a peer is sent and believed.
type BGPFilterSpec struct {
	ExportV4 []BGPFilterRule `json:"exportV4,omitempty"`
	ImportV4 []BGPFilterRule `json:"importV4,omitempty"`
	ExportV6 []BGPFilterRule `json:"exportV6,omitempty"`
	ImportV6 []BGPFilterRule `json:"importV6,omitempty"`
}

// BGPFilterRule accepts or rejects the routes that it matches.
type BGPFilterRule struct {
	Action        string        `json:"action"` // Accept or Reject
	CIDR          string        `json:"cidr,omitempty"`
	MatchOperator string        `json:"matchOperator,omitempty"`
	PrefixLength  *PrefixLength `json:"prefixLength,omitempty"`
	Source        string        `json:"source,omitempty"`
	Interface     string        `json:"interface,omitempty"`
	PeerType      string        `json:"peerType,omitempty"`
	Communities   Raw           `json:"communities,omitempty"`
	ASPathPrefix  Raw           `json:"asPathPrefix,omitempty"`
	Priority      *int          `json:"priority,omitempty"`
	Operations    Raw           `json:"operations,omitempty"`
}

// PrefixLength is an inclusive range of prefix lengths.
type PrefixLength struct {
	Min *int `json:"min,omitempty"`
	Max *int `json:"max,omitempty"`
}

// closeSpec makes a policy fail closed where it could not be read: a list of
// rules denies, a list of types is that of both directions.
func (s *PolicySpec) closeSpec(d *decoder, _ Kind) {
	for i, t := range s.Types {
		switch {
		case strings.EqualFold(string(t), string(Ingress)):
			s.Types[i] = Ingress
		case strings.EqualFold(string(t), string(Egress)):
			s.Types[i] = Egress
		default:
			d.report(Problem{Field: "spec.types", Value: shorten(string(t)), Reason: "want Ingress or Egress; taken as both"})
			s.Types = nil
			return
		}
	}
}

// closeSpec holds the action at the end of a tier to its exact spelling, as
// upstream does: all else denies.
func (s *TierSpec) closeSpec(d *decoder, _ Kind) {
	if s.DefaultAction != "" && s.DefaultAction != Deny && s.DefaultAction != Pass {
		d.report(Problem{Field: "spec.defaultAction", Value: shorten(string(s.DefaultAction)), Reason: "want Deny or Pass; taken as Deny"})
		s.DefaultAction = Deny
	}
}
