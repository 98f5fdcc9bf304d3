package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The remaining kinds of the data model.
const (
	KindLiveMigration                 Kind = "LiveMigration"
	KindStagedNetworkPolicy           Kind = "StagedNetworkPolicy"
	KindStagedGlobalNetworkPolicy     Kind = "StagedGlobalNetworkPolicy"
	KindStagedKubernetesNetworkPolicy Kind = "StagedKubernetesNetworkPolicy"
	KindIPPool                        Kind = "IPPool"
	KindIPReservation                 Kind = "IPReservation"
	KindBGPFilter                     Kind = "BGPFilter"
	KindKubeControllersConfiguration  Kind = "KubeControllersConfiguration"
	KindCalicoNodeStatus              Kind = "CalicoNodeStatus"
	KindIPAMConfiguration             Kind = "IPAMConfiguration"
	KindIPAMConfig                    Kind = "IPAMConfig"
	KindBlockAffinity                 Kind = "BlockAffinity"
)

// Root is the path that all resources are below.
const Root = "/calico/resources/v3/projectcalico.org/"

// KindInfo describes a kind.
type KindInfo struct {
	Kind       Kind
	Plural     string // as in keys
	Namespaced bool

	unbuilt bool // nothing acts on the kind yet
	names   nameRule
	decode  decodeFunc
}

// kinds has every kind that is stored, in the order of the data model.
var kinds = []KindInfo{
	{Kind: KindWorkloadEndpoint, Plural: "workloadendpoints", Namespaced: true, names: nameWorkloadEndpoint, decode: decodeAs[WorkloadEndpointSpec]},
	{Kind: KindLiveMigration, Plural: "livemigrations", Namespaced: true, unbuilt: true, names: nameWorkloadEndpoint, decode: decodeAs[LiveMigrationSpec]},
	{Kind: KindNetworkPolicy, Plural: "networkpolicies", Namespaced: true, names: nameNetworkPolicy, decode: decodeAs[PolicySpec]},
	{Kind: KindStagedNetworkPolicy, Plural: "stagednetworkpolicies", Namespaced: true, names: nameNetworkPolicy, decode: decodeAs[PolicySpec]},
	{Kind: KindStagedKubernetesNetworkPolicy, Plural: "stagedkubernetesnetworkpolicies", Namespaced: true, names: nameSubdomain, decode: decodeAs[KubernetesPolicySpec]},
	{Kind: KindNetworkSet, Plural: "networksets", Namespaced: true, names: nameSubdomain, decode: decodeAs[NetworkSetSpec]},
	{Kind: KindGlobalNetworkPolicy, Plural: "globalnetworkpolicies", names: nameGlobalPolicy, decode: decodeAs[PolicySpec]},
	{Kind: KindStagedGlobalNetworkPolicy, Plural: "stagedglobalnetworkpolicies", names: nameGlobalPolicy, decode: decodeAs[PolicySpec]},
	{Kind: KindTier, Plural: "tiers", names: nameLabel, decode: decodeAs[TierSpec]},
	{Kind: KindProfile, Plural: "profiles", names: nameSubdomain, decode: decodeAs[ProfileSpec]},
	{Kind: KindGlobalNetworkSet, Plural: "globalnetworksets", names: nameSubdomain, decode: decodeAs[NetworkSetSpec]},
	{Kind: KindHostEndpoint, Plural: "hostendpoints", names: nameSubdomain, decode: decodeAs[HostEndpointSpec]},
	{Kind: KindIPPool, Plural: "ippools", names: nameSubdomain, decode: decodeAs[IPPoolSpec]},
	{Kind: KindIPReservation, Plural: "ipreservations", unbuilt: true, names: nameSubdomain, decode: decodeAs[IPReservationSpec]},
	{Kind: KindBGPPeer, Plural: "bgppeers", names: nameSubdomain, decode: decodeAs[BGPPeerSpec]},
	{Kind: KindBGPConfiguration, Plural: "bgpconfigurations", names: nameGlobalOrNode, decode: decodeAs[BGPConfigurationSpec]},
	{Kind: KindBGPFilter, Plural: "bgpfilters", unbuilt: true, names: nameSubdomain, decode: decodeAs[BGPFilterSpec]},
	{Kind: KindNode, Plural: "nodes", names: nameSubdomain, decode: decodeAs[NodeSpec]},
	{Kind: KindFelixConfiguration, Plural: "felixconfigurations", names: nameSubdomain, decode: decodeAs[FelixConfigurationSpec]},
	{Kind: KindClusterInformation, Plural: "clusterinformations", names: nameDefault, decode: decodeAs[ClusterInformationSpec]},
	{Kind: KindKubeControllersConfiguration, Plural: "kubecontrollersconfigurations", names: nameDefault, decode: decodeAs[KubeControllersConfigurationSpec]},
	{Kind: KindCalicoNodeStatus, Plural: "caliconodestatuses", unbuilt: true, names: nameSubdomain, decode: decodeAs[Verbatim]},
	{Kind: KindIPAMConfiguration, Plural: "ipamconfigurations", unbuilt: true, names: nameDefault, decode: decodeAs[Verbatim]},
	{Kind: KindIPAMConfig, Plural: "ipamconfigs", unbuilt: true, names: nameSubdomain, decode: decodeAs[Verbatim]},
	{Kind: KindBlockAffinity, Plural: "blockaffinities", unbuilt: true, names: nameSubdomain, decode: decodeAs[Verbatim]},
}

