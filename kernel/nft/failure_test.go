package nft

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

func member1(text string, ranges bool) desired.Member {
	p := netip.MustParsePrefix(text)
	k := desired.SetKey{ID: 1, Family: 4, Ranges: ranges}
	if p.Addr().Is6() {
		k.Family = 6
	}
	return desired.Member{Set: k, Prefix: p}
}

// tryApply applies something of which part must be refused.
func tryApply(t testing.TB, tb *Tables, st *desired.State, complaint string) Result {
	t.Helper()
	res, err := tb.Apply(context.Background(), st)
	if err == nil || !strings.Contains(err.Error(), complaint) {
		t.Fatalf("error %v, want %q in it", err, complaint)
	}
	st.ClearDirty()
	return res
}

// What the kernel refuses is named and retried, and keeps nothing else out.
func TestRefusedElement(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	// Ranges that overlap, which calc never makes.
	inside, inside6 := member1("192.0.2.128/25", true), member1("fd01:5::/32", true)
	good, good6 := member1("10.7.7.7/32", false), member1("fd00::7/128", false)
	for _, m := range []desired.Member{inside, inside6, good, good6, member1("198.51.100.0/24", true)} {
		st.Members.Set(m, struct{}{})
	}
	tryApply(t, tb, st, "192.0.2.128")
	has := func(text string) bool { return strings.Contains(dump(t, tb), "\t"+text+"\n") }
	for _, text := range []string{"10.7.7.7", "fd00::7", "198.51.100.0"} {
		if !has(text) {
			t.Errorf("%s is not in the kernel:\n%s", text, dump(t, tb))
		}
	}
	if res := tryApply(t, tb, st, "fd01:5::"); res.Writes != 0 {
		t.Errorf("nothing to do: %+v", res)
	}
	st.Members.Delete(good)
	if tryApply(t, tb, st, "192.0.2.128"); has("10.7.7.7") {
		t.Error("a change beside what is refused was not made")
	}
	// One is withdrawn; what was in the other's way goes.
	st.Members.Delete(inside)
	st.Members.Delete(member1("fd01::/16", true))
	apply(t, tb, st)
	if !has("fd01:5::") || has("192.0.2.128") {
		t.Errorf("the retry:\n%s", dump(t, tb))
	}
	settled(t, tb, st)
}

// Ranges may replace each other, with the same first or last address, and lie
// side by side; every step is exact.
func TestRangesReplaceEachOther(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), desired.New()
	for _, fam := range []uint8{4, 6} {
		for _, ranges := range []bool{false, true} {
			st.Sets.Set(desired.SetKey{ID: 1, Family: fam, Ranges: ranges}, desired.Set{})
		}
	}
	steps := [][]string{
		{"10.0.0.0/8", "fd00::/16"},
		{"10.0.0.0/9", "fd00::/17"},
		{"10.128.0.0/9", "10.0.0.0/9", "fd00::/17", "fd00:8000::/17"},
		{"10.128.0.0/9", "fd00:8000::/17"},
		{"10.0.0.0/8", "fd00::/16"},
		{"10.128.0.0/9", "fd00:8000::/17"},
		{"0.0.0.0/0", "::/0"},
		{"128.0.0.0/1", "8000::/1"},
		{"128.0.0.0/1", "0.0.0.0/1", "8000::/1", "::/1"},
		{"0.0.0.0/1", "255.0.0.0/8", "ff00::/8"},
		{"10.0.0.0/8", "fd00::/16"},
		{"10.0.0.0/10", "10.192.0.0/10", "fd00::/18", "fd00:c000::/18"}, // from the middle of one
		{"10.0.0.0/11", "10.64.0.0/10", "11.0.0.0/8", "fd00::/19", "fd00:4000::/18", "fd01::/16"},
		{"10.0.0.0/8", "fd00::/16"},
		{"128.0.0.0/2", "8000::/2"},
		{"128.0.0.0/1", "8000::/1"},
		{"192.0.0.0/2", "128.0.0.0/4", "c000::/2", "8000::/4"},
		{},
	}
	for i, now := range steps {
		for m := range maps.Collect(st.Members.All()) {
			if !slices.Contains(now, m.Prefix.String()) {
				st.Members.Delete(m)
			}
		}
		for _, text := range now {
			st.Members.Set(member1(text, true), struct{}{})
		}
		if i%2 == 1 {
			tb.Resync() // the differences of all, not only of what is pending
		}
		apply(t, tb, st)
		settled(t, tb, st)
	}
}

