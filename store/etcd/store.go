package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"tortie/store"
)

// pageKeys is how many keys one request of a listing returns.
const pageKeys = 2000

// A dead connection is noticed after keepAliveTime and keepAliveTimeout.
const (
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
)

// Store is a client of an etcd cluster.
type Store struct {
	cfg Config
	// client holds the etcd client once there is one, and is empty while
	// somebody makes it: with user and password that needs a connection.
	client chan *clientv3.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

var _ store.Store = (*Store)(nil)

// Open returns a client of the cluster. It checks the configuration and the
// TLS files, and does not wait for a connection.
func Open(cfg Config) (*Store, error) {
	if err := cfg.normalise(); err != nil {
		return nil, fmt.Errorf("open etcd store: %w", err)
	}
	s := &Store{cfg: cfg, client: make(chan *clientv3.Client, 1)}
	if cfg.secure() {
		if _, err := s.credentials().load(); err != nil {
			return nil, fmt.Errorf("open etcd store: %w", err)
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Username != "" {
		s.client <- nil // made on first use
		return s, nil
	}
	c, err := s.dial()
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("open etcd store: %w", err)
	}
	s.client <- c
	return s, nil
}

// Close ends all watches and leases' keep-alive and closes the connection.
func (s *Store) Close() error {
	s.cancel()
	c := <-s.client
	s.client <- nil
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd store: %w", err)
	}
	return nil
}

func (s *Store) credentials() fileCredentials {
	return fileCredentials{caFile: s.cfg.CAFile, certFile: s.cfg.CertFile, keyFile: s.cfg.KeyFile}
}

func (s *Store) dial() (*clientv3.Client, error) {
	options := []grpc.DialOption{
		// A watch decides when to try again; what is left to the connection
		// must not outlast that.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
			MinConnectTimeout: s.cfg.DialTimeout,
		}),
	}
	if s.cfg.secure() {
		options = append(options, grpc.WithTransportCredentials(s.credentials()))
	}
	return clientv3.New(clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		DialTimeout:          s.cfg.DialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxUnaryRetries:      3,
		DialOptions:          options,
		Logger:               zap.NewNop(), // errors are returned, the watch's are logged
		Context:              s.ctx,
	})
}

// etcd returns the etcd client. With user and password the first call needs
// the connection, and fails without.
func (s *Store) etcd(ctx context.Context) (*clientv3.Client, error) {
	var c *clientv3.Client
	select {
	case c = <-s.client:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { s.client <- c }()
	if c != nil {
		return c, nil
	}
	if s.ctx.Err() != nil {
		return nil, errors.New("store is closed")
	}
	made, err := s.dial()
	if err != nil {
		return nil, err
	}
	c = made
	return c, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	for attempt := 1; ; attempt++ {
		var entries []store.Entry
		header, err := s.pages(ctx, prefix, 0, func(kvs []*mvccpb.KeyValue) error {
			for _, kv := range kvs {
				entries = append(entries, entry(kv))
			}
			return nil
		})
		if err == nil {
			return entries, header.revision, nil
		}
		// Compacted between two pages: begin again at the present revision.
		if !errors.Is(err, store.ErrCompacted) || attempt == 3 {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
		}
	}
}

// header is what a response tells of the store as a whole.
type header struct {
	cluster  uint64
	revision int64
}

// pages lists a prefix as of one revision, the present one if 0, and passes on
// each page of keys. It returns the header of the first response, whose
// revision is that of the listing.
func (s *Store) pages(ctx context.Context, prefix string, revision int64, page func([]*mvccpb.KeyValue) error) (header, error) {
	start, end := keyRange(prefix)
	h := header{revision: revision}
	for first := true; ; first = false {
		r, err := s.get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithRev(h.revision))
		if err != nil {
			return h, err
		}
		if first {
			h.cluster = r.Header.ClusterId
		}
		if h.revision == 0 {
			h.revision = r.Header.Revision
		}
		if err := page(r.Kvs); err != nil || !r.More {
			return h, err
		}
		start = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// get is one read request.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.etcd(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.Get(ctx, key, opts...)
	return r, translate(err)
}

// Commit implements store.Store. After a lost connection it is not known
// whether the transaction was written; the error then wraps neither
// store.ErrConflict nor store.ErrLeaseGone.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	compares := make([]clientv3.Cmp, 0, len(ops))
	writes := make([]clientv3.Op, 0, len(ops))
	for _, op := range ops {
		if op.If != store.AnyRevision {
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(op.Path), "=", op.If))
		}
		if op.Deletes() {
			writes = append(writes, clientv3.OpDelete(op.Path))
		} else {
			writes = append(writes, clientv3.OpPut(op.Path, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.etcd(ctx)
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	r, err := c.Txn(ctx).If(compares...).Then(writes...).Commit()
	switch {
	case err != nil:
		return 0, fmt.Errorf("commit %s: %w", summary(ops), translate(err))
	case !r.Succeeded:
		return 0, fmt.Errorf("commit %s: %w", summary(ops), store.ErrConflict)
	}
	return r.Header.Revision, nil
}

// Grant implements store.Store. etcd counts in seconds and may lengthen a very
// short ttl (to 2 s with default settings).
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	limited, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.etcd(limited)
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", err)
	}
	g, err := c.Grant(limited, int64(math.Ceil(ttl.Seconds())))
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", translate(err))
	}
	alive, err := c.KeepAlive(ctx, g.ID)
	if err != nil {
		return 0, fmt.Errorf("keep lease alive: %w", translate(err))
	}
	go func() {
		for range alive { // must be drained; closed when ctx or the lease ends
		}
	}()
	return store.Lease(g.ID), nil
}

// keyRange returns the range of keys that begin with prefix.
func keyRange(prefix string) (start, end string) {
	if prefix == "" {
		return "\x00", "\x00" // all keys
	}
	return prefix, clientv3.GetPrefixRangeEnd(prefix)
}

// entry converts a key, keeping hold of its value. An empty value is not nil,
// which would mean a deletion if it were written back.
func entry(kv *mvccpb.KeyValue) store.Entry {
	v := kv.Value
	if v == nil {
		v = []byte{}
	}
	return store.Entry{Path: string(kv.Key), Value: v, Revision: kv.ModRevision}
}

func summary(ops []store.Op) string {
	switch len(ops) {
	case 0:
		return "of nothing"
	case 1:
		return ops[0].Path
	default:
		return fmt.Sprintf("%s and %d more", ops[0].Path, len(ops)-1)
	}
}

// translate replaces etcd's errors that callers branch on.
func translate(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return store.ErrLeaseGone
	default:
		return err
	}
}
