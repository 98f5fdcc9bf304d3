// Package bgp is the process that exchanges routes with other hosts: it
// announces the routes to this host's workloads that it finds in the kernel,
// and puts into the kernel what its peers announce. `tortie bgp` runs it.
//
// It watches only the Node, BGPConfiguration and BGPPeer resources; policy and
// endpoints never reach it.
//
//	store ─► cluster ─► plan ─► speaker (GoBGP) ◄─► peers
//	                              │   ▲
//	 kernel ◄── importer ◄────────┘   └──────── exporter ◄── kernel
//
// Concurrency: one goroutine, the loop in process.go, owns everything but the
// insides of the speaker. The store's watch, the kernel's monitor and the
// speaker hand it their news, coalesced by key; HTTP requests hand it functions.
//
// GoBGP keeps settings of a server in package variables, so a process has one
// speaker at a time.
//
// What the store last said is kept in the run directory (snapshot.go): a speaker
// that starts while the store is away must be back before its peers give up
// its routes. Learned routes are kept by the kernel alone.
//
// Invariants:
//   - Only routes to this host's workloads are announced, whatever is learned
//     (TestUplinkRouter).
//   - A learned route never covers the prefix of a local one
//     (TestImporterLeavesLocalPrefixes).
//   - Ending the process, in whatever way, withdraws nothing and deletes
//     nothing; a new one deletes a learned route only when all its peers have
//     sent End-of-RIB, or the deferral time is over (TestKilledSpeaker,
//     TestFailedHandshake, TestDeferral, TestImporterRestart).
//   - The restart flag is set only if learned routes were in the kernel at the
//     start (TestRouteReflector).
//   - A speaker that starts without the store speaks all the same
//     (TestRestartWithoutStore).
//   - Changes of policy or endpoints in the store cause no BGP message
//     (TestPolicyCausesNoUpdate).
package bgp
