package agent

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tortie/internal/nstest"
)

// watchRoutes shows what the kernel announces of routes until the function that
// it returns is called.
func (h *testHost) watchRoutes() func() string {
	h.t.Helper()
	routes := h.announcements(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	return func() string {
		h.t.Helper()
		for routes.read(unix.MSG_DONTWAIT) {
			continue
		}
		var seen []string
		for _, m := range routes.seen {
			seen = append(seen, fmt.Sprintf("type %d: %x", m.Header.Type, m.Data))
		}
		return strings.Join(seen, "\n")
	}
}

// A thousand changes of policy change not one route, and there are routes to
// all endpoints before policy lets anything pass.
//
// Promise F19: policy never changes routes, on one host. Promise F20: there is
// reachability before policy allows, on one host. Promise S9: whoever gets the
// label gets access, at once, and loses it with the label.
func TestPolicyChangesNoRoutes(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, "", allow))
	s.run()
	for _, g := range []*guest{s.client, s.server, s.other} {
		s.routed(g, true)
	}
	denied := []*stream{s.stream(s.client, s.server, 4, 9000, rate), s.stream(s.client, s.server, 6, 9001, rate)}
	for _, d := range denied {
		d.quiet()
	}
	routes := s.watchRoutes()
	for i := range 1000 {
		rules := []string{"", `{"action":"Allow","protocol":"TCP"}`, `{"action":"Deny"}`}[i%3]
		if rev := s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, rules, allow)); i%10 == 0 {
			s.settle(rev)
		}
	}
	for _, d := range denied {
		d.quiet() // UDP was never allowed
	}
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow)))
	for _, d := range denied {
		d.flows()
	}
	// A label is a change of policy as well.
	s.settle(s.put(s.client.key, s.client.bound(`{"role":"nobody"}`)))
	for _, d := range denied {
		d.forbid()
		d.quiet()
	}
	begin := time.Now()
	s.settle(s.put(s.client.key, s.client.bound(`{"role":"client"}`)))
	for _, d := range denied {
		d.flows()
	}
	t.Logf("with the label, access within %s", time.Since(begin).Round(time.Millisecond))
	if seen := routes(); seen != "" {
		t.Errorf("changes of policy changed routes: %s", seen)
	}
}

// An interface that no endpoint has passes nothing in either direction, to
// other workloads, to the host or to the outside, and each packet is counted.
//
// Promise S2: an endpoint without configuration drops everything, both ways.
// Promise S3: the drops are counted.
func TestUnknownInterfacePassesNothing(t *testing.T) {
	s := newScenario(t)
	outside := s.outside()
	s.run()
	s.put(policyOf("all"), strings.Replace(policyDoc("all", "all()", allow, allow), `"order":100`, `"order":1`, 1))
	s.settle(s.put(s.server.key, s.server.bound(`{"role":"server"}`)))
	unknown := s.guest()
	s.batch(unknown.ns, // the host does not answer it
		"neigh add 169.254.1.1 lladdr "+hostMAC+" dev eth0 nud permanent",
		"neigh add fe80::ecee:eeff:feee:eeee lladdr "+hostMAC+" dev eth0 nud permanent")
	var never []*stream
	for i, f := range families {
		never = append(never,
			s.stream(unknown, s.server, f, 9100+i, rate), s.stream(unknown, outside, f, 9110+i, rate),
			s.stream(s.client, unknown, f, 9120+i, rate), s.stream(outside, unknown, f, 9130+i, rate))
	}
	fromUnknown := []func() int{
		s.meterAt(&guest{ns: s.ns}, "input", "iifname "+unknown.iface+" meta l4proto { tcp, udp, icmp }"),
		s.meterAt(&guest{ns: s.ns}, "input", "iifname "+unknown.iface+" icmpv6 type echo-request"),
	}
	before := s.counter("unknown-interface")
	w := s.wire(unknown)
	for range 10 {
		w.packet(ipPacket(unknown.v4, "192.0.2.2", unix.IPPROTO_TCP, tcpSegment(1000, 22, 1, 0, tcpSYN)))
		w.packet(ipPacket(unknown.v6, "2001:db8::2", unix.IPPROTO_TCP, tcpSegment(1000, 22, 1, 0, tcpSYN)))
		w.packet(ipPacket(unknown.v6, "fe80::ecee:eeff:feee:eeee", unix.IPPROTO_ICMPV6, icmpMessage(128, 0, 1, 1)))
	}
	for _, n := range never {
		n.quiet()
	}
	s.await("its packets to be counted", func() bool { return s.counter("unknown-interface") >= before+4*150+30 })
	for _, n := range fromUnknown {
		_ = n() // the meter is before the drop: what matters is that the host answers nothing
	}
	w.all(func(f []byte) {
		if tcpOf(f) != nil {
			t.Errorf("the host answered: %x", f)
		}
	})
	for _, n := range never {
		n.never()
	}
}

