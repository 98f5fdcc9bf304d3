package calc_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"tortie/api"
	"tortie/calc"
	"tortie/desired"
	"tortie/selector"
)

// The site that the benchmarks calculate for.
const (
	siteEndpoints = 250_000
	siteLocal     = 86
	sitePolicies  = 2_000
	siteSets      = 3_000 // distinct label sets
)

// siteEndpoint is endpoint i of the site, with labels like those of Neutron's
// driver. Every endpoint is in one group that all are in and in one of the
// others; with distinct set no two have the same labels.
func siteEndpoint(i, relabel int, distinct bool) (api.Key, *api.WorkloadEndpoint) {
	host := "compute-" + fmt.Sprint(1+i/siteLocal)
	if i < siteLocal {
		host = "compute-0"
	}
	set := (i + relabel) % siteSets
	id := api.WorkloadName{Node: host, Orchestrator: "openstack", Workload: fmt.Sprintf("3f0d%08x-11aa-4bcd-9e01-%012x", i, i), Endpoint: fmt.Sprintf("9a1c%08x-22bb", i)}
	w := &api.WorkloadEndpoint{Kind: api.KindWorkloadEndpoint, Meta: api.Meta{Name: id.String(), Namespace: "openstack"}}
	w.Meta.Labels = map[string]string{
		siteGroup(0):                                    "all",
		siteGroup(1 + set%(sitePolicies-1)):             "group",
		"projectcalico.org/openstack-project-id":        fmt.Sprintf("project-%d", set%500),
		"projectcalico.org/openstack-network-name":      fmt.Sprintf("net-%d", set),
		"projectcalico.org/openstack-project-parent-id": "default",
	}
	if distinct {
		w.Meta.Labels["projectcalico.org/openstack-port"] = fmt.Sprint(i)
	}
	w.Spec = api.WorkloadEndpointSpec{
		Node: host, Orchestrator: id.Orchestrator, Workload: id.Workload, Endpoint: id.Endpoint,
		InterfaceName: fmt.Sprintf("tap9a1c%06x", i),
		MAC:           api.MAC{Set: true, Addr: [6]byte{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}},
	}
	v4 := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	v6 := netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	w.Spec.IPNetworks.Prefixes = []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)}
	return w.Key(), w
}

func siteGroup(i int) string { return fmt.Sprintf("sg.projectcalico.org/openstack-SG%d", i) }

// sitePolicy is the policy of group i: ten rules that mix protocols, ports,
// prefixes and sets. That of the group that all are in names other groups, so
// no set has all endpoints of the site.
func sitePolicy(i int) *api.Policy {
	p := &api.Policy{Kind: api.KindNetworkPolicy, Meta: api.Meta{Name: fmt.Sprintf("ossg.default.SG%d", i), Namespace: "openstack"}}
	p.Spec.Selector = has(siteGroup(i))
	own, others := has(siteGroup(max(i, 1))), has(siteGroup(1+(i+7)%(sitePolicies-1)))
	tcp, udp := api.Protocol{Number: 6}, api.Protocol{Number: 17}
	ports := func(min, max uint16) api.EntityRule {
		return api.EntityRule{Ports: []api.Port{{Min: min, Max: max}}}
	}
	p.Spec.Ingress = []api.Rule{
		{Action: api.Allow, IPVersion: 4, Source: api.EntityRule{Selector: own}},
		{Action: api.Allow, IPVersion: 6, Source: api.EntityRule{Selector: own}},
		{Action: api.Allow, Protocol: tcp, Source: api.EntityRule{Nets: api.ParseNets("0.0.0.0/0")}, Destination: ports(22, 22)},
		{Action: api.Allow, Protocol: tcp, Source: api.EntityRule{Selector: others}, Destination: ports(uint16(1000+i), uint16(1000+i))},
		{Action: api.Allow, Protocol: udp, Destination: ports(uint16(2000+i), uint16(2100+i))},
		{Action: api.Allow, Protocol: tcp, Source: api.EntityRule{Nets: api.ParseNets("192.0.2.0/24"), NotNets: api.ParseNets("192.0.2.128/25")}},
		{Action: api.Deny, Protocol: udp, Source: api.EntityRule{NotSelector: others}},
		{Action: api.Allow, Protocol: api.Protocol{Number: 1}},
	}
	p.Spec.Egress = []api.Rule{{Action: api.Allow, IPVersion: 4}, {Action: api.Allow, IPVersion: 6}}
	return p
}

func has(label string) api.Selector {
	s, err := selector.Parse("has(" + label + ")")
	if err != nil {
		panic(err)
	}
	return api.Selector{Text: s.String(), Expr: s}
}

// site sets the whole site, as the first snapshot of a watch does. It returns
// how long that took, the making of the objects not counted.
func site(distinct bool) (*calc.Calc, *desired.State, time.Duration) {
	c := calc.New(calc.Options{Host: "compute-0", WorkloadPrefixes: []string{"tap"}})
	d := desired.New()
	var spent time.Duration
	for i := range sitePolicies {
		p := sitePolicy(i)
		start := time.Now()
		c.SetPolicy(p.Key(), p)
		spent += time.Since(start)
	}
	const batch = 1000
	for i := 0; i < siteEndpoints; i += batch {
		var keys [batch]api.Key
		var objects [batch]*api.WorkloadEndpoint
		for j := range batch {
			keys[j], objects[j] = siteEndpoint(i+j, 0, distinct)
		}
		start := time.Now()
		for j := range batch {
			c.SetWorkload(keys[j], objects[j], nil)
			if i+j < siteLocal {
				c.SetInterface(objects[j].Spec.InterfaceName, &calc.HostInterface{Index: 10 + i + j, Up: true})
			}
		}
		spent += time.Since(start)
	}
	start := time.Now()
	c.Flush(d)
	return c, d, spent + time.Since(start)
}

