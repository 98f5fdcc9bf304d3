package calc_test

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/calc"
	"tortie/compile"
	"tortie/desired"
	"tortie/selector"
)

// oracle computes the desired state of a world from scratch, in the plainest
// way: every question is answered by looking at everything.
type oracle struct {
	opts  calc.Options
	world world
	state *desired.State
	weps  []api.Key
}

func oracleState(opts calc.Options, w world) *desired.State {
	o := &oracle{opts: opts, world: w, state: desired.New()}
	o.weps = o.keys(api.KindWorkloadEndpoint)
	for _, k := range o.weps {
		if o.local(k) {
			o.endpoint(k)
		}
	}
	o.hosts()
	o.sets()
	o.inside()
	return o.state
}

func get[T any](o *oracle, kind api.Kind, ns, name string) *T {
	v, _ := o.world[object{key: api.Key{Kind: kind, Namespace: ns, Name: name}}].value.(*T)
	return v
}

func (o *oracle) keys(kinds ...api.Kind) []api.Key {
	var out []api.Key
	for k := range o.world {
		if k.iface == "" && slices.Contains(kinds, k.key.Kind) {
			out = append(out, k.key)
		}
	}
	slices.SortFunc(out, api.Key.Compare)
	return out
}

func (o *oracle) wep(k api.Key) *api.WorkloadEndpoint {
	return get[api.WorkloadEndpoint](o, k.Kind, k.Namespace, k.Name)
}

func (o *oracle) local(k api.Key) bool {
	if n, err := api.ParseWorkloadName(k.Name); err == nil {
		return n.Node == o.opts.Host
	}
	return o.wep(k).Spec.Node == o.opts.Host
}

func (o *oracle) addrs(k api.Key) []netip.Addr {
	found := map[netip.Addr]bool{}
	for _, p := range o.wep(k).Spec.IPNetworks.Prefixes {
		if p.IsSingleIP() {
			found[p.Addr()] = true
		}
	}
	return slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
}

// nets are the addresses and ranges of an endpoint.
func (o *oracle) nets(k api.Key) []netip.Prefix {
	found := map[netip.Prefix]bool{}
	for _, p := range o.wep(k).Spec.IPNetworks.Prefixes {
		found[p] = true
	}
	return slices.SortedFunc(maps.Keys(found), netip.Prefix.Compare)
}

// bound says whether an endpoint has its interface, and why not.
func (o *oracle) bound(k api.Key) (bool, string) {
	name := o.wep(k).Spec.InterfaceName
	if name == "" {
		return false, "it names no interface"
	}
	if !slices.ContainsFunc(o.opts.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
		return false, "interface " + name + " has none of the prefixes of workload interfaces"
	}
	for _, other := range o.weps {
		if o.local(other) && o.wep(other).Spec.InterfaceName == name {
			if other != k {
				return false, "interface " + name + " belongs to " + other.String()
			}
			break
		}
	}
	return true, ""
}

// owner is the local endpoint that an address belongs to.
func (o *oracle) owner(a netip.Addr) api.Key { return o.netOwner(netip.PrefixFrom(a, a.BitLen())) }

func (o *oracle) netOwner(p netip.Prefix) api.Key {
	var best api.Key
	bestBound := false
	for _, k := range o.weps {
		if o.local(k) && slices.Contains(o.nets(k), p) {
			if b, _ := o.bound(k); best == (api.Key{}) || b && !bestBound {
				best, bestBound = k, b
			}
		}
	}
	return best
}

