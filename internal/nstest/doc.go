// Package nstest gives privileged tests a kernel of their own: network
// namespaces that nothing else uses and that are gone afterwards.
//
// A test package calls Main from TestMain, which runs the whole test binary
// again in a new network and mount namespace and fails if a sysctl of the
// first one differs afterwards. Each test then calls New, which skips without
// root, and fails instead where TORTIE_TEST_PRIVILEGED=1.
//
// A goroutine is in the namespace that its locked thread is in; goroutines
// that a test starts are not, unless they are started by NS.Do or NS.Go.
// Test helper only: no product code imports it.
package nstest
