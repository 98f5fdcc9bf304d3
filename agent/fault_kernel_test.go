package agent

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// repairTime is how long a foreign hand's work may last.
const repairTime = 5 * time.Second

var (
	epochText = regexp.MustCompile(`0x00[0-9a-f]{6}|0xff[0-9a-f]{6}`)
	block     = regexp.MustCompile(`(?ms)^\t(counter|set|map|chain) .*?^\t\}\n`)
	elements  = regexp.MustCompile(`elements = \{([^}]*)\}`)
)

// inOrder sorts the elements of a set, which nft sorts by the index of an
// interface while it prints the name.
func inOrder(list string) string {
	all := strings.Split(elements.FindStringSubmatch(list)[1], ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// kernelText is what the kernel holds of ours and of others, in an order that
// does not depend on when it was made and without the policy epoch.
func (h *testHost) kernelText() string {
	h.t.Helper()
	var out []string
	for _, table := range []string{"inet", "arp"} {
		text, err := h.ns.Try("nft", "-s", "list", "table", table, "tortie")
		if err != nil {
			out = append(out, "no table "+table)
		}
		text = elements.ReplaceAllStringFunc(epochText.ReplaceAllString(withoutDenied(text), "EPOCH"), inOrder)
		blocks := block.FindAllString(text, -1)
		slices.Sort(blocks)
		out = append(out, blocks...)
	}
	for _, args := range []string{
		"-4 route show", "-6 route show", "-4 neigh show nud permanent", "-6 neigh show nud permanent", "-6 neigh show proxy",
	} {
		lines := strings.Split(h.ns.Run(h.t, "ip", strings.Fields(args)...), "\n")
		slices.Sort(lines)
		out = append(out, strings.Join(lines, "\n"))
	}
	return strings.Join(out, "\n")
}

// deniedElements are those that denied packets put into a set of theirs, and
// that go by themselves.
var deniedElements = regexp.MustCompile(`(?s)(set denied-limit \{[^}]*?)\s*elements = \{[^}]*\}`)

func withoutDenied(ruleset string) string { return deniedElements.ReplaceAllString(ruleset, "$1") }

// firstDifference helps to read two texts that should be equal.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := 0; i < len(g) && i < len(w); i++ {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d is %q, was %q", i, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, were %d", len(g), len(w))
}

// find returns the first submatch of a pattern in what a command prints.
func (h *testHost) find(pattern, name string, args ...string) string {
	h.t.Helper()
	out := h.ns.Run(h.t, name, args...)
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		h.t.Fatalf("no %s in: %s", pattern, out)
	}
	return m[len(m)-1]
}

// metric reads one of the agent's metrics.
func (h *testHost) metric(name string) float64 {
	h.t.Helper()
	body, err := h.show("/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return v
		}
	}
	h.t.Fatalf("no metric %s", name)
	return 0
}

// foreignHand is what another program does to what is ours.
type foreignHand struct {
	does string
	run  []string // commands; {program}, {set4}, {set6} are names of ours
	// leaks says that the command itself opens the door, which nothing can
	// prevent: then it is closed in time. Otherwise nothing passes at all.
	leaks bool
	// cuts says that the command itself keeps allowed packets out.
	cuts bool
}

// The server is cali2, the client cali1, the other cali3.
var foreignHands = []foreignHand{
	{does: "deletes our table", leaks: true, run: []string{"nft delete table inet tortie"}},
	{does: "deletes the table for ARP", run: []string{"nft delete table arp tortie"}},
	{does: "deletes both tables", leaks: true, run: []string{"nft flush ruleset"}},
	{does: "flushes the forward chain", leaks: true, run: []string{"nft flush chain inet tortie forward"}},
	{does: "deletes the forward chain", leaks: true, run: []string{"nft flush chain inet tortie forward; delete chain inet tortie forward"}},
	{does: "deletes the spoof check", run: []string{"nft flush chain inet tortie raw; delete chain inet tortie raw"}},
	{does: "flushes a program", leaks: true, run: []string{"nft flush chain inet tortie {program}"}},
	{does: "deletes a rule", run: []string{"nft delete rule inet tortie {program} handle {rule}"}},
	{does: "deletes the last rule", leaks: true, run: []string{"nft delete rule inet tortie {program} handle {last}"}},
	{does: "adds an accept rule to a program", leaks: true, run: []string{"nft insert rule inet tortie {program} accept"}},
	{does: "adds an accept rule to a base chain", leaks: true, run: []string{"nft insert rule inet tortie forward accept"}},
	{does: "adds a chain", run: []string{"nft add chain inet tortie more { type filter hook forward priority -5; }; add rule inet tortie more counter"}},
	{does: "adds a chain that drops", cuts: true, run: []string{"nft add chain inet tortie more { type filter hook forward priority -5; policy drop; }"}},
	{does: "adds a set", run: []string{"nft add set inet tortie more { type ipv4_addr; elements = { 10.0.0.1 }; }"}},
	{does: "deletes members of a selector", run: []string{
		"nft delete element inet tortie {set4} { 10.65.0.2 }; delete element inet tortie {set6} { fd00:65::2 }",
	}},
	{does: "adds members to a selector", leaks: true, run: []string{
		"nft add element inet tortie {set4} { 10.65.0.4 }; add element inet tortie {set6} { fd00:65::4 }",
	}},
	{does: "flushes the sets of a selector", run: []string{"nft flush set inet tortie {set4}; flush set inet tortie {set6}"}},
	{does: "deletes an endpoint's addresses", cuts: true, run: []string{
		"nft delete element inet tortie mac-addr4 { cali1 . 02:00:00:00:00:02 . 10.65.0.2 }; delete element inet tortie mac-addr6 { cali1 . 02:00:00:00:00:02 . fd00:65::2 }",
	}},
	{does: "takes an endpoint out of a map", run: []string{"nft delete element inet tortie programs-to { cali2 }"}},
	{does: "leads a map elsewhere", leaks: true, run: []string{
		"nft delete element inet tortie programs-to { cali2 }; add element inet tortie programs-to { cali2 : accept }",
	}},
	{does: "deletes routes", cuts: true, run: []string{"ip -4 route del 10.65.0.3", "ip -6 route del fd00:65::3"}},
	{does: "changes routes", cuts: true, leaks: true, run: []string{
		"ip -4 route replace 10.65.0.3 dev cali3 proto 80 metric 1024", "ip -6 route replace fd00:65::3 dev cali3 proto 80 metric 1024",
	}},
	{does: "takes routes for its own", run: []string{
		"ip -4 route replace 10.65.0.3 dev cali2 proto 77 metric 1024", "ip -6 route replace fd00:65::3 dev cali2 proto 77 metric 1024",
	}},
	{does: "adds routes of ours", run: []string{
		"ip -4 route add 10.65.0.99 dev cali3 proto 80 metric 1024", "ip -6 route add fd00:65::99 dev cali3 proto 80 metric 1024",
	}},
	{does: "deletes the gateway's route", run: []string{"ip -4 route del 169.254.1.1"}},
	// The kernel drops a packet that it has just found the entry for.
	{does: "deletes neighbours", cuts: true, run: []string{"ip neigh del 10.65.0.3 dev cali2", "ip neigh del fd00:65::3 dev cali2"}},
	{does: "changes neighbours", cuts: true, run: []string{
		"ip neigh replace 10.65.0.3 dev cali2 lladdr 02:00:00:00:00:99 nud permanent",
		"ip neigh replace fd00:65::3 dev cali2 lladdr 02:00:00:00:00:99 nud permanent",
	}},
}

