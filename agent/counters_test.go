package agent

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/compile"
	"tortie/explain"
	"tortie/internal/socket"
	"tortie/kernel/nft"
)

// judged is a scenario whose objects explain knows too, and what each rule has
// to have counted.
type judged struct {
	*scenario
	cluster *explain.Cluster
	senders map[string]*wire
	guests  map[string]*guest
	next    uint16 // source port
	want    map[string]uint64
}

const testProfile = "prof"

// judge makes the scenario, with endpoints that have a profile. Nothing runs
// yet, and there are no policies.
func judge(t *testing.T) *judged {
	s := newScenario(t)
	j := &judged{scenario: s, cluster: explain.New(), next: 10000, want: map[string]uint64{}}
	j.remove(policyOf("clients"))
	j.remove(policyOf("servers"))
	withProfile := func(doc string) string {
		return strings.Replace(doc, `"ipNetworks"`, fmt.Sprintf(`"profiles":[%q],"ipNetworks"`, testProfile), 1)
	}
	j.store1(s.client.key, withProfile(s.client.bound(`{"role":"client"}`)))
	j.store1(s.other.key, withProfile(s.other.bound(`{"role":"other"}`)))
	j.store1(s.server.key, withProfile(s.server.bound(`{"role":"server"}`)))
	j.store1(apiKey(api.KindTier, "default"), `{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"order":1000000}}`)
	return j
}

func (j *judged) ready() {
	j.run()
	j.senders = map[string]*wire{"client": j.wire(j.client), "other": j.wire(j.other)}
	j.guests = map[string]*guest{"client": j.client, "other": j.other}
}

// store1 puts an object into the store and into explain's cluster.
func (j *judged) store1(key api.Key, doc string) {
	j.t.Helper()
	o, problems, err := api.DecodeKey(key, []byte(doc))
	if err != nil || len(problems) > 0 {
		j.t.Fatalf("%s: %v, %v", doc, err, problems)
	}
	j.cluster.Put(o)
	j.revision = j.put(key, doc)
}

func (j *judged) remove(key api.Key) {
	j.t.Helper()
	j.cluster.Delete(key)
	j.revision = j.delete(key)
}

// send sends every probe, each a connection of its own, and adds to what is to
// be counted.
func (j *judged) send() {
	j.t.Helper()
	for _, p := range probes(&j.next) {
		from := j.guests[p.from]
		j.senders[p.from].packet(p.packet(from, j.server))
		j.expect(j.cluster, from.key, p.explained(from, j.server), "")
	}
}

// explained is the probe as explain is asked about it.
func (p probe) explained(from, to *guest) explain.Packet {
	e := explain.Packet{Src: netip.MustParseAddr(from.addr(p.family)), Dst: netip.MustParseAddr(to.addr(p.family))}
	switch {
	case p.protocol == "tcp":
		e.Protocol, e.SrcPort, e.DstPort = 6, p.source, p.port
	case p.protocol == "udp":
		e.Protocol, e.SrcPort, e.DstPort = 17, p.source, p.port
	case p.family == 4:
		e.Protocol, e.ICMPType = 1, uint8(p.port)
	default:
		e.Protocol, e.ICMPType = 58, uint8(p.port)
	}
	return e
}

// expect adds what is counted of a packet: each rule that matched on the way,
// and the end where none decided.
func (j *judged) expect(c *explain.Cluster, from api.Key, p explain.Packet, prefix string) {
	source := c.Endpoint(from, api.Egress, p)
	j.expectOne(source, prefix)
	j.expectTrial(from, api.Egress, p)
	if source.Verdict == api.Allow {
		j.expectOne(c.Endpoint(j.server.key, api.Ingress, p), prefix)
		j.expectTrial(j.server.key, api.Ingress, p)
	}
}

