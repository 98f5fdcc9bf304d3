package agent

import (
	"fmt"
	"strings"
	"testing"
)

// ofHost is a policy of the host's interface for what passes through it to ports:
// with nothing more in its spec in both directions, else inwards.
func ofHost(name string, order int, more, action, ports string) string {
	var rules []string
	for _, protocol := range []string{"TCP", "UDP"} {
		rules = append(rules, fmt.Sprintf(`{"action":%q,"protocol":%q,"destination":{"ports":[%s]}}`, action, protocol, ports))
	}
	list := strings.Join(rules, ",")
	spec := `"types":["Ingress"],"ingress":[` + list + `]`
	if more == "" {
		spec = `"types":["Ingress","Egress"],"ingress":[` + list + `],"egress":[` + list + `]`
	}
	return onHosts(name, fmt.Sprintf(`"order":%d,"applyOnForward":true,%s%s`, order, more, spec))
}

// sentBy is the part of traffic that the client sends.
func (a traffic) sentBy() (part traffic) {
	for i := range families {
		part.streams, part.transfers = append(part.streams, a.streams[2*i]), append(part.transfers, a.transfers[2*i])
	}
	return part
}

// Whatever kind of policy of the host's interface it is that comes to forbid what
// passes through, in either direction, it is cut, and goes on when it is allowed
// again; what stays allowed loses not one packet.
func TestHostPolicyOnLiveConnections(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	s.set(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, allow))
	s.set(hostKey("h"), hostDoc("h", `"interfaceName":"up0"`))
	for _, g := range []*guest{s.out, s.server} {
		g.ns.Run(t, "sysctl", "-eqw", "net.ipv4.tcp_rto_min_us=10000")
	}
	in, out := [2]*guest{s.out, s.server}, [2]*guest{s.server, s.out}
	var stay []traffic
	for i, pair := range [][2]*guest{in, out} {
		stay = append(stay, s.trafficAt(pair[0], pair[1], stayPorts+50*i, rate/2))
	}
	const early, raw = `"preDNAT":true,`, `"doNotTrack":true,`
	rest := ofHost("rest", 2, "", "Allow", `"1:65535"`) // else it is the end of the tier
	for _, c := range []struct {
		name, forbid, restore, rest string
		outwards                    bool                  // it forbids those that the server opens as well
		part                        func(traffic) traffic // of them
	}{
		{"normal", ofHost("p", 1, "", "Deny", openPort), ofHost("p", 1, "", "Deny", "7777"), rest, true, nil},
		{"the end of a tier", ofHost("p", 1, "", "Allow", keptPort), "", "", true, nil},
		{"before translation", ofHost("p", 1, early, "Deny", openPort), "", "", false, nil},
		{"untracked", ofHost("p", 1, raw, "Deny", openPort), "", "", false, traffic.sentBy}, // packets to those ports
	} {
		s.set(policyOf("rest"), c.rest)
		for i, pair := range [][2]*guest{in, out}[:1+map[bool]int{true: 1}[c.outwards]] {
			cut := s.trafficAt(pair[0], pair[1], cutPorts+50*i, rate)
			s.set(policyOf("p"), c.forbid)
			if c.part != nil {
				c.part(cut).cut()
			} else {
				cut.cut()
			}
			for _, kept := range stay {
				kept.flow()
			}
			s.set(policyOf("p"), c.restore)
			cut.flow()
			cut.halt()
			s.set(policyOf("p"), "")
			if t.Failed() {
				t.Fatalf("in the case of %s", c.name)
			}
		}
	}
	for _, kept := range stay {
		kept.complete()
	}
}

// The connections to an external address go with it, from outside and from here;
// those of the same end by its own address lose not one packet.
//
// Pain 18: elsewhere a floating address that goes leaves its connections.
func TestFloatingAddressGoes(t *testing.T) {
	s := newScenario(t)
	out := s.outsideClient()
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, allow, "")) // it opens nothing by itself
	s.delete(policyOf("outside"))
	s.revision = s.put(s.server.key, s.server.floating())
	s.run()
	float := s.server.atExternal()
	var cut, stay []traffic
	for i, from := range []*guest{out, s.client} {
		cut = append(cut, s.trafficAt(from, float, cutPorts+50*i, rate))
		stay = append(stay, s.trafficAt(from, s.server, stayPorts+50*i, rate/2))
	}
	bound := s.server.bound(`{"role":"server"}`)
	s.settle(s.put(s.server.key, bound))
	for i := range cut {
		cut[i].cut()
		cut[i].halt()
		stay[i].complete()
	}
}
