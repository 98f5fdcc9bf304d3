package bgp

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/internal/nstest"
)

// router is a namespace on the fabric with another program that speaks BGP.
type router struct {
	*nstest.NS
	site   *site
	dir    string
	v4, v6 string
	routes *lines
	log    *lines
}

func (s *site) router(n int) *router {
	r := &router{NS: nstest.Create(s.t), site: s, dir: s.t.TempDir(), log: newLines(fmt.Sprintf("router%d", n))}
	r.v4, r.v6 = s.join(r.NS, n)
	r.routes = watchRoutes(s.t, r.NS)
	return r
}

// daemon runs a program until the test ends, in whatever way.
func (r *router) daemon(name string, args ...string) {
	r.site.t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `"$@" & cat; kill -9 $!; wait`, "sh", name}, args...)...)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	in, err := cmd.StdinPipe()
	if err == nil {
		err = r.Start(cmd)
	}
	if err != nil {
		r.site.t.Fatalf("start %s: %v", name, err)
	}
	r.site.t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
}

func (r *router) file(name, content string) string {
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.site.t.Fatal(err)
	}
	return path
}

// frr runs zebra and bgpd.
func (r *router) frr(config string) {
	t := r.site.t
	// FRR wants its user to be of the group frrvty. In the mount namespace
	// that the tests are in, root is.
	groups, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	group := r.file("group", regexp.MustCompile(`(?m)^(frrvty:.*):[^:]*$`).ReplaceAllString(string(groups), "$1:root"))
	if err := unix.Mount(group, "/etc/group", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/etc/group", unix.MNT_DETACH) })
	for _, d := range []string{"zebra", "bgpd"} {
		conf := "log stdout\n"
		if d == "bgpd" {
			conf += config // it tries until zebra answers
		}
		r.daemon("/usr/lib/frr/"+d, "-f", r.file(d+".conf", conf), "-i", filepath.Join(r.dir, d+".pid"),
			"-z", filepath.Join(r.dir, "zserv"), "--vty_socket", r.dir, "-u", "root", "-g", "root", "-P", "0", "-A", "127.0.0.1")
	}
}

// birdc asks BIRD.
func (r *router) birdc(args ...string) string {
	return r.Run(r.site.t, "birdc", append([]string{"-s", filepath.Join(r.dir, "bird.ctl")}, args...)...)
}

func (r *router) bird(config string) {
	r.daemon("bird", "-f", "-c", r.file("bird.conf", "log stderr all;\n"+config), "-s", filepath.Join(r.dir, "bird.ctl"), "-P", filepath.Join(r.dir, "bird.pid"))
}

// has waits until the router's kernel has exactly these routes of a protocol.
func (r *router) has(proto string, want map[string]string) {
	r.site.t.Helper()
	var got map[string]string
	r.routes.wait(failLater{r.site.t, func() string { return fmt.Sprintf("; it has %v", got) }}, fmt.Sprintf("the router to have %v", want), settle, func() bool {
		got = map[string]string{}
		for _, fam := range []string{"-4", "-6"} {
			for line := range strings.Lines(r.Run(r.site.t, "ip", fam, "route", "show", "proto", proto)) {
				f := strings.Fields(line)
				for i := range f[:len(f)-1] {
					if f[i] == "via" {
						got[f[0]] = f[i+1]
					}
				}
			}
		}
		if len(got) != len(want) {
			return false
		}
		for p, via := range want {
			if got[p] != via {
				return false
			}
		}
		return true
	})
}

// Promise I4: an AS with a 4-byte number, and eBGP between host and router.
// Promise I7: eBGP sets the next hop to itself.
// The router gets this host's routes, not those it has learned from others;
// and the other host not those of the router.
func TestUplinkRouter(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	tor := s.router(100)
	s.put(api.KindBGPConfiguration, "default", `{"asNumber":4200000001}`)
	s.put(api.KindBGPPeer, "tor-v4", fmt.Sprintf(`{"node":"h1","peerIP":%q,"asNumber":65001}`, tor.v4))
	s.put(api.KindBGPPeer, "tor-v6", fmt.Sprintf(`{"nodeSelector":"rack == 'a'","peerIP":"[%s]:179","asNumber":65001}`, tor.v6))
	s.write(resourcePath(api.KindNode, "h1"), []byte(fmt.Sprintf(
		`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1","labels":{"rack":"a"}},"spec":{"bgp":{"ipv4Address":"%s/24","ipv6Address":"%s/64"}}}`, h1.v4, h1.v6)))
	tor.frr(fmt.Sprintf(`
router bgp 65001
 bgp router-id 172.16.0.100
 no bgp ebgp-requires-policy
 timers bgp 3 9
 neighbor %[1]s remote-as 4200000001
 neighbor %[1]s timers connect 1
 neighbor %[2]s remote-as 4200000001
 neighbor %[2]s timers connect 1
 address-family ipv4 unicast
  network 203.0.113.0/24
  neighbor %[1]s default-originate
  no neighbor %[2]s activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:ffff::/48
  neighbor %[2]s activate
 exit-address-family
`, h1.v4, h1.v6))
	tor.Run(t, "ip", "route", "add", "blackhole", "203.0.113.0/24")
	tor.Run(t, "ip", "route", "add", "blackhole", "2001:db8:ffff::/48")
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{
		"10.2.0.1": h2.v4, "fd02::1": h2.v6,
		"default": tor.v4, "203.0.113.0/24": tor.v4, "2001:db8:ffff::/48": tor.v6,
	})
	tor.has("bgp", map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})

	h1.local("10.1.0.2")
	h1.delLocal("10.1.0.1", "fd01::1")
	tor.has("bgp", map[string]string{"10.1.0.2": h1.v4})
}

