package tortie

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promised are the rows of promises whose tests name them, in a comment
// "Promise F4: …".
const promised = `F4 F5 F6 F7 F10 F11 F12 F13 F14 F16 F17 F18 F19 F20
	S1 S2 S3 S4 S5 S6 S7 S8 S9 S10 S11 S12 S13
	V1 V2 V4 V5 V8 V9
	D1 D2 D3 D4 D5 D6 D7
	B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B13 B14 B15 B16 B17
	C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 C11 C15 C17 C18
	L2 L3 L4
	I1 I2 I7 I11
	N12 X7`

// pains are what operators of such systems suffer from, and what a test shows
// that they do not here, in a comment "Pain 5: …".
const pains = `5 6 15 18 19 20 25`

var (
	promiseComment = regexp.MustCompile(`Promises? ([A-Z][0-9]+(?:(?:, | and )[A-Z][0-9]+)*)`)
	painComment    = regexp.MustCompile(`Pain ([0-9]+):`)
)

// TestPromises: each promise, and each pain, has a test that names it.
func TestPromises(t *testing.T) {
	byDir, _, parsed := files(t)
	named := map[string]bool{}
	for _, paths := range byDir {
		for _, path := range paths {
			if !isTest(path) {
				continue
			}
			for _, group := range parsed[path].Comments {
				for _, m := range painComment.FindAllStringSubmatch(group.Text(), -1) {
					named[m[1]] = true
				}
				for _, m := range promiseComment.FindAllStringSubmatch(group.Text(), -1) {
					for id := range strings.FieldsFuncSeq(m[1], func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }) {
						named[id] = true
					}
				}
			}
		}
	}
	var missing []string
	for id := range strings.FieldsSeq(promised + " " + pains) {
		if !named[id] {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		t.Errorf("no test names: %s", strings.Join(missing, ", "))
	}
}

// parsers are the packages that read what others wrote. Each has a fuzz target.
var parsers = []string{
	"selector", "api", "config", "ctl", "calc", "bgp",
	"internal/nlattr", "kernel/link", "kernel/route", "kernel/nft", "kernel/qdisc", "kernel/conntrack", "kernel/nflog",
}

func TestParsersAreFuzzed(t *testing.T) {
	tests := testFunctions(t)
	for _, dir := range parsers {
		if !slices.ContainsFunc(tests[dir], func(name string) bool { return strings.HasPrefix(name, "Fuzz") }) {
			t.Errorf("package %s has no fuzz target", dir)
		}
	}
}

// testFunctions are the names of tests, fuzz targets and benchmarks, by folder.
func testFunctions(t *testing.T) map[string][]string {
	t.Helper()
	byDir, _, parsed := files(t)
	names := map[string][]string{}
	for dir, paths := range byDir {
		for _, path := range paths {
			if !isTest(path) {
				continue
			}
			for _, decl := range parsed[path].Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
					names[dir] = append(names[dir], fn.Name.Name)
				}
			}
		}
	}
	return names
}

var testName = regexp.MustCompile(`(?:([a-z0-9/]+)[ .])?\b((?:Test|Fuzz|Benchmark)[A-Z]\w*)`)

// TestInvariantsAreHeld: a test that a package comment names exists, in that
// package or in the one whose name precedes it.
func TestInvariantsAreHeld(t *testing.T) {
	byDir, _, parsed := files(t)
	tests := testFunctions(t)
	for dir, paths := range byDir {
		for _, path := range paths {
			if parsed[path].Doc == nil || isTest(path) {
				continue
			}
			for _, m := range testName.FindAllStringSubmatch(parsed[path].Doc.Text(), -1) {
				if m[2] != "TestMain" && !slices.Contains(tests[dir], m[2]) && !slices.Contains(tests[m[1]], m[2]) {
					t.Errorf("%s names %s, which does not exist", path, m[2])
				}
			}
		}
	}
}

var (
	link     = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	mentions = regexp.MustCompile("`([a-z0-9._-]+(?:/[a-z0-9._-]+)+\\.(?:go|md|txt|yaml))`")
)

// TestDocuments: what a document links to or names as a file exists.
func TestDocuments(t *testing.T) {
	for _, dir := range []string{".", "docs", "docs/adr"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".md") {
				continue
			}
			path := dir + "/" + e.Name()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllSubmatch(text, -1) {
				if to := string(m[1]); !strings.Contains(to, "://") {
					exists(t, path, dir+"/"+to)
				}
			}
			for _, m := range mentions.FindAllSubmatch(text, -1) {
				exists(t, path, string(m[1]))
			}
		}
	}
}

func exists(t *testing.T, document, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s refers to %s: %v", document, path, err)
	}
}
