package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// The protocols that can be probed.
const (
	ICMP = "icmp"
	TCP  = "tcp"
	UDP  = "udp"
)

// responder answers on the ports of one workload: it echoes.
type responder struct {
	closers []io.Closer
	done    sync.WaitGroup
}

// respond starts a responder in a namespace. ICMP needs none: the kernel
// answers.
func respond(namespace string, tcp, udp []uint16) (*responder, error) {
	r := &responder{}
	err := in(namespace, func() error {
		config := net.ListenConfig{}
		config.SetMultipathTCP(false)
		for _, port := range tcp {
			l, err := config.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			r.closers = append(r.closers, l)
			r.done.Go(func() { r.echoTCP(l) })
		}
		for _, port := range udp {
			c, err := config.ListenPacket(context.Background(), "udp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			r.closers = append(r.closers, c)
			r.done.Go(func() { echoUDP(c) })
		}
		return nil
	})
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("answer in %s: %w", namespace, err)
	}
	return r, nil
}

func (r *responder) stop() {
	for _, c := range r.closers {
		_ = c.Close()
	}
	r.done.Wait()
}

func (r *responder) echoTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		r.done.Go(func() {
			defer func() { _ = c.Close() }()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.Copy(c, c)
		})
	}
}

func echoUDP(c net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(b[:n], from)
		}
	}
}

// probe sends from a namespace to an address and reports whether an answer to
// just this came back in time. Port is not used by ICMP.
func probe(ctx context.Context, namespace, protocol string, to netip.AddrPort, timeout time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var token [16]byte
	_, _ = rand.Read(token[:]) // never fails
	var err error
	switch protocol {
	case TCP:
		err = probeTCP(ctx, namespace, to, token[:])
	case UDP:
		err = probeUDP(ctx, namespace, to, token[:])
	case ICMP:
		err = probeICMP(ctx, namespace, to.Addr(), token[:])
	default:
		return false, fmt.Errorf("probe: unknown protocol %q", protocol)
	}
	if err == nil || unanswered(err) {
		return err == nil, nil
	}
	return false, fmt.Errorf("probe %s %s from %s: %w", protocol, to, namespace, err)
}

// unanswered tells what the network did from what went wrong with the probe.
func unanswered(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
}

func probeTCP(ctx context.Context, namespace string, to netip.AddrPort, token []byte) error {
	c, err := dialIn(ctx, namespace, "tcp", to.String(), 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	if _, err := c.Write(token); err != nil {
		return err
	}
	answer := make([]byte, len(token))
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, token) {
		return errors.New("the answer is not to the question")
	}
	return nil
}

// resend is after how long a datagram is sent again.
const resend = 300 * time.Millisecond

func probeUDP(ctx context.Context, namespace string, to netip.AddrPort, token []byte) error {
	c, err := dialIn(ctx, namespace, "udp", to.String(), 0)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	send := func() error { _, err := c.Write(token); return err }
	read := func(b []byte) (bool, error) {
		n, err := c.Read(b)
		return bytes.Equal(b[:n], token), err
	}
	return exchange(ctx, c, send, read)
}

// exchange sends until there is an answer or time is over.
func exchange(ctx context.Context, c interface{ SetReadDeadline(time.Time) error }, send func() error, read func([]byte) (bool, error)) error {
	b := make([]byte, 2048)
	for ctx.Err() == nil {
		if err := send(); err != nil && !unanswered(err) {
			return err
		}
		until := time.Now().Add(resend)
		if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
			until = deadline
		}
		if err := c.SetReadDeadline(until); err != nil {
			return err
		}
		for {
			answered, err := read(b)
			if answered {
				return nil
			}
			if err != nil && !unanswered(err) {
				return err
			}
			if err != nil && time.Now().After(until) {
				break
			}
		}
	}
	return ctx.Err()
}

func probeICMP(ctx context.Context, namespace string, to netip.Addr, token []byte) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c net.PacketConn
	err := in(namespace, func() (err error) {
		c, err = net.ListenPacket(network, "")
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	message := append([]byte{request, 0, 0, 0}, token...) // the token is id and sequence number too
	if to.Is4() {
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	send := func() error { _, err := c.WriteTo(message, &net.IPAddr{IP: to.AsSlice()}); return err }
	read := func(b []byte) (bool, error) {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return false, err
		}
		sender, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		return n > 4 && b[0] == reply && bytes.Equal(b[4:n], token) && sender.Unmap() == to, nil
	}
	return exchange(ctx, c, send, read)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
