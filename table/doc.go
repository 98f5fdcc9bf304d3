// Package table has the two containers that the stages between the store and
// the kernel hand to each other: Table, a map that remembers which of its keys
// changed, and Delta, what is wanted against what is there.
//
// calc fills Tables, the kernel packages read them. Nothing here locks: one
// goroutine, the agent's loop, owns every table.
package table
