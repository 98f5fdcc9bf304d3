package bgp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"tortie/api"
)

// Promise F11: BGP holds only a copy of what the kernels of all hosts say: all
// speakers killed and started again, the tables are as they were.
func TestAllKilled(t *testing.T) {
	s := newSite(t)
	for n := 1; n <= 3; n++ {
		s.host(n).local(fmt.Sprintf("10.%d.0.1", n), fmt.Sprintf("fd0%d::1", n))
	}
	want := map[*host]map[string]string{}
	for _, h := range s.hosts {
		h.start()
		want[h] = map[string]string{}
		for _, o := range s.hosts {
			if o != h {
				want[h][fmt.Sprintf("10.%d.0.1", o.number)] = o.v4
				want[h][fmt.Sprintf("fd0%d::1", o.number)] = o.v6
			}
		}
	}
	for _, h := range s.hosts {
		h.want(want[h])
	}
	for _, h := range s.hosts {
		h.kill()
	}
	for _, h := range s.hosts {
		h.start()
	}
	for _, h := range s.hosts {
		h.log.wait(t, "the restart to end", settle, func() bool { return h.log.count("the restart is over") > 0 })
		h.want(want[h])
		for p := range want[h] {
			neverDeleted(t, h, p)
		}
	}
}

// Promise F12: a speaker can stop and restart, in any way, without a route
// being deleted that is still good, here or at its peers.
func TestKilledSpeaker(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			s := newSite(t)
			h1, h2 := s.host(1), s.host(2)
			h1.local("10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2")
			h2.local("10.2.0.1", "10.2.0.2", "fd02::1", "fd02::2")
			h1.start()
			h2.start()
			h1.want(map[string]string{"10.2.0.1": h2.v4, "10.2.0.2": h2.v4, "fd02::1": h2.v6, "fd02::2": h2.v6})
			h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6, "fd01::2": h1.v6})

			// What happens while it is away shows when it is back.
			h2.end(sig)
			h2.delLocal("10.2.0.2", "fd02::2")
			h2.local("10.2.0.3", "fd02::3")
			h1.delLocal("10.1.0.2", "fd01::2")
			h1.local("10.1.0.3", "fd01::3")
			if got := len(h2.learned()); got != 4 {
				t.Errorf("with its speaker ended, h2 has %d learned routes", got)
			}
			h2.start()
			h1.want(map[string]string{"10.2.0.1": h2.v4, "10.2.0.3": h2.v4, "fd02::1": h2.v6, "fd02::3": h2.v6})
			h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.3": h1.v4, "fd01::1": h1.v6, "fd01::3": h1.v6})
			neverDeleted(t, h1, "10.2.0.1", "fd02::1")
			neverDeleted(t, h2, "10.1.0.1", "fd01::1")
		})
	}
}

// neverDeleted checks that routes to the prefixes were there all the while.
func neverDeleted(t *testing.T, h *host, prefixes ...string) {
	t.Helper()
	for _, p := range prefixes {
		if n := h.routes.count("Deleted", p+" "); n != 0 {
			t.Errorf("%s deleted its route to %s %d times", h.name, p, n)
		}
	}
}

// Ended twice, so that a half-open session goes too, and back: nothing is
// deleted meanwhile.
func TestKilledTwice(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	for range 2 {
		h1.kill()
		before := h2.log.count("session established")
		h1.start()
		// One session is up, the other may be half way; not all that there is
		// has been exchanged.
		h2.log.wait(t, "a session to come up", settle, func() bool { return h2.log.count("session established") > before })
	}
	h1.kill()
	h1.local("10.1.0.9")
	h1.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6, "10.1.0.9": h1.v4})
	neverDeleted(t, h1, "10.2.0.1", "fd02::1")
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")
}

// A restarted speaker keeps a route that nobody announces until its deferral
// time is over, if one of its peers stays away.
func TestDeferral(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2")
	h1.start()
	h2.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6, "fd01::2": h1.v6})
	s.put(api.KindNode, "absent", `{"bgp":{"ipv4Address":"172.16.0.99/24"}}`)
	h2.kill()
	h1.delLocal("10.1.0.2", "fd01::2")
	h1.local("10.1.0.3")

	const deferral = 8 * time.Second
	s.deferral = deferral.String()
	began := time.Now()
	h2.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "10.1.0.3": h1.v4, "fd01::1": h1.v6, "fd01::2": h1.v6})
	if early := time.Since(began); early > deferral {
		t.Fatalf("h2 heard of h1 only after %v, which is no use here", early)
	}
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.3": h1.v4, "fd01::1": h1.v6})
	if waited := time.Since(began); waited < deferral {
		t.Errorf("the stale routes went after %v", waited)
	}
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")
}

