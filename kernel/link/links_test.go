package link

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tortie/desired"
	"tortie/internal/nstest"
)

// bound are the settings of an interface with an endpoint that differ from
// those of a new one. Promise C11: rp_filter for IPv4 beside the spoof check,
// which is in the ruleset, for both families. Promise V4: forwarding of IPv6.
// Promise V8: proxy neighbour discovery. route_localnet stays as it is.
var bound = map[string]string{
	"ipv4/conf/cali1/accept_redirects":    "0",
	"ipv4/conf/cali1/accept_source_route": "0",
	"ipv4/conf/cali1/forwarding":          "1",
	"ipv4/conf/cali1/proxy_arp":           "1",
	"ipv4/conf/cali1/rp_filter":           "1",
	"ipv4/conf/cali1/send_redirects":      "0",
	"ipv4/neigh/cali1/proxy_delay":        "0",
	"ipv6/conf/cali1/accept_dad":          "0",
	"ipv6/conf/cali1/accept_ra":           "0",
	"ipv6/conf/cali1/accept_redirects":    "0",
	"ipv6/conf/cali1/disable_ipv6":        "0",
	"ipv6/conf/cali1/forwarding":          "1",
	"ipv6/conf/cali1/proxy_ndp":           "1",
	"ipv6/neigh/cali1/proxy_delay":        "0",
}

// guard are those of a workload interface without an endpoint.
var guard = map[string]string{
	"ipv4/conf/cali1/accept_redirects":    "0",
	"ipv4/conf/cali1/accept_source_route": "0",
	"ipv4/conf/cali1/send_redirects":      "0",
	"ipv6/conf/cali1/accept_dad":          "0",
	"ipv6/conf/cali1/accept_ra":           "0",
	"ipv6/conf/cali1/accept_redirects":    "0",
}

func TestApplyTwice(t *testing.T) {
	ns := nstest.New(t)
	idx := veth(t, ns, "cali1")
	veth(t, ns, "eth0")
	setSysctl(t, "net.ipv6.conf.cali1.disable_ipv6", "1")
	setSysctl(t, "net.ipv6.conf.cali1.accept_dad", "1")
	before, uplink, all := settingsOf(t, "cali1"), settingsOf(t, "eth0"), settingsOf(t, "all")
	expect := func(settings map[string]string) {
		t.Helper()
		want := maps.Clone(before)
		maps.Copy(want, settings)
		if diff := cmp.Diff(want, settingsOf(t, "cali1")); diff != "" {
			t.Errorf("settings of cali1 (-want +got):\n%s", diff)
		}
	}

	// A workload interface without an endpoint: what guards the host, no more.
	want := desired.New()
	l := open(t)
	if n := apply(t, l, want); n == 0 {
		t.Error("nothing was written for the unbound interface")
	}
	expect(guard)

	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	if n := apply(t, l, want); n == 0 {
		t.Error("nothing was written for the bound interface")
	}
	expect(bound)

	again := func(what string, l *Links) {
		t.Helper()
		if n := apply(t, l, want); n != 0 {
			t.Errorf("%s: %d writes, want 0", what, n)
		}
	}
	again("again", l)
	l.Resync()
	again("after resync", l)
	l.LinkChanged("cali1", idx)
	again("after a link event", l)
	again("after a restart", open(t))

	setSysctl(t, "net.ipv4.conf.cali1.proxy_arp", "0")
	setSysctl(t, "net.ipv6.conf.cali1.accept_ra", "1")
	l.Resync()
	if n := apply(t, l, want); n != 2 {
		t.Errorf("%d writes for two wrong settings", n)
	}
	expect(bound)
	for what, s := range map[string][2]map[string]string{"eth0": {uplink, settingsOf(t, "eth0")}, "all": {all, settingsOf(t, "all")}} {
		if diff := cmp.Diff(s[0], s[1]); diff != "" {
			t.Errorf("settings of %s changed:\n%s", what, diff)
		}
	}
}

