package agent

import (
	"context"
	"log/slog"
	"maps"
	"strconv"
	"sync"

	xrate "golang.org/x/time/rate"

	"tortie/kernel/link"
	"tortie/kernel/nflog"
	"tortie/kernel/nft"
)

// Log rules of all endpoints together get so many lines a second, after so many
// at once: a workload can cause as many packets as it likes, and they must not
// fill the disk.
const (
	packetLines = 100
	packetBurst = 500
)

// Why a packet that a Log rule picked has no line.
const (
	lostLimit  = "limit"  // there were too many
	lostKernel = "kernel" // it did not get from the kernel to here
	lostLevel  = "level"  // such lines are not wanted
)

// packetLog writes a line for each packet that a Log rule picked, and for some
// that policy denied. The loop
// starts it and tells it the names of links; a goroutine reads the packets.
type packetLog struct {
	log     *slog.Logger
	metrics *metrics
	limit   *xrate.Limiter
	denials *denials
	missed  int // packets since the last line that have none; the reader's own

	ended   chan struct{} // closed when the reader is gone; nil before there was one
	trouble string        // why there is none, as last logged

	mu    sync.Mutex
	names map[int]string // of links, by index
}

func newPacketLog(log *slog.Logger, m *metrics) *packetLog {
	return &packetLog{log: log, metrics: m, limit: xrate.NewLimiter(packetLines, packetBurst), names: map[int]string{}, denials: newDenials()}
}

// start reads the group until ctx ends, unless that is being done. Without it
// policy is enforced all the same; so the agent goes on, and tries again with
// each resync.
func (p *packetLog) start(ctx context.Context) {
	if p.ended != nil {
		select {
		case <-p.ended:
		default:
			return
		}
	}
	r, err := nflog.Open(nflog.Options{Group: nft.LogGroup})
	if err != nil {
		if p.trouble != err.Error() {
			p.log.Warn("packets of Log rules are not logged", "err", err)
		}
		p.trouble = err.Error()
		return
	}
	if p.trouble != "" {
		p.log.Info("packets of Log rules are logged again")
	}
	p.trouble = ""
	ended := make(chan struct{})
	p.ended = ended
	go func() {
		defer close(ended)
		if err := r.Run(ctx, p.take); err != nil {
			p.log.Warn("packets of Log rules are not logged until the next resync", "err", err)
		}
	}()
}

// wait returns when the reader is gone, and the group free for another.
func (p *packetLog) wait() {
	if p.ended != nil {
		<-p.ended
	}
}

// take writes the line of a packet, if there may be one.
func (p *packetLog) take(packet nflog.Packet) {
	if packet.Lost > 0 {
		p.miss(lostKernel, int(packet.Lost))
	}
	if p.denied(&packet) {
		return
	}
	switch {
	case !p.log.Enabled(context.Background(), slog.LevelInfo):
		p.miss(lostLevel, 1)
		return
	case !p.limit.Allow():
		p.miss(lostLimit, 1)
		return
	}
	p.log.Info("packet", p.fields(&packet)...)
	p.metrics.logged.Inc()
	p.missed = 0
}

func (p *packetLog) miss(why string, n int) {
	p.missed += n
	p.metrics.logLost.WithLabelValues(why).Add(float64(n))
}

func (p *packetLog) fields(packet *nflog.Packet) []any {
	fields := append([]any{"rule", packet.Prefix}, p.packetFields(packet)...)
	if p.missed > 0 {
		fields = append(fields, "missed", p.missed)
	}
	return fields
}

// packetFields are of the packet itself.
func (p *packetLog) packetFields(packet *nflog.Packet) (fields []any) {
	if packet.In != 0 {
		fields = append(fields, "in", p.name(packet.In))
	}
	if packet.Out != 0 {
		fields = append(fields, "out", p.name(packet.Out))
	}
	if packet.Family != 0 {
		fields = append(fields, "source", packet.Source.String(), "destination", packet.Destination.String(),
			"protocol", protocolName(packet.Protocol))
	}
	if packet.HasPorts {
		fields = append(fields, "sourcePort", packet.SourcePort, "destinationPort", packet.DestinationPort)
	}
	if packet.HasICMP {
		fields = append(fields, "type", packet.Type, "code", packet.Code)
	}
	return append(fields, "length", packet.Length)
}

// protocolName is as it is in the data model.
func protocolName(n uint8) string {
	if name, ok := map[uint8]string{1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP", 136: "UDPLite"}[n]; ok {
		return name
	}
	return strconv.Itoa(int(n))
}

// name is a link's name or, where it is not known yet or any more, its index.
func (p *packetLog) name(index int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if name, ok := p.names[index]; ok {
		return name
	}
	return strconv.Itoa(index)
}

// takeLinks learns the names of links.
func (p *packetLog) takeLinks(events []link.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range events {
		if e.Gone {
			maps.DeleteFunc(p.names, func(_ int, name string) bool { return name == e.Name })
		} else {
			p.names[e.Index] = e.Name
		}
	}
}
