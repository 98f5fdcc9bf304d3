package main

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	trafficPort = 5001
	udpSlice    = 20 * time.Millisecond
	tcpSlice    = 150 * time.Millisecond
	tcpWarmup   = 30 * time.Millisecond
	mostPackets = 200_000 // of one slice
	sliceConns  = 200
	batchSize   = 64
	payloadSize = 18 // of the smallest Ethernet frame
	socketWait  = 2 * time.Second
)

// at is an address of the end, with a port.
func (e *end) at(v6 bool, port uint16) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(e.v6, port)
	}
	return netip.AddrPortFrom(e.v4, port)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// limited makes a socket in the namespace of the calling thread that waits for
// nothing longer than socketWait.
func limited(kind int, v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	limit := unix.NsecToTimeval(int64(socketWait))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bound is limited with an address.
func bound(kind int, local netip.AddrPort) (int, error) {
	fd, err := limited(kind, local.Addr().Is6())
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if local.Addr().Is4() { // the probe for spoofing binds another's
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(local))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("socket on %s: %w", local, err)
	}
	return fd, nil
}

// again repeats a call that a signal interrupted, as those do that have a time
// limit. The runtime sends its threads signals.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pair makes a UDP socket at each of two ends, the first connected to the
// second.
func pair(from *end, source netip.AddrPort, to *end, destination netip.AddrPort) (out, in int, err error) {
	err = inside(to.ns, func() (err error) { in, err = bound(unix.SOCK_DGRAM, destination); return err })
	if err != nil {
		return -1, -1, err
	}
	err = inside(from.ns, func() (err error) {
		if out, err = bound(unix.SOCK_DGRAM, source); err != nil {
			return err
		}
		return unix.Connect(out, sockaddr(destination))
	})
	if err != nil {
		_ = unix.Close(in)
		return -1, -1, err
	}
	return out, in, nil
}

// flood sends small packets of one UDP flow to the server, where replied after
// the server answered one, and returns how many arrive in a second.
func (t *triple) flood(v6, replied bool) (float64, error) {
	out, in, err := pair(t.client, t.client.at(v6, 0), t.server, t.server.at(v6, trafficPort))
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(out); _ = unix.Close(in) }()
	if replied {
		if err := exchange(out, in); err != nil {
			return 0, fmt.Errorf("no reply: %w", err)
		}
	}
	// The server's link counts what arrives; its socket is to cost little.
	none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(in, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]}); err != nil {
		return 0, fmt.Errorf("filter: %w", err)
	}
	b := newBatch()
	before, err := t.arrived()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	for sent := 0; sent < mostPackets && time.Since(begin) < udpSlice; {
		n, err := b.send(out)
		if err != nil {
			return 0, err
		}
		sent += n
	}
	took := time.Since(begin)
	after, err := t.arrived()
	if err == nil && after == before {
		err = errors.New("nothing arrived")
	}
	return float64(after-before) / took.Seconds(), err
}

// arrived is how many packets the server's link has received.
func (t *triple) arrived() (uint64, error) {
	l, err := t.server.links.LinkByName(insideTap)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Statistics.RxPackets, nil
}

// exchange sends a packet to the server and one back.
func exchange(out, in int) error {
	var buf [64]byte
	if _, err := unix.Write(out, buf[:payloadSize]); err != nil {
		return err
	}
	var from unix.Sockaddr
	err := again(func() (err error) { _, from, err = unix.Recvfrom(in, buf[:], 0); return err })
	if err == nil {
		err = unix.Sendto(in, buf[:payloadSize], 0, from)
	}
	if err == nil {
		err = again(func() error { _, err := unix.Read(out, buf[:]); return err })
	}
	return err
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

// batch is what one sendmmsg sends.
type batch struct {
	messages [batchSize]message
	payload  [payloadSize]byte
	vector   unix.Iovec
}

func newBatch() *batch {
	b := &batch{}
	b.vector.Base = &b.payload[0]
	b.vector.SetLen(payloadSize)
	for i := range b.messages {
		b.messages[i].header.Iov = &b.vector
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

func (b *batch) send(fd int) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[0])), batchSize, 0, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EINTR, unix.ENOBUFS, unix.EAGAIN:
		return 0, nil
	}
	return 0, fmt.Errorf("sendmmsg: %w", errno)
}

