// Package link watches the links of a host and sets what the kernel must do
// on those of workloads: answer for the gateway, forward, believe nothing that
// a workload says about routing.
//
// The agent calls Apply with what is desired, ApplyHost once its closed
// ruleset is in place, and reads a Monitor; plugins use the monitor alone.
// Workload interfaces are never created or deleted here.
//
// A handle belongs to the network namespace of the thread that opened it, and
// to one goroutine. /proc/sys/net shows the namespace of the thread that looks,
// so a handle has a thread of its own that does nothing else.
//
// Invariants:
//   - a correct kernel gets no write: TestApplyTwice
//   - only workload interfaces are touched by Apply: TestApplyTwice
//   - a link that is re-created under its name is told by its index, a link
//     that was down is reported though it is up again: TestMonitor
//   - only what changed is reported: TestMonitor
//   - a host-wide setting is remembered before it is changed, and a host keeps
//     the default route that it learned from a router: TestApplyHost
package link
