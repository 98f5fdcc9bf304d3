// Package etcd is the store on etcd v3: a client for one cluster with several
// endpoints, TLS and user and password, and an embedded server with a single
// member for small sites and the lab.
//
// The processes call Open, `tortie datastore` calls Serve. A Store is safe for
// use by several goroutines. Each Watch has one goroutine that fills a queue
// and, while its stream is up, one that asks for progress; all end with the
// watch's context.
//
// Invariants:
//   - Open and Watch never wait for a connection; a store that cannot be
//     reached shows as Connected false and in the log (storetest,
//     WatchBeforeConnection; TestServerGone).
//   - The server's certificate is verified against the host name or address
//     of the endpoint in use (TestServerName); all TLS files are read again
//     for each connection (TestRotation); a key file that others can read is
//     refused (TestKeyPermissions).
//   - A watch holds two pages of the snapshot at most, and never more changes
//     than there are keys (TestSnapshotWaitsForConsumer, TestQueueCoalesces).
//   - A store that lost its data, or another one at the same address, is
//     told from one that was away: everything is listed again
//     (TestReplacedStore).
package etcd
