package analysis

import (
	"fmt"
	"slices"
	"testing"

	"tortie/api"
)

// bigCluster is endpoints of 50 applications in each of which there are some
// roles, and policies that say who may speak to whom.
func bigCluster(t testing.TB, endpoints, policies int) []api.Object {
	objects := []api.Object{decode(t, "Tier default", "", "")}
	for i := range endpoints {
		objects = append(objects, decode(t, fmt.Sprintf("WorkloadEndpoint n%d e%d", i%10, i), fmt.Sprintf(`"app":"a%d","role":"r%d"`, i%50, i/50%4),
			fmt.Sprintf(`"ipNetworks":["10.65.%d.%d","fd00:65::%x"]`, i/250, i%250+1, i+1)))
	}
	for i := range policies {
		objects = append(objects, decode(t, fmt.Sprintf("GlobalNetworkPolicy p%d", i), "", fmt.Sprintf(
			`"order":%d,"selector":"app == 'a%d'","types":["Ingress","Egress"],"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'a%d' && role == 'r%d'"},"destination":{"ports":[%d,443]}},{"action":"Deny","source":{"nets":["198.51.%d.0/24"]}}],"egress":[{"action":"Allow","protocol":"UDP","destination":{"ports":[53]}},{"action":"Allow","destination":{"selector":"app == 'a%d'"}}]`,
			i, i%50, (i+7)%50, i%4, 1000+i, i, (i+43)%50)))
	}
	return objects
}

func BenchmarkPreview(b *testing.B) {
	before := bigCluster(b, 1000, 100)
	after := append(slices.Clone(before), decode(b, "GlobalNetworkPolicy all", "", `"order":-1,"ingress":[{"action":"Allow","protocol":"ICMP"},{"action":"Deny","protocol":"TCP","destination":{"ports":[443]}}]`))
	for b.Loop() {
		changes, err := Preview(before, after)
		if err != nil || len(changes) == 0 {
			b.Fatal(err, changes)
		}
		b.ReportMetric(float64(len(changes)), "changes")
	}
}

func BenchmarkLint(b *testing.B) {
	objects := bigCluster(b, 1000, 100)
	for b.Loop() {
		if _, err := Lint(objects); err != nil {
			b.Fatal(err)
		}
	}
}
