package etcd

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tortie/store"
	"tortie/store/storetest"
)

// freeAddress returns a local address for a server that stops and comes back.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func restartable(t *testing.T, dir, address string) *Server {
	t.Helper()
	s, err := Serve(ServeConfig{Dir: dir, Listen: []string{"http://" + address}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestServerRestarts: the server stops and starts on the same data directory
// during a watch. Promise F12.
func TestServerRestarts(t *testing.T) {
	dir, address := dataDir(t), freeAddress(t)
	server := restartable(t, dir, address)
	s := open(t, Config{Endpoints: []string{address}})
	for i := range 10 {
		storetest.Put(t, s, fmt.Sprintf("/a/%d", i), "0")
	}
	f := storetest.Follow(t, s, "/a/", "/b/")
	f.InSync()
	f.Events()
	for round := range 2 {
		begun := time.Now()
		server.Close()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("closing took %v, though only streams were open", took)
		}
		f.Until("disconnection", func() bool { return !f.Last().Connected })
		server = restartable(t, dir, address)
		f.Until("connection", func() bool { return f.Last().Connected })
		f.Reaches(storetest.Put(t, s, "/a/0", fmt.Sprint(round)))
		if n := f.Events(); n != 1 {
			t.Errorf("%d events after the restart, want 1", n)
		}
	}
	server.Close()
}

// TestServerGone: keys change while the client cannot reach the server for
// longer than every time-out, with and without a compaction at the end.
// Promise B15.
func TestServerGone(t *testing.T) {
	server := serve(t, ServeConfig{})
	p := newProxy(t, server.etcd.Clients[0].Addr().String())
	other := open(t, Config{Endpoints: server.Endpoints()})
	s := open(t, Config{Endpoints: []string{p.endpoint()}, DialTimeout: 200 * time.Millisecond, RequestTimeout: 200 * time.Millisecond})
	for i := range 100 {
		storetest.Put(t, other, fmt.Sprintf("/a/%02d", i), "0")
	}
	f := storetest.Follow(t, s, "/a/")
	f.InSync()
	f.Events()
	p.cut()
	f.Until("disconnection", func() bool { return !f.Last().Connected })
	if _, err := s.Commit(t.Context(), store.Op{Path: "/x", Value: []byte("1"), If: store.AnyRevision}); err == nil {
		t.Error("a write succeeded without a connection")
	}
	var last int64
	for begun := time.Now(); time.Since(begun) < time.Second; {
		for i := range 50 {
			last = storetest.Put(t, other, fmt.Sprintf("/a/%02d", i), fmt.Sprint(last))
		}
	}
	storetest.Delete(t, other, "/a/99")
	compact(t, other)
	last = storetest.Put(t, other, "/a/new", "1")
	p.mend()
	f.Reaches(last)
	if n := f.Events(); n != 52 {
		t.Errorf("%d events, want 52: 50 changed, one gone, one new", n)
	}
	if want, got := len(storetest.List(t, other, "/a/")), len(f.Values()); got != want {
		t.Errorf("%d keys, want %d", got, want)
	}
}

// TestCompactionDuringSnapshot: the rest of the listing is compacted away while
// the consumer takes its time over the first page.
func TestCompactionDuringSnapshot(t *testing.T) {
	server := serve(t, ServeConfig{})
	s := open(t, Config{Endpoints: server.Endpoints()})
	var ops []store.Op
	for i := range 5 * pageKeys {
		ops = append(ops, store.Op{Path: fmt.Sprintf("/a/%05d", i), Value: []byte("0"), If: 0})
	}
	for _, b := range store.Batches(ops) {
		storetest.Commit(t, s, b...)
	}
	f := storetest.Follow(t, s, "/a/")
	for len(f.Values()) == 0 {
		if err := f.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if f.Last().InSync {
		t.Fatal("the snapshot did not wait for its consumer")
	}
	storetest.Delete(t, s, "/a/00000")
	storetest.Delete(t, s, fmt.Sprintf("/a/%05d", len(ops)-1))
	last := storetest.Put(t, s, "/a/00001", "1")
	compact(t, s)
	f.Reaches(last)
	want := storetest.List(t, s, "/a/")
	if got := f.Values(); !maps.Equal(want, got) || f.Events() > len(ops)+10 {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
}

// TestReplacedStore: another server with other data takes the place of the
// first, with a lower revision and then with a higher one.
func TestReplacedStore(t *testing.T) {
	address := freeAddress(t)
	server := restartable(t, dataDir(t), address)
	s := open(t, Config{Endpoints: []string{address}})
	for i := range 20 {
		storetest.Put(t, s, fmt.Sprintf("/a/%d", i), "first")
	}
	ctx := t.Context()
	w := s.Watch(ctx, "/a/")
	keys := map[string]string{}
	until := func(what string, done func(store.Batch) bool) {
		t.Helper()
		for {
			b, err := w.Next(ctx)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, ev := range b.Events {
				if ev.Deleted {
					delete(keys, ev.Path)
				} else {
					keys[ev.Path] = string(ev.Value)
				}
			}
			if done(b) {
				return
			}
		}
	}
	until("first", func(b store.Batch) bool { return b.InSync })
	for n, writes := range []int{3, 40} {
		server.Close()
		until("disconnection", func(b store.Batch) bool { return !b.Connected })
		dir := dataDir(t)
		elsewhere := freeAddress(t)
		server = restartable(t, dir, elsewhere) // filled before the watcher sees it
		filler := open(t, Config{Endpoints: []string{elsewhere}})
		for i := range writes {
			storetest.Put(t, filler, fmt.Sprintf("/a/%d", i), fmt.Sprint("store ", n))
		}
		server.Close()
		server = restartable(t, dir, address)
		until("the other store's keys", func(store.Batch) bool {
			if len(keys) != writes {
				return false
			}
			for _, v := range keys {
				if v != fmt.Sprint("store ", n) {
					return false
				}
			}
			return true
		})
	}
	server.Close()
}

func TestServeErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	for want, cfg := range map[string]ServeConfig{
		"no data directory":            {},
		"listen address":               {Dir: dataDir(t), Listen: []string{"http://[::1"}},
		"address already in use":       {Dir: dataDir(t), Listen: []string{"http://" + busy.Addr().String()}},
		"key/cert":                     {Dir: dataDir(t), Listen: []string{"https://127.0.0.1:0"}},
		file:                           {Dir: file, Listen: []string{"http://127.0.0.1:0"}},
		"unknown auto-compaction-mode": {Dir: dataDir(t), Listen: []string{"http://127.0.0.1:0"}, CompactionMode: "never"},
		"no such file or director":     {Dir: dataDir(t), CertFile: "/none", KeyFile: "/none"},
	} {
		s, err := Serve(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want one with %q", err, want)
		}
	}
}

func TestDataDirectoryIsSmall(t *testing.T) {
	dir := dataDir(t)
	serve(t, ServeConfig{Dir: dir})
	var size int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size()
		}
		return nil
	})
	if err != nil || size == 0 || size > 40<<20 {
		t.Errorf("an empty data directory has %d MiB, error %v; want at most 40", size>>20, err)
	}
}