// expectTrial adds what staged policies count of a packet that is judged.
func (j *judged) expectTrial(key api.Key, dir api.Direction, p explain.Packet) {
	staged := j.cluster.Staged()
	policies := func(c *explain.Cluster) (keys []api.Key) {
		for _, s := range c.Stages(key, dir) {
			for _, p := range s.Policies {
				keys = append(keys, p.Key())
			}
		}
		return keys
	}
	if slices.Equal(policies(j.cluster), policies(staged)) {
		return // nothing is tried
	}
	d := staged.Endpoint(key, dir, p)
	add := func(id string) {
		if strings.HasPrefix(id, "Staged") || strings.HasSuffix(id, "/"+compile.StagedEnd) {
			j.want[id]++
		}
	}
	for _, r := range d.Logs {
		add(r.String())
	}
	for i, s := range d.Trail {
		switch {
		case s.Rule != nil:
			add(s.Rule.String())
		case i < len(d.Trail)-1: // gone past
		case s.Tier != "":
			add("Tier//" + s.Tier + "/" + string(dir) + "/" + compile.StagedEnd)
		default:
			add("Profile///" + string(dir) + "/" + compile.StagedEnd)
		}
	}
}

func (j *judged) expectOne(d explain.Decision, prefix string) {
	for _, r := range d.Logs {
		j.want[prefix+r.String()]++
	}
	for i, s := range d.Trail {
		switch {
		case s.Rule != nil:
			j.want[prefix+s.Rule.String()]++
		case i < len(d.Trail)-1: // gone past
		case s.Tier != "":
			j.want[prefix+"Tier//"+s.Tier+"/"+string(d.Direction)+"/end"]++
		default:
			j.want[prefix+"Profile///"+string(d.Direction)+"/end"]++
		}
	}
}

