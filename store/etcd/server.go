package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// ServeConfig says how to run the embedded server. Only Dir must be set.
type ServeConfig struct {
	// Dir holds the data. It is made if it is not there.
	Dir string
	// Listen are the URLs for clients, http://address:port or https://…;
	// port 0 takes a free one. Default http://127.0.0.1:2379.
	Listen []string
	// CertFile and KeyFile are the server's, for https. With ClientCAFile
	// clients must show a certificate of that authority. Certificate and key
	// are read again for each connection.
	CertFile, KeyFile, ClientCAFile string
	// QuotaBytes is the most that the data may take. Default 4 GiB.
	QuotaBytes int64
	// CompactionMode is "periodic" (default) or "revision"; history older
	// than CompactionRetention (default "30m", or "50000" revisions) goes.
	CompactionMode, CompactionRetention string
	// StartTimeout bounds the start. Default 60 s.
	StartTimeout time.Duration
	// Log gets the server's warnings and errors.
	Log *slog.Logger
}

// Server is an embedded etcd with one member.
type Server struct {
	etcd   *embed.Etcd
	closed *atomic.Bool       // silences the log
	stop   context.CancelFunc // ends clients' streams
}

// walSegment makes an empty data directory small: two segments are allocated
// at once. It is a variable of the process, so it is set only once.
var walSegment sync.Once

// Serve starts the server and returns when it is ready for clients. It has no
// port for other members.
func Serve(cfg ServeConfig) (*Server, error) {
	walSegment.Do(func() { wal.SegmentSizeBytes = 8 << 20 })
	closed := new(atomic.Bool)
	ec, err := cfg.embed(closed)
	if err != nil {
		return nil, fmt.Errorf("serve etcd: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ec.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(stoppable(ctx))}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		stop()
		return nil, fmt.Errorf("serve etcd in %s: %w", cfg.Dir, err)
	}
	s := &Server{etcd: e, closed: closed, stop: stop}
	timeout := cfg.StartTimeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	select {
	case <-e.Server.ReadyNotify():
		return s, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-time.After(timeout):
		err = fmt.Errorf("not ready after %v", timeout)
	}
	s.Close()
	return nil, fmt.Errorf("serve etcd in %s: %w", cfg.Dir, err)
}

// embed translates the configuration.
func (cfg ServeConfig) embed(closed *atomic.Bool) (*embed.Config, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no data directory is given")
	}
	if cfg.KeyFile != "" {
		if err := checkKeyFile(cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ec := embed.NewConfig()
	ec.Name = "tortie"
	ec.Dir = cfg.Dir
	ec.InitialCluster = ec.InitialClusterFromName(ec.Name)
	// A data directory that is made anew is another cluster, which is how
	// clients notice that they were connected to something else before.
	ec.InitialClusterToken = rand.Text()
	ec.ListenPeerUrls = nil // a single member talks to no other
	listen := cfg.Listen
	if len(listen) == 0 {
		listen = []string{"http://127.0.0.1:2379"}
	}
	ec.ListenClientUrls = nil
	for _, l := range listen {
		u, err := url.Parse(l)
		if err != nil {
			return nil, fmt.Errorf("listen address: %w", err)
		}
		ec.ListenClientUrls = append(ec.ListenClientUrls, *u)
	}
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	ec.ClientTLSInfo = transport.TLSInfo{
		CertFile: cfg.CertFile, KeyFile: cfg.KeyFile,
		TrustedCAFile: cfg.ClientCAFile, ClientCertAuth: cfg.ClientCAFile != "",
	}
	ec.QuotaBackendBytes = cfg.QuotaBytes
	if ec.QuotaBackendBytes == 0 {
		ec.QuotaBackendBytes = 4 << 30
	}
	ec.AutoCompactionMode, ec.AutoCompactionRetention = cfg.compaction()
	ec.EnableGRPCGateway = false
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(slogCore{log, closed}))
	return ec, nil
}

func (cfg ServeConfig) compaction() (mode, retention string) {
	mode, retention = cfg.CompactionMode, cfg.CompactionRetention
	if mode == "" {
		mode = embed.CompactorModePeriodic
	}
	if retention == "" {
		retention = "30m"
		if mode == embed.CompactorModeRevision {
			retention = "50000"
		}
	}
	return mode, retention
}

// Endpoints returns the addresses that the server listens on, in the form that
// Config.Endpoints takes.
func (s *Server) Endpoints() []string {
	scheme := "http"
	if !s.etcd.Config().ClientTLSInfo.Empty() {
		scheme = "https"
	}
	var endpoints []string
	for _, l := range s.etcd.Clients {
		endpoints = append(endpoints, scheme+"://"+l.Addr().String())
	}
	return endpoints
}

// Err delivers an error if the server fails while it runs.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Close stops the server. Streams of clients are ended first, for which etcd
// would otherwise wait for several seconds. Closing again does nothing.
func (s *Server) Close() {
	if s.closed.Swap(true) {
		return
	}
	s.stop()
	s.etcd.Close()
}

// stoppable ends a stream when ctx ends.
func stoppable(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, st grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		limited, cancel := context.WithCancel(st.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return handler(srv, stoppableStream{st, limited})
	}
}

type stoppableStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context replaces the stream's own.
func (s stoppableStream) Context() context.Context { return s.ctx }
