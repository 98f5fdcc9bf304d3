// Package status writes to the store what an agent has to say: that it lives
// (on a lease), which revision it enforces, and the state of each endpoint of
// its host. It decides nothing and asks nobody: the agent's loop calls Set,
// SetApplied and InSync, which never block, and Run writes from a goroutine of
// its own, for as long as it takes. Only the latest value per key is kept.
//
// Invariants:
//   - A store that is away blocks no caller; when it is back, what it has is
//     read and made right (TestStoreAway).
//   - What is right already is not written again (TestNoRewrite).
//   - A status that this host wrote before is removed only when the agent is
//     in sync (TestRepair).
//   - Statuses are written in transactions of many, not one by one
//     (TestThousandEndpoints); one that flaps, once per Delay (TestDelay).
package status
