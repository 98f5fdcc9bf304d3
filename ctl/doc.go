// Package ctl is the operator's command line: get, apply, create, replace,
// delete, explain, show, init and version, in the habits of kubectl and with the names
// and short names of calicoctl. cmd/tortie attaches Commands to its root
// command and runs it with Execute.
//
// A command is one goroutine (apply --wait adds none); the store it works on is
// opened by a function that the caller passes in.
//
// Invariants:
//   - Every document of an invocation is read and validated before the first
//     is written (testdata/validation.txt).
//   - Fields of a stored object that this version does not know survive an
//     apply, and an apply that changes nothing writes nothing
//     (testdata/apply.txt).
//   - apply --wait returns nil only when every live host has reported a
//     revision at least as high as the one written (testdata/wait.txt,
//     TestWaitFollowsHosts).
//   - explain writes nothing, and a name that could mean two endpoints means
//     none (testdata/explain.txt, TestEnds).
package ctl
