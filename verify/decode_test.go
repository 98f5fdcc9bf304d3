package verify

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tortie/internal/nstest"
	"tortie/space"
)

// passing loads a table in a fresh namespace and runs all that a scenario has.
func passing(t *testing.T, table string) (s *space.Space, passes, undecided space.Set, why []string) {
	t.Helper()
	ns := nstest.Create(t)
	var r *Ruleset
	var err error
	ns.Do(func() {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table inet tortie {\n" + table + "\n}\n")
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			t.Errorf("%s", out)
			return
		}
		r, err = Read()
	})
	if err != nil {
		t.Fatal(err)
	}
	s = space.New(0)
	m := newMachine(s, r, way{in: device{"in0", 5}, out: device{"out0", 6}, mac: noMAC, hooks: forwarded})
	passes = m.run(s.All())
	return s, passes, m.undecided, m.why
}

const base = "\nchain forward { type filter hook forward priority 0; policy drop;\n"

// TestExpressions: what chains of all sorts let pass, in both families.
func TestExpressions(t *testing.T) {
	tcp80 := func(s *space.Space) space.Set {
		return s.Proto(6).And(s.Ports(space.DstPort, 80, 80))
	}
	for table, want := range map[string]func(*space.Space) space.Set{
		base + `tcp dport 80 accept; }`:                           tcp80,
		base + `tcp dport != 80 drop; meta l4proto tcp accept; }`: tcp80,
		base + `tcp dport vmap { 80 : accept, 90-99 : drop }; }`:  tcp80,
		base + `tcp dport >= 80 tcp dport < 81 accept; }`:         tcp80,
		`set p { type inet_service; flags interval; elements = { 1-79, 81-65535, 0 } }` + base + `tcp dport @p drop; meta l4proto tcp accept; }`: tcp80,
		`chain a { meta l4proto != tcp return; jump b; drop; }
		 chain b { tcp dport 80 accept; return; }` + base + `jump a; }`: tcp80,
		`chain a { tcp dport 81 accept; }` + base + `goto a; accept; }`: func(s *space.Space) space.Set {
			return s.Proto(6).And(s.Ports(space.DstPort, 81, 81))
		},
		`set a { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-81, 10.0.0.1 . 90 } }` + base + `ip daddr . tcp dport @a accept; }`: func(s *space.Space) space.Set {
			return s.Proto(6).And(s.Nets(space.DstAddr, prefixes("10.0.0.0/8")).And(s.Ports(space.DstPort, 80, 81)).
				Or(s.Nets(space.DstAddr, prefixes("10.0.0.1/32")).And(s.Ports(space.DstPort, 90, 90))))
		},
		base + `ip6 saddr & ffff:: == fd00:: accept; ip saddr 10.0.0.0/9 accept; }`: func(s *space.Space) space.Set {
			return s.Nets(space.SrcAddr, prefixes("fd00::/16", "10.0.0.0/9"))
		},
		base + `iifname "in*" oif != 7 meta mark set 3; meta mark 3 ct state new ct original ip daddr 10.0.0.0/8 accept; }`: func(s *space.Space) space.Set {
			return s.Nets(space.DstAddr, prefixes("10.0.0.0/8"))
		},
		`chain nat { type nat hook prerouting priority -100; ip daddr 198.51.100.1 dnat to 10.0.0.1; }` + base + `ip daddr 10.0.0.1 ct original ip daddr 198.51.100.1 ct status dnat accept; }`: func(s *space.Space) space.Set {
			return s.Nets(space.DstAddr, prefixes("198.51.100.1/32"))
		},
		base + `icmp type 8 icmp code 1 counter log accept; icmpv6 type 128 limit rate 1/second accept; limit rate over 1/second accept; }`: func(s *space.Space) space.Set {
			v4 := s.IP(4).And(s.Proto(1)).And(s.ICMP(space.ICMPType, 8)).And(s.ICMP(space.ICMPCode, 1))
			return v4.Or(s.IP(6).And(s.Proto(58)).And(s.ICMP(space.ICMPType, 128)))
		},
	} {
		s, passes, undecided, why := passing(t, table)
		want := want(s)
		if d := passes.Xor(want).And(s.WellFormed()); !d.IsEmpty() || !undecided.And(s.WellFormed()).IsEmpty() {
			p, _ := d.Witness()
			u, _ := undecided.Witness()
			t.Errorf("%s\ndiffers in %s; undecided %s: %v", table, p, u, why)
		}
	}
}

// TestCannotDecide: what is not known is never said to pass or not.
func TestCannotDecide(t *testing.T) {
	for _, match := range []string{"numgen random mod 2 0", "tcp flags syn", "meta cpu 0", "fib daddr type local", "tcp option maxseg size 1", "quota over 1 bytes"} {
		s, passes, undecided, why := passing(t, base+`tcp dport 1-79 accept; tcp dport 80 `+match+` accept; }`)
		if !undecided.And(s.WellFormed()).Equal(s.Proto(6).And(s.Ports(space.DstPort, 80, 80)).And(s.WellFormed())) || len(why) == 0 {
			p, _ := undecided.Witness()
			t.Errorf("%s: undecided %s, %q", match, p, why)
		}
		if !passes.And(undecided).IsEmpty() || !passes.Equal(s.Proto(6).And(s.Ports(space.DstPort, 1, 79))) {
			t.Errorf("%s: what passes is not what it should be", match)
		}
	}
}

// FuzzDecode reads whatever the kernel might send, and runs it.
func FuzzDecode(f *testing.F) {
	rule, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte("tortie\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte("c\x00")},
		{Type: unix.NFTA_RULE_EXPRESSIONS, Data: []byte{24, 0, 1, 0, 8, 0, 1, 0, 'c', 'm', 'p', 0, 12, 0, 2, 0, 8, 0, 1, 0, 0, 0, 0, 8}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rule, rule, rule)
	f.Fuzz(func(_ *testing.T, ruleBytes, setBytes, elemBytes []byte) {
		if len(ruleBytes)+len(setBytes)+len(elemBytes) > 4000 {
			return
		}
		r := &Ruleset{chains: map[string]*chain{"c": {name: "c", base: true, hook: unix.NF_INET_FORWARD, kind: "filter"}}, sets: map[string]*set{}}
		for _, b := range []struct {
			data []byte
			read func(attrs) error
		}{{ruleBytes, r.rule}, {setBytes, r.set}, {elemBytes, func(a attrs) error {
			r.sets["s"] = &set{name: "s", keyLen: 4}
			return r.elements("s", a)
		}}} {
			if a, err := decode(b.data); err == nil {
				_ = b.read(a)
			}
		}
		s := space.New(1 << 16)
		newMachine(s, r, way{hooks: forwarded}).run(s.All())
	})
}
