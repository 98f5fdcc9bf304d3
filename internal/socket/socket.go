// Package socket is the door through which a running process is looked at: HTTP
// on a unix socket that only its owner can open, plain text under /show/, JSON
// under /health and /counters. agent and bgp serve on it; ctl reads from it.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Server serves until Close.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Path is where a process of the given name listens.
func Path(runDir, process string) string { return filepath.Join(runDir, process+".sock") }

// Serve listens on path, mode 0600. A socket that a dead process left there is
// replaced; one that answers is an error.
func Serve(path string, handler http.Handler) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another process serves there", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path)
	}
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	s := &Server{
		http: &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // always http.ErrServerClosed
	}()
	return s, nil
}

// Close ends the server and removes its socket.
func (s *Server) Close() {
	_ = s.http.Close()
	<-s.done
}

// Get asks the process that serves on path and returns the body. An answer
// other than 200 is an error that carries the body.
func Get(ctx context.Context, path, url string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unix"+url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return body, fmt.Errorf("%s answers %s: %s", path, resp.Status, body)
	}
	return body, nil
}
