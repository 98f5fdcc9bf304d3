// Package storetest is the conformance suite of package store: the tests of
// store/memory and store/etcd call Run with a Harness each, and both must
// behave the same. Follow, which collects a watch into a map and checks what
// every watch promises on the way, serves other packages' tests too.
//
// It is a test helper; no product code imports it.
package storetest
