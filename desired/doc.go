// Package desired says what this host should have in its kernel: endpoints,
// programs, sets, routes and neighbours, as tables. It decides nothing and
// holds no handles: calc fills the tables, the kernel packages make the kernel
// equal to them, status reports them.
//
// One goroutine, the agent's loop, owns a State.
package desired
