// Package labelindex knows which addresses each active selector selects, and
// keeps that current as items (endpoints, network sets) and selectors come and
// go. calc feeds it and takes the changes.
//
// Items with equal label sets share a group, so a selector is tested once a
// group. A new selector visits only the groups that carry its rarest required
// label, a new group is tested only against selectors that require one of its
// labels. Which group matches which selector is the only thing that is stored
// of the membership of single addresses; real ranges are counted in a trie for
// each selector. What changed is worked out when Changes is read: for the
// addresses that were touched from what selected them before, for selectors
// that came or went by walking their groups.
//
// Ports does the same, by simpler means, for the places of named ports, since few
// endpoints name any.
//
// One goroutine owns an Index or Ports.
//
// Invariants:
//   - the changes of an Index, applied one after the other, give the members
//     that a computation from nothing gives, and none is void: what is added
//     was absent, what is removed was there, and none of them occurs twice
//     (TestRandomHistory, FuzzHistory)
//   - a single address is a member while any selected item has it
//     (TestSharedAddress, TestRandomHistory)
//   - the ranges of a selector are disjoint and cover exactly what its items
//     cover (TestRanges, TestRandomHistory)
//   - the changes of a Ports do so too (TestPorts), and an item that joins changes
//     as many members as it has (TestPortChurnIsOneElement)
//   - when the last item and selector have gone, nothing is left
//     (TestNothingLeft, TestRandomHistory)
package labelindex