// Two interfaces of one workload are two endpoints, each with its own policy.
//
// Promise S7: each virtual NIC of a VM may have its own policy.
func TestTwoInterfacesOfOneWorkload(t *testing.T) {
	s := newScenario(t)
	s.run()
	second := *s.server
	second.iface, second.v4, second.v6, second.mac = "cali50", "10.65.0.50", "fd00:65::50", "02:00:00:00:00:50"
	second.key.Name = strings.Replace(second.key.Name, "-eth0", "-eth1", 1)
	s.batch(s.ns, "link add cali50 address "+hostMAC+" type veth peer name eth1 address "+second.mac+" netns "+second.ns.Name, "link set cali50 up")
	s.batch(second.ns, "link set eth1 up", "addr add "+second.v4+"/32 dev eth1", "addr add "+second.v6+"/128 dev eth1 nodad",
		"route add 169.254.1.1 dev eth1 table 50", "route add default via 169.254.1.1 dev eth1 table 50 onlink",
		"route add ::/0 via fe80::ecee:eeff:feee:eeee dev eth1 table 50")
	second.ns.Run(t, "sh", "-c", "ip rule add from "+second.v4+" table 50; ip -6 rule add from "+second.v6+" table 50")
	doc := strings.Replace(second.bound(`{"role":"nic"}`), `"endpoint":"eth0"`, `"endpoint":"eth1"`, 1)
	s.put(policyOf("nics"), policyDoc("nics", `role == "nic"`, `{"action":"Allow","source":{"selector":"role == \"other\""}}`, ""))
	s.settle(s.put(second.key, doc))
	s.status(&second, "up")
	for i, f := range families {
		yes := []*stream{s.stream(s.client, s.server, f, 9000+i, rate), s.stream(s.other, &second, f, 9010+i, rate)}
		no := []*stream{s.stream(s.other, s.server, f, 9020+i, rate), s.stream(s.client, &second, f, 9030+i, rate), s.stream(&second, s.other, f, 9040+i, rate)}
		for _, st := range yes {
			st.flows()
			st.complete()
		}
		for _, st := range no {
			st.never()
		}
	}
}

