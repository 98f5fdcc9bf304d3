// Package tortie is the root of the module. It holds only the tests that keep
// the shape of the tree: which package may import which, package comments and
// sizes. ARCHITECTURE.md has the table they enforce.
package tortie
