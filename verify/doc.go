// Package verify reads our tables back from the kernel and decides whether
// they do what the objects of the cluster say, for every packet that can open
// a connection and not only for those that somebody thought of.
//
// It shares no code with what writes the tables (kernel/nft), with what
// compiles policy (compile, calc), and none of their ideas: Read decodes
// whatever there is, and a machine runs the chains over whole sets of headers
// (space), expression by expression as the kernel does, whatever they are for.
// Check asks explain what policy an endpoint has, works out what that allows
// over the same space, and compares. Where the two differ there is a witness,
// a packet that passes and must not or the other way round, or that is led to
// another address than it should.
//
// What is looked at is the first packet of a connection, forwarded, from an
// interface of the host to another: from each endpoint outwards, from outside
// to each, from each to others of the host. Outside is an interface that no
// host endpoint names, and each that one names. Limits of rates and connections
// count as not reached. An expression that the machine does not know, and that
// matters, makes the packets that come to it undecided, never equal.
//
// Invariants:
//   - on every random cluster, whose packets proof sends, the kernel does what
//     policy says (TestRandomClusters)
//   - a changed table is found wrong, and the packet that is named shows it; or
//     packets at the edges of policy show no difference (TestMutations)
//   - the machine does what the kernel's expressions do (TestExpressions)
//   - what is not known is said (TestCannotDecide)
//   - whatever the kernel sends, reading it ends without a panic (FuzzDecode)
package verify
