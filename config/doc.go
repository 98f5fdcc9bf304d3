// Package config puts the settings of a process together from its environment,
// its file and the FelixConfiguration resources, and remembers where each
// value came from.
//
// Each process calls Load once, when it starts, and Local.With whenever the
// resources change. With is pure; Load reads the file and the host's name. A
// Config is never changed after it was made, so it may be shared between
// goroutines.
//
// Invariants, each with the test that holds it:
//
//   - A value comes from the first source that has a good one, in the order
//     environment, file, node, default, built-in: TestPrecedence.
//   - A bad value is reported with its name and source, and the next source
//     counts: TestBadValues.
//   - Nothing that is given is ignored in silence: TestNotActedUpon.
//   - The datastore's connection and the host's name never come from the
//     datastore: TestLocalOnly.
//   - No text panics, whatever its source, and a value that counts is one that
//     its parameter accepts: FuzzSources.
//   - A password is never printed: TestSecretIsNotPrinted.
//   - docs/configuration.md says what the struct says: TestDocs.
package config
