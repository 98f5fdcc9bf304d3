package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestPaths(t *testing.T) {
	paths := map[Kind]string{
		KindWorkloadEndpoint:              "workloadendpoints/openstack/compute--1-openstack-3f0d--11-9a1c--22",
		KindLiveMigration:                 "livemigrations/openstack/compute--2-openstack-3f0d--11-9a1c--22",
		KindNetworkPolicy:                 "networkpolicies/openstack/ossg.default.SG1",
		KindStagedNetworkPolicy:           "stagednetworkpolicies/ns/p",
		KindStagedKubernetesNetworkPolicy: "stagedkubernetesnetworkpolicies/ns/p",
		KindNetworkSet:                    "networksets/ns/set.with.dots",
		KindGlobalNetworkPolicy:           "globalnetworkpolicies/security.allow",
		KindStagedGlobalNetworkPolicy:     "stagedglobalnetworkpolicies/allow",
		KindTier:                          "tiers/default",
		KindProfile:                       "profiles/projectcalico-default-allow",
		KindGlobalNetworkSet:              "globalnetworksets/bad-actors",
		KindHostEndpoint:                  "hostendpoints/db1-eth0",
		KindIPPool:                        "ippools/default-ipv4-ippool",
		KindIPReservation:                 "ipreservations/r",
		KindBGPPeer:                       "bgppeers/rack1-tor",
		KindBGPConfiguration:              "bgpconfigurations/node.compute-1",
		KindBGPFilter:                     "bgpfilters/f",
		KindNode:                          "nodes/compute-1",
		KindFelixConfiguration:            "felixconfigurations/node.Compute-1",
		KindClusterInformation:            "clusterinformations/default",
		KindKubeControllersConfiguration:  "kubecontrollersconfigurations/default",
		KindCalicoNodeStatus:              "caliconodestatuses/s",
		KindIPAMConfiguration:             "ipamconfigurations/default",
		KindIPAMConfig:                    "ipamconfigs/default",
		KindBlockAffinity:                 "blockaffinities/node1-10-65-0-0-26",
	}
	if len(paths) != len(Kinds()) {
		t.Errorf("%d paths for %d kinds", len(paths), len(Kinds()))
	}
	for kind, rest := range paths {
		path := "/calico/resources/v3/projectcalico.org/" + rest
		key, err := ParsePath(path)
		if err != nil || key.Kind != kind || key.Path() != path || !strings.HasPrefix(path, Prefix(kind)) {
			t.Errorf("%s: parsed as %v, %v; its path is %s", path, key, err, key.Path())
		}
		if info, ok := Info(kind); !ok || info.Namespaced != (key.Namespace != "") {
			t.Errorf("%s: namespace %q", kind, key.Namespace)
		}
	}
}

func TestParsePathUnescapes(t *testing.T) {
	key, err := ParsePath(Root + "networkpolicies/a%2fb/c%252f%25d")
	if want := (Key{KindNetworkPolicy, "a/b", "c%2f%d"}); err != nil || key != want {
		t.Errorf("got %v, %v; want %v", key, err, want)
	}
}

func TestParsePathRefuses(t *testing.T) {
	for _, path := range []string{
		"", "/", Root, "calico/resources/v3/projectcalico.org/tiers/default", Root + "tiers", Root + "tiers/", Root + "tiers/a/b", Root + "networksets/a",
		Root + "networksets//a", Root + "networksets/a/", Root + "networksets/a/b/c", Root + "services/a/b", Root + "Tiers/a", "/calico/ipam/v2/config",
	} {
		if key, err := ParsePath(path); err == nil {
			t.Errorf("%q: accepted as %v", path, key)
		}
	}
	if p := (Key{Kind: "Service", Name: "a"}).Path(); p != "" || Prefix("Service") != "" {
		t.Errorf("a kind that is not stored has path %q", p)
	}
}

