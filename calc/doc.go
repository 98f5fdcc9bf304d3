// Package calc computes what this host should have in its kernel from the
// state of the cluster and facts about the host. It is pure: no I/O, no time,
// no randomness. The agent's loop calls the setters for whatever changed, then
// Flush, and hands the state to the kernel packages.
//
// Flush runs its stages in a fixed order; each recomputes what its inputs made
// dirty and marks what depends on that:
//
//	profiles → bindings → addresses → host endpoints → local endpoints → policies → order
//	→ programs → sets and members → interfaces, neighbours, translation, routes, gateways, statuses
//
// The cost of a change is in proportion to what it means for this host: only
// policies that select a local endpoint are compiled, and only selectors that
// those name are resolved. Of an endpoint of another host nothing is kept but
// its addresses and, in labelindex, its labels.
//
// One goroutine, the agent's loop, owns a Calc. Objects that were given to a
// setter must not change afterwards.
//
// Invariants:
//   - the state depends on what was set last, not on the order or the batches
//     in which it was set (TestScripts, TestHistories)
//   - the state is what a computation from scratch gives (TestHistories)
//   - after a Flush exactly those keys are dirty that differ from before it,
//     and programs of which a set came or went (TestHistories)
//   - the programs and sets mean what explain says of the same objects
//     (TestMeaning)
//   - nothing that the store may hold makes it panic (FuzzObjects)
//   - Tightened is set whenever a connection that the state allowed before is
//     one that it now forbids, or its endpoint has its first limit or mark
//     (TestHistoriesTighten; TestScripts has the cases)
package calc
