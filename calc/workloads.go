package calc

import (
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/desired"
)

// local is an endpoint of this host, of a workload or, with host, of itself.
type local struct {
	key       api.Key
	nets      []netip.Prefix // its addresses and ranges, sorted, without repeats
	spoofed   []netip.Prefix // sources that it may use besides
	iface     string
	mac       api.MAC
	gateway4  netip.Addr
	gateway6  netip.Addr
	own       map[string]string // its own labels and those derived from its spec
	profiles  []string
	ports     []api.NamedPort
	qos       *api.QoSControls
	fault     string // what is not in force, as found when it was decoded
	natFaults []string
	notice    string // what is not supported
	host      *hostSpec

	labels   map[string]string // effective
	bound    bool              // it has its interface
	unbound  string            // why it has not
	gateways []netip.Addr
	policies set[*policy]
	programs [purposes]*program
}

// SetWorkload sets a workload endpoint; nil means that it is gone. Problems are
// what was found wrong with it when it was decoded.
func (c *Calc) SetWorkload(k api.Key, w *api.WorkloadEndpoint, problems []api.Problem) {
	isLocal := w != nil && c.isLocal(k, w)
	if l := c.locals[k]; l != nil && !isLocal {
		c.dropLocal(l)
	}
	if w == nil {
		if c.workloads.remove(k, c.touchAddress) {
			c.setNATs(k, nil, nil)
			c.disinherit(k)
			c.deleteItem(k)
		}
		return
	}
	nets := networks(w)
	addrs := addresses(nets)
	k = c.workloads.set(k, addrs, c.touchAddress)
	natFaults := c.setNATs(k, w, addrs)
	own := workloadLabels(k, w)
	i := &inheritor{key: k, own: own, profiles: w.Spec.Profiles, prefixes: nets, ports: w.Spec.Ports}
	c.inherit(i)
	if isLocal {
		l := c.setLocal(k, w, problems)
		l.own, l.natFaults = own, natFaults
		c.setNets(l, nets)
		return
	}
	c.setItem(i)
}

// isLocal reports whether an endpoint is of this host: by its name or, if
// that does not have the parts it should have, by its spec.
func (c *Calc) isLocal(k api.Key, w *api.WorkloadEndpoint) bool {
	byNode := w.Spec.Node == c.opts.Host
	if !byNode && !strings.HasPrefix(k.Name, c.prefix) {
		return false // nearly all of them: their names need not be taken apart
	}
	if n, err := api.ParseWorkloadName(k.Name); err == nil {
		return n.Node == c.opts.Host
	}
	return byNode
}

// networks returns the addresses and ranges of an endpoint.
func networks(w *api.WorkloadEndpoint) []netip.Prefix {
	nets := slices.Clone(w.Spec.IPNetworks.Prefixes)
	slices.SortFunc(nets, netip.Prefix.Compare)
	return slices.Compact(nets)
}

