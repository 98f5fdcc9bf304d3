package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// streamPort is where the receiver of a stream answers.
const streamPort = 8080

// Stream is UDP traffic between two workloads over both families that counts
// what is lost.
type Stream struct {
	flows     []*flow
	responder *responder
}

// flow is the traffic of one family.
type flow struct {
	from, to string
	family   int
	conn     net.Conn

	mu       sync.Mutex // guards what follows
	sent     uint64
	answered map[uint64]struct{} // of those not yet in a row
	inRow    uint64              // all up to this one were answered
	last     time.Time
	gap      time.Duration

	stop               chan struct{}
	sending, receiving sync.WaitGroup
}

// FlowResult is what became of a flow. A datagram counts as lost if it or its
// echo did not arrive.
type FlowResult struct {
	From, To   string
	Family     int
	Sent, Lost uint64
	LongestGap time.Duration // between two answers
}

// Stream sends UDP datagrams from one workload to another over both families,
// one each interval, until it is stopped. It returns once the first answers
// came. Policy must allow UDP port 8080.
func (l *Lab) Stream(ctx context.Context, from, to string, interval time.Duration) (*Stream, error) {
	source, err := l.workload(from)
	if err != nil {
		return nil, err
	}
	dest, err := l.workload(to)
	if err != nil {
		return nil, err
	}
	r, err := respond(l.namespace(dest.Name), nil, []uint16{streamPort})
	if err != nil {
		return nil, err
	}
	s := &Stream{responder: r}
	for family, addr := range map[int]netip.Addr{4: dest.IPv4, 6: dest.IPv6} {
		f := &flow{from: from, to: to, family: family, answered: map[uint64]struct{}{}, stop: make(chan struct{})}
		if err := f.start(ctx, l.namespace(source.Name), addr, interval); err != nil {
			s.Stop()
			return nil, fmt.Errorf("stream from %s to %s over IPv%d: %w", from, to, family, err)
		}
		s.flows = append(s.flows, f)
	}
	return s, nil
}

// Stop ends the stream and waits, at most two seconds, for what is under way.
func (s *Stream) Stop() []FlowResult {
	var out []FlowResult
	for _, f := range s.flows {
		close(f.stop)
	}
	for _, f := range s.flows {
		out = append(out, f.finish())
	}
	s.responder.stop()
	slices.SortFunc(out, func(a, b FlowResult) int { return a.Family - b.Family })
	return out
}

func (f *flow) start(ctx context.Context, namespace string, to netip.Addr, interval time.Duration) error {
	at := netip.AddrPortFrom(to, streamPort)
	ok, err := probe(ctx, namespace, UDP, at, 10*time.Second)
	if err == nil && !ok {
		err = errors.New("no answer")
	}
	if err != nil {
		return err
	}
	if f.conn, err = dialIn(ctx, namespace, "udp", at.String(), 0); err != nil {
		return err
	}
	f.last = time.Now()
	f.receiving.Go(f.receive)
	f.sending.Go(func() { f.send(interval) })
	return nil
}

func (f *flow) send(interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		f.sent++
		b := binary.BigEndian.AppendUint64(nil, f.sent)
		f.mu.Unlock()
		_, _ = f.conn.Write(b) // what fails is lost
	}
}

func (f *flow) receive() {
	b := make([]byte, 64)
	for {
		n, err := f.conn.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 8 {
			continue
		}
		f.note(binary.BigEndian.Uint64(b))
	}
}

func (f *flow) note(number uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.gap = max(f.gap, now.Sub(f.last))
	f.last = now
	if number <= f.inRow {
		return
	}
	f.answered[number] = struct{}{}
	for {
		if _, ok := f.answered[f.inRow+1]; !ok {
			return
		}
		f.inRow++
		delete(f.answered, f.inRow)
	}
}

func (f *flow) counts() (sent, lost uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent, f.sent - f.inRow - uint64(len(f.answered))
}

func (f *flow) finish() FlowResult {
	f.sending.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	sent, lost := f.counts()
	for deadline := time.Now().Add(2 * time.Second); lost > 0 && time.Now().Before(deadline); sent, lost = f.counts() {
		<-tick.C
	}
	_ = f.conn.Close()
	f.receiving.Wait()
	return FlowResult{From: f.from, To: f.to, Family: f.family, Sent: sent, Lost: lost, LongestGap: f.gap}
}
