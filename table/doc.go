// Package table has the two containers that the stages between the store and
// the kernel hand to each other: Table, a map that remembers which of its keys
// changed, and Delta, what is wanted against what is there.
//
// calc fills Tables, the kernel packages read them. Nothing here locks: one
// goroutine, the agent's loop, owns every table.
//
// Invariants:
//   - a key is dirty if and only if, since the last Clear, it was given another
//     value, came, went, or was touched (TestTableRemembersChangedKeys)
//   - a key is pending in a Delta if and only if its two sides differ
//     (TestDeltaPending)
package table
