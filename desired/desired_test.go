package desired

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
)

var (
	key4   = SetKey{ID: 0xabc, Family: 4}
	key6   = SetKey{ID: 0xabc, Family: 6}
	range4 = SetKey{ID: 0xabc, Family: 4, Ranges: true}
)

func fullRule() Rule {
	prefix := netip.MustParsePrefix
	return Rule{
		ID: "NetworkPolicy/ns/p/Ingress/0", Verdict: Allow, Family: 4, Protocol: 1, NotProtocol: 2,
		ICMP: &ICMP{Type: 8, Code: -1}, NotICMP: &ICMP{Type: 3, Code: 4},
		Source: Peer{Nets: []netip.Prefix{prefix("10.0.0.0/8"), prefix("192.0.2.1/32")}, NotNets: []netip.Prefix{prefix("10.1.0.0/16")}, Set: 0xabc, NotSet: 0xdef},
		Destination: Peer{
			Ports: []PortRange{{80, 80}, {1000, 2000}}, NotPorts: []PortRange{{1500, 1500}}, Named: 0xa, NotNamed: 0xb,
		},
	}
}

func fullState() *State {
	s := New()
	a4, a6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	web := api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "ns", Name: "web"}
	s.Endpoints.Set(web, Endpoint{Interface: "cali1", Present: true, Up: true})
	s.Endpoints.Set(api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "ns", Name: "bad"}, Endpoint{Interface: "cali9", Error: `no "x"`, Warning: "careful"})
	s.Endpoints.Set(api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "ns", Name: "down"}, Endpoint{Interface: "cali2", Present: true})
	s.Interfaces.Set("cali1", Interface{Endpoint: web, Index: 5, MAC: [6]byte{2, 0, 0, 0, 0, 1}, HasMAC: true, Addrs: []netip.Addr{a4, a6}, Ingress: "i1", Egress: "e1"})
	s.Programs.Set("i1", Program{Stages: []Stage{{Name: "default", Rules: []Rule{fullRule(), {Verdict: Next, ID: "x"}, {Verdict: Log}, {}}, End: Deny}}})
	s.Programs.Set("e1", Program{})
	s.Controls.Set("cali1", Controls{Index: 5, Ingress: Limits{Shape: Shape{1000, 2000, 3000, 1500}, PacketRate: 10, PacketBurst: 20}, Egress: Limits{Connections: 7}, Mark: true})
	for _, k := range []SetKey{key4, key6, range4} {
		s.Sets.Set(k, Set{Selector: `app == "web"`})
	}
	s.Sets.Set(SetKey{ID: 1, Family: 4}, Set{Selector: "all()"})
	s.Members.Set(Member{Set: key4, Prefix: netip.PrefixFrom(a4, 32)}, struct{}{})
	s.Members.Set(Member{Set: key6, Prefix: netip.PrefixFrom(a6, 128)}, struct{}{})
	s.Members.Set(Member{Set: range4, Prefix: netip.MustParsePrefix("10.2.0.0/16")}, struct{}{})
	s.Members.Set(Member{Set: range4, Prefix: netip.MustParsePrefix("10.1.0.0/16")}, struct{}{})
	places := SetKey{ID: 0xa, Family: 4, Ports: true}
	s.Sets.Set(places, Set{Selector: "ports http of all()"})
	s.Members.Set(Member{Set: places, Prefix: netip.PrefixFrom(a4, 32), Protocol: 6, Port: 80}, struct{}{})
	for _, a := range []netip.Addr{a6, a4} {
		s.Routes.Set(RouteKey{netip.PrefixFrom(a, a.BitLen()), 1024}, Route{"cali1", 5})
		s.Neighbours.Set(NeighbourKey{"cali1", a, false}, Neighbour{5, [6]byte{2, 0, 0, 0, 0, 1}})
	}
	s.Neighbours.Set(NeighbourKey{"cali1", netip.MustParseAddr("fd00::fe"), true}, Neighbour{Index: 5})
	s.Gateways.Set(netip.MustParseAddr("169.254.1.1"), struct{}{})
	s.Floating.Set(netip.MustParseAddr("192.0.2.9"), a4)
	s.External.Set(a4, netip.MustParseAddr("192.0.2.9"))
	s.Masquerade.Set(a6, struct{}{})
	s.Inside.Set(netip.MustParsePrefix("fd00::/64"), struct{}{})
	return s
}

