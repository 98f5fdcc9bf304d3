package proof

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tortie/api"
	"tortie/explain"
	"tortie/internal/nstest"
	"tortie/verify"
)

var (
	wanted = flag.Int("packets", 10000, "how many packets TestPackets sends at least")
	file   = flag.String("file", "", "a case for TestReplay to run, instead of all in testdata")
)

func TestMain(m *testing.M) { nstest.Main(m) }

const (
	perRound  = 150 // packets
	perWorld  = 60  // rounds
	perChange = 6   // most changes before a round
)

// TestPackets: what becomes of random packets is what explain says, whatever
// the cluster, and however it came to be so; and verify proves it of each host.
func TestPackets(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("TORTIE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	sum := tally{hosts: map[explain.Kind]int{}, steps: map[explain.Kind]int{}}
	for n := uint64(0); sum.packets < *wanted; n++ {
		ok := t.Run(fmt.Sprintf("TORTIE_TEST_SEED=%d", seed+n), func(t *testing.T) { rounds(t, seed+n, &sum) })
		if !ok {
			return
		}
	}
	t.Logf("%+v", sum)
	policy := sum.byRule + sum.byEnd
	little := sum.allowed < policy/20 || sum.byRule < policy/20 || sum.byEnd < policy/20 || sum.answers*sum.strays*(sum.destinations+sum.sources) == 0
	if sum.packets >= 10000 { // host endpoints come and go
		for _, n := range []int{sum.hosts[explain.Normal], sum.hosts[explain.Forward], sum.steps[explain.Untracked], sum.steps[explain.PreDNAT]} {
			little = little || n == 0
		}
	}
	if little {
		t.Errorf("%+v: that tests little", sum)
	}
}

// tally counts packets, and why their fates were what they were.
type tally struct {
	packets, allowed int
	byRule           int // a rule had the last word
	byEnd            int // the end of a tier or of everything
	answers, strays  int // of connections, and of none
	destinations     int // arrived, translated
	sources          int
	hosts            map[explain.Kind]int // decisions of host endpoints
	steps            map[explain.Kind]int // tiers gone through
	untracked        int
}

func (s *tally) add(p Packet, f Fate) {
	s.packets++
	if f.Place != "" && f.As.Dst != p.Dst {
		s.destinations++
	}
	if f.Place != "" && f.As.Src != p.Src {
		s.sources++
	}
	if f.Why != "" {
		return
	}
	if f.Place != "" {
		s.allowed++
	}
	var last *explain.Decision
	for _, d := range f.Said {
		if last == nil || last.Verdict == api.Allow {
			last = d
		}
		if d.Endpoint.Kind == api.KindHostEndpoint {
			s.hosts[d.Kind]++
		}
		if d.Untracked {
			s.untracked++
		}
		for _, step := range d.Trail {
			s.steps[step.Kind]++
		}
	}
	if last != nil && last.Rule != nil {
		s.byRule++
	} else {
		s.byEnd++
	}
}

// rounds changes one world again and again and sends packets.
func rounds(t *testing.T, seed uint64, sum *tally) {
	w := New(t)
	d := NewDraw(w, seed)
	var history [][]Change
	for round := 0; round < perWorld && sum.packets < *wanted; round++ {
		d.Hosts = round >= perWorld/20
		var step []Change
		n := 1 + d.IntN(perChange)
		if round == 0 {
			n = 40
			for _, s := range w.slots {
				step = append(step, d.endpoint(s))
			}
			for _, h := range w.hosts {
				step = append(step, d.settings(h))
			}
		}
		for range n {
			step = append(step, d.Change())
		}
		history = append(history, step)
		if err := w.Change(step...); err != nil {
			save(t, seed, Case{Note: err.Error(), Steps: history, Packet: d.Packets(1)[0]})
		}
		packets := d.Packets(perRound)
		if wrong := prove(t, w); wrong != "" {
			report(t, w, seed, Case{Note: wrong, Steps: history, Packet: packets[0]})
		}
		w.Forget()
		all, arrived := w.Check(packets)
		for i, wrong := range all {
			sum.add(packets[i], w.Expect(packets[i]))
			if wrong != "" {
				report(t, w, seed, Case{Note: wrong, Steps: history, Packet: packets[i]})
			}
		}
		answers(t, w, packets, arrived, sum)
	}
}

// prove asks verify about both hosts. It says what is wrong, "" if nothing is.
func prove(t *testing.T, w *World) string {
	t.Helper()
	for _, host := range w.HostNames() {
		var report *verify.Report
		var err error
		w.Do(host, func() {
			var r *verify.Ruleset
			if r, err = verify.Read(); err == nil {
				h := &verify.Host{Name: host, Cluster: w.Cluster(), Index: verify.Interface, Peers: SlotsPerHost}
				report, err = h.Check(r)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if !report.Proven() {
			return fmt.Sprintf("verify of %s: %s", host, report.Findings[0])
		}
	}
	return ""
}

// wrong runs a case, and says what is wrong with it.
func wrong(t *testing.T, w *World, c Case) string {
	t.Helper()
	if s := w.Run(c); s != "" {
		return s
	}
	return prove(t, w)
}

// report makes a failure small, and a file of it.
func report(t *testing.T, w *World, seed uint64, c Case) {
	t.Helper()
	t.Errorf("after %d steps: %s", len(c.Steps), c.Note)
	if wrong(t, w, c) == "" {
		t.Error("the same history gives no failure again")
	} else {
		c = Shrink(c, func(c Case) bool { return wrong(t, w, c) != "" })
		c.Note = wrong(t, w, c)
	}
	save(t, seed, c)
}

// save fails the test and leaves a file that fails too.
func save(t *testing.T, seed uint64, c Case) {
	t.Helper()
	path := filepath.Join("testdata", fmt.Sprintf("failed-%d.json", seed))
	if err := c.Write(path); err != nil {
		t.Fatal(err)
	}
	t.Fatalf("%s\ngo test ./proof -run Replay -args -file %s", c.Note, path)
}

// answers sends the answers of what arrived, which must pass, and of what did
// not, which must not where connection tracking tells one from the other.
func answers(t *testing.T, w *World, packets []Packet, arrived [][]Arrival, sum *tally) {
	t.Helper()
	var sent []Packet
	of := map[string]Packet{} // what an answer answers
	for i, p := range packets {
		f := w.Expect(p)
		at := Arrival{Place: w.place(f.As.Dst), Src: f.As.Src, Dst: f.As.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort}
		if f.Place != "" {
			at = arrived[i][0]
		}
		if at.Place == Outside {
			at.Place = w.hosts[0].beyond.name
			if len(f.hops) > 0 {
				at.Place = w.host(f.hops[len(f.hops)-1].Host).beyond.name
			}
		}
		if isHost(at.Place) || isHost(p.From) || w.owner[f.As.Dst] != "" || p.Kind != Opens || !p.opens() || w.slot(p.From) != nil && w.place(p.Src) != p.From {
			continue // a host answers itself, and alone, and what comes from elsewhere is not answered there
		}
		switch a := p.answer(at); {
		case f.Place != "":
			sum.answers++
			sent, of[a.String()] = append(sent, a), p
		case p.tracked() && f.Verdict == api.Deny && len(f.hops) == 0 && !isHost(w.owner[a.Dst]):
			sum.strays++
			sent, of[a.String()] = append(sent, a), p
		}
	}
	back := func(a Packet) Ends { return Ends{of[a.String()].Dst, of[a.String()].Src} }
	for i, at := range w.Send(sent, back) {
		p := of[sent[i].String()]
		f := w.Expect(p)
		want, got := "", ""
		answer := w.ExpectAnswer(sent[i], f)
		if answer.aside {
			continue // whichever interface comes first settles a connection
		}
		if isHost(answer.Place) {
			answer.As = Ends{} // what a host gets does not say
		}
		if answer.Place != "" {
			want = fmt.Sprint(answer.Place, answer.As)
		}
		for _, a := range at {
			got += fmt.Sprint(a.Place, Ends{a.Src, a.Dst})
		}
		if got != want {
			t.Fatalf("%s, whose fate is %s\nanswer %s arrived at %q, want %q: %s", p, f, sent[i], got, want, answer)
		}
	}
}

// TestReplay runs what failed once.
func TestReplay(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if *file != "" {
		paths = []string{*file}
	}
	w := New(t)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := ReadCase(path)
			if err != nil {
				t.Fatal(err)
			}
			if wrong := wrong(t, w, c); wrong != "" {
				t.Error(wrong)
			}
		})
	}
}

// TestFindsAndShrinks: where what is expected is of another policy than what
// is enforced, the comparison says so, and what is left of a large case is
// the object that matters.
func TestFindsAndShrinks(t *testing.T) {
	w := New(t)
	d := NewDraw(w, 1)
	var step []Change
	for range 30 {
		c := d.Change()
		if key, _ := c.key(); key.Kind == api.KindNetworkSet || key.Kind == api.KindProfile {
			step = append(step, c)
		}
	}
	endpoint := func(slot int, label string) Change {
		s := w.slots[slot]
		return put(fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1-openstack-%d-eth0","namespace":"n1","labels":{"a":%q,"c":"c"}},`+
			`"spec":{"orchestrator":"openstack","node":"h1","workload":"%d","endpoint":"eth0","interfaceName":%q,"mac":%q,"ipNetworks":["%s/32","%s/128"]}}`,
			slot, label, slot, s.iface, s.mac, s.v4[0], s.v6[0]))
	}
	step = append(step, endpoint(0, "x"), endpoint(1, "y"),
		put(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"order":3,"egress":[{"action":"Log"},{"action":"Allow"}],"ingress":[{"action":"Allow","source":{"selector":"has(a)"}}]}}`))
	for _, p := range []Packet{
		{From: "h1/0", Packet: explain.Packet{Src: w.slots[0].v4[0], Dst: w.slots[1].v4[0], Protocol: 6, SrcPort: 5, DstPort: 80}},
		{From: "h1/0", Packet: explain.Packet{Src: w.slots[0].v6[0], Dst: w.slots[1].v6[0], Protocol: 17, SrcPort: 5, DstPort: 80}},
	} {
		c := Case{Steps: [][]Change{step[:len(step)/2], step[len(step)/2:]}, Packet: p}
		if wrong := w.Run(c); wrong != "" {
			t.Fatal(wrong)
		}
		// The agents do not see it, but explain does.
		lie := func(c Case) bool {
			w.Run(c)
			c.Packet.Kind = Opens
			key := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: "lie"}
			deny, _, err := api.DecodeKey(key, []byte(`{"kind":"GlobalNetworkPolicy","metadata":{"name":"lie"},"spec":{"order":1,"selector":"a == 'y'","ingress":[{"action":"Deny"}]}}`))
			if err != nil {
				t.Fatal(err)
			}
			w.cluster.Put(deny)
			defer w.cluster.Delete(key)
			w.Forget()
			wrong, _ := w.Check([]Packet{c.Packet})
			return wrong[0] != ""
		}
		if !lie(c) {
			t.Fatalf("%s: a wrong fate is not found", p)
		}
		small := Shrink(c, lie)
		path := filepath.Join(t.TempDir(), "case.json")
		if err := small.Write(path); err != nil {
			t.Fatal(err)
		}
		again, err := ReadCase(path)
		if err != nil {
			t.Fatal(err)
		}
		if !lie(again) {
			t.Error("what was written does not fail")
		}
		// Two endpoints, and the policy that lets one reach the other.
		if text, _ := json.Marshal(small.Steps); changes(small) != 3 || strings.Contains(string(text), "Log") || strings.Contains(string(text), `"c"`) {
			t.Errorf("shrunk to %s", text)
		}
	}
}

// FuzzCase reads whatever a file holds.
func FuzzCase(f *testing.F) {
	f.Add([]byte(`{"note":"x","steps":[[{"put":{"kind":"Tier","metadata":{"name":"t"}}}],[{"delete":"Tier//t"}]],"packet":{"from":"h1","src":"10.0.0.1","dst":"fd00::1","protocol":6}}`))
	f.Add([]byte(`{"steps":[[{"delete":"Tier"},{"put":[]}]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "case.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := ReadCase(path)
		if err != nil {
			return
		}
		if err := c.Write(path); err != nil {
			t.Fatal(err)
		}
		again, err := ReadCase(path)
		if err != nil || changes(again) != changes(c) {
			t.Fatalf("written and read again: %d changes, want %d, %v", changes(again), changes(c), err)
		}
		if n := len(final(c.Steps)); n > changes(c) {
			t.Fatalf("%d objects of %d changes", n, changes(c))
		}
	})
}
