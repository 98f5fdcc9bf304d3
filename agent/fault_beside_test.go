package agent

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Settings of our interfaces and of the host that a foreign hand changes are
// put right when they are looked at again, which is at most the configured
// interval later.
//
// Promise V4: IPv6 forwarding is on, on each host.
func TestForeignHandOnSettings(t *testing.T) {
	s := newScenario(t)
	s.put(apiKey("FelixConfiguration", "default"),
		`{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"interfaceRefreshInterval":"1s"}}`)
	s.run()
	s.serve(s.server)
	settings := map[string]string{
		"net.ipv4.conf.cali2.proxy_arp": "0", "net.ipv4.conf.cali2.rp_filter": "0", "net.ipv4.conf.cali2.forwarding": "0",
		"net.ipv6.conf.cali2.accept_ra": "1", "net.ipv6.conf.cali2.forwarding": "0", "net.ipv6.conf.cali2.proxy_ndp": "0",
		"net.ipv4.conf.cali2.accept_redirects": "1", "net.ipv4.neigh.cali2.proxy_delay": "80",
		"net.ipv4.ip_forward": "0", "net.ipv6.conf.all.forwarding": "0",
	}
	was := map[string]string{}
	for name := range settings {
		was[name] = s.ns.Run(t, "sysctl", "-n", name)
	}
	s.reaches(s.client, s.server)
	for name, value := range settings {
		s.ns.Run(t, "sysctl", "-qw", name+"="+value)
	}
	begin := time.Now()
	for name := range settings {
		for s.ns.Run(t, "sysctl", "-n", name) != was[name] {
			if time.Since(begin) > repairTime {
				t.Fatalf("%s is not %s again after %s", name, strings.TrimSpace(was[name]), repairTime)
			}
		}
	}
	t.Logf("settings were right again within %s", time.Since(begin).Round(time.Millisecond))
	s.reaches(s.client, s.server)
}

// While another program commits a hundred times a second, our table is not
// read again, a policy change is in force at once, and no packet is lost.
func TestNoisyNeighbour(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, denied := s.streams()
	noise := exec.Command("nft", "-i")
	in, err := noise.StdinPipe()
	if err == nil {
		err = s.ns.Start(noise)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = noise.Process.Kill() })
	if _, err := io.WriteString(in, "add table ip noise\nadd chain ip noise c { type filter hook output priority 50; }\n"); err != nil {
		t.Fatal(err)
	}
	const commits = 300
	var slowest time.Duration
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range commits {
		<-tick.C
		if _, err := fmt.Fprintf(in, "add rule ip noise c meta mark %d counter\n", i); err != nil {
			t.Fatal(err)
		}
		if i%20 == 10 {
			begin := time.Now()
			ingress := map[bool]string{true: allow, false: fromClients}[i%40 == 10]
			s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, ingress, allow)))
			slowest = max(slowest, time.Since(begin))
			for _, d := range denied {
				if i%40 == 10 {
					d.flows()
				} else {
					d.forbid()
				}
			}
			if i%40 != 10 {
				for _, d := range denied {
					d.quiet()
				}
			}
		}
	}
	_ = in.Close()
	_ = noise.Wait()
	if n := strings.Count(s.ns.Run(t, "nft", "list chain ip noise c"), "counter"); n != commits {
		t.Errorf("the other program made %d commits, want %d", n, commits)
	}
	if n := s.metric("tortie_agent_foreign_changes_total"); n != 0 {
		t.Errorf("our tables were read again %v times", n)
	}
	if n := s.said("reading them back"); n != 0 {
		t.Errorf("the log says %d times that something was read back", n)
	}
	t.Logf("the slowest of the policy changes was in force after %s", slowest.Round(time.Millisecond))
	if slowest > time.Second {
		t.Errorf("a policy change took %s", slowest)
	}
	for _, a := range allowed {
		a.complete()
	}
}

