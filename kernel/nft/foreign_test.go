package nft

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tortie/desired"
	"tortie/internal/nstest"
)

// loadFile loads a ruleset of testdata.
func loadFile(t testing.TB, host *nstest.NS, name string) {
	t.Helper()
	if _, err := os.Stat("testdata/" + name); err != nil {
		t.Fatal(err)
	}
	host.Run(t, "nft", "-f", "testdata/"+name)
}

func foreign(t testing.TB, tb *Tables) (lines []string) {
	t.Helper()
	fs, err := tb.Foreign(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		lines = append(lines, f.String())
	}
	slices.Sort(lines)
	return lines
}

// Beside Docker's and firewalld's rulesets ours works and theirs stay as they
// are; what they drop is named.
//
// Promise C9: what policy forbids is dropped at once, whatever others accept;
// what it allows is accepted as far as we are concerned.
func TestBesideOthers(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	loadFile(t, host, "docker.nft")
	loadFile(t, host, "firewalld.nft")
	others := func() string {
		out := host.Run(t, "nft", "-s", "list", "ruleset")
		return regexp.MustCompile(`(?ms)^table \w+ tortie \{.*?^\}\n`).ReplaceAllString(out, "")
	}
	before := others()
	apply(t, tb, st)
	settled(t, tb, st)
	want := []string{
		"inet firewalld filter_FORWARD (forward): final reject",
		"inet firewalld filter_INPUT (input): final reject",
		"ip filter FORWARD (forward): policy drop",
	}
	if got := foreign(t, tb); !slices.Equal(got, want) {
		t.Errorf("foreign drops %q, want %q", got, want)
	}
	l4, l6 := listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)
	closed := listen(t, b.NS, b.v6, closedPort)
	send(t, a.NS, a.v4, b.v4, openPort, "dropped by Docker's policy")
	send(t, a.NS, a.v6, b.v6, openPort, "IPv6 passes firewalld")
	l6.wait(t, "IPv6 passes")
	l4.none(t)
	host.Run(t, "nft", "insert", "rule", "ip", "filter", "DOCKER-USER", "iifname", "tap1", "accept") // the cure
	send(t, a.NS, a.v4, b.v4, openPort, "cured")
	l4.wait(t, "cured")
	send(t, a.NS, a.v6, b.v6, closedPort, "no")
	waitCounter(t, tb, counterUnmatched, 1)
	closed.none(t)
	host.Run(t, "nft", "delete", "rule", "ip", "filter", "DOCKER-USER", "handle", handleOf(t, host, "ip filter DOCKER-USER", "tap1"))
	if err := tb.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after := others(); after != before || strings.Contains(after, "tortie") {
		t.Errorf("other tables changed:\n%s\nwere\n%s", after, before)
	}
	if out := host.Run(t, "nft", "list", "tables"); strings.Contains(out, "tortie") {
		t.Errorf("left behind: %s", out)
	}
	if err := tb.Cleanup(context.Background()); err != nil {
		t.Errorf("cleaning up what is clean: %v", err)
	}
}

func handleOf(t testing.TB, host *nstest.NS, chain, text string) string {
	t.Helper()
	out := host.Run(t, "nft", append([]string{"-a", "list", "chain"}, strings.Fields(chain)...)...)
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, text) {
			return line[strings.LastIndex(line, " ")+1:]
		}
	}
	t.Fatalf("no %q in %s", text, out)
	return ""
}

