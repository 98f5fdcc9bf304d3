package nft

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/compile"
	"tortie/desired"
)

var update = flag.Bool("update", false, "rewrite the golden files of render")

func chainsText(chains []chain) string {
	var b strings.Builder
	for i := range chains {
		b.WriteString(chains[i].text())
	}
	return b.String()
}

// programText renders rules in which selector 1 has addresses only and
// selector 2 ranges too.
func programText(t *testing.T, stages ...desired.Stage) string {
	t.Helper()
	return carriedText(t, carrying{}, stages...)
}

func carriedText(t *testing.T, how carrying, stages ...desired.Stage) string {
	t.Helper()
	how.has = func(k desired.SetKey) bool { return k.ID == 1 && !k.Ranges || k.ID == 2 }
	for i := range stages {
		for j := range stages[i].Rules {
			stages[i].Rules[j].ID = fmt.Sprintf("r%d.%d", i, j)
		}
	}
	chains, err := renderProgram("program", desired.Program{Stages: stages}, how)
	if err != nil {
		t.Fatal(err)
	}
	return chainsText(chains)
}

// trialText renders a program that allows all, with a trial.
func trialText(t *testing.T, stages ...desired.Stage) string {
	t.Helper()
	program, err := renderProgram("program", desired.Program{Stages: []desired.Stage{rules(desired.Rule{ID: "r", Verdict: desired.Allow})}}, carrying{})
	if err == nil {
		program, err = addTrial(program, stages, carrying{has: func(desired.SetKey) bool { return true }})
	}
	if err != nil {
		t.Fatal(err)
	}
	return chainsText(program)
}

func rules(rs ...desired.Rule) desired.Stage { return desired.Stage{Name: "default", Rules: rs} }

