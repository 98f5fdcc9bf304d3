package autohep

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
	"tortie/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

var nics = []Interface{
	{"docker0", addrs("172.17.0.1")},
	{"enP2p1s0_x", nil},
	{"eth0", addrs("192.0.2.1", "2001:db8::1")},
	{"eth1", addrs("10.1.0.1", "fd01::1", "10.2.0.1")},
}

func config(t testing.TB, spec string) *api.AutoHostEndpoints {
	t.Helper()
	o, _, err := api.DecodeKey(api.Key{Kind: api.KindKubeControllersConfiguration, Name: "default"}, fmt.Appendf(nil, `{"spec":{"controllers":{"node":{"hostEndpoint":{%s}}}}}`, spec))
	if err != nil {
		t.Fatal(err)
	}
	return o.(*api.KubeControllersConfiguration).Spec.HostEndpoints()
}

func node(labels string) *api.Node {
	n := &api.Node{Kind: api.KindNode, Meta: api.Meta{Name: "h1"}}
	_ = json.Unmarshal([]byte(labels), &n.Meta.Labels)
	return n
}

// lineOf is an endpoint as one line.
func lineOf(h *api.HostEndpoint) string {
	var labels []string
	for k, v := range h.Meta.Labels {
		if k != LabelMade || v != Made {
			labels = append(labels, k+"="+v)
		}
	}
	slices.Sort(labels)
	return strings.TrimSpace(fmt.Sprintf("%s %s %v %v %s", h.Meta.Name, h.Spec.InterfaceName, h.Spec.ExpectedIPs, h.Spec.Profiles, strings.Join(labels, ",")))
}

func TestWanted(t *testing.T) {
	const all = "h1-auto-hep * [10.1.0.1 10.2.0.1 172.17.0.1 192.0.2.1 2001:db8::1 fd01::1] [projectcalico-default-allow]"
	const on = `"autoCreate":"Enabled",`
	const templates = on + `"createDefaultHostEndpoint":"Disabled","templates":`
	for name, c := range map[string]struct {
		config, labels string
		want, problems []string
	}{
		"nothing said":    {``, `{}`, nil, nil},
		"off":             {`"autoCreate":"Disabled"`, `{}`, nil, nil},
		"bad":             {`"autoCreate":"yes"`, `{}`, nil, nil},
		"no node":         {on + `"createDefaultHostEndpoint":"Enabled"`, ``, nil, nil},
		"default":         {`"autoCreate":"Enabled"`, `{"a":"b"}`, []string{all + " a=b"}, nil},
		"no default":      {on + `"createDefaultHostEndpoint":"Disabled"`, `{}`, nil, nil},
		"bad default":     {on + `"createDefaultHostEndpoint":"yes"`, `{}`, nil, nil},
		"by name":         {templates + `[{"generateName":"nic","interfacePattern":"^eth"}]`, `{}`, []string{"h1-nic-eth0-auto-hep eth0 [192.0.2.1 2001:db8::1] [projectcalico-default-allow]", "h1-nic-eth1-auto-hep eth1 [10.1.0.1 10.2.0.1 fd01::1] [projectcalico-default-allow]"}, nil},
		"without address": {templates + `[{"generateName":"nic","interfacePattern":"enP"}]`, `{}`, []string{"h1-nic-enp2p1s0-x-auto-hep enP2p1s0_x [] [projectcalico-default-allow]"}, nil},
		"by address":      {templates + `[{"generateName":"net","interfaceCIDRs":["10.0.0.0/8","2001:db8::/32"]}]`, `{}`, []string{"h1-net-auto-hep  [10.1.0.1 10.2.0.1 2001:db8::1] [projectcalico-default-allow]"}, nil},
		"by no address":   {templates + `[{"generateName":"net","interfaceCIDRs":["10.99.0.0/16"]}]`, `{}`, nil, nil},
		"by both":         {templates + `[{"generateName":"both","interfacePattern":".","interfaceCIDRs":["10.2.0.0/16"]}]`, `{}`, []string{"h1-both-eth1-auto-hep eth1 [10.2.0.1] [projectcalico-default-allow]"}, nil},
		"bad prefix":      {templates + `[{"generateName":"net","interfacePattern":".","interfaceCIDRs":["x"]}]`, `{}`, nil, nil},
		"labels":          {templates + `[{"generateName":"nic","interfacePattern":"docker","labels":{"a":"t","c":"d"}}]`, `{"a":"n","b":"n"}`, []string{"h1-nic-docker0-auto-hep docker0 [172.17.0.1] [projectcalico-default-allow] a=t,b=n,c=d"}, nil},
		"node selected":   {templates + `[{"generateName":"nic","interfacePattern":"docker","nodeSelector":"rack == '7'"}]`, `{"rack":"7"}`, []string{"h1-nic-docker0-auto-hep docker0 [172.17.0.1] [projectcalico-default-allow] rack=7"}, nil},
		"another node":    {templates + `[{"generateName":"nic","interfacePattern":"docker","nodeSelector":"rack == '7'"}]`, `{"rack":"8"}`, nil, nil},
		"bad selector":    {templates + `[{"generateName":"nic","interfacePattern":"docker","nodeSelector":"rack ="}]`, `{}`, nil, nil},
		"bad pattern":     {templates + `[{"generateName":"nic","interfacePattern":"eth("},{"generateName":"b","interfacePattern":"docker"}]`, `{}`, []string{"h1-b-docker0-auto-hep docker0 [172.17.0.1] [projectcalico-default-allow]"}, nil},
		"one name":        {templates + `[{"generateName":"a","interfacePattern":"eth0"},{"generateName":"a","interfacePattern":"eth1"}]`, `{}`, []string{"h1-a-eth0-auto-hep eth0 [192.0.2.1 2001:db8::1] [projectcalico-default-allow]"}, nil},
		"clash":           {templates + `[{"generateName":"a-eth0","interfaceCIDRs":["192.0.2.0/24"]},{"generateName":"a","interfacePattern":"eth0"}]`, `{}`, []string{"h1-a-eth0-auto-hep  [192.0.2.1] [projectcalico-default-allow]"}, []string{"host endpoint h1-a-eth0-auto-hep would be for interface eth0 too"}},
		"long":            {templates + `[{"generateName":"` + strings.Repeat("a", 245) + `","interfacePattern":"eth0"}]`, `{}`, nil, []string{"host endpoint h1-" + strings.Repeat("a", 245) + "-eth0-auto-hep: no name may be longer than 253 characters"}},
	} {
		t.Run(name, func(t *testing.T) {
			var n *api.Node
			if c.labels != "" {
				n = node(c.labels)
			}
			got, problems := Wanted(config(t, c.config), n, nics)
			var lines []string
			for _, h := range got {
				if h.Meta.Labels[LabelMade] != Made || h.Spec.Node != "h1" {
					t.Errorf("%+v", h)
				}
				lines = append(lines, lineOf(h))
				if wrong := api.Validate(h); len(wrong) > 0 {
					t.Errorf("%s: %v", h.Meta.Name, wrong)
				}
			}
			slices.Sort(lines)
			if !slices.Equal(lines, c.want) || !slices.Equal(problems, c.problems) {
				t.Errorf("got %q, %q\nwant %q, %q", lines, problems, c.want, c.problems)
			}
		})
	}
}

