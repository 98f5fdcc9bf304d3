package ctl

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/explain"
)

// TestExamples: the manifests of the demo are valid, without anything in them
// that is not enforced, and mean what their comments say, in both families.
func TestExamples(t *testing.T) {
	all, warnings, err := readManifests([]string{"../examples"}, strings.NewReader(""), "default")
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, %q", err, warnings)
	}
	cluster := explain.New()
	for _, m := range all {
		cluster.Put(m.object)
	}
	ends := map[string]byte{"web": 1, "app": 2, "db": 3, "other": 4, "none": 5}
	for role, n := range ends {
		cluster.Put(endpoint(role, n))
	}
	address := func(who string, family int) netip.Addr {
		switch {
		case who == "client" && family == 4:
			return netip.MustParseAddr("198.51.100.9")
		case who == "client":
			return netip.MustParseAddr("2001:db8:c11e::9")
		case family == 4:
			return netip.AddrFrom4([4]byte{10, 65, 0, ends[who]})
		}
		return netip.MustParseAddr(fmt.Sprintf("fd00:65::%d", ends[who]))
	}
	names := []string{"client", "web", "app", "db", "other", "none"}
	want := strings.Fields(`
		client>web:TCP/80 client>web:TCP/443
		web>app:TCP/8080 web>app:UDP/8080 web>app:ICMP/0
		app>db:TCP/5432`)
	for _, family := range []int{4, 6} {
		var got []string
		for _, from := range names {
			for _, to := range names[1:] {
				if from == to {
					continue
				}
				for _, what := range []struct {
					name     string
					protocol uint8
					port     uint16
				}{{"TCP", 6, 80}, {"TCP", 6, 443}, {"TCP", 6, 8080}, {"TCP", 6, 5432}, {"UDP", 17, 8080}, {"UDP", 17, 5432}, {"ICMP", 1, 0}} {
					p := explain.Packet{Src: address(from, family), Dst: address(to, family), Protocol: what.protocol, SrcPort: 40000, DstPort: what.port}
					if what.name == "ICMP" {
						p.SrcPort, p.ICMPType = 0, 8
						if family == 6 {
							p.Protocol, p.ICMPType = 58, 128
						}
					}
					if cluster.Connection(p).Verdict == api.Allow {
						got = append(got, fmt.Sprintf("%s>%s:%s/%d", from, to, what.name, what.port))
					}
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("IPv%d: -want +got\n%s", family, diff)
		}
	}
}

func endpoint(role string, n byte) *api.WorkloadEndpoint {
	name := api.WorkloadName{Node: "h1", Orchestrator: "lab", Workload: role, Endpoint: "eth0"}
	w := &api.WorkloadEndpoint{
		Kind: api.KindWorkloadEndpoint,
		Meta: api.Meta{Name: name.String(), Namespace: "default"},
		Spec: api.WorkloadEndpointSpec{
			Orchestrator: name.Orchestrator, Workload: role, Node: name.Node, Endpoint: name.Endpoint, InterfaceName: "cali" + role,
			IPNetworks: api.ParseNets(fmt.Sprintf("10.65.0.%d/32", n), fmt.Sprintf("fd00:65::%d/128", n)),
		},
	}
	if role != "none" {
		w.Meta.Labels = map[string]string{"role": role}
	}
	return w
}
