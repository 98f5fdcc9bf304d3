// Package lab is a data centre in network namespaces: hosts on a layer-2
// fabric, each running the real binary, one datastore that all reach over the
// fabric, and workloads behind the hosts. `tortie lab`, the demo and the
// end-to-end tests use it; it knows the processes by their command lines only.
//
// A lab lives in the kernel and in its state directory, not in the process
// that made it: Up leaves it running, Open finds it again, Down ends it by what
// the directory says, also if Up was interrupted. What is made is recorded
// before it is made.
//
// Namespaces are named ttlab-<lab>-…; processes carry TORTIE_LAB in their
// environment, and their process id and start time are in the directory. Down
// ends nothing else and removes nothing else. The namespace the lab is started
// from is not touched: the datastore is reached through a port on its loopback,
// for as long as a Lab is open.
//
// A Lab is for one goroutine, except that questions (Matrix, Status, Exec,
// Stream) may be asked side by side.
//
// Invariants:
//   - Down leaves no namespace, process or file: TestUpDown, TestInterrupted
//   - only processes that the lab started are ended: TestEndsOnlyItsOwn
//   - a probe reports what arrived: TestProbes
//   - an attempt counts every packet that arrives: TestAttempt
package lab
