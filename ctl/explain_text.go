package ctl

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/explain"
)

// text is the answer for people.
func (x *Explanation) text() string {
	var b strings.Builder
	for _, f := range x.Families {
		fmt.Fprintf(&b, "IPv%d: %s from %s to %s\n", f.IPVersion, f.Port, f.Packet.Src, f.Packet.Dst)
		if t := f.Sent; t != nil {
			fmt.Fprintf(&b, "  translated: egress policy sees it to %s\n", t.Dst)
		}
		writeEnd(&b, "egress", f.Packet.Src, f.FromHost, f.Source, f.Leaving)
		if t := f.Received; t != nil {
			fmt.Fprintf(&b, "  translated: ingress policy sees it from %s to %s\n", sourceText(t.Src), t.Dst)
		}
		writeEnd(&b, "ingress", f.Packet.Dst, f.ToHost, f.Entering, f.Destination)
		writeShared(&b, f.Shared)
		if f.Staged != nil {
			fmt.Fprintf(&b, "  %s\n", f.stagedText())
		}
	}
	writeProblems(&b, x.Problems)
	b.WriteString(x.Summary + "\n")
	return b.String()
}

func writeShared(b *strings.Builder, shared []SharedAddress) {
	for _, s := range shared {
		fmt.Fprintf(b, "  %s is an address of %s at host %s too\n", s.Address, s.Endpoint, s.Host)
	}
}

// sourceText is a source address, unless it is one that only the host knows.
func sourceText(a netip.Addr) string {
	if a.IsUnspecified() {
		return "an address of the source's host"
	}
	return a.String()
}

// writeEnd writes what is decided at one end, which may be a host itself.
func writeEnd(b *strings.Builder, direction string, a netip.Addr, host string, decisions ...*explain.Decision) {
	said := false
	for _, d := range decisions {
		if d != nil {
			writeDecision(b, direction, d)
			said = said || d.Kind != explain.Forward
		}
	}
	switch {
	case said:
	case host != "":
		fmt.Fprintf(b, "  %s: %s is host %s itself; no host endpoint judges it\n", direction, a, host)
	default:
		fmt.Fprintf(b, "  %s: %s is outside; nothing is enforced there\n", direction, a)
	}
}

func writeDecision(b *strings.Builder, direction string, d *explain.Decision) {
	verdict := map[api.Action]string{api.Allow: "allowed", api.Deny: "denied"}[d.Verdict]
	if d.Untracked {
		verdict += ", and not tracked: answers are judged too"
	}
	of, through := "", ""
	if d.Endpoint != (api.Key{}) {
		of = fmt.Sprintf(" of %s", d.Endpoint)
	}
	if d.Kind == explain.Forward {
		through = ", of what passes through"
	}
	fmt.Fprintf(b, "  %s%s at host %s%s: %s\n", direction, of, d.Host, through, verdict)
	if len(d.Trail) == 0 {
		fmt.Fprintf(b, "    %s\n", d.Reason)
	}
	for _, s := range d.Trail {
		name := "profiles"
		switch {
		case s.Kind == explain.Forward:
			name = "end"
		case s.Tier != "":
			name = "tier " + s.Tier
		}
		if s.Kind == explain.Untracked || s.Kind == explain.PreDNAT {
			name += ", " + string(s.Kind)
		}
		fmt.Fprintf(b, "    %s: %s\n", name, why(s))
	}
	for _, r := range d.Logs {
		fmt.Fprintf(b, "    logged by %s\n", ruleText(r))
	}
}

