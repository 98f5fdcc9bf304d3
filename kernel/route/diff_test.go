package route

import (
	"testing"

	"tortie/desired"
	"tortie/internal/nstest"
)

func TestDiff(t *testing.T) {
	ns := nstest.New(t)
	one, two := device(t, ns, "cali1"), device(t, ns, "cali2")
	want := desired.New()
	workload(want, "cali1", one, "10.65.0.2", "fd00:65::2")
	r := open(t)
	apply(t, r, want, 5)
	diff := func() string {
		t.Helper()
		text, err := open(t).Diff(nstest.Context(t), want)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if got := diff(); got != "" {
		t.Errorf("difference of a correct kernel: %s", got)
	}
	workload(want, "cali2", two, "10.65.0.3", "fd00:65::3")
	withdrawn(want, "fd00:65::2")
	ns.Run(t, "ip", "route", "replace", "10.65.0.2", "dev", "cali2", "proto", "80", "metric", "1024", "scope", "link")
	expect := "+ neighbour 10.65.0.3 dev cali2 to cali2\n" +
		"+ neighbour fd00:65::3 dev cali2 to cali2\n" +
		"+ route 10.65.0.3/32 metric 1024 to cali2\n" +
		"+ route fd00:65::3/128 metric 1024 to cali2\n" +
		"- neighbour fd00:65::2 dev cali1\n" +
		"- route fd00:65::2/128 metric 1024\n" +
		"~ route 10.65.0.2/32 metric 1024 to cali1\n"
	if got := diff(); got != expect {
		t.Errorf("difference:\n%swant:\n%s", got, expect)
	}
}