func TestForeignDrops(t *testing.T) {
	host := nstest.New(t)
	tb := open(t)
	apply(t, tb, everyFeature())
	if got := foreign(t, tb); got != nil {
		t.Errorf("foreign drops on a clean host: %q", got)
	}
	host.Run(t, "nft", `
		add table ip6 a; add chain ip6 a f { type filter hook forward priority 5; policy drop; };
		add table inet b; add chain inet b i { type filter hook input priority 5; }; add rule inet b i tcp dport 22 accept; add rule inet b i counter log drop;
		add chain inet b last; add rule inet b last ip saddr 10.0.0.1 accept; add rule inet b last reject;
		add chain inet b f { type filter hook forward priority 5; }; add rule inet b f ct state new goto last; add rule inet b f jump last;
		add chain inet b conditional { type filter hook forward priority 6; }; add rule inet b conditional ip saddr 10.0.0.1 drop;
		add chain inet b empty { type filter hook forward priority 7; };
		add chain inet b out { type filter hook output priority 7; policy drop; };
		add table arp c; add chain arp c i { type filter hook input priority 0; policy drop; };
		add table bridge d; add chain bridge d f { type filter hook forward priority 0; policy drop; }`)
	want := []string{
		"inet b f (forward): final reject",
		"inet b i (input): final drop",
		"ip6 a f (forward): policy drop",
	}
	if got := foreign(t, tb); !slices.Equal(got, want) {
		t.Errorf("foreign drops %q, want %q", got, want)
	}
}

// Promise D7: these are all the hooks we attach to.
// Promise C7: each of them goes on by one jump.
func TestHooks(t *testing.T) {
	host := nstest.New(t)
	apply(t, open(t), everyFeature())
	var got []string
	table, chain, jumps := "", "", 0
	for _, line := range strings.Split(host.Run(t, "nft", "list", "ruleset"), "\n") {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "table"):
			table = f[1]
		case len(f) > 1 && f[0] == "chain":
			chain = f[1]
		case len(f) > 1 && f[0] == "type" && f[1] == "filter":
			got = append(got, table+" "+chain+": "+strings.Join(f[2:], " "))
			jumps = 0
		case len(got) > 0 && strings.HasPrefix(got[len(got)-1], table+" "+chain+":"):
			if strings.Contains(line, "goto ") || strings.Contains(line, "jump ") || strings.Contains(line, "vmap ") {
				if jumps++; jumps > 1 {
					t.Errorf("chain %s has another jump: %s", chain, line)
				}
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"arp input: hook input priority filter; policy accept;",
		"inet controls-to-host: hook input priority filter + 1; policy accept;", // while an endpoint has limits
		"inet forward: hook forward priority filter; policy accept;",
		"inet input: hook input priority filter; policy accept;",
		"inet output: hook output priority filter; policy accept;",
		"inet raw: hook prerouting priority -450; policy accept;",
	}
	if !slices.Equal(got, want) {
		t.Errorf("hooks %q, want %q", got, want)
	}
}

func event(t testing.TB, events <-chan Event) Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(timeout):
		t.Fatal("no event")
		return Event{}
	}
}

// The monitor tells our commits from others', and others' on our tables from
// those on their own.
func TestMonitor(t *testing.T) {
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := tb.Monitor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, tb, st)
	bump(t, tb)
	host.Run(t, "nft", "add table inet other")
	if e := event(t, events); e != (Event{Foreign: true}) {
		t.Errorf("our own commits and a foreign table: %+v", e)
	}
	for _, command := range []string{
		"add element inet tortie addr4 { 12 . 10.65.0.9 }", "delete table arp tortie", "flush chain inet tortie judge",
		"delete element inet tortie s4h-0000000000000001 { 10.0.0.1 }", "insert rule inet tortie raw accept",
	} {
		host.Run(t, "nft", command)
		if e := event(t, events); !e.Ours {
			t.Errorf("%s: %+v", command, e)
		}
		tb.Resync()
		if res := apply(t, tb, st); !res.Repaired {
			t.Errorf("%s: %+v", command, res)
		}
	}
	host.Run(t, "nft", "add set inet other s { type ipv4_addr; }; add element inet other s { 10.0.0.1 }")
	host.Run(t, "nft", "add table ip tortie; add chain ip tortie x")
	if e := event(t, events); e.Ours {
		t.Errorf("a table of our name in another family: %+v", e)
	}
	cancel()
	for range events {
	}
}

