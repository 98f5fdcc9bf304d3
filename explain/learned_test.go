package explain

import (
	"fmt"
	"net/netip"
	"testing"

	"tortie/api"
)

// says has a host say which addresses eth0 and eth1 have.
func says(t *testing.T, c *Cluster, host, eth0, eth1 string) {
	t.Helper()
	o, problems, err := api.DecodeKey(api.Key{Kind: api.KindHostAddresses, Name: host}, fmt.Appendf(nil,
		`{"spec":{"interfaces":[{"name":"eth0","addresses":[%s]},{"name":"eth1","addresses":[%s]}]}}`, eth0, eth1))
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	c.Put(o)
}

// TestKnownBySaying: a host endpoint that expects no addresses is known by those
// that the host says its interface has, that for any by all; who asks by an
// address learns which interface has it.
func TestKnownBySaying(t *testing.T) {
	c := hostWorld(t)
	put(t, c, "HostEndpoint one", "", `"node":"h1","interfaceName":"eth1"`)
	put(t, c, "HostEndpoint any", "", `"node":"h1","interfaceName":"*"`)
	put(t, c, "HostEndpoint fixed", "", `"node":"h1","interfaceName":"eth1","expectedIPs":["203.0.113.9"]`)
	put(t, c, "HostEndpoint found", "", `"node":"h1"`)
	put(t, c, "HostEndpoint far", "", `"node":"h2","interfaceName":"eth1"`)
	says(t, c, "h1", `"192.0.2.77"`, `"203.0.113.5","2001:db8:5::5"`)
	known := func(a string) (names string) {
		for _, k := range c.KnownBy(netip.MustParseAddr(a)) {
			names += k.Name + " "
		}
		return names
	}
	for a, want := range map[string]string{
		"192.0.2.77": "any ", "203.0.113.5": "any one ", "::ffff:203.0.113.5": "any one ", "2001:db8:5::5": "any one ", "203.0.113.9": "fixed ", "203.0.113.6": "",
	} {
		if got := known(a); got != want {
			t.Errorf("%s: known by it are %q, want %q", a, got, want)
		}
	}
	p := tcp(80)
	p.Src, p.Dst = netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:5::5")
	for _, src := range []string{"198.51.100.9", "2001:db8:9::9"} {
		p.Src = netip.MustParseAddr(src)
		if r := c.Connection(p); r.ToHost != "h1" || r.Entering == nil || r.Entering.Endpoint.Name != "fixed" { // the first that names eth1
			t.Errorf("from %s: %+v", src, r)
		}
	}
	c.Delete(api.Key{Kind: api.KindHostAddresses, Name: "h1"})
	if got := known("203.0.113.5"); got != "" {
		t.Errorf("known by what nobody says: %q", got)
	}
}