// TestUserAndPassword: the store is told apart from one that is absent; a
// watch goes on when the token has run out with the server's restart.
func TestUserAndPassword(t *testing.T) {
	dir, address := dataDir(t), freeAddress(t)
	// Checking a password takes the server seconds where it runs slowly.
	cfg := Config{
		Endpoints: []string{address}, Username: "agent", Password: "secret",
		DialTimeout: 20 * time.Second, RequestTimeout: 20 * time.Second,
	}
	early := open(t, cfg)
	f := storetest.Follow(t, early, "/a/")
	f.Until("word that there is no connection", func() bool { return !f.Last().Connected })

	server := restartable(t, dir, address)
	root := open(t, Config{Endpoints: []string{address}})
	c, err := root.etcd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { _, err := c.UserAdd(t.Context(), "root", "r"); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := c.UserAdd(t.Context(), "agent", "secret"); return err },
		func() error { _, err := c.RoleAdd(t.Context(), "reader"); return err },
		func() error {
			_, err := c.RoleGrantPermission(t.Context(), "reader", "/a/", "/a0", 2)
			return err
		},
		func() error { _, err := c.UserGrantRole(t.Context(), "agent", "reader"); return err },
		func() error { _, err := c.AuthEnable(t.Context()); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	f.InSync()
	s := open(t, cfg)
	f.Reaches(storetest.Put(t, s, "/a/1", "1"))
	if _, err := s.Commit(t.Context(), store.Op{Path: "/b/1", Value: []byte("1")}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a write outside its role: %v", err)
	}
	cfg.Password = "wrong"
	if _, _, err := open(t, cfg).List(t.Context(), "/a/"); err == nil || !strings.Contains(err.Error(), "invalid user ID or password") {
		t.Errorf("a wrong password: %v", err)
	}
	server.Close()
	f.Until("disconnection", func() bool { return !f.Last().Connected })
	server = restartable(t, dir, address)
	f.Until("connection", func() bool { return f.Last().Connected })
	// The first write may find that the old token is worth nothing.
	last, err := s.Commit(t.Context(), store.Op{Path: "/a/2", Value: []byte("2")})
	for begun := time.Now(); err != nil && time.Since(begun) < time.Minute; {
		last, err = s.Commit(t.Context(), store.Op{Path: "/a/2", Value: []byte("2"), If: store.AnyRevision})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Reaches(last)
	server.Close()
}
