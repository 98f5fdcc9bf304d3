package desired

import "slices"

func equalInterface(a, b Interface) bool {
	return a.Endpoint == b.Endpoint && a.Index == b.Index && a.MAC == b.MAC && a.HasMAC == b.HasMAC &&
		a.Ingress == b.Ingress && a.Egress == b.Egress && slices.Equal(a.Addrs, b.Addrs) &&
		slices.Equal(a.Ranges, b.Ranges) && slices.Equal(a.Spoofed, b.Spoofed)
}

func equalProgram(a, b Program) bool {
	return a.Host == b.Host && slices.EqualFunc(a.Stages, b.Stages, equalStage) && slices.EqualFunc(a.Trial, b.Trial, equalStage)
}

func equalStage(a, b Stage) bool {
	return a.Name == b.Name && a.View == b.View && a.End == b.End && a.EndID == b.EndID && slices.EqualFunc(a.Rules, b.Rules, Rule.Equal)
}

// Equal reports whether two rules have the same identity and meaning.
func (r Rule) Equal(o Rule) bool { return r.ID == o.ID && r.Note == o.Note && r.Same(o) }

// Same reports whether two rules have the same meaning, whatever their
// identity.
func (r Rule) Same(o Rule) bool {
	return r.Verdict == o.Verdict && r.Family == o.Family &&
		r.Protocol == o.Protocol && r.NotProtocol == o.NotProtocol &&
		equalICMP(r.ICMP, o.ICMP) && equalICMP(r.NotICMP, o.NotICMP) &&
		equalPeer(&r.Source, &o.Source) && equalPeer(&r.Destination, &o.Destination)
}

func equalICMP(a, b *ICMP) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func equalPeer(a, b *Peer) bool {
	return a.Set == b.Set && a.NotSet == b.NotSet && a.Named == b.Named && a.NotNamed == b.NotNamed &&
		slices.Equal(a.Nets, b.Nets) && slices.Equal(a.NotNets, b.NotNets) &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.NotPorts, b.NotPorts)
}