func FuzzParsePath(f *testing.F) {
	f.Add(Root + "tiers/default")
	f.Add(Root + "networkpolicies/a%2fb/c%252f%25d")
	f.Add(AppliedRoot + "h/applied")
	f.Add(AddressesRoot + "h%2f1")
	f.Fuzz(func(t *testing.T, path string) {
		if key, err := ParsePath(path); err == nil {
			again, err := ParsePath(Prefix(key.Kind) + strings.TrimPrefix(escapePath(key.Namespace)+"/"+escapePath(key.Name), "/"))
			if err != nil || again != key {
				t.Errorf("%q: %v, again %v, %v", path, key, again, err)
			}
		}
		if name, err := ParseWorkloadName(path); err == nil {
			if again, err := ParseWorkloadName(name.String()); name.Check() == nil && (err != nil || again != name) {
				t.Errorf("%q: %v, again %v, %v", path, name, again, err)
			}
		}
		if host, ok := ParseAppliedPath(path); ok && AppliedPath(host) != path {
			t.Errorf("%q: host %q", path, host)
		}
	})
}

func TestWorkloadNames(t *testing.T) {
	for name, want := range map[string]WorkloadName{
		"node--1-k8s-pod--name-eth0":                           {"node-1", "k8s", "pod-name", "eth0"},
		"node--1-cni-abcdefa0123456-eth0":                      {"node-1", "cni", "abcdefa0123456", "eth0"},
		"node--1-libnetwork-libnetwork-abcdefgh":               {"node-1", "libnetwork", "libnetwork", "abcdefgh"},
		"node--1-foo-foo--foo-abcdefgh":                        {"node-1", "foo", "foo-foo", "abcdefgh"},
		"felix--host--1-openstack-instance--1-DEADBEEF--1234":  {"felix-host-1", "openstack", "instance-1", "DEADBEEF-1234"},
		"my--openstack--host.example.org-openstack-a----b-c.d": {"my-openstack-host.example.org", "openstack", "a--b", "c.d"},
		"a----b-o-c-d": {"a--b", "o", "c", "d"},
	} {
		got, err := ParseWorkloadName(name)
		if err != nil || got != want || got.String() != name || got.Check() != nil {
			t.Errorf("%s: %+v, %v; printed %s", name, got, err, got)
		}
		if !strings.HasPrefix(name, want.Prefix()) {
			t.Errorf("%s does not begin with %s", name, want.Prefix())
		}
	}
	for _, name := range []string{"", "-", "a-b-c", "a-b-c-d-e", "-a-b-c-d", "a-b-c-d-", "a---b-c-d-e", "a-b--c-d", "a-b-c---d", "--a-b-c-d", "a-b-c-d--"} {
		if got, err := ParseWorkloadName(name); err == nil {
			t.Errorf("%q: accepted as %+v", name, got)
		}
	}
	specs := map[string]WorkloadEndpointSpec{
		"n-k8s-p-e":                  {Node: "n", Orchestrator: "k8s", Pod: "p", Endpoint: "e", Workload: "x"},
		"n-cni-c-e":                  {Node: "n", Orchestrator: "cni", ContainerID: "c", Endpoint: "e"},
		"n-libnetwork-libnetwork-e":  {Node: "n", Orchestrator: "libnetwork", Endpoint: "e"},
		"n--1-openstack-w--1-e--1.x": {Node: "n-1", Orchestrator: "openstack", Workload: "w-1", Endpoint: "e-1.x"},
	}
	for want, spec := range specs {
		if got := spec.Identity().String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Names of section 1.1 of the data model.
func TestNameRules(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct {
		kind Kind
		good []string
		bad  []string
	}{
		{KindProfile, []string{"a", "a.b-c.d", long}, []string{"", "A", "a_b", "a..b", "-a", "a-", strings.Repeat(long, 4)}},
		{KindTier, []string{"a", "a-b"}, []string{"", "a.b", "A", long}},
		{KindGlobalNetworkPolicy, []string{"a", "tier.a"}, []string{"a.b.c", "A", ""}},
		{KindNetworkPolicy, []string{"a", "tier.a", "knp.default.a.b.c", "ossg.default.1234-5678"}, []string{"a.b.c", "ossg.default.", "knp.other.a.b"}},
		{KindClusterInformation, []string{"default"}, []string{"other", ""}},
		{KindKubeControllersConfiguration, []string{"default"}, []string{"other"}},
		{KindIPAMConfiguration, []string{"default"}, []string{"other"}},
		{KindBGPConfiguration, []string{"default", "node.a"}, []string{"a", "node.", "node.A"}},
		{KindWorkloadEndpoint, []string{"a-b-c-d"}, []string{"a", "a-b-c"}},
	} {
		rule := infoByKind[string(c.kind)].names
		for _, name := range c.good {
			if reason := rule(name); reason != "" {
				t.Errorf("%s %q: %s", c.kind, name, reason)
			}
		}
		for _, name := range c.bad {
			if rule(name) == "" {
				t.Errorf("%s %q: accepted", c.kind, name)
			}
		}
	}
}

// Section 4.20 of the data model, and the applied revision.
func TestStatusValues(t *testing.T) {
	at := Timestamp(time.Date(2026, 8, 22, 13, 0, 0, 5, time.FixedZone("", 3600)))
	for _, c := range []struct {
		value any
		want  string
	}{
		{StatusReport{Time: at, Uptime: 123.45}, `{"time":"2026-08-22T12:00:00Z","uptime":123.45,"first_update":false}`},
		{StatusReport{Time: at, FirstUpdate: true}, `{"time":"2026-08-22T12:00:00Z","uptime":0,"first_update":true}`},
		{EndpointStatus{StatusUp}, `{"status":"up"}`},
		{EndpointStatus{StatusDown}, `{"status":"down"}`},
		{EndpointStatus{StatusError}, `{"status":"error"}`},
		{Applied{7, at}, `{"revision":7,"at":"2026-08-22T12:00:00Z"}`},
	} {
		if got, err := json.Marshal(c.value); err != nil || string(got) != c.want {
			t.Errorf("got %s, %v; want %s", got, err, c.want)
		}
	}
}

func TestStatusPaths(t *testing.T) {
	key := Key{KindWorkloadEndpoint, "openstack", "compute--1-openstack-3f0d--11-9a1c--22"}
	inRegion := Key{KindWorkloadEndpoint, "openstack-region-east-1", key.Name}
	odd := Key{KindWorkloadEndpoint, "ns", WorkloadName{"h", "o", "a/b%c", "e/f"}.String()}
	for _, c := range []struct {
		region, host string
		key          Key
		want         string
	}{
		{"", "compute-1", key, "/calico/felix/v2/no-region/host/compute-1/workload/openstack/openstack%2f3f0d-11/endpoint/9a1c-22"},
		{"east-1", "compute-1", inRegion, "/calico/felix/v2/region-east-1/host/compute-1/workload/openstack/openstack-region-east-1%2f3f0d-11/endpoint/9a1c-22"},
		{"", "h", odd, "/calico/felix/v2/no-region/host/h/workload/o/ns%2fa%2fb%25c/endpoint/e%2ff"},
	} {
		path, err := EndpointStatusPath(c.region, c.host, c.key)
		if err != nil || path != c.want {
			t.Errorf("got %s, %v; want %s", path, err, c.want)
		}
		if !strings.HasPrefix(path, EndpointStatusPrefix(c.region, c.host)) || !strings.HasPrefix(path, StatusPrefix(c.region)) {
			t.Errorf("%s is not below its prefixes", path)
		}
	}
	for got, want := range map[string]string{
		LivenessPath("", "h"):    "/calico/felix/v2/no-region/host/h/status",
		LivenessPath("r", "h"):   "/calico/felix/v2/region-r/host/h/status",
		LastReportPath("", "h"):  "/calico/felix/v2/no-region/host/h/last_reported_status",
		LastReportPath("r", "h"): "/calico/felix/v2/region-r/host/h/last_reported_status",
		AppliedPath("h"):         "/tortie/v1/host/h/applied",
		WaitPath("w1"):           "/tortie/v1/wait/w1",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if host, ok := ParseAppliedPath("/tortie/v1/host/h.x/applied"); !ok || host != "h.x" {
		t.Errorf("got %q, %v", host, ok)
	}
	for _, path := range []string{"/tortie/v1/host//applied", "/tortie/v1/host/h", "/tortie/v1/host/a/b/applied", "/tortie/v1/wait/x"} {
		if host, ok := ParseAppliedPath(path); ok {
			t.Errorf("%s: accepted as %s", path, host)
		}
	}
	if _, err := EndpointStatusPath("", "h", Key{Name: "odd"}); err == nil {
		t.Error("a malformed name has a status path")
	}
	for region, good := range map[string]bool{"": true, "a": true, "east-1": true, "East": false, "a/b": false, "-a": false, strings.Repeat("a", 46): true, strings.Repeat("a", 47): false} {
		if err := CheckRegion(region); (err == nil) != good {
			t.Errorf("region %q: %v", region, err)
		}
	}
}
