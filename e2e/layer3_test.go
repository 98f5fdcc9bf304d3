package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tortie/lab"
)

const routerAS = 4200000700

func hostAS(number int) int { return 4200000600 + number }

// Promise F14: a layer-3 fabric: each host in a network of its own, a router between them that speaks eBGP with each.
// Promise I4: an AS for each server, of four bytes, and no route reflectors.
// Promise I7: eBGP sets the next hop to the speaker.
// Promise L1: anything that carries IP is a fabric.
func TestLayer3Fabric(t *testing.T) {
	s := up(t, "layer3", lab.Shape{Hosts: 3, Routed: true, Workloads: lab.DefaultWorkloads(3, 2)})
	bird := s.bird(t)
	s.speakWithRouter(t)
	s.settle(t)
	for _, h := range s.Hosts() {
		router4, router6 := s.Router(h)
		var got, want []string
		routes, err := s.Routes(h.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Protocol == 81 {
				got = append(got, fmt.Sprintf("%s via %s", r.Dst, r.Gw))
			}
		}
		for _, w := range s.Workloads() {
			if w.Host != h.Name {
				want = append(want, fmt.Sprintf("%s/32 via %s", w.IPv4, router4), fmt.Sprintf("%s/128 via %s", w.IPv6, router6))
			}
		}
		same(t, "learned routes of "+h.Name, got, want)
	}
	if m := s.matrix(t, lab.MatrixOptions{}); m.Reached() != len(m.Cells) {
		t.Errorf("without policy:\n%s", m)
	}
	t.Run("floating addresses", func(t *testing.T) { testFloating(t, s) })
	end := s.capture(t, "fabric", func(f lab.Frame, found *findings) {
		switch a, b := f.Addrs(); f.Protocol() {
		case 4, 41, 47, 50: // IP in IP, GRE, ESP
			found.add("a tunnel from %s to %s", a, b)
		}
	})
	s.examples(t)
	allowed := s.stream(t, "web-1", "app-1")
	denied := s.attempt(t, "db-1", "web-1")
	for _, h := range s.Hosts() {
		s.kill(t, h.Name, lab.Processes()...)
	}
	wait(500 * time.Millisecond)
	for _, h := range s.Hosts() {
		s.start(t, h.Name, lab.Processes()...)
	}
	s.settle(t)
	allowed()
	denied()
	end()
	s.matrix(t, lab.MatrixOptions{})
	if out := s.sh(t, "fabric", "birdc", "-s", bird, "show", "protocols"); strings.Count(out, "Established") != 2*len(s.Hosts()) {
		t.Errorf("sessions of the router:\n%s", out)
	}
}

// bird runs BIRD on the router until the test ends, and returns its socket.
func (s *site) bird(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("log stderr all;\nrouter id 192.0.2.254;\nprotocol device { scan time 1; }\n" +
		"protocol kernel { ipv4 { import none; export all; }; }\nprotocol kernel { ipv6 { import none; export all; }; }\n")
	for _, h := range s.Hosts() {
		r4, r6 := s.Router(h)
		for family, pair := range map[string][2]netip.Addr{"ipv4": {r4, h.IPv4}, "ipv6": {r6, h.IPv6}} {
			fmt.Fprintf(&b, "protocol bgp host%d_%s {\n\tlocal %s as %d;\n\tneighbor %s as %d;\n\tconnect retry time 1;\n\tgraceful restart aware;\n"+
				"\t%s { import all; export all; };\n}\n", h.Number, family, pair[0], routerAS, pair[1], hostAS(h.Number), family)
		}
	}
	file, socket := filepath.Join(s.Dir(), "bird.conf"), filepath.Join(s.Dir(), "bird.ctl")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, err := s.Command(s.ctx, "fabric", "bird", "-f", "-c", file, "-s", socket, "-P", filepath.Join(s.Dir(), "bird.pid"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.RunDir("fabric"), "bird.log"))
	if err == nil {
		cmd.Stdout, cmd.Stderr = log, log
		err = s.In("fabric", cmd.Start)
	}
	if err != nil {
		t.Fatalf("start bird: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	return socket
}

// speakWithRouter turns the mesh off and has each host speak with the router.
func (s *site) speakWithRouter(t *testing.T) {
	t.Helper()
	object := func(kind, name, spec string) string {
		return fmt.Sprintf(`{"apiVersion":"projectcalico.org/v3","kind":%q,"metadata":{"name":%q},"spec":{%s}}`, kind, name, spec)
	}
	documents := []string{object("BGPConfiguration", "default", `"nodeToNodeMeshEnabled":false`)}
	for _, h := range s.Hosts() {
		r4, r6 := s.Router(h)
		documents = append(documents,
			object("Node", h.Name, fmt.Sprintf(`"bgp":{"asNumber":%d,"ipv4Address":"%s/30","ipv6Address":"%s/64"}`, hostAS(h.Number), h.IPv4, h.IPv6)),
			object("BGPPeer", h.Name+"-v4", fmt.Sprintf(`"node":%q,"peerIP":%q,"asNumber":%d`, h.Name, r4, routerAS)),
			object("BGPPeer", h.Name+"-v6", fmt.Sprintf(`"node":%q,"peerIP":%q,"asNumber":%d`, h.Name, r6, routerAS)))
	}
	if out, err := s.tortie(strings.Join(documents, "\n---\n"), "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
