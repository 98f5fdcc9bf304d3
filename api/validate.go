package api

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// checker collects what is wrong with an object.
type checker struct{ problems []Problem }

// need reports a field unless ok.
func (c *checker) need(ok bool, field, value, reason string) {
	if !ok {
		c.problems = append(c.problems, Problem{Field: field, Value: shorten(value), Reason: reason})
	}
}

// oneOf reports a value that is neither empty nor one of some.
func (c *checker) oneOf(field, value string, some ...string) {
	c.need(value == "" || slices.Contains(some, value), field, value, "want "+strings.Join(some, " or "))
}

// Validate reports what must not be stored of an object that a user wrote. It
// does not report what is well formed though nothing acts on it yet.
func Validate(o Object) []Problem {
	info := infoByKind[string(o.Key().Kind)]
	if info == nil {
		return []Problem{{Field: "kind", Value: string(o.Key().Kind), Reason: "unknown"}}
	}
	value, err := Encode(o)
	if err != nil {
		return []Problem{{Field: "spec", Reason: err.Error()}}
	}
	_, problems, err := DecodeKey(o.Key(), value)
	if err != nil {
		return []Problem{{Field: "spec", Reason: err.Error()}}
	}
	c := &checker{problems: slices.DeleteFunc(problems, func(p Problem) bool { return p.Unsupported })}
	c.metadata(info, o.Metadata())
	switch r := o.(type) {
	case *WorkloadEndpoint:
		c.workloadEndpoint(r)
	case *HostEndpoint:
		c.hostEndpoint(&r.Spec)
	case *Policy:
		c.policy(r)
	case *Profile:
		c.labels("spec.labelsToApply", r.Spec.LabelsToApply)
		c.rules("spec.ingress", r.Spec.Ingress)
		c.rules("spec.egress", r.Spec.Egress)
	case *Tier:
		c.tier(r)
	case *NetworkSet:
		_, has := r.Meta.Labels[LabelNamespace]
		c.need(!has, "metadata.labels", LabelNamespace, "this label is not for users to set")
	case *Node:
		c.node(r)
	case *BGPConfiguration:
		c.bgpConfiguration(r)
	case *BGPPeer:
		c.bgpPeer(&r.Spec)
	case *FelixConfiguration:
		_, scoped := r.Spec["nodeSelector"]
		c.need(scoped || nameGlobalOrNode(r.Meta.Name) == "", "metadata.name", r.Meta.Name, `want "default" or "node.<name>", unless there is a nodeSelector`)
	case *KubeControllersConfiguration:
		c.kubeControllersConfiguration(&r.Spec)
	case *ClusterInformation:
		c.need(r.Spec.ClusterGUID == "" || guidRE.MatchString(r.Spec.ClusterGUID), "spec.clusterGUID", r.Spec.ClusterGUID, "want 32 hexadecimal digits")
	}
	return c.problems
}

// kubeControllersConfiguration checks what makes host endpoints. What decoding
// finds wrong with it is a problem already.
func (c *checker) kubeControllersConfiguration(s *KubeControllersConfigurationSpec) {
	if n := s.Controllers.Node; n != nil && n.HostEndpoint != nil {
		for i, t := range n.HostEndpoint.Templates {
			c.labels(fmt.Sprintf("spec.controllers.node.hostEndpoint.templates[%d].labels", i), t.Labels)
		}
	}
}

// hostEndpoint checks an interface of a host.
func (c *checker) hostEndpoint(s *HostEndpointSpec) {
	c.need(s.Node != "", "spec.node", "", "want the name of a host")
	c.need(s.InterfaceName != "" || len(s.ExpectedIPs) > 0, "spec.interfaceName", "", "want an interface, or expectedIPs")
	c.need(s.InterfaceName == "" || s.InterfaceName == "*" || interfaceRE.MatchString(s.InterfaceName), "spec.interfaceName", s.InterfaceName, `want the name of an interface, or "*"`)
	c.endpoint(s.Ports, s.Profiles)
}

