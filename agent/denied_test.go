package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	xrate "golang.org/x/time/rate"

	"tortie/api"
	"tortie/desired"
	"tortie/internal/socket"
	"tortie/kernel/link"
	"tortie/kernel/nflog"
	"tortie/kernel/nft"
)

// What policy denies is told of by endpoint, direction, tier, policy and rule,
// in both families: by a rule at either end, by the end of a tier, and as no
// profile matched; in the log and on the page.
func TestDeniedPackets(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("clients"), policyDoc("clients", `role == "client"`, allow, `{"action":"Deny","protocol":"TCP"},`+allow))
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow))
	s.revision = s.put(policyOf("others"), policyDoc("others", `role == "other"`, `{"action":"Deny"}`, allow))
	bare := s.guest()
	s.revision = s.put(bare.key, bare.endpoint(`{"role":"bare"}`))
	s.run()
	said := func(from, to *guest, fields string) {
		t.Helper()
		for _, f := range families {
			line := fmt.Sprintf("msg=denied %s in=%s out=%s source=%s destination=%s protocol=TCP sourcePort=", fields, from.iface, to.iface, from.addr(f), to.addr(f))
			s.await(line, func() bool {
				if s.said(line) == 0 {
					s.refused(from, to)
				}
				return s.said(line) > 0
			})
		}
	}
	name := func(g *guest) string { return "endpoint=" + g.key.String() }
	said(s.client, s.server, name(s.client)+" direction=Egress tier=default policy=GlobalNetworkPolicy(clients) rule=0")
	said(s.other, s.server, name(s.server)+` direction=Ingress tier=default reason="end of tier"`)
	said(s.server, s.other, name(s.other)+" direction=Ingress tier=default policy=GlobalNetworkPolicy(others) rule=0")
	said(s.other, bare, name(bare)+` direction=Ingress reason="no profile matched"`)
	page, err := socket.Get(context.Background(), socket.Path(s.runDir, "agent"), "/show/denied")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(page), name(bare)); n < 2 {
		t.Errorf("%d of the page's lines are about %s:\n%s", n, bare.key, page)
	}
}

// A flood that is denied fills neither the log nor the page, and hides nothing
// that is denied to another.
func TestDeniedFlood(t *testing.T) {
	s := newScenario(t)
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow))
	s.put(policyOf("before"), policyDoc("before", `role == "other"`, `{"action":"Deny"}`, allow))
	s.run()
	begin := time.Now()
	allowed, denied := s.streams()
	s.await("thousands to be sent", func() bool { sent, _ := denied[0].counts(); return sent > 3000 })
	s.await("another's line", func() bool {
		s.refused(s.server, s.other)
		return s.said("policy=GlobalNetworkPolicy(before) rule=0") > 0
	})
	for _, a := range allowed {
		a.complete()
	}
	for _, d := range denied {
		d.never()
	}
	// Of one rule between two interfaces the kernel hands on 5 a second after 10.
	line := "msg=denied endpoint=" + s.server.key.String()
	if n, most := s.said(line), 11+int(time.Since(begin).Seconds()*5); n == 0 || n > most {
		t.Errorf("%d lines, want at most %d", n, most)
	}
}

// Who does not want it has it not.
func TestDeniedNotWanted(t *testing.T) {
	s := newScenario(t)
	s.env = []string{"FELIX_DENIEDEVENTSENABLED=false"}
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, logAll+","+fromClients, allow))
	s.run()
	s.await("a packet to be logged and denied", func() bool {
		s.refused(s.other, s.server)
		return s.said("msg=packet") > 0
	})
	if n := s.said("msg=denied"); n != 0 {
		t.Errorf("%d lines", n)
	}
}

// The log has so many lines of all together, and says how many it has not; the
// page keeps the last.
func TestDeniedLines(t *testing.T) {
	var text bytes.Buffer
	p := newPacketLog(slog.New(slog.NewTextHandler(&text, nil)), newMetrics())
	p.denials.limit = xrate.NewLimiter(0, 2)
	p.takeLinks([]link.Event{{Link: link.Link{Name: "cali1", Index: 3}}, {Link: link.Link{Name: "cali2", Index: 4}}})
	want := desired.New()
	a, b := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "n", Name: "a"}, api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "n", Name: "b"}
	want.Interfaces.Set("cali1", desired.Interface{Endpoint: a, Index: 3, Ingress: "in", Egress: "out"})
	want.Interfaces.Set("cali2", desired.Interface{Endpoint: b, Index: 4, Ingress: "in", Egress: "out"})
	const rule, profile = "NetworkPolicy/n/p/Egress/1", "Profile///Ingress/end"
	want.Programs.Set("out", desired.Program{Stages: []desired.Stage{{Name: "t1", Rules: []desired.Rule{{ID: rule, Verdict: desired.Deny}}, EndID: "Tier//t1/Egress/end"}}})
	want.Programs.Set("in", desired.Program{Stages: []desired.Stage{{Name: "profiles", EndID: profile}}})
	p.denials.learn(want)
	want.ClearDirty()
	packet := nflog.Packet{Prefix: nft.DeniedPrefix, Mark: nft.DeniedMark(rule), In: 3, Out: 4, Length: 60}
	p.take(packet)
	packet.Prefix, packet.Mark = nft.DeniedReplyPrefix, nft.DeniedMark(profile)
	p.take(packet) // the reply of a connection to a, which a's ingress denies
	for range deniedKept {
		p.take(nflog.Packet{Prefix: nft.DeniedPrefix, Mark: 7, Length: 1})
	}
	p.denials.limit = xrate.NewLimiter(xrate.Inf, 1)
	p.take(nflog.Packet{Prefix: nft.DeniedPrefix, Mark: nft.DeniedMark("Tier//t1/Egress/end"), In: 3, Length: 2})
	got := regexp.MustCompile(`(?m)^time=\S+ level=INFO `).ReplaceAllString(text.String(), "")
	if want := fmt.Sprintf(`msg=denied endpoint=WorkloadEndpoint(n/a) direction=Egress tier=t1 policy=NetworkPolicy(n/p) rule=1 in=cali1 out=cali2 length=60
msg=denied endpoint=WorkloadEndpoint(n/a) direction=Ingress reason="no profile matched" reply=true in=cali1 out=cali2 length=60
msg=denied endpoint=WorkloadEndpoint(n/a) direction=Egress tier=t1 reason="end of tier" in=cali1 length=2 missed=%d
`, deniedKept); got != want {
		t.Errorf("lines:\n%s\nwant:\n%s", got, want)
	}
	var page bytes.Buffer
	l := &loop{packets: p}
	if err := l.showDenied(context.Background(), &page); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(page.String()), "\n")
	if len(lines) != deniedKept || !strings.HasSuffix(lines[0], " length=1") || !strings.HasSuffix(lines[deniedKept-1], `reason="end of tier" in=cali1 length=2`) {
		t.Errorf("%d lines, the first %s, the last %s", len(lines), lines[0], lines[len(lines)-1])
	}
	// What is long gone is forgotten, what is there is not.
	for i := range 2000 {
		want.Programs.Set("out", desired.Program{Stages: []desired.Stage{{Rules: []desired.Rule{{ID: fmt.Sprint(i), Verdict: desired.Deny}}}}})
		p.denials.learn(want)
		want.ClearDirty()
	}
	if n := len(p.denials.origins); n > 1100 {
		t.Errorf("%d are known", n)
	}
	if _, ok := p.denials.origins[nft.DeniedMark(profile)]; !ok {
		t.Error("the end of a program that is there is forgotten")
	}
}
