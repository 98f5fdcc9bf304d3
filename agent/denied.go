package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	xrate "golang.org/x/time/rate"

	"tortie/api"
	"tortie/desired"
	"tortie/kernel/nflog"
	"tortie/kernel/nft"
)

// The kernel hands on so many denied packets as kernel/nft says; of these the
// page has the last ones, and the log a few.
const (
	deniedKept  = 500
	deniedLines = 10 // a second
	deniedBurst = 50
)

// denials tells who denied a packet, and keeps the last ones. The loop teaches
// it; the packet log's goroutine asks it.
type denials struct {
	limit *xrate.Limiter

	mu        sync.Mutex
	origins   map[uint32]origin // of the rules of all programs, by the packet's mark
	endpoints map[string]api.Key
	last      []string // as lines; a ring
	next      int
	missed    int // packets since the last line in the log that have none
}

// origin is what denied: a rule, or the end of a tier or of all.
type origin struct{ tier, id string }

func newDenials() *denials {
	return &denials{limit: xrate.NewLimiter(deniedLines, deniedBurst), origins: map[uint32]origin{}, endpoints: map[string]api.Key{}}
}

// learn takes over what changed in what this host should have. A rule that is
// gone is still known for a while: packets that it denied may be under way.
func (d *denials) learn(want *desired.State) {
	if want.Programs.DirtyLen()+want.Interfaces.DirtyLen() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range want.Interfaces.Dirty() {
		if i, ok := want.Interfaces.Get(name); ok {
			d.endpoints[name] = i.Endpoint
		} else {
			delete(d.endpoints, name)
		}
	}
	for id := range want.Programs.Dirty() {
		p, _ := want.Programs.Get(id)
		d.learnProgram(p)
	}
	if len(d.origins) > 2*d.live(want)+1000 {
		clear(d.origins)
		for _, p := range want.Programs.All() {
			d.learnProgram(p)
		}
	}
}

func (d *denials) learnProgram(p desired.Program) {
	for i := range p.Stages {
		s := &p.Stages[i]
		for j := range s.Rules {
			if s.Rules[j].Verdict == desired.Deny {
				d.origins[nft.DeniedMark(s.Rules[j].ID)] = origin{s.Name, s.Rules[j].ID}
			}
		}
		if s.EndID != "" {
			d.origins[nft.DeniedMark(s.EndID)] = origin{s.Name, s.EndID}
		}
	}
}

// live is at most how many origins the programs have.
func (d *denials) live(want *desired.State) (n int) {
	for _, p := range want.Programs.All() {
		for i := range p.Stages {
			n += 1 + len(p.Stages[i].Rules)
		}
	}
	return n
}

// denied keeps a packet that policy denied, and says whether it was one. The
// log gets what its limit allows.
func (p *packetLog) denied(packet *nflog.Packet) bool {
	reply := packet.Prefix == nft.DeniedReplyPrefix
	if !reply && packet.Prefix != nft.DeniedPrefix {
		return false
	}
	fields := p.deniedFields(packet, reply)
	d := p.denials
	d.mu.Lock()
	line := formatEvent(time.Now(), fields)
	if len(d.last) < deniedKept {
		d.last = append(d.last, line)
	} else {
		d.last[d.next] = line
	}
	d.next = (d.next + 1) % deniedKept
	d.missed++
	missed, ok := d.missed-1, d.limit.Allow()
	if ok {
		d.missed = 0
	}
	d.mu.Unlock()
	p.metrics.denied.Inc()
	if ok && p.log.Enabled(context.Background(), slog.LevelInfo) {
		if missed > 0 {
			fields = append(fields, "missed", missed)
		}
		p.log.Info("denied", fields...)
	}
	return true
}

// deniedFields name endpoint, direction, tier, policy and rule, and the packet.
// A packet of the other direction of its connection goes the other way past
// the endpoint whose policy denies it.
func (p *packetLog) deniedFields(packet *nflog.Packet, reply bool) []any {
	d := p.denials
	d.mu.Lock()
	from, known := d.origins[packet.Mark]
	d.mu.Unlock()
	var fields []any
	if known {
		row := ruleCount(from.id)
		name := packet.Out
		if (row.Direction == string(api.Ingress)) == reply {
			name = packet.In
		}
		d.mu.Lock()
		endpoint, found := d.endpoints[p.name(name)]
		d.mu.Unlock()
		if found {
			fields = append(fields, "endpoint", endpoint.String())
		}
		fields = append(fields, "direction", row.Direction)
		key := api.Key{Kind: api.Kind(row.Kind), Namespace: row.Namespace, Name: row.Name}
		switch {
		case row.Rule != nil:
			if key.Kind != api.KindProfile {
				fields = append(fields, "tier", from.tier)
			}
			fields = append(fields, "policy", key.String(), "rule", *row.Rule)
		case key.Kind == api.KindTier:
			fields = append(fields, "tier", from.tier, "reason", "end of tier")
		default:
			fields = append(fields, "reason", "no profile matched")
		}
	}
	if reply {
		fields = append(fields, "reply", true)
	}
	return append(fields, p.packetFields(packet)...)
}

// formatEvent is a line of the page, as the log writes lines.
func formatEvent(at time.Time, fields []any) string {
	var b strings.Builder
	r := slog.NewRecord(at, slog.LevelInfo, "denied", 0)
	r.Add(fields...)
	h := slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
			return slog.Attr{}
		}
		return a
	}})
	_ = h.Handle(context.Background(), r) // to memory
	return b.String()
}

// showDenied writes the last packets that policy denied, the oldest first.
func (l *loop) showDenied(_ context.Context, w io.Writer) error {
	d := l.packets.denials
	d.mu.Lock()
	defer d.mu.Unlock()
	start := 0
	if len(d.last) == deniedKept {
		start = d.next
	}
	for i := range d.last {
		if _, err := io.WriteString(w, d.last[(start+i)%len(d.last)]); err != nil {
			return fmt.Errorf("packet %s: %w", strconv.Itoa(i), err)
		}
	}
	return nil
}