// Promise F14: a layer-3 fabric: each host is alone on a subnet with its
// router, and the router carries the routes to workloads.
// Promise I4: each host has an AS of its own.
func TestLayer3Fabric(t *testing.T) {
	s := newSite(t)
	s.put(api.KindBGPConfiguration, "default", `{"nodeToNodeMeshEnabled":false}`)
	r := &router{NS: nstest.Create(t), site: s, dir: t.TempDir(), log: newLines("router")}
	r.routes = watchRoutes(t, r.NS)
	config := "router bgp 65000\n bgp router-id 172.17.0.254\n no bgp ebgp-requires-policy\n timers bgp 3 9\n"
	var hosts []*host
	gateways := map[*host][2]string{}
	for n := 1; n <= 2; n++ {
		h := s.bare(n)
		nstest.Veth(t, h.NS, "eth0", r.NS, fmt.Sprintf("h%d", n))
		h.v4, h.v6 = fmt.Sprintf("172.17.%d.1", n), fmt.Sprintf("fd00:17:%d::1", n)
		gw4, gw6 := fmt.Sprintf("172.17.%d.254", n), fmt.Sprintf("fd00:17:%d::254", n)
		for _, a := range []struct {
			ns        *nstest.NS
			addr, dev string
		}{{h.NS, h.v4 + "/24", "eth0"}, {h.NS, h.v6 + "/64", "eth0"}, {r.NS, gw4 + "/24", h.name}, {r.NS, gw6 + "/64", h.name}} {
			args := []string{"addr", "add", a.addr, "dev", a.dev}
			if strings.Contains(a.addr, ":") {
				args = append(args, "nodad")
			}
			a.ns.Run(t, "ip", args...)
		}
		gateways[h] = [2]string{gw4, gw6}
		hosts = append(hosts, h)
		s.put(api.KindNode, h.name, fmt.Sprintf(`{"bgp":{"ipv4Address":"%s/24","ipv6Address":"%s/64","asNumber":"66.%d"}}`, h.v4, h.v6, n))
		s.put(api.KindBGPPeer, h.name+"-v4", fmt.Sprintf(`{"node":%q,"peerIP":%q,"asNumber":65000}`, h.name, gw4))
		s.put(api.KindBGPPeer, h.name+"-v6", fmt.Sprintf(`{"node":%q,"peerIP":%q,"asNumber":65000}`, h.name, gw6))
		config += fmt.Sprintf(` neighbor %[1]s remote-as %[3]d
 neighbor %[1]s timers connect 1
 neighbor %[2]s remote-as %[3]d
 neighbor %[2]s timers connect 1
 address-family ipv4 unicast
  no neighbor %[2]s activate
 exit-address-family
 address-family ipv6 unicast
  neighbor %[2]s activate
 exit-address-family
`, h.v4, h.v6, 66<<16+n)
		h.local(fmt.Sprintf("10.%d.0.1", n), fmt.Sprintf("fd0%d::1", n))
	}
	r.frr(config)
	h1, h2 := hosts[0], hosts[1]
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": gateways[h1][0], "fd02::1": gateways[h1][1]})
	h2.want(map[string]string{"10.1.0.1": gateways[h2][0], "fd01::1": gateways[h2][1]})
	r.has("bgp", map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6, "10.2.0.1": h2.v4, "fd02::1": h2.v6})
}

