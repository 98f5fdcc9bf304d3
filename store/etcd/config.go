package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// Config says how to reach a cluster. Only Endpoints must be set.
type Config struct {
	// Endpoints are URLs, https://host:port or http://host:port, all of one
	// scheme; host:port alone is https if any TLS file is named, else http.
	Endpoints []string
	// CAFile verifies the servers, instead of the system's roots. CertFile
	// and KeyFile identify this client; both or neither.
	CAFile, CertFile, KeyFile string
	// Username and Password; both or neither.
	Username, Password string
	// DialTimeout bounds one attempt to connect, RequestTimeout one request.
	// Both default to 5 s.
	DialTimeout, RequestTimeout time.Duration
	// Log gets a line when the connection of a watch comes or goes.
	Log *slog.Logger
}

// normalise checks the configuration and fills in defaults.
func (c *Config) normalise() error {
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if (c.Username == "") != (c.Password == "") {
		return errors.New("user name and password must be given together")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("certificate file and key file must be given together")
	}
	return c.normaliseEndpoints()
}

func (c *Config) normaliseEndpoints() error {
	if len(c.Endpoints) == 0 {
		return errors.New("no endpoint is given")
	}
	files := c.CAFile != "" || c.CertFile != ""
	endpoints := make([]string, len(c.Endpoints))
	for i, e := range c.Endpoints {
		scheme, address, found := strings.Cut(strings.TrimSpace(e), "://")
		if !found {
			scheme, address = "http", scheme
			if files {
				scheme = "https"
			}
		}
		address = strings.TrimSuffix(address, "/")
		if _, _, err := net.SplitHostPort(address); err != nil || scheme != "http" && scheme != "https" {
			return fmt.Errorf("endpoint %q: want http://host:port or https://host:port", e)
		}
		if scheme == "http" && files {
			return fmt.Errorf("endpoint %q would not use TLS, though TLS files are configured", e)
		}
		endpoints[i] = scheme + "://" + address
		if !strings.HasPrefix(endpoints[0], scheme+"://") {
			return fmt.Errorf("endpoints %q and %q differ in scheme", c.Endpoints[0], e)
		}
	}
	c.Endpoints = endpoints
	return nil
}

func (c *Config) secure() bool { return strings.HasPrefix(c.Endpoints[0], "https://") }

// fileCredentials makes TLS connections. It reads the files for each one, so
// that a rotated certificate, key or authority needs no restart.
type fileCredentials struct {
	caFile, certFile, keyFile string
}

var _ credentials.TransportCredentials = fileCredentials{}

// load reads the files.
func (c fileCredentials) load() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.caFile != "" {
		pem, err := os.ReadFile(c.caFile)
		if err != nil {
			return nil, fmt.Errorf("read authority file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authority file %s: no certificate in it", c.caFile)
		}
	}
	if c.certFile != "" {
		if err := checkKeyFile(c.keyFile); err != nil {
			return nil, err
		}
		pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s and key %s: %w", c.certFile, c.keyFile, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// checkKeyFile refuses a private key that others than its owner can read.
func checkKeyFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("key file %s: mode %04o lets others than its owner use it; set it to 0600", path, mode)
	}
	return nil
}

// ClientHandshake implements credentials.TransportCredentials. authority is
// the endpoint in use; the server's certificate must be for it.
func (c fileCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := c.load()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (c fileCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("client credentials serve no one")
}

// Info implements credentials.TransportCredentials.
func (c fileCredentials) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}).Info()
}

// Clone implements credentials.TransportCredentials.
func (c fileCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials. There is no
// other name than the endpoint's.
func (c fileCredentials) OverrideServerName(string) error {
	return errors.New("the server's name is the endpoint's")
}
