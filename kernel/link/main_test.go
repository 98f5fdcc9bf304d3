package link

import (
	"os"
	"strings"
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func open(t *testing.T) *Links {
	t.Helper()
	l, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// apply applies want, as the agent does, and returns how much was written.
func apply(t *testing.T, l *Links, want *desired.State) int {
	t.Helper()
	n, err := l.Apply(nstest.Context(t), want)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	want.ClearDirty()
	return n
}

// veth makes a pair of links that are down; the other is called peer-name.
func veth(t *testing.T, ns *nstest.NS, name string) int {
	t.Helper()
	ns.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "peer-"+name)
	return nstest.Index(t, name)
}

// settingsOf reads all settings of one link.
func settingsOf(t *testing.T, link string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{"ipv4/conf/", "ipv6/conf/", "ipv4/neigh/", "ipv6/neigh/"} {
		dir := "/proc/sys/net/" + dir + link + "/"
		files, err := os.ReadDir(dir)
		if err != nil && link != "all" {
			t.Fatal(err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(dir + f.Name()); err == nil {
				out[strings.TrimPrefix(dir, "/proc/sys/net/")+f.Name()] = strings.TrimSpace(string(b))
			}
		}
	}
	return out
}

func sysctl(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func setSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
