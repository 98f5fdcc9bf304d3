package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tortie/store/storetest"
)

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
	next int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), next: 1}
	a.key = a.newKey()
	template := a.template(name)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	a.cert = a.sign(template, template, &a.key.PublicKey, a.key)
	a.file = filepath.Join(a.dir, name+".pem")
	a.write(a.file, "CERTIFICATE", a.cert.Raw, 0o644)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) template(name string) *x509.Certificate {
	a.next++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func (a *authority) sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) write(file, kind string, der []byte, mode os.FileMode) {
	a.t.Helper()
	// As tools that rotate do: a new file takes the place of the old.
	if err := os.WriteFile(file+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		a.t.Fatal(err)
	}
}

// issue writes a certificate and key for one component.
func (a *authority) issue(name string, hosts ...string) (cert, key string) {
	a.t.Helper()
	template := a.template(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	private := a.newKey()
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	a.write(cert, "CERTIFICATE", a.sign(template, a.cert, &private.PublicKey, a.key).Raw, 0o644)
	a.write(key, "EC PRIVATE KEY", der, 0o600)
	return cert, key
}

// port returns the endpoint's port, to be reached by another name.
func port(t *testing.T, endpoint string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(strings.TrimPrefix(endpoint, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestServerName. Promise C17: the server's certificate must be for the host
// name, or the address, of the endpoint.
func TestServerName(t *testing.T) {
	ca := newAuthority(t, "authority")
	for _, test := range []struct {
		listen string
		names  []string // in the certificate
		dial   string
		want   string // in the error; empty for success
	}{
		{"127.0.0.1", []string{"127.0.0.1"}, "127.0.0.1", ""},
		{"127.0.0.1", []string{"localhost"}, "localhost", ""},
		{"[::1]", []string{"::1"}, "[::1]", ""},
		{"127.0.0.1", []string{"db.example.org"}, "127.0.0.1", "certificate"},
		{"127.0.0.1", []string{"db.example.org", "127.0.0.2"}, "127.0.0.1", "certificate is valid for 127.0.0.2, not 127.0.0.1"},
		{"127.0.0.1", []string{"db.example.org", "127.0.0.1"}, "localhost", "certificate is valid for db.example.org, not localhost"},
		{"[::1]", []string{"127.0.0.1"}, "[::1]", "certificate is valid for 127.0.0.1, not ::1"},
	} {
		cert, key := ca.issue("server", test.names...)
		server := serve(t, ServeConfig{Listen: []string{"https://" + test.listen + ":0"}, CertFile: cert, KeyFile: key})
		s := open(t, Config{Endpoints: []string{"https://" + test.dial + ":" + port(t, server.Endpoints()[0])}, CAFile: ca.file})
		_, _, err := s.List(t.Context(), "/")
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("certificate for %v, reached as %s: error %v, want %q", test.names, test.dial, err, test.want)
		}
		server.Close()
	}
	// Another authority's certificate with the right name.
	cert, key := newAuthority(t, "other").issue("server", "127.0.0.1")
	server := serve(t, ServeConfig{Listen: []string{"https://127.0.0.1:0"}, CertFile: cert, KeyFile: key})
	_, _, err := open(t, Config{Endpoints: server.Endpoints(), CAFile: ca.file}).List(t.Context(), "/")
	if err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a server of another authority: %v", err)
	}
}

// TestServerNameOfEachEndpoint: with several endpoints each is verified
// against its own name. Promise C17.
func TestServerNameOfEachEndpoint(t *testing.T) {
	ca := newAuthority(t, "authority")
	cert, key := ca.issue("server", "127.0.0.1")
	server := serve(t, ServeConfig{Listen: []string{"https://127.0.0.1:0"}, CertFile: cert, KeyFile: key})
	byAddress := server.Endpoints()[0]
	byName := "https://localhost:" + port(t, byAddress)
	for _, endpoints := range [][]string{{byName, byAddress}, {byAddress, byName}} {
		s := open(t, Config{Endpoints: endpoints, CAFile: ca.file})
		f := storetest.Follow(t, s, "/a/")
		f.Until("in sync through the endpoint whose name is right", func() bool { return f.Last().InSync })
	}
	s := open(t, Config{Endpoints: []string{byName}, CAFile: ca.file})
	f := storetest.Follow(t, s, "/a/")
	if err := f.Next(t.Context()); err != nil || f.Last().Connected {
		t.Errorf("connected %v through the wrong name only; error %v", f.Last().Connected, err)
	}
}

// TestOneCertificatePerComponent. Promise C15: each component has a key and
// certificate of its own; who has none of the right authority is refused.
func TestOneCertificatePerComponent(t *testing.T) {
	servers, clients := newAuthority(t, "servers"), newAuthority(t, "clients")
	cert, key := servers.issue("server", "127.0.0.1", "::1")
	server := serve(t, ServeConfig{
		Listen:   []string{"https://127.0.0.1:0", "https://[::1]:0"},
		CertFile: cert, KeyFile: key, ClientCAFile: clients.file,
	})
	endpoints := server.Endpoints()
	for i, component := range []string{"agent", "bgp"} {
		cert, key := clients.issue(component)
		s := open(t, Config{Endpoints: endpoints[i:], CAFile: servers.file, CertFile: cert, KeyFile: key})
		storetest.Put(t, s, "/"+component, "1")
	}
	foreignCert, foreignKey := newAuthority(t, "foreign").issue("agent")
	for what, cfg := range map[string]Config{
		"no certificate":                     {CAFile: servers.file},
		"a certificate of another authority": {CAFile: servers.file, CertFile: foreignCert, KeyFile: foreignKey},
	} {
		cfg.Endpoints = endpoints
		if _, _, err := open(t, cfg).List(t.Context(), "/"); err == nil {
			t.Errorf("a client with %s was let in", what)
		}
	}
}

// TestRotation. Promise C15: new files are used from the next connection on,
// without a restart of either side.
func TestRotation(t *testing.T) {
	servers, clients := newAuthority(t, "servers"), newAuthority(t, "clients")
	serverCert, serverKey := servers.issue("server", "127.0.0.1")
	server := serve(t, ServeConfig{
		Listen:   []string{"https://127.0.0.1:0"},
		CertFile: serverCert, KeyFile: serverKey, ClientCAFile: clients.file,
	})
	p := newProxy(t, server.etcd.Clients[0].Addr().String())
	cert, key := clients.issue("agent")
	s := open(t, Config{
		Endpoints: []string{"https://" + p.listener.Addr().String()},
		CAFile:    servers.file, CertFile: cert, KeyFile: key,
	})
	f := storetest.Follow(t, s, "/a/")
	f.InSync()
	replace := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	reconnect := func(connected bool) {
		t.Helper()
		p.cut()
		p.mend()
		f.Until("the expected end of a new connection", func() bool { return f.Last().Connected == connected })
	}

	// The server's certificate is of a new authority now. That the client
	// connects shows that it has read the authority's file again.
	next := newAuthority(t, "servers")
	newCert, newKey := next.issue("server", "127.0.0.1")
	replace(newCert, serverCert)
	replace(newKey, serverKey)
	reconnect(false)
	replace(next.file, servers.file)
	f.Until("connection with the new authority", func() bool { return f.Last().Connected })

	// The client's becomes one that the server refuses, then a good one.
	foreignCert, foreignKey := newAuthority(t, "foreign").issue("agent")
	replace(foreignCert, cert)
	replace(foreignKey, key)
	reconnect(false)
	clients.issue("agent")
	f.Until("connection with the new certificate", func() bool { return f.Last().Connected })

	// A key that others can read is not used, while running neither.
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	reconnect(false)
	if _, _, err := s.List(t.Context(), "/"); err == nil || !strings.Contains(err.Error(), "lets others than its owner") {
		t.Errorf("with an open key file: %v", err)
	}
	if err := os.Chmod(key, 0o400); err != nil {
		t.Fatal(err)
	}
	f.Until("connection with the key closed again", func() bool { return f.Last().Connected })
	f.Reaches(storetest.Put(t, s, "/a/2", "2"))
}

// TestKeyPermissions. Promise C15: key files are for their owner only.
func TestKeyPermissions(t *testing.T) {
	ca := newAuthority(t, "authority")
	cert, key := ca.issue("agent", "127.0.0.1")
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o644: false, 0o660: false} {
		if err := os.Chmod(key, mode); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Endpoints: []string{"https://127.0.0.1:1"}, CAFile: ca.file, CertFile: cert, KeyFile: key})
		if err == nil {
			_ = s.Close()
		}
		if good != (err == nil) || err != nil && !strings.Contains(err.Error(), key) {
			t.Errorf("client with key of mode %04o: %v", mode, err)
		}
		if good {
			continue
		}
		if server, err := Serve(ServeConfig{Dir: dataDir(t), CertFile: cert, KeyFile: key}); err == nil {
			server.Close()
			t.Errorf("server with key of mode %04o started", mode)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	ca := newAuthority(t, "authority")
	cert, key := ca.issue("agent")
	for want, cfg := range map[string]Config{
		"no endpoint":                {},
		"want http":                  {Endpoints: []string{"ftp://h:1"}},
		`"h": want`:                  {Endpoints: []string{"h"}},
		"differ in scheme":           {Endpoints: []string{"http://h:1", "https://h:1"}},
		"would not use TLS":          {Endpoints: []string{"http://h:1"}, CAFile: ca.file},
		"password must be":           {Endpoints: []string{"h:1"}, Username: "u"},
		"key file must be":           {Endpoints: []string{"h:1"}, CertFile: cert},
		"read authority file":        {Endpoints: []string{"h:1"}, CAFile: "/none"},
		"no certificate in it":       {Endpoints: []string{"h:1"}, CAFile: key},
		"load certificate":           {Endpoints: []string{"h:1"}, CertFile: key, KeyFile: key},
		"no such file or directory":  {Endpoints: []string{"h:1"}, CertFile: cert, KeyFile: "/none"},
		"private key does not match": {Endpoints: []string{"h:1"}, CertFile: cert, KeyFile: otherKey(t, ca)},
	} {
		s, err := Open(cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want one with %q", err, want)
		}
	}
}

func otherKey(t *testing.T, ca *authority) string {
	t.Helper()
	_, key := ca.issue("another")
	return key
}
