// Package table has the container that the stages between the store and the
// kernel hand to each other: Table, a map that remembers which of its keys
// changed.
//
// calc fills Tables, the kernel packages read them. Nothing here locks: one
// goroutine, the agent's loop, owns every table.
//
// Invariants:
//   - a key is dirty if and only if, since the last Clear, it was given another
//     value, came, went, or was touched (TestTableRemembersChangedKeys)
package table
