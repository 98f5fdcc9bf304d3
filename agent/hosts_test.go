package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tortie/api"
	"tortie/kernel/conntrack"
)

// hostScenario is a scenario with something outside and the host itself, both
// of which serve.
type hostScenario struct {
	*scenario
	out, host *guest
}

func newHostScenario(t *testing.T, failsafeIn, failsafeOut string, env ...string) *hostScenario {
	t.Helper()
	return newHostScenarioWith(t, append(slices.Clone(env), "FELIX_FAILSAFEINBOUNDHOSTPORTS="+failsafeIn, "FELIX_FAILSAFEOUTBOUNDHOSTPORTS="+failsafeOut)...)
}

// newHostScenarioWith has the default failsafe ports, if env does not say.
func newHostScenarioWith(t *testing.T, env ...string) *hostScenario {
	t.Helper()
	s := &hostScenario{scenario: newScenarioOn(t, func(h *testHost) { h.env = env })}
	s.out = s.outsideClient()
	s.host = &guest{ns: s.ns, v4: "192.0.2.2", v6: "2001:db8::2"}
	for _, g := range []*guest{s.out, s.host, s.server} {
		s.serve(g)
	}
	s.run()
	return s
}

func hostKey(name string) api.Key { return api.Key{Kind: api.KindHostEndpoint, Name: name} }

// hostDoc is a host endpoint; spec is what its spec has besides the node.
func hostDoc(name, spec string) string {
	return fmt.Sprintf(`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"labels":{"host":"yes"}},"spec":{"node":"h1",%s}}`, name, spec)
}

// onHosts is a policy for host endpoints; more is what its spec has besides the
// selector.
func onHosts(name, more string) string {
	return fmt.Sprintf(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"selector":"has(host)",%s}}`, name, more)
}

// set puts an object, or with "" deletes it, and waits until the kernel has it.
func (s *hostScenario) set(key api.Key, doc string) {
	s.t.Helper()
	if doc == "" {
		s.settle(s.delete(key))
		return
	}
	s.settle(s.put(key, doc))
}

// open and closed say what is reached, over both families.
func (s *hostScenario) expect(pairs map[[2]*guest]bool) {
	s.t.Helper()
	for p, open := range pairs {
		if open {
			s.reaches(p[0], p[1])
		} else {
			s.refused(p[0], p[1])
		}
	}
}

// An endpoint without policy denies what ends in the host and what begins
// there, and nothing else; policy opens it; it is found by name, by address, or
// as that for any interface.
//
// Promise B1, B6, B7, C3, C10: the host's interfaces have the model of workloads.
func TestHostEndpoint(t *testing.T) {
	s := newHostScenario(t, "tcp:22", "none")
	in, back, through := [2]*guest{s.out, s.host}, [2]*guest{s.host, s.out}, [2]*guest{s.out, s.server}
	s.expect(map[[2]*guest]bool{in: true, back: true, through: true})
	for _, spec := range []string{`"interfaceName":"up0"`, `"expectedIPs":["192.0.2.2"]`, `"expectedIPs":["2001:db8::2"]`, `"interfaceName":"*"`} {
		s.set(hostKey("h"), hostDoc("h", spec))
		s.expect(map[[2]*guest]bool{in: false, back: false, through: true})
		s.set(policyOf("in"), onHosts("in", `"types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}]`))
		s.expect(map[[2]*guest]bool{in: true, back: false, through: true})
		s.set(policyOf("in"), "")
		s.set(policyOf("out"), onHosts("out", `"types":["Egress"],"egress":[{"action":"Allow","destination":{"nets":["192.0.2.1/32"]}},{"action":"Allow","destination":{"nets":["2001:db8::1/128"]}}]`))
		s.expect(map[[2]*guest]bool{in: false, back: true, through: true})
		s.set(policyOf("out"), "")
	}
	// Profiles come last.
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0","profiles":["projectcalico-default-allow"]`))
	s.expect(map[[2]*guest]bool{in: true, back: true, through: true})
	// One that is for another interface, or of another host, changes nothing.
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up1"`))
	s.expect(map[[2]*guest]bool{in: true, back: true, through: true})
	s.set(hostKey("h"), strings.Replace(hostDoc("h", `"interfaceName":"up0"`), `"h1"`, `"h2"`, 1))
	s.expect(map[[2]*guest]bool{in: true, back: true, through: true})
	s.set(hostKey("h"), "")
	if text := s.ns.Run(t, "nft", "list", "table", "inet", "tortie"); strings.Contains(text, "chain host-in") {
		t.Error("a host without endpoints has their chains")
	}
}