// strayBucket reports whether there is a bucket that no program has.
func strayBucket(t *testing.T, tb *Tables, st *desired.State, dump string) bool {
	t.Helper()
	of := map[string]bool{}
	for id, p := range st.Programs.All() {
		chains, err := renderProgram(id, p, tb.carrying(st))
		if err == nil {
			chains, err = addTrial(chains, p.Trial, tb.carrying(st))
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range chains {
			of[c.name] = true
		}
	}
	for line := range strings.Lines(dump) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "chain "); ok && strings.HasPrefix(name, bucketPrefix) && !of[name] {
			return true
		}
	}
	return false
}

// What the kernel refuses does not keep in it what goes in the same change.
func TestRefusedElementLetsGo(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	inside := member1("192.0.2.128/25", true) // calc never makes ranges that overlap
	st.Members.Set(inside, struct{}{})
	st.Programs.Delete("many")
	tryApply(t, tb, st, "192.0.2.128")
	if d := dump(t, tb); strayBucket(t, tb, st, d) || strings.Contains(d, "map to-") {
		t.Errorf("what nothing names any more is left:\n%s", d)
	}
	st.Members.Delete(inside)
	apply(t, tb, st)
	settled(t, tb, st)
}

// What cannot be removed yet is no error, and goes together when it can: a
// chain, and the sets that it names.
func TestRefusedRemovals(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	before := dump(t, tb)
	var kept []object
	for o := range tb.have.chains {
		if strings.HasPrefix(o.name, bucketPrefix) {
			kept = append(kept, o)
			tb.bad[culprit{removal: o}] = errors.New("busy")
		}
	}
	many, _ := st.Programs.Get("many")
	st.Programs.Set("many", profile(desired.Rule{Verdict: desired.Allow}))
	apply(t, tb, st)
	if len(kept) == 0 || strayBucket(t, tb, st, dump(t, tb)) {
		t.Errorf("%d chains kept:\n%s", len(kept), dump(t, tb))
	}
	settled(t, tb, st)
	st.Programs.Set("many", many)
	apply(t, tb, st)
	if again := dump(t, tb); again != before {
		t.Errorf("the tables are not what they were:\n%s\nwant\n%s", again, before)
	}
}

// A program that cannot be expressed denies everything; what is in its way in
// the kernel is not believed before it is looked at.
func TestRefusedProgram(t *testing.T) {
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	for complaint, r := range map[string]desired.Rule{
		"no set":       {Verdict: desired.Allow, Source: desired.Peer{Set: 99}},
		"need a proto": {Verdict: desired.Allow, Protocol: 1, Destination: desired.Peer{Ports: []desired.PortRange{{Min: 1, Max: 2}}}},
		"family":       {Verdict: desired.Allow, Family: 5},
		"verdict":      {Verdict: 9},
	} {
		st.Programs.Set("in", profile(r))
		st.Programs.Set("out", profile(desired.Rule{Verdict: desired.Log}, desired.Rule{Verdict: desired.Allow}))
		tryApply(t, tb, st, complaint)
		out := host.Run(t, "nft", "list", "chain", "inet", "tortie", programChain("in"))
		if strings.Contains(out, "return") || !strings.Contains(out, "drop") {
			t.Errorf("%s: the program does not deny everything: %s", complaint, out)
		}
		if err := tb.Trouble("tap1"); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("the trouble of tap1 is %v, want %q in it", err, complaint)
		}
		st.Programs.Set("out", profile(desired.Rule{Verdict: desired.Allow}))
		tryApply(t, tb, st, complaint)
	}
	st.Interfaces.Set("eth7", desired.Interface{Index: 77, Ingress: "in", Egress: "out"})
	tryApply(t, tb, st, "eth7")
	if tb.Trouble("eth7") == nil {
		t.Error("eth7 has no trouble")
	}
	st.Interfaces.Delete("eth7")
	st.Programs.Set("in", profile(desired.Rule{Verdict: desired.Allow}))
	st.Members.Set(desired.Member{Set: desired.SetKey{ID: 1, Family: 4}, Prefix: netip.MustParsePrefix("fd00::/64")}, struct{}{})
	tryApply(t, tb, st, "fd00::/64")
	st.Members.Delete(desired.Member{Set: desired.SetKey{ID: 1, Family: 4}, Prefix: netip.MustParsePrefix("fd00::/64")})
	apply(t, tb, st)
	settled(t, tb, st)
	if err := tb.Trouble("tap1"); err != nil {
		t.Errorf("the trouble of tap1 is not over: %v", err)
	}
	// A foreign hand has taken the chain's name, for one that cannot be jumped to.
	host.Run(t, "nft", "add chain inet tortie "+programChain("new")+" { type filter hook forward priority 5; }")
	st.Programs.Set("new", profile(desired.Rule{Verdict: desired.Allow}))
	in, _ := st.Interfaces.Get("tap1")
	in.Ingress = "new"
	st.Interfaces.Set("tap1", in)
	tryApply(t, tb, st, `element tap1`)
	tb.Resync()
	if res := apply(t, tb, st); !res.Repaired {
		t.Errorf("rebuild: %+v", res)
	}
	settled(t, tb, st)
}

