package agent

import (
	"context"
	"strings"
	"testing"

	"tortie/api"
	"tortie/store"
)

// A template makes endpoints of the interfaces that match it while the host's
// Node has a label, and policy on the template's label is enforced on them. As
// such they let everything pass. A restart changes nothing.
//
// Promise B14: templates make host endpoints by label and interface.
func TestTemplates(t *testing.T) {
	s := newHostScenario(t, "none", "none")
	node := func(labels string) {
		s.set(apiKey("Node", "h1"), `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1","labels":{`+labels+`}},"spec":{}}`)
	}
	made := func(want ...string) {
		t.Helper()
		var entries []store.Entry
		s.await("these endpoints: "+strings.Join(want, " "), func() (ok bool) {
			var err error
			if entries, _, err = s.store.List(context.Background(), api.Prefix(api.KindHostEndpoint)); err != nil || len(entries) != len(want) {
				return false
			}
			for i, e := range entries {
				key, _ := api.ParsePath(e.Path)
				if key.Name != want[i] {
					return false
				}
			}
			return true
		})
		for _, e := range entries {
			s.settle(e.Revision)
		}
	}
	in, out, through := [2]*guest{s.out, s.host}, [2]*guest{s.host, s.out}, [2]*guest{s.out, s.server}
	open := map[[2]*guest]bool{in: true, out: true, through: true}
	s.expect(open)
	node(`"rack":"7"`)
	s.set(apiKey(api.KindKubeControllersConfiguration, "default"), `{"kind":"KubeControllersConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"controllers":{"node":{"hostEndpoint":{
		"autoCreate":"Enabled","createDefaultHostEndpoint":"Disabled","templates":[{"generateName":"up","interfacePattern":"^up[0-9]$","nodeSelector":"has(rack)","labels":{"host":"yes"}}]}}}}}`)
	made("h1-up-up0-auto-hep")
	s.expect(open)
	s.set(policyOf("deny"), onHosts("deny", `"types":["Ingress"],"ingress":[{"action":"Deny"}]`))
	s.expect(map[[2]*guest]bool{in: false, out: true, through: true})
	s.ns.Run(t, "ip", "link", "add", "up7", "type", "bridge")
	made("h1-up-up0-auto-hep", "h1-up-up7-auto-hep")
	node("")
	made()
	s.expect(open)
	node(`"rack":"8"`)
	made("h1-up-up0-auto-hep", "h1-up-up7-auto-hep")
	s.expect(map[[2]*guest]bool{in: false, out: true})
	written := s.writesOf(apiKey(api.KindHostEndpoint, "h1-up-up0-auto-hep"))
	s.stop()
	s.start(true)
	s.ns.Run(t, "ip", "link", "del", "up7")
	made("h1-up-up0-auto-hep")
	node(`"rack":"9"`)
	if n := written(); n != 2 { // as it was, and the label
		t.Errorf("it was written %d times, want 2", n)
	}
	s.expect(map[[2]*guest]bool{in: false, out: true})
	// What its operator makes of it by hand is as it is.
	s.set(hostKey("h1-up-up0-auto-hep"), hostDoc("h1-up-up0-auto-hep", `"interfaceName":"up0"`))
	s.await("the problem to be said", func() bool {
		text, err := s.show("/show/problems")
		return err == nil && strings.Contains(text, "host endpoint h1-up-up0-auto-hep was made by somebody else")
	})
	s.set(apiKey(api.KindKubeControllersConfiguration, "default"), "")
	made("h1-up-up0-auto-hep")
	s.expect(map[[2]*guest]bool{in: false, out: false})
}
