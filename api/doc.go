// Package api is the vocabulary of the data model: the resources that are
// stored in etcd under /calico/resources, the keys they are stored at, how
// they are read and written as JSON, their defaults and their validation.
//
// Every other package that handles resources calls it; it calls only package
// selector. It does no I/O, logs nothing, starts no goroutine and reads no
// clock. All functions may be called concurrently; an object must not be
// changed while another goroutine uses it.
//
// Reading (Decode) is lenient, since the store holds what any writer of any
// release put there: a field that cannot be read is reported as a Problem and
// fails closed for itself alone. Writing (DecodeManifest, Validate, Prepare,
// Encode) is strict.
//
// Invariants, each with the test that holds it:
//
//   - Path and ParsePath are each other's reverse: TestPaths, FuzzParsePath.
//   - No stored value makes Decode panic, and all that it accepts can be
//     encoded: FuzzDecode.
//   - A rule of which any field was damaged never matches more, if it allows,
//     nor less, if it denies: TestDamagedRuleNeverWidens.
//   - What is written after a change differs from what was stored only by that
//     change: TestReadModifyWrite, TestRandomChangeKeepsTheRest.
//   - A list of addresses, a port or a selector that is in an object's field
//     for good values was well formed; in a decoded rule, ports come only with
//     a protocol that has ports, and an ICMP match only with ICMP:
//     TestDecodedRules.
//   - Decode retains nothing of the stored value: TestDecodeRetainsNothing.
package api
