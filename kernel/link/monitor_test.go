package link

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"tortie/internal/nlattr"
	"tortie/internal/nstest"
)

// follower keeps what a monitor told.
type follower struct {
	t     *testing.T
	m     *Monitor
	links map[string]Link
	seen  map[string]int // events since the last look
}

func follow(t *testing.T, ctx context.Context) *follower {
	t.Helper()
	m, err := open(t).Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, m: m, links: map[string]Link{}, seen: map[string]int{}}
	f.take(nstest.Receive(t, m.C))
	return f
}

func (f *follower) take(batch []Event) {
	f.t.Helper()
	names := map[string]bool{}
	for _, e := range batch {
		if names[e.Name] {
			f.t.Errorf("%s is twice in a batch", e.Name)
		}
		names[e.Name] = true
		f.seen[e.Name]++
		if _, known := f.links[e.Name]; e.Gone && !known {
			f.t.Errorf("%s is gone, but never came", e.Name)
		}
		if f.links[e.Name] = e.Link; e.Gone {
			delete(f.links, e.Name)
		}
	}
}

func (f *follower) until(what string, ok func() bool) {
	f.t.Helper()
	for !ok() {
		f.t.Logf("waiting: %s", what)
		f.take(nstest.Receive(f.t, f.m.C))
	}
	clear(f.seen)
}

func TestMonitor(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("tortie/kernel/link.(*thread).run"))
	ns := nstest.New(t)
	idx := veth(t, ns, "cali1")
	veth(t, ns, "eth0")
	ctx, cancel := context.WithCancel(context.Background())
	f := follow(t, ctx)
	if len(f.links) != 5 || f.links["cali1"].Index != idx || f.links["cali1"].Up || f.links["cali1"].MAC == [6]byte{} {
		t.Fatalf("the first batch is %v", f.links)
	}
	clear(f.seen)
	has := func(name, addr string) bool {
		return slices.Contains(f.links[name].Addrs, netip.MustParseAddr(addr))
	}

	ns.Run(t, "ip", "link", "set", "cali1", "up")
	ns.Run(t, "ip", "link", "set", "peer-cali1", "up")
	f.until("up", func() bool { return f.links["cali1"].Up && f.links["peer-cali1"].Up })
	ns.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	ns.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	f.until("addresses", func() bool { return has("eth0", "192.0.2.1") && has("eth0", "2001:db8::1") })
	if f.seen["lo"] != 0 {
		t.Error("lo was reported, though nothing happened to it")
	}
	ns.Run(t, "ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
	f.until("address gone", func() bool { return !has("eth0", "192.0.2.1") })

	// Down and up again before anybody looks.
	ns.Run(t, "ip", "link", "set", "cali1", "down")
	ns.Run(t, "ip", "link", "set", "cali1", "up")
	f.until("flap", func() bool { return f.seen["cali1"] > 0 && f.links["cali1"].Up })

	// Deleted and re-created under the same name.
	ns.Run(t, "ip", "link", "del", "cali1")
	again := veth(t, ns, "cali1")
	f.until("re-created", func() bool { return f.links["cali1"].Index == again && !f.links["cali1"].Up })

	ns.Run(t, "ip", "link", "set", "cali1", "name", "cali2")
	f.until("renamed", func() bool {
		_, old := f.links["cali1"]
		return !old && f.links["cali2"].Index == again
	})
	// A bridge's messages about its ports are not about the links.
	ns.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	ns.Run(t, "ip", "link", "set", "eth0", "master", "br0")
	ns.Run(t, "ip", "link", "set", "eth0", "nomaster")
	ns.Run(t, "ip", "link", "add", "last", "type", "bridge")
	f.until("bridge", func() bool { _, ok := f.links["last"]; return ok })
	if _, ok := f.links["eth0"]; !ok {
		t.Error("a link that left its bridge is taken to be gone")
	}
	ns.Run(t, "ip", "link", "del", "cali2")
	f.until("gone", func() bool { _, ok := f.links["cali2"]; return !ok })
	cancel()
	for range f.m.C {
		continue
	}
}

// A thousand links come while nobody reads: the monitor's receive buffer
// overflows, it lists again, and the end is right.
func TestMonitorOverflow(t *testing.T) {
	ns := nstest.New(t)
	m, err := newMonitor(open(t).opts.Log)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.notifications.SetReceiveBufferSize(4096, true); err != nil {
		t.Fatal(err)
	}
	if err := m.list(nstest.Context(t)); err != nil {
		t.Fatal(err)
	}
	m.delivered()
	var batch strings.Builder
	for i := range 100 {
		fmt.Fprintf(&batch, "link add cali%d type veth peer name peer%d\n", i, i)
	}
	batch.WriteString("link del cali7\n")
	file := t.TempDir() + "/batch"
	writeFile(t, file, batch.String())
	ns.Run(t, "ip", "-batch", file)

	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan []Event)
	go m.run(ctx, out)
	f := &follower{t: t, m: &Monitor{C: out}, links: map[string]Link{}, seen: map[string]int{}}
	f.until("all links", func() bool { return len(f.links) == 199 })
	ns.Run(t, "ip", "link", "del", "cali8")
	f.until("one fewer", func() bool { return len(f.links) == 197 })
	if _, ok := f.links["cali7"]; ok {
		t.Error("cali7 is still there")
	}
	cancel()
	for range out {
		continue
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(linkDump())
	f.Add(nlattr.Append(make([]byte, 16), 3, []byte("cali")))
	f.Add(nlattr.Append([]byte{2, 32, 0, 0, 1, 0, 0, 0}, 1, []byte{10, 65, 0, 2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, _, ok := parseLink(b); ok && l.Name == "" {
			t.Error("a link without a name")
		}
		if a, ok := parseAddress(b); ok && !a.addr.IsValid() {
			t.Error("an address that is none")
		}
	})
}
