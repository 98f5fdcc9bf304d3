package nft

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/api"
	"tortie/desired"
	"tortie/internal/nstest"
)

// benchState is a large host: endpoints in 20 programs each way, each of one
// of 20 policies and one that all have, of 10 rules that mix what rules can
// match, and sets of 64 addresses but for one that has the rest of the members.
func benchState(members int) *desired.State {
	st := desired.New()
	const sets = 40
	for i := range sets {
		for _, fam := range []uint8{4, 6} {
			st.Sets.Set(benchSet(i, fam), desired.Set{Selector: fmt.Sprint("set ", i)})
			for j := range 64 {
				st.Members.Set(benchMember(i, fam, j), struct{}{})
			}
		}
	}
	for j := range members {
		st.Members.Set(benchMember(0, 4+2*uint8(j%2), j/2), struct{}{})
	}
	for p := range 20 {
		for _, dir := range []string{"in", "out"} {
			st.Programs.Set(benchProgram(dir, p), benchRules(p, dir, 443))
		}
	}
	for i := range 1000 {
		name, in := benchEndpoint(i)
		st.Interfaces.Set(name, in)
	}
	return st
}

func benchProgram(dir string, p int) desired.ProgramID {
	return desired.ProgramID(fmt.Sprint(dir, p))
}

func benchSet(i int, fam uint8) desired.SetKey {
	return desired.SetKey{ID: desired.SetID(i + 1), Family: fam}
}

func benchMember(set int, fam uint8, j int) desired.Member {
	if fam == 4 {
		return desired.Member{Set: benchSet(set, 4), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(j >> 16), byte(j >> 8), byte(j)}), 32)}
	}
	a := [16]byte{0: 0xfd, 13: byte(j >> 16), 14: byte(j >> 8), 15: byte(j)}
	return desired.Member{Set: benchSet(set, 6), Prefix: netip.PrefixFrom(netip.AddrFrom16(a), 128)}
}

func benchEndpoint(i int) (string, desired.Interface) {
	return fmt.Sprintf("tap%d", i), desired.Interface{
		Endpoint: api.Key{Name: fmt.Sprint(i)}, Index: 100 + i, MAC: [6]byte{2, 0, 0, 0, byte(i >> 8), byte(i)}, HasMAC: true,
		Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 65, byte(i >> 8), byte(i)}),
			netip.AddrFrom16([16]byte{0: 0xfd, 1: 1, 14: byte(i >> 8), 15: byte(i)}),
		},
		Ingress: benchProgram("in", i%20), Egress: benchProgram("out", i%20),
	}
}

// benchRules is the program of a group; port is in the rule that changes.
func benchRules(group int, dir string, port uint16) desired.Program {
	var rules []desired.Rule
	for i := range 20 {
		p := i / 10 * (group + 1)
		r := desired.Rule{ID: fmt.Sprintf("GlobalNetworkPolicy//p%d/%s/%d", p, dir, i%10), Verdict: desired.Allow}
		peer := &r.Source
		if dir == "out" {
			peer = &r.Destination
		}
		switch i % 5 {
		case 0:
			r.Protocol, peer.Set = 6, desired.SetID(1+(i+p)%40)
			r.Destination.Ports = []desired.PortRange{{Min: 80, Max: 80}, {Min: port, Max: port}}
		case 1:
			r.Protocol, peer.Nets = 17, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.9.0.0/17"), netip.MustParsePrefix("fd02::/32")}
		case 2:
			r.Protocol, r.Destination.Ports = 6, []desired.PortRange{{Min: 1000, Max: 2000 + uint16(i)}}
			peer.NotSet = desired.SetID(1 + (i+p)%40)
		case 3:
			r.Family, r.Protocol, r.ICMP = 4, 1, &desired.ICMP{Type: uint8(i), Code: -1}
		case 4:
			r.Verdict, r.Protocol, peer.NotNets = desired.Deny, 132, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/12")}
		}
		rules = append(rules, r)
	}
	return desired.Program{Stages: []desired.Stage{{Name: "default", Rules: rules}}}
}

// cpu reports the processor time of the benchmark's thread, kernel included:
// wall time says little on a machine that does other things.
func cpu(b *testing.B) {
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &before)
	b.Cleanup(func() {
		_ = unix.Getrusage(unix.RUSAGE_THREAD, &after)
		ms := func(r unix.Rusage) float64 {
			return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e6
		}
		b.ReportMetric((ms(after)-ms(before))/float64(b.N), "cpu-ms/op")
		b.ReportMetric(float64(after.Stime.Nano()-before.Stime.Nano())/1e6/float64(b.N), "sys-ms/op")
	})
}

