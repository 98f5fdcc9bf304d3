package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tortie/api"
)

var (
	randomAddrs     = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2", "fd00::3", "2001:db8::1"}
	randomNets      = []string{"10.0.0.0/24", "10.0.0.2/32", "0.0.0.0/0", "10.0.0.2/31", "fd00::/64", "fd00::2", "::/0", "nonsense"}
	randomSelectors = []string{"", "all()", "has(a)", "!has(a)", "a == 'x'", "a != 'x'", "a in {'x','y'}", "a == ", "pcns.env == 'x'", "global()"}
	randomTiers     = []string{"", "default", "t1", "t2", "t3"}
	randomNames     = []string{"p", "q", "r", "s"}
	randomProfiles  = []string{"p1", "p2", "kns.n1", "projectcalico-default-allow", "missing"}
)

// draw is a source of random objects, as JSON.
type draw struct{ t *rapid.T }

func (d draw) of(list []string) string { return rapid.SampledFrom(list).Draw(d.t, "of") }
func (d draw) n(most int) int          { return rapid.IntRange(0, most).Draw(d.t, "n") }
func (d draw) maybe() bool             { return rapid.Bool().Draw(d.t, "maybe") }

// list draws up to most strings, quoted and joined.
func (d draw) list(most int, of []string) string {
	var out []string
	for range d.n(most) {
		out = append(out, fmt.Sprintf("%q", d.of(of)))
	}
	return strings.Join(out, ",")
}

func (d draw) labels() string {
	out := fmt.Sprintf(`"a":%q`, d.of([]string{"x", "y", "z"}))
	if d.maybe() {
		out += `,"pcns.env":"x"`
	}
	if d.maybe() {
		return ""
	}
	return out
}

func (d draw) order() string {
	return d.of([]string{"", "", `"order":1,`, `"order":2,`, `"order":-3.5,`})
}

func (d draw) entity() string {
	var f []string
	add := func(format string, args ...any) {
		if d.n(3) == 0 {
			f = append(f, fmt.Sprintf(format, args...))
		}
	}
	add(`"nets":[%s]`, d.list(2, randomNets))
	add(`"notNets":[%s]`, d.list(2, randomNets))
	add(`"selector":%q`, d.of(randomSelectors))
	add(`"notSelector":%q`, d.of(randomSelectors))
	add(`"namespaceSelector":%q`, d.of([]string{"all()", "global()", "env == 'x'", "!has(env)", "bad"}))
	if d.n(4) == 0 {
		f = append(f, `"ports":[`+d.of([]string{`80,"1000:2000","http"`, `"http","web"`, `"web"`})+`]`)
	}
	if d.n(4) == 0 {
		f = append(f, `"notPorts":[`+d.of([]string{"80", `"1:79"`, `"web"`})+`]`)
	}
	if d.n(5) == 0 {
		f = append(f, `"serviceAccounts":`+d.of([]string{`{"names":["p","q"]}`, `{"selector":"has(a)"}`, `{}`, `{"names":["p"],"selector":"!has(a)"}`}))
	}
	return "{" + strings.Join(f, ",") + "}"
}

func (d draw) rule() string {
	r := fmt.Sprintf(`{"action":%q,"source":%s,"destination":%s`, d.of([]string{"Allow", "Deny", "Pass", "Log", "Sink"}), d.entity(), d.entity())
	r += d.of([]string{"", "", `,"ipVersion":4`, `,"ipVersion":6`})
	r += d.of([]string{
		"", `,"protocol":"TCP"`, `,"protocol":"UDP"`, `,"protocol":"ICMP","icmp":{"type":8}`, `,"notProtocol":"TCP"`,
		`,"protocol":"ICMPv6","notICMP":{"type":128,"code":0}`, `,"protocol":"frob"`,
	})
	return r + "}"
}

func (d draw) rules() string {
	list := func() string {
		var rs []string
		for range d.n(3) {
			rs = append(rs, d.rule())
		}
		return strings.Join(rs, ",")
	}
	return fmt.Sprintf(`"ingress":[%s],"egress":[%s]`, list(), list())
}