var (
	infoByKind   = indexKinds(func(i *KindInfo) string { return string(i.Kind) })
	infoByPlural = indexKinds(func(i *KindInfo) string { return i.Plural })
)

func indexKinds(name func(*KindInfo) string) map[string]*KindInfo {
	index := make(map[string]*KindInfo, len(kinds))
	for i := range kinds {
		index[name(&kinds[i])] = &kinds[i]
	}
	return index
}

// Kinds returns every kind that is stored, in the order of the data model.
func Kinds() []KindInfo { return slices.Clone(kinds) }

// Info returns what is known of a kind.
func Info(kind Kind) (KindInfo, bool) {
	info := infoByKind[string(kind)]
	if info == nil {
		return KindInfo{}, false
	}
	return *info, true
}

// IsStaged reports the key of a staged policy.
func (k Key) IsStaged() bool { return k.Unstaged() != k }

// Unstaged returns the key of the policy that a staged one is about, and any
// other key as it is.
func (k Key) Unstaged() Key {
	switch k.Kind {
	case KindStagedNetworkPolicy:
		k.Kind = KindNetworkPolicy
	case KindStagedGlobalNetworkPolicy:
		k.Kind = KindGlobalNetworkPolicy
	case KindStagedKubernetesNetworkPolicy:
		k.Kind, k.Name = KindNetworkPolicy, kubernetesPrefix+k.Name
	}
	return k
}

// kubernetesPrefix begins the names of policies that come from Kubernetes.
const kubernetesPrefix = "knp.default."

// Staged returns the keys of the staged policies that would be about a policy.
func (k Key) Staged() (keys []Key) {
	switch k.Kind {
	case KindNetworkPolicy:
		keys = append(keys, Key{KindStagedNetworkPolicy, k.Namespace, k.Name})
		if name, ok := strings.CutPrefix(k.Name, kubernetesPrefix); ok {
			keys = append(keys, Key{KindStagedKubernetesNetworkPolicy, k.Namespace, name})
		}
	case KindGlobalNetworkPolicy:
		keys = append(keys, Key{Kind: KindStagedGlobalNetworkPolicy, Name: k.Name})
	}
	return keys
}

// The staged actions.
const (
	StagedSet    = "Set"    // try it in the place of the policy of its name, if there is one
	StagedDelete = "Delete" // try to be without the policy of its name
	StagedLearn  = "Learn"  // as Set; somebody adds to it
	StagedIgnore = "Ignore" // not to be tried
)

// Tried reports whether a staged policy is evaluated.
func (s *PolicySpec) Tried() bool {
	switch s.StagedAction {
	case "", StagedSet, StagedDelete, StagedLearn:
		return true
	}
	return false // an action of a later version, too
}

// Prefix is the path, with a slash at its end, that all resources of a kind
// are below. It is empty for a kind that is not stored.
func Prefix(kind Kind) string {
	if kind == KindHostAddresses {
		return AddressesRoot
	}
	info := infoByKind[string(kind)]
	if info == nil {
		return ""
	}
	return Root + info.Plural + "/"
}

// Path is where the resource is stored. It is empty for a kind that is not
// stored. Nothing is escaped: that is how all writers do it.
func (k Key) Path() string {
	prefix := Prefix(k.Kind)
	switch {
	case prefix == "":
		return ""
	case k.Namespace == "":
		return prefix + k.Name
	}
	return prefix + k.Namespace + "/" + k.Name
}

// ErrPath is returned for a path that is not that of a resource.
var ErrPath = errors.New("not the path of a resource")

// ParsePath is the reverse of Key.Path. It undoes the escapes that readers of
// the data model undo.
func ParsePath(path string) (Key, error) {
	if host, ok := strings.CutPrefix(path, AddressesRoot); ok && host != "" && !strings.Contains(host, "/") {
		return Key{Kind: KindHostAddresses, Name: unescapePath(host)}, nil
	}
	rest, ok := strings.CutPrefix(path, Root)
	if !ok {
		return Key{}, fmt.Errorf("%q: %w", path, ErrPath)
	}
	plural, rest, _ := strings.Cut(rest, "/")
	info := infoByPlural[plural]
	if info == nil {
		return Key{}, fmt.Errorf("%q: unknown kind: %w", path, ErrPath)
	}
	k := Key{Kind: info.Kind, Name: rest}
	if info.Namespaced {
		k.Namespace, k.Name, _ = strings.Cut(rest, "/")
	}
	if k.Name == "" || strings.Contains(k.Name, "/") || info.Namespaced && k.Namespace == "" {
		return Key{}, fmt.Errorf("%q: %w", path, ErrPath)
	}
	k.Namespace, k.Name = unescapePath(k.Namespace), unescapePath(k.Name)
	return k, nil
}

func unescapePath(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "%2f", "/"), "%25", "%")
}

// escapePath is the reverse of unescapePath.
func escapePath(s string) string {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '/') < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "%", "%25"), "/", "%2f")
}
