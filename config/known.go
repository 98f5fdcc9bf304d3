package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"tortie/api"
)

// idle has, in lower case, the parameters of Felix that are known here though
// nothing acts on them, with the value that changes nothing for them. Given
// with another value, they are reported.
var idle = map[string]string{
	"allowipippacketsfromworkloads": "false", "allowvxlanpacketsfromworkloads": "false",
	"bpfenabled": "false", "bpfloglevel": "", "bpfenforcerpf": "loose",
	"chaininsertmode": "insert", "datastoretype": "etcdv3",
	"deviceroutesourceaddress": "", "deviceroutesourceaddressipv6": "",
	"externalnodeslist":     "",
	"flowlogsflushinterval": "300s", "flowlogsgoldmaneserver": "", "flowlogslocalreporter": "disabled", "flowlogspolicyevaluationmode": "continuous",
	"ipforwarding": "enabled", "ipipenabled": "false", "ipinipenabled": "false", "ipipmtu": "0", "vxlanenabled": "false", "vxlanmtu": "0",
	"vxlanport": "4789", "vxlanvni": "4096",
	"iptablesbackend": "auto", "iptablesfilterallowaction": "accept", "iptablesmangleallowaction": "accept", "iptablesfilterdenyaction": "drop",
	"iptablesmarkmask": "0xffff0000", "nftablesmarkmask": "0xffff0000",
	"ipv4normalroutepriority": "1024", "ipv6normalroutepriority": "1024", "ipv4elevatedroutepriority": "512", "ipv6elevatedroutepriority": "512",
	"livemigrationrouteconvergencetime": "30s",
	"logfilepath":                       "/var/log/calico/felix.log", "logprefix": "calico-packet", "logactionratelimit": "", "logactionratelimitburst": "5",
	"logseverityfile": "info", "logseveritysys": "info",
	"maxipsetsize": "1048576",
	"nftablesmode": "auto", "nftablesflowtableoffload": "disabled",
	"programclusterroutes": "enabledipiponly", "removeexternalroutes": "true", "routesyncdisabled": "false",
	"usagereportingenabled": "true",
	"wireguardenabled":      "false", "wireguardenabledv6": "false", "wireguardhostencryptionenabled": "false", "wireguardkeepalive": "0s",
	"wireguardlisteningport": "51820", "wireguardlisteningportv6": "51821", "wireguardmtu": "0", "wireguardmtuv6": "0",
	"xdpenabled": "true",
}

// notActedUpon is the problem of a parameter that is not a field of Config,
// unless it was given the value that asks for nothing.
func notActedUpon(source, name, text string) (api.Problem, bool) {
	if is, known := idle[strings.ToLower(name)]; known && strings.EqualFold(is, text) {
		return api.Problem{}, false
	}
	if strings.Contains(strings.ToLower(name), "password") {
		text = Secret(text).String()
	}
	return api.Problem{Field: source, Value: text, Reason: name + ": nothing acts on it", Unsupported: true}, true
}

// textOf turns a value of the file or of a resource into the text that the
// environment would have: a list is separated by commas.
func textOf(raw json.RawMessage) (string, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case float64, bool:
		return strings.TrimSpace(string(raw)), nil
	case []any:
		var list []string
		for _, e := range v {
			s, ok := e.(string)
			if m, is := e.(map[string]any); is {
				s, ok = failsafeText(m)
			}
			if !ok {
				return string(raw), errors.New("want a value, or a list of strings")
			}
			list = append(list, s)
		}
		return strings.Join(list, ","), nil
	}
	return string(raw), errors.New("want a value, or a list of strings")
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
