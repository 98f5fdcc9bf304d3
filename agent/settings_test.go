package agent

import (
	"fmt"
	"strings"
	"testing"

	"tortie/api"
)

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
