package calc_test

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/calc"
	"tortie/compile"
	"tortie/desired"
)

func (o *oracle) hep(k api.Key) *api.HostEndpointSpec {
	return &get[api.HostEndpoint](o, k.Kind, "", k.Name).Spec
}

func (o *oracle) expected(k api.Key) (addrs []netip.Addr) {
	for _, ip := range o.hep(k).ExpectedIPs {
		if ip.IsValid() {
			addrs = append(addrs, ip.Addr)
		}
	}
	return addrs
}

// known is by which addresses rules know a host endpoint.
func (o *oracle) known(k api.Key) []netip.Addr {
	s := o.hep(k)
	if len(s.ExpectedIPs) > 0 {
		return o.expected(k)
	}
	addrs := map[string][]netip.Addr{} // by interface
	if s.Node != o.opts.Host {
		if is := get[api.HostAddresses](o, api.KindHostAddresses, "", s.Node); is != nil {
			for _, i := range is.Spec.Interfaces {
				for _, ip := range i.Addresses {
					if ip.IsValid() {
						addrs[i.Name] = append(addrs[i.Name], ip.Addr)
					}
				}
			}
		}
	} else {
		for at, s := range o.world {
			if i, ok := s.value.(*calc.HostInterface); ok && !o.isWorkload(at.iface) && at.iface != "lo" {
				addrs[at.iface] = slices.DeleteFunc(slices.Clone(i.Addrs), func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() })
			}
		}
	}
	if s.InterfaceName == "*" {
		return slices.Concat(slices.Collect(maps.Values(addrs))...)
	}
	return addrs[s.InterfaceName]
}

// reachable is where the named ports of an endpoint are, and what they are.
func (o *oracle) reachable(k api.Key) (nets []netip.Prefix, ports []api.NamedPort) {
	if k.Kind == api.KindHostEndpoint {
		for _, a := range o.known(k) {
			nets = append(nets, netip.PrefixFrom(a, a.BitLen()))
		}
		return nets, o.hep(k).Ports
	}
	return o.nets(k), o.wep(k).Spec.Ports
}

func (o *oracle) isWorkload(name string) bool {
	return slices.ContainsFunc(o.opts.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// hostOwner is the endpoint that an interface, or "*", belongs to.
func (o *oracle) hostOwner(name string) (byName, any api.Key) {
	for _, k := range o.keys(api.KindHostEndpoint) {
		if s := o.hep(k); s.Node == o.opts.Host && s.InterfaceName == name && byName == (api.Key{}) {
			byName = k
		}
	}
	if byName != (api.Key{}) {
		return byName, byName
	}
	i, _ := o.world[object{iface: name}].value.(*calc.HostInterface)
	for _, k := range o.keys(api.KindHostEndpoint) {
		s := o.hep(k)
		if i != nil && s.Node == o.opts.Host && s.InterfaceName == "" && any == (api.Key{}) &&
			slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return slices.Contains(o.expected(k), a) }) {
			any = k
		}
	}
	return byName, any
}

// hosts adds what host endpoints mean.
func (o *oracle) hosts() {
	for _, k := range o.keys(api.KindHostEndpoint) {
		if o.hep(k).Node == o.opts.Host {
			o.host(k)
		}
	}
}

func (o *oracle) host(k api.Key) {
	s := o.hep(k)
	var errs, warnings, names []string
	for _, p := range o.world[object{key: k}].problems {
		if p.Unsupported {
			warnings = append(warnings, p.String())
		} else {
			errs = append(errs, p.String())
		}
	}
	var why string
	if name := s.InterfaceName; name != "" {
		owner, _ := o.hostOwner(name)
		switch {
		case name == "lo":
			why = "interface lo is not policed"
		case o.isWorkload(name):
			why = "interface " + name + " has a prefix of workload interfaces"
		case owner != k:
			why = "interface " + name + " belongs to " + owner.String()
		default:
			names = []string{name}
		}
	} else {
		names, why = o.byAddress(k)
	}
	if why != "" {
		errs = append(errs, why)
	}
	e := desired.Endpoint{Interface: strings.Join(names, ",")}
	for _, name := range names {
		if i, _ := o.world[object{iface: name}].value.(*calc.HostInterface); i != nil || name == "*" {
			e.Present, e.Up = true, e.Up || name == "*" || i.Up
		}
	}
	if len(warnings) > 0 {
		warnings = []string{strings.Join(warnings, "; ")}
	}
	for _, name := range s.Profiles {
		if o.profile(name) == nil {
			warnings = append(warnings, "profile "+name+" does not exist")
		}
	}
	slices.Sort(warnings)
	e.Error, e.Warning = strings.Join(errs, "; "), strings.Join(warnings, "; ")
	o.state.Endpoints.Set(k, e)
	if len(names) > 0 {
		h := o.hostPrograms(k)
		for _, name := range names {
			o.state.Hosts.Set(name, h)
		}
	}
}

