package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is an Ethernet frame as an interface had it.
type Frame struct {
	Data     []byte // valid during the call only
	Outgoing bool   // sent by the interface, else received
}

// MACs returns the two addresses of the Ethernet header.
func (f Frame) MACs() (source, dest [6]byte) { return [6]byte(f.Data[6:12]), [6]byte(f.Data[0:6]) }

// EtherType returns the type of the Ethernet header.
func (f Frame) EtherType() uint16 { return binary.BigEndian.Uint16(f.Data[12:14]) }

// Addrs returns the addresses of the outermost IP header, invalid ones if the
// frame has none.
func (f Frame) Addrs() (source, dest netip.Addr) {
	const header = 14
	b := f.Data[header:]
	switch {
	case f.EtherType() == unix.ETH_P_IP && len(b) >= 20:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case f.EtherType() == unix.ETH_P_IPV6 && len(b) >= 40:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	}
	return netip.Addr{}, netip.Addr{}
}

// Protocol returns the protocol that the outermost IP header leads to, 0 if
// there is none.
func (f Frame) Protocol() byte {
	switch source, _ := f.Addrs(); {
	case !source.IsValid():
		return 0
	case source.Is4():
		return f.Data[14+9]
	default:
		return f.Data[14+6]
	}
}

// Capture sees every frame of all interfaces of a namespace.
type Capture struct {
	fd      int
	each    func(Frame)
	stopped atomic.Bool
	done    sync.WaitGroup
	err     error
}

// Capture calls each for every frame of a host, a workload, or the fabric,
// until it is stopped. The calls come one after the other.
func (l *Lab) Capture(where string, each func(Frame)) (*Capture, error) {
	c := &Capture{fd: -1, each: each}
	err := l.In(where, func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	})
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}))
	}
	if err != nil {
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
		return nil, fmt.Errorf("capture in %s: %w", where, err)
	}
	c.done.Go(c.run)
	return c, nil
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

// drainTime bounds how long frames that came before the stop are still taken.
const drainTime = 500 * time.Millisecond

func (c *Capture) run() {
	b := make([]byte, 1<<16)
	var end time.Time
	for {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if c.stopped.Load() {
			if end.IsZero() {
				end = time.Now().Add(drainTime)
			}
			if errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
				return
			}
		}
		switch link, ok := from.(*unix.SockaddrLinklayer); {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		case err != nil:
			c.err = err
			return
		case ok && n >= 14 && link.Hatype == unix.ARPHRD_ETHER:
			c.each(Frame{Data: b[:n], Outgoing: link.Pkttype == unix.PACKET_OUTGOING})
		}
	}
}

// Stop ends the capture when what came before was seen. It fails if anything
// was missed.
func (c *Capture) Stop() error {
	c.stopped.Store(true)
	c.done.Wait()
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	_ = unix.Close(c.fd)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%d frames were missed", stats.Drops)
	}
	if err = errors.Join(c.err, err); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}