// labels are the effective labels of an endpoint or network set.
func (o *oracle) labels(k api.Key) map[string]string {
	var own map[string]string
	derived := map[string]string{}
	var profiles []string
	switch k.Kind {
	case api.KindWorkloadEndpoint:
		w := o.wep(k)
		own, profiles = w.Meta.Labels, w.Spec.Profiles
		derived[api.LabelNamespace] = k.Namespace
		if s := w.Spec.Orchestrator; s != "" {
			derived[api.LabelOrchestrator] = s
		}
		if s := w.Spec.ServiceAccountName; s != "" {
			derived[api.LabelServiceAccount] = s
		}
	case api.KindHostEndpoint:
		h := get[api.HostEndpoint](o, k.Kind, "", k.Name)
		own, profiles = maps.Clone(h.Meta.Labels), h.Spec.Profiles
		delete(own, api.LabelNamespace)
	default:
		own = maps.Clone(get[api.NetworkSet](o, k.Kind, k.Namespace, k.Name).Meta.Labels)
		delete(own, api.LabelNamespace)
		if k.Namespace != "" {
			derived[api.LabelNamespace] = k.Namespace
			profiles = []string{"kns." + k.Namespace}
		}
	}
	out := map[string]string{}
	for _, name := range slices.Backward(profiles) {
		if p := o.profile(name); p != nil {
			maps.Copy(out, p.LabelsToApply)
		}
	}
	for l, v := range own {
		if !strings.HasPrefix(l, "pcns.") && !strings.HasPrefix(l, "pcsa.") {
			out[l] = v
		}
	}
	maps.Copy(out, derived)
	return out
}

func (o *oracle) profile(name string) *api.ProfileSpec {
	if name == api.DefaultAllowProfile {
		return &api.ProfileSpec{Ingress: []api.Rule{{Action: api.Allow}}, Egress: []api.Rule{{Action: api.Allow}}}
	}
	if p := get[api.Profile](o, api.KindProfile, "", name); p != nil {
		return &p.Spec
	}
	return nil
}

func matches(s api.Selector, labels map[string]string) bool {
	return s.Err == nil && (s.Expr == nil || s.Expr.Match(labels))
}

