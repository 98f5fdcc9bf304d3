// Package store is the datastore as the rest of the tree sees it: revisioned
// keys, compare-and-swap transactions, leases, and a watch that is a snapshot,
// then in sync, then changes. Package store/memory defines the behaviour,
// store/etcd has it on etcd v3; store/storetest runs one suite on both. On top
// are the operations on api objects (Find, Create, Replace, Apply, Delete),
// which use nothing but the Store interface.
//
// The agent, bgp, dhcp, the plugins and ctl call it. A Store is safe for use
// by several goroutines; a Watcher is for one.
//
// Invariants:
//   - A transaction is written whole or not at all; a watch's Revision R says
//     that all watched changes up to R were returned (storetest, Commit and
//     RevisionCoversAllPrefixes).
//   - A watch survives lost connections and compactions, reports what went
//     meanwhile as deleted and reports no unchanged key again (storetest,
//     Resume and Relist).
//   - What waits to be collected is bounded by the number of keys (storetest,
//     Coalescing; store/etcd TestQueueCoalesces).
//   - Fields of a stored object that this version does not know survive
//     Replace and Apply (TestApplyKeepsUnknownFields).
package store
