package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Limits of a policy.
const (
	maxRules = 1024 // in one direction
	maxNets  = 256  // in one list
	maxPorts = 50   // in one list
	maxHTTP  = 20   // methods, and paths
)

func (c *checker) policy(p *Policy) {
	s := &p.Spec
	c.need(s.Tier == "" || nameLabel(s.Tier) == "", "spec.tier", s.Tier, "want the name of a tier")
	c.selector("spec.selector", s.Selector)
	c.selector("spec.namespaceSelector", s.NamespaceSelector)
	c.selector("spec.serviceAccountSelector", s.ServiceAccountSelector)
	types := slices.Clone(s.Types)
	slices.Sort(types)
	c.need(len(slices.Compact(types)) == len(s.Types), "spec.types", "", "the same direction twice")
	for i, h := range s.PerformanceHints {
		c.oneOf(fmt.Sprintf("spec.performanceHints[%d]", i), h, "AssumeNeededOnEveryNode")
	}
	if p.Kind == KindStagedNetworkPolicy || p.Kind == KindStagedGlobalNetworkPolicy {
		c.oneOf("spec.stagedAction", s.StagedAction, StagedSet, StagedDelete, StagedLearn, StagedIgnore)
		bare := s.Order == nil && s.Selector.IsZero() && s.NamespaceSelector.IsZero() && s.ServiceAccountSelector.IsZero() &&
			len(s.Types)+len(s.Ingress)+len(s.Egress)+len(s.PerformanceHints) == 0 && !s.DoNotTrack && !s.PreDNAT && !s.ApplyOnForward
		c.need(s.StagedAction != StagedDelete || bare, "spec.stagedAction", s.StagedAction, "goes with no other field but tier")
	} else {
		c.need(s.StagedAction == "", "spec.stagedAction", s.StagedAction, "only staged policies have one")
	}
	if p.Kind == KindNetworkPolicy || p.Kind == KindStagedNetworkPolicy {
		c.need(s.NamespaceSelector.IsZero(), "spec.namespaceSelector", s.NamespaceSelector.Text, "only global policies have one")
		c.need(!s.DoNotTrack && !s.PreDNAT && !s.ApplyOnForward, "spec", "", "doNotTrack, preDNAT and applyOnForward are for global policies")
	}
	c.need(!s.DoNotTrack || s.ApplyOnForward, "spec.doNotTrack", "true", "needs applyOnForward")
	c.need(!s.PreDNAT || s.ApplyOnForward, "spec.preDNAT", "true", "needs applyOnForward")
	c.need(!s.PreDNAT || !s.DoNotTrack, "spec.preDNAT", "true", "not together with doNotTrack")
	c.need(!s.PreDNAT || len(s.Egress) == 0 && !slices.Contains(s.Types, Egress), "spec.egress", "", "a preDNAT policy is for ingress only")
	c.rules("spec.ingress", s.Ingress)
	c.rules("spec.egress", s.Egress)
}

func (c *checker) rules(field string, rules []Rule) {
	c.need(len(rules) <= maxRules, field, "", fmt.Sprintf("want at most %d rules", maxRules))
	for i := range rules {
		c.rule(fmt.Sprintf("%s[%d]", field, i), &rules[i])
	}
}

// isPortProtocol reports a protocol that rules may have ports with.
func isPortProtocol(p Protocol) bool { return p.Number == 6 || p.Number == 17 || p.Number == 132 }

func (c *checker) rule(field string, r *Rule) {
	c.need(r.Protocol.Number != 1 || r.IPVersion != 6, field+".ipVersion", "6", "ICMP is of IPv4")
	c.need(r.Protocol.Number != 58 || r.IPVersion != 4, field+".ipVersion", "4", "ICMPv6 is of IPv6")
	c.entity(field+".source", &r.Source, r)
	c.entity(field+".destination", &r.Destination, r)
	family := r.IPVersion
	for _, list := range [][]netip.Prefix{r.Source.Nets.Prefixes, r.Source.NotNets.Prefixes, r.Destination.Nets.Prefixes, r.Destination.NotNets.Prefixes} {
		for _, p := range list {
			f := 6
			if p.Addr().Is4() {
				f = 4
			}
			if family == 0 {
				family = f
			}
			if f != family {
				c.need(false, field, p.String(), "all nets of a rule must be of one family, that of ipVersion")
				return
			}
		}
	}
	if h := r.HTTP; h != nil {
		c.need(r.Action == Allow && (r.Protocol.IsZero() || r.Protocol.Number == 6) && strings.HasPrefix(field, "spec.ingress"), field+".http", "", "only in ingress rules that allow TCP")
		c.need(len(h.Methods) <= maxHTTP && len(h.Paths) <= maxHTTP, field+".http", "", fmt.Sprintf("want at most %d methods and paths", maxHTTP))
		for _, p := range h.Paths {
			c.need((p.Exact == "") != (p.Prefix == ""), field+".http.paths", "", "want either exact or prefix")
		}
	}
}

func (c *checker) entity(field string, e *EntityRule, r *Rule) {
	c.selector(field+".selector", e.Selector)
	c.selector(field+".notSelector", e.NotSelector)
	if strings.TrimSpace(e.NamespaceSelector.Text) != "global()" {
		c.selector(field+".namespaceSelector", e.NamespaceSelector)
	}
	for _, list := range []struct {
		name string
		nets Nets
	}{{".nets", e.Nets}, {".notNets", e.NotNets}} {
		c.need(len(list.nets.Prefixes) <= maxNets, field+list.name, "", fmt.Sprintf("want at most %d", maxNets))
	}
	for _, p := range e.NotNets.Prefixes {
		c.need(p.Bits() > 0, field+".notNets", p.String(), "excludes everything")
	}
	for _, list := range []struct {
		name  string
		ports []Port
	}{{".ports", e.Ports}, {".notPorts", e.NotPorts}} {
		c.need(len(list.ports) <= maxPorts, field+list.name, "", fmt.Sprintf("want at most %d", maxPorts))
		for _, p := range list.ports {
			c.need(isPortProtocol(r.Protocol) || p.Name != "" && r.Protocol.IsZero() || !r.Protocol.HasPorts(), field+list.name, p.String(), "needs protocol TCP, UDP or SCTP")
		}
	}
	if a := e.ServiceAccounts; a != nil {
		for i, name := range a.Names {
			c.need(!strings.Contains(name, `"`) || !strings.Contains(name, "'"), fmt.Sprintf("%s.serviceAccounts.names[%d]", field, i), name, "not with both kinds of quotes")
		}
	}
	if s := e.Services; s != nil {
		c.need(s.Name != "", field+".services", "", "want a name")
		c.need(e.Selector.IsZero() && e.NotSelector.IsZero() && e.NamespaceSelector.IsZero() && e.Nets.IsZero() && e.NotNets.IsZero() && e.ServiceAccounts == nil,
			field+".services", s.Name, "not together with nets, selectors or serviceAccounts")
	}
}
