// Package analysis compares and examines policy as a whole: which connections
// a change gains or loses (Preview), and what in it has no effect or not the
// one it seems to have (Lint).
//
// What a rule says of an address is asked of explain, the reference; protocols,
// ports and ICMP are sets of package space. Addresses that all policy treats
// alike, those of endpoints and those outside, are one group, so that groups
// are compared rather than pairs of endpoints. Nothing is sampled: an answer is
// about all headers. Connections are looked at as they are with their ends' own
// addresses, before any translation.
//
// All is pure: objects in, answers out.
//
// Invariants:
//   - addresses of a group are alike to every rule, in every state that is
//     compared (TestPreviewAgainstExplain)
//   - a connection is reported as changed exactly if explain's verdict on it
//     changes, with the rules by which it does (TestPreviewAgainstExplain)
//   - a rule is said to match or to be reached by nothing exactly if no packet
//     does (TestLintAgainstExplain)
package analysis
