package agent

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Two tenants share addresses of one network, and one tenant is on two: what a
// security group allows itself is all that decides.
//
// Promise S11: networks and routers have no effect on security. Promise S12: a
// group with itself as the peer of its rules replaces an isolated network.
func TestTenants(t *testing.T) {
	s := &scenario{testHost: newHost(t)}
	s.init()
	member := func(g *guest, group, network string) {
		s.revision = s.put(g.key, g.bound(fmt.Sprintf(`{"sg.projectcalico.org/openstack-%s":%q,"projectcalico.org/openstack-network-name":%q}`, group, group, network)))
	}
	a, b := [2]*guest{s.guest(), s.guest()}, [2]*guest{s.guest(), s.guest()}
	member(a[0], "a", "net1")
	member(a[1], "a", "net2")
	member(b[0], "b", "net1")
	member(b[1], "b", "net1")
	for _, group := range []string{"a", "b"} {
		has := fmt.Sprintf("has(sg.projectcalico.org/openstack-%s)", group)
		s.revision = s.put(policyOf(group), policyDoc(group, has,
			fmt.Sprintf(`{"action":"Allow","source":{"selector":%q}}`, has), fmt.Sprintf(`{"action":"Allow","destination":{"selector":%q}}`, has)))
	}
	s.run()
	for i, f := range families {
		within := []*stream{s.stream(a[0], a[1], f, 9000+i, rate), s.stream(b[1], b[0], f, 9010+i, rate)}
		across := []*stream{s.stream(a[0], b[0], f, 9020+i, rate), s.stream(b[1], a[1], f, 9030+i, rate), s.stream(b[0], a[1], f, 9040+i, rate)}
		for _, st := range within {
			st.flows()
			st.complete()
		}
		for _, st := range across {
			st.never()
		}
	}
}

// What is not a workload's interface keeps its addresses and may have any MAC
// and neighbour, also one that comes later and is known to nobody; what is one
// is known by its prefix, of which there may be several.
//
// Promise B2: the agent sets no addresses of host interfaces and checks no MACs
// on them. Promise B3: workloads' are those with a prefix of the list, the rest
// are the host's. Promise B4: an unknown workload interface passes nothing, an
// unknown interface of the host is left alone.
func TestHostInterfaces(t *testing.T) {
	s := newScenario(t)
	s.env = append(s.env, "FELIX_INTERFACEPREFIX=vnic,cali")
	outside := s.outside()
	renamed, unknown := s.guest(), s.guest()
	for _, g := range []*guest{renamed, unknown} {
		was := g.iface
		g.iface = strings.Replace(was, "cali", "vnic", 1)
		s.batch(s.ns, "link set "+was+" down", "link set "+was+" name "+g.iface, "link set "+g.iface+" up")
	}
	s.revision = s.put(renamed.key, renamed.bound(`{"role":"client"}`))
	up0 := func() string { // but for how far the kernel is with its address of the link
		text := s.ns.Run(t, "ip", "-o", "addr", "show", "dev", "up0") + s.ns.Run(t, "ip", "-o", "link", "show", "dev", "up0")
		return strings.ReplaceAll(text, " tentative", "")
	}
	before := up0()
	s.run()
	s.serve(s.server)
	s.reaches(renamed, s.server)
	s.refused(unknown, s.server)
	late := &guest{ns: outside.ns, v4: "203.0.113.1", v6: "2001:db8:1::1"}
	s.batch(s.ns, "link add eth7 type veth peer name eth7 netns "+late.ns.Name, "link set eth7 up", "addr add 203.0.113.2/24 dev eth7", "addr add 2001:db8:1::2/64 dev eth7 nodad")
	s.batch(late.ns, "link set eth7 up", "addr add 203.0.113.1/24 dev eth7", "addr add 2001:db8:1::1/64 dev eth7 nodad")
	s.serve(&guest{ns: s.ns, v4: "192.0.2.2", v6: "2001:db8::2"})
	s.serve(&guest{ns: s.ns, v4: "203.0.113.2", v6: "2001:db8:1::2"})
	host := &guest{v4: "192.0.2.2", v6: "2001:db8::2"}
	s.reaches(outside, host)
	s.batch(outside.ns, "link set eth0 address 02:99:99:99:99:99", "addr add 192.0.2.77/24 dev eth0", "addr add 2001:db8::77/64 dev eth0 nodad")
	s.reaches(outside, host)
	s.reaches(late, &guest{v4: "203.0.113.2", v6: "2001:db8:1::2"})
	if after := up0(); after != before {
		t.Errorf("the host's interface was\n%s\nand is\n%s", before, after)
	}
	s.refused(unknown, s.server)
}

