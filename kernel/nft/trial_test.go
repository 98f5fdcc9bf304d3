package nft

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tortie/desired"
)

// A trial counts what would be decided and decides nothing, in both families,
// also where its program changes, and goes with its counters. One with too many
// tiers is left out, and its program holds.
func TestTrial(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	listeners := []*listener{listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)}
	want := uint64(0)
	passes := func(text string) {
		t.Helper()
		for i, addr := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
			send(t, a.NS, addr[0], addr[1], openPort, text)
			listeners[i].wait(t, text)
		}
	}
	id := b.endpoint().Ingress
	try := func(tiers int, end desired.Stage, more ...desired.Rule) {
		t.Helper()
		p := profile(append(more, allowOpen(17))...)
		for i := range tiers {
			p.Trial = append(p.Trial, desired.Stage{Name: fmt.Sprint(i), Rules: []desired.Rule{
				{Verdict: desired.Deny, Protocol: 6}, {ID: fmt.Sprintf("staged/%d", i), Verdict: desired.Next, Protocol: 17},
			}})
		}
		p.Trial = append(p.Trial, end)
		st.Programs.Set(id, p)
		apply(t, tb, st)
		settled(t, tb, st)
	}
	denies := desired.Stage{Name: "profiles", EndID: "staged-end", Rules: []desired.Rule{{ID: "would-deny", Verdict: desired.Deny}}}
	try(maxDepth-2, denies)
	passes("tried")
	want += 2
	waitCounter(t, tb, "would-deny", want)
	waitCounter(t, tb, fmt.Sprintf("staged/%d", maxDepth-3), want)

	try(1, denies, desired.Rule{Verdict: desired.Deny, Protocol: 6})
	passes("in a program that changed")
	want += 2
	waitCounter(t, tb, "would-deny", want)
	waitCounter(t, tb, "staged/0", want)

	try(maxDepth-1, denies)
	passes("with too many tiers to try")
	waitCounter(t, tb, "would-deny", want)
	if chains := host.Run(t, "nft", "list", "table", "inet", TableName); strings.Contains(chains, trialChain(programChain(id))) {
		t.Errorf("there are chains of a trial that cannot be: %s", chains)
	}

	st.Programs.Set(id, profile(allowOpen(17)))
	apply(t, tb, st)
	settled(t, tb, st)
	passes("without a trial")
	if text := host.Run(t, "nft", "list", "table", "inet", TableName); strings.Contains(text, "staged") || strings.Contains(text, "would-deny") {
		t.Errorf("left over: %s", text)
	}
	for _, l := range listeners {
		l.none(t)
	}
}
