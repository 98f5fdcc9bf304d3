package store

import (
	"context"
	"errors"
	"time"
)

// Errors that callers branch on.
var (
	// ErrConflict: a precondition of Commit did not hold; nothing was written.
	ErrConflict = errors.New("update conflict")
	// ErrCompacted: the revision asked for is no longer there.
	ErrCompacted = errors.New("revision compacted")
)

// Entry is one key with its value and the revision that last changed it.
type Entry struct {
	Path     string
	Value    []byte
	Revision int64
}

// AnyRevision is the precondition that always holds.
const AnyRevision int64 = -1

// Op is one write of a transaction.
type Op struct {
	Path   string
	Value  []byte // nil deletes
	Delete bool
	// If is the revision the key must have: AnyRevision for any, 0 for "does
	// not exist".
	If int64
	// Lease, if not 0, removes the key when the lease ends.
	Lease Lease
}

// Lease is a handle from Grant.
type Lease int64

// Store is a revisioned key-value store. There are two: store/etcd, and
// store/memory, which defines what both do.
type Store interface {
	// List returns the entries whose path begins with prefix (or equals it,
	// where prefix does not end in a slash) as of one revision, which it
	// also returns. The order is that of the paths.
	List(ctx context.Context, prefix string) ([]Entry, int64, error)
	// Commit applies ops as one transaction if all preconditions hold, else
	// it writes nothing and returns ErrConflict. It returns the store's
	// revision after the write.
	Commit(ctx context.Context, ops ...Op) (int64, error)
	// Watch follows the given prefixes. It returns at once and never fails
	// for want of a connection.
	Watch(ctx context.Context, prefixes ...string) Watcher
	// Grant makes a lease that is kept alive until ctx ends; after that, or
	// when the process dies, it lives for at most ttl.
	Grant(ctx context.Context, ttl time.Duration) (Lease, error)
}

// Watcher follows changes. Its memory is bounded by the number of keys: until
// they are collected by Next, changes of one key replace each other.
type Watcher interface {
	// Next blocks until there is news and returns all of it. It fails only
	// when the watch's context has ended.
	Next(ctx context.Context) (Batch, error)
}

// Event is a key's latest state.
type Event struct {
	Entry
	Deleted bool
}

// Batch is what happened since the last one. The first batches are the
// snapshot; InSync is false until it is complete. After a lost connection or a
// compaction the watcher resumes or lists again by itself, and reports keys
// that went meanwhile as deleted; an unchanged key is not reported again.
type Batch struct {
	Events []Event
	// Revision: every watched change up to it has been returned.
	Revision int64
	InSync   bool
	// Connected is false while the store cannot be reached.
	Connected bool
}
