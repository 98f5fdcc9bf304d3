package nft

import (
	"testing"
)

func TestAllowAndDeny(t *testing.T) {
	host, a, b, st := pair(t)
	tb := open(t)
	apply(t, tb, st)
	t.Log(host.Run(t, "nft", "list", "ruleset"))
	settled(t, tb, st)
	l4, l6 := listen(t, b.NS, b.v4, openPort), listen(t, b.NS, b.v6, openPort)
	c4, c6 := listen(t, b.NS, b.v4, closedPort), listen(t, b.NS, b.v6, closedPort)
	send(t, a.NS, a.v4, b.v4, closedPort, "no")
	waitCounter(t, tb, counterUnmatched, 1)
	send(t, a.NS, a.v6, b.v6, closedPort, "no")
	waitCounter(t, tb, counterUnmatched, 2)
	send(t, a.NS, a.v4, b.v4, openPort, "yes")
	l4.wait(t, "yes")
	send(t, a.NS, a.v6, b.v6, openPort, "yes")
	l6.wait(t, "yes")
	for _, l := range []*listener{c4, c6} {
		select {
		case got := <-l.got:
			t.Errorf("%q passed", got)
		default:
		}
	}
}
