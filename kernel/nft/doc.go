// Package nft keeps this host's policy in the kernel: the nftables tables
// inet tortie and arp tortie, and nothing outside them.
//
// The agent opens one Tables and calls it from its loop. Data goes one way:
//
//	desired.State ─ render (base.go, program.go) ─► chains, rules, elements (model.go)
//	              ─ diff (intent.go, diff.go) ────► changes against what the kernel has
//	              ─ encode (changes.go, encode.go) ► one transaction (conn.go)
//
// and back only as hashes: each rule carries a hash of its own text in its
// userdata, so read.go needs no decoder to compare (show.go has one, for
// people). What the kernel acknowledged is remembered as hashes, handles and
// element keys.
//
// What a packet meets, in order:
//
//	raw       prerouting -450: interface and source (and MAC) are looked up in
//	          hash sets, of each fragment, before connection tracking; what is in
//	          none of them and comes from a workload interface is DHCP, neighbour
//	          discovery or dropped.
//	forward   if the connection's mark is the policy epoch, it was judged and
//	          allowed: accept. Else, and if an interface is a workload's, verdict
//	          maps lead from interface name to the programs, which return what
//	          they allow; then the connection is marked.
//	input     the same for what a workload sends to the host: the egress
//	          program, then HostAction. output: the host may reach workloads.
//	dst-nat   prerouting and output -100: external addresses become workloads' own.
//	src-nat   postrouting 100: what goes outside gets an external address or the
//	          host's. These chains are there only while there is something to do.
//	host      input and output of the host's own interfaces, and what passes through
//	          them, where there are host endpoints: the same, by maps of their own.
//	host-raw  prerouting and output -299: packets that are not to be tracked.
//	controls  what forward allowed and a bit of the mark leads there, while an
//	          endpoint has such: packet rates, connection limits, code points.
//	          After input, and in the arp table: limits on what is sent to the host.
//	arp input the sender's address and MAC must be the endpoint's.
//
// Programs look at the connection, never at the packet: its original source,
// what answers it (the destination after NAT), its ports and ICMP type. So any
// packet of it, of either direction, gives the same verdict.
//
// Concurrency: one goroutine, except Dump, Diff, Counters and Foreign, which
// touch only the socket, and the socket has a lock. Monitor runs a goroutine of
// its own until its context ends.
//
// Invariants, and the tests that hold them:
//
//   - A kernel that is right is not written to, neither by the same process nor
//     by a new one: TestApplyTwiceAndRestart, TestRandomHistory.
//   - Any foreign change to our tables is undone, exactly: TestRepair,
//     TestChangesAfterForeignHand.
//   - What the kernel holds is what was rendered: TestKernelHoldsWhatWasRendered,
//     TestRenderGolden.
//   - One Apply is one transaction, with one ahead of it where interval sets or
//     programs are new; unless the kernel refuses part of it: that part is named, left out and
//     tried again: TestRefusedElement, TestRefusedProgram.
//   - No packet meets a rule before what the sets that it names have in them, nor
//     is led to a chain before that has its rules: agent.TestNoTransientHole,
//     agent.TestNoTransientHoleOfAnyKind.
//   - Programs that lead by port, set and address decide as their rules do in
//     their order: TestDispatchedProgram.
//   - What cannot be expressed denies everything: TestRefusedProgram, TestTiers.
//   - Nothing passes from an address, MAC or interface that is not an
//     endpoint's: TestSpoof, TestSpoofWithoutMAC, TestSpoofNeighbourDiscovery,
//     TestUnknownInterface, TestSkeleton. What it has besides single addresses:
//     TestRange, TestRangeRoutedPast, TestOtherSources.
//   - After BumpEpoch no packet of a forbidden connection passes, and none of an
//     allowed one is lost: TestEpoch, TestICMPErrorOfStaleConnection,
//     TestHostConnectionIsCut,
//     TestBumpInOneTransaction. A process that dies before the bump leaves word of
//     it: TestCrashBeforeBump.
//   - A limit counts what policy allowed, and its own endpoint's alone; without
//     any there is no chain for them, and who has none does not get there:
//     TestPacketRate, TestConnectionLimit, TestDSCP, TestHostRate,
//     TestControlsOfKnownConnections.
//   - Bits of the connection mark that are not the epoch's, traffic between
//     other interfaces, and other tables are left alone:
//     TestEpochLeavesOtherBits, TestOtherTrafficIsLeftAlone, TestBesideOthers.
//   - A foreign program that commits all the time causes no read-back:
//     TestForeignCommits.
//   - A floating address works from everywhere and both ways, policy sees what it
//     leads to, and one element moves it: TestFloatingAddress,
//     TestPolicySeesTranslated, TestFloatingAddressMoves.
//   - Where there is nothing to translate there is no chain of type nat:
//     TestNothingToTranslate.
//   - A host endpoint judges what ends in the host, begins there and passes through,
//     failsafe ports stay open, and without any there is no chain for it:
//     agent.TestHostEndpoint, agent.TestHostFailsafe, agent.TestHostForward, agent.TestHostUntracked,
//     agent.TestHostPreDNAT, agent.TestHostUnderTraffic.
//   - No bytes from the kernel make it panic: FuzzParse.
package nft