// listener accepts TCP connections at the server, and gives each to a handler
// in a goroutine of its own or, where that is nil, closes it.
type listener struct {
	fd      int
	running sync.WaitGroup
}

func (t *triple) listen(v6 bool, handle func(fd int)) (*listener, error) {
	l := &listener{}
	err := inside(t.server.ns, func() (err error) {
		l.fd, err = bound(unix.SOCK_STREAM, t.server.at(v6, trafficPort))
		return err
	})
	if err == nil {
		err = unix.Listen(l.fd, 4096)
	}
	if err != nil {
		return nil, err
	}
	l.running.Go(func() {
		for {
			fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
				continue
			case err != nil:
				return // shut down
			case handle == nil:
				_ = unix.Close(fd)
			default:
				l.running.Go(func() { handle(fd) })
			}
		}
	})
	return l, nil
}

// close ends the accepting and waits for the handlers.
func (l *listener) close() {
	_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
	l.running.Wait()
	_ = unix.Close(l.fd)
}

func (t *triple) connect(v6 bool) (int, error) {
	fd, err := limited(unix.SOCK_STREAM, v6)
	if err != nil {
		return -1, err
	}
	to := sockaddr(t.server.at(v6, trafficPort))
	if err := again(func() error { return unix.Connect(fd, to) }); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// connections opens and closes one TCP connection after the other and returns
// how many in a second. It makes as many whatever that takes: each leaves a port
// of the client in use for a while, and the next one looks longer for a free one.
func (t *triple) connections() (float64, error) {
	l, err := t.listen(false, nil)
	if err != nil {
		return 0, err
	}
	defer l.close()
	rate := 0.0
	err = inside(t.client.ns, func() error {
		begin := time.Now()
		for range sliceConns {
			fd, err := t.connect(false)
			if err != nil {
				return err
			}
			_ = unix.Close(fd)
		}
		rate = sliceConns / time.Since(begin).Seconds()
		return nil
	})
	return rate, err
}

// stream sends as much as TCP takes on a number of connections and returns how
// many bytes the server reads in a second.
func (t *triple) stream(streams int) (float64, error) {
	var read atomic.Int64
	l, err := t.listen(false, func(fd int) {
		defer func() { _ = unix.Close(fd) }()
		buf := make([]byte, 256<<10)
		for {
			n := 0
			err := again(func() (err error) { n, err = unix.Read(fd, buf); return err })
			if n <= 0 || err != nil {
				return
			}
			read.Add(int64(n))
		}
	})
	if err != nil {
		return 0, err
	}
	defer l.close()
	var writers sync.WaitGroup
	defer writers.Wait()
	for range streams {
		var fd int
		if err := inside(t.client.ns, func() (err error) { fd, err = t.connect(false); return err }); err != nil {
			return 0, err
		}
		defer func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }()
		writers.Go(func() {
			defer func() { _ = unix.Close(fd) }()
			buf := make([]byte, 128<<10)
			for {
				err := again(func() error { _, err := unix.SendmsgN(fd, buf, nil, nil, unix.MSG_NOSIGNAL); return err })
				if err != nil {
					return // shut down
				}
			}
		})
	}
	<-time.After(tcpWarmup)
	before, begin := read.Load(), time.Now()
	<-time.After(tcpSlice)
	after, took := read.Load(), time.Since(begin)
	if after == before {
		return 0, errors.New("nothing arrived")
	}
	return float64(after-before) / took.Seconds(), nil
}
