package lab

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// proxy is a port on the caller's loopback that leads to an address within a
// namespace.
type proxy struct {
	namespace string
	to        netip.AddrPort
	listener  net.Listener

	mu     sync.Mutex // guards conns
	conns  map[net.Conn]struct{}
	closed bool
	done   sync.WaitGroup
}

func newProxy(namespace string, to netip.AddrPort) (*proxy, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{namespace: namespace, to: to, listener: l, conns: map[net.Conn]struct{}{}}
	p.done.Go(p.serve)
	return p, nil
}

func (p *proxy) url() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) serve() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return // closed, or there is no more to be had from it
		}
		p.done.Go(func() { p.forward(c) })
	}
}

func (p *proxy) forward(c net.Conn) {
	defer func() { _ = c.Close() }()
	far, err := dialIn(context.Background(), p.namespace, "tcp", p.to.String(), 5*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	if !p.add(c, far) {
		return
	}
	defer p.remove(c, far)
	var one sync.WaitGroup
	one.Go(func() {
		_, _ = io.Copy(far, c)
		_ = far.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(c, far)
	_ = c.Close()
	one.Wait()
}

func (p *proxy) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

func (p *proxy) remove(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

func (p *proxy) close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.done.Wait()
	return err
}

// dialIn connects from within a namespace.
func dialIn(ctx context.Context, namespace, network, address string, timeout time.Duration) (c net.Conn, err error) {
	err = in(namespace, func() error {
		d := net.Dialer{Timeout: timeout}
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}