// A peer that does not come back within its restart time loses its routes.
func TestRestartTime(t *testing.T) {
	s := newSite(t)
	s.put(api.KindBGPConfiguration, "default", `{"nodeMeshMaxRestartTime":"3s"}`)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h1.start()
	h2.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	killed := time.Now()
	h1.kill()
	h2.want(map[string]string{})
	if waited := time.Since(killed); waited < 3*time.Second {
		t.Errorf("h2 kept the routes of a killed speaker for only %v", waited)
	}
	if !strings.Contains(h2.peers(), "172.16.0.1") {
		t.Errorf("h2 forgot its peer:\n%s", h2.peers())
	}
}

// What others do to learned routes is undone; so is what a link that goes
// down and up does.
func TestRepair(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h1.start()
	h2.start()
	want := map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6}
	h2.want(want)
	h2.Run(t, "ip", "route", "del", "10.1.0.1", "proto", "81")
	h2.Run(t, "ip", "route", "add", "10.9.0.1", "via", h1.v4, "proto", "81", "metric", "2048")
	h2.routes.wait(t, "the foreign changes to be undone", 5*time.Second, func() bool {
		got := h2.learned()
		return len(got) == 2 && got["10.1.0.1"] == h1.v4
	})
	h2.Run(t, "ip", "link", "set", "eth0", "down")
	h2.Run(t, "ip", "link", "set", "eth0", "up")
	h2.Run(t, "ip", "addr", "replace", h2.v6+"/64", "dev", "eth0", "nodad")
	h2.want(want)
}

// A speaker that restarts while the store is away follows what it last said,
// and catches up when it is back.
func TestRestartWithoutStore(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	h2.kill()
	h1.local("10.1.0.2")
	h3 := s.host(3)
	h3.local("10.3.0.1")
	h3.start()
	h2.startWith(write{Down: true})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6})
	if _, health, err := h2.get("/health"); err != nil || !strings.Contains(health, `"fromSnapshot": true`) {
		t.Errorf("/health: %v\n%s", err, health)
	}
	h2.send(write{Up: true})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6, "10.3.0.1": h3.v4})
	neverDeleted(t, h1, "10.2.0.1", "fd02::1")
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")

	// The same, but meanwhile another host has left the cluster.
	h2.kill()
	s.remove(api.KindNode, "h3")
	h2.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "10.1.0.2": h1.v4, "fd01::1": h1.v6})
}

// A change of what all sessions share makes a new speaker, in the way of a
// graceful restart.
func TestSettingsChange(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h2.local("10.2.0.1", "fd02::1")
	h1.start()
	h2.start()
	h1.want(map[string]string{"10.2.0.1": h2.v4, "fd02::1": h2.v6})
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	sent := h1.metric("tortie_bgp_updates_sent_total")
	s.put(api.KindBGPConfiguration, "default", `{"asNumber":65010,"listenPort":1790,"bindMode":"NodeIP"}`)
	h1.log.wait(t, "new sessions", settle, func() bool { return h1.log.count("session established") >= 4 })
	h1.local("10.1.0.2")
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6, "10.1.0.2": h1.v4})
	if peers := h2.peers(); strings.Count(peers, " 65010 ") != 2 {
		t.Errorf("not in the new AS:\n%s", peers)
	}
	if ports := h1.Run(t, "ss", "-Htln"); !strings.Contains(ports, h1.v4+":1790") || strings.Contains(ports, ":179 ") {
		t.Errorf("h1 listens on:\n%s", ports)
	}
	if now := h1.metric("tortie_bgp_updates_sent_total"); now <= sent {
		t.Errorf("the count of messages sent went from %v to %v", sent, now)
	}
	neverDeleted(t, h1, "10.2.0.1", "fd02::1")
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")
}

// A peer that restarts, and fails once in between to open its session, keeps
// its routes here.
func TestFailedHandshake(t *testing.T) {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.local("10.1.0.1", "fd01::1")
	h1.start()
	h2.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6})
	h1.kill()
	for _, pair := range [][2]string{{h1.v4, h2.v4}, {h1.v6, h2.v6}} {
		var err error
		h1.Do(func() { err = halfOpen(pair[0], pair[1]) })
		if err != nil {
			t.Fatal(err)
		}
	}
	h1.local("10.1.0.2")
	h1.start()
	h2.want(map[string]string{"10.1.0.1": h1.v4, "fd01::1": h1.v6, "10.1.0.2": h1.v4})
	neverDeleted(t, h2, "10.1.0.1", "fd01::1")
}

// halfOpen connects until the speaker at the other end sends its OPEN message,
// and hangs up.
func halfOpen(from, to string) error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: settle}
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	for end := time.Now().Add(settle); time.Now().Before(end); <-pace.C {
		c, err := d.Dial("tcp", net.JoinHostPort(to, "179"))
		if err != nil {
			return err
		}
		n, err := c.Read(make([]byte, 100))
		_ = c.Close()
		if n > 0 {
			return nil
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			return err
		}
	}
	return fmt.Errorf("%s takes no connection", to)
}