func interfaceText(i desired.Interface) string {
	var lines []string
	for _, e := range renderInterface("tap1", i, chainName) {
		s, _, _ := describeSet(e.set)
		line := fmt.Sprintf("%s %s", e.set.name, s.elemText(e.key))
		if e.set.family == arp {
			line = "arp " + line
		}
		if s.verdicts {
			line += " : " + string(e.target)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestRenderGolden(t *testing.T) {
	b := base{prefixes: []string{"cali", "tap"}, hostAction: HostReturn, epoch: 0x10, fixedMAC: true}
	mixed := b
	mixed.hostAction, mixed.anyMAC = HostDrop, true
	ranged := mixed
	ranged.ranges = ranges{own: true, others: true, nets: prefixes("10.9.0.0/16", "10.8.0.0/20", "fd09::/48")}
	limited := ranged
	limited.controls = everyControl
	port := func(min, max uint16) desired.PortRange { return desired.PortRange{Min: min, Max: max} }
	addrs := []netip.Addr{netip.MustParseAddr("10.65.0.1"), netip.MustParseAddr("fd00::1")}
	features := map[string]string{
		"skeleton":  chainsText(renderSkeleton(b.prefixes)),
		"base":      chainsText(renderBase(b)),
		"base-drop": chainsText(renderBase(mixed)),
		"forward-controls": chainsText(slices.DeleteFunc(renderBase(limited), func(c chain) bool {
			return !slices.Contains([]string{chainForward, chainJudge, chainSettle, chainMark}, c.name)
		})),
		"nat-none": chainsText(renderNAT(b.prefixes, nat{inside: prefixes("10.0.0.0/8")})),
		"nat-kept": chainsText(renderNAT(b.prefixes, nat{inside: prefixes("10.0.0.0/8"), kept: true})),
		"nat-floating": chainsText(renderNAT(b.prefixes, nat{
			floating: [2]bool{true, true}, inside: prefixes("10.65.0.0/16", "192.168.0.0/24"),
		})),
		"nat-outgoing": chainsText(renderNAT(b.prefixes, nat{
			masquerade: [2]bool{true, true}, inside: prefixes("10.65.0.0/16", "fd00::/16", "fd02::/17"),
		})),
		"nat-all": chainsText(renderNAT(b.prefixes, nat{
			floating: [2]bool{true, true}, masquerade: [2]bool{true, true}, inside: prefixes("10.65.0.0/16", "fd00::/16"),
			address: netip.MustParseAddr("198.51.100.1"), ports: [2]uint16{1000, 2000},
		})),
		"controls": chainsText(renderControls(controls{true, true, true, true, true, 1<<46 | 1, map[string]uint32{countChain(mapCountFrom, 7): 30}, true})),
		"notes":    chainsText([]chain{renderNotes(map[string]string{"net.b": "1", "net.a": "0"})}),
		"interface-mac": interfaceText(desired.Interface{
			Index: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}, HasMAC: true,
			Addrs: addrs, Ingress: "in", Egress: "out",
		}),
		"base-ranges": chainsText(renderBase(ranged)),
		"interface-ranges": interfaceText(desired.Interface{
			Index: 7, Addrs: addrs[:1], Ranges: prefixes("10.9.0.0/16", "10.9.4.0/24", "fd09::/48"), Spoofed: prefixes("10.8.0.0/15", "::/0"),
		}),
		"interface-ranges-mac": interfaceText(desired.Interface{
			Index: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}, HasMAC: true, Ranges: prefixes("10.9.0.0/16"), Spoofed: prefixes("0.0.0.0/0", "fd00::/8"),
		}),
		"interface": interfaceText(desired.Interface{Index: 7, Addrs: addrs}),
		"empty":     programText(t),
		"verdicts":  programText(t, rules(desired.Rule{Verdict: desired.Log}, desired.Rule{Verdict: desired.Deny}, desired.Rule{Verdict: desired.Allow})),
		"denied": carriedText(t, carrying{events: true},
			desired.Stage{Name: "a", Rules: []desired.Rule{{Verdict: desired.Deny, Protocol: 6}, {Verdict: desired.Next, Protocol: 17}}, EndID: "Tier//a/Ingress/end"},
			desired.Stage{Name: "profiles", EndID: "Profile///Ingress/end"},
		),
		"families":  programText(t, rules(desired.Rule{Family: 4}, desired.Rule{Family: 6}, desired.Rule{Family: 6, Protocol: 58})),
		"protocols": programText(t, rules(desired.Rule{Protocol: 6}, desired.Rule{NotProtocol: 17}, desired.Rule{Protocol: 17, NotProtocol: 6})),
		"ports": programText(t, rules(
			desired.Rule{Protocol: 6, Destination: desired.Peer{Ports: []desired.PortRange{port(80, 80)}}},
			desired.Rule{Protocol: 6, Source: desired.Peer{Ports: []desired.PortRange{port(1024, 65535)}}},
			desired.Rule{Protocol: 17, Destination: desired.Peer{Ports: []desired.PortRange{port(443, 443), port(80, 81), port(82, 90)}}},
			desired.Rule{Protocol: 132, Destination: desired.Peer{NotPorts: []desired.PortRange{port(1, 9)}}, Source: desired.Peer{NotPorts: []desired.PortRange{port(7, 7)}}},
			desired.Rule{Protocol: 6, Destination: desired.Peer{NotPorts: []desired.PortRange{port(1, 9), port(0, 0), port(60000, 65535), port(99, 99)}}},
			desired.Rule{Destination: desired.Peer{Ports: []desired.PortRange{port(53, 53)}}},
		)),
		"dispatch": programText(t, compile.Program([]compile.Stage{
			{Name: "a", Policies: [][]desired.Rule{randomRules(rand.New(rand.NewPCG(7, 7)), 12)}, End: desired.Next},
			{Name: "b", Policies: [][]desired.Rule{{{Verdict: desired.Allow, Protocol: 17}}}},
		}).Stages...),
		"wide": programText(t, compile.Program([]compile.Stage{
			{Name: "a", Policies: [][]desired.Rule{wideRules(rand.New(rand.NewPCG(1, 7)), 40)}},
		}).Stages...),
		"icmp": programText(t, rules(
			desired.Rule{Protocol: 1, ICMP: &desired.ICMP{Type: 8, Code: -1}},
			desired.Rule{Protocol: 58, ICMP: &desired.ICMP{Type: 1, Code: 4}},
			desired.Rule{Protocol: 1, NotICMP: &desired.ICMP{Type: 3, Code: 1}},
			desired.Rule{ICMP: &desired.ICMP{Type: 128, Code: -1}},
		)),
		"nets": programText(t, rules(
			desired.Rule{Source: desired.Peer{Nets: prefixes("10.0.0.0/8")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("10.16.0.0/12", "fd00::/7")}},
			desired.Rule{Destination: desired.Peer{Nets: prefixes("192.0.2.1/32", "fd00::1/128")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("0.0.0.0/0")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("0.0.0.0/0", "::/0")}, Destination: desired.Peer{Nets: prefixes("::/0", "fd00::/8")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("10.0.0.0/8", "11.0.0.0/9")}},
			desired.Rule{Source: desired.Peer{Nets: prefixes("10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "240.0.0.0/4")}},
			desired.Rule{Source: desired.Peer{NotNets: prefixes("10.0.0.0/8", "fd00::/8")}},
			desired.Rule{Family: 4, Source: desired.Peer{NotNets: prefixes("10.0.0.0/8", "192.168.0.0/16")}},
			desired.Rule{Source: desired.Peer{NotNets: prefixes("::/0")}},
			desired.Rule{Family: 6, Source: desired.Peer{Nets: prefixes("10.0.0.0/8")}},
		)),
		"selectors": programText(t, rules(
			desired.Rule{Source: desired.Peer{Set: 1}},
			desired.Rule{Family: 6, Source: desired.Peer{Set: 2}, Destination: desired.Peer{Set: 2}},
			desired.Rule{Family: 4, Source: desired.Peer{NotSet: 2}, Destination: desired.Peer{NotSet: 1}},
			desired.Rule{Family: 4, Source: desired.Peer{Set: 2, NotSet: 1, Nets: prefixes("10.0.0.0/8"), NotNets: prefixes("10.1.0.0/16")}},
		)),
		"tiers": programText(t,
			desired.Stage{Name: "a", Rules: []desired.Rule{{Verdict: desired.Next, Protocol: 6}, {Verdict: desired.Allow, Protocol: 17}}},
			desired.Stage{Name: "b", Rules: []desired.Rule{{Verdict: desired.Deny, Protocol: 6}}, End: desired.Next},
			desired.Stage{Name: "c", Rules: []desired.Rule{{Verdict: desired.Next, Protocol: 1}}, End: desired.Next},
			desired.Stage{Name: "profiles", Rules: []desired.Rule{{Verdict: desired.Allow, Protocol: 6}, {Verdict: desired.Next}}},
		),
		"trial": trialText(t,
			desired.Stage{Name: "a", EndID: "a/staged-end", Rules: []desired.Rule{
				{ID: "staged/0", Verdict: desired.Log}, {Verdict: desired.Deny, Protocol: 1}, {ID: "staged/1", Verdict: desired.Deny, Protocol: 6}, {ID: "staged/2", Verdict: desired.Next, Protocol: 17},
			}},
			desired.Stage{Name: "profiles", EndID: "profiles/staged-end", Rules: []desired.Rule{{Verdict: desired.Allow, Source: desired.Peer{Set: 1}}}}),
		"unreachable": programText(t, rules(desired.Rule{Verdict: desired.Allow, Protocol: 6}), rules(desired.Rule{Verdict: desired.Allow})),
	}
	for name, got := range features {
		path := filepath.Join("testdata", "render", name+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	files, err := filepath.Glob("testdata/render/*.txt")
	if err != nil || len(files) != len(features) {
		t.Errorf("%d golden files for %d features, %v", len(files), len(features), err)
	}
}

// The edits that lead from one list of rules to another are few and right.
func TestDiffChain(t *testing.T) {
	describe := func(c *chainChange) string {
		if c == nil {
			return ""
		}
		if c.rewrite {
			return "rewrite"
		}
		var b strings.Builder
		for _, e := range c.edits {
			switch {
			case e.i < 0:
				fmt.Fprintf(&b, "delete %d ", e.handle)
			case e.replace != 0:
				fmt.Fprintf(&b, "replace %d by %s ", e.replace, c.rules[e.i].comment)
			default:
				fmt.Fprintf(&b, "%s before %d ", c.rules[e.i].comment, e.before)
			}
		}
		return strings.TrimSpace(b.String())
	}
	make := func(text string) chain {
		c := chain{}
		for _, r := range text {
			c.rules = append(c.rules, rule{comment: string(r)})
		}
		return c
	}
	for _, c := range []struct{ old, fresh, want string }{
		{"abc", "abc", ""},
		{"abc", "abXc", "X before 3"},
		{"abc", "abcXY", "X before 0 Y before 0"},
		{"abc", "XYabc", "X before 1 Y before 1"},
		{"abc", "aXc", "replace 2 by X"},
		{"abc", "ac", "delete 2"},
		{"abc", "", "delete 1 delete 2 delete 3"},
		{"abcd", "dabc", "replace 1 by d replace 2 by a replace 3 by b replace 4 by c"},
		{"aaa", "aa", "delete 3"},
		{"", "ab", "a before 0 b before 0"},
		{"abcd", "aXd", "replace 2 by X delete 3"},
	} {
		h := &haveChain{}
		for i, r := range make(c.old).rules {
			h.rules = append(h.rules, haveRule{hash: r.hash(), handle: uint64(i + 1)})
		}
		if got := describe(diffChain(make(c.fresh), h, false)); got != c.want {
			t.Errorf("%s to %s: %q, want %q", c.old, c.fresh, got, c.want)
		}
		if c.want == "" || c.old == "" || strings.HasPrefix(c.want, "X before 0") {
			continue
		}
		for i := range h.rules {
			h.rules[i].handle = 0
		}
		if got := describe(diffChain(make(c.fresh), h, false)); got != "rewrite" && got != c.want {
			t.Errorf("%s to %s, handles unknown: %q", c.old, c.fresh, got)
		}
	}
}

func TestNextEpoch(t *testing.T) {
	for e, want := range map[uint32]uint32{0: 1, 1: 2, EpochMask: 1, EpochMask - 1: EpochMask, 0xff000000: 1} {
		if got := nextEpoch(e); got != want {
			t.Errorf("after %#x comes %#x, want %#x", e, got, want)
		}
	}
	if e := newEpoch(map[uint32]bool{5: true}); e != 5 {
		t.Errorf("epoch %d of rules that say 5", e)
	}
	if a, b := newEpoch(map[uint32]bool{5: true, 6: true}), newEpoch(nil); a == 0 || b == 0 || a == b {
		t.Errorf("epochs %d and %d made up", a, b)
	}
}

// A comment has the whole of an ID; annotations are whole too, and cannot end
// the quotes that nft puts a comment in.
func TestComment(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, c := range []struct{ id, note, want string }{
		{"P//p/Ingress/0", "", "P//p/Ingress/0"},
		{"P//p/Ingress/0", "why=shop", "P//p/Ingress/0 why=shop"},
		{"P//p/Ingress/0", "a=\" accept\n\\é\x00", "P//p/Ingress/0 a=_ accept____"},
		{long, strings.Repeat("y", 19), long + " " + strings.Repeat("y", 19)},
		{long, strings.Repeat("y", 20), long},
	} {
		if got := comment(&desired.Rule{ID: c.id, Note: c.note}); got != c.want {
			t.Errorf("%q, %q: %q, want %q", c.id, c.note, got, c.want)
		}
	}
}
