package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tortie/api"
)

// live is one end here whose policy decides, in one direction, of connections
// with a peer: those to the ports from cutPorts on are what changes forbid,
// those to the ports from stayPorts on what they leave alone.
type live struct {
	*scenario
	local, peer *guest
	near        *guest // another one here that is judged in the same way, but for what is open
	ingress     bool
}

const (
	cutPorts  = 9100
	stayPorts = 9200
	nearPorts = 9300
	lastPort  = 9399
)

// ofLive is a change that forbids some connections and allows them again. It may need something
// before, and then that goes after it.
type ofLive struct {
	name            string
	forbid, restore func() int64
	before, after   func() int64
}

// at are the rules of the local end for ports and who is at the other end.
func (l *live) at(action, ports, of string) string {
	match := fmt.Sprintf(`"destination":{"ports":[%s],%s}`, ports, of)
	if l.ingress {
		match = fmt.Sprintf(`"source":{%s},"destination":{"ports":[%s]}`, of, ports)
	}
	return fmt.Sprintf(`{"action":%[1]q,"protocol":"TCP",%[2]s},{"action":%[1]q,"protocol":"UDP",%[2]s}`, action, match)
}

// policy is one that judges at the local end. Order is a number or what else its
// spec has.
func (l *live) policy(name, selector, order, rules string) func() int64 {
	types, list := "Egress", "egress"
	if l.ingress {
		types, list = "Ingress", "ingress"
	}
	doc := fmt.Sprintf(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"order":%s,"selector":%q,"types":[%q],%q:[%s]}}`,
		name, order, selector, types, list, rules)
	return func() int64 { return l.put(policyOf(name), doc) }
}

// is puts an endpoint with labels, and more of its spec.
func (l *live) is(g *guest, labels, more string) func() int64 {
	doc := strings.Replace(g.bound("{"+labels+"}"), `"ipNetworks"`, more+`"ipNetworks"`, 1)
	return func() int64 { return l.put(g.key, doc) }
}

// puts writes several.
func puts(writes ...func() int64) func() int64 {
	return func() (rev int64) {
		for _, w := range writes {
			rev = w()
		}
		return rev
	}
}

func (l *live) drop(keys ...api.Key) func() int64 {
	return func() (rev int64) {
		for _, k := range keys {
			rev = l.delete(k)
		}
		return rev
	}
}

func (l *live) object(kind api.Kind, name, spec string) func() int64 {
	doc := fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"labels":{"member":"x"}},"spec":{%s}}`, kind, name, spec)
	return func() int64 { return l.put(apiKey(kind, name), doc) }
}

// What the ends are and what is open of them.
const (
	isLocal  = `"local":"x","open":"x"`
	isMember = `"member":"x"`
	members  = `"selector":"has(member)"`
	everyone = `"notSelector":"has(nobody)"`
)

var (
	openPort = fmt.Sprintf(`"%d:%d"`, cutPorts, stayPorts-1)
	keptPort = fmt.Sprintf(`"%d:%d"`, stayPorts, lastPort)
)

