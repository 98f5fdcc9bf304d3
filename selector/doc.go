// Package selector is the label selector language: it parses a selector,
// matches it against a label set and prints its canonical text.
//
// api parses the selectors of resources; calc, labelindex and explain combine
// and match them. Selectors are immutable and safe for concurrent use.
//
// Invariants:
//   - the canonical text of a selector parses to the same selector, and a
//     selector and its canonical text match the same label sets (FuzzParse)
//   - a label set that a selector matches meets all its Requirements
//     (FuzzParse, TestRequirementsHold)
//   - no input makes Parse panic or run out of stack (FuzzParse, TestDepth)
package selector
