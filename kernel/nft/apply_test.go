package nft

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"tortie/compile"
	"tortie/desired"
	"tortie/internal/nstest"
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func addSet(st *desired.State, id desired.SetID, members ...string) {
	for _, fam := range []uint8{4, 6} {
		st.Sets.Set(desired.SetKey{ID: id, Family: fam}, desired.Set{})
	}
	for _, p := range prefixes(members...) {
		k := desired.SetKey{ID: id, Family: 6, Ranges: !p.IsSingleIP()}
		if p.Addr().Is4() {
			k.Family = 4
		}
		st.Sets.Set(k, desired.Set{})
		st.Members.Set(desired.Member{Set: k, Prefix: p}, struct{}{})
	}
}

// addPlaces makes a set of named ports: openPort of a protocol at each prefix.
func addPlaces(st *desired.State, id desired.SetID, protocol uint8, members ...string) {
	for _, fam := range []uint8{4, 6} {
		st.Sets.Set(desired.SetKey{ID: id, Family: fam, Ports: true}, desired.Set{})
	}
	for _, p := range prefixes(members...) {
		k := desired.SetKey{ID: id, Family: 6, Ranges: !p.IsSingleIP(), Ports: true}
		if p.Addr().Is4() {
			k.Family = 4
		}
		st.Sets.Set(k, desired.Set{})
		st.Members.Set(desired.Member{Set: k, Prefix: p, Protocol: protocol, Port: openPort}, struct{}{})
	}
}

