package lab

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestProbes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l := pair(t)
	b := l.state.Workloads[1]
	ask := func(what string, want bool, wait time.Duration) {
		t.Helper()
		for _, protocol := range []string{ICMP, TCP, UDP} {
			for _, to := range []Workload{b} {
				for _, addr := range []string{to.IPv4.String(), to.IPv6.String()} {
					dest := at(to.IPv4)
					if strings.Contains(addr, ":") {
						dest = at(to.IPv6)
					}
					got, err := probe(t.Context(), l.namespace("a"), protocol, dest, wait)
					if err != nil || got != want {
						t.Errorf("%s: %s to %s: reached %v, want %v; error %v", what, protocol, addr, got, want, err)
					}
				}
			}
		}
	}
	r, err := respond(l.namespace("b"), []uint16{8080}, []uint16{8080})
	if err != nil {
		t.Fatal(err)
	}
	ask("open", true, answerWait)

	// The question arrives, the answer does not.
	l.nft(t, "add table inet t; add chain inet t out { type filter hook output priority 0; }; "+
		"add rule inet t out meta l4proto { tcp, udp, icmp } drop; add rule inet t out icmpv6 type echo-reply drop")
	ask("no answers", false, 200*time.Millisecond)
	l.nft(t, "delete table inet t")
	ask("open again", true, answerWait)
	l.nft(t, "add table inet t; add chain inet t in { type filter hook input priority 0; }; "+
		"add rule inet t in meta l4proto { tcp, udp, icmp } reject; add rule inet t in icmpv6 type echo-request reject")
	ask("rejected", false, 200*time.Millisecond)
	l.nft(t, "delete table inet t")
	r.stop()
	for _, protocol := range []string{TCP, UDP} { // nobody listens
		if got, err := probe(t.Context(), l.namespace("a"), protocol, at(b.IPv6), 200*time.Millisecond); err != nil || got {
			t.Errorf("%s: reached %v though nobody listens; error %v", protocol, got, err)
		}
	}
	if _, err := probe(t.Context(), "ttlab-none", UDP, at(b.IPv4), time.Second); err == nil {
		t.Error("a probe from nowhere is no error")
	}
}

func TestStream(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l := pair(t)
	s, err := l.Stream(t.Context(), "a", "b", time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	reach := func(n uint64) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for _, f := range s.flows {
			for sent, _ := f.counts(); sent < n; sent, _ = f.counts() {
				if time.Now().After(deadline) {
					t.Fatalf("only %d sent", sent)
				}
			}
		}
	}
	reach(50)
	for _, r := range s.Stop() {
		if r.Sent < 50 || r.Lost != 0 || r.LongestGap == 0 {
			t.Errorf("undisturbed: %+v", r)
		}
	}

	// Two of IPv6 are lost.
	if s, err = l.Stream(t.Context(), "a", "b", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	reach(10)
	l.nft(t, "add table ip6 t; add chain ip6 t in { type filter hook input priority 0; }; "+
		"add rule ip6 t in udp dport 8080 numgen inc mod 1000 < 2 drop")
	reach(100)
	got := s.Stop()
	if got[0].Lost != 0 || got[1].Lost != 2 || got[0].Family != 4 || got[1].Family != 6 {
		t.Errorf("lost %+v, want none of IPv4 and two of IPv6", got)
	}

	// Without an answer there is no stream.
	l.nft(t, "add rule ip6 t in udp dport 8080 drop")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := l.Stream(ctx, "a", "b", time.Millisecond); err == nil || !strings.Contains(err.Error(), "IPv6: no answer") {
		t.Errorf("error %v", err)
	}
}

// An attempt counts every packet that arrives, of all protocols and families.
func TestAttempt(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l := pair(t)
	var mu sync.Mutex
	counts := map[string]int{}
	c, err := l.Capture("b", func(f Frame) {
		if source, _ := f.Addrs(); !f.Outgoing && source.IsValid() && !source.IsLinkLocalUnicast() {
			mu.Lock()
			defer mu.Unlock()
			counts[fmt.Sprintf("%d over IPv%d", f.Protocol(), map[bool]int{true: 4, false: 6}[source.Is4()])]++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Attempt("a", "b", 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	all := func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, protocol := range []string{"1 over IPv4", "6 over IPv4", "17 over IPv4", "6 over IPv6", "17 over IPv6", "58 over IPv6"} {
			if counts[protocol] == 0 {
				return false
			}
		}
		return a.Arrived() > 200
	}
	if err := waitFor(t.Context(), 10*time.Second, all); err != nil {
		t.Errorf("%d of %d arrived, %v: %v", a.Arrived(), a.Sent(), counts, err)
	}
	r, err := a.Stop()
	if err != nil || r.From != "a" || r.To != "b" || r.Sent == 0 || r.Arrived == 0 {
		t.Errorf("%+v; %v", r, err)
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := l.Attempt("a", "nowhere", time.Second); err == nil {
		t.Error("an attempt to nowhere is no error")
	}
}

func TestMatrixText(t *testing.T) {
	m := &Matrix{From: []string{"web-1", "db-1"}, To: []string{"web-1", "db-1"}, Cells: []Cell{
		{From: "web-1", To: "db-1", Protocol: ICMP, Family: 4, Expected: true, Observed: true},
		{From: "web-1", To: "db-1", Protocol: ICMP, Family: 6},
		{From: "db-1", To: "web-1", Protocol: ICMP, Family: 4, Expected: true},
		{From: "db-1", To: "web-1", Protocol: ICMP, Family: 6, Observed: true, Why: "end of tier default"},
		{From: "web-1", To: "db-1", Protocol: TCP, Port: 80, Family: 4, Expected: true, Observed: true},
		{From: "web-1", To: "db-1", Protocol: TCP, Port: 80, Family: 6, Expected: true, Observed: true},
		{From: "web-1", To: "db-1", Protocol: UDP, Port: 53, Family: 4, Expected: true, Observed: true},
		{From: "web-1", To: "db-1", Protocol: UDP, Port: 53, Family: 6, Expected: true, Observed: true},
	}}
	want := `icmp: expected, and observed
        web-1 db-1   | web-1 db-1
  web-1       4.     |       4.
  db-1  4.           | .!6!
tcp/80, udp/53: expected, and observed
        web-1 db-1   | web-1 db-1
  web-1       46     |       46
  db-1               |
6 of 8 reached; 2 are not as expected
  db-1 to web-1 by icmp over IPv4: expected reached, observed not reached ()
  db-1 to web-1 by icmp over IPv6: expected not reached, observed reached (end of tier default)
`
	if diff := cmp.Diff(want, m.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