const fullText = `endpoint WorkloadEndpoint(ns/bad) interface=cali9 link=absent error="no \"x\"" warning="careful"
endpoint WorkloadEndpoint(ns/down) interface=cali2 link=down
endpoint WorkloadEndpoint(ns/web) interface=cali1 link=up
interface cali1 (WorkloadEndpoint(ns/web)) index=5 mac=02:00:00:00:00:01 addrs=10.0.0.1,fd00::1 ingress=i1 egress=e1
controls cali1 index=5 ingress-rate=1000 ingress-burst=2000 ingress-peak=3000 ingress-least=1500 ingress-packets=10 ingress-packet-burst=20 egress-connections=7 dscp=0
program e1
program i1
  stage default end=deny
    allow ipv4 proto=1 not-proto=2 icmp=8 not-icmp=3/4 from=10.0.0.0/8,192.0.2.1 from-not=10.1.0.0/16 from-set=0000000000000abc from-not-set=0000000000000def to-ports=80,1000:2000 to-not-ports=1500 to-named=000000000000000a to-not-named=000000000000000b id=NetworkPolicy/ns/p/Ingress/0
    next id=x
    log
    deny
set s4h-0000000000000001 all()
set s4h-0000000000000abc app == "web"
member s4h-0000000000000abc 10.0.0.1
set s4r-0000000000000abc app == "web"
member s4r-0000000000000abc 10.1.0.0/16
member s4r-0000000000000abc 10.2.0.0/16
set s6h-0000000000000abc app == "web"
member s6h-0000000000000abc fd00::1
set s4p-000000000000000a ports http of all()
member s4p-000000000000000a 10.0.0.1 proto=6 port=80
route 10.0.0.1/32 metric=1024 dev=cali1 index=5
route fd00::1/128 metric=1024 dev=cali1 index=5
neighbour cali1 10.0.0.1 mac=02:00:00:00:00:01 index=5
neighbour cali1 fd00::1 mac=02:00:00:00:00:01 index=5
neighbour cali1 fd00::fe proxy index=5
gateway 169.254.1.1
floating 192.0.2.9 to=10.0.0.1
external 10.0.0.1 as=192.0.2.9
masquerade fd00::1
inside fd00::/64
`

func TestWriteText(t *testing.T) {
	for range 3 { // maps have no order
		var b strings.Builder
		if err := fullState().WriteText(&b); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fullText, b.String()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

// A member of a set that does not exist is shown, as the fault that it is.
func TestWriteTextStrayMember(t *testing.T) {
	s := New()
	s.Members.Set(Member{Set: key4, Prefix: netip.MustParsePrefix("10.0.0.1/32")}, struct{}{})
	var b strings.Builder
	if err := s.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if want := "member s4h-0000000000000abc 10.0.0.1 (no such set)\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

var errFull = errors.New("full")

func TestWriteTextFails(t *testing.T) {
	if err := fullState().WriteText(failing{}); err == nil {
		t.Error("no error")
	}
}

// Setting an equal value is no change; a value that differs in any field is.
func TestEquality(t *testing.T) {
	s, same := fullState(), fullState()
	s.ClearDirty()
	for k, v := range same.Programs.All() {
		s.Programs.Set(k, v)
	}
	for k, v := range same.Interfaces.All() {
		s.Interfaces.Set(k, v)
	}
	if n := s.Programs.DirtyLen() + s.Interfaces.DirtyLen(); n != 0 {
		t.Errorf("%d equal values counted as changes", n)
	}
	prefix := netip.MustParsePrefix
	for name, change := range map[string]func(*Rule){
		"verdict":     func(r *Rule) { r.Verdict = Deny },
		"family":      func(r *Rule) { r.Family = 0 },
		"protocol":    func(r *Rule) { r.Protocol = 6 },
		"notProtocol": func(r *Rule) { r.NotProtocol = 0 },
		"no icmp":     func(r *Rule) { r.ICMP = nil },
		"icmp":        func(r *Rule) { r.ICMP = &ICMP{Type: 8, Code: 0} },
		"notICMP":     func(r *Rule) { r.NotICMP = nil },
		"nets":        func(r *Rule) { r.Source.Nets = []netip.Prefix{prefix("10.0.0.0/8")} },
		"notNets":     func(r *Rule) { r.Source.NotNets = nil },
		"set":         func(r *Rule) { r.Source.Set = 1 },
		"notSet":      func(r *Rule) { r.Source.NotSet = 0 },
		"ports":       func(r *Rule) { r.Destination.Ports = nil },
		"named":       func(r *Rule) { r.Destination.Named = 0 },
		"notNamed":    func(r *Rule) { r.Destination.NotNamed = 1 },
		"notPorts":    func(r *Rule) { r.Destination.NotPorts = []PortRange{{1, 1}} },
	} {
		r := fullRule()
		if change(&r); r.Same(fullRule()) || r.Equal(fullRule()) {
			t.Errorf("%s: no difference seen", name)
		}
	}
	r := fullRule()
	r.ID = "other"
	if !r.Same(fullRule()) || r.Equal(fullRule()) {
		t.Error("identity is not the meaning")
	}
	r = fullRule()
	if r.Note = "why"; !r.Same(fullRule()) || r.Equal(fullRule()) {
		t.Error("annotations are not the meaning")
	}
}

func TestClearDirty(t *testing.T) {
	s := fullState()
	s.ClearDirty()
	if n := s.Endpoints.DirtyLen() + s.Controls.DirtyLen() + s.Interfaces.DirtyLen() + s.Programs.DirtyLen() + s.Sets.DirtyLen() +
		s.Members.DirtyLen() + s.Routes.DirtyLen() + s.Neighbours.DirtyLen() + s.Gateways.DirtyLen() +
		s.Floating.DirtyLen() + s.External.DirtyLen() + s.Masquerade.DirtyLen() + s.Inside.DirtyLen(); n != 0 {
		t.Errorf("%d keys are still dirty", n)
	}
}
