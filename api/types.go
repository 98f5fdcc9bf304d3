package api

import (
	"net/netip"

	"tortie/selector"
)

// The kinds that the agent, bgp and ctl act on by name.
const (
	KindWorkloadEndpoint    Kind = "WorkloadEndpoint"
	KindHostEndpoint        Kind = "HostEndpoint"
	KindNetworkPolicy       Kind = "NetworkPolicy"
	KindGlobalNetworkPolicy Kind = "GlobalNetworkPolicy"
	KindTier                Kind = "Tier"
	KindProfile             Kind = "Profile"
	KindNetworkSet          Kind = "NetworkSet"
	KindGlobalNetworkSet    Kind = "GlobalNetworkSet"
	KindNode                Kind = "Node"
	KindBGPConfiguration    Kind = "BGPConfiguration"
	KindBGPPeer             Kind = "BGPPeer"
	KindFelixConfiguration  Kind = "FelixConfiguration"
	KindClusterInformation  Kind = "ClusterInformation"
)

type (
	// WorkloadEndpoint is the resource of a WorkloadEndpointSpec.
	WorkloadEndpoint = Resource[WorkloadEndpointSpec]
	// Policy is a NetworkPolicy, a GlobalNetworkPolicy or one of their staged kinds.
	Policy = Resource[PolicySpec]
	// Tier is the resource of a TierSpec.
	Tier = Resource[TierSpec]
	// Profile is the resource of a ProfileSpec.
	Profile = Resource[ProfileSpec]
	// NetworkSet is a NetworkSet or a GlobalNetworkSet.
	NetworkSet = Resource[NetworkSetSpec]
	// Node is the resource of a NodeSpec.
	Node = Resource[NodeSpec]
	// BGPConfiguration is the resource of a BGPConfigurationSpec.
	BGPConfiguration = Resource[BGPConfigurationSpec]
	// BGPPeer is the resource of a BGPPeerSpec.
	BGPPeer = Resource[BGPPeerSpec]
	// ClusterInformation is the resource of a ClusterInformationSpec.
	ClusterInformation = Resource[ClusterInformationSpec]
)

// Labels that the data model gives a meaning.
const (
	LabelNamespace      = "projectcalico.org/namespace"
	LabelOrchestrator   = "projectcalico.org/orchestrator"
	LabelServiceAccount = "projectcalico.org/serviceaccount"
	// LabelPrefixNamespace and LabelPrefixServiceAccount begin labels that an
	// endpoint inherits from its namespace and service account.
	LabelPrefixNamespace      = "pcns."
	LabelPrefixServiceAccount = "pcsa."
)

// DefaultTier is the tier of policies that name none. DefaultAllowProfile is
// the profile that exists without being stored and allows everything.
const (
	DefaultTier         = "default"
	DefaultAllowProfile = "projectcalico-default-allow"
)

// Nets is a list of prefixes. A single address is stored as written and held
// as a /32 or /128; host bits are masked off. Bad holds elements that did not
// parse; what that means is decided by the object that owns the list.
type Nets struct {
	Prefixes []netip.Prefix
	Bad      []string
}

// IP is an optional address.
type IP struct {
	netip.Addr
	Bad string
}

// MAC is an optional Ethernet address.
type MAC struct {
	Addr [6]byte
	Set  bool
	Bad  string
}

// Selector is an optional selector. Expr is nil where Text is empty (all) or
// Err is set (nothing).
type Selector struct {
	Text string
	Expr *selector.Selector
	Err  error
}

// WorkloadEndpointSpec is one virtual NIC of a workload.
type WorkloadEndpointSpec struct {
	Orchestrator               string       `json:"orchestrator,omitempty" api:"shared"`
	Workload                   string       `json:"workload,omitempty"`
	Node                       string       `json:"node,omitempty" api:"shared"`
	Endpoint                   string       `json:"endpoint,omitempty"`
	Pod                        string       `json:"pod,omitempty"`
	ContainerID                string       `json:"containerID,omitempty"`
	ServiceAccountName         string       `json:"serviceAccountName,omitempty"`
	IPNetworks                 Nets         `json:"ipNetworks,omitzero" api:"addresses"`
	IPNATs                     []IPNAT      `json:"ipNATs,omitempty"`
	IPv4Gateway                IP           `json:"ipv4Gateway,omitzero"`
	IPv6Gateway                IP           `json:"ipv6Gateway,omitzero"`
	Profiles                   []string     `json:"profiles,omitempty"`
	InterfaceName              string       `json:"interfaceName,omitempty"`
	MAC                        MAC          `json:"mac,omitzero"`
	Ports                      []NamedPort  `json:"ports,omitempty"`
	AllowSpoofedSourcePrefixes Nets         `json:"allowSpoofedSourcePrefixes,omitzero"`
	AllowedIPs                 Nets         `json:"allowedIps,omitzero" api:"quiet"` // written by the Neutron driver only
	QoSControls                *QoSControls `json:"qosControls,omitempty"`
}