// changes are of every kind that can forbid a connection.
func (l *live) changes() []ofLive {
	open, kept, deny := l.at("Allow", openPort, members), l.at("Allow", keptPort, everyone), l.at("Deny", openPort, members)
	base, late := l.policy("live", "has(open)", "100", open), policyOf("late")
	local, peer := l.is(l.local, isLocal, ""), l.is(l.peer, isMember, "")
	nets := fmt.Sprintf(`"nets":["%s/32","%s/128"]`, l.peer.v4, l.peer.v6)
	tier := func(name, order, action string) func() int64 {
		return l.object(api.KindTier, name, `"order":`+order+`,"defaultAction":"`+action+`"`)
	}
	const pass = `,{"action":"Pass"}`
	profile := func(rules string) func() int64 {
		return l.object(api.KindProfile, "p", `"ingress":[`+rules+`],"egress":[`+rules+`]`)
	}
	joined := func(label string) func() int64 {
		return l.object(api.KindProfile, "joined", `"labelsToApply":{"`+label+`":"x"}`)
	}
	return append(l.portChanges(), []ofLive{
		{"a rule denies", l.policy("live", "has(open)", "100", deny+","+open), base, nil, nil},
		{"the rule is gone", l.policy("live", "has(open)", "100", ""), base, nil, nil},
		{"the policy is gone", l.drop(policyOf("live")), base, nil, nil},
		{"the policy selects others", l.policy("live", "has(others)", "100", open), base, nil, nil},
		{
			"the order of policies", l.policy("late", "has(open)", "1", deny), l.policy("late", "has(open)", "500", deny),
			l.policy("late", "has(open)", "500", deny), l.drop(late),
		},
		{
			"the order of tiers", tier("a", "3", "Deny"), tier("a", "1", "Deny"),
			puts(tier("a", "1", "Deny"), tier("b", "2", "Deny"), l.policy("a.open", "has(open)", `1,"tier":"a"`, open+pass), l.policy("b.shut", "has(open)", `1,"tier":"b"`, deny+pass)),
			l.drop(policyOf("a.open"), policyOf("b.shut"), apiKey(api.KindTier, "a"), apiKey(api.KindTier, "b")),
		},
		{
			"the end of a tier", tier("a", "1", "Deny"), tier("a", "1", "Pass"),
			puts(tier("a", "1", "Pass"), l.policy("a.kept", "has(open)", `1,"tier":"a"`, l.at("Pass", keptPort, everyone))),
			l.drop(policyOf("a.kept"), apiKey(api.KindTier, "a")),
		},
		{"a label of the endpoint", l.is(l.local, `"local":"x"`, ""), local, nil, nil},
		{"a label of the peer", l.is(l.peer, "", ""), peer, nil, nil},
		{
			"a label that the peer inherits", joined("nothing"), joined("member"),
			puts(joined("member"), l.is(l.peer, "", `"profiles":["joined"],`)), puts(peer, l.drop(apiKey(api.KindProfile, "joined"))),
		},
		{
			"a network set's nets", l.object(api.KindGlobalNetworkSet, "set", `"nets":["203.0.113.0/24","2001:db8:f::/48"]`), l.object(api.KindGlobalNetworkSet, "set", nets),
			puts(l.object(api.KindGlobalNetworkSet, "set", nets), l.is(l.peer, "", "")), puts(peer, l.drop(apiKey(api.KindGlobalNetworkSet, "set"))),
		},
		{
			"a profile's rules", profile(kept), profile(open + "," + kept),
			puts(profile(open+","+kept), l.is(l.local, `"profiled":"x"`, `"profiles":["p"],`)), puts(local, l.drop(apiKey(api.KindProfile, "p"))),
		},
	}...)
}

// portChanges are of ports by name, which the serving end has.
func (l *live) portChanges() []ofLive {
	serving, labels := l.peer, isMember
	if l.ingress {
		serving, labels = l.local, isLocal
	}
	named := func(name string) func() int64 {
		var list []string
		for i := range families {
			for offset, protocol := range map[int]string{0: "UDP", 10: "UDP", 20: "TCP", 30: "TCP"} {
				list = append(list, fmt.Sprintf(`{"name":%q,"protocol":%q,"port":%d}`, name, protocol, cutPorts+offset+i))
			}
		}
		return l.is(serving, labels, `"ports":[`+strings.Join(list, ",")+`],`)
	}
	return []ofLive{{
		"a named port", named("other"), named("service"),
		puts(named("service"), l.policy("live", "has(open)", "100", l.at("Allow", `"service"`, members))),
		puts(l.policy("live", "has(open)", "100", l.at("Allow", openPort, members)), l.is(serving, labels, "")),
	}}
}

