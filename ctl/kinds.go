package ctl

import (
	"fmt"
	"slices"
	"strings"

	"tortie/api"
)

// aliases are the names of kinds beside the kind itself and its plural. Those
// that calicoctl knows come first.
var aliases = map[api.Kind]string{
	api.KindWorkloadEndpoint:              "wep weps",
	api.KindHostEndpoint:                  "hep heps",
	api.KindNetworkPolicy:                 "policy policies np nps pol pols",
	api.KindGlobalNetworkPolicy:           "gnp gnps",
	api.KindStagedNetworkPolicy:           "snp snps",
	api.KindStagedGlobalNetworkPolicy:     "sgnp sgnps",
	api.KindStagedKubernetesNetworkPolicy: "sknp stagedkubernetespolicy stagedkubernetespolicies skpol skpols",
	api.KindNetworkSet:                    "netset netsets ns",
	api.KindGlobalNetworkSet:              "gnetset gnetsets gns",
	api.KindProfile:                       "pro pros",
	api.KindIPPool:                        "ipp ipps pool pools",
	api.KindIPReservation:                 "reservation reservations",
	api.KindBGPPeer:                       "bgpp bgpps bp bps",
	api.KindBGPConfiguration:              "bgpconfig bgpconfigs",
	api.KindBGPFilter:                     "bgpf bgpfs bf bfs",
	api.KindNode:                          "no nos",
	api.KindFelixConfiguration:            "felixconfig felixconfigs",
	api.KindClusterInformation:            "clusterinfo clusterinfos",
	api.KindKubeControllersConfiguration:  "kubecontrollersconfig kubecontrollersconfigs",
	api.KindCalicoNodeStatus:              "nodestatus nodestatuses",
	api.KindLiveMigration:                 "lm lms",
}

// lookup finds a kind by its name, plural or an alias, whatever the case.
func lookup(name string) (api.KindInfo, error) {
	lower := strings.ToLower(name)
	var known []string
	for _, info := range api.Kinds() {
		if lower == singular(info.Kind) || lower == info.Plural || slices.Contains(strings.Fields(aliases[info.Kind]), lower) {
			return info, nil
		}
		known = append(known, singular(info.Kind))
	}
	return api.KindInfo{}, fmt.Errorf("resource type %q is not known; there are: %s", name, strings.Join(known, ", "))
}

// singular is how a kind is written in commands.
func singular(k api.Kind) string { return strings.ToLower(string(k)) }

// targets reads the arguments KIND [NAME…] or KIND/NAME….
func targets(args []string, namespace string) (api.KindInfo, []api.Key, error) {
	first, name, slashed := strings.Cut(args[0], "/")
	info, err := lookup(first)
	if err != nil {
		return info, nil, err
	}
	names := args[1:]
	if slashed {
		names = []string{name}
		for _, arg := range args[1:] {
			kind, name, _ := strings.Cut(arg, "/")
			if other, err := lookup(kind); err != nil || other.Kind != info.Kind {
				return info, nil, fmt.Errorf("%q: want %s/NAME as the arguments before it", arg, singular(info.Kind))
			}
			names = append(names, name)
		}
	}
	keys := make([]api.Key, 0, len(names))
	for _, name := range names {
		if name == "" {
			return info, nil, fmt.Errorf("%q: a name is missing", strings.Join(args, " "))
		}
		key := api.Key{Kind: info.Kind, Name: name}
		if info.Namespaced {
			key.Namespace = namespace
		}
		keys = append(keys, key)
	}
	return info, keys, nil
}
