package api

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// FelixRoot is the path that all status is below.
const FelixRoot = "/calico/felix/v2/"

// AppliedRoot and WaitRoot are the paths that applied revisions and the wishes
// to know them are below.
const (
	AppliedRoot = "/tortie/v1/host/"
	WaitRoot    = "/tortie/v1/wait/"
)

var regionRE = regexp.MustCompile(`^` + label + `$`)

// CheckRegion reports an OpenStack region that cannot be part of a path.
// The empty region is none.
func CheckRegion(region string) error {
	if region != "" && (len(region) > 46 || !regionRE.MatchString(region)) {
		return fmt.Errorf("region %q: want lower-case letters, digits and '-', at most 46 characters", region)
	}
	return nil
}

// StatusPrefix is the path that the status of a region's hosts is below.
func StatusPrefix(region string) string {
	if region == "" {
		return FelixRoot + "no-region/host/"
	}
	return FelixRoot + "region-" + region + "/host/"
}

// LivenessPath is where a host says, on a lease, that it is alive. The value
// is a StatusReport.
func LivenessPath(region, host string) string { return StatusPrefix(region) + host + "/status" }

// LastReportPath is where the last StatusReport stays.
func LastReportPath(region, host string) string {
	return StatusPrefix(region) + host + "/last_reported_status"
}

// EndpointStatusPrefix is the path that the EndpointStatus of a host's
// endpoints is below.
func EndpointStatusPrefix(region, host string) string {
	return StatusPrefix(region) + host + "/workload/"
}

// EndpointStatusPath is where a host reports the EndpointStatus of a workload
// endpoint. The endpoint's name must be well formed.
func EndpointStatusPath(region, host string, endpoint Key) (string, error) {
	name, err := ParseWorkloadName(endpoint.Name)
	if err != nil {
		return "", fmt.Errorf("status path of %v: %w", endpoint, err)
	}
	return EndpointStatusPrefix(region, host) + escapePath(name.Orchestrator) + "/" +
		escapePath(endpoint.Namespace+"/"+name.Workload) + "/endpoint/" + escapePath(name.Endpoint), nil
}

// StatusReport is a sign of life of a host.
type StatusReport struct {
	Time        string  `json:"time"`   // RFC 3339, UTC, seconds
	Uptime      float64 `json:"uptime"` // seconds
	FirstUpdate bool    `json:"first_update"`
}

// EndpointStatus is the state of an endpoint: StatusUp, StatusDown or
// StatusError.
type EndpointStatus struct {
	Status string `json:"status"`
}

// The states of an endpoint.
const (
	StatusUp    = "up"
	StatusDown  = "down"
	StatusError = "error"
)

// AppliedPath is where a host says which revision it enforces.
func AppliedPath(host string) string { return AppliedRoot + host + "/applied" }

// ParseAppliedPath returns the host of an AppliedPath.
func ParseAppliedPath(path string) (host string, ok bool) {
	host, ok = strings.CutPrefix(path, AppliedRoot)
	if ok {
		host, ok = strings.CutSuffix(host, "/applied")
	}
	return host, ok && host != "" && !strings.Contains(host, "/")
}

// WaitPath is the key that exists, on a lease, while somebody waits for
// applied revisions.
func WaitPath(id string) string { return WaitRoot + id }

// Applied is the value of an AppliedPath: all changes up to Revision are in
// the host's kernel.
type Applied struct {
	Revision int64  `json:"revision"`
	At       string `json:"at"` // RFC 3339, UTC
}

// Timestamp formats a time as the data model stores it.
func Timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