// everyFeature is a state with something of all that can be desired.
func everyFeature() *desired.State {
	st := desired.New()
	addSet(st, 1, "10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "10.1.0.0/25", "10.1.0.128/25", "192.0.2.0/24", "fd01::/16", "ffff::/16")
	addSet(st, 2, "0.0.0.0/0", "::/0")
	addSet(st, 3)
	addPlaces(st, 4, 6, "10.0.0.1/32", "fd00::1/128", "10.1.0.0/25", "::/0")
	rules := []desired.Rule{
		{Verdict: desired.Deny, Protocol: 6, Source: desired.Peer{Set: 1}, Destination: desired.Peer{NotSet: 3, Ports: []desired.PortRange{{Min: 80, Max: 80}, {Min: 443, Max: 444}}}},
		{Verdict: desired.Log, Source: desired.Peer{Nets: prefixes("10.0.0.0/8", "10.0.0.0/9", "172.16.0.0/12", "fd00::/8")}},
		{Verdict: desired.Allow, Source: desired.Peer{Nets: prefixes("0.0.0.0/0"), NotNets: prefixes("10.0.0.0/12")}},
		{Verdict: desired.Next, Family: 6, Protocol: 58, ICMP: &desired.ICMP{Type: 128, Code: -1}},
		{Verdict: desired.Next, Family: 4, NotProtocol: 17},
		{Verdict: desired.Allow, Source: desired.Peer{NotNamed: 4}, Destination: desired.Peer{Named: 4}, Note: "ticket=7"},
	}
	for i := range rules {
		rules[i].ID = "NetworkPolicy/ns/p/Ingress/" + string(rune('0'+i))
	}
	st.Programs.Set("in", desired.Program{Stages: []desired.Stage{{Name: "a", Rules: rules, End: desired.Next}, {Name: "profiles", Rules: rules[:3]}}})
	many := compile.Stage{Name: "c", Policies: [][]desired.Rule{randomRules(rand.New(rand.NewPCG(1, 1)), 20)}, End: desired.Next}
	st.Programs.Set("many", compile.Program([]compile.Stage{many, many}))
	st.Programs.Set("out", profile(desired.Rule{Verdict: desired.Allow}))
	st.Interfaces.Set("tap1", desired.Interface{
		Index: 11, MAC: [6]byte{2, 0, 0, 0, 0, 1}, HasMAC: true,
		Addrs: []netip.Addr{netip.MustParseAddr("10.65.0.1"), netip.MustParseAddr("fd00::1")}, Ingress: "in", Egress: "out",
		Ranges: prefixes("10.99.0.0/16", "fd99::/48"), Spoofed: prefixes("0.0.0.0/0", "2001:db8::/33"),
	})
	st.Interfaces.Set("cali2", desired.Interface{
		Index: 12,
		Addrs: []netip.Addr{netip.MustParseAddr("10.65.0.2"), netip.MustParseAddr("fd00::2")}, Ingress: "in", Egress: "out",
		Ranges: prefixes("10.99.8.0/21", "10.98.0.0/16"), Spoofed: prefixes("::/0"),
	})
	addFloating(st, "192.0.2.1", "10.65.0.1")
	addFloating(st, "2001:db8::1", "fd00::1")
	addOutgoing(st, "10.65.0.2", "10.65.0.0/16")
	addOutgoing(st, "fd00::2", "fd00::/64")
	limits := desired.Limits{PacketRate: 100, PacketBurst: 5, Connections: 20}
	st.Controls.Set("tap1", desired.Controls{Index: 11, Ingress: limits, Egress: limits, Mark: true, DSCP: 46})
	st.Controls.Set("cali2", desired.Controls{Index: 12, Mark: true, DSCP: 8})
	return st
}

func dump(t testing.TB, tb *Tables) string {
	t.Helper()
	s, err := tb.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Promise F4, F5: the kernel is the memory; a new process that finds it right
// writes nothing.
func TestApplyTwiceAndRestart(t *testing.T) {
	host := nstest.New(t)
	tb, st := open(t), everyFeature()
	if res := apply(t, tb, st); res.Transactions != 2 || res.Repaired || res.Writes == 0 { // new lists go first
		t.Errorf("first apply: %+v", res)
	}
	if res := apply(t, tb, st); res != (Result{}) {
		t.Errorf("second apply: %+v", res)
	}
	if err := tb.BumpEpoch(context.Background()); err != nil {
		t.Fatal(err)
	}
	settled(t, tb, st)
	if out := host.Run(t, "nft", "list", "ruleset"); !strings.Contains(out, "table inet tortie") {
		t.Errorf("nft cannot list it:\n%s", out)
	}
}

// What the kernel holds, decoded, is what was rendered.
func TestKernelHoldsWhatWasRendered(t *testing.T) {
	nstest.New(t)
	tb, st := open(t), everyFeature()
	apply(t, tb, st)
	h, _, err := tb.conn.readBack()
	if err != nil {
		t.Fatal(err)
	}
	got, err := tb.conn.ruleTexts(h)
	if err != nil {
		t.Fatal(err)
	}
	chains := tb.shared()
	for id, p := range st.Programs.All() {
		cs, err := renderProgram(id, p, tb.carrying(st))
		if err != nil {
			t.Fatal(err)
		}
		chains = append(chains, cs...)
	}
	for _, c := range chains {
		if len(got[c.object]) != len(c.rules) {
			t.Errorf("chain %s: %d rules, want %d", c.name, len(got[c.object]), len(c.rules))
			continue
		}
		for i, r := range c.rules {
			for j := range r.matches {
				if m := &r.matches[j]; m.op == anyOf || m.op == noneOf {
					m.op += in - anyOf
				}
			}
			if want := string(r.appendText(nil)); got[c.object][i] != want {
				t.Errorf("chain %s rule %d: kernel has\n%s\nwant\n%s", c.name, i, got[c.object][i], want)
			}
		}
	}
}

// withoutEpoch leaves out of a dump what a bump changes.
func withoutEpoch(text string) string { return epochs.ReplaceAllString(text, "${1}0xEPOCH") }

var epochs = regexp.MustCompile(`(\| |set epoch size 128\n\t)0x[0-9a-f]+`)

// Promise F5: a foreign hand's work is undone, and nothing else touched.
func TestRepair(t *testing.T) {
	cases := map[string]string{
		"table deleted":           "delete table inet tortie",
		"ARP table deleted":       "delete table arp tortie",
		"both deleted":            "flush ruleset",
		"table emptied":           "flush table inet tortie",
		"table asleep":            "add table inet tortie { flags dormant; }",
		"base chain emptied":      "flush chain inet tortie forward",
		"base chain deleted":      "flush chain inet tortie forward; delete chain inet tortie forward",
		"base chain drops":        "chain inet tortie forward { policy drop; }",
		"program emptied":         "flush chain inet tortie " + programChain("in"),
		"rule inserted":           "insert rule inet tortie judge accept",
		"rule added":              "add rule inet tortie " + programChain("in") + " accept",
		"element removed":         "delete element inet tortie mac-addr4 { 11 . 02:00:00:00:00:01 . 10.65.0.1 }",
		"element added":           "add element inet tortie addr4 { 12 . 10.65.0.9 }",
		"member removed":          "delete element inet tortie s4h-0000000000000001 { 10.0.0.1 }",
		"member added":            "add element inet tortie s4h-0000000000000003 { 10.0.0.1 }",
		"range removed":           "delete element inet tortie s4r-0000000000000001 { 192.0.2.0/24 }",
		"range added":             "add element inet tortie s6r-0000000000000001 { fd02::/16 }",
		"map element changed":     `delete element inet tortie programs-to { "tap1" }; add element inet tortie programs-to { "tap1" : accept }`,
		"map element redirected":  `delete element inet tortie programs-to { "tap1" }; add element inet tortie programs-to { "tap1" : jump allowed }`,
		"map element removed":     `delete element inet tortie programs-from { "cali2" }`,
		"set added":               "add set inet tortie rubbish { type ipv4_addr; }; add element inet tortie rubbish { 10.0.0.1 }",
		"chain added":             "add chain inet tortie rubbish; add rule inet tortie rubbish goto allowed; insert rule inet tortie judge jump rubbish",
		"base chain added":        "add chain inet tortie rubbish { type filter hook forward priority -1; }; add rule inet tortie rubbish accept",
		"program chain added":     "add chain inet tortie " + programChain("in") + "-7",
		"counter added":           "add counter inet tortie rubbish",
		"map to rubbish":          "add chain inet tortie r2; add map inet tortie m2 { type ifname : verdict; }; add element inet tortie m2 { \"x\" : jump r2 }",
		"list changed":            "",
		"chain attached":          "flush ruleset; add table inet tortie; add chain inet tortie judge { type filter hook input priority 0; }",
		"set of another kind":     "flush ruleset; add table inet tortie; add set inet tortie addr4 { type ipv6_addr; }",
		"set without room":        "flush ruleset; add table inet tortie; add set inet tortie any-mac { type iface_index; }",
		"counter of another kind": "flush ruleset; add table inet tortie; add quota inet tortie spoofed 10 bytes",
	}
	// One for each thing damaged, and one for the word that a bump is due.
	exact := map[string]int{
		"rule inserted": 2, "rule added": 2, "element removed": 2, "element added": 2, "member removed": 2, "range removed": 3,
		"map element changed": 3, "map element removed": 2, "counter added": 2, "program chain added": 2, "list changed": 3,
	}
	for name, commands := range cases {
		t.Run(name, func(t *testing.T) {
			host := nstest.New(t)
			tb, st := open(t), everyFeature()
			apply(t, tb, st)
			host.Run(t, "nft", "add", "table", "inet", "other")
			before := dump(t, tb)
			if name == "list changed" {
				commands = "delete element inet tortie " + regexp.MustCompile(`(port-[0-9a-f]+)\n\t443\n`).FindStringSubmatch(before)[1] + " { 80 }"
			}
			host.Run(t, "nft", commands)
			if damaged := dump(t, tb); damaged == before && name != "table asleep" && name != "base chain drops" {
				t.Fatal("the command changed nothing")
			}
			for _, life := range []string{"same process", "new process"} {
				tb.Resync()
				res := apply(t, tb, st)
				reborn := name == "both deleted" && life == "new process"
				if res.Repaired == reborn || res.Writes == 0 {
					t.Errorf("%s: %+v, want a repair", life, res)
				}
				if few, ok := exact[name]; ok && res.Writes != few {
					t.Errorf("%s: %d writes, want %d", life, res.Writes, few)
				}
				bump(t, tb)
				if after := dump(t, tb); withoutEpoch(after) != withoutEpoch(before) {
					t.Errorf("%s: not as before:\n%s\nwas\n%s", life, after, before)
				}
				settled(t, tb, st)
				host.Run(t, "nft", commands)
				tb = open(t)
			}
			if out := host.Run(t, "nft", "list", "tables"); strings.Contains(commands, "flush ruleset") == strings.Contains(out, "other") {
				t.Errorf("the other program's table: %s", out)
			}
		})
	}
}
