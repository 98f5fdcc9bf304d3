package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"tortie/internal/socket"
)

// Rates are of the time between two looks at the agent, and what grew most is
// first; a counter that is smaller than before began anew.
func TestTopRates(t *testing.T) {
	rule := 0
	counts := func(web, old, renewed uint64) []socket.RuleCount {
		row := func(name string, n uint64) socket.RuleCount {
			return socket.RuleCount{Tier: "default", Kind: "GlobalNetworkPolicy", Name: name, Direction: "Ingress", Rule: &rule, Action: "Allow", Packets: n, Bytes: 100 * n}
		}
		return []socket.RuleCount{row("old", old), row("renewed", renewed), row("web", web)}
	}
	var out bytes.Buffer
	if err := (&top{}).table(&out, counts(30, 1000, 4), counts(10, 1000, 50), 2*time.Second); err != nil {
		t.Fatal(err)
	}
	want := `
TIER POLICY RULE ACTION PACKETS BYTES PACKETS/S BYTES/S
default GlobalNetworkPolicy(web) ingress[0] Allow 30 3000 10.0 1000.0
default GlobalNetworkPolicy(renewed) ingress[0] Allow 4 400 2.0 200.0
default GlobalNetworkPolicy(old) ingress[0] Allow 1000 100000 0.0 0.0
`
	if got := regexp.MustCompile(" +").ReplaceAllString(out.String(), " "); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// Without --once it goes on until it is interrupted.
func TestTopGoesOn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	runDir, asked := t.TempDir(), atomic.Int64{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+socket.CountersPage, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if n == 4 {
			cancel()
			<-r.Context().Done() // the answer comes too late
			return
		}
		_ = json.NewEncoder(w).Encode([]socket.RuleCount{{Kind: "Tier", Tier: "t", Name: "t", Direction: "Egress", Action: "Deny", Packets: uint64(n)}})
	})
	server, err := socket.Serve(socket.Path(runDir, "agent"), mux)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	root := &cobra.Command{Use: "tortie"}
	root.AddCommand(Commands(Options{RunDir: func() (string, error) { return runDir, nil }})...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs([]string{"top", "policy", "--interval", "100ms"})
	if code := Execute(ctx, root); code != 0 {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	if n := strings.Count(out.String(), "TIER"); n != 3 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%d tables:\n%s", n, &out)
	}
}
