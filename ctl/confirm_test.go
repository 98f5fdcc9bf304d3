package ctl

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
)

// A policy is taken back when time is up, when the session ends and when the
// command is interrupted; though the datastore is away for a while; and not what
// somebody else has changed meanwhile.
//
// Pain 19: elsewhere a mistake in a host's policy locks its operator out.
func TestNotConfirmed(t *testing.T) {
	const name = "p"
	path := api.Key{Kind: api.KindGlobalNetworkPolicy, Name: name}.Path()
	file := filepath.Join(t.TempDir(), "p.yaml")
	doc := `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"p"},"spec":{"selector":"all()","types":["Ingress"]}}`
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, confirm, says string
		meanwhile           func(s *memory.Memory, cancel func())
		stays               bool
	}{
		{"time is up", "50ms", "not confirmed within 50ms", nil, false},
		{"the session ends", "1m", "the session ended", func(*memory.Memory, func()) { _ = syscall.Kill(os.Getpid(), syscall.SIGHUP) }, false},
		{"interrupted", "1m", "interrupted", func(_ *memory.Memory, cancel func()) { cancel() }, false},
		{"the datastore is away", "1m", "interrupted", func(s *memory.Memory, cancel func()) {
			s.Disconnect()
			cancel()
			time.AfterFunc(300*time.Millisecond, s.Reconnect)
		}, false},
		{"changed by others", "1m", "GlobalNetworkPolicy(p) is left: it was changed by others meanwhile", func(s *memory.Memory, cancel func()) {
			_, _ = s.Commit(context.Background(), store.Op{Path: path, Value: []byte(strings.Replace(doc, "Ingress", "Egress", 1)), If: store.AnyRevision})
			cancel()
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			in, hold := io.Pipe() // somebody is there and says nothing
			defer func() { _ = hold.Close() }()
			var out bytes.Buffer
			asked := &listening{want: "Press Enter", seen: make(chan struct{})}
			root := &cobra.Command{Use: "tortie"}
			root.AddCommand(Commands(Options{Open: func(context.Context) (store.Store, func(), error) { return s, func() {}, nil }})...)
			root.SetIn(in)
			root.SetOut(&out)
			root.SetErr(asked)
			root.SetArgs([]string{"apply", "-f", file, "--confirm=" + c.confirm})
			code := make(chan int, 1)
			go func() { code <- Execute(ctx, root) }()
			select {
			case <-asked.seen:
			case <-time.After(10 * time.Second):
				t.Fatal("it does not ask")
			}
			if c.meanwhile != nil {
				c.meanwhile(s, cancel)
			}
			if n := <-code; n != 1 || !strings.Contains(asked.text.String(), c.says) {
				t.Errorf("exit code %d\n%s", n, &asked.text)
			}
			entries, _, err := s.List(context.Background(), path)
			if err != nil || (len(entries) == 1) != c.stays {
				t.Errorf("stored is %v, %v", entries, err)
			}
			if strings.Contains(out.String(), "taken back") == c.stays {
				t.Errorf("it says %s", &out)
			}
		})
	}
}

// listening collects what is written, and tells when a text has been.
type listening struct {
	want string
	text bytes.Buffer
	seen chan struct{}
	told bool
}

func (w *listening) Write(p []byte) (int, error) {
	_, _ = w.text.Write(p)
	if !w.told && strings.Contains(w.text.String(), w.want) {
		w.told = true
		close(w.seen)
	}
	return len(p), nil
}