// Whatever another program does to what is ours is undone in time, and by then
// what it let through is cut again: a connection that was judged by the wrong
// rules is judged anew. Where the hand does not itself open the door, not one
// denied packet passes; where it does not itself close it, no allowed one is
// lost, not even by the repair.
func TestForeignHand(t *testing.T) {
	s := newScenario(t)
	s.run()
	allowed, denied := s.streams()
	want := s.kernelText()
	for _, hand := range foreignHands {
		names := s.ourNames()
		from := make([]int, len(denied))
		for i, d := range denied {
			from[i], _ = d.counts()
		}
		firstAllowed := make([]int, len(allowed))
		for i, a := range allowed {
			firstAllowed[i], _ = a.counts()
		}
		begin := time.Now()
		for _, c := range hand.run {
			words := strings.Fields(names.Replace(c))
			if words[0] == "nft" {
				words = []string{"nft", strings.Join(words[1:], " ")}
			}
			s.ns.Run(t, words[0], words[1:]...)
		}
		text := s.kernelText()
		for time.Since(begin) < repairTime && text != want {
			text = s.kernelText()
		}
		took := time.Since(begin)
		if text != want {
			t.Fatalf("a foreign hand %s: not repaired in %s: %s", hand.does, repairTime, firstDifference(text, want))
		}
		// The epoch is bumped after the repair: one more turn of the loop.
		s.health()
		passed := 0
		for i, d := range denied {
			passed += d.passed(from[i])
			d.forbid()
		}
		for _, d := range denied {
			d.quiet()
		}
		lost := 0
		for i, a := range allowed {
			a.flows()
			lost += a.missing(firstAllowed[i])
		}
		t.Logf("a foreign hand %s: repaired within %s; %d denied packets passed meanwhile, %d allowed ones lost",
			hand.does, took.Round(time.Millisecond), passed, lost)
		if !hand.leaks && passed > 0 {
			t.Errorf("a foreign hand %s: %d denied packets passed", hand.does, passed)
		}
		if !hand.cuts && lost > 0 {
			t.Errorf("a foreign hand %s: %d allowed packets lost", hand.does, lost)
		}
	}
	if n := s.metric("tortie_agent_foreign_changes_total"); n < float64(len(foreignHands)) {
		t.Errorf("%v foreign changes counted, want at least %d", n, len(foreignHands))
	}
}

// ourNames finds out what the patterns in foreignHands stand for.
func (s *scenario) ourNames() *strings.Replacer {
	s.t.Helper()
	program := s.find(`"cali2" : jump (p-\w+)`, "nft", "list map inet tortie programs-to")
	rules := s.ns.Run(s.t, "nft", "-a", "list chain inet tortie "+program)
	handles := regexp.MustCompile(`# handle (\d+)`).FindAllStringSubmatch(rules, -1)
	if len(handles) < 3 {
		s.t.Fatalf("rules of a program: %s", rules)
	}
	tables := s.ns.Run(s.t, "nft", "list table inet tortie")
	set := func(family string) string {
		m := regexp.MustCompile(`ct original ` + family + ` saddr @(\S+) counter`).FindStringSubmatch(tables)
		if m == nil {
			s.t.Fatalf("no set of a selector: %s", tables)
		}
		return m[1]
	}
	return strings.NewReplacer("{program}", program, "{set4}", set("ip"), "{set6}", set("ip6"),
		"{rule}", handles[1][1], "{last}", handles[len(handles)-1][1])
}