func eachSite(b *testing.B, f func(b *testing.B, distinct bool)) {
	b.Run("sets", func(b *testing.B) { f(b, false) })
	b.Run("distinct", func(b *testing.B) { f(b, true) })
}

// BenchmarkStart250k is calc/start-250k: from nothing to the first state.
func BenchmarkStart250k(b *testing.B) {
	eachSite(b, func(b *testing.B, distinct bool) {
		var spent time.Duration
		for range b.N {
			c, d, t := site(distinct)
			spent += t
			if d.Programs.Len() == 0 || d.Interfaces.Len() != siteLocal {
				b.Fatal("nothing was calculated")
			}
			runtime.KeepAlive(c)
		}
		b.ReportMetric(spent.Seconds()/float64(b.N), "start-s")
	})
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// BenchmarkHeap250k is calc/heap-250k: what stays allocated after the start.
func BenchmarkHeap250k(b *testing.B) {
	eachSite(b, func(b *testing.B, distinct bool) {
		for range b.N {
			before := heap()
			c, d, _ := site(distinct)
			d.ClearDirty()
			b.ReportMetric(heap()-before, "MiB")
			runtime.KeepAlive(c)
			runtime.KeepAlive(d)
		}
	})
}

// BenchmarkRemote250k is calc/remote-p99: one endpoint of another host gets
// other labels, and the state is flushed.
func BenchmarkRemote250k(b *testing.B) {
	eachSite(b, func(b *testing.B, distinct bool) {
		c, d, _ := site(distinct)
		d.ClearDirty()
		runtime.GC()
		times := make([]time.Duration, 0, b.N)
		changed := 0
		b.ResetTimer()
		for i := range b.N {
			k, w := siteEndpoint(siteLocal+(i*7919)%(siteEndpoints-siteLocal), 1+i, distinct)
			start := time.Now()
			c.SetWorkload(k, w, nil)
			c.Flush(d)
			times = append(times, time.Since(start))
			changed += d.Members.DirtyLen()
			d.ClearDirty()
		}
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)*50/100].Nanoseconds())/1e6, "p50-ms")
		b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds())/1e6, "p99-ms")
		b.ReportMetric(float64(changed)/float64(b.N), "members/op")
	})
}

// rack sets a host with 1,000 endpoints and 20,000 on others, all in one group
// and in one of 20 more, with a policy for each group.
func rack() (*calc.Calc, *desired.State, func(i int) (api.Key, *api.WorkloadEndpoint)) {
	c := calc.New(calc.Options{Host: "compute-0", WorkloadPrefixes: []string{"tap"}})
	d := desired.New()
	endpoint := func(i int) (api.Key, *api.WorkloadEndpoint) {
		k, w := siteEndpoint(i+siteLocal, 0, false) // all of other hosts
		if i < 1000 {
			w.Spec.Node = "compute-0"
			w.Meta.Name = api.WorkloadName{Node: "compute-0", Orchestrator: "openstack", Workload: w.Spec.Workload, Endpoint: w.Spec.Endpoint}.String()
			k = w.Key()
		}
		w.Meta.Labels = map[string]string{siteGroup(0): "all", siteGroup(1 + i%20): "group"}
		return k, w
	}
	for i := range 21 {
		p := sitePolicy(i)
		c.SetPolicy(p.Key(), p)
	}
	for i := range 21_000 {
		k, w := endpoint(i)
		c.SetWorkload(k, w, nil)
		c.SetInterface(w.Spec.InterfaceName, &calc.HostInterface{Index: 10 + i, Up: true})
	}
	c.Flush(d)
	d.ClearDirty()
	return c, d, endpoint
}

// BenchmarkChange is what one change costs on a full host: a rule of a policy,
// an endpoint that comes and goes, a member of sets.
func BenchmarkChange(b *testing.B) {
	c, d, endpoint := rack()
	run := func(name string, change func(i int)) {
		b.Run(name, func(b *testing.B) {
			dirty := 0
			for i := range b.N {
				change(i)
				c.Flush(d)
				dirty += d.Programs.DirtyLen() + d.Interfaces.DirtyLen() + d.Members.DirtyLen() + d.Routes.DirtyLen()
				d.ClearDirty()
			}
			b.ReportMetric(float64(dirty)/float64(b.N), "dirty/op")
		})
	}
	run("rule", func(i int) {
		p := sitePolicy(3)
		p.Spec.Ingress[2].Destination.Ports[0] = api.Port{Min: uint16(22 + i%2), Max: uint16(22 + i%2)}
		c.SetPolicy(p.Key(), p)
	})
	run("rule-of-all", func(i int) {
		p := sitePolicy(0)
		p.Spec.Ingress[2].Destination.Ports[0] = api.Port{Min: uint16(22 + i%2), Max: uint16(22 + i%2)}
		c.SetPolicy(p.Key(), p)
	})
	run("endpoint", func(i int) {
		k, w := endpoint(5)
		if i%2 == 0 {
			w = nil
		}
		c.SetWorkload(k, w, nil)
	})
	run("member", func(i int) {
		k, w := endpoint(5000)
		if i%2 == 0 {
			w = nil
		}
		c.SetWorkload(k, w, nil)
	})
	run("link", func(i int) {
		_, w := endpoint(5)
		c.SetInterface(w.Spec.InterfaceName, &calc.HostInterface{Index: 15, Up: i%2 == 1})
	})
}
