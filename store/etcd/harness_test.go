package etcd

import (
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"tortie/store"
	"tortie/store/storetest"
)

// serve starts a server that ends with the test.
func serve(t *testing.T, cfg ServeConfig) *Server {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = dataDir(t)
	}
	if cfg.Listen == nil {
		cfg.Listen = []string{"http://127.0.0.1:0"}
	}
	cfg.Log = testLog(t)
	s, err := Serve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	cfg.Log = testLog(t)
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// dataDir returns a directory that the server makes itself, for it alone.
func dataDir(t *testing.T) string { return filepath.Join(t.TempDir(), "data") }

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// compact discards all history but the present.
func compact(t *testing.T, s *Store) {
	t.Helper()
	_, revision, err := s.List(t.Context(), "/none")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.etcd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Compact(t.Context(), revision, clientv3.WithCompactPhysical())
	if err != nil && err.Error() != "etcdserver: mvcc: required revision has been compacted" {
		t.Fatal(err)
	}
}

// proxy passes connections on to a server, and can be cut.
type proxy struct {
	target   string
	listener net.Listener

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: target, listener: l, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.pass(c)
		}
	}()
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) pass(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.DialTimeout("tcp", p.target, time.Second)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	p.mu.Lock()
	if p.down {
		p.mu.Unlock()
		return
	}
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
		close(done)
	}()
	_, _ = io.Copy(client, server)
	_ = client.Close()
	<-done
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// cut ends all connections and lets no new one through until mend.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

func harness(t *testing.T) storetest.Harness {
	server := serve(t, ServeConfig{})
	p := newProxy(t, server.etcd.Clients[0].Addr().String())
	other := open(t, Config{Endpoints: server.Endpoints()})
	return storetest.Harness{
		Store:      open(t, Config{Endpoints: []string{p.endpoint()}}),
		Other:      other,
		Disconnect: p.cut,
		Reconnect:  p.mend,
		Compact:    func() { compact(t, other) },
		Expire:     func(store.Lease) {}, // time does it
	}
}
