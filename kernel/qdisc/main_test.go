package qdisc

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func open(t testing.TB) *Qdiscs {
	t.Helper()
	q, err := Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q
}

// apply applies want, as the agent does, and returns how much was written.
func apply(t testing.TB, q *Qdiscs, want *desired.State) int {
	t.Helper()
	n, err := q.Apply(nstest.Context(t), want)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	want.ClearDirty()
	return n
}

// settled checks that nothing is left to do, neither here nor in a process that
// starts anew.
func settled(t testing.TB, q *Qdiscs, want *desired.State) {
	t.Helper()
	for what, q := range map[string]*Qdiscs{"the same process": q, "a new one": open(t)} {
		q.Resync()
		if diff, err := q.Diff(nstest.Context(t), want); err != nil || diff != "" {
			t.Errorf("%s sees a difference: %v\n%s", what, err, diff)
		}
		if n := apply(t, q, want); n != 0 {
			t.Errorf("%s writes %d times, want not at all", what, n)
		}
	}
}

// guest is a workload behind a veth pair, with one address of each family.
type guest struct {
	*nstest.NS
	link string // on the host
}

const (
	host4, guest4 = "10.65.0.1", "10.65.0.2"
	host6, guest6 = "fd00::1", "fd00::2"
)

func addGuest(t testing.TB, host *nstest.NS, name string) *guest {
	t.Helper()
	g := &guest{NS: nstest.Create(t), link: name}
	nstest.Veth(t, host, name, g.NS, "eth0")
	for _, a := range []string{host4 + "/24", host6 + "/64"} {
		host.Run(t, "ip", "addr", "add", a, "dev", name, "nodad")
	}
	for _, a := range []string{guest4 + "/24", guest6 + "/64"} {
		g.Run(t, "ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
	return g
}

// limit is what the tests ask for: a rate in bytes a second and a small burst.
func limit(rate uint64) desired.Shape { return desired.Shape{Rate: rate, Burst: 20000} }

func controls(t testing.TB, name string, ingress, egress desired.Shape) desired.Controls {
	t.Helper()
	return desired.Controls{Index: nstest.Index(t, name), Ingress: desired.Limits{Shape: ingress}, Egress: desired.Limits{Shape: egress}}
}

// transfer sends so many bytes over TCP and returns how long it took until the
// last was there.
func transfer(t testing.TB, from, to *nstest.NS, addr string, size int) time.Duration {
	t.Helper()
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(3 * nstest.Limit))
			var n int64
			if n, err = io.Copy(io.Discard, c); err == nil && n != int64(size) {
				err = fmt.Errorf("%d bytes of %d arrived", n, size)
			}
			_ = c.Close()
		}
		got <- err
	}()
	var c net.Conn
	from.Do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), nstest.Limit) })
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(3 * nstest.Limit))
	start := time.Now()
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// shown is a qdisc as tc shows it.
type shown struct {
	Kind, Handle, Dev, Parent string
	Root                      bool
	Bytes, Packets, Drops     int
}

// show returns the qdiscs of a link but for those of the kernel's own.
func show(t testing.TB, ns *nstest.NS, link string) (list []shown) {
	t.Helper()
	var all []shown
	if err := json.Unmarshal([]byte(ns.Run(t, "tc", "-s", "-j", "qdisc", "show", "dev", link)), &all); err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		if q.Handle != "0:" {
			list = append(list, q)
		}
	}
	return list
}

// everything is all that tc and ip show of qdiscs, filters and ifbs, without
// counters.
func everything(t testing.TB, ns *nstest.NS, links ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(ns.Run(t, "tc", "qdisc", "show"))
	for _, l := range links {
		for _, side := range []string{"ingress", "egress"} {
			b.WriteString(ns.Run(t, "tc", "filter", "show", "dev", l, side))
		}
	}
	b.WriteString(ns.Run(t, "ip", "-o", "link", "show", "type", "ifb"))
	return b.String()
}
