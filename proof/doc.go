// Package proof sends real packets through real agents and compares what
// becomes of them with what package explain says.
//
// A World is two hosts in network namespaces, each with an agent that follows
// one store, workloads behind interfaces of theirs, and an outside that both
// are linked to. Apply changes the cluster and waits until both agents enforce
// it, Send sends packets and says where each arrived, and Expect says where it
// should have, and with which addresses. A Draw makes objects and packets from
// a seed. A Case is a cluster and one packet in a
// file; Shrink makes one that fails as small as it can.
//
// What the workloads and the outside receive is read from one socket in one
// namespace without addresses, so nothing there answers by itself, and what
// arrives has an order. All packets are sent by one thread on one processor,
// whose queue the kernel works off in order, so that a last packet, which goes
// as long a way as any, comes behind all the others: what has not arrived before it
// was dropped. Nothing waits for a time to pass.
//
// All of it is for tests: a World belongs to the goroutine of its test, and
// what goes wrong in it fails the test. verify, calc and others may use it.
//
// Invariants:
//   - the fate of every packet is what Expect says, and verify proves it for all
//     that can be sent at every state of the cluster (TestPackets)
//   - that comparison finds what is wrong, and Shrink keeps what fails
//     (TestFindsAndShrinks)
//   - what failed once does not again (TestReplay)
package proof