// why says what decided in a tier, or why nothing did.
func why(s explain.Step) string {
	verb := map[api.Action]string{api.Allow: "allows", api.Deny: "denies", api.Pass: "passes"}[s.Action]
	names := make([]string, 0, len(s.Policies))
	for _, p := range s.Policies {
		names = append(names, p.String())
	}
	decides := "no rule of " + strings.Join(names, ", ") + " decides; "
	switch {
	case s.Rule != nil:
		return ruleText(*s.Rule) + " " + verb
	case s.Kind == explain.Forward:
		return "what no policy decides passes through"
	case s.Kind != explain.Normal:
		return decides + "other policy is asked"
	case s.Tier == "" && len(names) == 0:
		return "there is none; what nothing allows is denied"
	case s.Tier == "":
		return decides + "what nothing allows is denied"
	case len(names) == 0:
		return "no policy selects it"
	}
	return decides + "the default action of the tier " + verb
}

func ruleText(r explain.RuleRef) string {
	return fmt.Sprintf("%s %s rule %d", r.Policy, strings.ToLower(string(r.Direction)), r.Index)
}

func writeProblems(b *strings.Builder, problems []ObjectProblem) {
	if len(problems) > 0 {
		b.WriteString("not in force:\n")
	}
	for _, p := range problems {
		fmt.Fprintf(b, "  %s: %s\n", p.Object, api.Problem{Field: p.Field, Value: p.Value, Reason: p.Reason})
	}
}

// text is the answer for people.
func (p *EffectivePolicy) text() string {
	var b strings.Builder
	var addrs, labels []string
	for _, a := range p.Addresses {
		addrs = append(addrs, a.String())
	}
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		labels = append(labels, k+"="+p.Labels[k])
	}
	fmt.Fprintf(&b, "%s at host %s\n", p.Endpoint, p.Host)
	if p.Interface != "" {
		fmt.Fprintf(&b, "interface: %s\n", p.Interface)
	}
	fmt.Fprintf(&b, "addresses: %s\n", cmp.Or(strings.Join(addrs, ", "), none))
	writeShared(&b, p.Shared)
	fmt.Fprintf(&b, "labels: %s\n", cmp.Or(strings.Join(labels, ", "), none))
	p.Ingress.write(&b, "ingress")
	p.Egress.write(&b, "egress")
	writeProblems(&b, p.Problems)
	return b.String()
}

func (d DirectionPolicy) write(b *strings.Builder, direction string) {
	b.WriteString(direction + ":\n")
	for _, t := range d.Untracked {
		t.write(b, ", doNotTrack")
	}
	for _, t := range d.PreDNAT {
		t.write(b, ", preDNAT")
	}
	for _, t := range d.Tiers {
		t.write(b, "")
	}
	if len(d.Profiles) == 0 {
		b.WriteString("  profiles: none\n")
	} else {
		b.WriteString("  profiles:\n")
		writePolicies(b, d.Profiles)
	}
	for _, t := range d.Forward {
		t.write(b, ", of what passes through")
	}
	if len(d.Staged) > 0 {
		b.WriteString("  staged, not in force:\n")
		writePolicies(b, d.Staged)
	}
}

// write writes the policies of the tier, of a kind.
func (t TierPolicies) write(b *strings.Builder, kind string) {
	name := "tier " + t.Tier + orderText(t.Order) + kind
	if t.Missing {
		name += " (there is no such tier)"
	}
	if len(t.Policies) == 0 {
		fmt.Fprintf(b, "  %s: no policy selects it\n", name)
		return
	}
	fmt.Fprintf(b, "  %s, default action %s:\n", name, t.DefaultAction)
	writePolicies(b, t.Policies)
}

func writePolicies(b *strings.Builder, policies []PolicyInUse) {
	for _, p := range policies {
		what := fmt.Sprintf("%d rules", p.Rules)
		switch {
		case p.Missing:
			what = "does not exist"
		case p.Rules == 1:
			what = "1 rule"
		}
		fmt.Fprintf(b, "    %s%s: %s\n", p.Policy, orderText(p.Order), what)
	}
}

func orderText(order *float64) string {
	if order == nil {
		return ""
	}
	return ", order " + strconv.FormatFloat(*order, 'f', -1, 64)
}
