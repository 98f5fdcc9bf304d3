package bgp

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tortie/api"
	"tortie/store"
)

// resources is a cluster, as kind/name and spec, or metadata and spec.
func resources(t testing.TB, docs map[string]string) *cluster {
	t.Helper()
	c := newCluster(slog.New(slog.DiscardHandler))
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		put(c, name, docs[name])
	}
	return c
}

func put(c *cluster, name, spec string) {
	kind, name, _ := strings.Cut(name, "/")
	meta := fmt.Sprintf(`"name":%q`, name)
	if labels, rest, ok := strings.Cut(spec, " | "); ok {
		meta, spec = meta+`,"labels":`+labels, rest
	}
	c.update(store.Event{Entry: store.Entry{
		Path:  resourcePath(api.Kind(kind), name),
		Value: fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{%s},"spec":%s}`, kind, api.APIVersion, meta, spec),
	}})
}

// text prints a plan, without its problems.
func (p plan) text() string {
	if p.waiting != "" {
		return "waiting: " + p.waiting + "\n"
	}
	listen := func(a netip.Addr) string {
		if !a.IsValid() {
			return "-"
		}
		return a.String()
	}
	g := p.global
	text := fmt.Sprintf("as %d id %s port %d listen %s %s\n", g.as, g.routerID, g.port, listen(g.listen4), listen(g.listen6))
	for _, addr := range slices.SortedFunc(maps.Keys(p.sessions), netip.Addr.Compare) {
		s := p.sessions[addr]
		text += fmt.Sprintf("%s port %d as %d from %s restart %s", s.peer, s.port, s.as, s.local, s.restart)
		if s.passive {
			text += " passive"
		}
		text += " (" + s.origin + ")\n"
	}
	return text
}

const (
	node1 = `{"bgp":{"ipv4Address":"172.16.0.1/24","ipv6Address":"fd00::1/64"}}`
	node2 = `{"bgp":{"ipv4Address":"172.16.0.2/24","ipv6Address":"fd00::2/64"}}`
	node9 = `{"bgp":{"ipv4Address":"172.16.0.9"}}`
)

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		docs     map[string]string
		want     string
		problems int
	}{
		// Promise I11: with no configuration at all there is a full mesh.
		"default": {
			docs: map[string]string{"Node/h1": node1, "Node/h2": node2, "Node/h9": node9},
			want: `
as 64512 id 172.16.0.1 port 179 listen 0.0.0.0 ::
172.16.0.2 port 179 as 64512 from 172.16.0.1 restart 2m0s passive (mesh with h2)
172.16.0.9 port 179 as 64512 from 172.16.0.1 restart 2m0s passive (mesh with h9)
fd00::2 port 179 as 64512 from fd00::1 restart 2m0s passive (mesh with h2)
`,
		},
		"absent node":  {docs: map[string]string{"Node/h2": node2}, want: "\nwaiting: there is no Node \"h1\"\n"},
		"node without": {docs: map[string]string{"Node/h1": `{}`}, want: "\nwaiting: Node \"h1\" has no usable BGP address\n"},
		"settings": {
			docs: map[string]string{
				"Node/h1": node1, "Node/h2": node2,
				"BGPConfiguration/default": `{"asNumber":"100.2","listenPort":1179,"nodeMeshMaxRestartTime":"90s"}`,
				"BGPConfiguration/node.h1": `{"listenPort":1180,"bindMode":"NodeIP"}`,
			},
			want: `
as 6553602 id 172.16.0.1 port 1180 listen 172.16.0.1 fd00::1
172.16.0.2 port 1179 as 6553602 from 172.16.0.1 restart 1m30s passive (mesh with h2)
fd00::2 port 1179 as 6553602 from fd00::1 restart 1m30s passive (mesh with h2)
`,
		},
		"a mode that does not exist": {
			docs: map[string]string{
				"Node/h1":                  node1,
				"BGPConfiguration/default": `{"bindMode":"NodeIP"}`,
				"BGPConfiguration/node.h1": `{"bindMode":"nodeip"}`,
			},
			want: `
as 64512 id 172.16.0.1 port 179 listen 172.16.0.1 fd00::1
`,
			problems: 1,
		},
		// Promise I3: hosts of one rack share an AS, those of another differ.
		"node's own AS": {
			docs: map[string]string{"Node/h1": `{"bgp":{"ipv4Address":"172.16.0.1/24","asNumber":65001}}`, "Node/h2": `{"bgp":{"ipv4Address":"172.16.0.2/24","asNumber":65002}}`},
			want: `
as 65001 id 172.16.0.1 port 179 listen 0.0.0.0 -
172.16.0.2 port 179 as 65002 from 172.16.0.1 restart 2m0s passive (mesh with h2)
`,
		},
		// The rule of upstream's mesh compares addresses as text.
		"who connects": {
			docs: map[string]string{"Node/h1": `{"bgp":{"ipv4Address":"172.16.0.9/24"}}`, "Node/h2": `{"bgp":{"ipv4Address":"172.16.0.10/24"}}`},
			want: `
as 64512 id 172.16.0.9 port 179 listen 0.0.0.0 -
172.16.0.10 port 179 as 64512 from 172.16.0.9 restart 2m0s (mesh with h2)
`,
		},
		"IPv6 only": {
			docs: map[string]string{"Node/h1": `{"bgp":{"ipv6Address":"fd00::1/64"}}`, "Node/h2": node2},
			want: `
as 64512 id 144.59.53.147 port 179 listen - ::
fd00::2 port 179 as 64512 from fd00::1 restart 2m0s passive (mesh with h2)
`,
		},
		"peers, no mesh": {
			docs: map[string]string{
				"Node/h1": `{"rack":"a"} | ` + node1, "Node/h2": node2,
				"BGPConfiguration/default": `{"nodeToNodeMeshEnabled":false}`,
				"BGPPeer/all":              `{"peerIP":"192.0.2.1","asNumber":65000}`,
				"BGPPeer/mine":             `{"node":"h1","peerIP":"192.0.2.2:1179","asNumber":65000}`,
				"BGPPeer/other":            `{"node":"h2","peerIP":"192.0.2.3","asNumber":65000}`,
				"BGPPeer/rack-a":           `{"nodeSelector":"rack == 'a'","peerIP":"[2001:db8::1]:179","asNumber":65000}`,
				"BGPPeer/rack-b":           `{"nodeSelector":"rack == 'b'","peerIP":"192.0.2.4","asNumber":65000}`,
				"BGPPeer/self":             `{"peerIP":"172.16.0.1","asNumber":64512}`,
			},
			want: `
as 64512 id 172.16.0.1 port 179 listen 0.0.0.0 ::
192.0.2.1 port 179 as 65000 from 172.16.0.1 restart 2m0s (BGPPeer all)
192.0.2.2 port 1179 as 65000 from 172.16.0.1 restart 2m0s (BGPPeer mine)
2001:db8::1 port 179 as 65000 from fd00::1 restart 2m0s (BGPPeer rack-a)
`,
		},
		// Promise I2: route reflectors, chosen by label, are no part of the mesh.
		"reflector by label": {
			docs: map[string]string{
				"Node/h1": node1, "Node/h2": node2,
				"Node/r1":     `{"reflector":"yes"} | {"bgp":{"ipv4Address":"172.16.0.100/24","routeReflectorClusterID":"244.0.0.1"}}`,
				"BGPPeer/rrs": `{"nodeSelector":"all()","peerSelector":"has(reflector)"}`,
			},
			want: `
as 64512 id 172.16.0.1 port 179 listen 0.0.0.0 ::
172.16.0.2 port 179 as 64512 from 172.16.0.1 restart 2m0s passive (mesh with h2)
172.16.0.100 port 179 as 64512 from 172.16.0.1 restart 2m0s (BGPPeer rrs)
fd00::2 port 179 as 64512 from fd00::1 restart 2m0s passive (mesh with h2)
`,
			problems: 1, // what of the reflector is not built is reported
		},
		"explicit before mesh": {
			docs: map[string]string{"Node/h1": node1, "Node/h9": node9, "BGPPeer/p": `{"peerIP":"172.16.0.9","asNumber":65009}`},
			want: `
as 64512 id 172.16.0.1 port 179 listen 0.0.0.0 ::
172.16.0.9 port 179 as 65009 from 172.16.0.1 restart 2m0s (BGPPeer p)
`,
			problems: 1,
		},
		"bad data": {
			docs: map[string]string{
				"Node/h1":                  node1,
				"Node/h2":                  `{"bgp":{"ipv4Address":"fd00::7","ipv6Address":"nonsense"}}`,
				"Node/h3":                  node1, // an address twice
				"BGPConfiguration/default": `{"nodeMeshMaxRestartTime":"forever"}`,
				"BGPPeer/p1":               `{"peerIP":"nonsense","asNumber":1}`,
				"BGPPeer/p2":               `{"peerIP":"192.0.2.1"}`,
				"BGPPeer/p3":               `{}`,
				"BGPPeer/p4":               `{"peerIP":"192.0.2.1:99999","asNumber":1}`,
				"BGPPeer/p5":               `{"peerIP":"224.0.0.5","asNumber":1}`,
			},
			want:     "\nas 64512 id 172.16.0.1 port 179 listen 0.0.0.0 ::\n",
			problems: 10,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := resources(t, c.docs).plan("h1")
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), p.text()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if len(p.problems) != c.problems {
				t.Errorf("problems:\n%s", strings.Join(p.problems, "\n"))
			}
		})
	}
}

// Both ends of a session plan the same session, and one of them connects.
func TestPlanIsMutual(t *testing.T) {
	docs := map[string]string{
		"Node/r1":     `{"reflector":"yes"} | {"bgp":{"ipv4Address":"172.16.0.100/24","asNumber":65000,"routeReflectorClusterID":"244.0.0.1"}}`,
		"BGPPeer/rrs": `{"nodeSelector":"!has(reflector)","peerSelector":"has(reflector)"}`,
	}
	for i := range 12 {
		docs[fmt.Sprintf("Node/h%d", i)] = fmt.Sprintf(`{"bgp":{"ipv4Address":"172.16.0.%d/24","ipv6Address":"fd00::%x/64","asNumber":%d}}`, i+1, i+1, 65001+i)
	}
	c := resources(t, docs)
	owner := map[netip.Addr]string{}
	plans := map[string]plan{}
	for name, n := range c.nodes {
		a4, a6 := nodeAddrs(n)
		owner[a4], owner[a6] = name, name
		plans[name] = c.plan(name)
	}
	sessions := 0
	for _, p := range plans {
		for _, s := range p.sessions {
			back, ok := plans[owner[s.peer]].sessions[s.local]
			if !ok || back.peer != s.local || back.as != p.global.as || s.passive && back.passive {
				t.Errorf("%v has %v on the other side", s, back)
			}
			if strings.HasPrefix(s.origin, "mesh") && s.passive == back.passive {
				t.Errorf("%v: both sides connect, or none", s)
			}
			sessions++
		}
	}
	if want := 12*11*2 + 12*2; sessions != want {
		t.Errorf("%d sessions, want %d", sessions, want)
	}
}

// What cannot be read leaves the last good state and is reported; what is
// corrected is not reported any more.
func TestClusterKeepsTheLastGoodState(t *testing.T) {
	c := resources(t, map[string]string{"Node/h1": node1, "Node/h9": node9})
	path := resourcePath(api.KindNode, "h9")
	c.update(store.Event{Entry: store.Entry{Path: path, Value: []byte(`{"kind":"Node"`)}})
	if p := c.plan("h1"); len(p.sessions) != 1 || len(p.problems) != 1 {
		t.Errorf("%s%v", p.text(), p.problems)
	}
	put(c, "Node/h9", node9)
	if p := c.plan("h1"); len(p.sessions) != 1 || len(p.problems) != 0 {
		t.Errorf("%s%v", p.text(), p.problems)
	}
	c.update(store.Event{Entry: store.Entry{Path: path}, Deleted: true})
	c.update(store.Event{Entry: store.Entry{Path: api.Root + "nodes/", Value: []byte("x")}})
	c.update(store.Event{Entry: store.Entry{Path: "/elsewhere", Value: []byte("x")}})
	if p := c.plan("h1"); len(p.sessions) != 0 || len(p.problems) != 0 {
		t.Errorf("%s%v", p.text(), p.problems)
	}
	if len(c.stored) != 1 {
		t.Errorf("%d resources are kept for a restart", len(c.stored))
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(node1, node2, `{"peerIP":"[fd00::9]:1","asNumber":1}`, `{"listenPort":1}`)
	f.Add(`{"bgp":{"ipv4Address":"::ffff:1.2.3.4"}}`, `{"bgp":{"ipv6Address":"fe80::1%eth0/64"}}`, `{"peerIP":":","asNumber":"1.1"}`, `{"nodeMeshMaxRestartTime":"-1s"}`)
	f.Add(`{"bgp":null}`, `null`, `{"peerIP":"[","peerSelector":"all()"}`, `{"asNumber":0}`)
	f.Fuzz(func(t *testing.T, n1, n2, peer, config string) {
		c := newCluster(slog.New(slog.DiscardHandler))
		put(c, "Node/h1", n1)
		put(c, "Node/h2", n2)
		put(c, "BGPPeer/p", peer)
		put(c, "BGPConfiguration/default", config)
		for addr, s := range c.plan("h1").sessions {
			if addr != s.peer || !s.local.IsValid() || s.local.Is4() != addr.Is4() || s.as == 0 || s.port == 0 || s.restart < time.Second || s.restart > maxRestart {
				t.Errorf("%v", s)
			}
		}
	})
}
