// Package conntrack ends connections: it deletes the entries of addresses that
// are gone, so that whoever gets such an address next inherits nothing.
//
// The agent calls it when an endpoint or one of its addresses goes. A policy
// that forbids a connection does not come here: that is the epoch's work in
// the ruleset.
//
// A handle belongs to the network namespace of the thread that opened it, and
// to one goroutine.
//
// Invariants:
//   - an entry goes if any address of either direction is named, and no other
//     goes: TestDelete
//   - entries with equal tuples in other zones stay apart: TestZones
package conntrack
