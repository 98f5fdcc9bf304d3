package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"tortie/store"
)

// pageKeys is how many keys one request of a listing returns.
const pageKeys = 2000

// window is how much the server may send before we have read it.
const window = 4 << 20

// maxReceive lifts the limit of 4 MiB on a response: a page may have more.
var maxReceive = grpc.MaxCallRecvMsgSize(math.MaxInt32)

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
	c, err := s.dial(s.ctx)
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

// dial makes a client. With user and password it logs in first, for which
// etcd's client would wait without saying for what: so it is tried without.
func (s *Store) dial(ctx context.Context) (*clientv3.Client, error) {
	options := []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: s.cfg.DialTimeout,
		}),
		// Windows of a fixed size: to find the best one, the library would
		// send a ping for every event.
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
	}
	if s.cfg.secure() {
		options = append(options, grpc.WithTransportCredentials(s.credentials()))
	}
	cfg := clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		DialTimeout:          s.cfg.DialTimeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxUnaryRetries:      3,
		DialOptions:          options,
		Logger:               zap.NewNop(), // errors are returned, the watch's are logged
		Context:              s.ctx,
	}
	c, err := clientv3.New(cfg)
	if err != nil || s.cfg.Username == "" {
		return c, err
	}
	_, err = pb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	_ = c.Close()
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return nil, err
	default: // any answer will do
	}
	cfg.Username, cfg.Password = s.cfg.Username, s.cfg.Password
	return clientv3.New(cfg)
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
	made, err := s.dial(ctx)
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
		r, err := s.get(ctx, &pb.RangeRequest{Key: start, RangeEnd: end, Limit: pageKeys, Revision: h.revision})
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
		start = slices.Concat(r.Kvs[len(r.Kvs)-1].Key, []byte{0})
	}
}

// The requests below go to the generated clients: clientv3's own calls wait
// for a connection until their time is up, and then do not say what was wrong
// with it.

// get is one read request.
func (s *Store) get(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.etcd(ctx)
	if err != nil {
		return nil, err
	}
	response, err := clientv3.RetryKVClient(c).Range(ctx, r, maxReceive)
	return response, translate(err)
}

// Commit implements store.Store. After a lost connection it is not known
// whether the transaction was written; the error then wraps neither
// store.ErrConflict nor store.ErrLeaseGone.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	c, err := s.etcd(ctx)
	if err != nil {
		return 0, fmt.Errorf("commit %s: %w", summary(ops), err)
	}
	r, err := clientv3.RetryKVClient(c).Txn(ctx, transaction(ops))
	switch {
	case err != nil:
		return 0, fmt.Errorf("commit %s: %w", summary(ops), translate(err))
	case !r.Succeeded:
		return 0, fmt.Errorf("commit %s: %w", summary(ops), store.ErrConflict)
	}
	return r.Header.Revision, nil
}

func transaction(ops []store.Op) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for _, op := range ops {
		key := []byte(op.Path)
		if op.If != store.AnyRevision {
			txn.Compare = append(txn.Compare, &pb.Compare{
				Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: op.If},
			})
		}
		write := &pb.RequestOp{}
		if op.Deletes() {
			write.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}
		} else {
			write.Request = &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: op.Value, Lease: int64(op.Lease)}}
		}
		txn.Success = append(txn.Success, write)
	}
	return txn
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
	g, err := clientv3.RetryLeaseClient(c).LeaseGrant(limited, &pb.LeaseGrantRequest{TTL: int64(math.Ceil(ttl.Seconds()))})
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", translate(err))
	}
	alive, err := c.KeepAlive(ctx, clientv3.LeaseID(g.ID))
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
func keyRange(prefix string) (start, end []byte) {
	if prefix == "" {
		return []byte{0}, []byte{0} // all keys
	}
	return []byte(prefix), []byte(clientv3.GetPrefixRangeEnd(prefix))
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
	if err == nil {
		return nil
	}
	switch err = rpctypes.Error(err); {
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return store.ErrLeaseGone
	default:
		return err
	}
}
