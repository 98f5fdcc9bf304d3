package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"tortie/config"
)

// ports are the TCP listeners that the configuration asks for: health as
// upstream serves it, and metrics. The socket has both in any case.
type ports struct {
	servers []*http.Server
}

// openPorts serves what cfg asks for. A port that cannot be had is an error:
// somebody watches it.
func (l *loop) openPorts(ctx context.Context, cfg config.Config) (*ports, error) {
	p := &ports{}
	if cfg.HealthEnabled {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /liveness", l.page(ctx, "application/json", l.showHealth))
		mux.HandleFunc("GET /readiness", l.page(ctx, "text/plain; charset=utf-8", l.showReady))
		if err := p.listen("health", cfg.HealthHost, cfg.HealthPort, mux); err != nil {
			return nil, err
		}
	}
	if cfg.PrometheusMetricsEnabled {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", l.metrics.handler())
		if err := p.listen("metrics", cfg.PrometheusMetricsHost, cfg.PrometheusMetricsPort, mux); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *ports) listen(what, host string, port uint16, handler http.Handler) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	p.servers = append(p.servers, s)
	go func() { _ = s.Serve(listener) }() // until close
	return nil
}

func (p *ports) close() {
	if p == nil {
		return
	}
	for _, s := range p.servers {
		_ = s.Close()
	}
}
