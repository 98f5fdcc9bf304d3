package bgp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func table(write func(w *tabwriter.Writer)) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	write(w)
	_ = w.Flush() // to memory
	return b.String()
}

// showPeers is the body of /show/peers.
func (p *process) showPeers(ctx context.Context) (string, error) {
	if p.speaker == nil {
		return "not speaking BGP: " + p.waiting() + "\n", nil
	}
	peers, _, err := p.speaker.Peers(ctx)
	if err != nil {
		return "", err
	}
	announced := map[string]int{}
	for prefix := range p.exported {
		announced[family(prefix.Addr())]++
	}
	return table(func(w *tabwriter.Writer) {
		_, _ = fmt.Fprintln(w, "PEER\tAS\tFAMILY\tSTATE\tSINCE\tRECEIVED\tADVERTISED\tWHY")
		for _, s := range peers {
			since, advertised := "-", 0
			if s.established {
				since, advertised = s.since.UTC().Format(time.RFC3339), announced[family(s.peer)]
			}
			_, _ = fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t%d\t%s\n",
				s.peer, s.as, family(s.peer), s.state, since, s.received, advertised, s.origin)
		}
	}), nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

func (p *process) waiting() string { return cmp.Or(p.plan.waiting, p.fault, "starting") }

// showRoutes is the body of /show/routes.
func (p *process) showRoutes(context.Context) (string, error) {
	all := map[netip.Prefix]struct{}{}
	for _, prefixes := range []map[netip.Prefix]struct{}{p.exported, p.importer.dirty} {
		maps.Copy(all, prefixes)
	}
	for prefix := range p.importer.have {
		all[prefix] = struct{}{}
	}
	return table(func(w *tabwriter.Writer) {
		_, _ = fmt.Fprintln(w, "PREFIX\tNEXT HOP\tFROM\tSTATE")
		for _, prefix := range slices.SortedFunc(maps.Keys(all), comparePrefixes) {
			hop, from, state := p.describe(prefix)
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", prefix, hop, from, state)
		}
	}), nil
}

// describe says what is known of a prefix.
func (p *process) describe(prefix netip.Prefix) (hop, from, state string) {
	if _, ok := p.exported[prefix]; ok {
		return "-", "-", "announced"
	}
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	want, wanted := p.importer.want[prefix]
	have, there := p.importer.have[prefix]
	_, dirty := p.importer.dirty[prefix]
	switch {
	case dirty && wanted:
		return text(want.nextHop), text(want.from), "to be written"
	case dirty:
		return text(have.nextHop), text(have.from), "to be deleted"
	case there && !wanted:
		return text(have.nextHop), text(have.from), "stale"
	default:
		return text(have.nextHop), text(have.from), "learned"
	}
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return cmp.Compare(a.Bits(), b.Bits())
}

// stats are what the metrics show; it is called by a scrape.
func (p *process) stats() (stats, bool) {
	var s stats
	ok := p.do(context.Background(), func() { s = p.gather(context.Background()) })
	return s, ok
}

func (p *process) gather(ctx context.Context) stats {
	s := stats{
		configured: len(p.plan.sessions),
		exported:   len(p.exported),
		imported:   len(p.importer.have),
		stale:      p.importer.stale(),
		pending:    len(p.importer.dirty),
		failures:   p.failures,
		problems:   len(p.plan.problems),
		messages:   p.past,
	}
	if p.speaker == nil {
		return s
	}
	peers, total, err := p.speaker.Peers(ctx)
	if err != nil {
		p.log.Warn("counting sessions", "error", err)
		return s
	}
	s.messages.sent += total.sent
	s.messages.received += total.received
	for _, peer := range peers {
		if peer.established {
			s.established++
		}
	}
	return s
}

func (p *process) health(ctx context.Context) health {
	s := p.gather(ctx)
	h := health{
		Ready:       p.speaker != nil,
		InSync:      p.inSync,
		Early:       p.early,
		Connected:   p.connected,
		Revision:    p.revision,
		Sessions:    s.configured,
		Established: s.established,
		Restarting:  p.importer.restarting,
		Exported:    s.exported,
		Imported:    s.imported,
		Pending:     s.pending,
		LastLoop:    p.lastLoop,
		Problems:    p.problems(),
	}
	if p.speaker == nil {
		h.Waiting = p.waiting()
	}
	return h
}

// problems are what of the resources cannot be followed, and what cannot be done.
func (p *process) problems() []string {
	all := slices.Clone(p.plan.problems)
	if p.fault != "" {
		all = append(all, p.fault)
	}
	if p.writeError != "" {
		all = append(all, strconv.Itoa(len(p.importer.dirty))+" routes are not written: "+p.writeError)
	}
	return all
}

func (p *process) showProblems(context.Context) (string, error) {
	var b strings.Builder
	for _, line := range p.problems() {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String(), nil
}