// The name of the host is what it is told to be, not the machine's; what is of
// another host is not bound here, though its interface would be.
//
// Promise B10: the host's name must match, and can be set.
func TestHostName(t *testing.T) {
	s := newScenario(t)
	foreign := s.guest()
	foreign.key.Name = strings.Replace(foreign.key.Name, s.name+"-", "elsewhere-", 1)
	s.revision = s.put(foreign.key, foreign.bound(`{"role":"client"}`))
	s.run() // as h1, whatever this machine is called
	s.serve(s.server)
	s.reaches(s.client, s.server)
	s.refused(foreign, s.server)
	if out := s.ns.Run(t, "ip", "route") + s.ns.Run(t, "ip", "-6", "route"); strings.Contains(out, foreign.iface+" proto 80") {
		t.Errorf("the other host's endpoint has routes here: %s", out)
	}
}

// A second NIC with an address that outside reaches: with a route of its own
// for what comes from that, the workload answers, by the policy of that NIC;
// without, its answers leave by the first NIC, from an address that is not that
// one's, and are refused.
//
// Promise X7: a VM becomes reachable by plugging a second NIC.
func TestSecondInterfaceToOutside(t *testing.T) {
	s := newScenario(t)
	outside := s.outside()
	s.run()
	second := *s.server
	second.iface, second.v4, second.v6, second.mac = "cali50", "198.51.100.50", "2001:db8:50::50", "02:00:00:00:00:50"
	second.key.Name = strings.Replace(second.key.Name, "-eth0", "-eth1", 1)
	s.batch(s.ns, "link add cali50 address "+hostMAC+" type veth peer name eth1 address "+second.mac+" netns "+second.ns.Name, "link set cali50 up")
	s.batch(second.ns, "link set eth1 up", "addr add "+second.v4+"/32 dev eth1", "addr add "+second.v6+"/128 dev eth1 nodad",
		"route add 169.254.1.1 dev eth1 table 50", "route add default via 169.254.1.1 dev eth1 table 50 onlink",
		"route add ::/0 via "+hostLinkLocal+" dev eth1 table 50")
	s.batch(outside.ns, "route add 198.51.100.0/24 via 192.0.2.2", "route add 2001:db8:50::/64 via 2001:db8::2")
	s.put(policyOf("nics"), policyDoc("nics", `role == "nic"`, `{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}`, ""))
	s.settle(s.put(second.key, strings.Replace(second.bound(`{"role":"nic"}`), `"endpoint":"eth0"`, `"endpoint":"eth1"`, 1)))
	s.status(&second, "up")
	s.serve(&second)
	spoofed := s.counter("spoofed")
	s.refused(outside, &second)
	s.await("its answers to be refused", func() bool { return s.counter("spoofed") >= spoofed+2 })
	second.ns.Run(t, "sh", "-c", "ip rule add from "+second.v4+" table 50; ip -6 rule add from "+second.v6+" table 50")
	s.reaches(outside, &second)
	s.refused(outside, s.server) // the first NIC's policy is another
}

