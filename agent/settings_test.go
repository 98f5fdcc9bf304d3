package agent

import (
	"fmt"
	"strings"
	"testing"

	"tortie/api"
)

// A policy whose tier does not exist is shown, until one of both is changed.
func TestMissingTierIsShown(t *testing.T) {
	s := newScenario(t)
	s.run()
	policy, doc := object(api.KindGlobalNetworkPolicy, "", "p", "", `"tier":"security","selector":"all()","types":["Ingress"],"ingress":[{"action":"Allow"}]`)
	tier, tierDoc := object(api.KindTier, "", "security", "", `"order":10`)
	shows := func(revision int64, want string) {
		t.Helper()
		s.settle(revision)
		if text, err := s.show("/show/problems"); err != nil || text != want {
			t.Errorf("%q, %v; want %q", text, err, want)
		}
	}
	const missing = `GlobalNetworkPolicy(p) spec.tier: "security": there is no such tier: the policy comes after those of all tiers that there are` + "\n"
	shows(s.put(policy, doc), missing)
	shows(s.put(tier, tierDoc), "")
	shows(s.delete(tier), missing)
	shows(s.delete(policy), "")
}

// What is wrong with the configuration is shown with the object and the field,
// also when it comes to be wrong without a change of what is in force.
func TestBadSettingsAreShown(t *testing.T) {
	s := newScenario(t)
	s.env = append(s.env, "FELIX_HEALTHPORT=x")
	key := apiKey(api.KindFelixConfiguration, "default")
	felix := func(spec string) {
		s.settle(s.put(key, `{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{`+spec+`}}`))
	}
	shows := func(want string, yes bool) {
		t.Helper()
		s.await(fmt.Sprintf("%q among the problems: %v", want, yes), func() bool {
			text, err := s.show("/show/problems")
			return err == nil && strings.Contains(text, want) == yes
		})
	}
	s.run()
	shows("environment FELIX_HEALTHPORT: \"x\"", true)
	const field = "FelixConfiguration(default) spec.routeRefreshInterval"
	shows(field, false)
	felix(`"routeRefreshInterval":"often"`)
	shows(field, true)
	felix(`"routeRefreshInterval":"45s"`) // which has the agent start over
	shows(field, false)
	felix(`"ipv6Support":false`)
	shows("Ipv6Support=false is not acted upon", true)
	s.settle(s.delete(key))
	shows("Ipv6Support", false)
	shows("environment FELIX_HEALTHPORT", true)
}