// byAddress are the interfaces that have an address of an endpoint.
func (o *oracle) byAddress(k api.Key) (names []string, why string) {
	why = "no interface has one of its addresses"
	if len(o.expected(k)) == 0 {
		why = "it names neither an interface nor an address"
	}
	var taken []string
	for at, st := range o.world {
		i, _ := st.value.(*calc.HostInterface)
		if i == nil || at.iface == "lo" || o.isWorkload(at.iface) ||
			!slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return slices.Contains(o.expected(k), a) }) {
			continue
		}
		if _, owner := o.hostOwner(at.iface); owner == k {
			names = append(names, at.iface)
		} else {
			taken = append(taken, "interface "+at.iface+" belongs to "+owner.String())
		}
	}
	slices.Sort(names)
	slices.Sort(taken)
	switch {
	case len(names) > 0:
		why = ""
	case len(taken) > 0:
		why = taken[0]
	}
	return names, why
}

func (o *oracle) hostPrograms(k api.Key) desired.HostEndpoint {
	early := func(s *api.PolicySpec) bool { return s.PreDNAT && !s.DoNotTrack }
	normal := func(s *api.PolicySpec) bool { return !s.PreDNAT && !s.DoNotTrack }
	passing := func(s *api.PolicySpec) bool { return normal(s) && s.ApplyOnForward }
	raw := func(s *api.PolicySpec) bool { return s.DoNotTrack }
	none := func(*api.PolicySpec) bool { return false }
	profiles := o.hep(k).Profiles
	return desired.HostEndpoint{
		Endpoint: k,
		Ingress:  o.hostProgram(k, "", api.Ingress, profiles, early, normal),
		Egress:   o.hostProgram(k, "", api.Egress, profiles, none, normal), ForwardIn: o.hostProgram(k, "forward", api.Ingress, nil, early, passing),
		ForwardOut:  o.hostProgram(k, "forward", api.Egress, nil, none, passing),
		UntrackedIn: o.hostProgram(k, "untracked", api.Ingress, nil, none, raw), UntrackedOut: o.hostProgram(k, "untracked", api.Egress, nil, none, raw),
	}
}

func (o *oracle) hostProgram(k api.Key, purpose string, dir api.Direction, profiles []string, early, rest func(*api.PolicySpec) bool) desired.ProgramID {
	labels := o.labels(k)
	first, then := o.policiesThat(labels, dir, false, early), o.policiesThat(labels, dir, false, rest)
	all := append(slices.Clone(first), then...)
	if len(all) == 0 && purpose != "" {
		return ""
	}
	stages := o.tierStages(first, dir, "end")
	for i := range stages {
		stages[i].View, stages[i].End = desired.Dialled, desired.Next
	}
	for _, s := range o.tierStages(then, dir, "end") {
		if purpose == "untracked" {
			s.View, s.End = desired.Packet, desired.Next
		}
		stages = append(stages, s)
	}
	if purpose == "" {
		stages = append(stages, o.profileStage(profiles, dir, "end"))
	} else {
		stages = append(stages, compile.Stage{Name: "rest", End: desired.Allow})
	}
	id := compile.HostProgramID(purpose, dir, keysOf(all), profiles)
	p := compile.Program(stages)
	p.Host = true
	o.state.Programs.Set(id, p)
	return id
}