// newLive makes what all changes begin with.
func newLive(t *testing.T, ingress, remote bool) *live {
	l := &live{scenario: newScenario(t), ingress: ingress}
	l.local, l.peer, l.near = l.server, l.client, l.guest()
	if remote {
		l.peer = l.outside()
		l.peer.key, l.peer.mac = api.Key{Kind: api.KindWorkloadEndpoint, Namespace: "test", Name: "h2-openstack-w90-eth0"}, "02:00:00:00:01:01"
	}
	l.drop(policyOf("clients"), policyOf("servers"))()
	l.policy("live", "has(open)", "100", l.at("Allow", openPort, members))()
	l.policy("kept", "has(local)", "200", l.at("Allow", keptPort, everyone))()
	opposite := &live{scenario: l.scenario, ingress: !ingress}
	opposite.policy("free", "all()", "1", allow)()
	opposite.ingress = ingress
	opposite.policy("peers", "!has(local) && !has(profiled)", "1", allow)() // they are not what is judged
	l.revision = puts(l.is(l.local, isLocal, ""), l.is(l.peer, isMember, ""), l.is(l.near, `"local":"x"`, ""), l.is(l.other, "", ""))()
	for _, g := range []*guest{l.local, l.peer, l.near, l.other} { // try again soon, where the kernel lets itself be told
		g.ns.Run(t, "sysctl", "-eqw", "net.ipv4.tcp_rto_min_us=10000")
	}
	l.run()
	if remote { // the neighbours are to be known
		l.serve(l.peer)
		l.reaches(&guest{ns: l.ns}, l.peer)
	}
	return l
}

// between starts traffic to ports between a judged end and another.
func (l *live) between(judged, other *guest, first int) traffic {
	l.t.Helper()
	if l.ingress {
		judged, other = other, judged
	}
	return l.trafficAt(judged, other, first, rate)
}

// Uploads, downloads, one-way UDP and UDP replies, over IPv4 and IPv6, with both
// ends here and with either, judged at either: whatever it is that comes to
// forbid a connection, it is cut when the change is reported to be in force, and
// goes on when it is allowed again; those that stay allowed, of the same ends and
// of others, lose not one packet.
func TestEveryChangeOnLiveConnections(t *testing.T) {
	for _, c := range []struct {
		name            string
		ingress, remote bool
	}{
		{"both here, ingress", true, false},
		{"both here, egress", false, false},
		{"the destination here", true, true},
		{"the source here", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLive(t, c.ingress, c.remote)
			cut := l.between(l.local, l.peer, cutPorts)
			stay, near := l.between(l.local, l.peer, stayPorts), l.between(l.near, l.other, nearPorts)
			for _, ch := range l.changes() {
				if ch.before != nil {
					l.settle(ch.before())
					cut.flow()
				}
				begin := time.Now()
				l.settle(ch.forbid())
				took := time.Since(begin)
				cut.cut()
				stay.flow()
				near.flow()
				l.settle(ch.restore())
				cut.flow()
				if ch.after != nil {
					l.settle(ch.after())
				}
				if t.Logf("%s: in force within %s", ch.name, took.Round(time.Millisecond)); t.Failed() {
					t.FailNow()
				}
			}
			cut.halt()
			stay.complete()
			// What goes with an endpoint is all that it has.
			for _, gone := range []*guest{l.peer, l.local} {
				labels := isLocal
				if gone == l.peer {
					labels = isMember
				}
				cut, stay := l.between(l.local, l.peer, cutPorts+40), l.between(l.local, l.peer, stayPorts+40)
				l.settle(l.delete(gone.key))
				cut.cut()
				if c.remote && gone == l.peer {
					stay.complete() // it is known by addresses alone
				} else {
					stay.cut()
				}
				cut.halt()
				stay.halt()
				l.settle(l.is(gone, labels, "")())
			}
			near.complete()
		})
	}
}
