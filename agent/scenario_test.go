package agent

import (
	"fmt"
	"testing"

	"tortie/api"
)

// scenario is a host with three guests: the client may reach the server, the
// other may not. Nothing but the server's own ingress policy is against it: the
// other may send what it likes.
type scenario struct {
	*testHost
	client, server, other *guest
	revision              int64 // of the last write
}

func policyOf(name string) api.Key { return api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name} }

func apiKey(kind api.Kind, name string) api.Key { return api.Key{Kind: kind, Name: name} }

// policyDoc is a policy for both directions; a rule list without brackets.
func policyDoc(name, selector, ingress, egress string) string {
	return fmt.Sprintf(`{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":%q},`+
		`"spec":{"order":100,"selector":%q,"types":["Ingress","Egress"],"ingress":[%s],"egress":[%s]}}`, name, selector, ingress, egress)
}

const (
	allow       = `{"action":"Allow"}`
	fromClients = `{"action":"Allow","source":{"selector":"role == \"client\""}}`
)

// newScenario puts all of it into the store; the agent is not running yet.
func newScenario(t *testing.T) *scenario {
	return newScenarioOn(t, func(*testHost) {})
}

// newScenarioOn prepares the host first.
func newScenarioOn(t *testing.T, prepare func(*testHost)) *scenario {
	s := &scenario{testHost: newHost(t)}
	prepare(s.testHost)
	s.client, s.server, s.other = s.guest(), s.guest(), s.guest()
	s.init()
	s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, fromClients, allow))
	s.put(policyOf("clients"), policyDoc("clients", `role in {"client", "other"}`, allow, allow))
	s.put(s.client.key, s.client.bound(`{"role":"client"}`))
	s.put(s.other.key, s.other.endpoint(`{"role":"other"}`))
	s.revision = s.put(s.server.key, s.server.bound(`{"role":"server"}`))
	return s
}

// run starts the agent and waits until it enforces what is in the store.
func (s *scenario) run() {
	s.t.Helper()
	s.start(true)
	s.settle(s.revision)
}

// rate of streams, datagrams a second.
const rate = 2000

// streams of both families from the client, none of which may be lost, and
// from the other, none of which may arrive.
func (s *scenario) streams() (allowed, denied []*stream) {
	s.t.Helper()
	const base = 9000 // the first port
	for i, f := range families {
		allowed = append(allowed, s.stream(s.client, s.server, f, base+2*i, rate))
		denied = append(denied, s.stream(s.other, s.server, f, base+2*i+1, rate))
	}
	for _, a := range allowed {
		a.flows()
	}
	return allowed, denied
}
