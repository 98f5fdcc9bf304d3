package nft

import (
	"strings"
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

func TestDiffOfCorrectAndDamagedKernel(t *testing.T) {
	ns := nstest.New(t)
	want := desired.New()
	want.Sets.Set(desired.SetKey{ID: 7, Family: 4}, desired.Set{Selector: "all()"})
	want.Sets.Set(desired.SetKey{ID: 7, Family: 6}, desired.Set{Selector: "all()"})
	want.Programs.Set("i-1", desired.Program{Stages: []desired.Stage{{Name: "default", Rules: []desired.Rule{
		{ID: "r0", Verdict: desired.Allow, Protocol: 6, Source: desired.Peer{Set: 7}},
	}}}})
	tables, err := Open(Options{WorkloadPrefixes: []string{"cali"}, HostAction: HostDrop})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tables.Close() }()
	diff := func() string {
		t.Helper()
		text, err := tables.Diff(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if got := diff(); !strings.Contains(got, "+ table inet\n") || !strings.Contains(got, "+ set s4h-0000000000000007\n") {
		t.Errorf("an empty kernel lacks:\n%s", got)
	}
	if _, err := tables.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := diff(); got != "" {
		t.Errorf("a correct kernel differs:\n%s", got)
	}
	ns.Run(t, "nft", "add", "element", "inet", "tortie", "s4h-0000000000000007", "{ 192.0.2.1 }")
	ns.Run(t, "nft", "flush", "chain", "inet", "tortie", "forward")
	got := diff()
	if !strings.Contains(got, "- element s4h-0000000000000007 192.0.2.1\n") || !strings.Contains(got, "~ chain forward: ") {
		t.Errorf("a damaged kernel differs:\n%s", got)
	}
	if again := diff(); again != got {
		t.Errorf("Diff wrote something: %s", again)
	}
}