// While a program is refused, the buckets that its old chains lead to are left:
// a new process does not know which these are.
func TestRefusedProgramKeepsItsBuckets(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	again := open(t)
	again.bad[culprit{program: programChain("many")}] = errors.New("refused")
	st.Programs.Set("many", profile(desired.Rule{Verdict: desired.Allow}))
	apply(t, again, st) // without an error: the program is taken in the end, and nothing else was refused
	again.Resync()
	apply(t, again, st)
	if d := dump(t, again); strayBucket(t, again, st, d) {
		t.Errorf("buckets that nothing leads to are left:\n%s", d)
	}
	settled(t, again, st)
}

// Operations on what a foreign hand took away are not errors: we look again.
func TestChangesAfterForeignHand(t *testing.T) {
	for name, c := range map[string]struct {
		command string
		change  func(st *desired.State)
	}{
		"table":       {"delete table inet tortie", func(st *desired.State) { st.Members.Set(member1("10.7.7.7/32", false), struct{}{}) }},
		"member":      {"delete element inet tortie s4h-0000000000000001 { 10.0.0.1 }", func(st *desired.State) { st.Members.Delete(member1("10.0.0.1/32", false)) }},
		"rule":        {"flush chain inet tortie " + programChain("in"), func(st *desired.State) { st.Programs.Set("in", profile(desired.Rule{Verdict: desired.Allow})) }},
		"map element": {`delete element inet tortie programs-to { "tap1" }`, func(st *desired.State) { st.Interfaces.Delete("tap1") }},
		"use":         {"add rule inet tortie judge jump " + programChain("in"), func(st *desired.State) { st.Programs.Delete("in") }},
	} {
		t.Run(name, func(t *testing.T) {
			host := nstest.New(t)
			tb, st := open(t), everyFeature()
			apply(t, tb, st)
			host.Run(t, "nft", c.command)
			c.change(st)
			if res := apply(t, tb, st); !res.Repaired {
				t.Errorf("%+v, want a repair", res)
			}
			settled(t, tb, st)
		})
	}
	// The epoch's rules are gone: the bump fails, the next apply repairs.
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	host.Run(t, "nft", "flush chain inet tortie allowed")
	if err := tb.BumpEpoch(context.Background()); err == nil {
		t.Error("the bump of a rule that is not there succeeded")
	}
	if res := apply(t, tb, st); !res.Repaired {
		t.Errorf("%+v, want a repair", res)
	}
	bump(t, tb)
	settled(t, tb, st)
}

// A set that fills up is made anew, with all that is in it and all that names
// it, in one transaction.
func TestSetsGrow(t *testing.T) {
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	addr := func(i int) [4]byte { return [4]byte{10, 99, byte(i >> 8), byte(i)} }
	for i := range 300 {
		st.Members.Set(desired.Member{Set: desired.SetKey{ID: 1, Family: 4}, Prefix: netip.PrefixFrom(netip.AddrFrom4(addr(i)), 32)}, struct{}{})
		in := desired.Interface{Index: 1000 + i, Addrs: []netip.Addr{netip.AddrFrom4(addr(i))}, Ingress: "in", Egress: "out"}
		st.Interfaces.Set("tap"+netip.AddrFrom4(addr(i)).String()[6:], in)
		if res := apply(t, tb, st); res.Transactions != 1 || res.Repaired {
			t.Fatalf("growing to %d: %+v", i, res)
		}
	}
	settled(t, tb, st)
	for _, set := range []string{"s4h-0000000000000001", "addr4"} {
		if out := host.Run(t, "nft", "list", "set", "inet", "tortie", set); !strings.Contains(out, "size 1024") && !strings.Contains(out, "size 512") {
			t.Errorf("set %s: %s", set, out)
		}
	}
	for i := range 300 {
		st.Members.Delete(desired.Member{Set: desired.SetKey{ID: 1, Family: 4}, Prefix: netip.PrefixFrom(netip.AddrFrom4(addr(i)), 32)})
		st.Interfaces.Delete("tap" + netip.AddrFrom4(addr(i)).String()[6:])
	}
	apply(t, tb, st)
	settled(t, tb, st)
}

func TestOpenOptions(t *testing.T) {
	for _, o := range []Options{
		{HostAction: HostDrop},
		{WorkloadPrefixes: []string{""}, HostAction: HostDrop},
		{WorkloadPrefixes: []string{"averylongprefix!"}, HostAction: HostDrop},
		{WorkloadPrefixes: []string{"tap"}, HostAction: "Reject"},
	} {
		if tb, err := Open(o); err == nil {
			_ = tb.Close()
			t.Errorf("%+v was taken", o)
		}
	}
}