// object draws one object of any kind that matters.
func (d draw) object(t testing.TB) api.Object {
	switch d.n(9) {
	case 0, 1, 2:
		return decode(t, "WorkloadEndpoint "+d.of([]string{"n1", "n2"})+" "+d.of(randomNames), d.labels(),
			fmt.Sprintf(`"node":%q,"ipNetworks":[%s],"profiles":[%s],"serviceAccountName":%q,"ports":[%s]`, d.of([]string{"h1", "h2"}), d.list(3, randomAddrs),
				d.list(2, randomProfiles), d.of([]string{"", "p", "r"}), d.of([]string{"", `{"name":"http","protocol":"TCP","port":80}`, `{"name":"web","protocol":"UDP","port":1},{"name":"web","protocol":"TCP","port":1500}`})))
	case 3, 4, 5:
		policy := d.order() + d.of([]string{"", `"types":["Ingress"],`, `"types":["Egress"],`, `"types":["Ingress","Egress"],`}) +
			fmt.Sprintf(`"tier":%q,"selector":%q,`, d.of(randomTiers), d.of(randomSelectors)) + d.rules()
		return decode(t, d.of([]string{"NetworkPolicy n1 ", "NetworkPolicy n2 ", "GlobalNetworkPolicy "})+d.of(randomNames), "", policy)
	case 6:
		return decode(t, "Tier "+d.of(randomTiers[1:]), "", d.order()+fmt.Sprintf(`"defaultAction":%q`, d.of([]string{"", "Deny", "Pass"})))
	case 7:
		return decode(t, "Profile "+d.of(randomProfiles[:3]), "", fmt.Sprintf(`"labelsToApply":{%s},`, d.labels())+d.rules())
	default:
		return decode(t, d.of([]string{"NetworkSet n1 ", "GlobalNetworkSet "})+d.of(randomNames), d.labels(), fmt.Sprintf(`"nets":[%s]`, d.list(3, randomNets)))
	}
}

func (d draw) packet() Packet {
	p := Packet{
		Src: netip.MustParseAddr(d.of(randomAddrs)), Dst: netip.MustParseAddr(d.of(randomAddrs)),
		Protocol: rapid.SampledFrom([]uint8{1, 6, 17, 47, 58}).Draw(d.t, "protocol"),
		SrcPort:  rapid.SampledFrom([]uint16{1, 80, 1500}).Draw(d.t, "source port"),
		DstPort:  rapid.SampledFrom([]uint16{1, 80, 1500}).Draw(d.t, "destination port"),
		ICMPType: rapid.SampledFrom([]uint8{8, 128}).Draw(d.t, "type"),
	}
	return p
}

// TestRandomClusters holds what must be so whatever the objects are.
func TestRandomClusters(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		byKey := map[api.Key]api.Object{}
		var put []api.Object // in the order in which they came
		for range d.n(20) {
			o := d.object(t)
			byKey[o.Key()] = o
			put = append(put, o)
		}
		c, other := New(), New()
		for _, o := range put {
			c.Put(o)
		}
		// The same in another order, among objects that go again.
		extra := d.object(t)
		other.Put(extra)
		for _, o := range put {
			other.Put(o)
		}
		other.Delete(extra.Key())
		for _, o := range rapid.Permutation(put).Draw(rt, "order") {
			other.Delete(o.Key())
			other.Put(byKey[o.Key()])
		}
		for range 10 {
			p := d.packet()
			r := c.Connection(p)
			if diff := cmp.Diff(r, other.Connection(p)); diff != "" {
				rt.Fatalf("%v depends on history, -one +other\n%s", p, diff)
			}
			checkResult(rt, byKey, p, r)
		}
		checkFirstTier(t, rt, c, d.packet())
	})
}

func checkResult(t *rapid.T, objects map[api.Key]api.Object, p Packet, r Result) {
	allowed := true
	for _, d := range []*Decision{r.Source, r.Destination} {
		if d == nil {
			continue
		}
		allowed = allowed && d.Verdict == api.Allow
		addr, dir := p.Src, api.Egress
		if d == r.Destination {
			addr, dir = p.Dst, api.Ingress
		}
		w := objects[d.Endpoint].(*api.WorkloadEndpoint)
		if d.Direction != dir || !slices.ContainsFunc(networks(w), func(p netip.Prefix) bool { return p.Contains(addr) }) {
			t.Fatalf("%v: %v decides, which has %v", p, d, w.Spec.IPNetworks)
		}
		if d.Verdict != api.Allow && d.Verdict != api.Deny || d.Reason == "" {
			t.Fatalf("%v: %v", p, d)
		}
		if d.Verdict == api.Allow && d.Rule == nil {
			t.Fatalf("%v: allowed without a rule: %v", p, d)
		}
		checkTrail(t, objects, d)
		for _, ref := range d.Logs {
			if a := ruleOf(objects, ref).Action; a != api.Log {
				t.Fatalf("%v: %s is no Log rule but %s", p, ref, a)
			}
		}
		if d.Rule != nil {
			rule := ruleOf(objects, *d.Rule)
			if rule.Never || rule.Action != d.Verdict {
				t.Fatalf("%v: %v, but the rule is %+v", p, d, rule)
			}
		}
	}
	if allowed != (r.Verdict == api.Allow) {
		t.Fatalf("%v: %s, source %v, destination %v", p, r.Verdict, r.Source, r.Destination)
	}
}