// Promise I2: hosts announce by route reflectors, with the mesh off.
// Promise I7: iBGP keeps the next hop, so traffic goes from host to host.
// The reflector sees the restart flag only after a restart, and keeps the
// routes of a host whose speaker is killed.
func TestRouteReflector(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	rr := s.router(100)
	s.put(api.KindBGPConfiguration, "default", `{"nodeToNodeMeshEnabled":false,"asNumber":64512}`)
	s.put(api.KindBGPPeer, "rr-v4", fmt.Sprintf(`{"peerIP":%q,"asNumber":64512}`, rr.v4))
	s.put(api.KindBGPPeer, "rr-v6", fmt.Sprintf(`{"peerIP":%q,"asNumber":64512}`, rr.v6))
	config := "router id 172.16.0.100;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n"
	for i, h := range []*host{h1, h2} {
		for _, f := range []struct{ family, local, remote string }{{"ipv4", rr.v4, h.v4}, {"ipv6", rr.v6, h.v6}} {
			config += fmt.Sprintf(`
protocol bgp c%d_%s {
  local %s as 64512; neighbor %s as 64512; rr client; graceful restart;
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  %s { import all; export where source = RTS_BGP; };
}
`, i+1, f.family, f.local, f.remote, f.family)
		}
	}
	rr.bird(config)
	h1.local("10.1.0.1", "10.1.0.2", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6})
	for _, session := range []string{"c1_ipv4", "c1_ipv6"} {
		caps := rr.birdc("show", "protocols", "all", session)
		if !strings.Contains(caps, "Graceful restart") || strings.Contains(caps, "Restart recovery") {
			t.Errorf("a first start with nothing to preserve:\n%s", caps)
		}
	}

	h1.kill()
	h1.delLocal("10.1.0.2")
	h1.local("10.1.0.3")
	h1.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.3": h1.v4, "fd01::1": h1.v6})
	h1.log.wait(t, "both sessions", settle, func() bool { return h1.log.count("session established") >= 4 })
	for _, session := range []string{"c1_ipv4", "c1_ipv6"} {
		caps := rr.birdc("show", "protocols", "all", session)
		if strings.Count(caps, "Restart recovery") != 1 || strings.Count(caps, "AF preserved: "+session[3:]) != 1 {
			t.Errorf("a restart with routes to preserve:\n%s", caps)
		}
	}
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")
	neverDeleted(t, h1, "10.2.0.1", "fd02::1")
}

// Promise F19: changes of policy and endpoints never change routes: they cause
// no BGP message at all.
func TestPolicyCausesNoUpdate(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	// count waits until all changes so far have been seen by both speakers.
	fences := 0
	count := func() (sent float64) {
		fences++
		bad := fmt.Sprintf("not-an-address-%d", fences)
		s.put(api.KindNode, "fence", fmt.Sprintf(`{"bgp":{"ipv4Address":%q}}`, bad))
		for _, h := range s.hosts {
			h.log.wait(t, "the speaker to see a change", settle, func() bool { return h.log.count(bad) > 0 })
			sent += h.metric("tortie_bgp_updates_sent_total")
		}
		return sent
	}
	before := count()
	if before < 8 { // a route and an End-of-RIB in each session
		t.Errorf("%v UPDATE messages sent to exchange four routes", before)
	}
	for i := range 1000 {
		s.put(api.KindGlobalNetworkPolicy, "p", fmt.Sprintf(`{"order":%d,"selector":"all()","ingress":[{"action":"Deny"}]}`, i))
		if i%10 == 0 {
			s.write(api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "default", Name: fmt.Sprintf("h1-k8s-w%d-eth0", i)}.Path(), []byte(
				`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{},"spec":{"node":"h1","ipNetworks":["10.1.0.1/32"]}}`))
		}
	}
	if after := count(); after != before {
		t.Errorf("1,000 changes of policy caused %v UPDATE messages", after-before)
	}
	h1.local("10.1.0.2")
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6})
	if after := count(); after != before+1 {
		t.Errorf("one new route caused %v UPDATE messages", after-before)
	}
}