// Beside the rulesets of Docker and firewalld ours works as far as they let
// it, they stay as they are, and what they drop is reported with the cure,
// as soon as they come and until they go.
func TestBesideDockerAndFirewalld(t *testing.T) {
	s := newScenario(t)
	s.run()
	s.serve(s.server)
	if f := s.health().Foreign; len(f) != 0 {
		t.Errorf("foreign drops on a host without: %q", f)
	}
	for _, name := range []string{"docker", "firewalld"} {
		ruleset, err := os.ReadFile("../kernel/nft/testdata/" + name + ".nft")
		if err != nil {
			t.Fatal(err)
		}
		s.ns.Run(t, "nft", string(ruleset))
	}
	s.await("foreign drops to be reported", func() bool { return len(s.health().Foreign) >= 3 })
	page, err := s.show("/show/kernel")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ip filter FORWARD (forward): policy drop", "inet firewalld filter_FORWARD (forward): final reject", "inet firewalld filter_INPUT (input): final reject"} {
		if !strings.Contains(strings.Join(s.health().Foreign, "\n"), want) {
			t.Errorf("health does not name %s: %q", want, s.health().Foreign)
		}
		if !strings.Contains(page, "foreign "+want+"; cure: ") {
			t.Errorf("/show/kernel does not name %s and its cure", want)
		}
	}
	if n := s.metric("tortie_agent_foreign_drops"); n != float64(len(s.health().Foreign)) {
		t.Errorf("%v foreign drops in the metric", n)
	}
	// Docker's policy is for IPv4 only, and firewalld's last word is for
	// interfaces that it does not know.
	s.ns.Run(t, "nft", `insert rule ip filter DOCKER-USER iifname "cali*" accept; insert rule inet firewalld filter_FORWARD iifname "cali*" accept`)
	allowed, denied := s.streams()
	before := s.ns.Run(t, "nft", "-s", "list table inet firewalld") + s.ns.Run(t, "nft", "-s", "list table ip filter")
	s.reaches(s.client, s.server)
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, "", allow)))
	s.refused(s.client, s.server)
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow)))
	s.reaches(s.client, s.server)
	for i := range allowed {
		allowed[i].flows()
		denied[i].never() // their accept does not override our drop
	}
	if after := s.ns.Run(t, "nft", "-s", "list table inet firewalld") + s.ns.Run(t, "nft", "-s", "list table ip filter"); after != before {
		t.Errorf("other tables changed: %s", firstDifference(after, before))
	}
	s.ns.Run(t, "nft", "delete table inet firewalld; delete table ip filter")
	s.await("the report to end", func() bool { return len(s.health().Foreign) == 0 })
}

// Everything, and what overlaps, may be in sets and in the nets of rules, and
// goes again.
//
// Pain 5: ordinary input, such as 0.0.0.0/0 in a set, stops others.
func TestRangesOfEverything(t *testing.T) {
	s := newScenario(t)
	s.run()
	const set = `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"some","labels":{"net":"some"}},"spec":{"nets":[%s]}}`
	fromSet := `{"action":"Allow","source":{"selector":"net == \"some\""}}`
	fromNets := `{"action":"Allow","source":{"nets":[%s]}}`
	setKey := apiKey("GlobalNetworkSet", "some")
	everything := `"0.0.0.0/0","::/0","10.0.0.0/8","10.65.0.0/24","10.65.0.4","fd00::/8","fd00:65::/64","fd00:65::4/128"`
	overlapping := `"10.65.0.0/24","10.65.0.0/28","10.64.0.0/15","10.65.0.4/32","fd00:65::/64","fd00:65::/96","fd00::/15","fd00:65::4"`
	others := `"10.65.0.2/31","10.65.1.0/24","10.65.0.8/29","fd00:65::2/127","fd00:65:1::/64"`
	denied := []*stream{s.stream(s.other, s.server, 4, 9001, rate), s.stream(s.other, s.server, 6, 9003, rate)}
	before := s.kernelText()
	step := func(what string, pass bool) {
		t.Helper()
		for _, d := range denied {
			if d.forbid(); pass {
				d.flows()
			} else {
				d.quiet()
			}
		}
		if h := s.health(); !h.Ready || h.Failure != "" {
			t.Errorf("%s: %+v", what, h)
		}
	}
	step("nothing", false)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromSet, allow))
	for _, c := range []struct {
		what, nets string
		pass       bool
	}{
		{"an empty set", "", false},
		{"everything", everything, true},
		{"half of it", others, false},
		{"ranges that overlap", overlapping, true},
		{"one address", `"10.65.0.4/32","fd00:65::4/128"`, true},
		{"another address", `"10.65.0.3/32","fd00:65::3/128"`, false},
		{"everything again", `"::/0","0.0.0.0/0"`, true},
		{"the halves of everything", `"0.0.0.0/1","128.0.0.0/1","::/1","8000::/1"`, true},
		{"nothing again", "", false},
	} {
		s.settle(s.put(setKey, fmt.Sprintf(set, c.nets)))
		step(c.what+" in a set", c.pass)
		s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fmt.Sprintf(fromNets, c.nets), allow)))
		if c.nets != "" { // a rule without nets is for all of them
			step(c.what+" in a rule", c.pass)
		}
		s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromSet, allow)))
		step(c.what+" in a set again", c.pass)
	}
	s.delete(setKey)
	s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow)))
	step("as it was", false)
	if after := s.kernelText(); after != before {
		t.Errorf("not all of it went: %s", firstDifference(after, before))
	}
}