// inherited keeps the labels that begin with a prefix, without it.
func inherited(labels map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range labels {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}

// inTier are the policies as they are enforced or, in a trial, as they would be
// if what is staged were.
func (o *oracle) inTier(trial bool) []*api.Policy {
	var out []*api.Policy
	for _, kind := range []api.Kind{api.KindNetworkPolicy, api.KindGlobalNetworkPolicy} {
		staged := map[api.Key]*api.Policy{}
		for _, k := range o.keys("Staged" + kind) {
			p := get[api.Policy](o, k.Kind, k.Namespace, k.Name)
			if trial && p.Spec.StagedAction != "Ignore" && !p.Spec.DoNotTrack && !p.Spec.PreDNAT {
				staged[api.Key{Kind: kind, Namespace: k.Namespace, Name: k.Name}] = p
			}
		}
		for _, k := range o.keys(kind) {
			if staged[k] == nil {
				out = append(out, get[api.Policy](o, k.Kind, k.Namespace, k.Name))
			}
		}
		for _, p := range staged {
			if p.Spec.StagedAction != "Delete" {
				out = append(out, p)
			}
		}
	}
	return out
}

func (o *oracle) policies(labels map[string]string, dir api.Direction, trial bool) []*api.Policy {
	return o.policiesThat(labels, dir, trial, func(s *api.PolicySpec) bool { return !s.DoNotTrack && !s.PreDNAT })
}

func (o *oracle) policiesThat(labels map[string]string, dir api.Direction, trial bool, meant func(*api.PolicySpec) bool) []*api.Policy {
	var out []*api.Policy
	for _, p := range o.inTier(trial) {
		s, k := &p.Spec, p.Key()
		_, account := labels[api.LabelServiceAccount]
		switch {
		case !meant(s):
		case len(s.Types) > 0 && !slices.Contains(s.Types, dir):
		case !matches(s.Selector, labels):
		case k.Namespace != "" && labels[api.LabelNamespace] != k.Namespace:
		case k.Namespace == "" && s.NamespaceSelector.Text != "" && labels[api.LabelNamespace] == "":
		case k.Namespace == "" && s.NamespaceSelector.Text != "" && !matches(s.NamespaceSelector, inherited(labels, "pcns.")):
		case s.ServiceAccountSelector.Text != "" && (!account || !matches(s.ServiceAccountSelector, inherited(labels, "pcsa."))):
		default:
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *api.Policy) int {
		return cmp.Or(cmp.Compare(o.tierRank(a), o.tierRank(b)), cmp.Compare(tierName(a), tierName(b)),
			cmp.Compare(orInf(a.Spec.Order), orInf(b.Spec.Order)),
			cmp.Compare(tieOf(a), tieOf(b)))
	})
	return out
}

func tieOf(p *api.Policy) string {
	return p.Meta.Name + "/" + p.Meta.Namespace + "/" + strings.TrimPrefix(string(p.Kind), "Staged")
}

func tierName(p *api.Policy) string {
	if p.Spec.Tier == "" {
		return "default"
	}
	return p.Spec.Tier
}

func orInf(f *float64) float64 {
	if f == nil {
		return math.MaxFloat64
	}
	return *f
}

func (o *oracle) tierRank(p *api.Policy) float64 {
	if t := get[api.Tier](o, api.KindTier, "", tierName(p)); t != nil {
		return orInf(t.Spec.Order)
	}
	return math.Inf(1)
}

func rulesOf(dir api.Direction, ingress, egress []api.Rule) []api.Rule {
	if dir == api.Ingress {
		return ingress
	}
	return egress
}

// program adds the program of an endpoint in a direction and returns its id.
func (o *oracle) program(labels map[string]string, profiles []string, dir api.Direction) desired.ProgramID {
	policies, trial := o.policies(labels, dir, false), o.policies(labels, dir, true)
	id := compile.ProgramID(dir, keysOf(policies), profiles)
	p := compile.Program(o.stages(policies, profiles, dir, "end"))
	if !slices.Equal(keysOf(policies), keysOf(trial)) {
		id = compile.TrialID(id, keysOf(trial))
		stages := o.stages(trial, profiles, dir, "staged-end")
		for i := range stages {
			for j := range stages[i].Policies {
				stages[i].Policies[j] = slices.DeleteFunc(stages[i].Policies[j], func(r desired.Rule) bool {
					return r.Verdict == desired.Log && !strings.HasPrefix(r.ID, "Staged")
				})
				for n := range stages[i].Policies[j] {
					if r := &stages[i].Policies[j][n]; !strings.HasPrefix(r.ID, "Staged") {
						r.ID, r.Note = "", ""
					}
				}
			}
		}
		p.Trial = compile.Program(stages).Stages
	}
	o.state.Programs.Set(id, p)
	return id
}

func keysOf(policies []*api.Policy) (keys []api.Key) {
	for _, p := range policies {
		keys = append(keys, p.Key())
	}
	return keys
}

func (o *oracle) stages(policies []*api.Policy, profiles []string, dir api.Direction, end string) []compile.Stage {
	return append(o.tierStages(policies, dir, end), o.profileStage(profiles, dir, end))
}

// tierStages are those of the tiers of policies.
func (o *oracle) tierStages(policies []*api.Policy, dir api.Direction, end string) (stages []compile.Stage) {
	for _, p := range policies {
		if n := len(stages); n == 0 || stages[n-1].Name != tierName(p) {
			st := compile.Stage{Name: tierName(p), EndID: "Tier//" + tierName(p) + "/" + string(dir) + "/" + end}
			if t := get[api.Tier](o, api.KindTier, "", tierName(p)); t != nil && t.Spec.DefaultAction == api.Pass {
				st.End = desired.Next
			}
			stages = append(stages, st)
		}
		last := &stages[len(stages)-1]
		last.Policies = append(last.Policies, o.rules(p.Key(), dir, rulesOf(dir, p.Spec.Ingress, p.Spec.Egress)))
	}
	return stages
}

func (o *oracle) profileStage(profiles []string, dir api.Direction, end string) compile.Stage {
	last := compile.Stage{Name: "profiles", EndID: "Profile///" + string(dir) + "/" + end}
	for _, name := range profiles {
		if p := o.profile(name); p != nil {
			last.Policies = append(last.Policies, o.rules(api.Key{Kind: api.KindProfile, Name: name}, dir, rulesOf(dir, p.Ingress, p.Egress)))
		}
	}
	return last
}

func (o *oracle) rules(owner api.Key, dir api.Direction, rules []api.Rule) []desired.Rule {
	var sets []compile.Sets
	for i := range rules {
		var s compile.Sets
		s.Source, s.NotSource = o.setIDs(owner.Namespace, &rules[i].Source, &s)
		s.Destination, s.NotDestination = o.setIDs(owner.Namespace, &rules[i].Destination, &s)
		if !s.Never {
			s.SourcePorts = o.places(s.Source, rules[i].Source.Ports)
			s.NotSourcePorts = o.places(s.Source, rules[i].Source.NotPorts)
			s.DestinationPorts = o.places(s.Destination, rules[i].Destination.Ports)
			s.NotDestinationPorts = o.places(s.Destination, rules[i].Destination.NotPorts)
		}
		sets = append(sets, s)
	}
	return compile.Rules(owner, dir, rules, sets)
}

// asked is a selector with names of ports.
type asked struct {
	selector string
	names    []string
}

// places names the set of the places of named ports, of what the selector of a
// set selects or, if there is none, of everything.
func (o *oracle) places(of desired.SetID, ports []api.Port) desired.SetID {
	text, names := "all()", map[string]bool{}
	if of != 0 {
		text = selectors[of]
	}
	for _, p := range ports {
		if p.Name != "" {
			names[p.Name] = true
		}
	}
	if len(names) == 0 {
		return 0
	}
	a := asked{text, slices.Sorted(maps.Keys(names))}
	id := compile.SetID(compile.PortSetText(a.selector, a.names))
	named[id] = a
	return id
}

// named remembers what all sets of named ports are.
var named = map[desired.SetID]asked{}

// selectors remembers the texts of all selectors that oracles came upon.
var selectors = map[desired.SetID]string{}

func (o *oracle) setIDs(ns string, e *api.EntityRule, s *compile.Sets) (in, not desired.SetID) {
	if e.Selector.Err != nil || e.NamespaceSelector.Err != nil || e.NotSelector.Err != nil {
		s.Never = true
		return 0, 0
	}
	id := func(x *selector.Selector) desired.SetID {
		i := compile.SetID(x.String())
		selectors[i] = x.String()
		return i
	}
	parse := func(text string) *selector.Selector {
		x, err := selector.Parse(text)
		if err != nil {
			panic(err)
		}
		return x
	}
	if e.Selector.Text != "" || e.NamespaceSelector.Text != "" || e.ServiceAccounts != nil {
		x := parse(e.Selector.Text)
		if a := e.ServiceAccounts; a != nil {
			if a.Selector.Err != nil {
				s.Never = true
				return 0, 0
			}
			if a.Selector.Expr != nil {
				x = selector.And(a.Selector.Expr.WithPrefix("pcsa."), x)
			}
			account := "has(projectcalico.org/serviceaccount)"
			if len(a.Names) > 0 {
				account = "projectcalico.org/serviceaccount in {'" + strings.Join(a.Names, "','") + "'}"
			}
			x = selector.And(parse(account), x)
		}
		switch n := e.NamespaceSelector; {
		case n.Text == "" && ns != "":
			x = selector.And(parse("projectcalico.org/namespace == '"+ns+"'"), x)
		case n.Text == "":
		case n.Expr == nil || n.Expr.String() == "all()":
			x = selector.And(parse("has(projectcalico.org/namespace)"), x)
		case n.Expr.String() == "global()":
			x = selector.And(parse("!has(projectcalico.org/namespace)"), x)
		default:
			x = selector.And(n.Expr.WithPrefix("pcns."), x)
		}
		in = id(x)
	}
	if e.NotSelector.Text != "" {
		not = id(parse(e.NotSelector.Text))
	}
	return in, not
}

// endpoint adds all that a local endpoint means, but for sets.
func (o *oracle) endpoint(k api.Key) {
	st, w := o.state, o.wep(k)
	bound, why := o.bound(k)
	var errs, warnings []string
	for _, p := range o.world[object{key: k}].problems {
		if p.Unsupported {
			warnings = append(warnings, p.String())
		} else {
			errs = append(errs, p.String())
		}
	}
	if q := w.Spec.QoSControls; q != nil {
		for _, p := range q.Problems() {
			errs = append(errs, p.String())
		}
		for _, p := range q.Idle() {
			warnings = append(warnings, p.String())
		}
	}
	join := func(s []string) []string { return []string{strings.Join(s, "; ")} }
	if len(errs) > 0 {
		errs = join(errs)
	}
	if len(warnings) > 0 {
		warnings = join(warnings)
	}
	if len(o.nets(k)) == 0 {
		errs = append(errs, "it has no address")
	}
	if len(w.Spec.AllowSpoofedSourcePrefixes.Prefixes) > 0 && !o.opts.SourceSpoofing {
		warnings = append(warnings, "allowSpoofedSourcePrefixes is not in force: WorkloadSourceSpoofing is Disabled")
	}
	if !bound {
		errs = append(errs, why)
	}
	host, _ := o.world[object{iface: w.Spec.InterfaceName}].value.(*calc.HostInterface)
	e := desired.Endpoint{Interface: w.Spec.InterfaceName}
	if bound && host != nil {
		e.Present, e.Up = true, host.Up
	}
	var won []netip.Addr
	for _, p := range o.nets(k) {
		a, owner := p.Addr(), o.netOwner(p)
		if !p.IsSingleIP() {
			if owner != k {
				errs = append(errs, "range "+p.String()+" belongs to "+owner.String())
			}
			continue
		}
		if owner != k {
			errs = append(errs, "address "+a.String()+" belongs to "+owner.String())
			continue
		}
		won = append(won, a)
		for _, other := range o.weps {
			if !o.local(other) && slices.Contains(o.addrs(other), a) {
				warnings = append(warnings, "address "+a.String()+" is also that of "+other.String())
			}
		}
	}
	faults, notices := o.floating(k, won, bound && host != nil && host.Up)
	errs, warnings = append(errs, faults...), append(warnings, notices...)
	for _, name := range w.Spec.Profiles {
		if o.profile(name) == nil {
			warnings = append(warnings, "profile "+name+" does not exist")
		}
	}
	slices.Sort(warnings)
	e.Error, e.Warning = strings.Join(errs, "; "), strings.Join(warnings, "; ")
	st.Endpoints.Set(k, e)
	if bound {
		o.inForce(k, w, host, won)
	}
}

// natProblem says what is wrong with the i-th external address of an endpoint.
func (o *oracle) natProblem(k api.Key, i int) string {
	nats := o.wep(k).Spec.IPNATs
	external, internal := nats[i].ExternalIP, nats[i].InternalIP
	switch {
	case !external.IsValid() || !internal.IsValid():
		return "an external address lacks one of its two addresses"
	case external.Is4() != internal.Is4():
		return "external address " + external.String() + ": the internal address " + internal.String() + " is of the other family"
	case !slices.Contains(o.addrs(k), internal.Addr):
		return "external address " + external.String() + ": the internal address " + internal.String() + " is not its own"
	}
	for j := range nats[:i] {
		if nats[j].ExternalIP.Addr == external.Addr && o.natProblem(k, j) == "" {
			return "external address " + external.String() + " is given twice: the first counts"
		}
	}
	return ""
}

// natOwner is whose an external address is.
func (o *oracle) natOwner(external netip.Addr) (owner api.Key) {
	for _, k := range o.weps {
		if slices.Contains(o.addrs(k), external) {
			return k
		}
	}
	for _, k := range o.weps {
		w := o.wep(k)
		for i, n := range w.Spec.IPNATs {
			if n.ExternalIP.Addr == external && o.natProblem(k, i) == "" && (w.Spec.Orchestrator == "openstack" || o.opts.FloatingIPs) {
				return k
			}
		}
	}
	return owner
}

// floating adds what the external addresses of a local endpoint mean.
func (o *oracle) floating(k api.Key, won []netip.Addr, up bool) (errs, warnings []string) {
	w := o.wep(k)
	bound, _ := o.bound(k)
	others := map[netip.Addr]string{}
	for i, n := range w.Spec.IPNATs {
		external, internal := n.ExternalIP.Addr, n.InternalIP.Addr
		if problem := o.natProblem(k, i); problem != "" {
			errs = append(errs, problem)
			continue
		}
		if w.Spec.Orchestrator != "openstack" && !o.opts.FloatingIPs {
			warnings = []string{"its external addresses are not in force: FloatingIPs is Disabled"}
			continue
		}
		owner := o.natOwner(external)
		if owner != k || slices.Contains(o.addrs(k), external) {
			others[external] = "external address " + external.String() + " belongs to " + owner.String()
			continue
		}
		if !bound || !slices.Contains(won, internal) {
			continue
		}
		o.state.Floating.Set(external, internal)
		if old, ok := o.state.External.Get(internal); !ok || external.Less(old) {
			o.state.External.Set(internal, external)
		}
		if host, _ := o.world[object{iface: w.Spec.InterfaceName}].value.(*calc.HostInterface); up {
			o.state.Routes.Set(desired.RouteKey{Prefix: netip.PrefixFrom(external, external.BitLen()), Metric: 1024}, desired.Route{Interface: w.Spec.InterfaceName, Index: host.Index})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(others), netip.Addr.Compare) {
		errs = append(errs, others[a])
	}
	return errs, warnings
}

// inside adds what pools and hosts mean.
func (o *oracle) inside() {
	for _, k := range o.keys(api.KindIPPool) {
		p := get[api.IPPool](o, k.Kind, "", k.Name)
		prefix, err := api.ParsePrefix(p.Spec.CIDR)
		if err != nil {
			continue
		}
		o.state.Inside.Set(prefix, struct{}{})
		for _, wep := range o.weps {
			if bound, _ := o.bound(wep); !bound || !o.local(wep) || !p.Spec.NATOutgoing {
				continue
			}
			for _, a := range o.addrs(wep) {
				if prefix.Contains(a) && o.owner(a) == wep {
					o.state.Masquerade.Set(a, struct{}{})
				}
			}
		}
	}
	for _, k := range o.keys(api.KindNode) {
		if n := get[api.Node](o, k.Kind, "", k.Name); o.opts.HostsInside {
			o.state.Inside.Set(netip.PrefixFrom(netip.MustParsePrefix(n.Spec.BGP.IPv4Address).Addr(), 32), struct{}{})
		}
	}
}

func (o *oracle) inForce(k api.Key, w *api.WorkloadEndpoint, host *calc.HostInterface, won []netip.Addr) {
	st, labels := o.state, o.labels(k)
	ingress := o.program(labels, w.Spec.Profiles, api.Ingress)
	egress := o.program(labels, w.Spec.Profiles, api.Egress)
	st.Gateways.Set(netip.MustParseAddr("169.254.1.1"), struct{}{})
	if g := w.Spec.IPv4Gateway.Addr; g.IsValid() && g.Is4() {
		st.Gateways.Set(g, struct{}{})
	}
	if host == nil {
		return
	}
	name := w.Spec.InterfaceName
	i := desired.Interface{
		Endpoint: k, Index: host.Index, MAC: w.Spec.MAC.Addr, HasMAC: w.Spec.MAC.Set,
		Addrs: won, Ingress: ingress, Egress: egress,
	}
	for _, p := range o.nets(k) {
		if !p.IsSingleIP() && o.netOwner(p) == k {
			i.Ranges = append(i.Ranges, p)
			if host.Up {
				st.Routes.Set(desired.RouteKey{Prefix: p, Metric: 1024}, desired.Route{Interface: name, Index: host.Index})
			}
		}
	}
	if o.opts.SourceSpoofing {
		i.Spoofed = slices.Compact(slices.SortedFunc(slices.Values(w.Spec.AllowSpoofedSourcePrefixes.Prefixes), netip.Prefix.Compare))
	}
	st.Interfaces.Set(name, i)
	if q := w.Spec.QoSControls; q != nil {
		o.controls(name, host.Index, q)
	}
	if !host.Up {
		return
	}
	for _, a := range won {
		st.Routes.Set(desired.RouteKey{Prefix: netip.PrefixFrom(a, a.BitLen()), Metric: 1024}, desired.Route{Interface: name, Index: host.Index})
		if w.Spec.MAC.Set {
			st.Neighbours.Set(desired.NeighbourKey{Interface: name, Addr: a}, desired.Neighbour{Index: host.Index, MAC: w.Spec.MAC.Addr})
		}
	}
	if g := w.Spec.IPv6Gateway.Addr; g.IsValid() && g.Is6() {
		st.Neighbours.Set(desired.NeighbourKey{Interface: name, Addr: g, Proxy: true}, desired.Neighbour{Index: host.Index})
	}
}

// controls knows the values that the generator gives.
func (o *oracle) controls(name string, index int, q *api.QoSControls) {
	c := desired.Controls{Index: index, Mark: q.DSCP.Set, DSCP: q.DSCP.Value}
	if q.IngressBandwidth >= 1000 {
		c.Ingress.Rate, c.Ingress.Burst = uint64(q.IngressBandwidth/8), 1<<29
	}
	if c.Egress.PacketRate = uint32(q.EgressPacketRate); c.Egress.PacketRate > 0 {
		c.Egress.PacketBurst = 5
	}
	c.Egress.Connections = uint32(q.EgressMaxConnections)
	if c != (desired.Controls{Index: index}) {
		o.state.Controls.Set(name, c)
	}
}

// sets adds the sets that the programs name.
func (o *oracle) sets() {
	for _, p := range o.state.Programs.All() {
		for _, st := range slices.Concat(p.Stages, p.Trial) {
			for _, r := range st.Rules {
				for _, p := range []desired.Peer{r.Source, r.Destination} {
					for _, id := range []desired.SetID{p.Set, p.NotSet} {
						if id != 0 {
							o.set(id)
						}
					}
					for _, id := range []desired.SetID{p.Named, p.NotNamed} {
						if id != 0 {
							o.setPlaces(id)
						}
					}
				}
			}
		}
	}
}

func (o *oracle) set(id desired.SetID) {
	v := desired.Set{Selector: selectors[id]}
	o.state.Sets.Set(desired.SetKey{ID: id, Family: 4}, v)
	o.state.Sets.Set(desired.SetKey{ID: id, Family: 6}, v)
	x, err := selector.Parse(selectors[id])
	if err != nil {
		panic(err)
	}
	var ranges []netip.Prefix
	member := func(p netip.Prefix) {
		k := desired.SetKey{ID: id, Family: 4, Ranges: !p.IsSingleIP()}
		if p.Addr().Is6() {
			k.Family = 6
		}
		if k.Ranges {
			o.state.Sets.Set(k, v)
		}
		o.state.Members.Set(desired.Member{Set: k, Prefix: p}, struct{}{})
	}
	for _, k := range o.keys(api.KindWorkloadEndpoint, api.KindHostEndpoint, api.KindNetworkSet, api.KindGlobalNetworkSet) {
		if !x.Match(o.labels(k)) {
			continue
		}
		if k.Kind == api.KindWorkloadEndpoint {
			for _, p := range o.nets(k) {
				if p.IsSingleIP() {
					member(p)
				} else {
					ranges = append(ranges, p)
				}
			}
			continue
		}
		if k.Kind == api.KindHostEndpoint {
			for _, a := range o.known(k) {
				member(netip.PrefixFrom(a, a.BitLen()))
			}
			continue
		}
		for _, p := range get[api.NetworkSet](o, k.Kind, k.Namespace, k.Name).Spec.Nets.Prefixes {
			if p.IsSingleIP() {
				member(p)
			} else {
				ranges = append(ranges, p)
			}
		}
	}
	for _, p := range ranges {
		if !slices.ContainsFunc(ranges, func(q netip.Prefix) bool { return q.Bits() < p.Bits() && q.Contains(p.Addr()) }) {
			member(p)
		}
	}
}

// setPlaces adds a set of named ports.
func (o *oracle) setPlaces(id desired.SetID) {
	a := named[id]
	var members []desired.Member
	v := desired.Set{Selector: "ports " + strings.Join(a.names, ",") + " of " + a.selector}
	for _, family := range []uint8{4, 6} {
		o.state.Sets.Set(desired.SetKey{ID: id, Family: family, Ports: true}, v)
	}
	x, err := selector.Parse(a.selector)
	if err != nil {
		panic(err)
	}
	for _, k := range o.keys(api.KindWorkloadEndpoint, api.KindHostEndpoint) {
		if !x.Match(o.labels(k)) {
			continue
		}
		nets, ports := o.reachable(k)
		for _, net := range nets {
			for _, p := range ports {
				if !slices.Contains(a.names, p.Name) || p.Port == 0 || !p.Protocol.HasPorts() {
					continue
				}
				m := desired.Member{Set: desired.SetKey{ID: id, Family: 4, Ports: true, Ranges: !net.IsSingleIP()}, Prefix: net, Protocol: p.Protocol.Number, Port: p.Port}
				if net.Addr().Is6() {
					m.Set.Family = 6
				}
				members = append(members, m)
			}
		}
	}
	for _, m := range members {
		if !slices.ContainsFunc(members, func(n desired.Member) bool {
			return m.Set == n.Set && m.Protocol == n.Protocol && m.Port == n.Port && n.Prefix.Bits() < m.Prefix.Bits() && n.Prefix.Contains(m.Prefix.Addr())
		}) {
			o.state.Sets.Set(m.Set, v)
			o.state.Members.Set(m, struct{}{})
		}
	}
}