// Re-created under the same name, the link starts from the defaults.
func TestRecreated(t *testing.T) {
	ns := nstest.New(t)
	idx := veth(t, ns, "cali1")
	want := desired.New()
	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	l := open(t)
	first := apply(t, l, want)

	ns.Run(t, "ip", "link", "del", "cali1")
	l.LinkChanged("cali1", 0)
	if n := apply(t, l, want); n != 0 {
		t.Errorf("%d writes for a link that is gone", n)
	}
	idx = veth(t, ns, "cali1")
	l.LinkChanged("cali1", idx)
	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	if n := apply(t, l, want); n != first {
		t.Errorf("%d writes for the new link, %d for the first", n, first)
	}
	if got := sysctl(t, "net.ipv4.conf.cali1.proxy_arp"); got != "1" {
		t.Errorf("proxy_arp is %s", got)
	}
}

// A name with a dot in it, and names that no link can have.
func TestNames(t *testing.T) {
	ns := nstest.New(t)
	idx := veth(t, ns, "tap1.7")
	want := desired.New()
	want.Interfaces.Set("tap1.7", desired.Interface{Index: idx})
	for _, bad := range []string{"", ".", "..", "../../../kernel", "cali/x", "calix"} {
		want.Interfaces.Set(bad, desired.Interface{Index: 99})
	}
	if n := apply(t, open(t), want); n == 0 {
		t.Error("nothing was written")
	}
	if got := settingsOf(t, "tap1.7")["ipv4/conf/tap1.7/proxy_arp"]; got != "1" {
		t.Errorf("proxy_arp is %q", got)
	}
}

// A link that was up before its settings were right has a tentative
// link-local address, which would leave the guest without a gateway for a
// second or two.
func TestTentative(t *testing.T) {
	ns := nstest.New(t)
	idx := veth(t, ns, "cali1")
	// Many transmissions, so that the address stays tentative.
	setSysctl(t, "net.ipv6.conf.cali1.accept_dad", "1")
	setSysctl(t, "net.ipv6.conf.cali1.dad_transmits", "100")
	ns.Run(t, "ip", "link", "set", "peer-cali1", "up")
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	addrs := func() string { return ns.Run(t, "ip", "-6", "-o", "addr", "show", "dev", "cali1") }
	deadline := time.Now().Add(nstest.Limit)
	for !strings.Contains(addrs(), "tentative") {
		if time.Now().After(deadline) {
			t.Fatalf("no tentative address: %s", addrs())
		}
	}
	want := desired.New()
	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	apply(t, open(t), want)
	if got := addrs(); strings.Contains(got, "tentative") || !strings.Contains(got, "fe80::") {
		t.Errorf("addresses: %s", got)
	}
	if n := apply(t, open(t), want); n != 0 {
		t.Errorf("%d writes after a restart", n)
	}
}