// What is failsafe stays open whatever policy says, both ways.
//
// Promise B11: a host endpoint does not lock its operator out.
func TestHostFailsafe(t *testing.T) {
	s := newHostScenario(t, "tcp:80", "tcp:192.0.2.0/24:80,tcp:2001:db8::/64:80")
	deny := `"applyOnForward":true,"types":["Ingress","Egress"],"ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}]`
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	const early = `"applyOnForward":true,"preDNAT":true,"types":["Ingress"],"ingress":[{"action":"Deny"}]`
	for _, c := range []struct {
		name, spec string
		through    bool // before there is a connection, it is not known what ends in the host
	}{{"deny", deny, false}, {"untracked", deny + `,"doNotTrack":true`, true}, {"early", early, false}} {
		s.set(policyOf(c.name), onHosts(c.name, c.spec))
		s.expect(map[[2]*guest]bool{{s.out, s.host}: true, {s.host, s.out}: true, {s.out, s.server}: c.through})
		s.set(policyOf(c.name), "")
	}
}

// Policy with applyOnForward, and no other, judges what passes through. It may
// be taken from a connection that there is.
//
// Promise B5: traffic to workloads is forwarded past host endpoints, unless
// policy says otherwise.
func TestHostForward(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	in, out := [2]*guest{s.out, s.server}, [2]*guest{s.server, s.out}
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	s.set(policyOf("f"), onHosts("f", `"types":["Ingress","Egress"],"ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}]`))
	s.expect(map[[2]*guest]bool{in: true, out: true})
	s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Allow","protocol":"TCP","destination":{"selector":"role == \"server\"","ports":[81]}}]`))
	s.expect(map[[2]*guest]bool{in: false, out: true})
	s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Egress"],"egress":[{"action":"Deny","source":{"selector":"role == \"server\""}}]`))
	s.expect(map[[2]*guest]bool{in: true, out: false, {s.client, s.server}: true})
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"*"`))
	s.expect(map[[2]*guest]bool{in: true, out: false, {s.client, s.server}: true})
	s.set(hostKey("g"), hostDoc("g", `"interfaceName":"up0","profiles":[]`))
	s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Allow","source":{"nets":["192.0.2.1/32","2001:db8::1/128"]}}]`))
	s.expect(map[[2]*guest]bool{in: true, out: true})
	for _, f := range families {
		st := s.stream(s.out, s.server, f, 9000+f, rate)
		st.flows()
		s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Deny"}]`))
		st.forbid()
		st.quiet()
		s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Allow"}]`))
		st.flows()
		st.halt()
	}
}

