package autohep

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"tortie/api"
)

// Made is the label that says who made an endpoint. That of Calico's controllers
// has another value: what they made is theirs.
const (
	LabelMade = "projectcalico.org/created-by"
	Made      = "tortie"
)

// maxName is how long the name of an object may be.
const maxName = 253

// Interface is one of the host that endpoints may be about, with the addresses by
// which others may know it.
type Interface struct {
	Name  string
	Addrs []netip.Addr
}

// Wanted returns the endpoints that a host should have, by name, and what cannot
// be made. There are none where nothing is to be made or the host has no Node.
func Wanted(config *api.AutoHostEndpoints, node *api.Node, interfaces []Interface) (map[string]*api.HostEndpoint, []string) {
	if config == nil || config.AutoCreate != api.Enabled || node == nil {
		return nil, nil
	}
	w := &wanted{node: node, endpoints: map[string]*api.HostEndpoint{}}
	if c := config.CreateDefaultHostEndpoint; c == "" || c == api.Enabled {
		w.add(api.AnyInterface, addresses(interfaces, nil), nil)
	}
	seen := map[string]bool{}
	for i := range config.Templates {
		t := &config.Templates[i]
		if _, _, reason := t.Check(); reason != "" || t.NodeSelector.Err != nil || seen[t.GenerateName] {
			continue // it is reported where it was read
		}
		seen[t.GenerateName] = true
		if x := t.NodeSelector.Expr; x == nil || x.Match(node.Meta.Labels) {
			w.template(t, interfaces)
		}
	}
	return w.endpoints, w.problems
}

type wanted struct {
	node      *api.Node
	endpoints map[string]*api.HostEndpoint
	problems  []string
}

func (w *wanted) template(t *api.HostEndpointTemplate, interfaces []Interface) {
	if t.InterfacePattern == "" {
		if addrs := addresses(interfaces, t); len(addrs) > 0 {
			w.add("", addrs, t.Labels, t.GenerateName)
		}
		return
	}
	pattern := regexp.MustCompile(t.InterfacePattern) // Check has seen it
	for _, i := range interfaces {
		addrs := addresses([]Interface{i}, t)
		if pattern.MatchString(i.Name) && (len(addrs) > 0 || t.InterfaceCIDRs.IsZero()) {
			w.add(i.Name, addrs, t.Labels, t.GenerateName, inName(i.Name))
		}
	}
}

// add adds an endpoint whose name has some parts.
func (w *wanted) add(iface string, addrs []netip.Addr, labels map[string]string, parts ...string) {
	name := strings.Join(slices.Concat([]string{w.node.Meta.Name}, parts, []string{"auto-hep"}), "-")
	if len(name) > maxName {
		w.problems = append(w.problems, fmt.Sprintf("host endpoint %s: no name may be longer than %d characters", name, maxName))
		return
	}
	if w.endpoints[name] != nil {
		w.problems = append(w.problems, fmt.Sprintf("host endpoint %s would be for interface %s too", name, iface))
		return
	}
	h := &api.HostEndpoint{Kind: api.KindHostEndpoint}
	h.Meta.Name, h.Meta.Labels = name, map[string]string{}
	maps.Copy(h.Meta.Labels, w.node.Meta.Labels)
	maps.Copy(h.Meta.Labels, labels)
	h.Meta.Labels[LabelMade] = Made
	h.Spec = api.HostEndpointSpec{Node: w.node.Meta.Name, InterfaceName: iface, Profiles: []string{api.DefaultAllowProfile}}
	for _, a := range addrs {
		h.Spec.ExpectedIPs = append(h.Spec.ExpectedIPs, api.IP{Addr: a})
	}
	w.endpoints[name] = h
}

// addresses are those of interfaces that a template means, in order, each once.
func addresses(interfaces []Interface, t *api.HostEndpointTemplate) []netip.Addr {
	var list []netip.Addr
	for _, i := range interfaces {
		for _, a := range i.Addrs {
			if t == nil || t.Contains(a) {
				list = append(list, a)
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// inName is the name of an interface as part of the name of an object.
func inName(iface string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(iface)), "-")
}

// isMade reports whether an endpoint was made here, for a host.
func isMade(h *api.HostEndpoint, host string) bool {
	return h.Meta.Labels[LabelMade] == Made && h.Spec.Node == host
}

// same reports whether an endpoint is as it should be.
func same(have, want *api.HostEndpoint) bool {
	return maps.Equal(have.Meta.Labels, want.Meta.Labels) && have.Spec.Node == want.Spec.Node &&
		have.Spec.InterfaceName == want.Spec.InterfaceName && slices.Equal(have.Spec.ExpectedIPs, want.Spec.ExpectedIPs) &&
		slices.Equal(have.Spec.Profiles, want.Spec.Profiles) && len(have.Spec.Ports) == 0
}
