package api

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// nameRule reports what is wrong with a resource's name, "" if nothing is.
type nameRule func(name string) string

const (
	label     = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
	subdomain = label + `(\.` + label + `)*`
)

var (
	labelRE         = regexp.MustCompile(`^` + label + `$`)
	subdomainRE     = regexp.MustCompile(`^` + subdomain + `$`)
	globalPolicyRE  = regexp.MustCompile(`^(` + label + `\.)?` + label + `$`)
	networkPolicyRE = regexp.MustCompile(`^((` + label + `\.)?` + label + `|(knp|ossg)\.default\.` + subdomain + `)$`)
)

func nameMatching(re *regexp.Regexp, limit int, want string) nameRule {
	return func(name string) string {
		if len(name) > limit || !re.MatchString(name) {
			return fmt.Sprintf("want %s of at most %d characters", want, limit)
		}
		return ""
	}
}

var (
	nameSubdomain     = nameMatching(subdomainRE, 253, "lower-case letters, digits, '-' and '.' (a DNS subdomain)")
	nameLabel         = nameMatching(labelRE, 63, "lower-case letters, digits and '-' (a DNS label)")
	nameGlobalPolicy  = nameMatching(globalPolicyRE, 253, "DNS labels with at most one dot")
	nameNetworkPolicy = nameMatching(networkPolicyRE, 253, "DNS labels with at most one dot, or knp.default.* or ossg.default.*")
)

// nameWorkloadEndpoint does not hold names to DNS rules: nodes and workloads
// of OpenStack do not follow them.
func nameWorkloadEndpoint(name string) string {
	if _, err := ParseWorkloadName(name); err != nil {
		return err.Error()
	}
	return ""
}

func nameDefault(name string) string {
	if name != "default" {
		return `the only one is called "default"`
	}
	return ""
}

func nameGlobalOrNode(name string) string {
	if node, ok := strings.CutPrefix(name, "node."); name != "default" && (!ok || node == "") {
		return `want "default" or "node.<name>"`
	}
	return nameSubdomain(name)
}

// WorkloadName is what the name of a WorkloadEndpoint is made of. Workload is
// the pod, container or instance.
type WorkloadName struct {
	Node         string
	Orchestrator string
	Workload     string
	Endpoint     string
}

var errWorkloadName = errors.New("want node-orchestrator-workload-endpoint, with each '-' inside a part doubled")

// String composes the name.
func (n WorkloadName) String() string {
	return n.Prefix() + escapeDash(n.Workload) + "-" + escapeDash(n.Endpoint)
}

// Prefix is what all names of this node and orchestrator begin with. A name
// with this prefix must still be parsed: the prefix of a node "a" is also one
// of names that begin with an "a-".
func (n WorkloadName) Prefix() string { return escapeDash(n.Node) + "-" + n.Orchestrator + "-" }

// Check reports an identity that cannot be made into a name.
func (n WorkloadName) Check() error {
	for _, part := range []string{n.Node, n.Orchestrator, n.Workload, n.Endpoint} {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' {
			return fmt.Errorf("%q: a part of a name must not be empty, nor begin or end with '-'", part)
		}
	}
	if strings.Contains(n.Orchestrator, "-") {
		return fmt.Errorf("%q: an orchestrator must not contain '-'", n.Orchestrator)
	}
	return nil
}

func escapeDash(s string) string { return strings.ReplaceAll(s, "-", "--") }

// ParseWorkloadName takes the name of a WorkloadEndpoint apart.
func ParseWorkloadName(name string) (WorkloadName, error) {
	var parts [4]string
	n, start, doubled := 0, 0, false
	part := func(end int) bool {
		if n == len(parts) || end == start || name[start] == '-' || name[end-1] == '-' {
			return false
		}
		parts[n] = name[start:end]
		if doubled {
			parts[n] = strings.ReplaceAll(parts[n], "--", "-")
		}
		n, doubled = n+1, false
		return true
	}
	for i := 1; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			doubled = true
			i++
			continue
		}
		if !part(i) {
			return WorkloadName{}, errWorkloadName
		}
		start = i + 1
	}
	if start >= len(name) || !part(len(name)) || n != len(parts) {
		return WorkloadName{}, errWorkloadName
	}
	return WorkloadName{Node: parts[0], Orchestrator: parts[1], Workload: parts[2], Endpoint: parts[3]}, nil
}

// Identity is what the endpoint's name is made of, according to its spec.
func (s *WorkloadEndpointSpec) Identity() WorkloadName {
	n := WorkloadName{Node: s.Node, Orchestrator: s.Orchestrator, Workload: s.Workload, Endpoint: s.Endpoint}
	switch s.Orchestrator {
	case "k8s":
		n.Workload = s.Pod
	case "cni":
		n.Workload = s.ContainerID
	case "libnetwork":
		n.Workload = "libnetwork"
	}
	return n
}
