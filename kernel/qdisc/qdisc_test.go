package qdisc

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

// Nothing is faster than its limit, in either direction and family; a changed
// limit counts at once; without one there is none.
func TestBandwidth(t *testing.T) {
	host := nstest.New(t)
	g := addGuest(t, host, "tap1")
	q, want := open(t), desired.New()
	const size = 400_000
	for _, rate := range []uint64{1_000_000, 4_000_000} {
		want.Controls.Set("tap1", controls(t, "tap1", limit(rate), limit(rate)))
		apply(t, q, want)
		settled(t, q, want)
		least := time.Duration(float64(size-20000) / float64(rate) * float64(time.Second))
		for what, run := range map[string]func() time.Duration{
			"to it, IPv4":   func() time.Duration { return transfer(t, host, g.NS, guest4, size) },
			"to it, IPv6":   func() time.Duration { return transfer(t, host, g.NS, guest6, size) },
			"from it, IPv4": func() time.Duration { return transfer(t, g.NS, host, host4, size) },
			"from it, IPv6": func() time.Duration { return transfer(t, g.NS, host, host6, size) },
		} {
			took := run()
			t.Logf("%s: %d bytes at %d bytes/s took %s, at least %s", what, size, rate, took, least)
			if took < least {
				t.Errorf("%s: %d bytes at %d bytes/s took %s, want at least %s", what, size, rate, took, least)
			}
		}
	}
	for link, name := range map[string]string{"tap1": "to it", ifbName("tap1"): "from it"} {
		list := show(t, host, link)
		if len(list) == 0 || list[0].Kind != "tbf" || list[0].Handle != "7474:" || list[0].Bytes < 4*size {
			t.Errorf("%s: %+v, want a tbf 7474: that has counted all of it", name, list)
		}
	}
	want.Controls.Delete("tap1")
	apply(t, q, want)
	settled(t, q, want)
	transfer(t, host, g.NS, guest4, size)
	transfer(t, g.NS, host, host6, size)
	if text := everything(t, host, "tap1"); strings.Contains(text, "tbf") || strings.Contains(text, "clsact") || strings.Contains(text, "ifb") {
		t.Errorf("left behind:\n%s", text)
	}
}

