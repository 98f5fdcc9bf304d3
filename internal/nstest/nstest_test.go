package nstest

import (
	"net"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestNamespacesAreApart(t *testing.T) {
	a, b := New(t), Create(t)
	Veth(t, a, "left", b, "right")
	if _, err := net.InterfaceByName("left"); err != nil {
		t.Errorf("the test is not in its namespace: %v", err)
	}
	var inB error
	b.Do(func() { _, inB = net.InterfaceByName("right") })
	if inB != nil {
		t.Errorf("Do is not in its namespace: %v", inB)
	}
	if out := b.Run(t, "ip", "-br", "link"); !strings.Contains(out, "right") || strings.Contains(out, "left@") && !strings.Contains(out, "right@") {
		t.Errorf("links of b: %s", out)
	}
	if out, err := a.Try("ip", "link", "show", "right"); err == nil {
		t.Errorf("a sees b's link: %s", out)
	}
}
