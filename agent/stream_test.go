package agent

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream is UDP from one socket to another at a bounded rate. Its datagrams are
// numbered, so that each that is lost, and each that passes where none may, is
// known.
type stream struct {
	t      *testing.T
	name   string
	tx, rx *net.UDPConn
	to     netip.AddrPort

	mu   sync.Mutex
	sent int    // number of the last datagram; it may be under way to the kernel
	seen []bool // by number
	got  int
	mark int

	stopped     chan struct{}
	sending     sync.WaitGroup
	receiving   sync.WaitGroup
	begun, over time.Time
}

// stream sends from one guest to another until the test ends or finish is
// called.
func (h *testHost) stream(from, to *guest, family, port, rate int) *stream {
	h.t.Helper()
	s := h.newStream(fmt.Sprintf("%s by %s to %s port %d", from.addr(family), to.dialled(family), to.addr(family), port))
	s.tx = h.udp(from, family, 0)
	s.rx = h.udp(to, family, port)
	s.to = netip.AddrPortFrom(netip.MustParseAddr(to.dialled(family)), uint16(port))
	s.start(rate)
	return s
}

// replyStream is what a server sends on a connection that the client opened.
func (h *testHost) replyStream(client, server *guest, family, port, rate int) *stream {
	h.t.Helper()
	s := h.newStream(fmt.Sprintf("replies of %s port %d to %s", server.addr(family), port, client.addr(family)))
	s.tx = h.udp(server, family, port)
	s.rx = h.udp(client, family, 0)
	if _, err := s.rx.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(netip.MustParseAddr(server.dialled(family)), uint16(port))); err != nil {
		h.t.Fatal(err)
	}
	_ = s.tx.SetReadDeadline(time.Now().Add(timeout))
	_, from, err := s.tx.ReadFromUDPAddrPort(make([]byte, 10))
	if err != nil {
		h.t.Fatalf("%s: the request: %v", s.name, err)
	}
	s.to = from
	s.start(rate)
	return s
}

func (h *testHost) newStream(name string) *stream {
	return &stream{t: h.t, name: name, stopped: make(chan struct{}), seen: make([]bool, 1, 1<<16)}
}

// udp opens a socket in a guest. It is not connected, so that what comes back
// by ICMP does not keep it from sending.
func (h *testHost) udp(g *guest, family, port int) (c *net.UDPConn) {
	h.t.Helper()
	var err error
	g.ns.Do(func() {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(g.addr(family)), uint16(port))))
	})
	if err == nil {
		var raw interface{ Control(func(uintptr)) error }
		if raw, err = c.SyscallConn(); err == nil {
			ctl := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			})
			err = errors.Join(ctl, err)
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *stream) start(rate int) {
	s.begun = time.Now()
	s.sending.Go(func() { s.send(rate) })
	s.receiving.Go(s.receive)
	s.t.Cleanup(s.halt)
}

// send is never in more of a hurry than burst: what the receiving side cannot
// queue would count as lost.
func (s *stream) send(rate int) {
	const burst = 64
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	since, count := time.Now(), 0
	for {
		select {
		case <-s.stopped:
			return
		case <-tick.C:
		}
		due := int(time.Since(since).Seconds()*float64(rate)) - count
		if due > burst {
			since, count, due = time.Now(), 0, burst
		} else {
			count += due
		}
		for range due {
			s.mu.Lock()
			s.sent++
			b := binary.BigEndian.AppendUint64(nil, uint64(s.sent))
			s.mu.Unlock()
			_, _ = s.tx.WriteToUDPAddrPort(b, s.to) // what fails is lost
		}
	}
}

func (s *stream) receive() {
	b := make([]byte, 64)
	for {
		n, _, err := s.rx.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			s.note(int(binary.BigEndian.Uint64(b)))
		}
	}
}

func (s *stream) note(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number >= len(s.seen) {
		s.seen = append(s.seen, false)
	}
	if !s.seen[number] {
		s.seen[number] = true
		s.got++
	}
}

func (s *stream) counts() (sent, got int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.got
}

// flows waits until some datagrams that are sent from now on have arrived.
func (s *stream) flows() {
	s.t.Helper()
	sent, _ := s.counts()
	s.until("to flow", func() bool { return s.passed(sent) > 20 })
}

// whole waits until all that was sent so far has arrived.
func (s *stream) whole() {
	s.t.Helper()
	sent, _ := s.counts()
	lost := func() int { return sent - s.passed(0) + s.passed(sent) }
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Second); lost() > 0; <-tick.C {
		if time.Now().After(limit) {
			s.t.Errorf("%s: %d of %d datagrams lost: %s", s.name, lost(), sent, s.gaps())
			return
		}
	}
}

