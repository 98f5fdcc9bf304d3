// Package desired says what this host should have in its kernel: endpoints,
// programs, sets, routes, neighbours and address translation, as tables. It
// decides nothing and holds no handles: calc fills the tables, the kernel packages make the kernel
// equal to them, status reports them. WriteText shows a state to operators and
// to tests.
//
// One goroutine, the agent's loop, owns a State.
//
// Invariants:
//   - equal states give equal text (TestWriteText)
//   - setting an equal value is no change, one that differs in any field is
//     (TestEquality)
package desired
