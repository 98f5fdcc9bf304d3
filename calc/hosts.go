package calc

import (
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/compile"
	"tortie/desired"
)

// hostSpec is what a host endpoint says of the interfaces that it is for.
type hostSpec struct {
	name  string         // of an interface, or desired.AnyInterface; "": that with one of the addresses
	names set[string]    // the interfaces that it has
	ips   []netip.Prefix // that it is expected to have
	known []netip.Prefix // by which selectors know it
}

// loopback is the interface that no endpoint polices.
const loopback = "lo"

// SetHostEndpoint sets a host endpoint; nil means that it is gone. Problems are
// what was found wrong with it when it was decoded.
func (c *Calc) SetHostEndpoint(k api.Key, h *api.HostEndpoint, problems []api.Problem) {
	if l := c.locals[k]; l != nil && (h == nil || h.Spec.Node != c.opts.Host) {
		c.dropLocal(l)
		c.dirty.hosts = true
	}
	if h == nil {
		delete(c.learners, k)
		c.disinherit(k)
		c.deleteItem(k)
		return
	}
	own := ownLabels(h.Meta.Labels)
	delete(own, api.LabelNamespace)
	var ips []netip.Prefix
	for _, ip := range h.Spec.ExpectedIPs {
		if a := ip.Unmap(); a.IsValid() {
			ips = append(ips, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(ips, netip.Prefix.Compare)
	ips = slices.Compact(ips)
	i := &inheritor{key: k, own: own, profiles: h.Spec.Profiles, prefixes: ips, ports: h.Spec.Ports}
	c.learnFor(i, &h.Spec)
	c.inherit(i)
	if h.Spec.Node != c.opts.Host {
		c.setItem(i)
		return
	}
	l := c.locals[k]
	if l == nil {
		l = &local{key: k, policies: set[*policy]{}, host: &hostSpec{}}
		c.locals[k] = l
	}
	faults, notices := sortProblems(problems)
	l.fault, l.notice = strings.Join(faults, "; "), strings.Join(notices, "; ")
	l.own, l.profiles, l.ports = own, h.Spec.Profiles, h.Spec.Ports
	l.host.name, l.host.ips, l.host.known = h.Spec.InterfaceName, ips, i.prefixes
	c.dirty.hosts = true
	c.dirty.locals.add(l)
	c.dirty.statuses.add(k)
}

// isHost reports whether an interface may be a host endpoint's.
func (c *Calc) isHost(name string) bool {
	return name != loopback && !slices.ContainsFunc(c.opts.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// flushHosts decides which host endpoint each interface has: the one that
// names it, else one that has an address of it, else the one for any. Of
// several the one with the lowest key has it.
func (c *Calc) flushHosts() {
	if !c.dirty.hosts {
		return
	}
	c.dirty.hosts = false
	c.learnOwn()
	var all []*local
	for _, l := range c.locals {
		if l.host != nil {
			all = append(all, l)
			l.unbound = ""
		}
	}
	if len(all)+len(c.hosts) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b *local) int { return a.key.Compare(b.key) })
	owners := map[string]*local{}
	for _, l := range all {
		if name := l.host.name; name != "" {
			c.giveInterface(owners, l, name)
		}
	}
	for _, l := range all {
		if l.host.name == "" {
			c.findInterfaces(owners, l)
		}
	}
	names := map[*local]set[string]{}
	for name, l := range owners {
		if names[l] == nil {
			names[l] = set[string]{}
		}
		names[l].add(name)
	}
	for _, l := range all {
		l.host.names = names[l]
		if bound := len(names[l]) > 0; l.bound != bound {
			l.bound = bound
			c.dirty.locals.add(l)
		}
		c.dirty.statuses.add(l.key)
	}
	c.hosts = owners
}

// giveInterface gives an endpoint the interface that it names, which need not
// be there yet.
func (c *Calc) giveInterface(owners map[string]*local, l *local, name string) {
	switch other := owners[name]; {
	case name == loopback:
		l.unbound = "interface " + name + " is not policed"
	case name != desired.AnyInterface && !c.isHost(name):
		l.unbound = "interface " + name + " has a prefix of workload interfaces"
	case other != nil:
		l.unbound = "interface " + name + " belongs to " + other.key.String()
	default:
		owners[name] = l
	}
}

// expects reports whether an address is one that it is expected to have.
func (h *hostSpec) expects(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.Contains(h.ips, netip.PrefixFrom(a, a.BitLen()))
}

// findInterfaces gives an endpoint the interfaces that have an address of it
// and that no other endpoint has.
func (c *Calc) findInterfaces(owners map[string]*local, l *local) {
	var taken string
	found := false
	for name, i := range c.interfaces {
		if i.host == nil || !c.isHost(name) || !slices.ContainsFunc(i.host.Addrs, l.host.expects) {
			continue
		}
		if other := owners[name]; other == nil {
			owners[name], found = l, true
		} else if text := "interface " + name + " belongs to " + other.key.String(); taken == "" || text < taken {
			taken = text
		}
	}
	switch {
	case found:
	case taken != "":
		l.unbound = taken
	case len(l.host.ips) == 0:
		l.unbound = "it names neither an interface nor an address"
	default:
		l.unbound = "no interface has one of its addresses"
	}
}

// assignHost gives a host endpoint its programs. Policy before destination NAT
// comes first, in what ends in the host and in what passes through.
func (c *Calc) assignHost(l *local, all []*policy) {
	names := [purposes]string{"", "", "forward", "forward", "untracked", "untracked"}
	for purpose := range purposes {
		var policies []*policy
		var keys []api.Key
		for _, early := range []bool{true, false} {
			for _, p := range all {
				if (p.view() == desired.Dialled) == early && p.serves(purpose) {
					policies, keys = append(policies, p), append(keys, p.key)
				}
			}
		}
		var g *program
		switch dir := direction(purpose); {
		case purpose <= egress:
			g = c.add(&program{
				id: compile.HostProgramID("", directions[dir], keys, l.profiles), dir: dir, purpose: purpose, host: true, policies: policies,
			}, l.profiles)
		case len(policies) > 0:
			g = c.add(&program{
				id: compile.HostProgramID(names[purpose], directions[dir], keys, nil), dir: dir, purpose: purpose, host: true, policies: policies,
			}, nil)
		}
		c.assign(l, purpose, g)
	}
}

// serves reports whether a policy is for a purpose of a host endpoint.
func (p *policy) serves(purpose int) bool {
	s := p.spec
	switch {
	case p.staged() || !p.applies(direction(purpose)):
		return false
	case purpose >= untrackedIn:
		return s.DoNotTrack
	case s.DoNotTrack:
		return false
	case s.PreDNAT:
		return direction(purpose) == ingress
	}
	return purpose <= egress || s.ApplyOnForward
}

// view is how a policy's rules see what they judge.
func (p *policy) view() desired.View {
	switch {
	case p.spec.DoNotTrack:
		return desired.Packet
	case p.spec.PreDNAT:
		return desired.Dialled
	}
	return desired.Translated
}

// end is what becomes of what no policy of the same tier and view decides.
// Those that look at packets, or before NAT, leave it to the others.
func (p *policy) end() desired.Verdict {
	if p.view() != desired.Translated {
		return desired.Next
	}
	return p.tier.end()
}

// lastStage is that of the profiles or, of programs that do without, what lets
// go on all that nothing decided.
func (g *program) lastStage(endID func(api.Key, api.Direction) string) compile.Stage {
	if g.purpose <= egress {
		return compile.Stage{
			Name:  compile.ProfileStage,
			EndID: endID(api.Key{Kind: api.KindProfile}, directions[g.dir]),
		}
	}
	return compile.Stage{Name: compile.RestStage, End: desired.Allow}
}

// flushHostEndpoints writes what each interface of the host is judged by. It
// reports whether anything changed: what was allowed may be forbidden now.
func (c *Calc) flushHostEndpoints(d *desired.State) (changed bool) {
	for name, l := range c.hosts {
		id := func(purpose int) desired.ProgramID {
			if g := l.programs[purpose]; g != nil {
				return g.id
			}
			return ""
		}
		changed = d.Hosts.Set(name, desired.HostEndpoint{
			Endpoint: l.key, Ingress: id(ingress), Egress: id(egress), ForwardIn: id(forwardIn), ForwardOut: id(forwardOut),
			UntrackedIn: id(untrackedIn), UntrackedOut: id(untrackedOut),
		}) || changed
	}
	for name := range d.Hosts.All() {
		if c.hosts[name] == nil {
			changed = d.Hosts.Delete(name) || changed
		}
	}
	return changed
}

// hostStatus says how a host endpoint fares. One that names an interface that
// is not there waits for it; one for any is up.
func (c *Calc) hostStatus(l *local) desired.Endpoint {
	var e desired.Endpoint
	var names, errs []string
	for name := range l.host.names {
		names = append(names, name)
		i := c.interfaces[name]
		there := i != nil && i.host != nil
		e.Present = e.Present || there || name == desired.AnyInterface
		e.Up = e.Up || there && i.host.Up || name == desired.AnyInterface
	}
	slices.Sort(names)
	e.Interface = strings.Join(names, ",")
	for _, err := range []string{l.fault, l.unbound} {
		if err != "" {
			errs = append(errs, err)
		}
	}
	warnings := c.missingProfiles(l)
	if l.notice != "" {
		warnings = append(warnings, l.notice)
	}
	slices.Sort(warnings)
	e.Error, e.Warning = strings.Join(errs, "; "), strings.Join(warnings, "; ")
	return e
}
