package calc_test

import (
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"tortie/api"
	"tortie/calc"
	"tortie/desired"
)

var update = flag.Bool("update", false, "rewrite the expected text in testdata")

// TestScripts runs testdata/*.txtar. A script says what happens and compares
// what is desired then. The commands are:
//
//	host NAME                       the host that is computed for; first of all
//	iface NAME up|down|gone [INDEX]
//	put workload NAME HOST ADDRESS,… [LABEL=VALUE …] [-ns=…] [-iface=…]
//	    [-orch=…] [-nat=EXTERNAL/INTERNAL,…] [-mac=…] [-gw=ADDRESS,…] [-profiles=NAME,…] [-sa=NAME] [-problem=TEXT]
//	put policy NAME SELECTOR [-ns=…] [-tier=…] [-order=…] [-types=…] RULE …
//	    where a RULE is allow|deny|pass|log and -from|-to and, as the next word,
//	    a selector or, with a comma at its end, a list of prefixes
//	put tier NAME ORDER [Deny|Pass]
//	put profile NAME [LABEL=VALUE …] RULE …
//	put netset NAME PREFIX,… [LABEL=VALUE …] [-ns=…]
//	put FILE.json                   an object as it is stored
//	delete …                        as put, as far as is needed to name the object
//	prefixes NAME …                 the prefixes of workload interfaces
//	option floating|hosts-inside|spoofing true|false
//	flush
//	desired                         prints the state, for cmp stdout FILE
//	changes LINE …                  what the last flush changed, all of it
//	tightened true|false            whether the last flush said that it tightened
//
// Each time the state is printed, what happened so far is replayed in other
// orders and batches, which must end in the same state.
func TestScripts(t *testing.T) {
	cmds := map[string]func(ts *testscript.TestScript, neg bool, args []string){}
	for name, f := range map[string]func(*script, io.Writer, []string) error{
		"host":      (*script).host,
		"iface":     (*script).iface,
		"put":       (*script).put,
		"delete":    (*script).delete,
		"prefixes":  (*script).prefixes,
		"option":    (*script).option,
		"flush":     (*script).flush,
		"desired":   (*script).desired,
		"changes":   (*script).changes,
		"tightened": (*script).tightened,
	} {
		cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("%s cannot be negated", name)
			}
			s := ts.Value(scriptKey{}).(*script)
			s.read = ts.ReadFile
			if err := f(s, ts.Stdout(), args); err != nil {
				ts.Fatalf("%s: %v", name, err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Values[scriptKey{}] = &script{}
			return nil
		},
		Cmds: cmds,
	})
}

type scriptKey struct{}

// script is a script under way.
type script struct {
	opts   calc.Options
	calc   *calc.Calc
	state  *desired.State
	steps  []step
	before map[string]string // rows before the last flush
	read   func(file string) string
}

var errUsage = errors.New("see TestScripts for what it takes")

func (s *script) host(_ io.Writer, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	s.opts = calc.Options{Host: args[0], WorkloadPrefixes: []string{"cali", "tap"}}
	s.calc, s.state = calc.New(s.opts), desired.New()
	return nil
}

// take takes a step, and notes it for the replays.
func (s *script) take(st step) error {
	if s.calc == nil {
		return errors.New("there is no host")
	}
	s.steps = append(s.steps, st)
	st.do(s.calc, s.state)
	return nil
}

func (s *script) iface(_ io.Writer, args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errUsage
	}
	st := step{object: object{iface: args[0]}}
	if args[1] != "gone" {
		i := &calc.HostInterface{Index: 10, Up: args[1] == "up"}
		if len(args) == 3 {
			i.Index, _ = strconv.Atoi(args[2])
		}
		st.value = i
	}
	return s.take(st)
}

func (s *script) put(_ io.Writer, args []string) error {
	st, err := s.parse(args)
	if err != nil {
		return err
	}
	return s.take(st)
}

func (s *script) delete(_ io.Writer, args []string) error {
	st, err := s.parse(args)
	if err != nil {
		return err
	}
	st.value, st.problems = nil, nil
	return s.take(st)
}

// prefixes changes the options at run time. The replays begin with them.
func (s *script) prefixes(_ io.Writer, args []string) error {
	s.opts.WorkloadPrefixes = args
	s.calc.SetOptions(s.opts)
	return nil
}

func (s *script) option(_ io.Writer, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	switch args[0] {
	case "floating":
		s.opts.FloatingIPs = args[1] == "true"
	case "hosts-inside":
		s.opts.HostsInside = args[1] == "true"
	case "spoofing":
		s.opts.SourceSpoofing = args[1] == "true"
	default:
		return errUsage
	}
	s.calc.SetOptions(s.opts)
	return nil
}