// The path of a packet has nothing in it but what is expected, and each of our
// chains on a hook leads to the rest by one jump.
//
// Promise D7: the list of hooks is what it should be. Promise C7: one jump for
// each top-level chain. Promise D3: a /32 and a /128 for each local workload.
// Promise V5: a neighbour entry and a route for each IPv6 address.
func TestNothingElseInThePath(t *testing.T) {
	s := newScenario(t)
	s.run()
	ruleset := s.ns.Run(t, "nft", "-s", "list ruleset")
	var chains []string
	table := ""
	for line := range strings.Lines(ruleset) {
		if m := regexp.MustCompile(`^table (.*) \{`).FindStringSubmatch(line); m != nil {
			table = m[1]
		}
		if m := regexp.MustCompile(`type (.*); policy`).FindStringSubmatch(line); m != nil {
			chains = append(chains, table+": "+m[1])
		}
	}
	slices.Sort(chains)
	if want := []string{
		"arp tortie: filter hook input priority filter",
		"arp tortie: filter hook input priority filter + 1", // limits on what is sent to the host
		"inet tortie: filter hook forward priority filter",
		"inet tortie: filter hook input priority filter",
		"inet tortie: filter hook input priority filter + 1",
		"inet tortie: filter hook output priority filter",
		"inet tortie: filter hook prerouting priority -450",
	}; !slices.Equal(chains, want) {
		t.Errorf("chains on hooks: %q, want %q", chains, want)
	}
	for _, b := range block.FindAllString(ruleset, -1) {
		if !strings.Contains(b, " hook ") {
			continue
		}
		if n := len(regexp.MustCompile(`\b(goto|jump) `).FindAllString(b, -1)); n != 1 {
			t.Errorf("%d jumps in %s", n, b)
		}
		if strings.Contains(b, "drop") {
			t.Errorf("a drop in %s", b)
		}
	}
	if q := s.ns.Run(t, "tc", "qdisc", "show"); strings.Count(q, "\n") != strings.Count(q, " noqueue ") {
		t.Errorf("queueing disciplines: %s", q)
	}
	for _, g := range []*guest{s.client, s.server, s.other} {
		link := s.ns.Run(t, "ip", "-d", "link", "show", g.iface)
		if strings.Contains(link, "xdp") || strings.Contains(link, "master") || s.ns.Run(t, "tc", "filter", "show", "dev", g.iface) != "" {
			t.Errorf("more on the interface: %s", link)
		}
		for _, f := range families {
			fam, bits := fmt.Sprintf("-%d", f), map[int]string{4: "/32", 6: "/128"}[f]
			route := strings.TrimSpace(s.ns.Run(t, "ip", fam, "route", "show", "exact", g.addr(f)+bits))
			if !strings.HasPrefix(route, g.addr(f)+" dev "+g.iface+" proto 80 ") || !strings.Contains(route, " metric 1024") || strings.Contains(route, "\n") {
				t.Errorf("route to %s: %q", g.addr(f), route)
			}
			if g == s.other {
				continue // whose MAC is not known
			}
			if n := strings.TrimSpace(s.ns.Run(t, "ip", fam, "neigh", "show", "to", g.addr(f))); n != g.addr(f)+" dev "+g.iface+" lladdr "+g.mac+" PERMANENT" {
				t.Errorf("neighbour %s: %q", g.addr(f), n)
			}
		}
	}
	if l := s.ns.Run(t, "ip", "-br", "link", "show", "type", "bridge"); l != "" {
		t.Errorf("a bridge: %s", l)
	}
	for fam, want := range map[string]int{"-4": 3, "-6": 2} {
		if r := s.ns.Run(t, "ip", fam, "rule"); strings.Count(r, "\n") != want {
			t.Errorf("rules: %s", r)
		}
	}
}