// checkTrail: all steps but the last pass, and the last is the decision. An
// endpoint's tiers are those that Stages has.
func checkTrail(t *rapid.T, objects map[api.Key]api.Object, d *Decision) {
	for i, s := range d.Trail {
		last := i == len(d.Trail)-1
		if last != (s.Action != api.Pass) {
			t.Fatalf("%v: step %d of %d ends with %s", d, i, len(d.Trail), s.Action)
		}
		if last && (s.Action != d.Verdict || s.Tier != d.Tier) {
			t.Fatalf("%v in tier %q: the last step is %+v", d, d.Tier, s)
		}
		if last && (s.Rule == nil) != (d.Rule == nil) || last && s.Rule != nil && *s.Rule != *d.Rule {
			t.Fatalf("%v: the last step is %+v", d, s)
		}
		if s.Rule == nil {
			continue
		}
		if !slices.Contains(s.Policies, s.Rule.Policy) {
			t.Fatalf("%v: %s is of none of %v", d, s.Rule, s.Policies)
		}
		if a := ruleOf(objects, *s.Rule).Action; a != s.Action {
			t.Fatalf("%v: step %+v, but the rule's action is %s", d, s, a)
		}
	}
	if len(d.Trail) == 0 {
		t.Fatalf("%v has no trail", d)
	}
}

func ruleOf(objects map[api.Key]api.Object, ref RuleRef) api.Rule {
	if ref.Policy.Name == api.DefaultAllowProfile {
		return api.Rule{Action: api.Allow}
	}
	var in, out []api.Rule
	switch o := objects[ref.Policy].(type) {
	case *api.Policy:
		in, out = o.Spec.Ingress, o.Spec.Egress
	case *api.Profile:
		in, out = o.Spec.Ingress, o.Spec.Egress
	}
	if ref.Direction == api.Egress {
		in = out
	}
	return in[ref.Index]
}

// checkFirstTier puts a tier before all others: it has the last word where it
// decides, and none where it passes or only logs.
func checkFirstTier(t testing.TB, rt *rapid.T, c *Cluster, p Packet) {
	before := c.Connection(p)
	put(t, c, "Tier aaa", "", `"order":-1e9,"defaultAction":"Pass"`)
	for _, action := range []api.Action{api.Allow, api.Deny, api.Pass, api.Log} {
		rules := fmt.Sprintf(`[{"action":%q}]`, action)
		put(t, c, "GlobalNetworkPolicy first", "", `"tier":"aaa","ingress":`+rules+`,"egress":`+rules)
		after := c.Connection(p)
		for _, d := range []struct{ before, after *Decision }{{before.Source, after.Source}, {before.Destination, after.Destination}} {
			if (d.before == nil) != (d.after == nil) {
				rt.Fatalf("%v: the ends changed: %v, %v", p, d.before, d.after)
			}
			if d.before == nil {
				continue
			}
			want := action
			if action == api.Pass || action == api.Log {
				want = d.before.Verdict
			}
			if d.after.Verdict != want {
				rt.Fatalf("%v: %v with a first tier of %s, before %v", p, d.after, action, d.before)
			}
		}
	}
}

// FuzzConnection asks about whatever documents can be decoded.
func FuzzConnection(f *testing.F) {
	f.Add(`"selector":"all()","ingress":[{"action":"Allow","source":{"selector":"a in {'b'}","notNets":["10.0.0.0/8"]}}]`,
		`"ipNetworks":["10.0.0.1","fd00::1"],"profiles":["p"]`, `"egress":[{"action":"Pass"},{"action":"Log"}],"labelsToApply":{"a":"b"}`, []byte{10, 0, 0, 1}, uint8(6))
	f.Add(`"types":["Egress"],"egress":[{"action":"Deny","protocol":"ICMP","icmp":{"type":3},"destination":{"nets":["::/0"]}}]`,
		`"ipNetworks":["::1"]`, `"ingress":null`, []byte("0123456789abcdef"), uint8(1))
	f.Fuzz(func(t *testing.T, policy, endpoint, profile string, addr []byte, protocol uint8) {
		c := New()
		for what, spec := range map[string]string{
			"GlobalNetworkPolicy p": policy, "NetworkPolicy n q": policy, "WorkloadEndpoint n w": endpoint, "Profile p": profile,
			"GlobalNetworkSet s": profile, "Tier default": policy,
		} {
			k := key(what)
			o, _, err := api.DecodeKey(k, []byte(fmt.Sprintf(`{"kind":%q,"metadata":{"name":%q},"spec":{%s}}`, k.Kind, k.Name, spec)))
			if err == nil {
				c.Put(o)
			}
		}
		a, _ := netip.AddrFromSlice(addr) // the zero address, too, has an answer
		for _, p := range []Packet{
			{Src: a, Dst: a, Protocol: protocol, DstPort: 80},
			{Src: netip.MustParseAddr("10.0.0.1"), Dst: a, Protocol: protocol},
			{Src: a, Dst: netip.MustParseAddr("::1"), Protocol: protocol, ICMPType: 3},
		} {
			if v := c.Connection(p).Verdict; v != api.Allow && v != api.Deny {
				t.Fatalf("verdict %q", v)
			}
			for _, dir := range []api.Direction{api.Ingress, api.Egress} {
				if d := c.Endpoint(key("WorkloadEndpoint n w"), dir, p); d.Verdict == api.Allow && d.Rule == nil {
					t.Fatalf("allowed without a rule: %v", d)
				}
			}
		}
	})
}