// A program that commits to its own table all the time costs us no read-back,
// and next to no events; what it does to its sets, none at all.
func TestForeignCommits(t *testing.T) {
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	st.Programs.Delete("many") // which would be written anew when its set grows
	apply(t, tb, st)
	events, err := tb.Monitor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host.Run(t, "nft", "add table inet other; add chain inet other c; add set inet other s { type ipv4_addr; }")
	if e := event(t, events); e != (Event{Foreign: true}) {
		t.Fatalf("%+v", e)
	}
	other := open(t) // as another process would, through a socket of its own
	start, foreignEvents := time.Now(), 0
	for i := range 300 {
		b := other.conn.newBatch(0)
		o := object{inet, fmt.Sprintf("c%d", i)}
		b.newChain(o, nil, culprit{})
		rename(b, "other")
		if _, err := other.conn.commit(b); err != nil {
			t.Fatal(err)
		}
		st.Members.Set(desired.Member{Set: desired.SetKey{ID: 1, Family: 4}, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32)}, struct{}{})
		if res := apply(t, tb, st); res.Transactions != 1 || res.Writes > 200 || res.Repaired {
			t.Fatalf("apply beside it: %+v", res)
		}
		if tb.resync || tb.all {
			t.Fatal("a foreign commit made us read back")
		}
		select {
		case e := <-events:
			foreignEvents++
			if e.Ours {
				t.Fatalf("a foreign commit counts as ours")
			}
		default:
		}
	}
	if most := int(time.Since(start)/foreignPause) + 1; foreignEvents > most {
		t.Errorf("%d events in %v, want at most %d", foreignEvents, time.Since(start), most)
	}
	// A read-back while it commits comes to an end too; that of the nft command
	// may not.
	host.Run(t, "nft", "delete element inet tortie s4h-0000000000000001 { 10.0.0.1 }")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b := other.conn.newBatch(0)
			b.newChain(object{inet, fmt.Sprintf("d%d", i)}, nil, culprit{})
			rename(b, "other")
			if _, err := other.conn.commit(b); err != nil {
				return
			}
		}
	}()
	tb.Resync()
	res := apply(t, tb, st)
	close(stop)
	<-done
	if !res.Repaired || res.Writes != 2 {
		t.Errorf("repair beside it: %+v, want the element and the word that a bump is due", res)
	}
}

// rename makes a batch's only operation one on another table.
func rename(b *batch, table string) {
	at := strings.Index(string(b.w.b), TableName+"\x00")
	old := b.w.b
	b.w.b = append(append(append([]byte(nil), old[:at]...), table+"\x00"...), 0, 0)
	b.w.b = append(b.w.b, old[at+8:]...)
	b.w.b[at-4] = byte(4 + len(table) + 1)
	b.end(b.last)
}

func TestRemember(t *testing.T) {
	host := nstest.New(t)
	tb, ctx := open(t), context.Background()
	if err := tb.Remember(ctx, "net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	if out := host.Run(t, "nft", "list", "table", "inet", "tortie"); !strings.Contains(out, "net.ipv4.ip_forward=0") || !strings.Contains(out, `iifname "tap*" drop`) {
		t.Errorf("want a closed table and the note in it:\n%s", out)
	}
	st := everyFeature()
	apply(t, tb, st)
	if err := tb.Remember(ctx, "net.ipv6.conf.all.forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	if err := tb.Remember(ctx, "net.ipv4.ip_forward", "1"); err != nil { // ours by now
		t.Fatal(err)
	}
	want := "map[net.ipv4.ip_forward:0 net.ipv6.conf.all.forwarding:0]"
	check := func(tb *Tables) {
		t.Helper()
		if got, err := tb.Remembered(ctx); err != nil || fmt.Sprint(got) != want {
			t.Errorf("remembered %v, %v, want %s", got, err, want)
		}
	}
	check(tb)
	settled(t, tb, st)
	again := open(t)
	check(again)
	apply(t, again, st)
	check(again)
	host.Run(t, "nft", "delete table inet tortie")
	again.Resync()
	apply(t, again, st)
	check(open(t)) // a repair writes the notes too
	for _, bad := range []string{"", "a=b", strings.Repeat("k", 200)} {
		if err := tb.Remember(ctx, bad, "0"); err == nil {
			t.Errorf("key %q was taken", bad)
		}
	}
	if err := again.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t).Remembered(ctx); err != nil || len(got) != 0 {
		t.Errorf("after cleanup: %v, %v", got, err)
	}
}
