package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const dataplaneRounds = 31

// variant is what a router has in its way. Each has a triple of its own, and
// all exist side by side, so that they share whatever the machine does else.
type variant struct {
	name    string
	install func(*triple) error // nil: no netfilter
}

const (
	raw     = "raw"
	floor   = "floor"
	ours1   = "ours-1"
	ours10  = "ours-10"
	ours100 = "ours-100"
)

var variants = []variant{
	{raw, nil},
	{floor, installFloor},
	{ours1, func(t *triple) error { return installOurs(t, 1) }},
	{ours10, func(t *triple) error { return installOurs(t, 10) }},
	{ours100, func(t *triple) error { return installOurs(t, 100) }},
}

// traffic is a kind of load, the variants that get it and what it measures. A
// round goes through the variants so many times: the shorter and more the
// slices are, the less it matters what else the machine does.
type traffic struct {
	name  string
	of    []string
	times int
	run   func(*triple) (float64, error)
}

var (
	each   = []string{raw, floor, ours1, ours10, ours100}
	widest = []string{raw, floor, ours100}
)

var loads = []traffic{
	{"est", each, 4, func(t *triple) (float64, error) { return t.flood(false, true) }},
	{"new", each, 4, func(t *triple) (float64, error) { return t.flood(false, false) }},
	{"est/v6", each, 3, func(t *triple) (float64, error) { return t.flood(true, true) }},
	{"new/v6", each, 3, func(t *triple) (float64, error) { return t.flood(true, false) }},
	{"connections", each, 3, (*triple).connections},
	{"tcp1", widest, 1, func(t *triple) (float64, error) { return t.stream(1) }},
	{"tcp4", widest, 1, func(t *triple) (float64, error) { return t.stream(4) }},
}

// dataplaneRows says which variant's rate over which is which row.
var dataplaneRows = []struct {
	name, load, of, over string
	target               float64
	lower                bool
}{
	{"est/1", "est", ours1, raw, 0.70, false},
	{"est/10", "est", ours10, raw, 0.70, false},
	{"est/100", "est", ours100, raw, 0.70, false},
	{"new/1", "new", ours1, raw, 0.65, false},
	{"new/10", "new", ours10, raw, 0.65, false},
	{"new/100", "new", ours100, raw, 0.65, false},
	{"est-floor/100", "est", ours100, floor, 0.92, false},
	{"new-floor/100", "new", ours100, floor, 0.85, false},
	{"new-flatness", "new", ours1, ours100, 1.15, true},
	{"est/1/v6", "est/v6", ours1, raw, 0.70, false},
	{"est/10/v6", "est/v6", ours10, raw, 0.70, false},
	{"est/100/v6", "est/v6", ours100, raw, 0.70, false},
	{"new/1/v6", "new/v6", ours1, raw, 0.65, false},
	{"new/10/v6", "new/v6", ours10, raw, 0.65, false},
	{"new/100/v6", "new/v6", ours100, raw, 0.65, false},
	{"connections/100", "connections", ours100, raw, 0.80, false},
	{"tcp1/100", "tcp1", ours100, raw, 0.85, false},
	{"tcp4/100", "tcp4", ours100, raw, 0.85, false},
}

// samples are the rates by load and variant, in the order of the rounds.
type samples map[[2]string][]float64

// benchDataplane measures how fast packets are forwarded, as the ratio of one
// variant to another.
func benchDataplane(b *bench) error {
	triples := map[string]*triple{}
	defer func() {
		for _, t := range triples {
			t.close()
		}
	}()
	for _, v := range variants {
		t, err := newTriple(v.name)
		if err != nil {
			return err
		}
		triples[v.name] = t
		if v.install != nil {
			if err := v.install(t); err != nil {
				return fmt.Errorf("tables of %s: %w", v.name, err)
			}
		}
		if err := t.check(v.install != nil); err != nil {
			return fmt.Errorf("variant %s: %w", v.name, err)
		}
	}
	got := samples{}
	for range dataplaneRounds {
		for _, l := range loads {
			for range l.times {
				if err := got.alternate(l, triples); err != nil {
					return err
				}
			}
		}
		for _, t := range triples {
			if err := t.links.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
				return fmt.Errorf("flush conntrack: %w", err)
			}
		}
	}
	b.dataplaneResults(got)
	return nil
}

