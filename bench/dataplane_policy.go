package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"

	"tortie/api"
	"tortie/calc"
	"tortie/desired"
	"tortie/kernel/nft"
	"tortie/selector"
)

const (
	groupMembers = 64
	lowestPort   = 6000 // of the rules that match none of the traffic
)

// installOurs puts our tables on a triple's router, by the agent's own way from
// resources to the kernel but for the store.
func installOurs(t *triple, policies int) error {
	client, server, err := t.taps()
	if err != nil {
		return err
	}
	prefixes := []string{"tap"}
	c := calc.New(calc.Options{Host: benchHost, WorkloadPrefixes: prefixes})
	tier := &api.Tier{Kind: api.KindTier, Meta: api.Meta{Name: "default"}}
	c.SetTier(tier.Key(), tier)
	for n := range groups * groupMembers {
		v4, v6 := addresses(n)
		setEndpoint(c, remoteHost(n), fmt.Sprintf("tap%07d", n), map[string]string{"group": groupName(n)}, v4, v6)
	}
	setEndpoint(c, benchHost, clientTap, map[string]string{"role": "client"}, t.client.v4, t.client.v6)
	setEndpoint(c, benchHost, serverTap, map[string]string{"role": "server"}, t.server.v4, t.server.v6)
	c.SetInterface(clientTap, &calc.HostInterface{Index: client, Up: true, Addrs: []netip.Addr{t.client.via4, t.client.via6}})
	c.SetInterface(serverTap, &calc.HostInterface{Index: server, Up: true, Addrs: []netip.Addr{t.server.via4, t.server.via6}})
	for i := range policies {
		p := drawnPolicy(i, i == policies-1)
		c.SetPolicy(p.Key(), p)
	}
	egress := globalPolicy("client", "role == 'client'", 1)
	egress.Spec.Types, egress.Spec.Egress = []api.Direction{api.Egress}, []api.Rule{{Action: api.Allow}}
	c.SetPolicy(egress.Key(), egress)
	state := desired.New()
	c.Flush(state)
	if err := hasRules(state, policies*rulesPolicy); err != nil {
		return err
	}
	return inside(t.router, func() error {
		tables, err := nft.Open(nft.Options{WorkloadPrefixes: prefixes, HostAction: nft.HostDrop})
		if err != nil {
			return err
		}
		defer func() { _ = tables.Close() }()
		_, err = tables.Apply(context.Background(), state)
		return err
	})
}

