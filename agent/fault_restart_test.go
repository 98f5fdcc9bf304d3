package agent

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"tortie/api"
	"tortie/config"
	"tortie/kernel/link"
)

// What was changed in the kernel and in the store while the agent was stopped
// is put right when it starts, and nothing else is touched.
//
// Promise F5: a restart reads the kernel, then the store, and repairs exactly
// what differs. Promise F4: nothing but the kernel remembers anything.
func TestRestartRepairsExactly(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, denied := s.streams()
	want := s.kernelText()
	s.stop()
	names := s.ourNames()
	corruption := []string{
		"nft insert rule inet tortie {program} counter",
		"nft delete element inet tortie {set4} { 10.65.0.2 }",
		"nft add element inet tortie {set6} { fd00:65::99 }",
		"nft delete element inet tortie bound { cali1 }",
		"nft add chain inet tortie more",
		"nft delete element arp tortie mac-addr { cali1 . 02:00:00:00:00:02 . 02:00:00:00:00:02 . 10.65.0.2 }",
		"ip -4 route del 10.65.0.4",
		"ip -6 route add fd00:65::99 dev cali3 proto 80 metric 1024",
		"ip -6 route del fd00:65::2",
		"ip -4 neigh del 10.65.0.3 dev cali2",
		"sysctl -qw net.ipv4.conf.cali1.proxy_arp=0",
	}
	for _, c := range corruption {
		words := strings.Fields(names.Replace(c))
		if words[0] == "nft" {
			words = []string{"nft", strings.Join(words[1:], " ")}
		}
		s.ns.Run(t, words[0], words[1:]...)
	}
	foreign := s.ns.Run(t, "sh", "-c", "nft add table ip other; ip route add 203.0.113.0/24 dev lo proto 80 metric 7; nft list table ip other; ip route show 203.0.113.0/24")
	events := s.watchKernel()
	s.start(true)
	s.settle(s.revision)
	seen := events()
	if text := s.kernelText(); strings.Replace(text, "203.0.113.0/24 dev lo proto 80 scope link metric 7 \n", "", 1) != want {
		t.Errorf("not repaired: %s", firstDifference(text, want))
	}
	if now := s.ns.Run(t, "sh", "-c", "nft list table ip other; ip route show 203.0.113.0/24"); now != foreign {
		t.Errorf("what is not ours was touched: %s", now)
	}
	if v := s.ns.Run(t, "sysctl", "-n", "net.ipv4.conf.cali1.proxy_arp"); v != "1\n" {
		t.Errorf("proxy_arp is %s", v)
	}
	for line := range strings.Lines(seen) {
		right := false
		for _, touched := range []string{
			names.Replace("{program}"), names.Replace("{set4}"), names.Replace("{set6}"), "bound", "more", "mac-addr", "bump-due",
			// The epoch, for connections may have been judged by the wrong rules.
			"ct mark", "tortie allowed handle", "tortie epoch",
		} {
			right = right || strings.Contains(line, touched)
		}
		if !right {
			t.Errorf("written without need: %s", line)
		}
	}
	if n, most := s.metric("tortie_agent_kernel_writes_total"), float64(len(corruption)); n < most-1 || n > most+1 {
		t.Errorf("%v writes for %v differences", n, most)
	}
	for i := range allowed {
		allowed[i].flows()
		denied[i].never()
	}
}

// What policy forbids while the agent is stopped is cut when it starts, and an
// endpoint that goes meanwhile takes its routes and its connections along.
func TestChangesWhileStopped(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, denied := s.streams()
	toOther := []*stream{s.stream(s.client, s.other, 4, 9010, 200), s.stream(s.client, s.other, 6, 9011, 200)}
	for _, o := range toOther {
		o.flows()
	}
	s.stop()
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, `{"action":"Allow","source":{"selector":"role == \"other\""}}`, allow))
	rev := s.delete(s.other.key)
	s.put(s.other.key, strings.Replace(s.other.endpoint(`{"role":"other"}`), s.other.v4, "10.65.0.44", 1))
	for i := range allowed {
		allowed[i].flows() // the kernel goes on as it was
		denied[i].quiet()
	}
	s.start(true)
	s.settle(rev)
	for i := range allowed {
		allowed[i].forbid()
		allowed[i].quiet()
	}
	denied[1].flows() // its IPv6 address it has still
	toOther[1].flows()
	for _, st := range []*stream{denied[0], toOther[0]} {
		st.forbid()
		st.quiet()
	}
	toOther[0].halt()
	if out := s.ns.Run(t, "conntrack", "-L", "-d", s.other.v4); strings.Contains(out, "dport=9010") {
		t.Errorf("connections to an address that went: %s", out)
	}
	if out := s.ns.Run(t, "ip", "route", "show", s.other.v4); out != "" {
		t.Errorf("a route to an address that went: %s", out)
	}
}