// endpoint checks what endpoints of workloads and of hosts have in common.
func (c *checker) endpoint(ports []NamedPort, profiles []string) {
	for i, p := range ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		c.need(p.Name == "" || isPortName(p.Name), field+".name", p.Name, "want letters, digits, '_', '.' and '-'")
		c.need(isPortProtocol(p.Protocol), field+".protocol", p.Protocol.String(), "want TCP, UDP or SCTP")
		c.need(p.Port > 0, field+".port", "0", "want a port from 1 to 65535")
	}
	for i, p := range profiles {
		c.need(nameSubdomain(p) == "", fmt.Sprintf("spec.profiles[%d]", i), p, "want the name of a profile")
	}
}

var (
	guidRE        = regexp.MustCompile(`^[0-9a-f]{32}$`)
	interfaceRE   = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`)
	labelValueRE  = regexp.MustCompile(`^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$`)
	labelSuffixRE = regexp.MustCompile(`^[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$`)
)

func (c *checker) metadata(info *KindInfo, m *Meta) {
	reason := info.names(m.Name)
	c.need(reason == "", "metadata.name", m.Name, reason)
	if info.Namespaced {
		c.need(nameLabel(m.Namespace) == "", "metadata.namespace", m.Namespace, nameLabel(m.Namespace))
	} else {
		c.need(m.Namespace == "", "metadata.namespace", m.Namespace, "resources of this kind have no namespace")
	}
	c.labels("metadata.labels", m.Labels)
	size := 0
	for _, key := range slices.Sorted(maps.Keys(m.Annotations)) {
		c.qualified("metadata.annotations", key)
		size += len(key) + len(m.Annotations[key])
	}
	c.need(size <= 256<<10, "metadata.annotations", "", "want at most 256 KiB")
}

func (c *checker) labels(field string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		c.qualified(field, key)
		c.need(labelValueRE.MatchString(labels[key]), field+"."+key, labels[key], "want at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")
	}
}

func (c *checker) qualified(field, key string) {
	prefix, name, has := strings.Cut(key, "/")
	if !has {
		prefix, name = "", key
	}
	c.need(labelSuffixRE.MatchString(name) && (!has || nameSubdomain(prefix) == ""), field, key,
		"want a name of at most 63 letters, digits, '-', '_' and '.', after a DNS subdomain and a slash, if any")
}

func (c *checker) selector(field string, s Selector) {
	c.need(len(s.Text) <= MaxSelector, field, s.Text, fmt.Sprintf("want at most %d bytes", MaxSelector))
	c.need(s.Expr == nil || !s.Expr.UsesGlobal(), field, s.Text, "global() has no meaning here")
}

func (c *checker) workloadEndpoint(w *WorkloadEndpoint) {
	s := &w.Spec
	if err := s.Identity().Check(); err != nil {
		c.need(false, "spec", "", "node, orchestrator, workload and endpoint name the endpoint: "+err.Error())
	} else {
		name := s.Identity().String()
		c.need(w.Meta.Name == name, "metadata.name", w.Meta.Name, "want "+name+", as node, orchestrator, workload and endpoint say")
	}
	c.need(interfaceRE.MatchString(s.InterfaceName), "spec.interfaceName", s.InterfaceName, "want the name of an interface")
	c.need(!s.IPv4Gateway.IsValid() || s.IPv4Gateway.Is4(), "spec.ipv4Gateway", s.IPv4Gateway.String(), "want an IPv4 address")
	c.need(!s.IPv6Gateway.IsValid() || s.IPv6Gateway.Is6(), "spec.ipv6Gateway", s.IPv6Gateway.String(), "want an IPv6 address")
	for i, n := range s.IPNATs {
		field := fmt.Sprintf("spec.ipNATs[%d]", i)
		c.need(n.ExternalIP.IsValid() && n.InternalIP.IsValid() && n.ExternalIP.Is4() == n.InternalIP.Is4(), field, "", "want two addresses of one family")
		c.need(slices.ContainsFunc(s.IPNetworks.Prefixes, func(p netip.Prefix) bool { return p.IsSingleIP() && p.Contains(n.InternalIP.Addr) }),
			field+".internalIP", n.InternalIP.String(), "want an address of ipNetworks")
	}
	c.endpoint(s.Ports, s.Profiles)
	if s.QoSControls != nil {
		c.problems = append(c.problems, s.QoSControls.Problems()...)
	}
}

func (c *checker) tier(t *Tier) {
	c.oneOf("spec.defaultAction", string(t.Spec.DefaultAction), string(Deny), string(Pass))
	if t.Meta.Name == DefaultTier {
		c.need(t.Spec.Order == nil || *t.Spec.Order == DefaultTierOrder, "spec.order", "", fmt.Sprintf("that of the default tier is %d", DefaultTierOrder))
		c.need(t.Spec.DefaultAction != Pass, "spec.defaultAction", string(Pass), "that of the default tier is Deny")
	}
}

func (c *checker) node(n *Node) {
	b := n.Spec.BGP
	if b == nil {
		return
	}
	c.need(*b != NodeBGP{}, "spec.bgp", "{}", "must not be empty")
	for _, a := range []struct {
		field, text string
		v4          bool
	}{{"ipv4Address", b.IPv4Address, true}, {"ipv6Address", b.IPv6Address, false}, {"ipv4IPIPTunnelAddr", b.IPv4IPIPTunnelAddr, true}} {
		if a.text == "" {
			continue
		}
		host, _, _ := strings.Cut(a.text, "/")
		addr, err := ParseAddr(host)
		_, err2 := ParsePrefix(a.text)
		c.need(err == nil && err2 == nil && addr.Is4() == a.v4, "spec.bgp."+a.field, a.text, "want an address of this family, and the length of its network's prefix")
	}
	if id := b.RouteReflectorClusterID; id != "" {
		addr, err := ParseAddr(id)
		c.need(err == nil && addr.Is4(), "spec.bgp.routeReflectorClusterID", id, "want four numbers with dots")
	}
}

func (c *checker) bgpConfiguration(b *BGPConfiguration) {
	s := &b.Spec
	if b.Meta.Name != "default" {
		c.need(s.NodeToNodeMeshEnabled == nil && s.ASNumber == nil && s.NodeMeshMaxRestartTime == "" && s.NodeMeshPassword == "", "spec", "",
			"nodeToNodeMeshEnabled, asNumber, nodeMeshPassword and nodeMeshMaxRestartTime are for the default resource only")
	}
	c.oneOf("spec.logSeverityScreen", s.LogSeverityScreen, "Debug", "Info", "Warning", "Error", "Fatal")
	c.oneOf("spec.bindMode", s.BindMode, "None", "NodeIP")
	c.need(s.ASNumber == nil || *s.ASNumber > 0, "spec.asNumber", "0", "want 1 to 4294967295")
	if s.NodeMeshMaxRestartTime != "" {
		d, err := time.ParseDuration(s.NodeMeshMaxRestartTime)
		c.need(err == nil && d >= time.Second && d <= 4095*time.Second, "spec.nodeMeshMaxRestartTime", s.NodeMeshMaxRestartTime, `want a duration from "1s" to "4095s"`)
	}
}

func (c *checker) bgpPeer(s *BGPPeerSpec) {
	c.need(s.Node == "" || s.NodeSelector.IsZero(), "spec.nodeSelector", s.NodeSelector.Text, "want a node or a nodeSelector, not both")
	ways := 0
	for _, has := range []bool{s.PeerIP != "", !s.PeerSelector.IsZero(), s.LocalWorkloadSelector != ""} {
		if has {
			ways++
		}
	}
	c.need(ways == 1, "spec", "", "want one of peerIP, peerSelector and localWorkloadSelector")
	if s.PeerIP != "" {
		_, err := ParsePeerIP(s.PeerIP)
		c.need(err == nil, "spec.peerIP", s.PeerIP, "want an address, or address:port with an IPv6 address in brackets")
	}
	c.need((s.ASNumber == 0) == !s.PeerSelector.IsZero(), "spec.asNumber", fmt.Sprint(uint32(s.ASNumber)), "needed, but not with a peerSelector")
	c.selector("spec.nodeSelector", s.NodeSelector)
	c.selector("spec.peerSelector", s.PeerSelector)
}

// ParsePeerIP reads the peerIP of a BGPPeer: an address, or an address and a
// port. The port is 0 where none is given.
func ParsePeerIP(s string) (netip.AddrPort, error) {
	if a, err := ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q: want an address, or an address and a port", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
