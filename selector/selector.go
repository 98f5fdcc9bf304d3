package selector

// Selector is a parsed selector; it is immutable and safe for concurrent use.
type Selector struct {
	text string
}

// Requirement is a condition that every label set matched by a selector meets:
// Label is present and, where Values is not nil, has one of Values.
type Requirement struct {
	Label  string
	Values []string
}