// addresses returns those of them that are single addresses, in order.
func addresses(nets []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, 0, len(nets))
	for _, p := range nets {
		if p.IsSingleIP() {
			out = append(out, p.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// only is an address as a prefix.
func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// workloadLabels returns an endpoint's own labels and those that its key and
// spec imply.
func workloadLabels(k api.Key, w *api.WorkloadEndpoint) map[string]string {
	own := ownLabels(w.Meta.Labels)
	own[api.LabelNamespace] = k.Namespace
	if w.Spec.Orchestrator != "" {
		own[api.LabelOrchestrator] = w.Spec.Orchestrator
	}
	if w.Spec.ServiceAccountName != "" {
		own[api.LabelServiceAccount] = w.Spec.ServiceAccountName
	}
	return own
}

// touchAddress marks an address that an endpoint got or lost, if that matters
// to a local one.
func (c *Calc) touchAddress(a netip.Addr) {
	if c.winners[only(a)] != nil {
		c.dirty.nets.add(only(a))
	}
	if c.translation.claims[a] != nil {
		c.dirty.floating.add(a)
	}
}

// setLocal takes over what matters of a local endpoint only.
func (c *Calc) setLocal(k api.Key, w *api.WorkloadEndpoint, problems []api.Problem) *local {
	l := c.locals[k]
	if l == nil {
		l = &local{key: k, policies: set[*policy]{}}
		c.locals[k] = l
		c.claim(l)
	}
	l.profiles, l.ports = w.Spec.Profiles, w.Spec.Ports
	l.mac, l.qos, l.spoofed = w.Spec.MAC, w.Spec.QoSControls, w.Spec.AllowSpoofedSourcePrefixes.Prefixes
	l.gateway4, l.gateway6 = netip.Addr{}, netip.Addr{}
	if g := w.Spec.IPv4Gateway.Addr; g.Is4() {
		l.gateway4 = g
	}
	if g := w.Spec.IPv6Gateway.Addr; g.Is6() {
		l.gateway6 = g
	}
	faults, notices := sortProblems(problems)
	if l.qos != nil {
		for _, p := range l.qos.Problems() {
			faults = append(faults, p.String())
		}
		for _, p := range l.qos.Idle() {
			notices = append(notices, p.String())
		}
	}
	l.fault, l.notice = strings.Join(faults, "; "), strings.Join(notices, "; ")
	if name := w.Spec.InterfaceName; name != l.iface {
		c.unclaim(l)
		l.iface = name
		c.claim(l)
	}
	c.dirty.locals.add(l)
	c.dirty.interfaces.add(l.iface)
	c.dirty.statuses.add(l.key)
	return l
}

// sortProblems tells what is wrong from what is not supported.
func sortProblems(problems []api.Problem) (faults, notices []string) {
	for _, p := range problems {
		if p.Unsupported {
			notices = append(notices, p.String())
		} else {
			faults = append(faults, p.String())
		}
	}
	return faults, notices
}

// setNets gives a local endpoint its addresses and ranges. Those it had before,
// and those it has now, are looked at anew.
func (c *Calc) setNets(l *local, nets []netip.Prefix) {
	if slices.Equal(l.nets, nets) {
		return
	}
	for _, p := range l.nets {
		c.dirty.nets.add(p)
		if delete(c.having[p], l); len(c.having[p]) == 0 {
			delete(c.having, p)
		}
	}
	for _, p := range nets {
		c.dirty.nets.add(p)
		if c.having[p] == nil {
			c.having[p] = set[*local]{}
		}
		c.having[p].add(l)
	}
	l.nets = nets
}

func (c *Calc) dropLocal(l *local) {
	delete(c.locals, l.key)
	if l.host == nil {
		c.setNets(l, nil)
		c.unclaim(l)
	}
	for p := range l.policies {
		delete(p.locals, l)
	}
	for purpose := range l.programs {
		c.assign(l, purpose, nil)
	}
	c.holdGateways(l)
	delete(c.dirty.locals, l)
	delete(c.dirty.order, l)
	c.dirty.statuses.add(l.key)
}

// flushLocals brings the labels of local endpoints up to date. Their policies
// follow in flushPolicies.
func (c *Calc) flushLocals() {
	for l := range c.dirty.locals {
		l.labels = c.effective(l.own, l.profiles)
		nets := l.nets // also what another here has: other hosts do not know which has it
		if l.host != nil {
			nets = l.host.known
		}
		c.index.SetItem(l.key, l.labels, nets)
		c.ports.SetItem(l.key, l.labels, nets, l.ports)
		c.holdGateways(l)
	}
}

// missingProfiles warns of profiles that an endpoint names and nobody made.
func (c *Calc) missingProfiles(l *local) (warnings []string) {
	for _, name := range l.profiles {
		if c.profiles[name].spec == nil {
			warnings = append(warnings, "profile "+name+" does not exist")
		}
	}
	return warnings
}

// won returns the addresses and ranges that belong to a local endpoint.
func (c *Calc) won(l *local) []netip.Prefix {
	var won []netip.Prefix
	for _, p := range l.nets {
		if c.winners[p] == l {
			won = append(won, p)
		}
	}
	return won
}

// linkLocalGateway is the gateway of every IPv4 workload.
var linkLocalGateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// holdGateways counts l as a user of its gateways, which it is while bound.
func (c *Calc) holdGateways(l *local) {
	old := l.gateways
	l.gateways = nil
	if l.bound && l.host == nil {
		l.gateways = append(l.gateways, linkLocalGateway)
		if l.gateway4.IsValid() {
			l.gateways = append(l.gateways, l.gateway4)
		}
	}
	for _, a := range l.gateways {
		c.gateways[a]++
		c.dirty.gateways.add(a)
	}
	for _, a := range old {
		if c.gateways[a]--; c.gateways[a] == 0 {
			delete(c.gateways, a)
		}
		c.dirty.gateways.add(a)
	}
}

func (c *Calc) flushGateways(d *desired.State) {
	for a := range c.dirty.gateways {
		if c.gateways[a] > 0 {
			d.Gateways.Set(a, struct{}{})
		} else {
			d.Gateways.Delete(a)
		}
	}
	clear(c.dirty.gateways)
}

func (c *Calc) flushStatuses(d *desired.State) {
	for k := range c.dirty.statuses {
		if l := c.locals[k]; l != nil {
			if l.host != nil {
				d.Endpoints.Set(k, c.hostStatus(l))
			} else {
				d.Endpoints.Set(k, c.status(l))
			}
		} else {
			d.Endpoints.Delete(k)
		}
	}
	clear(c.dirty.statuses)
}

// status says how an endpoint fares. An address that an endpoint of another
// host has as well, and a profile that does not exist, are warnings: the
// endpoint itself is in force.
func (c *Calc) status(l *local) desired.Endpoint {
	e := desired.Endpoint{Interface: l.iface}
	var errs, warnings []string
	note := func(list *[]string, text string) {
		if text != "" {
			*list = append(*list, text)
		}
	}
	note(&errs, l.fault)
	if len(l.nets) == 0 {
		note(&errs, "it has no address")
	}
	if len(l.spoofed) > 0 && !c.opts.SourceSpoofing {
		note(&warnings, "allowSpoofedSourcePrefixes is not in force: WorkloadSourceSpoofing is Disabled")
	}
	note(&warnings, l.notice)
	if i := c.interfaces[l.iface]; l.bound && i.host != nil {
		e.Present, e.Up = true, i.host.Up
	}
	if !l.bound {
		note(&errs, l.unbound)
	}
	for _, p := range l.nets {
		a, what := p.Addr(), "address "+p.Addr().String()
		if !p.IsSingleIP() {
			what = "range " + p.String()
		}
		if w := c.winners[p]; w != l {
			note(&errs, what+" belongs to "+w.key.String())
			continue
		}
		if !p.IsSingleIP() {
			continue
		}
		for k := range c.workloads.owners(a) {
			if c.locals[k] == nil {
				warnings = append(warnings, what+" is also that of "+k.String())
			}
		}
	}
	for _, fault := range l.natFaults {
		note(&errs, fault)
	}
	natErrs, notice := c.natErrors(l)
	errs = append(errs, natErrs...)
	note(&warnings, notice)
	warnings = append(warnings, c.missingProfiles(l)...)
	slices.Sort(warnings)
	e.Error, e.Warning = strings.Join(errs, "; "), strings.Join(warnings, "; ")
	return e
}