// While policies, tiers, profiles, network sets, members and ranges come and go
// in all orders, what is forbidden before and after each never passes, and what
// is allowed before and after each is never lost.
func TestNoTransientHoleOfAnyKind(t *testing.T) {
	s := newScenario(t)
	s.run()
	more := s.guest()
	allowed, denied := s.streams()
	head := `{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q%s},"spec":{%s}}`
	kinds := []func(n int) int64{
		func(n int) int64 {
			ports := fmt.Sprintf(`{"action":"Allow","protocol":"UDP","destination":{"ports":[%d]}},{"action":"Deny","source":{"selector":"role == \"more\""}}`, 20000+n)
			return s.put(policyOf("ahead"), strings.Replace(policyDoc("ahead", "all()", ports, ""), `"order":100,`, fmt.Sprintf(`"order":%d,`, n%200), 1))
		},
		func(int) int64 { return s.delete(policyOf("ahead")) },
		func(n int) int64 {
			return s.put(apiKey("Tier", "t"), fmt.Sprintf(head, "Tier", "t", "", fmt.Sprintf(`"order":%d,"defaultAction":"Pass"`, n)))
		},
		func(n int) int64 {
			return s.put(policyOf("t.x"), fmt.Sprintf(head, "GlobalNetworkPolicy", "t.x", "", fmt.Sprintf(`"tier":"t","selector":"role == \"server\"","ingress":[{"action":"Pass","source":{"nets":["10.65.0.0/%d"]}},{"action":"Deny","protocol":%d}]`, 20+n%9, 100+n%50)))
		},
		func(int) int64 { return s.delete(policyOf("t.x")) },
		func(int) int64 { return s.delete(apiKey("Tier", "t")) },
		func(n int) int64 {
			return s.put(apiKey("GlobalNetworkSet", "set"), fmt.Sprintf(head, "GlobalNetworkSet", "set", `,"labels":{"role":"client"}`, fmt.Sprintf(`"nets":["10.77.%d.0/24","fd77:%x::/32","10.77.0.0/%d"]`, n%256, n, 16+n%9)))
		},
		func(int) int64 { return s.delete(apiKey("GlobalNetworkSet", "set")) },
		func(n int) int64 {
			doc := more.paired(fmt.Sprintf(`{"role":%q}`, []string{"client", "server", "more"}[n%3]))
			return s.put(more.key, strings.ReplaceAll(doc, "10.99.0.0/24/32", fmt.Sprintf("10.99.%d.0/%d/32", n%4, 22+n%6)))
		},
		func(n int) int64 {
			return s.put(apiKey("Profile", "p"), fmt.Sprintf(head, "Profile", "p", "", fmt.Sprintf(`"labelsToApply":{"n":"%d"},"ingress":[{"action":"Allow"}]`, n)))
		},
		func(int) int64 { return s.delete(more.key) },
	}
	for n := range 3000 {
		if rev := kinds[(n*7+n/11)%len(kinds)](n); n%4 == 0 {
			s.settle(rev)
		}
	}
	for _, a := range allowed {
		a.complete()
	}
	for _, d := range denied {
		d.never()
	}
}

// An endpoint's DHCP reaches the host whatever its policy says; all else that it
// sends there is judged by its egress policy, and then by what is configured,
// which is to drop.
//
// Promise C4: what policy allows to the host is dropped by default. Promise B13: a rule that passes leads to the next tier, and is no verdict.
func TestToHost(t *testing.T) {
	s := newScenario(t)
	s.put(apiKey("Tier", "first"), `{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"first"},"spec":{"order":1}}`)
	s.revision = s.put(policyOf("first.clients"), strings.Replace(policyDoc("first.clients", `role == "client"`, `{"action":"Pass"}`, `{"action":"Pass","protocol":"UDP"}`), `"order":100`, `"order":1,"tier":"first"`, 1))
	s.run()
	var conn net.PacketConn
	var err error
	s.ns.Do(func() { conn, err = net.ListenPacket("udp", "[::]:67") })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	w := s.wire(s.client)
	dropped, unmatched := s.counter("to-host"), s.counter("unmatched")
	s.batch(s.ns, "addr add 192.0.2.2/32 dev lo")
	for f, host := range map[int]string{4: "192.0.2.2", 6: hostLinkLocal} {
		from := s.client.addr(f)
		w.packet(ipPacket(from, host, unix.IPPROTO_UDP, udpSegment(4000, 67, "no")))         // passed on to where it is allowed, and then no further
		w.packet(ipPacket(from, host, unix.IPPROTO_TCP, tcpSegment(4000, 22, 1, 0, tcpSYN))) // the end of the first tier
	}
	s.counts("to-host", dropped+2)
	s.counts("unmatched", unmatched+2)
	s.put(policyOf("first.clients"), policyDoc("first.clients", `role == "client"`, "", ""))
	s.settle(s.delete(policyOf("clients")))
	w.packet(ipPacket("0.0.0.0", "255.255.255.255", unix.IPPROTO_UDP, udpSegment(68, 67, "discover")))
	b := make([]byte, 100)
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	if n, _, err := conn.ReadFrom(b); err != nil || string(b[:n]) != "discover" {
		t.Errorf("the host received %q, %v", b[:n], err)
	}
}