// made is a maker with a store, which tells it what it stores.
type made struct {
	t *testing.T
	*Maker
	store *memory.Memory
}

func start(t *testing.T) *made {
	m := &made{t: t, store: memory.New()}
	m.Maker = New(m.store, "h1", slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	watch := m.store.Watch(ctx, api.Prefix(api.KindHostEndpoint))
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			b, err := watch.Next(ctx)
			if err != nil {
				return
			}
			for _, e := range b.Events {
				key, _ := api.ParsePath(e.Path)
				o, _, _ := api.Decode(e.Path, e.Value)
				h, _ := o.(*api.HostEndpoint)
				m.SetEndpoint(key.Name, h)
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		m.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return m
}

// stored is a line for each endpoint, by name.
func (m *made) stored(values map[string]string) (lines []string) {
	for path, value := range values {
		o, _, err := api.Decode(path, []byte(value))
		if err != nil {
			m.t.Fatal(err)
		}
		h := o.(*api.HostEndpoint)
		lines = append(lines, h.Meta.Name+" "+h.Meta.Labels["rack"]+" "+fmt.Sprint(len(h.Spec.ExpectedIPs)))
	}
	slices.Sort(lines)
	return lines
}

func (m *made) await(want ...string) {
	m.t.Helper()
	f := storetest.Follow(m.t, m.store, api.Prefix(api.KindHostEndpoint))
	f.Until(fmt.Sprintf("%q", want), func() bool { return slices.Equal(m.stored(f.Values()), want) })
}

// revision is the newest of the endpoints'.
func (m *made) revision() (newest int64) {
	entries, _, err := m.store.List(context.Background(), api.Prefix(api.KindHostEndpoint))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		newest = max(newest, e.Revision)
	}
	return newest
}

func (m *made) write(name, labels, spec string) {
	m.t.Helper()
	doc := fmt.Sprintf(`{"kind":"HostEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"labels":%s},"spec":{"node":"h1",%s}}`, name, labels, spec)
	op := store.Op{Path: api.Key{Kind: api.KindHostEndpoint, Name: name}.Path(), Value: []byte(doc), If: store.AnyRevision, Delete: spec == ""}
	if _, err := m.store.Commit(context.Background(), op); err != nil {
		m.t.Fatal(err)
	}
}

func TestMaker(t *testing.T) {
	m := start(t)
	const hand = `{"projectcalico.org/created-by":"calico-kube-controllers"}`
	m.write("h1-nic-eth0-auto-hep", hand, `"interfaceName":"x"`)
	m.write("old", `{"projectcalico.org/created-by":"tortie"}`, `"interfaceName":"y"`)
	m.write("mine", `{}`, `"interfaceName":"z"`)
	m.SetInterfaces(nics)
	m.SetNode(node(`{"rack":"7"}`))
	m.SetConfig(config(t, `"autoCreate":"Enabled","templates":[{"generateName":"nic","interfacePattern":"eth"}]`))
	m.await("h1-nic-eth0-auto-hep  0", "mine  0", "old  0") // it is not in sync
	m.InSync()
	const mine = "mine  0"
	m.await("h1-auto-hep 7 6", "h1-nic-eth0-auto-hep  0", "h1-nic-eth1-auto-hep 7 3", mine)
	if p := m.Problems(); !slices.Equal(p, []string{"host endpoint h1-nic-eth0-auto-hep was made by somebody else: it stays as it is"}) {
		t.Errorf("%q", p)
	}
	m.SetNode(node(`{"rack":"8"}`))
	m.await("h1-auto-hep 8 6", "h1-nic-eth0-auto-hep  0", "h1-nic-eth1-auto-hep 8 3", mine)
	m.write("h1-auto-hep", ``, ``) // deleted by hand, and changed
	m.write("h1-nic-eth1-auto-hep", `{"projectcalico.org/created-by":"tortie"}`, `"interfaceName":"eth9"`)
	m.await("h1-auto-hep 8 6", "h1-nic-eth0-auto-hep  0", "h1-nic-eth1-auto-hep 8 3", mine)
	m.write("h1-nic-eth0-auto-hep", ``, ``)
	m.await("h1-auto-hep 8 6", "h1-nic-eth0-auto-hep 8 2", "h1-nic-eth1-auto-hep 8 3", mine)
	if p := m.Problems(); len(p) > 0 {
		t.Errorf("%q", p)
	}
	before := m.revision()
	again := New(m.store, "h1", slog.New(slog.DiscardHandler)) // as after a restart
	m.mu.Lock()
	again.config, again.node, again.interfaces, again.have, again.inSync = m.config, m.node, m.interfaces, maps.Clone(m.have), true
	m.mu.Unlock()
	if err := again.round(context.Background()); err != nil {
		t.Error(err)
	}
	m.SetInterfaces(slices.Clone(nics[:3]))
	m.await("h1-auto-hep 8 3", "h1-nic-eth0-auto-hep 8 2", mine)
	if after := m.revision(); after != before+1 { // the one for all alone
		t.Errorf("revision %d after %d", after, before)
	}
	m.SetNode(nil)
	m.await(mine)
	m.SetNode(node(`{}`))
	m.await("h1-auto-hep  3", "h1-nic-eth0-auto-hep  2", mine)
	before = m.revision()
	for _, typo := range []string{
		`"autoCreate":"enabled"`, `"autoCreate":"Enabled","createDefaultHostEndpoint":"no","templates":[]`, `"autoCreate":"Enabled","templates":[{"generateName":"nic","interfacePattern":"eth("}]`,
		`"autoCreate":"Enabled","templates":[{"generateName":"nic","interfacePattern":"eth","nodeSelector":"a ="}]`, `"autoCreate":"Enabled","templates":[{"generateName":"nic","interfacePattern":"eth","interfaceCIDRs":["x"]}]`,
	} {
		m.mu.Lock()
		m.config = config(t, typo)
		m.mu.Unlock()
		if err := m.round(context.Background()); err != nil {
			t.Error(err)
		}
		if now := m.revision(); now != before {
			t.Errorf("%s: revision %d after %d", typo, now, before)
		}
		m.await("h1-auto-hep  3", "h1-nic-eth0-auto-hep  2", mine)
	}
	m.SetConfig(nil)
	m.await(mine)
}
