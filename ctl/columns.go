package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"tortie/api"
)

// document is an object as JSON, numbers kept as written.
type document map[string]any

// column is one column of a table.
type column struct {
	heading string
	wide    bool // only with -o wide
	value   func(document) string
}

// none is what a cell shows where there is no value, so that every line has
// the same number of words.
const none = "-"

func field(heading, path string) column {
	return column{heading: heading, value: func(d document) string { return text(d.at(path)) }}
}

// fieldOr shows fallback where the field is absent.
func fieldOr(heading, path, fallback string) column {
	return column{heading: heading, value: func(d document) string {
		if v := d.at(path); v != nil {
			return text(v)
		}
		return fallback
	}}
}

// list shows a long list cut to 80 characters.
func list(heading, path string) column {
	return column{heading: heading, value: func(d document) string {
		s := text(d.at(path))
		if utf8.RuneCountInString(s) > 80 {
			s = string([]rune(s)[:77]) + "..."
		}
		return s
	}}
}

// either shows the first of the fields that is present, else fallback.
func either(heading, fallback string, paths ...string) column {
	return column{heading: heading, value: func(d document) string {
		for _, path := range paths {
			if s := text(d.at(path)); s != none {
				return s
			}
		}
		return fallback
	}}
}

// count shows how many elements lists have together.
func count(heading string, paths ...string) column {
	return column{heading: heading, value: func(d document) string {
		n := 0
		for _, path := range paths {
			elements, _ := d.at(path).([]any)
			n += len(elements)
		}
		return strconv.Itoa(n)
	}}
}

func wide(c column) column {
	c.wide = true
	return c
}

var (
	nameColumn      = field("NAME", "metadata.name")
	namespaceColumn = field("NAMESPACE", "metadata.namespace")
	policyColumns   = []column{
		nameColumn, fieldOr("TIER", "spec.tier", api.DefaultTier),
		wide(field("ORDER", "spec.order")), wide(field("SELECTOR", "spec.selector")),
	}
	setColumns = []column{nameColumn, wide(list("NETS", "spec.nets"))}
)

// columns are calicoctl's. A kind without an entry shows its name.
var columns = map[api.Kind][]column{
	api.KindWorkloadEndpoint: {
		wide(nameColumn), either("WORKLOAD", none, "spec.workload", "spec.pod"), field("NODE", "spec.node"),
		field("NETWORKS", "spec.ipNetworks"), field("INTERFACE", "spec.interfaceName"),
		wide(field("PROFILES", "spec.profiles")), wide(field("NATS", "spec.ipNATs")),
	},
	api.KindHostEndpoint: {
		nameColumn, field("NODE", "spec.node"), wide(field("INTERFACE", "spec.interfaceName")),
		wide(field("IPS", "spec.expectedIPs")), wide(field("PROFILES", "spec.profiles")),
	},
	api.KindNetworkPolicy:                 policyColumns,
	api.KindGlobalNetworkPolicy:           policyColumns,
	api.KindStagedNetworkPolicy:           policyColumns,
	api.KindStagedGlobalNetworkPolicy:     policyColumns,
	api.KindStagedKubernetesNetworkPolicy: {nameColumn, wide(field("PODSELECTOR", "spec.podSelector"))},
	api.KindNetworkSet:                    setColumns,
	api.KindGlobalNetworkSet:              setColumns,
	api.KindTier:                          {nameColumn, field("ORDER", "spec.order")},
	api.KindProfile:                       {nameColumn, wide(field("LABELS", "spec.labelsToApply"))},
	api.KindIPPool: {
		nameColumn, field("CIDR", "spec.cidr"), wide(fieldOr("NAT", "spec.natOutgoing", "false")),
		wide(fieldOr("IPIPMODE", "spec.ipipMode", "Never")), wide(fieldOr("VXLANMODE", "spec.vxlanMode", "Never")),
		wide(fieldOr("DISABLED", "spec.disabled", "false")), wide(fieldOr("DISABLEBGPEXPORT", "spec.disableBGPExport", "false")),
		fieldOr("SELECTOR", "spec.nodeSelector", "all()"),
	},
	api.KindIPReservation: {nameColumn, wide(list("CIDRS", "spec.reservedCIDRs"))},
	api.KindBGPPeer: {
		nameColumn, field("PEERIP", "spec.peerIP"), either("NODE", "(global)", "spec.node", "spec.nodeSelector"),
		fieldOr("ASN", "spec.asNumber", "0"),
	},
	api.KindBGPConfiguration: {
		nameColumn, field("LOGSEVERITY", "spec.logSeverityScreen"),
		field("MESHENABLED", "spec.nodeToNodeMeshEnabled"), field("ASNUMBER", "spec.asNumber"),
	},
	api.KindBGPFilter: {
		nameColumn, count("NUMEXPORT", "spec.exportV4", "spec.exportV6"), count("NUMIMPORT", "spec.importV4", "spec.importV6"),
	},
	api.KindNode: {
		nameColumn, wide(field("ASN", "spec.bgp.asNumber")),
		wide(field("IPV4", "spec.bgp.ipv4Address")), wide(field("IPV6", "spec.bgp.ipv6Address")),
	},
	api.KindClusterInformation: {
		nameColumn, field("CLUSTERGUID", "spec.clusterGUID"), field("CLUSTERTYPE", "spec.clusterType"),
		field("CALICOVERSION", "spec.calicoVersion"), field("DATASTOREREADY", "spec.datastoreReady"),
	},
	api.KindCalicoNodeStatus: {nameColumn, field("NODE", "spec.node"), wide(field("CLASSES", "spec.classes"))},
}

// table is how a list of objects of one kind is to be printed.
type table struct {
	kind      api.Kind
	wide      bool
	namespace bool // begin with the namespace
}

func (t table) writeTo(w io.Writer, docs []document) error {
	all, ok := columns[t.kind]
	if !ok {
		all = []column{nameColumn}
	}
	var shown []column
	if t.namespace {
		shown = append(shown, namespaceColumn)
	}
	for _, c := range all {
		if t.wide || !c.wide {
			shown = append(shown, c)
		}
	}
	tabs := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	row := func(cell func(column) string) {
		cells := make([]string, 0, len(shown))
		for _, c := range shown {
			cells = append(cells, cell(c))
		}
		_, _ = fmt.Fprintln(tabs, strings.Join(cells, "\t"))
	}
	row(func(c column) string { return c.heading })
	for _, d := range docs {
		row(func(c column) string { return c.value(d) })
	}
	return tabs.Flush()
}

// at returns the value of a field, nil if it or one on the way is absent.
func (d document) at(path string) any {
	var v any = map[string]any(d)
	for name := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

// text prints a value in a cell. A stored value of an unexpected type is
// printed as JSON.
func text(v any) string {
	switch v := v.(type) {
	case nil:
	case string:
		// A control character would break the table.
		if s := strings.Map(printable, v); s != "" {
			return s
		}
	case []any:
		if len(v) > 0 {
			parts := make([]string, 0, len(v))
			for _, e := range v {
				parts = append(parts, text(e))
			}
			return strings.Join(parts, ",")
		}
	case map[string]any:
		if len(v) > 0 {
			parts := make([]string, 0, len(v))
			for _, k := range slices.Sorted(maps.Keys(v)) {
				parts = append(parts, k+"="+text(v[k]))
			}
			return strings.Join(parts, ",")
		}
	default:
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return none
}

func printable(r rune) rune {
	if strconv.IsPrint(r) {
		return r
	}
	return ' '
}
