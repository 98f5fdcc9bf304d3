package agent

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tortie/api"
	"tortie/explain"
	"tortie/verify"
)

// doubter is a verifier that, while it doubts, knows nothing of a policy: as if
// the agent had understood the object wrongly.
type doubter struct {
	*verify.Reader
	doubts *atomic.Bool
	policy api.Key
}

func (d *doubter) Findings(host string, c *explain.Cluster, index func(string) uint32) ([]string, error) {
	if d.doubts.Load() {
		c.Delete(d.policy)
	}
	return d.Reader.Findings(host, c, index)
}

// The agent proves that its kernel does what policy says, again and again, while
// policy changes too; where it does not, it says so, with a packet.
func TestAudit(t *testing.T) {
	var doubts atomic.Bool
	s := newScenarioOn(t, func(h *testHost) {
		h.env = []string{"FELIX_POLICYAUDITINTERVAL=100ms", "FELIX_FLOATINGIPS=Enabled"}
		h.verifier = func() (Verifier, error) {
			r, err := verify.Open()
			return &doubter{r, &doubts, policyOf("clients")}, err
		}
	})
	const limit = 2 * time.Minute // an audit has the lowest priority
	proven := func() float64 { return s.metric("tortie_agent_proven_timestamp_seconds") }
	again := func(what string) {
		t.Helper()
		since := float64(time.Now().UnixNano()) / 1e9
		s.awaitFor(limit, what, func() bool { return proven() > since })
	}
	s.run()
	again("the first proof")
	for i := range 20 { // audits and changes at the same time
		ingress := []string{fromClients, allow}[i%2]
		s.settle(s.put(policyOf("servers"), policyDoc("servers", `role == "server"`, ingress, allow)))
	}
	again("a proof of what changed")
	if n := s.metric("tortie_agent_audit_findings"); n != 0 || s.metric("tortie_agent_audit_seconds") <= 0 {
		t.Errorf("%v findings", n)
	}
	problems := func() string {
		text, err := s.show("/show/problems")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if text := problems(); text != "" {
		t.Errorf("problems: %s", text)
	}
	doubts.Store(true)
	s.awaitFor(limit, "a finding", func() bool { return s.metric("tortie_agent_audit_findings") > 0 })
	s.await("it to be shown", func() bool { return strings.Contains(problems(), "passes, and policy denies it") })
	if s.said("the kernel is not known to do what policy says") == 0 {
		t.Error("it is not in the log")
	}
	doubts.Store(false)
	again("a proof")
	s.awaitFor(limit, "no problem", func() bool { return problems() == "" })
}
