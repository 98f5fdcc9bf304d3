package proof

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// ranges are those that a workload of the slot may have: of its own addresses,
// over those of others of its host, and of what nobody else has.
func (s *slot) ranges() (list []netip.Prefix) {
	for i, a := range []netip.Addr{s.v4[0], s.v6[0]} {
		up := (32 + 96*i) - 32 // bits to add to those of IPv4
		list = append(list, netip.PrefixFrom(a, 30+up), netip.PrefixFrom(a, 31+up))
		whole, _ := a.Prefix(28 + up)
		next := whole.Addr()
		for range 16 {
			next = next.Next()
		}
		list = append(list, whole, netip.PrefixFrom(next, 28+up), netip.PrefixFrom(next, 31+up))
	}
	return list
}

// others are what a workload may send from besides: what is outside, what the
// other host's workloads have, and what those of its own have.
func (s *slot) others() []netip.Prefix {
	n := s.host.v4.As4()[3]
	list := []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("2001:db8:5::/64")}
	for _, n := range []byte{n, 3 - n} {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, n, 0}), 30), netip.MustParsePrefix(fmt.Sprintf("fd00:65:%d::/126", n)))
	}
	return list
}

// hostChange changes a host endpoint or, seldom, the configuration of a host.
func (d *Draw) hostChange() Change {
	h := of(d, d.w.hosts)
	if d.oneIn(6) {
		return d.settings(h)
	}
	name := of(d, drawNames)
	if d.oneIn(4) {
		return Change{Delete: fmt.Sprintf("%s//%s", api.KindHostEndpoint, name)}
	}
	var expected []string
	for _, a := range slices.Concat(d.w.hosts[0].addrs(), d.w.hosts[1].addrs(), []netip.Addr{netip.MustParseAddr(of(d, drawOutside))}) {
		if d.oneIn(3) {
			expected = append(expected, fmt.Sprintf("%q", a))
		}
	}
	return put(document(api.KindHostEndpoint, "", name, d.labels(), members(fmt.Sprintf(`"node":%q`, h.name),
		of(d, []string{"", `"interfaceName":"eth0"`, `"interfaceName":"eth1"`, `"interfaceName":"*"`, `"interfaceName":"*"`, `"interfaceName":"lo"`}),
		fmt.Sprintf(`"expectedIPs":[%s]`, strings.Join(expected, ",")), `"profiles":`+d.some(2, append(drawProfiles, api.DefaultAllowProfile)),
		d.sometimes(2, `"ports":[%s]`, d.namedPorts()))))
}

// settings draws the configuration of a host.
func (d *Draw) settings(h *host) Change {
	return put(setting("node."+h.name, strings.Trim(members(
		fmt.Sprintf(`"defaultEndpointToHostAction":%q`, of(d, []string{"Drop", "Return", "Return", "Accept"})),
		unless(d.oneIn(4), `"failsafeInboundHostPorts":%s`, d.failsafes()), unless(d.oneIn(4), `"failsafeOutboundHostPorts":%s`, d.failsafes())), "{}")))
}

// failsafes are a list of ports, which may be empty.
func (d *Draw) failsafes() string {
	var list []string
	for range d.IntN(6) {
		list = append(list, members(fmt.Sprintf(`"protocol":%q,"port":%d`, of(d, []string{"TCP", "tcp", "UDP", "SCTP"}), of(d, drawPorts)),
			d.sometimes(3, `"net":%q`, of(d, []string{"198.51.100.0/25", "10.65.1.0/24", "192.0.2.1", "fd00:65::/32", "2001:db8::/32"}))))
	}
	return "[" + strings.Join(list, ",") + "]"
}

// globalPolicy is one that may be of a kind that only host endpoints have.
func (d *Draw) globalPolicy() string {
	spec := d.policy()
	if !d.Hosts {
		return spec
	}
	kind := of(d, []string{
		"", "", "", `"applyOnForward":true`, `"applyOnForward":true`, `"applyOnForward":true,"preDNAT":true`, `"applyOnForward":true,"preDNAT":true`,
		`"applyOnForward":true,"doNotTrack":true`, `"applyOnForward":true,"doNotTrack":true`, `"preDNAT":true,"doNotTrack":true`,
	})
	if kind == "" {
		return spec
	}
	if strings.Contains(kind, "preDNAT") && d.oneIn(2) { // about what it alone sees
		first := fmt.Sprintf(`{"action":%q,"destination":{"nets":[%q]}}`, of(d, []string{"Allow", "Deny"}),
			of(d, []string{"10.65.1.192/26", "10.65.2.200/29", "fd00:65:1::100/120", "fd00:65:2::100/121"}))
		spec = strings.NewReplacer(`"ingress":[]`, `"ingress":[`+first+`]`, `"ingress":[{`, `"ingress":[`+first+`,{`).Replace(spec)
	}
	return strings.TrimSuffix(spec, "}") + "," + kind + "}"
}