// The connections of an address go with it, and only they do; they are not
// needed for it to be cut.
func TestConnectionsOfGoneAddress(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, _ := s.streams()
	more := s.guest()
	s.settle(s.put(more.key, more.bound(`{"role":"server"}`)))
	s.status(more, api.StatusUp) // its interface may be seen later than its endpoint
	var cut []*stream
	for i, f := range families {
		cut = append(cut, s.stream(s.client, more, f, 9020+i, rate), s.replyStream(s.client, more, f, 9030+i, rate))
	}
	for _, c := range cut {
		c.flows()
	}
	entries := func() int {
		return strings.Count(s.ns.Run(t, "sh", "-c", "conntrack -f ipv4 -L; conntrack -f ipv6 -L"), more.v4+" ") +
			strings.Count(s.ns.Run(t, "sh", "-c", "conntrack -f ipv6 -L"), more.v6+" ")
	}
	if n := entries(); n == 0 {
		t.Fatal("no entries")
	}
	s.settle(s.delete(more.key))
	for _, c := range cut {
		c.forbid()
		c.quiet()
	}
	if n := entries(); n != 0 {
		t.Errorf("%d ends of connections have the address", n)
	}
	for _, a := range allowed {
		a.complete()
	}
}

// A host's store, links and endpoints change while there is no agent, many
// times over, and what is there in the end is what a new host would have.
func TestRestartEqualsNewStart(t *testing.T) {
	s := newScenario(t)
	s.run()
	var more []*guest
	for i := range 4 {
		more = append(more, s.guest())
		s.put(more[i].key, more[i].bound(`{"role":"server"}`))
	}
	s.settle(s.put(policyOf("extra"), policyDoc("extra", `role == "server"`, fmt.Sprintf(`{"action":"Allow","protocol":"TCP","source":{"nets":[%q]}}`, "10.65.0.0/25"), "")))
	s.stop()
	s.delete(more[0].key)
	s.ns.Run(t, "ip", "link", "del", more[1].iface)
	s.ns.Run(t, "ip", "link", "set", more[2].iface, "down")
	s.ns.Run(t, "ip", "link", "del", more[3].iface)
	s.plug(more[3])
	s.delete(policyOf("extra"))
	rev := s.put(policyOf("late"), policyDoc("late", `role == "client"`, "", fromClients))
	s.start(true)
	s.settle(rev)
	got := s.kernelText()
	s.stop()
	s.ns.Run(t, "nft", "flush ruleset")
	s.ns.Run(t, "sh", "-c", "ip -4 route flush proto 80; ip -6 route flush proto 80; ip neigh flush nud permanent")
	s.start(true)
	s.settle(rev)
	drop := func(text string) string { // what was remembered went with the table
		return block.ReplaceAllStringFunc(text, func(b string) string {
			if strings.HasPrefix(b, "\tchain remembered") {
				return ""
			}
			return b
		})
	}
	if fresh := s.kernelText(); drop(fresh) != drop(got) {
		t.Errorf("after a restart: %s", firstDifference(drop(got), drop(fresh)))
	}
}

// An agent that dies after it has written a policy that forbids something, and
// before it has had the connections judged again, leaves word: the next one
// does it.
func TestKilledBetweenPolicyAndEpoch(t *testing.T) {
	s := newScenario(t)
	local, err := config.Load("", s.environ())
	if err != nil {
		t.Fatal(err)
	}
	cfg, _ := local.With(nil, nil)
	// A set of ranges, which the kernel swaps later than all else: a change of it
	// takes two transactions.
	const set = `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"some","labels":{"net":"some"}},"spec":{"nets":[%s]}}`
	s.put(apiKey("GlobalNetworkSet", "some"), fmt.Sprintf(set, `"10.65.0.0/30","fd00:65::/126","192.0.2.0/24","2001:db8::/32"`))
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, `{"action":"Allow","source":{"selector":"net == \"some\"","notSelector":"role == \"other\""}}`, allow))
	ctx := t.Context()
	l := newLoop(Options{Store: s.given, Local: local, Log: slog.New(slog.NewTextHandler(s, nil))}, cfg)
	s.ns.Do(func() { err = closeFirst(ctx, cfg, l.log) })
	if err != nil {
		t.Fatal(err)
	}
	watch := s.given.Watch(ctx, api.Root)
	read := func() {
		t.Helper()
		b, err := watch.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			l.takeObject(decode(e))
		}
	}
	read()
	var links *link.Monitor
	s.ns.Do(func() {
		if l.kernel, err = openKernel(cfg, l.log); err == nil {
			links, err = l.kernel.links.Monitor(ctx)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	l.status = newWriter(s.given, cfg, l.log)
	l.takeLinks(<-links.C)
	s.ns.Do(func() { l.apply(ctx) })
	if l.failure != nil {
		t.Fatal(l.failure)
	}
	allowed, denied := s.streams()
	rev := s.put(apiKey("GlobalNetworkSet", "some"), fmt.Sprintf(set, `"192.0.2.0/24","2001:db8::/32"`))
	read()
	l.calc.Flush(l.want)
	if result, err := l.kernel.nft.Apply(ctx, l.want); err != nil || result.Bumped {
		t.Fatal(result, err)
	}
	l.kernel.close() // and here it dies
	s.start(true)
	s.settle(rev)
	for i := range allowed {
		allowed[i].forbid()
		allowed[i].quiet()
		denied[i].never()
	}
}
