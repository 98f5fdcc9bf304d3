package explain

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
)

// failsafe is a port that stays open whatever policy says.
type failsafe struct {
	Protocol api.Protocol `json:"protocol"`
	Port     uint16       `json:"port"`
	Net      string       `json:"net"` // of the other end; "": any
}

func open(protocol uint8, ports ...uint16) (list []failsafe) {
	for _, p := range ports {
		list = append(list, failsafe{Protocol: api.Protocol{Number: protocol}, Port: p})
	}
	return list
}

// The ports of each direction where nothing says otherwise: ssh, DHCP, DNS, BGP,
// etcd and what orchestrators need.
var failsafeDefaults = map[api.Direction][]failsafe{
	api.Ingress: append(open(protoTCP, 22, 179, 2379, 2380, 5473, 6443, 6666, 6667), open(protoUDP, 68)...),
	api.Egress:  append(open(protoTCP, 179, 2379, 2380, 5473, 6443, 6666, 6667), open(protoUDP, 53, 67)...),
}

// failsafes returns those of a direction on a host.
func (c *Cluster) failsafes(host string, dir api.Direction) []failsafe {
	name := map[api.Direction]string{api.Ingress: "failsafeInboundHostPorts", api.Egress: "failsafeOutboundHostPorts"}[dir]
	var list []failsafe
	if raw := c.around.raw(host, name); raw != nil && json.Unmarshal(raw, &list) == nil && list != nil {
		return list
	}
	return failsafeDefaults[dir]
}

// has reports whether a list has a port, and the address at the other end.
func has(list []failsafe, protocol uint8, port uint16, far netip.Addr) bool {
	return slices.ContainsFunc(list, func(f failsafe) bool {
		number := f.Protocol.Number
		if number == 0 && f.Protocol.Text == "" {
			number = protoTCP
		}
		if number != protocol || f.Port != port || port == 0 {
			return false
		}
		n, err := api.ParsePrefix(f.Net)
		return strings.TrimSpace(f.Net) == "" || err == nil && n.Contains(far)
	})
}

// passes says why a packet that ends in a host, or begins there, passes
// whatever policy says; "" if it does not.
func (c *Cluster) passes(x *Crossing, dir api.Direction) string {
	p := x.Judged
	switch far := map[api.Direction]netip.Addr{api.Ingress: p.Src, api.Egress: p.Dst}[dir]; {
	case p.isNeighbour():
		return "IPv6 neighbour discovery"
	case has(c.failsafes(x.Host, dir), p.Protocol, p.DstPort, far):
		return "a failsafe port"
	}
	return ""
}

// spared reports whether policy that looks at packets is not asked about one:
// it is to a failsafe port or, as an answer would be, from one.
func (c *Cluster) spared(host string, dir api.Direction, p Packet) bool {
	in, out := c.failsafes(host, api.Ingress), c.failsafes(host, api.Egress)
	if dir == api.Ingress {
		return p.isNeighbour() || has(in, p.Protocol, p.DstPort, p.Src) || has(out, p.Protocol, p.SrcPort, p.Src)
	}
	return p.isNeighbour() || has(out, p.Protocol, p.DstPort, p.Dst) || has(in, p.Protocol, p.SrcPort, p.Dst)
}