// setEndpoint sets an endpoint with any MAC, as the floor has it.
func setEndpoint(c *calc.Calc, host, link string, labels map[string]string, addrs ...netip.Addr) {
	w := &api.WorkloadEndpoint{Kind: api.KindWorkloadEndpoint, Meta: api.Meta{Name: host + "-openstack-" + link + "-eth0", Namespace: namespace, Labels: labels}}
	w.Spec = api.WorkloadEndpointSpec{Node: host, Orchestrator: "openstack", Workload: link, Endpoint: "eth0", InterfaceName: link}
	for _, a := range addrs {
		w.Spec.IPNetworks.Prefixes = append(w.Spec.IPNetworks.Prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	c.SetWorkload(w.Key(), w, nil)
}

// hasRules checks that the server's program has all rules: fewer would measure
// less than is said.
func hasRules(state *desired.State, want int) error {
	i, _ := state.Interfaces.Get(serverTap)
	p, _ := state.Programs.Get(i.Ingress)
	have := 0
	for _, stage := range p.Stages {
		have += len(stage.Rules)
	}
	if have != want {
		return fmt.Errorf("the server's program has %d rules, not %d", have, want)
	}
	return nil
}

func globalPolicy(name, selects string, order float64) *api.Policy {
	p := &api.Policy{Kind: api.KindGlobalNetworkPolicy, Meta: api.Meta{Name: name}}
	p.Spec.Tier, p.Spec.Order, p.Spec.Selector = "default", &order, selecting(selects)
	return p
}

func selecting(text string) api.Selector {
	s, err := selector.Parse(text)
	if err != nil {
		panic(err) // the texts are constant but for numbers
	}
	return api.Selector{Text: s.String(), Expr: s}
}

// drawnPolicy draws the ith policy of the server. Only the last rule of the
// last policy matches what the client sends.
func drawnPolicy(i int, last bool) *api.Policy {
	rng := rand.New(rand.NewPCG(seed, uint64(i)))
	p := globalPolicy(fmt.Sprintf("p%03d", i), "role == 'server'", float64(i))
	p.Spec.Types = []api.Direction{api.Ingress}
	for j := range rulesPolicy {
		p.Spec.Ingress = append(p.Spec.Ingress, drawnRule(rng, j))
	}
	if last {
		p.Spec.Ingress[rulesPolicy-1] = api.Rule{Action: api.Allow, Source: api.EntityRule{Selector: selecting("role == 'client'")}}
	}
	return p
}

// drawnRule draws a rule of the jth of ten forms. No two forms differ in one
// field only, so that they cannot be merged into one lookup. The client's
// traffic is of none of their ports, nets and groups.
func drawnRule(rng *rand.Rand, j int) api.Rule {
	tcp, udp, icmp := api.Protocol{Number: 6}, api.Protocol{Number: 17}, api.Protocol{Number: 1}
	port := uint16(lowestPort + rng.IntN(30_000))
	ports := func(pairs ...uint16) (list []api.Port) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, api.Port{Min: port + pairs[i], Max: port + pairs[i+1]})
		}
		return list
	}
	net := func(bits int) api.Nets {
		a := netip.AddrFrom4([4]byte{10, byte(16 + rng.IntN(8)), byte(rng.IntN(256)), 0})
		return api.Nets{Prefixes: []netip.Prefix{netip.PrefixFrom(a, bits).Masked()}}
	}
	group := selecting(fmt.Sprintf("group == '%s'", groupName(rng.IntN(groups))))
	echo := 8
	r := api.Rule{Action: api.Allow}
	if rng.IntN(4) == 0 {
		r.Action = api.Deny
	}
	from, to := &r.Source, &r.Destination
	switch j {
	case 0:
		r.Protocol, from.Selector, to.Ports = tcp, group, ports(0, 0)
	case 1:
		r.Protocol, from.Nets, to.Ports = udp, net(24), ports(0, 100, 500, 500)
	case 2:
		r.Protocol, from.NotSelector, to.Ports = tcp, group, ports(0, 0, 1, 1, 7, 7)
	case 3:
		r.IPVersion, r.Protocol, r.ICMP, from.NotNets = 4, icmp, &api.ICMP{Type: &echo}, net(24)
	case 4:
		r.Protocol, from.Selector, to.NotPorts = tcp, group, ports(0, 1000)
	case 5:
		r.Protocol, from.Selector, from.NotNets, to.Ports = udp, group, net(24), ports(0, 20)
	case 6:
		r.Protocol, from.Nets, from.NotSelector = tcp, net(20), group
	case 7:
		r.NotProtocol, from.Selector, from.NotNets = icmp, group, net(22)
	case 8:
		r.Protocol, from.Nets, from.Ports, to.Ports = tcp, net(28), ports(0, 9), ports(3, 3)
	default:
		r.Protocol, from.NotNets, to.Ports = udp, net(16), ports(0, 3)
	}
	return r
}

// floorRules is the smallest ruleset with the functions of ours, with one rule
// in the server's program.
const floorRules = `
table inet floor {
 set sp4 { type iface_index . ipv4_addr; size 65536; elements = { %[1]q . %[3]s, %[2]q . %[4]s } }
 set sp6 { type iface_index . ipv6_addr; size 65536; elements = { %[1]q . %[5]s, %[2]q . %[6]s } }
 set peers4 { type ipv4_addr; size 65536; elements = { %[3]s } }
 set peers6 { type ipv6_addr; size 65536; elements = { %[5]s } }
 map egress { type ifname : verdict; elements = { %[1]q : jump everything, %[2]q : jump nothing, * : jump stranger_i } }
 map ingress { type ifname : verdict; elements = { %[1]q : jump nothing, %[2]q : jump peers, * : jump stranger_o } }
 chain raw { type filter hook prerouting priority -450; policy accept;
  iif . ip saddr @sp4 accept
  iif . ip6 saddr @sp6 accept
  iifname "tap*" counter drop; }
 chain forward { type filter hook forward priority 0; policy accept;
  ct mark and 0xffffff == 0x10 accept
  goto taps; }
 chain taps { iifname "tap*" goto judge
  oifname "tap*" goto judge; }
 chain judge { ct state invalid,untracked counter drop
  ct direction reply goto judge_r
  iifname vmap @egress
  oifname vmap @ingress
  goto allowed; }
 chain judge_r { oifname vmap @egress
  iifname vmap @ingress
  goto allowed; }
 chain allowed { ct mark set ct mark and 0xff000000 or 0x10
  accept; }
 chain stranger_i { ct direction original iifname "tap*" counter drop
  ct direction reply oifname "tap*" counter drop; }
 chain stranger_o { ct direction original oifname "tap*" counter drop
  ct direction reply iifname "tap*" counter drop; }
 chain everything { return; }
 chain nothing { counter drop; }
 chain peers { ct original ip saddr @peers4 return
  ct original ip6 saddr @peers6 return
  counter drop; }
}
`

func installFloor(t *triple) error {
	text := fmt.Sprintf(floorRules, clientTap, serverTap, t.client.v4, t.server.v4, t.client.v6, t.server.v6)
	return inside(t.router, func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = bytes.NewReader([]byte(text))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}
