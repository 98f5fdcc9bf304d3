package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/internal/socket"
	"tortie/store"
	"tortie/store/etcd"
	"tortie/store/memory"
)

// The scripts in testdata run the commands as an operator does. Beside
// testscript's own they have
//
//	tortie ARG… [<FILE]        run a command, with FILE as its stdin
//	put PATH FILE              store what FILE has
//	value PATH                 print what is stored there
//	keys PREFIX                print the keys, and the revision of each
//	host NAME alive            a host that lives and reports nothing
//	host NAME applied REV      a host that reports REV
//	host NAME follows          a host that applies what is stored and, while somebody waits, reports it
//	host NAME gone             it is not there any more
//	serve PROCESS PAGE FILE    a process of this host that shows FILE
//
// A script is run on the store in memory and on an etcd of its own.

func TestScriptsMemory(t *testing.T) {
	runScripts(t, func(*testscript.Env) (store.Store, error) { return memory.New(), nil })
}

func TestScriptsEtcd(t *testing.T) {
	runScripts(t, func(env *testscript.Env) (store.Store, error) {
		server, err := etcd.Serve(etcd.ServeConfig{Dir: filepath.Join(env.WorkDir, ".etcd"), Listen: []string{"http://127.0.0.1:0"}})
		if err != nil {
			return nil, err
		}
		env.Defer(server.Close)
		s, err := etcd.Open(etcd.Config{Endpoints: server.Endpoints()})
		if err != nil {
			return nil, err
		}
		env.Defer(func() { _ = s.Close() })
		return s, nil
	})
}

type storeKey struct{}

func runScripts(t *testing.T, open func(*testscript.Env) (store.Store, error)) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s, err := open(env)
			env.Values[storeKey{}] = s
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"tortie": tortieCmd, "put": putCmd, "value": valueCmd, "keys": keysCmd, "host": hostCmd, "serve": serveCmd,
		},
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
	})
}

func scriptStore(ts *testscript.TestScript) store.Store { return ts.Value(storeKey{}).(store.Store) }

func commit(ts *testscript.TestScript, ops ...store.Op) {
	_, err := scriptStore(ts).Commit(context.Background(), ops...)
	ts.Check(err)
}

func tortieCmd(ts *testscript.TestScript, neg bool, args []string) {
	work := ts.Getenv("WORK") + string(filepath.Separator)
	root := &cobra.Command{Use: "tortie"}
	root.AddCommand(Commands(Options{
		Open:    func(context.Context) (store.Store, func(), error) { return scriptStore(ts), func() {}, nil },
		RunDir:  func() (string, error) { return ts.MkAbs("run"), nil },
		Version: "v1.2.3",
	})...)
	var stdout, stderr bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	root.SetIn(strings.NewReader(""))
	if n := len(args); n > 0 && strings.HasPrefix(args[n-1], "<") {
		root.SetIn(strings.NewReader(ts.ReadFile(args[n-1][1:])))
		args = args[:n-1]
	}
	args = append([]string{}, args...)
	for i := 1; i < len(args); i++ {
		if args[i-1] == "-f" && args[i] != "-" {
			args[i] = ts.MkAbs(args[i]) // the script's folder is not this process'
		}
	}
	root.SetArgs(args)
	code := Execute(context.Background(), root)
	_, _ = ts.Stdout().Write([]byte(strings.ReplaceAll(stdout.String(), work, "")))
	_, _ = ts.Stderr().Write([]byte(strings.ReplaceAll(stderr.String(), work, "")))
	if (code != 0) != neg {
		ts.Fatalf("exit code %d\n%s%s", code, &stdout, &stderr)
	}
}

func putCmd(ts *testscript.TestScript, _ bool, args []string) {
	commit(ts, store.Op{Path: args[0], Value: []byte(strings.TrimSpace(ts.ReadFile(args[1]))), If: store.AnyRevision})
}

func valueCmd(ts *testscript.TestScript, neg bool, args []string) {
	entries, _, err := scriptStore(ts).List(context.Background(), args[0])
	ts.Check(err)
	for _, e := range entries {
		if e.Path == args[0] {
			_, _ = fmt.Fprintf(ts.Stdout(), "%s\n", e.Value)
			return
		}
	}
	if !neg {
		ts.Fatalf("no key %s", args[0])
	}
}

func keysCmd(ts *testscript.TestScript, _ bool, args []string) {
	entries, _, err := scriptStore(ts).List(context.Background(), args[0])
	ts.Check(err)
	_ = ts.Stdout() // what was printed before does not stay
	for _, e := range entries {
		_, _ = fmt.Fprintf(ts.Stdout(), "%s %d\n", e.Path, e.Revision)
	}
}

func hostCmd(ts *testscript.TestScript, _ bool, args []string) {
	name := args[0]
	switch args[1] {
	case "alive":
		commit(ts, store.Op{Path: api.LivenessPath("", name), Value: []byte("{}"), If: store.AnyRevision})
	case "applied":
		revision, err := strconv.ParseInt(args[2], 10, 64)
		ts.Check(err)
		commit(ts, report(name, revision))
	case "gone":
		commit(ts,
			store.Op{Path: api.LivenessPath("", name), Delete: true, If: store.AnyRevision},
			store.Op{Path: api.AppliedPath(name), Delete: true, If: store.AnyRevision})
	case "follows":
		commit(ts, store.Op{Path: api.LivenessPath("", name), Value: []byte("{}"), If: store.AnyRevision})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go follow(ctx, scriptStore(ts), name, done)
		ts.Defer(func() { cancel(); <-done })
	default:
		ts.Fatalf("host: want alive, applied, gone or follows")
	}
}

func report(host string, revision int64) store.Op {
	value, _ := json.Marshal(api.Applied{Revision: revision, At: api.Timestamp(time.Now())})
	return store.Op{Path: api.AppliedPath(host), Value: value, If: store.AnyRevision}
}

// follow does what an agent does with the keys that apply --wait stands on.
func follow(ctx context.Context, s store.Store, host string, done chan struct{}) {
	defer close(done)
	w := s.Watch(ctx, api.Root, api.WaitRoot)
	waiting := map[string]bool{}
	for {
		batch, err := w.Next(ctx)
		if err != nil {
			return
		}
		for _, e := range batch.Events {
			if strings.HasPrefix(e.Path, api.WaitRoot) {
				waiting[e.Path] = !e.Deleted
				if e.Deleted {
					delete(waiting, e.Path)
				}
			}
		}
		if batch.InSync && len(waiting) > 0 {
			_, _ = s.Commit(ctx, report(host, batch.Revision))
		}
	}
}

func serveCmd(ts *testscript.TestScript, _ bool, args []string) {
	body := ts.ReadFile(args[2])
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+args[1], func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
	server, err := socket.Serve(socket.Path(ts.MkAbs("run"), args[0]), mux)
	ts.Check(err)
	ts.Defer(server.Close)
}