// Whatever routes a guest makes itself, it is the host that takes each packet
// and hands it on as a router; guests never see each other's frames.
//
// Promise D2: the host's MAC is the next hop, whatever the guest configures.
// Promise F13: the network is routed; there is no ARP between workloads.
// Promise I1: the host is the first and the last router.
func TestGuestsOwnRoutes(t *testing.T) {
	s := newScenario(t)
	s.outside()
	s.run()
	ear := s.wire(s.server)
	for _, routes := range [][]string{
		{"route replace 10.65.0.0/24 dev eth0", "route replace default via 169.254.1.1 dev eth0 onlink"},
		{"route replace default dev eth0"},
		{"route replace default via 10.65.0.200 dev eth0 onlink"},
		{"route replace default via 8.8.8.8 dev eth0 onlink"},
	} {
		s.batch(s.client.ns, append([]string{"route flush dev eth0", "neigh flush dev eth0"}, routes...)...)
		s.batch(s.client.ns, "route replace ::/0 via fe80::ecee:eeff:feee:eeee dev eth0")
		for i, f := range families {
			st := s.stream(s.client, s.server, f, 9000+i, 500)
			st.flows()
			st.halt()
		}
		for line := range strings.Lines(s.client.ns.Run(t, "ip", "-4", "neigh", "show", "dev", "eth0")) {
			if !strings.Contains(line, hostMAC) {
				t.Errorf("with %q the guest has the neighbour %s", routes, line)
			}
		}
	}
	// Frames that are meant for the other guest, or for all.
	mouth := s.wire(s.client)
	serverMAC, _ := net.ParseMAC(s.server.mac)
	for _, to := range []net.HardwareAddr{serverMAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 0xfb}, {0x33, 0x33, 0, 0, 0, 0xfb}} {
		for _, f := range families {
			p := ipPacket(s.client.addr(f), s.server.addr(f), unix.IPPROTO_UDP, udpSegment(5353, 5353, "frame"))
			frame := append(append(append([]byte{}, to...), mouth.mac...), byte(etherType(p)>>8), byte(etherType(p)))
			if _, err := unix.Write(mouth.fd, append(frame, p...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mouth.send(unix.ETH_P_ARP, arpMessage(1, mouth.mac, s.client.v4, s.server.v4))
	answer := mouth.await("an answer by ARP", func(f []byte) bool { return f[12] == 8 && f[13] == 6 && f[21] == 2 })
	if got := net.HardwareAddr(answer[22:28]).String(); got != hostMAC {
		t.Errorf("ARP for the server is answered by %s", got)
	}
	last := s.stream(s.client, s.server, 6, 9005, rate)
	last.flows()
	routed := 0
	ear.all(func(f []byte) {
		if mac := net.HardwareAddr(f[6:12]).String(); mac != hostMAC {
			t.Errorf("a frame of %s reached the server: %x", mac, f)
		}
		switch {
		case f[12] == 8 && f[13] == 6 && net.IP(f[28:32]).Equal(net.ParseIP(s.client.v4)):
			t.Errorf("ARP of the client reached the server: %x", f)
		case f[12] == 8 && f[13] == 0 && f[22] == 63 && f[23] == unix.IPPROTO_UDP, f[12] == 0x86 && f[20] == unix.IPPROTO_UDP && f[21] == 63:
			routed++
		case f[12] == 8 && f[13] == 0, f[12] == 0x86 && f[20] == unix.IPPROTO_UDP:
			t.Errorf("a packet that did not pass one router: %x", f)
		}
	})
	if routed == 0 {
		t.Error("nothing was heard")
	}
}

// A container has its addresses before it is known, and gateways that its
// endpoint names; the host answers for those, and it reaches the outside and
// is reached from there.
//
// Promise V1: IPv6 to workloads, in and out. Promise V2: a container needs
// nothing special. Promise V8: proxy neighbour discovery and a pre-set address.
func TestNamedGateways(t *testing.T) {
	s := newScenario(t)
	outside := s.outside()
	s.run()
	g := s.guest()
	s.batch(g.ns, "route flush dev eth0", "route flush default")
	g.ns.Run(t, "sh", "-c", "ip -6 route del default; true")
	s.batch(g.ns,
		"route replace default via 10.65.0.254 dev eth0 onlink",
		"route replace ::/0 via fd00:65::fffe dev eth0 onlink")
	doc := strings.Replace(g.bound(`{"role":"client"}`), `"interfaceName"`, `"ipv4Gateway":"10.65.0.254","ipv6Gateway":"fd00:65::fffe","interfaceName"`, 1)
	s.settle(s.put(g.key, doc))
	s.put(policyOf("open"), policyDoc("open", `role == "client"`, allow, allow))
	s.settle(s.put(policyOf("clients"), policyDoc("clients", `role == "client"`, allow, allow)))
	for i, f := range families {
		for j, st := range []*stream{
			s.stream(g, outside, f, 9000+i, rate), s.stream(outside, g, f, 9010+i, rate), s.stream(g, s.server, f, 9020+i, rate), s.stream(s.client, g, f, 9030+i, rate),
		} {
			st.flows()
			if st.halt(); t.Failed() {
				t.Fatalf("stream %d", j)
			}
		}
	}
	for _, gateway := range []string{"10.65.0.254", "fd00:65::fffe"} {
		if n := g.ns.Run(t, "ip", "neigh", "show", "to", gateway); !strings.Contains(n, hostMAC) {
			t.Errorf("the gateway's neighbour entry: %s", n)
		}
	}
	if p := s.ns.Run(t, "ip", "-6", "neigh", "show", "proxy"); !strings.Contains(p, "fd00:65::fffe dev "+g.iface+" proxy") {
		t.Errorf("proxy entries: %s", p)
	}
	if r := s.ns.Run(t, "ip", "route", "show", "10.65.0.254"); !strings.Contains(r, "dev lo proto 80") {
		t.Errorf("the gateway's route: %s", r)
	}
	s.settle(s.delete(g.key))
	if p := s.ns.Run(t, "ip", "-6", "neigh", "show", "proxy") + s.ns.Run(t, "ip", "route", "show", "10.65.0.254"); p != "" {
		t.Errorf("left behind: %s", p)
	}
}

// A host that fails takes only its own workloads along, and the policy at the
// other end of a flow holds by itself.
//
// Promise F17: there is no central firewall; the failure of an enforcer hits
// its own workloads only. Promise V1: IPv6 between hosts.
func TestOneHostFails(t *testing.T) {
	s := newScenario(t)
	h2 := &testHost{t: t, name: "h2", ns: nstest.Create(t), store: s.store, given: s.link, runDir: t.TempDir(), guests: 100}
	s.batch(s.ns,
		"link add up0 type veth peer name up0 netns "+h2.ns.Name, "link set up0 up",
		"addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	h2.batch(h2.ns, "link set up0 up", "addr add 192.0.2.2/24 dev up0", "addr add 2001:db8::2/64 dev up0 nodad")
	near, far := h2.guest(), h2.guest()
	for _, g := range []*guest{s.client, s.server, s.other} {
		h2.batch(h2.ns, "route add "+g.v4+" via 192.0.2.1", "route add "+g.v6+" via 2001:db8::1")
	}
	for _, g := range []*guest{near, far} {
		s.batch(s.ns, "route add "+g.v4+" via 192.0.2.2", "route add "+g.v6+" via 2001:db8::2")
	}
	s.put(near.key, near.bound(`{"role":"client"}`))
	s.revision = s.put(far.key, far.bound(`{"role":"server"}`))
	s.run()
	h2.start(true)
	h2.settle(s.revision)
	var there, between, denied []*stream
	for i, f := range families {
		there = append(there, h2.stream(near, far, f, 9000+i, rate))
		between = append(between, h2.stream(s.client, far, f, 9010+i, rate))
		denied = append(denied, h2.stream(s.other, far, f, 9020+i, rate))
	}
	for _, st := range append(there, between...) {
		st.flows()
	}
	// The first host's agent is gone, and with it all that it enforced.
	s.stop()
	s.ns.Run(t, "nft", "flush ruleset")
	for i := range families {
		between[i].flows()
		denied[i].quiet() // the other end refuses it
	}
	// Then the whole host.
	s.ns.Run(t, "ip", "link", "del", "up0")
	h2.settle(s.put(policyOf("more"), policyDoc("more", `role == "nobody"`, allow, allow)))
	for _, st := range between {
		st.forbid()
		st.quiet()
	}
	for i := range families {
		there[i].complete()
		denied[i].never()
	}
	revoked := h2.stream(near, far, 6, 9030, rate)
	revoked.flows()
	h2.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, "", allow)))
	revoked.forbid()
	revoked.quiet()
}
