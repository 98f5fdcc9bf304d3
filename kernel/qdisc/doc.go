// Package qdisc keeps the bandwidth of workloads in the kernel, as token bucket
// filters (tbf), and owns every traffic control object that is ours.
//
//	to a workload     a tbf is the root qdisc of its interface
//	from a workload   a u32 filter at the interface's ingress redirects what it
//	                  sends to an ifb of its own, whose root qdisc is a tbf;
//	                  what the tbf lets go comes in by the interface as if
//	                  nothing had been, and meets policy
//
// So what a workload sends is counted before policy: the host has to delay it
// before it looks at it. What policy drops is paid from the same workload's
// bucket, no other's.
//
// Ours are qdiscs with the handle Handle, filters with the preference Pref or
// PrefAlone, and links of kind ifb named and aliased as ours are. A clsact
// qdisc, which several programs share, cannot be marked: the filter's
// preference says whether we made it, and then it goes with the last filter. A
// root or ingress qdisc of another program is left alone; if that stands in
// the way, the interface is in trouble.
//
// Nothing is remembered but names: the kernel is read each time that something
// may differ, which costs a list of links and one of qdiscs. A handle belongs to
// the network namespace of the thread that opened it, and to one goroutine.
//
// Invariants:
//   - a correct kernel gets no write, neither from the same process nor from a
//     new one, and counters go on: TestApplyTwiceAndRestart
//   - what is not ours stays as it is: TestForeign
//   - what others changed of ours is made right at a Resync, and an ifb that
//     went at once: TestRepair
//   - what failed is tried again, and is the trouble of its interface alone:
//     TestForeign
//   - a link that is made anew is limited again: TestLinkMadeAnew
//   - nothing of ours is left after Cleanup: TestCleanup
//   - no bytes from the kernel make it panic: FuzzParse
package qdisc