// IPNAT maps an external address to an internal one of the same family.
type IPNAT struct {
	InternalIP IP `json:"internalIP"`
	ExternalIP IP `json:"externalIP"`
}

// NamedPort gives a port of an endpoint a name that rules can use.
type NamedPort struct {
	Name     string   `json:"name,omitempty"`
	Protocol Protocol `json:"protocol,omitzero"`
	Port     uint16   `json:"port"`
	HostPort uint16   `json:"hostPort"`
	HostIP   string   `json:"hostIP"`
}

// QoSControls limits what an endpoint sends (egress) and is sent (ingress).
// Rates are bit/s and packets/s, bursts bits and packets, Minburst bytes.
type QoSControls struct {
	IngressBandwidth      int64 `json:"ingressBandwidth,omitempty"`
	EgressBandwidth       int64 `json:"egressBandwidth,omitempty"`
	IngressBurst          int64 `json:"ingressBurst,omitempty"`
	EgressBurst           int64 `json:"egressBurst,omitempty"`
	IngressPeakrate       int64 `json:"ingressPeakrate,omitempty"`
	EgressPeakrate        int64 `json:"egressPeakrate,omitempty"`
	IngressMinburst       int64 `json:"ingressMinburst,omitempty"`
	EgressMinburst        int64 `json:"egressMinburst,omitempty"`
	IngressPacketRate     int64 `json:"ingressPacketRate,omitempty"`
	EgressPacketRate      int64 `json:"egressPacketRate,omitempty"`
	IngressPacketBurst    int64 `json:"ingressPacketBurst,omitempty"`
	EgressPacketBurst     int64 `json:"egressPacketBurst,omitempty"`
	IngressMaxConnections int64 `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  int64 `json:"egressMaxConnections,omitempty"`
	DSCP                  DSCP  `json:"dscp,omitzero"`
}

// Direction is a policy direction, from the endpoint's point of view.
type Direction string

// The two directions, spelled as in a policy's types.
const (
	Ingress Direction = "Ingress"
	Egress  Direction = "Egress"
)

// PolicySpec is the spec of all policy kinds but the Kubernetes ones.
type PolicySpec struct {
	Tier                   string      `json:"tier,omitempty"`
	Order                  *float64    `json:"order,omitempty"` // nil: after all that have one
	Selector               Selector    `json:"selector,omitzero"`
	NamespaceSelector      Selector    `json:"namespaceSelector,omitzero"`
	ServiceAccountSelector Selector    `json:"serviceAccountSelector,omitzero"`
	Types                  []Direction `json:"types,omitempty"` // empty: both
	Ingress                []Rule      `json:"ingress,omitempty"`
	Egress                 []Rule      `json:"egress,omitempty"`
	DoNotTrack             bool        `json:"doNotTrack,omitempty"`
	PreDNAT                bool        `json:"preDNAT,omitempty"`
	ApplyOnForward         bool        `json:"applyOnForward,omitempty"`
	PerformanceHints       []string    `json:"performanceHints,omitempty"`
	StagedAction           string      `json:"stagedAction,omitempty"`
}

// Action is what a rule does with what it matches, or a tier with the rest.
type Action string

// The actions.
const (
	Allow Action = "Allow"
	Deny  Action = "Deny"
	Log   Action = "Log"
	Pass  Action = "Pass"
)

// Rule is one rule. Everything given is ANDed, lists are ORed.
//
// A field that could not be read fails closed when the rule is decoded: an
// Allow, Pass or Log rule with a bad field is Never, unless the bad value was
// one of several in a positive list; in a Deny rule the bad field is left out,
// so that it denies more. An unknown action is Deny. The stages that enforce
// or explain policy read Never and the fields that are left.
type Rule struct {
	Action      Action        `json:"action"`
	IPVersion   int           `json:"ipVersion,omitempty"`
	Protocol    Protocol      `json:"protocol,omitzero"`
	NotProtocol Protocol      `json:"notProtocol,omitzero"`
	ICMP        *ICMP         `json:"icmp,omitempty"`
	NotICMP     *ICMP         `json:"notICMP,omitempty"`
	Source      EntityRule    `json:"source,omitzero"`
	Destination EntityRule    `json:"destination,omitzero"`
	HTTP        *HTTPMatch    `json:"http,omitempty"`
	Metadata    *RuleMetadata `json:"metadata,omitempty"`

	Never bool `json:"-"` // matches nothing

	stored Raw // what it was decoded from, if that could not be read in full
}

// Protocol is an IP protocol. The zero Protocol is none. Text is how it was
// written, where that was a name.
type Protocol struct {
	Number uint8
	Text   string
	Bad    string
}

// ICMP matches an ICMP or ICMPv6 message; nil matches any.
type ICMP struct {
	Type *int `json:"type,omitempty"`
	Code *int `json:"code,omitempty"`
}

// Port is one port, a range (Min < Max), or a named port.
type Port struct {
	Min, Max uint16
	Name     string
	Bad      string
}

// EntityRule matches one end of a connection.
type EntityRule struct {
	Nets              Nets                 `json:"nets,omitzero"`
	NotNets           Nets                 `json:"notNets,omitzero"`
	Selector          Selector             `json:"selector,omitzero"`
	NotSelector       Selector             `json:"notSelector,omitzero"`
	NamespaceSelector Selector             `json:"namespaceSelector,omitzero"`
	Ports             []Port               `json:"ports,omitempty"`
	NotPorts          []Port               `json:"notPorts,omitempty"`
	ServiceAccounts   *ServiceAccountMatch `json:"serviceAccounts,omitempty"`
	Services          *ServiceMatch        `json:"services,omitempty"`
}

// ServiceAccountMatch matches endpoints by service account.
type ServiceAccountMatch struct {
	Names    []string `json:"names,omitempty"`
	Selector Selector `json:"selector,omitzero"`
}

// ServiceMatch matches the endpoints of a Kubernetes service.
type ServiceMatch struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
}

// HTTPMatch matches requests at the application layer.
type HTTPMatch struct {
	Methods []string   `json:"methods,omitempty"`
	Paths   []HTTPPath `json:"paths,omitempty"`
}

// HTTPPath matches a path exactly or by prefix.
type HTTPPath struct {
	Exact  string `json:"exact,omitempty"`
	Prefix string `json:"prefix,omitempty"`
}

// RuleMetadata annotates a rule.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}

// TierSpec orders policies. DefaultAction is Deny unless exactly Pass.
type TierSpec struct {
	Order         *float64 `json:"order,omitempty"`
	DefaultAction Action   `json:"defaultAction,omitempty"`
}

// ProfileSpec is a set of rules evaluated after all tiers, and labels that
// endpoints with the profile inherit.
type ProfileSpec struct {
	Ingress       []Rule            `json:"ingress,omitempty"`
	Egress        []Rule            `json:"egress,omitempty"`
	LabelsToApply map[string]string `json:"labelsToApply,omitempty"`
}

// NetworkSetSpec is a labelled list of prefixes.
type NetworkSetSpec struct {
	Nets Nets `json:"nets,omitzero"`
}

// ASNumber is a 4-byte AS number, written as a number or as "hi.lo".
type ASNumber uint32

// NodeSpec is a host.
type NodeSpec struct {
	BGP                  *NodeBGP `json:"bgp,omitempty"`
	Addresses            Raw      `json:"addresses,omitempty"`
	Interfaces           Raw      `json:"interfaces,omitempty"`
	OrchRefs             Raw      `json:"orchRefs,omitempty"`
	IPv4VXLANTunnelAddr  Raw      `json:"ipv4VXLANTunnelAddr,omitempty"`
	VXLANTunnelMACAddr   Raw      `json:"vxlanTunnelMACAddr,omitempty"`
	IPv6VXLANTunnelAddr  Raw      `json:"ipv6VXLANTunnelAddr,omitempty"`
	VXLANTunnelMACAddrV6 Raw      `json:"vxlanTunnelMACAddrV6,omitempty"`
	WireGuard            Raw      `json:"wireguard,omitempty" api:"unbuilt"`
}

// NodeBGP is the BGP identity of a host; addresses carry the prefix length of
// the host's network.
type NodeBGP struct {
	ASNumber                *ASNumber `json:"asNumber,omitempty"`
	IPv4Address             string    `json:"ipv4Address,omitempty"`
	IPv6Address             string    `json:"ipv6Address,omitempty"`
	IPv4IPIPTunnelAddr      string    `json:"ipv4IPIPTunnelAddr,omitempty"`
	RouteReflectorClusterID string    `json:"routeReflectorClusterID,omitempty" api:"unbuilt"`
}

// BGPConfigurationSpec has the settings that all BGP speakers share.
type BGPConfigurationSpec struct {
	LogSeverityScreen      string    `json:"logSeverityScreen,omitempty"`
	NodeToNodeMeshEnabled  *bool     `json:"nodeToNodeMeshEnabled,omitempty"`
	ASNumber               *ASNumber `json:"asNumber,omitempty"`
	ListenPort             uint16    `json:"listenPort,omitempty"`
	BindMode               string    `json:"bindMode,omitempty"`
	NodeMeshMaxRestartTime string    `json:"nodeMeshMaxRestartTime,omitempty"`

	Communities                    Raw `json:"communities,omitempty" api:"unbuilt"`
	PrefixAdvertisements           Raw `json:"prefixAdvertisements,omitempty" api:"unbuilt"`
	IgnoredInterfaces              Raw `json:"ignoredInterfaces,omitempty" api:"unbuilt"`
	NodeMeshPassword               Raw `json:"nodeMeshPassword,omitempty" api:"unbuilt"`
	ServiceClusterIPs              Raw `json:"serviceClusterIPs,omitempty" api:"unbuilt"`
	ServiceExternalIPs             Raw `json:"serviceExternalIPs,omitempty" api:"unbuilt"`
	ServiceLoadBalancerIPs         Raw `json:"serviceLoadBalancerIPs,omitempty" api:"unbuilt"`
	ServiceLoadBalancerAggregation Raw `json:"serviceLoadBalancerAggregation,omitempty" api:"unbuilt"`
	LocalWorkloadPeeringIPV4       Raw `json:"localWorkloadPeeringIPV4,omitempty" api:"unbuilt"`
	LocalWorkloadPeeringIPV6       Raw `json:"localWorkloadPeeringIPV6,omitempty" api:"unbuilt"`
	ProgramClusterRoutes           Raw `json:"programClusterRoutes,omitempty" api:"unbuilt"`
	IPv4NormalRoutePriority        Raw `json:"ipv4NormalRoutePriority,omitempty" api:"unbuilt"`
	IPv6NormalRoutePriority        Raw `json:"ipv6NormalRoutePriority,omitempty" api:"unbuilt"`
}

// BGPPeerSpec is a peer beyond the mesh.
type BGPPeerSpec struct {
	Node         string   `json:"node,omitempty"`
	NodeSelector Selector `json:"nodeSelector,omitzero"`
	PeerIP       string   `json:"peerIP,omitempty"`
	PeerSelector Selector `json:"peerSelector,omitzero"`
	ASNumber     ASNumber `json:"asNumber,omitempty"`

	LocalWorkloadSelector    Raw `json:"localWorkloadSelector,omitempty" api:"unbuilt"`
	LocalASNumber            Raw `json:"localASNumber,omitempty" api:"unbuilt"`
	NextHopMode              Raw `json:"nextHopMode,omitempty" api:"unbuilt"`
	KeepOriginalNextHop      Raw `json:"keepOriginalNextHop,omitempty" api:"unbuilt"`
	Password                 Raw `json:"password,omitempty" api:"unbuilt"`
	SourceAddress            Raw `json:"sourceAddress,omitempty" api:"unbuilt"`
	MaxRestartTime           Raw `json:"maxRestartTime,omitempty" api:"unbuilt"`
	KeepaliveTime            Raw `json:"keepaliveTime,omitempty" api:"unbuilt"`
	NumAllowedLocalASNumbers Raw `json:"numAllowedLocalASNumbers,omitempty" api:"unbuilt"`
	TTLSecurity              Raw `json:"ttlSecurity,omitempty" api:"unbuilt"`
	ReachableBy              Raw `json:"reachableBy,omitempty" api:"unbuilt"`
	Filters                  Raw `json:"filters,omitempty" api:"unbuilt"`
	ReversePeering           Raw `json:"reversePeering,omitempty" api:"unbuilt"`
}

// ClusterInformationSpec says what the cluster is and whether the datastore
// may be acted on: only an explicit true lets an agent proceed.
type ClusterInformationSpec struct {
	ClusterGUID    string `json:"clusterGUID,omitempty"`
	ClusterType    string `json:"clusterType,omitempty"`
	CalicoVersion  string `json:"calicoVersion,omitempty"`
	DatastoreReady *bool  `json:"datastoreReady,omitempty"`
	Variant        Raw    `json:"variant,omitempty"`
}
