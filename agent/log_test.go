package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	xrate "golang.org/x/time/rate"

	"tortie/kernel/link"
	"tortie/kernel/nflog"
	"tortie/kernel/nft"
)

const logAll = `{"action":"Log"}`

// A Log rule names itself, the interfaces and the packet, in both families and
// for what is denied too; what is allowed after it passes.
func TestLogRule(t *testing.T) {
	s := newScenario(t)
	s.serve(s.server)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, logAll+","+fromClients, allow))
	s.run()
	s.reaches(s.client, s.server)
	logged := func(g *guest, denied bool) {
		for _, f := range families {
			line := fmt.Sprintf("msg=packet rule=GlobalNetworkPolicy//servers/Ingress/0 in=%s out=%s source=%s destination=%s protocol=TCP sourcePort=",
				g.iface, s.server.iface, g.addr(f), s.server.addr(f))
			s.await(line, func() bool {
				if denied && s.said(line) == 0 {
					s.refused(g, s.server) // on a busy machine its first packet may come too late
				}
				return s.said(line) > 0
			})
		}
	}
	logged(s.client, false)
	logged(s.other, true)
	if n := s.said("destinationPort=80 length="); n < 4 {
		t.Errorf("%d lines name the port", n)
	}
	s.await("the lines to be counted", func() bool { return int(s.metric("tortie_agent_logged_packets_total")) == s.said("msg=packet") })
	// A new guest is known by its name.
	late := s.guest()
	s.settle(s.put(late.key, late.endpoint(`{"role":"other"}`)))
	logged(late, true)
	for _, reason := range []string{lostLimit, lostKernel, lostLevel} {
		if n := s.metric(fmt.Sprintf("tortie_agent_log_lost_total{reason=%q}", reason)); n != 0 {
			t.Errorf("%v packets have no line: %s", n, reason)
		}
	}
}

// A flood gets the lines that the limit gives it, and the rest is counted. What
// is allowed loses nothing.
func TestLogFlood(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, logAll+","+fromClients, allow))
	s.run()
	begin := time.Now()
	allowed, denied := s.streams()
	s.await("packets beyond the limit", func() bool { return s.metric(`tortie_agent_log_lost_total{reason="limit"}`) > 1000 })
	for _, a := range allowed {
		a.complete()
	}
	for _, d := range denied {
		d.never()
	}
	lines := s.said("msg=packet")
	if most := packetBurst + int(time.Since(begin).Seconds()*packetLines) + 1; lines < packetBurst || lines > most {
		t.Errorf("%d lines, want %d to %d", lines, packetBurst, most)
	}
	s.await("a line that says what has none", func() bool { return s.said(" missed=") > 0 })
}

// Where another program has the group, the agent says so and works; it takes
// the group when that is gone, and gives it to who comes after it.
func TestLogGroupIsTaken(t *testing.T) {
	s := newScenario(t)
	s.env = []string{"FELIX_ROUTEREFRESHINTERVAL=1"}
	var first *nflog.Reader
	var err error
	take := func() { first, err = nflog.Open(nflog.Options{Group: nft.LogGroup}) }
	if take(); err != nil {
		t.Fatal(err)
	}
	s.serve(s.server)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, logAll+","+fromClients, allow))
	s.run()
	s.await("the agent to say so", func() bool { return s.said("another program reads it") > 0 })
	s.reaches(s.client, s.server)
	if n := s.said("msg=packet"); n != 0 {
		t.Errorf("%d lines", n)
	}
	_ = first.Close()
	s.await("the agent to take the group", func() bool { return s.said("packets of Log rules are logged again") > 0 })
	s.reaches(s.client, s.server)
	s.await("lines", func() bool { return s.said("msg=packet") >= 2 })
	if n := s.said("another program reads it"); n != 1 {
		t.Errorf("said %d times", n)
	}
	s.stop()
	if take(); err != nil {
		t.Errorf("after the agent: %v", err)
	} else {
		_ = first.Close()
	}
}

// What a line says, and what is counted instead of one.
func TestLogLines(t *testing.T) {
	var text bytes.Buffer
	level := &slog.LevelVar{}
	m := newMetrics()
	p := newPacketLog(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: level})), m)
	p.limit = xrate.NewLimiter(0, 5)
	p.takeLinks([]link.Event{{Link: link.Link{Name: "cali1", Index: 3}}, {Link: link.Link{Name: "cali2", Index: 4}}})
	p.takeLinks([]link.Event{{Link: link.Link{Name: "cali3", Index: 4}}, {Link: link.Link{Name: "cali2"}, Gone: true}, {Link: link.Link{Name: "cali1"}, Gone: true}})
	packet := nflog.Packet{Prefix: "r", In: 3, Out: 4, Length: 60}
	take := func(n int, p4 nflog.Packet) {
		for range n {
			p.take(p4)
		}
	}
	ping := packet
	ping.Protocol, ping.HasICMP, ping.Type, ping.Code, ping.Family = 58, true, 128, 1, 6
	ping.Source, ping.Destination = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	other := packet
	other.Protocol, other.Family, other.Source, other.Destination, other.In = 47, 4, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), 0
	forged := nflog.Packet{Prefix: "a\nmsg=packet", Lost: 7}
	take(1, packet)
	take(1, ping)
	take(1, other)
	level.Set(slog.LevelWarn)
	take(2, packet)
	level.Set(slog.LevelInfo)
	take(2, forged)
	take(3, packet)
	want := strings.TrimSpace(`
level=INFO msg=packet rule=r in=3 out=cali3 length=60
level=INFO msg=packet rule=r in=3 out=cali3 source=fd00::1 destination=fd00::2 protocol=ICMPv6 type=128 code=1 length=60
level=INFO msg=packet rule=r out=cali3 source=10.0.0.1 destination=10.0.0.2 protocol=47 length=60
level=INFO msg=packet rule="a\nmsg=packet" length=0 missed=9
level=INFO msg=packet rule="a\nmsg=packet" length=0 missed=7`)
	got := strings.TrimSpace(regexp.MustCompile(`(?m)^time=\S+ `).ReplaceAllString(text.String(), ""))
	if got != want {
		t.Errorf("lines:\n%s\nwant:\n%s", got, want)
	}
	page := &bytes.Buffer{}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, v := range f.GetMetric() {
			if strings.Contains(f.GetName(), "_log") {
				_, _ = fmt.Fprintf(page, "%s %v %v\n", f.GetName(), v.GetLabel(), v.GetCounter().GetValue())
			}
		}
	}
	for _, line := range []string{`"kernel"] 14`, `"limit"] 3`, `"level"] 2`, `packets_total [] 5`} {
		if !strings.Contains(page.String(), line+"\n") {
			t.Errorf("no %s in metrics:\n%s", line, page)
		}
	}
}