func TestApplyHost(t *testing.T) {
	host, router := nstest.New(t), nstest.Create(t)
	veth(t, host, "cali1")
	host.Run(t, "ip", "link", "add", Prefix+"1", "type", "ifb") // ours: it hears no router
	setSysctl(t, "net.ipv6.conf.all.forwarding", "0")
	setSysctl(t, "net.ipv4.ip_forward", "0")
	setSysctl(t, "net.ipv6.conf.default.accept_ra", "1")
	nstest.Veth(t, host, "eth0.1", router, "downlink")
	l := open(t)

	// The order: uplinks first, and every value before it is changed.
	var order []string
	remembered := map[string]string{}
	remember := func(name, previous string) error {
		if got, err := l.read(name); err != nil || got != previous {
			t.Errorf("%s is %s when its value %s is to be remembered (%v)", name, got, previous, err)
		}
		order = append(order, name)
		remembered[name] = previous
		return nil
	}
	refuse := errors.New("cannot remember")
	if err := l.ApplyHost(nstest.Context(t), func(string, string) error { return refuse }); !errors.Is(err, refuse) {
		t.Errorf("error %v, want that of remember", err)
	}
	if got := sysctl(t, "net.ipv4.ip_forward"); got != "0" {
		t.Error("forwarding is on although its value could not be remembered")
	}
	if err := l.ApplyHost(nstest.Context(t), remember); err != nil {
		t.Fatal(err)
	}
	want := []string{"net.ipv6.conf.eth0/1.accept_ra", "net.ipv6.conf.peer-cali1.accept_ra", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	for _, s := range append(l.HostSettings(), Sysctl{"net.ipv6.conf.peer-cali1.accept_ra", "2"}) {
		if got := sysctl(t, s.Name); got != s.Value {
			t.Errorf("%s is %s, want %s", s.Name, got, s.Value)
		}
	}
	order = nil
	if err := l.ApplyHost(nstest.Context(t), remember); err != nil || order != nil {
		t.Errorf("again: %v was changed, error %v", order, err)
	}
	if err := l.RestoreHost(remembered); err != nil {
		t.Fatal(err)
	}
	for name, value := range remembered {
		if got, err := l.read(name); err != nil || got != value {
			t.Errorf("%s is %s after restoring, want %s (%v)", name, got, value, err)
		}
	}
	remembered["net.ipv6.conf.nosuch.accept_ra"] = "1"
	if err := l.RestoreHost(remembered); err != nil {
		t.Errorf("restoring a link that is gone: %v", err)
	}
}

// The handle stays in its namespace whatever thread calls it.
func TestNamespaceOfHandle(t *testing.T) {
	here, other := nstest.New(t), nstest.Create(t)
	idx := veth(t, here, "cali1")
	other.Run(t, "ip", "link", "add", "cali1", "type", "veth", "peer", "name", "peer")
	l := open(t)
	want := desired.New()
	want.Interfaces.Set("cali1", desired.Interface{Index: idx})
	other.Do(func() {
		if _, err := l.Apply(nstest.Context(t), want); err != nil {
			t.Error(err)
		}
	})
	if got := sysctl(t, "net.ipv4.conf.cali1.proxy_arp"); got != "1" {
		t.Errorf("proxy_arp here is %s", got)
	}
	if got := strings.TrimSpace(other.Run(t, "sysctl", "-n", "net.ipv4.conf.cali1.proxy_arp")); got != "0" {
		t.Errorf("proxy_arp in the other namespace is %s", got)
	}
}

func TestCleanup(t *testing.T) {
	ns := nstest.New(t)
	for _, name := range []string{"tt-ours", "tt-foreign", "cali1", "tap1"} {
		veth(t, ns, name)
	}
	for _, name := range []string{"tt-ours", "cali1", "tap1"} {
		ns.Run(t, "ip", "link", "set", name, "alias", "tortie")
	}
	if err := open(t).Cleanup(nstest.Context(t)); err != nil {
		t.Fatal(err)
	}
	out := ns.Run(t, "ip", "-o", "link")
	for name, left := range map[string]bool{"tt-ours": false, "tt-foreign": true, "cali1": true, "tap1": true} {
		if strings.Contains(out, " "+name+"@") != left {
			t.Errorf("%s left: %v, want %v", name, !left, left)
		}
	}
}

func BenchmarkResync(b *testing.B) {
	ns := nstest.New(b)
	want := desired.New()
	for i := range 200 {
		name := fmt.Sprintf("cali%d", i)
		ns.Run(b, "ip", "link", "add", name, "type", "veth", "peer", "name", "p"+name)
		want.Interfaces.Set(name, desired.Interface{Index: i})
	}
	l, err := Open(Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(l.Close)
	for b.Loop() {
		l.Resync()
		if _, err := l.Apply(b.Context(), want); err != nil {
			b.Fatal(err)
		}
	}
}

// An endpoint that may use sources which are routed elsewhere is not stopped by
// the reverse path; the kernel takes the higher of the interface's value and
// that for all.
func TestPathFilterOfOtherSources(t *testing.T) {
	ns := nstest.New(t)
	idx := veth(t, ns, "cali1")
	l := open(t)
	want := desired.New()
	for _, c := range []struct {
		all     string
		spoofed []netip.Prefix
		want    string
	}{
		{"0", nil, "1"},
		{"0", []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, "0"},
		{"1", nil, "1"},
		{"1", []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}, "2"},
	} {
		setSysctl(t, "net.ipv4.conf.all.rp_filter", c.all)
		want.Interfaces.Set("cali1", desired.Interface{Index: idx, Spoofed: c.spoofed})
		l.Resync()
		if _, err := l.Apply(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got := settingsOf(t, "cali1")["ipv4/conf/cali1/rp_filter"]; got != c.want {
			t.Errorf("all %s, other sources %v: rp_filter is %s, want %s", c.all, c.spoofed, got, c.want)
		}
	}
}
