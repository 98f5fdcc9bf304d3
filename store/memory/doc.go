// Package memory is the store in a map: the reference for the behaviour of a
// Store, and what tests of other packages use. New makes an empty store; Client
// makes further handles on the same data, each with a connection of its own
// that Disconnect and Reconnect control. Compact and Expire make happen what in
// a real store happens with time: there is no clock in here.
//
// It is safe for use by several goroutines. It has no feature that etcd lacks;
// store/storetest holds both to the same behaviour (TestConformance).
package memory
