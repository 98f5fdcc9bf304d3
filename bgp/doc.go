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
// Invariants:
//   - Only routes to this host's workloads are announced, whatever is learned
//     (TestRouteReflector, TestUplinkRouter).
//   - A learned route never covers the prefix of a local one
//     (TestImporterLeavesLocalPrefixes).
//   - Ending the process, in whatever way, withdraws nothing and deletes
//     nothing; a new one deletes a learned route only when all its peers have
//     sent End-of-RIB, or the deferral time is over (TestKilledSpeaker,
//     TestImporterRestart).
//   - Changes of policy or endpoints in the store cause no BGP message
//     (TestPolicyCausesNoUpdate).
package bgp
