package store

import (
	"errors"
	"fmt"
)

// ErrLeaseGone means that the lease that an operation names has ended.
var ErrLeaseGone = errors.New("lease has ended")

// MaxOps is how many operations one Commit may have: what an etcd with default
// settings accepts.
const MaxOps = 128

// batchOps is the size of the transactions that bulk writers use.
const batchOps = 100

// Batches cuts ops into transactions of at most 100 operations, for bulk
// writes that need not be atomic as a whole.
func Batches(ops []Op) [][]Op {
	var batches [][]Op
	for len(ops) > batchOps {
		batches = append(batches, ops[:batchOps:batchOps])
		ops = ops[batchOps:]
	}
	if len(ops) > 0 {
		batches = append(batches, ops)
	}
	return batches
}

// Deletes says whether the operation removes its key. A value that is empty
// but not nil is written.
func (o Op) Deletes() bool { return o.Delete || o.Value == nil }

// CheckOps returns why no store can commit ops as one transaction, or nil.
func CheckOps(ops []Op) error {
	if len(ops) > MaxOps {
		return fmt.Errorf("commit of %d operations: one transaction holds at most %d (cut bulk writes with Batches)", len(ops), MaxOps)
	}
	seen := make(map[string]struct{}, len(ops))
	for _, op := range ops {
		if op.Path == "" {
			return errors.New("commit: an operation has no path")
		}
		if _, twice := seen[op.Path]; twice {
			return fmt.Errorf("commit: %s occurs twice in one transaction", op.Path)
		}
		seen[op.Path] = struct{}{}
	}
	return nil
}