func (s *script) flush(io.Writer, []string) error {
	s.before = rows(s.state)
	s.state.ClearDirty()
	s.state.Tightened = false
	return s.take(step{})
}

func (s *script) desired(w io.Writer, _ []string) error {
	got := text(s.state)
	if _, err := io.WriteString(w, got); err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(got))
	for name, steps := range replays(s.steps, h.Sum64()) {
		c, d := calc.New(s.opts), desired.New()
		for _, st := range steps {
			st.do(c, d)
		}
		if diff := cmp.Diff(got, text(d)); diff != "" {
			return fmt.Errorf("replayed %s, another state (-want +got):\n%s", name, diff)
		}
	}
	return nil
}

func (s *script) tightened(_ io.Writer, args []string) error {
	if want := slices.Equal(args, []string{"true"}); s.state.Tightened != want {
		return fmt.Errorf("it is %v", s.state.Tightened)
	}
	return nil
}

// changes compares what the last flush changed, in words: a + for what came, a
// - for what went, a ~ for what changed. Sets are named by their selectors.
func (s *script) changes(_ io.Writer, want []string) error {
	after := rows(s.state)
	names := s.setNames()
	var got []string
	for _, row := range dirtyRows(s.state) {
		_, had := s.before[row]
		_, has := after[row]
		sign := "~"
		switch {
		case has && !had:
			sign = "+"
		case had && !has:
			sign = "-"
		}
		for id, sel := range names {
			row = strings.ReplaceAll(row, id, sel)
		}
		got = append(got, sign+row)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("(-want +got):\n%s", diff)
	}
	return nil
}

// setNames are the selectors of all sets that are there or were before.
func (s *script) setNames() map[string]string {
	out := map[string]string{}
	note := func(row, sel string) {
		if name, ok := strings.CutPrefix(row, "set "); ok {
			out[name] = strings.SplitN(name, "-", 2)[0][1:] + " " + sel
		}
	}
	for row, sel := range s.before {
		note(row, sel)
	}
	for row, sel := range rows(s.state) {
		note(row, sel)
	}
	return out
}

// parse reads the arguments of put.
func (s *script) parse(args []string) (step, error) {
	if len(args) == 1 && strings.HasSuffix(args[0], ".json") {
		return stored([]byte(s.read(args[0])))
	}
	if len(args) < 2 {
		return step{}, errUsage
	}
	var words []string
	opts, labels := map[string]string{}, map[string]string{}
	rest := args[2:]
	for len(rest) > 0 {
		a := rest[0]
		rest = rest[1:]
		k, v, ok := strings.Cut(a, "=")
		switch {
		case strings.HasPrefix(a, "-") && ok:
			opts[k[1:]] = v
		case isRule(a) && len(rest) > 0:
			words = append(words, a, rest[0])
			rest = rest[1:]
		case ok && !strings.HasPrefix(v, "=") && !strings.ContainsAny(k, " !("):
			labels[k] = v
		default:
			words = append(words, a)
		}
	}
	switch args[0] {
	case "workload":
		return parseWorkload(args[1], words, labels, opts)
	case "policy":
		return parsePolicy(args[1], words, opts)
	case "tier":
		return parseTier(args[1], words)
	case "profile":
		return parseProfile(args[1], words, labels)
	case "netset":
		return parseNetworkSet(args[1], words, labels, opts)
	}
	return step{}, errUsage
}