// counted are the counters that are not zero, by the identity of the rule.
func (h *testHost) counted() map[string]uint64 {
	h.t.Helper()
	body, err := h.show(socket.CountersPage)
	if err != nil {
		h.t.Fatal(err)
	}
	var rows []socket.RuleCount
	if err := json.Unmarshal([]byte(body), &rows); err != nil {
		h.t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, r := range rows {
		place := "end"
		if r.Rule != nil {
			place = strconv.Itoa(*r.Rule)
		} else if r.Staged {
			place = compile.StagedEnd
		}
		if r.Packets > 0 {
			counts[strings.Join([]string{r.Kind, r.Namespace, r.Name, r.Direction, place}, "/")] = r.Packets
		}
		if r.Packets > 0 && r.Bytes < 20*r.Packets {
			h.t.Errorf("%+v: too few bytes", r)
		}
	}
	return counts
}

// grown is how much each counter has grown since before.
func (h *testHost) grown(before map[string]uint64) map[string]uint64 {
	h.t.Helper()
	now := h.counted()
	for id, n := range before {
		if now[id] -= n; now[id] == 0 {
			delete(now, id)
		}
	}
	return now
}

// check sends, waits until as much was counted, and compares.
func (j *judged) check(what string) {
	j.t.Helper()
	before := j.counted()
	clear(j.want)
	j.send()
	sum := func(counts map[string]uint64) (n uint64) {
		for _, c := range counts {
			n += c
		}
		return n
	}
	j.await("all to be counted: "+what, func() bool { return sum(j.grown(before)) >= sum(j.want) })
	if diff := cmp.Diff(j.want, j.grown(before)); diff != "" {
		j.t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func tieredPolicy(name, tier, ingress, egress string) string {
	return strings.Replace(policyDoc(name, "all()", ingress, egress), `"order":100`, fmt.Sprintf(`"order":100,"tier":%q`, tier), 1)
}

func tierDoc(name, order, action string) string {
	return fmt.Sprintf(`{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"order":%s,"defaultAction":%q}}`, name, order, action)
}

func profileDoc(ingress, egress string) string {
	return fmt.Sprintf(`{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},"spec":{"ingress":[%s],"egress":[%s]}}`, testProfile, ingress, egress)
}

// testSeed is printed with every failure; TORTIE_TEST_SEED repeats a run.
func testSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("TORTIE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TORTIE_TEST_SEED=%d", seed)
	return seed
}

// someRules are fewer than n random rules.
func someRules(rnd *rand.Rand, n int) string {
	var list []string
	for range rnd.IntN(n) {
		r := matrixRules[rnd.IntN(len(matrixRules))].rules
		if r != "" {
			list = append(list, strings.Replace(r, `"action":"Allow"`, fmt.Sprintf(`"action":%q`, []string{"Allow", "Deny", "Pass", "Log"}[rnd.IntN(4)]), 1))
		}
	}
	return strings.Join(list, ",")
}

// Each rule, tier's end and profile counts the connections that it decided, in
// both families: as many as explain says of what was sent.
func TestRuleCounters(t *testing.T) {
	j := judge(t)
	rnd := rand.New(rand.NewPCG(testSeed(t), 0))
	some := func(n int) string { return someRules(rnd, n) }
	j.store1(apiKey("GlobalNetworkSet", "set"), `{"kind":"GlobalNetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"set","labels":{"net":"set"}},"spec":{"nets":["10.65.0.4/30","fd00:65::4"]}}`)
	j.ready()
	for round := range 12 {
		j.store1(apiKey(api.KindTier, "first"), tierDoc("first", "1", []string{"Pass", "Deny"}[rnd.IntN(2)]))
		j.store1(policyOf("a"), tieredPolicy("a", "first", some(4), some(4)))
		j.store1(policyOf("b"), policyDoc("b", "all()", some(14), some(4)))
		if round%3 == 0 {
			j.remove(policyOf([]string{"a", "b"}[rnd.IntN(2)]))
		}
		j.store1(apiKey(api.KindProfile, testProfile), strings.ReplaceAll(profileDoc(some(4), some(3)), "Pass", "Deny")) // a profile passes on to nothing
		j.settle(j.revision)
		j.check(fmt.Sprintf("round %d", round))
	}
}

// Rules of staged policies count what they would decide, were all that is staged
// in force, and what is in force decides as before: both are as many as explain
// says.
func TestStagedCounters(t *testing.T) {
	j := judge(t)
	rnd := rand.New(rand.NewPCG(testSeed(t), 0))
	j.ready()
	tried := uint64(0)
	for round := range 12 {
		j.store1(apiKey(api.KindTier, "first"), tierDoc("first", "1", []string{"Pass", "Deny"}[rnd.IntN(2)]))
		j.store1(policyOf("a"), tieredPolicy("a", "first", someRules(rnd, 4), someRules(rnd, 4)))
		j.store1(policyOf("b"), policyDoc("b", "all()", someRules(rnd, 14), someRules(rnd, 4)))
		for i, name := range []string{"a", "b", "c", "d"} { // two of which are there
			tier, action := []string{"first", "default"}[i%2], []string{"Set", "Set", "Learn", "Delete", "Ignore"}[rnd.IntN(5)]
			doc := tieredPolicy(name, tier, someRules(rnd, 8), someRules(rnd, 4))
			doc = strings.Replace(doc, `"kind":"GlobalNetworkPolicy"`, `"kind":"StagedGlobalNetworkPolicy"`, 1)
			key := apiKey(api.KindStagedGlobalNetworkPolicy, name)
			if j.store1(key, strings.Replace(doc, `"order":100`, fmt.Sprintf(`"stagedAction":%q,"order":%d`, action, rnd.IntN(200)), 1)); rnd.IntN(4) == 0 {
				j.remove(key)
			}
		}
		j.settle(j.revision)
		j.check(fmt.Sprintf("round %d", round))
		for id, n := range j.want {
			if strings.Contains(id, "taged") {
				tried += n
			}
		}
	}
	if tried < 100 {
		t.Errorf("%d verdicts would be staged policies': that tests little", tried)
	}
}

// What a rule has counted outlives changes of other rules and policies, the
// agent, and a table that another program changed; it goes with the rule.
func TestRuleCountersLast(t *testing.T) {
	j := judge(t)
	rules := `{"action":"Allow","protocol":"TCP","destination":{"ports":[80,443]}},{"action":"Deny","protocol":"UDP"},{"action":"Log","protocol":"ICMP"}`
	j.store1(policyOf("kept"), policyDoc("kept", `role == "server"`, rules, allow))
	j.store1(policyOf("other"), policyDoc("other", `role != "server"`, allow, allow))
	j.ready()
	j.check("at first")
	first := j.counted()
	same := func(when string) {
		t.Helper()
		j.settle(j.revision)
		if diff := cmp.Diff(first, j.counted()); diff != "" {
			t.Fatalf("%s (-before +after):\n%s", when, diff)
		}
	}
	same("nothing changed")
	j.store1(policyOf("kept"), policyDoc("kept", `role == "server"`, rules+`,{"action":"Allow","protocol":"SCTP"}`, allow))
	same("a rule came after them")
	j.store1(policyOf("more"), tieredPolicy("more", "default", `{"action":"Allow","protocol":"SCTP"}`, `{"action":"Allow","protocol":"SCTP"}`))
	same("a policy came")
	j.stop()
	j.store1(policyOf("more"), tieredPolicy("more", "default", `{"action":"Allow","protocol":132}`, ""))
	j.start(true)
	same("the agent was started again")
	j.ns.Run(t, "nft", "flush", "chain", "inet", "tortie", "judge-original")
	j.await("the chain to be back", func() bool {
		return strings.Contains(j.ns.Run(t, "nft", "list", "chain", "inet", "tortie", "judge-original"), "vmap")
	})
	same("another hand was there")
	j.check("after all that")

	has := func(id string) bool {
		return strings.Contains(j.ns.Run(t, "nft", "list", "counters", "table", "inet", "tortie"), "counter "+nft.CounterName(id)+" ")
	}
	deny := "GlobalNetworkPolicy//kept/Ingress/1"
	if !has(deny) {
		t.Error("there is no counter by the rule's name")
	}
	j.store1(policyOf("kept"), policyDoc("kept", `role == "server"`, `{"action":"Allow","protocol":"TCP"}`, allow))
	j.settle(j.revision)
	if has(deny) || !has("GlobalNetworkPolicy//kept/Ingress/0") {
		t.Error("the counter of a rule that is gone is there still, or another is gone")
	}
	j.remove(policyOf("kept"))
	j.remove(policyOf("other"))
	j.remove(policyOf("more"))
	j.settle(j.revision)
	if out := j.ns.Run(t, "nft", "list", "counters", "table", "inet", "tortie"); strings.Contains(out, "NetworkPolicy") || strings.Contains(out, "Tier//") {
		t.Errorf("left over: %s", out)
	}
}

// A staged policy of Kubernetes is tried too, in both families.
func TestStagedKubernetesCounters(t *testing.T) {
	j := judge(t)
	j.store1(j.server.key, strings.Replace(j.server.bound(`{"role":"server"}`), `"orchestrator":"openstack"`, `"orchestrator":"k8s"`, 1))
	j.store1(policyOf("all"), strings.Replace(policyDoc("all", "all()", allow, allow), `"order":100`, `"order":2000`, 1))
	key := api.Key{Kind: api.KindStagedKubernetesNetworkPolicy, Namespace: j.server.key.Namespace, Name: "web"}
	j.store1(key, fmt.Sprintf(`{"kind":%q,"apiVersion":"projectcalico.org/v3","metadata":{"name":"web","namespace":%q},"spec":{"podSelector":{"matchLabels":{"role":"server"}},`+
		`"ingress":[{"from":[{"ipBlock":{"cidr":"0.0.0.0/0"}},{"ipBlock":{"cidr":"::/0"}}],"ports":[{"protocol":"UDP"},{"port":80}]}]}}`, key.Kind, key.Namespace))
	j.ready()
	j.check("tried")
	counted := map[string]uint64{}
	for id, n := range j.want {
		if strings.HasPrefix(id, string(key.Kind)) {
			counted[id] = n
		}
	}
	if len(counted) != 4 { // each protocol and family
		t.Errorf("rules that would decide: %v", counted)
	}
	j.remove(key)
	j.settle(j.revision)
	j.check("gone")
}
