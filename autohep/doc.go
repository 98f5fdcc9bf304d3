// Package autohep makes the host endpoints of a host that nobody writes by hand:
// one for all interfaces, and those of templates, by the labels of the host's
// Node, the names of its interfaces and their addresses.
//
// Wanted says, as a function of what there is, which there should be. A Maker
// makes the store have them; it runs in the agent of the host, which makes those
// of this host alone. It keeps nothing: what it made has a label that says so.
//
// Invariants:
//   - what has not that label is never changed or deleted, whatever its name
//     (TestWanted, TestMaker)
//   - where nothing changes, nothing is written (TestMaker)
package autohep
