package ctl

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"tortie/store"
	"tortie/store/memory"
)

// block is a fenced block of a document.
type block struct {
	line int // of the fence
	lang string
	text string
}

// section is what stands below a heading of the second level.
type section struct {
	name   string
	blocks []block
}

// sections takes a document of Markdown apart.
func sections(text string) []section {
	list := []section{{}}
	var open *block
	n := 0
	for l := range strings.Lines(text) {
		n++
		last := &list[len(list)-1]
		lang, fence := strings.CutPrefix(strings.TrimRight(l, "\n"), "```")
		switch {
		case fence && open == nil:
			open = &block{line: n, lang: lang}
		case fence:
			last.blocks = append(last.blocks, *open)
			open = nil
		case open != nil:
			open.text += l
		case strings.HasPrefix(l, "## "):
			list = append(list, section{name: strings.TrimSpace(l[3:])})
		}
	}
	return list
}

// asWritten reports whether output is what a document says: the same lines, but
// that a line of "..." stands for any.
func asWritten(want, got []string) bool {
	for i, w := range want {
		if strings.TrimSpace(w) == "..." {
			for skip := range len(got) - i + 1 {
				if asWritten(want[i+1:], got[i+skip:]) {
					return true
				}
			}
			return false
		}
		if i >= len(got) || got[i] != w {
			return false
		}
	}
	return len(want) == len(got)
}

// docSite is the site that the examples of a section are run on.
type docSite struct {
	t     *testing.T
	store store.Store
	dir   string // with the files that the section names
}

func newDocSite(t *testing.T) *docSite {
	s := &docSite{t, memory.New(), t.TempDir()}
	if out := s.run("", "init"); strings.Contains(out, "Error") {
		t.Fatal(out)
	}
	return s
}

// run runs a command and returns all that it prints.
func (s *docSite) run(stdin string, args ...string) string {
	var out bytes.Buffer
	root := &cobra.Command{Use: "tortie"}
	root.AddCommand(Commands(Options{Open: func(context.Context) (store.Store, func(), error) { return s.store, func() {}, nil }})...)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	for i := 1; i < len(args); i++ {
		if args[i-1] == "-f" && args[i] != "-" {
			args[i] = filepath.Join(s.dir, args[i])
		}
	}
	root.SetArgs(args)
	Execute(s.t.Context(), root)
	return strings.ReplaceAll(out.String(), s.dir+string(filepath.Separator), "")
}

// manifests keeps a block of YAML under the name in its first line or, if that
// has none, applies it.
func (s *docSite) manifests(b block) {
	first, _, _ := strings.Cut(b.text, "\n")
	if name, ok := strings.CutPrefix(first, "# "); ok && strings.HasSuffix(name, ".yaml") {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(b.text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	if out := s.run(b.text, "apply", "-f", "-"); strings.Contains(out, "Error") || strings.Contains(out, "Warning") {
		s.t.Errorf("line %d: %s", b.line, out)
	}
}

// console runs the commands of a block and compares what they print. It returns
// how many there were.
func (s *docSite) console(b block) int {
	n := 0
	for part := range strings.SplitSeq("\n"+strings.TrimRight(b.text, "\n"), "\n$ ") {
		lines := strings.Split(part, "\n")
		if part == "" {
			continue // before the first command
		}
		n++
		args, ok := strings.CutPrefix(lines[0], "tortie ")
		if !ok {
			s.t.Errorf("line %d: %q is no command of ours", b.line, lines[0])
			continue
		}
		got := s.run("", words(args)...)
		if !asWritten(lines[1:], strings.Split(strings.TrimRight(got, "\n"), "\n")) {
			s.t.Errorf("line %d: tortie %s\nwant\n%s\ngot\n%s", b.line, args, strings.Join(lines[1:], "\n"), got)
		}
	}
	return n
}

var verdictLine = regexp.MustCompile(`^(?:IPv([46]) )?(\S+) → (\S+) (\S+): (\S.*)$`)

// verdicts asks explain what each line of a block says, and compares its last
// line. It returns how many there were.
func (s *docSite) verdicts(b block) int {
	n := 0
	for l := range strings.Lines(b.text) {
		n++
		m := verdictLine.FindStringSubmatch(strings.TrimSpace(l))
		if m == nil {
			s.t.Errorf("line %d: %q: want FROM → TO PORT: VERDICT", b.line+n, l)
			continue
		}
		args := []string{"explain", "--from", m[2], "--to", m[3], "--port", m[4]}
		if m[1] != "" {
			args = append(args, "--ip-version", m[1])
		}
		out := strings.Split(strings.TrimSpace(s.run("", args...)), "\n")
		if got := out[len(out)-1]; got != m[5] {
			s.t.Errorf("line %d: %s\ngot %s", b.line+n, strings.TrimSpace(l), got)
		}
	}
	return n
}

// words splits a command as a shell does that knows quotes alone.
func words(text string) []string {
	var list []string
	for i, quoted := range strings.Split(text, `"`) {
		if i%2 == 1 {
			list = append(list, quoted)
		} else {
			list = append(list, strings.Fields(quoted)...)
		}
	}
	return list
}

// runDocument runs all examples of a document. What the first section with
// manifests has is there in all that follow. It returns how many commands
// there were.
func runDocument(t *testing.T, text string) (commands int) {
	var cast []block
	for _, sec := range sections(text) {
		s := newDocSite(t)
		for _, b := range cast {
			s.manifests(b)
		}
		var own []block
		for _, b := range sec.blocks {
			switch b.lang {
			case "yaml":
				s.manifests(b)
				own = append(own, b)
			case "console":
				commands += s.console(b)
			case "verdicts":
				commands += s.verdicts(b)
			default:
				t.Errorf("line %d: a block of %q is not tested", b.line, b.lang)
			}
		}
		if cast == nil {
			cast = own
		}
	}
	return commands
}

// TestPolicyDocument: what docs/policy.md says the commands print, they print.
func TestPolicyDocument(t *testing.T) {
	text, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := runDocument(t, string(text)); n < 50 {
		t.Errorf("only %d commands were run", n)
	}
}

// TestDocumentsAreCompared: a wrong line, one too many and one too few are seen.
func TestDocumentsAreCompared(t *testing.T) {
	got := strings.Split("a b c d", " ")
	for text, want := range map[string]bool{
		"a b c d": true, "...": true, "... d": true, "a ...": true, "a ... d": true, "... b ... d": true, "a b c d ...": true,
		"a b c": false, "a b c d e": false, "a b x d": false, "... c": false, "b ...": false, "a ... x": false, "... d d": false, "": false,
	} {
		if asWritten(strings.Fields(text), got) != want {
			t.Errorf("%q: want %v", text, want)
		}
	}
	list := sections("x\n```yaml\n# a.yaml\nb\n```\n## One\ntext\n```console\n$ tortie x\n```\n")
	if len(list) != 2 || list[1].name != "One" || list[0].blocks[0] != (block{2, "yaml", "# a.yaml\nb\n"}) || list[1].blocks[0].text != "$ tortie x\n" {
		t.Errorf("%+v", list)
	}
}
