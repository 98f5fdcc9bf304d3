package agent

import (
	"fmt"
	"strings"
	"testing"
)

// holePolicy is one of many policies for the server that all forbid the other's
// datagrams to their port and allow everything else. It is large enough to be
// led to by port, has lists of ports and nets, and each is another.
func holePolicy(n int, forbidden []int) string {
	var rules []string
	for i := range 8 {
		rules = append(rules, fmt.Sprintf(`{"action":"Deny","protocol":"UDP","source":{"nets":["192.0.2.%d/32","198.51.100.%d/32"]},"destination":{"ports":[%d,%d]}}`,
			(n+i)%250, (n*7+i)%250, 20000+(n*13+i*100)%2000, 30000+(n+i*50)%1000))
	}
	var ports []string
	for _, p := range forbidden {
		ports = append(ports, fmt.Sprint(p))
	}
	if n%3 == 0 {
		ports = append(ports, fmt.Sprint(40000+n%1000))
	}
	rules = append(rules,
		fmt.Sprintf(`{"action":"Deny","protocol":"UDP","source":{"selector":"role == \"other\""},"destination":{"ports":[%s]}}`, strings.Join(ports, ",")),
		`{"action":"Allow"}`)
	at := n % len(rules[:8])
	rules[0], rules[at] = rules[at], rules[0]
	return policyDoc("servers", `role == "server"`, strings.Join(rules, ","), allow)
}

// While thousands of changes are written, what is forbidden before and after
// each never passes, and what is allowed before and after each is never lost.
func TestNoTransientHole(t *testing.T) {
	s := newScenario(t)
	streams := map[bool][]*stream{}
	var forbidden []int
	for i := range families {
		forbidden = append(forbidden, 9100+i)
	}
	s.revision = s.put(policyOf("servers"), holePolicy(0, forbidden))
	s.run()
	for i, f := range families {
		streams[false] = append(streams[false], s.stream(s.other, s.server, f, forbidden[i], rate))
		streams[true] = append(streams[true], s.stream(s.client, s.server, f, 9200+i, rate))
		streams[true][i].flows()
	}
	for n := 1; n <= 10000; n++ {
		if rev := s.put(policyOf("servers"), holePolicy(n, forbidden)); n%4 == 0 {
			s.settle(rev)
		}
		// New connections are judged by whatever is there just now.
		if n%50 == 0 {
			for i, f := range families {
				st := s.stream(s.other, s.server, f, 9300+2*n/50+i, rate)
				st.flows()
				st.complete()
			}
		}
	}
	for _, st := range streams[true] {
		st.complete()
	}
	for _, st := range streams[false] {
		st.never()
	}
}
