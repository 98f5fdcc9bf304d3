// Package e2e tests the whole on a lab: the real binary on hosts in network
// namespaces, a real etcd, real packets. Nothing calls it; `go test ./e2e` runs
// it, as root, in network and mount namespaces of its own.
//
// A test brings up its lab and takes it down; the subtests of one share it and
// leave it as they found it. What must pass is a stream that numbers its
// packets, what must not is an attempt whose every packet would be seen where
// it arrives, so no moment goes unwatched. The random tests print their seed;
// TORTIE_E2E_SEED repeats one.
package e2e
