package tortie

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// row is one line of the table of packages in ARCHITECTURE.md: what a package
// may import beyond the standard library and golang.org/x/sys, and how many
// lines of code that is not a test it may have.
type row struct {
	own   string // packages of this module, separated by spaces
	other string // modules
	lines int
}

const (
	netlink    = "github.com/vishvananda/netlink github.com/vishvananda/netns"
	rawNetlink = "github.com/mdlayher/netlink"
	prometheus = "github.com/prometheus/client_golang"
	cobra      = "github.com/spf13/cobra"
	yaml       = "sigs.k8s.io/yaml"
)

var rows = map[string]row{
	"selector":         {"", "", 700},
	"api":              {"selector", "", 3000},
	"config":           {"api", yaml, 700},
	"store":            {"api", "", 400},
	"store/etcd":       {"api store", "go.etcd.io/etcd go.uber.org/zap google.golang.org/grpc", 1000},
	"store/memory":     {"api store", "", 300},
	"store/storetest":  {"api store", "", 700},
	"table":            {"", "", 300},
	"labelindex":       {"api selector table", "", 700},
	"desired":          {"api table", "", 600},
	"compile":          {"api desired table", "", 1500},
	"calc":             {"api selector table labelindex desired compile", "", 2500},
	"explain":          {"api selector", "", 800},
	"kernel/link":      {"table desired internal/nlattr", netlink, 900},
	"kernel/route":     {"table desired internal/nlattr", netlink, 900},
	"kernel/nft":       {"table desired", rawNetlink, 3000},
	"kernel/qdisc":     {"table desired internal/nlattr kernel/link", netlink, 1000},
	"kernel/conntrack": {"table desired internal/nlattr", netlink, 400},
	"kernel/nflog":     {"table desired internal/nlattr", rawNetlink, 400},
	"status":           {"api store desired", "", 400},
	"autohep":          {"api store", "", 350},
	"agent":            {"internal/socket explain api selector config store table labelindex desired compile calc kernel/link kernel/route kernel/nft kernel/qdisc kernel/conntrack kernel/nflog status autohep", prometheus + " golang.org/x/time", 1000},
	"bgp":              {"internal/socket api config store table desired kernel/route", "github.com/osrg/gobgp/v4 " + prometheus, 2500},
	"analysis":         {"api explain space", "", 1500},
	"ctl":              {"internal/socket api config store explain analysis verify", cobra + " " + yaml, 2500},
	"lab":              {"api store explain", netlink, 2000},
	"internal/nstest":  {"", netlink, 300},
	"internal/nlattr":  {"", "", 100},
	"internal/socket":  {"", "", 150},
	"cmd/tortie":       {"api config store store/etcd agent bgp ctl lab explain verify", cobra, 700},
	"space":            {"", "", 600},
	"verify":           {"api explain space", rawNetlink, 2000},
	"proof":            {"agent api config explain store store/memory internal/nstest internal/socket", netlink, 1700},
	"bench":            {"*", "*", 3000},
	"e2e":              {"*", "*", 2000},
}

// files parses all Go files of the module, by package folder.
func files(t *testing.T) (map[string][]string, *token.FileSet, map[string]*ast.File) {
	t.Helper()
	byDir, set, parsed := map[string][]string{}, token.NewFileSet(), map[string]*ast.File{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || filepath.Dir(path) == "." {
			return nil
		}
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		byDir[dir] = append(byDir[dir], path)
		parsed[path] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return byDir, set, parsed
}

func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

func TestImportDirections(t *testing.T) {
	byDir, _, parsed := files(t)
	for dir, paths := range byDir {
		r, ok := rows[dir]
		if !ok {
			t.Errorf("package %s has no row in the table of packages", dir)
			continue
		}
		for _, path := range paths {
			if isTest(path) {
				continue
			}
			for _, spec := range parsed[path].Imports {
				imp, _ := strconv.Unquote(spec.Path.Value)
				if !r.allows(imp) {
					t.Errorf("%s imports %s, which its row does not name", path, imp)
				}
			}
		}
	}
}

func (r row) allows(imp string) bool {
	if r.own == "*" {
		return true
	}
	if own, ok := strings.CutPrefix(imp, "tortie/"); ok {
		return slices.Contains(strings.Fields(r.own), own)
	}
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		return true // the standard library
	}
	for _, mod := range append(strings.Fields(r.other), "golang.org/x/sys") {
		if imp == mod || strings.HasPrefix(imp, mod+"/") {
			return true
		}
	}
	return false
}

func TestPackageDocs(t *testing.T) {
	byDir, _, parsed := files(t)
	for dir, paths := range byDir {
		onlyTests, documented := true, false
		for _, path := range paths {
			onlyTests = onlyTests && isTest(path)
			documented = documented || parsed[path].Doc != nil && len(parsed[path].Doc.Text()) > 80
		}
		if !onlyTests && !documented {
			t.Errorf("package %s has no package comment of substance", dir)
		}
	}
}

const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxParameters    = 5
	// sizeReason begins a line of a function's comment that says why the
	// function may be larger.
	sizeReason = "Size: "
)

func TestSizes(t *testing.T) {
	byDir, set, parsed := files(t)
	raised := raisedBudgets(t)
	for dir, paths := range byDir {
		total := 0
		for _, path := range paths {
			if isTest(path) {
				continue
			}
			f := parsed[path]
			if ast.IsGenerated(f) {
				continue
			}
			lines := set.Position(f.End()).Line
			total += lines
			if lines > maxFileLines {
				t.Errorf("%s has %d lines, more than %d", path, lines, maxFileLines)
			}
			for _, decl := range f.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && !strings.Contains(fn.Doc.Text(), sizeReason) {
					checkFunction(t, set, fn)
				}
			}
		}
		budget := max(rows[dir].lines, raised[dir])
		if total > budget {
			t.Errorf("package %s has %d lines, more than its budget of %d (a line in an ADR can raise it)", dir, total, budget)
		}
	}
}

func checkFunction(t *testing.T, set *token.FileSet, fn *ast.FuncDecl) {
	t.Helper()
	start, end := set.Position(fn.Pos()), set.Position(fn.End())
	if n := end.Line - start.Line + 1; n > maxFunctionLines {
		t.Errorf("%s: %s has %d lines, more than %d", start, fn.Name.Name, n, maxFunctionLines)
	}
	if n := fn.Type.Params.NumFields(); n > maxParameters {
		t.Errorf("%s: %s has %d parameters, more than %d", start, fn.Name.Name, n, maxParameters)
	}
}

var budgetLine = regexp.MustCompile("(?m)^Budget: `([^`]+)` ([0-9]+) lines")

// raisedBudgets reads the lines of docs/adr that give a package more room.
func raisedBudgets(t *testing.T) map[string]int {
	t.Helper()
	raised := map[string]int{}
	adrs, err := filepath.Glob("docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range adrs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range budgetLine.FindAllStringSubmatch(string(text), -1) {
			raised[m[1]], _ = strconv.Atoi(m[2])
		}
	}
	return raised
}
