// Package nflog reads the packets that rules sent to a group of the kernel's
// packet log. The agent has it read those that Log rules picked.
//
// A Reader belongs to the network namespace of the thread that opened it. It is
// the group's only one: the kernel gives a group to one socket, and takes it
// back when that is closed.
//
// Concurrency: one goroutine runs a Reader. Close may be called from any, and
// once Run has returned it need not be.
//
// Invariants:
//   - Every packet that the kernel picked is either handed on or counted as lost
//     with the next one that is: TestLossIsCounted.
//   - A group that another program has is told from other failures: TestBusy.
//   - No bytes make it panic: FuzzParse.
package nflog
