package explain

import (
	"fmt"
	"testing"

	"tortie/api"
)

// TestSections: what selectors mean, in the order in which rules are gone
// through, the profiles last.
func TestSections(t *testing.T) {
	c := world(t)
	put(t, c, "Tier first", "", `"order":1,"defaultAction":"Pass"`)
	put(t, c, "GlobalNetworkPolicy a", "", `"tier":"first","ingress":[{"action":"Log"},{"action":"Allow","source":{"selector":"role == 'db'","notSelector":"role == 'web'"}}]`)
	put(t, c, "GlobalNetworkPolicy b", "", `"ingress":[{"action":"Deny"}],"types":["Ingress"]`)
	put(t, c, web, `"role":"web"`, `"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["p"]`)
	put(t, c, "HostEndpoint h", `"role":"gateway"`, `"node":"h1","interfaceName":"eth0","expectedIPs":["192.0.2.1","2001:db8::1"],"ports":[{"name":"ssh","protocol":"TCP","port":22}]`)
	put(t, c, "GlobalNetworkPolicy c", "", `"order":1,"ingress":[{"action":"Allow","source":{"selector":"role == 'gateway'"}}]`)
	put(t, c, "Profile p", "", allowAll)
	got := ""
	for _, s := range c.Sections(key(web), api.Ingress) {
		if len(s.Rules) == 0 {
			continue
		}
		got += fmt.Sprintf("%s %s:", s.Tier, s.End)
		for _, r := range s.Rules {
			got += fmt.Sprintf(" %s %v %v not %v", r.Ref, r.Source.Selective, r.Source.Holders, r.Source.Not)
		}
		got += "\n"
	}
	want := `first Pass: GlobalNetworkPolicy//a/Ingress/0 false [] not [] GlobalNetworkPolicy//a/Ingress/1 true [{[10.0.0.2/32 fd00::2/128] []}] not [10.0.0.1/32 fd00::1/128]
default Deny: GlobalNetworkPolicy//c/Ingress/0 true [{[192.0.2.1/32 2001:db8::1/128] [{ssh TCP 22 0 }]}] not [] GlobalNetworkPolicy//b/Ingress/0 false [] not []
 Deny: Profile//p/Ingress/0 false [] not []
`
	if got != want {
		t.Errorf("sections are\n%s\nwant\n%s", got, want)
	}
	if c.Sections(key("WorkloadEndpoint prod gone"), api.Ingress) != nil {
		t.Error("nothing has sections")
	}
}
