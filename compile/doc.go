// Package compile turns policy into programs: the rules of one policy or
// profile into rules for the kernel, and ordered stages of them into one
// program. It is pure. calc calls it, having resolved selectors to sets.
//
// All functions may be called concurrently. The results share slices with each
// other and with the arguments; nobody may change them.
//
// Invariants:
//   - a program decides each connection as its stages do, read one rule after
//     the other (TestProgramKeepsMeaning)
//   - the lists of a stage decide and log as its rules do in their order, by the
//     same rule (TestDispatch)
//   - a rule that has prefixes is of one family, and has prefixes of that
//     family only (TestRules, TestProgramKeepsMeaning)
//   - a rule of the policy has the same identity in all programs, and no rule
//     is in a program that no connection can reach (TestProgram)
package compile
