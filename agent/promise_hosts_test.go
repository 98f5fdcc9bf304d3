package agent

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"tortie/api"
	"tortie/store"
)

// listenAt has a guest accept connections at a port, over both families.
func (h *testHost) listenAt(g *guest, port int) {
	h.t.Helper()
	for _, f := range families {
		var l net.Listener
		var err error
		g.ns.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(g.addr(f), fmt.Sprint(port))) })
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
}

// opens fails the test unless connections to a port come about, or, if they
// must not, do not, over both families.
func (h *testHost) opens(from, to *guest, port int, want bool) {
	h.t.Helper()
	for _, f := range families {
		var c net.Conn
		var err error
		limit := 300 * time.Millisecond
		if want {
			limit = timeout
		}
		address := net.JoinHostPort(to.addr(f), fmt.Sprint(port))
		from.ns.Do(func() { c, err = net.DialTimeout("tcp", address, limit) })
		if err == nil {
			_ = c.Close()
		}
		if (err == nil) != want {
			h.t.Fatalf("from %s to %s: %v, want it to open: %v", from.addr(f), address, err, want)
		}
	}
}

// A site that says nothing keeps ssh, BGP and etcd under any policy; one that
// names other ports, or none, has those or none, and then BGP is policy's to
// allow.
//
// Promise C18: the failsafe ports are many, and can be chosen, or be none.
// Promise B17: BGP is among them; without, it needs a rule. Promise B11: ssh to
// the host and etcd from it, by default. Pain 19: elsewhere a host endpoint
// locks its operator out.
func TestFailsafePorts(t *testing.T) {
	const ssh, bgp, etcd, other = 22, 179, 2379, 8080
	for _, c := range []struct {
		name    string
		env     []string
		in, out map[int]bool
	}{
		{"default", nil, map[int]bool{ssh: true, bgp: true, etcd: true}, map[int]bool{bgp: true, etcd: true}},
		{"chosen", []string{"FELIX_FAILSAFEINBOUNDHOSTPORTS=tcp:8080", "FELIX_FAILSAFEOUTBOUNDHOSTPORTS=tcp:22"}, map[int]bool{other: true}, map[int]bool{ssh: true}},
		{"none", []string{"FELIX_FAILSAFEINBOUNDHOSTPORTS=none", "FELIX_FAILSAFEOUTBOUNDHOSTPORTS=none"}, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newHostScenarioWith(t, c.env...)
			ports := []int{ssh, bgp, etcd, other}
			for _, p := range ports {
				s.listenAt(s.out, p)
				s.listenAt(s.host, p)
			}
			check := func(more int) {
				t.Helper()
				for _, p := range ports {
					s.opens(s.out, s.host, p, c.in[p] || p == more)
					s.opens(s.host, s.out, p, c.out[p] || p == more)
				}
			}
			s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
			check(0)
			s.set(policyOf("deny"), onHosts("deny", `"order":1,"types":["Ingress","Egress"],"ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}]`))
			check(0)
			const rule = `[{"action":"Allow","protocol":"TCP","destination":{"ports":[179]}}]`
			s.set(policyOf("bgp"), onHosts("bgp", `"order":0,"types":["Ingress","Egress"],"ingress":`+rule+`,"egress":`+rule))
			check(bgp)
		})
	}
}

// A host is in selectors what its endpoint is expected to have of addresses or,
// if nothing is expected, what the host says it has, on hosts that never saw its
// interfaces; its labels are in one space with those of workloads and network sets.
//
// Promise B8: selectors know the hosts of others by their expected addresses;
// without those by what the hosts say, and if they say nothing by none. Promise B1: one model and one space of
// labels for hosts and workloads.
func TestHostInSelectors(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	in, through := [2]*guest{s.out, s.host}, [2]*guest{s.out, s.server}
	s.set(policyOf("outside"), "") // which lets it in by its addresses
	const boxes = `{"action":"Allow","source":{"selector":"role == \"box\""}}`
	s.set(policyOf("boxes"), policyDoc("boxes", `role == "server"`, boxes, allow))
	s.set(policyOf("in"), onHosts("in", `"types":["Ingress"],"ingress":[`+boxes+`]`))
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	box := func(spec string) string {
		return fmt.Sprintf(`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"box","labels":{"role":"box"}},"spec":{"node":"h2",%s}}`, spec)
	}
	const both = `"expectedIPs":["192.0.2.1","2001:db8::1"]`
	for _, c := range []struct {
		doc  string
		open bool
	}{
		{box(`"interfaceName":"up0"`), false},
		{box(both), true},
		{box(`"expectedIPs":["192.0.2.99","2001:db8::99"]`), false},
		{box(`"interfaceName":"eth0",` + both), true},
		{strings.Replace(box(both), `"role":"box"`, `"role":"other"`, 1), false},
		{strings.Replace(box(`"profiles":["boxes"],`+both), `"role":"box"`, `"x":"y"`, 1), false},
	} {
		s.set(hostKey("box"), c.doc)
		s.expect(map[[2]*guest]bool{in: c.open, through: c.open})
	}
	// Its labels may be inherited, and the same selector finds a workload.
	s.set(apiKey("Profile", "boxes"), `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"boxes"},"spec":{"labelsToApply":{"role":"box"}}}`)
	s.expect(map[[2]*guest]bool{in: true, through: true, {s.other, s.server}: false})
	s.set(s.other.key, s.other.endpoint(`{"role":"box"}`))
	s.set(policyOf("all"), policyDoc("all", `role == "box"`, "", allow))
	s.expect(map[[2]*guest]bool{{s.other, s.server}: true})
	s.set(hostKey("box"), "")
	s.expect(map[[2]*guest]bool{in: false, through: false, {s.other, s.server}: true})

	s.set(hostKey("box"), box(`"interfaceName":"eth0"`))
	const up = `{"name":"eth0","addresses":["192.0.2.1","2001:db8::1"]}`
	for _, c := range []struct {
		host, interfaces string
		open             bool
	}{
		{"h2", up, true},
		{"h2", strings.Replace(up, "eth0", "eth1", 1), false},
		{"h2", "", false},
		{"h3", up, false}, // which is not the endpoint's
		{"h1", up, false}, // which knows better
		{"h2", `{"name":"lo"},` + up, true},
	} {
		s.set(apiKey(api.KindHostAddresses, c.host), `{"spec":{"interfaces":[`+c.interfaces+`]}}`)
		s.expect(map[[2]*guest]bool{in: c.open, through: c.open})
	}
	s.set(hostKey("box"), box(`"interfaceName":"*"`))
	s.set(apiKey(api.KindHostAddresses, "h2"), `{"spec":{"interfaces":[`+strings.Replace(up, "eth0", "eth7", 1)+`]}}`)
	s.expect(map[[2]*guest]bool{in: true, through: true})
	s.set(apiKey(api.KindHostAddresses, "h2"), "")
	s.expect(map[[2]*guest]bool{in: false, through: false})
}

