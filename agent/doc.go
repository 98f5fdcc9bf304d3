// Package agent is the per-host loop: it follows the store and the host's
// links, has calc work out what the host should have, and has the kernel
// packages make it so.
//
// cmd/tortie calls Run for "tortie agent" and Cleanup for "tortie cleanup".
//
// Concurrency: the goroutine of Run owns calc, the desired state and all
// handles to the kernel. The watch goroutine decodes what the store says and
// waits for the loop to take it; monitors deliver kernel events by channel; the
// status writer, the HTTP server and the reader of logged packets have
// goroutines of their own, and what they ask of the loop is run by the loop
// between two batches. Batching is by back-pressure alone: what happens during an
// apply is the next batch.
//
// Invariants:
//   - Nothing is written before the closed skeleton but the skeleton itself
//     (TestBootIsClosed).
//   - Nothing is deleted before the store is in sync (TestRestartWritesNothing).
//   - For what appears, policy is in the kernel before the route; for what
//     goes, the route is gone before the policy (TestOrderAroundApply).
//   - The applied revision never runs ahead of the kernel (TestAppliedRevision).
//   - Packets of Log rules get so many lines and no more, and what has none is
//     counted (TestLogFlood, TestLogLines).
package agent