// Every value that a shape can have comes back from the kernel as it was asked
// for; nothing is written a second time, and counters go on.
func TestApplyTwiceAndRestart(t *testing.T) {
	host := nstest.New(t)
	g := addGuest(t, host, "tap1")
	q, want := open(t), desired.New()
	for _, s := range []desired.Shape{
		{Rate: 125, Burst: 125},
		{Rate: 125, Burst: 1<<32 - 1},
		{Rate: 1_000_000, Burst: 1 << 29},
		{Rate: 1_000_000, Burst: 20000, Peak: 2_000_000},
		{Rate: 1_000_000, Burst: 20000, Peak: 1_000_001, Least: 100_000_000},
		{Rate: 1 << 32, Burst: 1 << 20},
		{Rate: 125_000_000_000_000, Burst: 1<<32 - 1, Peak: 126_250_000_000_000, Least: 9000},
		{Rate: 333_333_333, Burst: 77777},
		limit(5_000_000),
	} {
		want.Controls.Set("tap1", controls(t, "tap1", s, s))
		if n := apply(t, q, want); n == 0 {
			t.Errorf("%+v: nothing was written", s)
		}
		settled(t, q, want)
	}
	transfer(t, g.NS, host, host4, 10000)
	transfer(t, host, g.NS, guest4, 10000)
	before := everything(t, host, "tap1")
	counted := [2]int{show(t, host, "tap1")[0].Bytes, show(t, host, ifbName("tap1"))[0].Bytes}
	settled(t, q, want)
	again := open(t)
	want.Controls.Touch("tap1")
	if n := apply(t, again, want); n != 0 {
		t.Errorf("a new process writes %d times", n)
	}
	if after := everything(t, host, "tap1"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// A changed rate is written into the qdisc that is there.
	want.Controls.Set("tap1", controls(t, "tap1", limit(6_000_000), limit(6_000_000)))
	if n := apply(t, again, want); n != 2 {
		t.Errorf("a changed rate is written %d times, want 2", n)
	}
	for i, link := range []string{"tap1", ifbName("tap1")} {
		if got := show(t, host, link)[0].Bytes; got < counted[i] || counted[i] == 0 {
			t.Errorf("the counter of %s went from %d to %d", link, counted[i], got)
		}
	}
}

// What other programs have is left as it is. What is in our way is an error of
// that interface alone, until it is gone.
func TestForeign(t *testing.T) {
	host := nstest.New(t)
	addGuest(t, host, "tap1")
	addGuest(t, host, "tap2")
	addGuest(t, host, "tap3")
	host.Run(t, "tc", "qdisc", "add", "dev", "tap1", "root", "handle", "8001:", "pfifo", "limit", "77")
	host.Run(t, "tc", "qdisc", "add", "dev", "tap2", "clsact")
	host.Run(t, "tc", "filter", "add", "dev", "tap2", "ingress", "pref", "5", "protocol", "arp", "u32", "match", "u32", "0", "0")
	host.Run(t, "tc", "qdisc", "add", "dev", "tap3", "ingress")
	host.Run(t, "ip", "link", "add", "ifb7", "type", "ifb")
	host.Run(t, "tc", "qdisc", "add", "dev", "ifb7", "root", "handle", "1:", "tbf", "rate", "1mbit", "burst", "10k", "limit", "10k")
	links := []string{"tap1", "tap2", "tap3"}
	before := everything(t, host, links...)
	q, want := open(t), desired.New()
	for _, l := range links {
		want.Controls.Set(l, controls(t, l, desired.Shape{}, limit(1_000_000)))
	}
	want.Controls.Set("tap1", controls(t, "tap1", limit(1_000_000), limit(1_000_000)))
	_, err := q.Apply(nstest.Context(t), want)
	if err == nil || !strings.Contains(err.Error(), "bandwidth of tap1: tbf of tap1: there is a root qdisc pfifo of another program (handle 8001:)") {
		t.Fatalf("apply: %v, want the foreign qdisc named", err)
	}
	want.ClearDirty()
	if q.Trouble("tap1") == nil || q.Trouble("tap2") != nil || q.Trouble("tap3") != nil {
		t.Errorf("troubles: %v; %v; %v, want only the first", q.Trouble("tap1"), q.Trouble("tap2"), q.Trouble("tap3"))
	}
	for _, l := range []string{"tap2", "tap3"} {
		if list := show(t, host, ifbName(l)); len(list) != 1 || list[0].Kind != "tbf" {
			t.Errorf("%s is not limited: %+v", l, list)
		}
	}
	host.Run(t, "tc", "qdisc", "del", "dev", "tap1", "root")
	if n := apply(t, q, want); n == 0 || q.Trouble("tap1") != nil {
		t.Errorf("when the foreign qdisc is gone: %d writes, trouble %v", n, q.Trouble("tap1"))
	}
	settled(t, q, want)
	for _, l := range links {
		want.Controls.Delete(l)
	}
	apply(t, q, want)
	host.Run(t, "tc", "qdisc", "add", "dev", "tap1", "root", "handle", "8001:", "pfifo", "limit", "77")
	if after := everything(t, host, links...); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestRepair(t *testing.T) {
	host := nstest.New(t)
	g := addGuest(t, host, "tap1")
	q, want := open(t), desired.New()
	want.Controls.Set("tap1", controls(t, "tap1", limit(1_000_000), limit(1_000_000)))
	apply(t, q, want)
	before := everything(t, host, "tap1")
	ifb := ifbName("tap1")
	for _, hand := range [][]string{
		{"tc", "qdisc", "del", "dev", "tap1", "root"},
		{"tc", "qdisc", "del", "dev", "tap1", "clsact"},
		{"tc", "qdisc", "change", "dev", "tap1", "root", "handle", "7474:", "tbf", "rate", "9mbit", "burst", "10k", "limit", "10k"},
		{"tc", "qdisc", "del", "dev", ifb, "root"},
		{"tc", "filter", "del", "dev", "tap1", "ingress"},
		{"tc", "filter", "add", "dev", "tap1", "ingress", "pref", "29813", "protocol", "all", "u32", "match", "u32", "1", "1"},
		{"tc", "filter", "add", "dev", "tap1", "ingress", "pref", "29812", "protocol", "all", "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", ifb},
		{"ip", "link", "set", ifb, "down"},
	} {
		host.Run(t, hand[0], hand[1:]...)
		q.Resync()
		apply(t, q, want)
		settled(t, q, want)
		if after := numberless(everything(t, host, "tap1")); after != numberless(before) {
			t.Errorf("%v: before:\n%s\nafter:\n%s", hand, before, after)
		}
		transfer(t, g.NS, host, host6, 1000)
	}
	// An ifb that goes takes what the workload sends with it: that is mended
	// when the link monitor tells.
	host.Run(t, "ip", "link", "del", ifb)
	q.LinkChanged(ifb)
	if n := apply(t, q, want); n == 0 {
		t.Error("nothing was done about an ifb that went")
	}
	settled(t, q, want)
	transfer(t, g.NS, host, host4, 1000)
}

var numbers = regexp.MustCompile(`index [0-9]+ ref|refcnt [0-9]+|(?m)^[0-9]+: | link/ether \\S+|pref 2981[23]`)

// numberless leaves out of a text what differs from one making to the next. If
// only the filter went, nothing tells that the clsact qdisc was ours.
func numberless(s string) string { return numbers.ReplaceAllString(s, "") }

func TestLinkMadeAnew(t *testing.T) {
	host := nstest.New(t)
	addGuest(t, host, "tap1")
	q, want := open(t), desired.New()
	want.Controls.Set("tap1", controls(t, "tap1", limit(1_000_000), limit(2_000_000)))
	apply(t, q, want)
	host.Run(t, "ip", "link", "del", "tap1")
	// What is wanted is still that of the link that has gone.
	q.LinkChanged("tap1")
	apply(t, q, want)
	g := addGuest(t, host, "tap1")
	q.LinkChanged("tap1")
	want.Controls.Set("tap1", controls(t, "tap1", limit(1_000_000), limit(2_000_000)))
	if n := apply(t, q, want); n == 0 {
		t.Error("nothing was done about a link made anew")
	}
	settled(t, q, want)
	if took := transfer(t, g.NS, host, host4, 220_000); took < 100*time.Millisecond {
		t.Errorf("220000 bytes at 2000000 bytes/s took %s", took)
	}
	// Gone for good, while nobody looked: its ifb goes too.
	host.Run(t, "ip", "link", "del", "tap1")
	want.Controls.Delete("tap1")
	want.ClearDirty()
	again := open(t)
	if n := apply(t, again, want); n != 1 {
		t.Errorf("%d writes, want the ifb removed", n)
	}
	if out := host.Run(t, "ip", "-o", "link", "show", "type", "ifb"); out != "" {
		t.Errorf("left behind: %s", out)
	}
}

func TestCleanup(t *testing.T) {
	host := nstest.New(t)
	addGuest(t, host, "tap1")
	addGuest(t, host, "tap2")
	before := everything(t, host, "tap1", "tap2")
	q, want := open(t), desired.New()
	want.Controls.Set("tap1", controls(t, "tap1", limit(1_000_000), limit(2_000_000)))
	want.Controls.Set("tap2", controls(t, "tap2", desired.Shape{}, limit(2_000_000)))
	apply(t, q, want)
	for range 2 {
		if err := open(t).Cleanup(nstest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if after := everything(t, host, "tap1", "tap2"); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

// A host without limits is not even asked.
func TestNothingWanted(t *testing.T) {
	host := nstest.New(t)
	addGuest(t, host, "tap1")
	q, want := open(t), desired.New()
	want.Controls.Set("tap1", desired.Controls{Index: 1, Egress: desired.Limits{PacketRate: 5}})
	if n := apply(t, q, want); n != 0 {
		t.Errorf("%d writes", n)
	}
	want.Controls.Touch("tap1")
	q.LinkChanged("tap1")
	if len(q.pending) != 0 || q.resync {
		t.Errorf("pending: %v", q.pending)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tbf(3, makeBucket(desired.Shape{Rate: 1 << 33, Burst: 1, Peak: 1 << 34}, 1500)))
	f.Add(redirectAll(3, Pref, 4))
	f.Add(newIFB("tt-1"))
	f.Add(setIFB(3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parseDevice(b); ok && d.name == "" {
			t.Error("a link without a name")
		}
		if q, ok := parseDiscipline(b); ok && q.kind == "" {
			t.Error("a qdisc without a kind")
		}
		if x, ok := parseFilter(b); ok && x.kind == "" {
			t.Error("a filter without a kind")
		}
	})
}

// What is written is read back as what it is.
func TestParse(t *testing.T) {
	b := makeBucket(desired.Shape{Rate: 1 << 33, Burst: 1, Peak: 1 << 34}, 1500)
	q, ok := parseDiscipline(tbf(3, b))
	if !ok || q.index != 3 || q.handle != Handle || q.rate != b.Rate || q.peak != b.Peak || q.queue != b.queue {
		t.Errorf("%+v, want %+v", q, b)
	}
	x, ok := parseFilter(redirectAll(3, Pref, 4))
	if !ok || x.pref != Pref || x.to != 4 || !x.node {
		t.Errorf("%+v, want a redirect to 4", x)
	}
}
