package api

import (
	"fmt"
	"testing"
)

// endpointValue is a WorkloadEndpoint as the Neutron driver stores it.
func endpointValue(i int) (path string, value []byte) {
	host, vm, port := i%1000, i, i
	path = fmt.Sprintf("/calico/resources/v3/projectcalico.org/workloadendpoints/openstack/host--%d-openstack-%08d--aaaa-%08d--bbbb", host, vm, port)
	value = fmt.Appendf(nil, `{"kind": "WorkloadEndpoint", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "host--%d-openstack-%08d--aaaa-%08d--bbbb", "namespace": "openstack", "creationTimestamp": "2026-08-22T12:00:00Z", "uid": "7b7a4e1c-6a0c-4b7a-9a53-%012d", "labels": {"sg.projectcalico.org/openstack-SG%d": "web", "sg-name.projectcalico.org/openstack-web": "SG%d", "projectcalico.org/namespace": "openstack", "projectcalico.org/orchestrator": "openstack", "projectcalico.org/openstack-project-id": "p%d", "projectcalico.org/openstack-project-name": "demo", "projectcalico.org/openstack-network-name": "net1"}, "annotations": {"openstack.projectcalico.org/network-id": "n1"}}, "spec": {"orchestrator": "openstack", "workload": "%08d-aaaa", "node": "host-%d", "endpoint": "%08d-bbbb", "interfaceName": "tap%08d", "mac": "fa:16:3e:00:%02x:%02x", "ipv4Gateway": "10.65.0.1", "ipv6Gateway": "fd00::1", "ipNetworks": ["10.%d.%d.%d/32", "fd00::%x/128"], "allowedIps": [], "profiles": []}}`,
		host, vm, port, i, i%20, i%20, i%50, vm, host, port, port, i>>8&255, i&255, 65+i>>16, i>>8&255, i&255, i)
	return path, value
}

func BenchmarkDecodeWorkloadEndpoint(b *testing.B) {
	const n = 1000
	var paths [n]string
	var values [n][]byte
	for i := range n {
		paths[i], values[i] = endpointValue(i)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(values[0])))
	for i := 0; b.Loop(); i++ {
		_, problems, err := Decode(paths[i%n], values[i%n])
		if err != nil || len(problems) > 0 {
			b.Fatal(err, problems)
		}
	}
}