// forbid says that no datagram that is sent from now on may arrive.
func (s *stream) forbid() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark = s.sent
}

// quiet waits until many more have been sent, and fails the test if one of
// those that forbid spoke of has arrived.
func (s *stream) quiet() {
	s.t.Helper()
	sent, _ := s.counts()
	s.until("to go on", func() bool { now, _ := s.counts(); return now > max(sent, s.mark)+150 })
	if n := s.passed(s.mark); n > 0 {
		s.t.Errorf("%s: %d datagrams passed that must not", s.name, n)
	}
}

// passed counts those after a number that arrived.
func (s *stream) passed(after int) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := after + 1; i < len(s.seen); i++ {
		if s.seen[i] {
			n++
		}
	}
	return n
}

func (s *stream) until(what string, cond func() bool) {
	s.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(timeout); !cond(); {
		select {
		case <-tick.C:
		case <-limit:
			sent, got := s.counts()
			s.t.Fatalf("%s: waited %s for it %s; %d sent, %d received", s.name, timeout, what, sent, got)
		}
	}
}

func (s *stream) halt() {
	select {
	case <-s.stopped:
		return
	default:
	}
	close(s.stopped)
	s.sending.Wait()
	s.over = time.Now()
	_, _ = s.tx.Close(), s.rx.Close()
	s.receiving.Wait()
}

// complete ends the stream and fails the test if a datagram was lost.
func (s *stream) complete() {
	s.t.Helper()
	close(s.stopped)
	s.sending.Wait()
	s.over = time.Now()
	// What is under way arrives within a moment, or not at all.
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	sent, got := s.counts()
	for limit := s.over.Add(time.Second); got < sent && time.Now().Before(limit); sent, got = s.counts() {
		<-tick.C
	}
	_, _ = s.tx.Close(), s.rx.Close()
	s.receiving.Wait()
	rate := float64(sent) / s.over.Sub(s.begun).Seconds()
	if got != sent {
		s.t.Errorf("%s: %d of %d datagrams lost at %.0f/s: %s", s.name, sent-got, sent, rate, s.gaps())
		return
	}
	s.t.Logf("%s: %d datagrams at %.0f/s, none lost", s.name, sent, rate)
}

// never ends the stream and fails the test if a datagram arrived.
func (s *stream) never() {
	s.t.Helper()
	s.quiet()
	s.halt()
	if sent, got := s.counts(); s.mark == 0 && got > 0 {
		s.t.Errorf("%s: %d of %d datagrams passed that must not", s.name, got, sent)
	}
}

// gaps lists the runs of datagrams that did not arrive.
func (s *stream) gaps() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var runs []string
	arrived := func(i int) bool { return i < len(s.seen) && s.seen[i] }
	for i := 1; i <= s.sent; i++ {
		if arrived(i) {
			continue
		}
		from := i
		for i <= s.sent && !arrived(i) {
			i++
		}
		if runs = append(runs, fmt.Sprintf("%d–%d", from, i-1)); len(runs) == 10 {
			return strings.Join(append(runs, "…"), " ")
		}
	}
	return strings.Join(runs, " ")
}

var meters int

// meter counts, where it comes into the guest's namespace, what matches.
func (h *testHost) meter(g *guest, match string) func() int {
	h.t.Helper()
	return h.meterAt(g, "prerouting", match)
}

// meterAt counts at another hook.
func (h *testHost) meterAt(g *guest, hook, match string) func() int {
	h.t.Helper()
	meters++
	table := fmt.Sprintf("inet meter%d", meters)
	g.ns.Run(h.t, "nft", fmt.Sprintf("add table %[1]s; add chain %[1]s in { type filter hook %[3]s priority -450; }; add rule %[1]s in %[2]s counter", table, match, hook))
	return func() int {
		h.t.Helper()
		var out struct {
			Nftables []struct {
				Rule struct {
					Expr []struct{ Counter *struct{ Packets int } }
				}
			}
		}
		if err := json.Unmarshal([]byte(g.ns.Run(h.t, "nft", "-j", "list chain "+table+" in")), &out); err != nil {
			h.t.Fatal(err)
		}
		for _, o := range out.Nftables {
			for _, e := range o.Rule.Expr {
				if e.Counter != nil {
					return e.Counter.Packets
				}
			}
		}
		h.t.Fatalf("%s has no counter", table)
		return 0
	}
}

// missing counts those after a number, and some time ago, that did not arrive.
func (s *stream) missing(after int) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.seen) - 1
	for last > after && !s.seen[last] {
		last--
	}
	for i := after + 1; i < last; i++ {
		if !s.seen[i] {
			n++
		}
	}
	return n
}