func BenchmarkLoad(b *testing.B) {
	for _, members := range []int{0, 200000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			nstest.New(b)
			st := benchState(members)
			tb := open(b)
			apply(b, tb, st)
			cpu(b)
			for b.Loop() {
				b.StopTimer()
				if err := tb.Cleanup(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				apply(b, tb, st)
			}
		})
	}
}

func BenchmarkReadBack(b *testing.B) {
	for _, members := range []int{0, 200000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			nstest.New(b)
			st := benchState(members)
			apply(b, open(b), st)
			cpu(b)
			for b.Loop() {
				tb := open(b)
				if res := apply(b, tb, st); res != (Result{}) {
					b.Fatal(res)
				}
			}
		})
	}
}

// benchChange measures one change after the other on a large host.
func benchChange(b *testing.B, change func(st *desired.State, i int)) {
	nstest.New(b)
	st := benchState(0)
	tb := open(b)
	apply(b, tb, st)
	change(st, 0)
	apply(b, tb, st)
	i := 0
	cpu(b)
	for b.Loop() {
		i++
		change(st, i)
		if res := apply(b, tb, st); res.Transactions > 2 {
			b.Fatal(res)
		}
	}
}

func BenchmarkRule(b *testing.B) {
	rules := [2]desired.Program{benchRules(3, "in", 1), benchRules(3, "in", 1)}
	rules[1].Stages[0].Rules = append([]desired.Rule(nil), rules[0].Stages[0].Rules...)
	rules[1].Stages[0].Rules[12].Verdict = desired.Deny
	benchChange(b, func(st *desired.State, i int) { st.Programs.Set(benchProgram("in", 3), rules[i%2]) })
}

func BenchmarkMember(b *testing.B) {
	benchChange(b, func(st *desired.State, i int) {
		if m := benchMember(3, 4, 1000+i/2); i%2 == 0 {
			st.Members.Set(m, struct{}{})
		} else {
			st.Members.Delete(benchMember(3, 4, 1000+(i-1)/2))
		}
	})
}

func BenchmarkEndpoint(b *testing.B) {
	benchChange(b, func(st *desired.State, i int) {
		name, in := benchEndpoint(2000 + i/2)
		if i%2 == 0 {
			st.Interfaces.Set(name, in)
		} else {
			st.Interfaces.Delete(name)
		}
	})
}

func BenchmarkEpoch(b *testing.B) {
	nstest.New(b)
	tb := open(b)
	apply(b, tb, benchState(0))
	cpu(b)
	for b.Loop() {
		if err := tb.BumpEpoch(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConnection is what a packet that begins a connection through the
// host takes: where nothing was ever translated, where something was, where
// something else is, and where the packet itself is.
func BenchmarkConnection(b *testing.B) {
	benchPackets(b, func(i int) int { return 1 + i%flows })
}

// BenchmarkPacket is the same for one in the midst of a connection.
func BenchmarkPacket(b *testing.B) {
	benchPackets(b, func(int) int { return 1 })
}

// flows is how many connections the kernel is to know at most.
const flows = 50000

func benchPackets(b *testing.B, port func(i int) int) {
	for _, kind := range []string{"never", "kept", "others", "itself"} {
		b.Run(kind, func(b *testing.B) {
			w, st := newFloatingWorld(b)
			st.Programs.Set(w.b.endpoint().Ingress, profile(desired.Rule{Verdict: desired.Allow}))
			own := w.b.v4
			to := own
			switch kind {
			case "never", "kept":
				if kind == "kept" {
					apply(b, open(b), st)
				}
				w.untranslated(st)
			case "itself":
				to = netip.MustParseAddr("203.0.113.2")
				addFloating(st, to.String(), own.String())
				w.host.Run(b, "ip", "route", "add", to.String(), "dev", w.b.name)
			}
			apply(b, open(b), st)
			w.b.Run(b, "nft", "add table inet sink; add counter inet sink got; add chain inet sink in { type filter hook prerouting priority -450; }; add rule inet sink in meta l4proto udp counter name got drop")
			var c *net.UDPConn
			sent := 0
			b.ResetTimer()
			for i := range b.N {
				if i%flows == 0 { // forget the connections there were
					b.StopTimer()
					if c != nil {
						_ = c.Close()
					}
					w.host.Run(b, "conntrack", "-F")
					var err error
					w.a.Do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.a.v4, 0))) })
					if err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, uint16(port(i)))); err != nil {
					b.Fatal(err)
				}
				sent++
			}
			b.StopTimer()
			_ = c.Close()
			if list := w.b.Run(b, "nft", "list", "counter", "inet", "sink", "got"); !strings.Contains(list, fmt.Sprintf("packets %d ", sent)) {
				b.Fatalf("%d sent; %s", sent, list)
			}
		})
	}
}
