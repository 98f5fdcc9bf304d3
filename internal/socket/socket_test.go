package socket

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestServeAndGet(t *testing.T) {
	path := Path(filepath.Join(t.TempDir(), "run"), "agent")
	mux := http.NewServeMux()
	mux.HandleFunc("/show/x", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "hello") })
	s, err := Serve(path, mux)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if body, err := Get(t.Context(), path, "/show/x"); err != nil || string(body) != "hello" {
		t.Errorf("got %q, %v", body, err)
	}
	if _, err := Get(t.Context(), path, "/show/y"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("unknown page: %v", err)
	}
	if _, err := Serve(path, mux); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second server: %v", err)
	}
	s.Close()
	if s, err = Serve(path, mux); err != nil {
		t.Fatalf("serve again: %v", err)
	}
	s.Close()
}

func TestServeReplacesDeadSocket(t *testing.T) {
	path := Path(t.TempDir(), "agent")
	s, err := Serve(path, http.NewServeMux())
	if err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves: the file without a listener.
	if err := os.Link(path, path+".left"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Rename(path+".left", path); err != nil {
		t.Fatal(err)
	}
	if s, err = Serve(path, http.NewServeMux()); err != nil {
		t.Fatal(err)
	}
	s.Close()
}
