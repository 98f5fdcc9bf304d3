package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Attempt is traffic from one workload to another that policy should stop. It
// sends by UDP, ICMP and TCP over both families, and looks at every packet that
// the other has, so that not one passes unseen.
type Attempt struct {
	from, to Workload
	capture  *Capture
	conns    []net.PacketConn
	cancel   context.CancelFunc
	sending  sync.WaitGroup
	sent     atomic.Uint64
	arrived  atomic.Uint64
}

// AttemptResult is what became of an attempt.
type AttemptResult struct {
	From, To      string
	Sent, Arrived uint64
}

// Attempt starts an attempt that sends to all at each interval.
func (l *Lab) Attempt(from, to string, interval time.Duration) (*Attempt, error) {
	a := &Attempt{}
	var err error
	if a.from, err = l.workload(from); err != nil {
		return nil, err
	}
	if a.to, err = l.workload(to); err != nil {
		return nil, err
	}
	if a.capture, err = l.Capture(to, a.see); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	for _, dest := range []netip.Addr{a.to.IPv4, a.to.IPv6} {
		if err := a.start(ctx, l.namespace(from), dest, interval); err != nil {
			_, _ = a.Stop()
			return nil, fmt.Errorf("attempt from %s to %s: %w", from, dest, err)
		}
	}
	return a, nil
}

func (a *Attempt) start(ctx context.Context, namespace string, to netip.Addr, interval time.Duration) error {
	icmp, echo := "ip4:icmp", []byte{8, 0, 0, 0, 0, 1, 0, 1}
	if to.Is6() {
		icmp, echo = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 1, 0, 1} // the kernel adds the sum
	} else {
		binary.BigEndian.PutUint16(echo[2:], checksum(echo))
	}
	send := func(network string, at net.Addr, message []byte) error {
		var c net.PacketConn
		err := in(namespace, func() (err error) {
			c, err = net.ListenPacket(network, "")
			return err
		})
		if err != nil {
			return err
		}
		a.conns = append(a.conns, c)
		a.each(ctx, interval, func() { _, _ = c.WriteTo(message, at) })
		return nil
	}
	if err := send(icmp, &net.IPAddr{IP: to.AsSlice()}, echo); err != nil {
		return err
	}
	udp := "udp" + icmp[2:3]
	if err := send(udp, &net.UDPAddr{IP: to.AsSlice(), Port: streamPort}, []byte("attempt")); err != nil {
		return err
	}
	tcp := netip.AddrPortFrom(to, streamPort).String()
	a.each(ctx, max(interval, 50*time.Millisecond), func() {
		if c, err := dialIn(ctx, namespace, "tcp", tcp, 50*time.Millisecond); err == nil {
			_ = c.Close()
		}
	})
	return nil
}

func (a *Attempt) each(ctx context.Context, interval time.Duration, send func()) {
	a.sending.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			send()
			a.sent.Add(1)
		}
	})
}

func (a *Attempt) see(f Frame) {
	if f.Outgoing {
		return
	}
	if source, _ := f.Addrs(); source == a.from.IPv4 || source == a.from.IPv6 {
		a.arrived.Add(1)
	}
}

// Arrived is how many packets have arrived so far.
func (a *Attempt) Arrived() uint64 { return a.arrived.Load() }

// Sent is how many were sent so far.
func (a *Attempt) Sent() uint64 { return a.sent.Load() }

// Stop ends the attempt.
func (a *Attempt) Stop() (AttemptResult, error) {
	a.cancel()
	a.sending.Wait()
	for _, c := range a.conns {
		_ = c.Close()
	}
	err := a.capture.Stop()
	return AttemptResult{From: a.from.Name, To: a.to.Name, Sent: a.sent.Load(), Arrived: a.arrived.Load()}, err
}