// alternate runs one slice of a load on each variant after the other.
func (s samples) alternate(l traffic, triples map[string]*triple) error {
	for _, name := range l.of {
		rate, err := l.run(triples[name])
		if err != nil {
			return fmt.Errorf("%s of %s: %w", l.name, name, err)
		}
		key := [2]string{l.name, name}
		s[key] = append(s[key], rate)
	}
	return nil
}

// dataplaneResults adds the rows. A ratio is the median of the ratios of slices
// of one turn, which find the machine in nearly the same state.
func (b *bench) dataplaneResults(got samples) {
	for _, l := range loads {
		for _, name := range l.of {
			q := quartiles(got[[2]string{l.name, name}])
			b.log.Info("rate", "load", l.name, "variant", name, "q1", int(q[0]), "median", int(q[1]), "q3", int(q[2]))
		}
	}
	for _, r := range dataplaneRows {
		of, over := got[[2]string{r.load, r.of}], got[[2]string{r.load, r.over}]
		ratios := make([]float64, len(of))
		for i := range of {
			ratios[i] = of[i] / over[i]
		}
		q := quartiles(ratios)
		b.log.Info("ratio", "name", r.name, "q1", q[0], "median", q[1], "q3", q[2])
		better := higher
		if r.lower {
			better = lower
		}
		b.record(result{Name: "dataplane/" + r.name, Value: q[1], Unit: "ratio", Target: r.target, Better: better})
	}
}

func quartiles(values []float64) (q [3]float64) {
	sorted := slices.Sorted(slices.Values(values))
	for i := range q {
		q[i] = sorted[(i+1)*(len(sorted)-1)/4]
	}
	return q
}

// check proves that a router passes what it should, and nothing else if it
// filters: a variant whose tables are not there would look fast.
func (t *triple) check(filters bool) error {
	for _, v6 := range []bool{false, true} {
		out, in, err := pair(t.client, t.client.at(v6, 0), t.server, t.server.at(v6, trafficPort))
		if err != nil {
			return err
		}
		err = exchange(out, in)
		_, _ = unix.Close(out), unix.Close(in)
		if err != nil {
			return fmt.Errorf("client and server do not talk (IPv6: %t): %w", v6, err)
		}
	}
	neighbour := netip.AddrPortFrom(t.client.v4.Next(), 0)
	for what, probe := range map[string]func() (bool, error){
		"a spoofed packet":     func() (bool, error) { return t.arrives(t.client, neighbour, t.server) },
		"a forbidden one":      func() (bool, error) { return t.arrives(t.server, t.server.at(false, 0), t.client) },
		"a forbidden IPv6 one": func() (bool, error) { return t.arrives(t.server, t.server.at(true, 0), t.client) },
	} {
		arrives, err := probe()
		if err != nil {
			return err
		}
		if arrives == filters {
			return fmt.Errorf("%s arrives: %t", what, arrives)
		}
	}
	return nil
}

// arrives says whether a UDP packet with a source gets from one end to the
// other.
func (t *triple) arrives(from *end, source netip.AddrPort, to *end) (bool, error) {
	out, in, err := pair(from, source, to, to.at(source.Addr().Is6(), trafficPort))
	if err != nil {
		return false, err
	}
	defer func() { _, _ = unix.Close(out), unix.Close(in) }()
	short := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &short); err != nil {
		return false, err
	}
	var buf [payloadSize]byte
	if _, err := unix.Write(out, buf[:]); err != nil {
		return false, err
	}
	err = again(func() error { _, err := unix.Read(in, buf[:]); return err })
	if errors.Is(err, unix.EAGAIN) {
		return false, nil
	}
	return err == nil, err
}
