// Package route makes the kernel's routes and neighbours equal to what is
// desired, and touches nothing that is not ours.
//
// Routes is the agent's: local routes (protocol 80), the routes to the IPv4
// gateways that let the kernel answer ARP for them, permanent and proxy
// neighbours. Learned is bgp's: routes to other hosts (protocol 81).
// LocalRoutes is how bgp sees what Routes has written; nothing else passes
// between the two processes.
//
// A handle belongs to the network namespace of the thread that opened it and
// to one goroutine; what its Monitor or Changes finds out is passed on inside.
//
// Invariants:
//   - applying twice writes nothing, nor does the first Apply after a restart:
//     TestApplyTwice
//   - only what "What is ours" names is changed or deleted: TestForeignStays
//   - a route that is lost with its link is put back: TestLinkDownUp
//   - a failure stays pending, and what fails because its link is down waits
//     for that link alone: TestLinkDownUp
//   - our own writes do not wake us: TestMonitor
//   - a learned route never replaces a local one: TestLearnedBesideLocal
package route
