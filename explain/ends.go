package explain

import (
	"net/netip"

	"tortie/api"
)

// Ends are two addresses and what has them: it is looked up once, for many
// questions about single rules. They are as the cluster was then.
type Ends struct {
	cluster  *Cluster
	src, dst end
}

// Ends returns two addresses as rules see them.
func (c *Cluster) Ends(src, dst netip.Addr) Ends {
	src, dst = src.Unmap(), dst.Unmap()
	return Ends{c, end{addr: src, holders: c.holders(src)}, end{addr: dst, holders: c.holders(dst)}}
}

// Match reports whether a rule of a policy in a namespace, which is "" for
// those in none, matches a packet between the ends, whose addresses are those
// of the ends.
func (e Ends) Match(namespace string, r *api.Rule, p Packet) bool {
	p.Src, p.Dst = e.src.addr, e.dst.addr
	e.src.port, e.dst.port = p.SrcPort, p.DstPort
	one := evaluation{cluster: e.cluster, packet: p, src: e.src, dst: e.dst}
	return one.match(namespace, r)
}