// tracked says how many connections to or from an address the host has, and
// forgets them.
func (s *hostScenario) tracked(g *guest) (n int) {
	s.t.Helper()
	var err error
	s.ns.Do(func() {
		var c *conntrack.Conntrack
		if c, err = conntrack.Open(); err == nil {
			n, err = c.Delete(context.Background(), []netip.Addr{netip.MustParseAddr(g.v4), netip.MustParseAddr(g.v6)})
			c.Close()
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Policy with doNotTrack acts before there is a connection: both directions need
// rules, and there is none afterwards. Workloads' own policy has its say.
func TestHostUntracked(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	in, through := [2]*guest{s.out, s.host}, [2]*guest{s.out, s.server}
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	const head = `"doNotTrack":true,"applyOnForward":true,"types":["Ingress","Egress"],`
	const serve = `"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}]`
	s.set(policyOf("u"), onHosts("u", head+serve))
	s.expect(map[[2]*guest]bool{in: false, through: true})
	s.set(policyOf("u"), onHosts("u", head+serve+`,"egress":[{"action":"Allow","protocol":"TCP","source":{"ports":[80]}}]`))
	s.tracked(s.out)
	s.expect(map[[2]*guest]bool{in: true})
	if n := s.tracked(s.out); n != 0 {
		t.Errorf("there are %d connections", n)
	}
	s.expect(map[[2]*guest]bool{through: true, {s.other, s.server}: false})
	if s.tracked(s.out) == 0 {
		t.Error("what passes through to a workload is not tracked")
	}
	s.set(policyOf("u"), onHosts("u", head+`"ingress":[{"action":"Deny","protocol":"TCP","destination":{"ports":[80]}}]`))
	s.expect(map[[2]*guest]bool{in: false, through: false, {s.client, s.server}: true})
	// What it does not decide, other policy does.
	s.set(policyOf("n"), onHosts("n", `"types":["Ingress"],`+serve))
	s.set(policyOf("u"), onHosts("u", head+`"ingress":[{"action":"Deny","protocol":"UDP"}]`))
	s.expect(map[[2]*guest]bool{in: true, through: true})
}

// Policy with preDNAT sees what a connection was opened to; allowed, no other
// policy of the host endpoint is asked, but the workload's is.
func TestHostPreDNAT(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	s.set(s.server.key, s.server.floating())
	float := &guest{ns: s.server.ns, v4: external[4], v6: external[6]}
	in, through, dialled := [2]*guest{s.out, s.host}, [2]*guest{s.out, s.server}, [2]*guest{s.out, float}
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	rules := func(action string) string {
		var list []string
		for _, f := range families {
			list = append(list, fmt.Sprintf(`{"action":%q,"destination":{"nets":[%q]}}`, action, external[f]))
		}
		return onHosts("early", `"preDNAT":true,"applyOnForward":true,"types":["Ingress"],"ingress":[`+strings.Join(list, ",")+`]`)
	}
	s.expect(map[[2]*guest]bool{in: false, through: true, dialled: true})
	s.set(policyOf("early"), rules("Deny"))
	s.expect(map[[2]*guest]bool{in: false, through: true, dialled: false})
	s.set(policyOf("early"), rules("Allow"))
	s.set(policyOf("f"), onHosts("f", `"applyOnForward":true,"types":["Ingress"],"ingress":[{"action":"Deny"}]`))
	s.expect(map[[2]*guest]bool{in: false, through: false, dialled: true})
	s.set(policyOf("outside"), "") // the workload allows it no more
	s.expect(map[[2]*guest]bool{dialled: false})
}

// What a workload sends to its host meets its own policy, then the configured
// action and, with Return, that of the endpoint for any interface.
//
// Promise C8: DHCP aside, workload to host is egress policy and then what is
// configured.
func TestWorkloadToHostEndpoint(t *testing.T) {
	for action, want := range map[string][3]bool{"Drop": {}, "Accept": {true, true, true}, "Return": {true, false, true}} {
		t.Run(action, func(t *testing.T) {
			s := newHostScenario(t, "none", "none", "FELIX_DEFAULTENDPOINTTOHOSTACTION="+action)
			pair, back := [2]*guest{s.client, s.host}, [2]*guest{s.host, s.server}
			s.set(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, allow))
			s.expect(map[[2]*guest]bool{pair: want[0], back: true})
			s.set(hostKey("h"), hostDoc("h", `"interfaceName":"*"`))
			s.expect(map[[2]*guest]bool{pair: want[1], back: false})
			s.set(policyOf("in"), onHosts("in", `"types":["Ingress"],"ingress":[{"action":"Allow","source":{"selector":"role == \"client\""}}]`))
			s.expect(map[[2]*guest]bool{pair: want[2], back: false})
			s.set(policyOf("out"), onHosts("out", `"types":["Egress"],"egress":[{"action":"Allow","destination":{"selector":"role == \"server\""}}]`))
			s.expect(map[[2]*guest]bool{pair: want[2], back: true})
		})
	}
}

// Connections of the host are cut when policy changes, in both directions, and
// lose nothing over restarts. Nothing is left after Cleanup.
func TestHostUnderTraffic(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	const both = `"types":["Ingress","Egress"],"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`
	s.set(policyOf("p"), onHosts("p", both))
	all := s.traffic(s.out, s.host, rate)
	// What is uploaded is counted where it comes in, which is before policy.
	all.transfers = slices.DeleteFunc(all.transfers, func(f *transfer) bool { return !strings.HasSuffix(f.name, "download") })
	ours := s.traffic(s.host, s.out, rate)
	for range 3 {
		s.stop()
		s.start(true)
		s.settle(s.revision)
	}
	s.set(policyOf("p"), onHosts("p", `"types":["Ingress","Egress"],"egress":[{"action":"Allow"}]`))
	all.cut()
	ours.flow()
	s.set(policyOf("p"), onHosts("p", both))
	all.flow()
	for _, st := range ours.streams {
		st.complete()
	}
	s.stop()
	s.cleanup()
	if text := s.ns.Run(t, "nft", "list", "ruleset"); strings.Contains(text, "tortie") {
		t.Errorf("left after cleanup:\n%s", text)
	}
}

// What is wrong with a host endpoint is said, and its interface is as if there
// were none; several claims of an interface are decided by name.
//
// Promise B9: bad host endpoints are named, and do no harm.
func TestHostEndpointStatus(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	problems := func() string {
		text, err := s.show("/show/problems")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for spec, want := range map[string]string{
		`"interfaceName":"lo"`:            "HostEndpoint(h) interface lo is not policed",
		`"interfaceName":"cali1"`:         "HostEndpoint(h) interface cali1 has a prefix of workload interfaces",
		`"expectedIPs":["198.51.100.99"]`: "HostEndpoint(h) no interface has one of its addresses",
		`"expectedIPs":["nonsense"]`:      "want an IP address",
		`"profiles":[]`:                   "HostEndpoint(h) it names neither an interface nor an address",
	} {
		s.set(hostKey("h"), hostDoc("h", spec))
		if text := problems(); !strings.Contains(text, want) {
			t.Errorf("%s: problems are\n%s", spec, text)
		}
		s.expect(map[[2]*guest]bool{{s.out, s.host}: true})
	}
	s.set(hostKey("a"), hostDoc("a", `"interfaceName":"up0","profiles":["projectcalico-default-allow"]`))
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	if text := problems(); !strings.Contains(text, "HostEndpoint(h) interface up0 belongs to HostEndpoint(a)") {
		t.Errorf("problems are\n%s", text)
	}
	s.expect(map[[2]*guest]bool{{s.out, s.host}: true})
	s.set(hostKey("a"), "")
	s.expect(map[[2]*guest]bool{{s.out, s.host}: false})
	status := func() string {
		entries, _, err := s.store.List(context.Background(), "/calico/felix/v1/host/h1/endpoint/h")
		if err != nil || len(entries) != 1 {
			return ""
		}
		return string(entries[0].Value)
	}
	s.await("the status of the endpoint", func() bool { return strings.Contains(status(), `"up"`) })
}
