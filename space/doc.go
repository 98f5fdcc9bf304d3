// Package space has sets of packet headers, whole: the ones that a rule
// matches, what is left of them after others, and a packet of what is left.
//
// A header is family, protocol, ICMP type and code, ports and addresses. A Set
// is a binary decision diagram over its bits in that order, reduced and shared
// within its Space, so that two sets of one space are equal exactly if they
// are the same diagram. What is built stays until the space goes: make one for
// a question, and ask Err at its end. Sets of two spaces do not mix.
//
// The bits that a kind of packet has not (the last 96 of an IPv4 address, the
// ports of ICMP) are there in the diagram. Sets that a space makes do not
// depend on them where that can be said; WellFormed has the headers whose
// other such bits are zero, one for each packet.
//
// A Space and its sets belong to one goroutine.
//
// Invariants:
//   - operations are those of sets (TestAgainstBruteForce, FuzzSets)
//   - a witness is in its set, and there is one unless the set is empty
//     (TestAgainstBruteForce, TestCorners)
//   - a space never has more nodes than it may: beyond, Err says so, and what
//     its sets say means nothing (TestLimit)
package space
