package agent

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tortie/api"
)

// metrics are the agent's own; a registry of their own keeps those of linked
// libraries out.
type metrics struct {
	registry    *prometheus.Registry
	compute     prometheus.Histogram
	apply       prometheus.Histogram
	writes      prometheus.Counter
	failures    prometheus.Counter
	repairs     prometheus.Counter
	applied     prometheus.Gauge
	isConnected prometheus.Gauge
	foreign     prometheus.Gauge
	endpoints   *prometheus.GaugeVec
	problems    *prometheus.GaugeVec
	logged      prometheus.Counter
	denied      prometheus.Counter
	logLost     *prometheus.CounterVec
	proven      prometheus.Gauge
	findings    prometheus.Gauge
	auditTime   prometheus.Gauge
}

func newMetrics() *metrics {
	buckets := prometheus.ExponentialBuckets(0.0001, 2, 16)
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		compute:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tortie_agent_compute_seconds", Help: "Time to work out what the host should have, for each batch.", Buckets: buckets}),
		apply:       prometheus.NewHistogram(prometheus.HistogramOpts{Name: "tortie_agent_apply_seconds", Help: "Time to bring the kernel to it, for each batch.", Buckets: buckets}),
		writes:      prometheus.NewCounter(prometheus.CounterOpts{Name: "tortie_agent_kernel_writes_total", Help: "Kernel objects written or removed."}),
		failures:    prometheus.NewCounter(prometheus.CounterOpts{Name: "tortie_agent_apply_failures_total", Help: "Applies of which a part failed and was retried."}),
		repairs:     prometheus.NewCounter(prometheus.CounterOpts{Name: "tortie_agent_foreign_changes_total", Help: "Times another program was seen to change what is ours."}),
		applied:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_applied_revision", Help: "Store revision that the kernel enforces."}),
		isConnected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_datastore_connected", Help: "1 while the datastore can be reached."}),
		foreign:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_foreign_drops", Help: "Chains of other tables that may drop what policy allows."}),
		endpoints:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tortie_agent_endpoints", Help: "Local endpoints by status."}, []string{"status"}),
		problems:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tortie_agent_object_problems", Help: "Fields of objects that are bad, or whose feature is not built."}, []string{"kind", "why"}),
		logged:      prometheus.NewCounter(prometheus.CounterOpts{Name: "tortie_agent_logged_packets_total", Help: "Packets of Log rules that have a line in the log."}),
		denied:      prometheus.NewCounter(prometheus.CounterOpts{Name: "tortie_agent_denied_packets_total", Help: "Denied packets that the kernel handed on, within its limits; how many were denied is in the counters of rules."}),
		logLost:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tortie_agent_log_lost_total", Help: "Packets of Log rules that have none: too many, lost by the kernel, or not wanted at this level."}, []string{"reason"}),
		proven:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_proven_timestamp_seconds", Help: "When the kernel's rules were last proven to do what policy says; time() less this is for how long nobody knows."}),
		findings:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_audit_findings", Help: "In how many ways the last audit found that they do not, or could not decide."}),
		auditTime:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "tortie_agent_audit_seconds", Help: "What the last audit took."}),
	}
	m.registry.MustRegister(m.compute, m.apply, m.writes, m.failures, m.repairs, m.applied, m.isConnected, m.foreign, m.endpoints, m.problems,
		m.logged, m.denied, m.logLost, m.proven, m.findings, m.auditTime)
	for _, reason := range []string{lostLimit, lostKernel, lostLevel} {
		m.logLost.WithLabelValues(reason) // a rate needs the zero before the first
	}
	return m
}

// handler serves the agent's metrics and those of the libraries in it.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(prometheus.Gatherers{m.registry, prometheus.DefaultGatherer}, promhttp.HandlerOpts{})
}

func (m *metrics) observe(compute, apply time.Duration, writes int) {
	m.compute.Observe(compute.Seconds())
	m.apply.Observe(apply.Seconds())
	m.writes.Add(float64(writes))
}

func (m *metrics) connected(yes bool) {
	if yes {
		m.isConnected.Set(1)
	} else {
		m.isConnected.Set(0)
	}
}

func (m *metrics) problem(kind api.Kind, p api.Problem, delta float64) {
	why := "bad"
	if p.Unsupported {
		why = "unsupported"
	}
	m.problems.WithLabelValues(string(kind), why).Add(delta)
}
