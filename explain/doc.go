// Package explain gives the meaning of policy for one connection: the verdict
// of each end and of the hosts' own interfaces by which it leaves and comes, and
// the rule that gave it.
//
// It is the reference that the enforcing side is tested against, so it shares
// no code with it: it keeps the objects as they are and works everything out
// from nothing, one packet at a time, in the order in which the data model
// states it. ctl answers operators with it, lab says what it expects, and tests
// of policy compare it with real packets.
//
// A Cluster is not safe for concurrent use while objects are put or deleted;
// questions alone may be asked concurrently. It keeps the objects that it is
// given; they must not be changed.
//
// Invariants:
//   - every question has an answer, whatever the objects hold; the verdict is
//     Allow or Deny, and only a rule allows (TestRandomClusters, FuzzConnection)
//   - the answer does not depend on the order in which objects came or on
//     objects that have gone (TestRandomClusters)
//   - the overall verdict is Allow only where neither end denies
//     (TestRandomClusters)
//   - a connection to an external address is judged as one to what it leads to,
//     where the host knows that (TestTranslated, calc.TestFloatingMeaning)
//   - what an interface of a host is judged by, by which kinds of policy and in which
//     order: TestHostEndpoints, TestWhoseInterface, TestHostKinds, TestFailsafes
//   - the trail of a decision has each tier gone through, in order, and ends
//     with the step that decided (TestTrail, TestRandomClusters)
package explain