// stored reads an object in the form in which it is stored.
func stored(data []byte) (step, error) {
	o, problems, err := api.DecodeManifest(data)
	if err != nil {
		return step{}, err
	}
	return step{object: object{key: o.Key()}, value: o, problems: problems}, nil
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func parseWorkload(name string, words []string, labels, opts map[string]string) (step, error) {
	if len(words) < 1 {
		return step{}, errUsage
	}
	id := api.WorkloadName{Node: words[0], Orchestrator: "lab", Workload: name, Endpoint: "eth0"}
	w := &api.WorkloadEndpoint{Kind: api.KindWorkloadEndpoint, Meta: api.Meta{Name: id.String(), Namespace: "default", Labels: labels}}
	w.Spec = api.WorkloadEndpointSpec{
		Node: id.Node, Orchestrator: id.Orchestrator, Workload: id.Workload, Endpoint: id.Endpoint,
		InterfaceName: "cali" + name,
	}
	if len(words) > 1 {
		w.Spec.IPNetworks = api.ParseNets(list(words[1])...)
	}
	st := step{value: w}
	for k, v := range opts {
		var err error
		switch k {
		case "ns":
			w.Meta.Namespace = v
		case "iface":
			w.Spec.InterfaceName = v
		case "orch":
			w.Spec.Orchestrator = v
		case "nat":
			for _, pair := range list(v) {
				external, internal, _ := strings.Cut(pair, "/")
				n := api.IPNAT{}
				n.ExternalIP.Addr, _ = api.ParseAddr(external)
				n.InternalIP.Addr, _ = api.ParseAddr(internal)
				w.Spec.IPNATs = append(w.Spec.IPNATs, n)
			}
		case "mac":
			w.Spec.MAC, err = api.ParseMAC(v)
		case "gw":
			for _, g := range list(v) {
				a, err := api.ParseAddr(g)
				if err != nil {
					return step{}, err
				}
				if a.Is4() {
					w.Spec.IPv4Gateway.Addr = a
				} else {
					w.Spec.IPv6Gateway.Addr = a
				}
			}
		case "profiles":
			w.Spec.Profiles = list(v)
		case "sa":
			w.Spec.ServiceAccountName = v
		case "problem":
			st.problems = append(st.problems, api.Problem{Field: "spec", Reason: v})
		case "unsupported":
			st.problems = append(st.problems, api.Problem{Field: "spec", Reason: v, Unsupported: true})
		default:
			return step{}, errUsage
		}
		if err != nil {
			return step{}, err
		}
	}
	st.key = w.Key()
	return st, nil
}

var actions = map[string]api.Action{"allow": api.Allow, "deny": api.Deny, "pass": api.Pass, "log": api.Log}

func isRule(word string) bool {
	a, side, ok := strings.Cut(word, "-")
	return ok && actions[a] != "" && (side == "from" || side == "to")
}

// parseRules reads pairs of words.
func parseRules(words []string) (ingress, egress []api.Rule, err error) {
	for ; len(words) >= 2; words = words[2:] {
		if !isRule(words[0]) {
			return nil, nil, fmt.Errorf("%q is no rule", words[0])
		}
		a, side, _ := strings.Cut(words[0], "-")
		var e api.EntityRule
		if nets, ok := strings.CutSuffix(words[1], ","); ok {
			e.Nets = api.ParseNets(list(nets)...)
		} else {
			e.Selector = api.ParseSelector(words[1])
			err = errors.Join(err, e.Selector.Err)
		}
		if side == "from" {
			ingress = append(ingress, api.Rule{Action: actions[a], Source: e})
		} else {
			egress = append(egress, api.Rule{Action: actions[a], Destination: e})
		}
	}
	return ingress, egress, err
}

func parsePolicy(name string, words []string, opts map[string]string) (step, error) {
	p := &api.Policy{Kind: api.KindGlobalNetworkPolicy, Meta: api.Meta{Name: name}}
	var err error
	for k, v := range opts {
		switch k {
		case "ns":
			p.Kind, p.Meta.Namespace = api.KindNetworkPolicy, v
		case "tier":
			p.Spec.Tier = v
		case "order":
			p.Spec.Order, err = parseOrder(v)
		case "types":
			for _, t := range list(v) {
				p.Spec.Types = append(p.Spec.Types, api.Direction(t))
			}
		case "namespaces":
			p.Spec.NamespaceSelector = api.ParseSelector(v)
		default:
			return step{}, errUsage
		}
	}
	if err == nil && len(words) > 0 {
		p.Spec.Selector = api.ParseSelector(words[0])
		p.Spec.Ingress, p.Spec.Egress, err = parseRules(words[1:])
	}
	return step{object: object{key: p.Key()}, value: p}, err
}

func parseOrder(s string) (*float64, error) {
	if s == "nil" {
		return nil, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	return &f, err
}

func parseTier(name string, words []string) (step, error) {
	t := &api.Tier{Kind: api.KindTier, Meta: api.Meta{Name: name}}
	var err error
	if len(words) > 0 {
		t.Spec.Order, err = parseOrder(words[0])
	}
	if len(words) > 1 {
		t.Spec.DefaultAction = api.Action(words[1])
	}
	return step{object: object{key: t.Key()}, value: t}, err
}

func parseProfile(name string, words []string, labels map[string]string) (step, error) {
	p := &api.Profile{Kind: api.KindProfile, Meta: api.Meta{Name: name}}
	p.Spec.LabelsToApply = maps.Clone(labels)
	var err error
	p.Spec.Ingress, p.Spec.Egress, err = parseRules(words)
	return step{object: object{key: p.Key()}, value: p}, err
}

func parseNetworkSet(name string, words []string, labels, opts map[string]string) (step, error) {
	n := &api.NetworkSet{Kind: api.KindGlobalNetworkSet, Meta: api.Meta{Name: name, Labels: labels}}
	if ns := opts["ns"]; ns != "" {
		n.Kind, n.Meta.Namespace = api.KindNetworkSet, ns
	}
	if len(words) > 0 {
		n.Spec.Nets = api.ParseNets(list(words[0])...)
	}
	return step{object: object{key: n.Key()}, value: n}, nil
}
