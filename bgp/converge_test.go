package bgp

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkConverge10k is the row bgp/converge-10k: from the first of 10,000
// routes that appear in one host's kernel to the last in another's.
func BenchmarkConverge10k(b *testing.B) {
	for _, family := range []string{"IPv4", "IPv6", "both"} {
		b.Run(family, func(b *testing.B) {
			for range b.N {
				b.ReportMetric(converge(b, family, 10000).Seconds(), "s/converge")
			}
		})
	}
}

// Many routes at once arrive all, and go all.
func TestConverge(t *testing.T) {
	t.Logf("2,000 routes in %v", converge(t, "both", 2000))
}

// converge measures how long n routes take, and takes them away again.
func converge(t testing.TB, family string, n int) time.Duration {
	s := newSite(t)
	h1, h2 := s.host(1), s.host(2)
	h1.start()
	h2.start()
	h1.local("10.0.0.1", "fd00::1")
	h2.want(map[string]string{"10.0.0.1": h1.v4, "fd00::1": h1.v6})

	arrived, gone := h2.counts(n)
	var add, del strings.Builder
	for i := range n {
		p := fmt.Sprintf("10.1.%d.%d/32", i/250, i%250+1)
		if family == "IPv6" || family == "both" && i%2 == 1 {
			p = fmt.Sprintf("fd01::%x/128", i+1)
		}
		_, _ = fmt.Fprintf(&add, "route add %s dev tap0 proto 80 metric 1024\n", p)
		_, _ = fmt.Fprintf(&del, "route del %s dev tap0 proto 80 metric 1024\n", p)
	}
	began := time.Now()
	h1.batch(add.String())
	await(t, "the routes to arrive", arrived)
	took := time.Since(began)
	h1.batch(del.String())
	await(t, "the routes to go", gone)
	h2.want(map[string]string{"10.0.0.1": h1.v4, "fd00::1": h1.v6})
	if n := h2.metric("tortie_bgp_kernel_write_failures_total"); n != 0 {
		t.Errorf("the kernel refused %v routes", n)
	}
	return took
}

func (h *host) batch(commands string) {
	h.site.t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		h.site.t.Fatalf("%s: ip -batch: %v", h.name, err)
	}
}

// counts returns channels that are closed when n learned routes have come,
// and when n have gone.
func (h *host) counts(n int) (came, went <-chan struct{}) {
	updates, done := make(chan netlink.RouteUpdate, 1000), make(chan struct{})
	var err error
	h.Do(func() { err = netlink.RouteSubscribeWithOptions(updates, done, bigBuffer) })
	if err != nil {
		h.site.t.Fatalf("%s: watch routes: %v", h.name, err)
	}
	h.site.t.Cleanup(func() { close(done) })
	added, removed := make(chan struct{}), make(chan struct{})
	go func() {
		plus, minus := 0, 0
		for u := range updates {
			if u.Protocol != 81 {
				continue
			}
			if u.Type == unix.RTM_NEWROUTE {
				if plus++; plus == n {
					close(added)
				}
			} else if minus++; minus == n {
				close(removed)
			}
		}
	}()
	return added, removed
}

func await(t testing.TB, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("waited in vain for %s", what)
	}
}
