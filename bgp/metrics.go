package bgp

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// stats is what the metrics are made of, at one moment.
type stats struct {
	configured, established int
	messages                messages
	exported, imported      int
	stale                   int
	pending                 int // prefixes whose state in the kernel is not right yet
	failures                uint64
	problems                int
}

// metric is one figure of stats.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	get  func(stats) float64
}

// collector reads the stats once for each scrape. read returns false when the
// process is about to end.
type collector struct {
	read    func() (stats, bool)
	metrics []metric
}

func newRegistry(read func() (stats, bool)) *prometheus.Registry {
	c := &collector{read: read}
	add := func(kind prometheus.ValueType, name, help string, get func(stats) float64) {
		c.metrics = append(c.metrics, metric{prometheus.NewDesc("tortie_bgp_"+name, help, nil, nil), kind, get})
	}
	gauge := func(name, help string, get func(stats) int) {
		add(prometheus.GaugeValue, name, help, func(s stats) float64 { return float64(get(s)) })
	}
	counter := func(name, help string, get func(stats) uint64) {
		add(prometheus.CounterValue, name, help, func(s stats) float64 { return float64(get(s)) })
	}
	gauge("sessions", "BGP sessions that the resources ask for.", func(s stats) int { return s.configured })
	gauge("sessions_established", "BGP sessions that are established.", func(s stats) int { return s.established })
	counter("updates_sent_total", "BGP UPDATE messages sent.", func(s stats) uint64 { return s.messages.sent })
	counter("updates_received_total", "BGP UPDATE messages received.", func(s stats) uint64 { return s.messages.received })
	gauge("routes_exported", "Routes to local workloads that are announced.", func(s stats) int { return s.exported })
	gauge("routes_imported", "Learned routes in the kernel.", func(s stats) int { return s.imported })
	gauge("routes_stale", "Learned routes in the kernel that wait for the end of a restart.", func(s stats) int { return s.stale })
	gauge("routes_pending", "Prefixes whose learned route is still to be written or deleted.", func(s stats) int { return s.pending })
	counter("kernel_write_failures_total", "Writes of learned routes that the kernel refused.", func(s stats) uint64 { return s.failures })
	gauge("resource_problems", "Resources, or parts of them, that could not be followed.", func(s stats) int { return s.problems })

	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), c)
	return r
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s, ok := c.read()
	if !ok {
		return
	}
	for _, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.get(s))
	}
}