// A host says which addresses its interfaces have, as long as an endpoint of it
// depends on that, and keeps it right; a restart changes nothing.
func TestAddressesSaid(t *testing.T) {
	s := newHostScenarioWith(t, "FELIX_ENDPOINTREPORTINGENABLED=false")
	key := apiKey(api.KindHostAddresses, "h1")
	stored := func() store.Entry {
		entries, _, err := s.store.List(context.Background(), key.Path())
		if err != nil || len(entries) > 1 {
			t.Fatal(entries, err)
		}
		return append(entries, store.Entry{})[0]
	}
	says := func(want string) {
		t.Helper()
		if want != "" {
			want = `{"spec":{"interfaces":[` + want + `]}}`
		}
		s.await("the host to say "+want, func() bool { return string(stored().Value) == want })
	}
	const both = `{"name":"up0","addresses":["192.0.2.2","2001:db8::2"]}`
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0","expectedIPs":["192.0.2.2"]`))
	says("")
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	says(both)
	s.ns.Run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "up0")
	says(`{"name":"up0","addresses":["192.0.2.1","192.0.2.2","2001:db8::2"]}`)
	s.ns.Run(t, "ip", "addr", "del", "192.0.2.1/32", "dev", "up0")
	says(both)
	s.put(key, `{"spec":{"interfaces":[{"name":"up0","addresses":["192.0.2.66"]}]}}`)
	says(both)
	s.delete(key)
	says(both)
	written := s.writesOf(key)
	s.stop()
	s.start(true)
	s.batch(s.ns, "link add more0 type bridge", "addr add 2001:db8:7::1/64 dev more0 nodad")
	says(`{"name":"more0","addresses":["2001:db8:7::1"]},` + both)
	if n := written(); n != 2 { // as it was, and once more
		t.Errorf("it was written %d times, want 2", n)
	}
	s.set(hostKey("h"), "")
	says("")
}

// An operator who has no failsafe ports makes a tier of them, ahead of all, whose
// policy passes on what it does not allow.
//
// Promise B12: a tier of order 0 that passes at its end stands for failsafe
// ports. Promise B13: a rule that passes leads to the next tier.
func TestFailsafeTier(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	for _, p := range []int{22, 2379} {
		s.listenAt(s.host, p)
		s.listenAt(s.out, p)
	}
	rule := func(port int) string {
		return fmt.Sprintf(`[{"action":"Allow","protocol":"TCP","destination":{"ports":[%d]}},{"action":"Pass"}]`, port)
	}
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	s.set(apiKey("Tier", "failsafe"), tierDoc("failsafe", "0", "Deny"))
	s.set(policyOf("failsafe.ports"), onHosts("failsafe.ports", `"tier":"failsafe","order":0,"types":["Ingress","Egress"],"ingress":`+rule(22)+`,"egress":`+rule(2379)))
	check := func(web bool) {
		t.Helper()
		s.opens(s.out, s.host, 22, true)
		s.opens(s.host, s.out, 2379, true)
		s.opens(s.out, s.host, 2379, web)
		s.opens(s.host, s.out, 22, web)
		s.expect(map[[2]*guest]bool{{s.out, s.host}: web, {s.host, s.out}: web})
	}
	check(false)
	// What comes after decides of the rest, and of nothing else.
	s.set(policyOf("rest"), onHosts("rest", `"types":["Ingress","Egress"],"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]`))
	check(true)
	s.set(policyOf("rest"), onHosts("rest", `"types":["Ingress","Egress"],"ingress":[{"action":"Deny"}],"egress":[{"action":"Deny"}]`))
	check(false)
}

// writesOf counts how often something is written, what there is already included.
func (h *testHost) writesOf(key api.Key) func() int {
	ctx, cancel := context.WithCancel(context.Background())
	watch := h.store.Watch(ctx, key.Path())
	seen, done := make(chan int, 1), make(chan struct{})
	seen <- 0
	go func() {
		defer close(done)
		for {
			b, err := watch.Next(ctx)
			if err != nil {
				return
			}
			seen <- <-seen + len(b.Events)
		}
	}()
	h.t.Cleanup(func() { cancel(); <-done })
	return func() (n int) {
		h.await("the last write to be seen", func() bool { n = <-seen; seen <- n; return n > 1 })
		return n
	}
}
