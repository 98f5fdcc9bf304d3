package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tortie/api"
	"tortie/explain"
)

// MatrixOptions says what to ask.
type MatrixOptions struct {
	From, To []string      // workloads; empty: all
	TCP, UDP []uint16      // ports; both empty: 8080 of each
	Wait     time.Duration // for an answer that should not come; 0: a second
	Parallel int           // probes at a time; 0: 48
}

// answerWait is how long an answer that should come is waited for.
const answerWait = 10 * time.Second

// Cell is one question and its two answers.
type Cell struct {
	From, To string
	Protocol string // TCP, UDP or ICMP
	Port     uint16
	Family   int // 4 or 6
	Expected bool
	Observed bool
	Why      string // what explain bases the expectation on
}

// Matrix is who can reach whom.
type Matrix struct {
	From, To []string
	Cells    []Cell // by protocol and port, From, To, Family
}

// Matrix asks each pair of workloads by ICMP, TCP and UDP over IPv4 and IPv6,
// and explain what the datastore says about it.
func (l *Lab) Matrix(ctx context.Context, opts MatrixOptions) (*Matrix, error) {
	opts = l.matrixDefaults(opts)
	cluster, err := l.cluster(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range opts.To {
		r, err := respond(l.namespace(name), opts.TCP, opts.UDP)
		if err != nil {
			return nil, err
		}
		defer r.stop()
	}
	m := &Matrix{From: opts.From, To: opts.To}
	if err := l.questions(m, opts, cluster); err != nil {
		return nil, err
	}
	errs := make([]error, len(m.Cells))
	slots := make(chan struct{}, opts.Parallel)
	var all sync.WaitGroup
	for i := range m.Cells {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = l.ask(ctx, &m.Cells[i], opts.Wait)
		})
	}
	all.Wait()
	return m, errors.Join(append(errs, ctx.Err())...)
}

func (l *Lab) matrixDefaults(opts MatrixOptions) MatrixOptions {
	var names []string
	for _, w := range l.state.Workloads {
		names = append(names, w.Name)
	}
	if len(opts.From) == 0 {
		opts.From = names
	}
	if len(opts.To) == 0 {
		opts.To = names
	}
	if len(opts.TCP)+len(opts.UDP) == 0 {
		opts.TCP, opts.UDP = []uint16{8080}, []uint16{8080}
	}
	if opts.Wait <= 0 {
		opts.Wait = time.Second
	}
	if opts.Parallel <= 0 {
		opts.Parallel = 48
	}
	return opts
}

// questions fills in the cells but for what is observed.
func (l *Lab) questions(m *Matrix, opts MatrixOptions, cluster *explain.Cluster) error {
	kinds := []Cell{{Protocol: ICMP}}
	for _, p := range opts.TCP {
		kinds = append(kinds, Cell{Protocol: TCP, Port: p})
	}
	for _, p := range opts.UDP {
		kinds = append(kinds, Cell{Protocol: UDP, Port: p})
	}
	for _, c := range kinds {
		for _, c.From = range m.From {
			for _, c.To = range m.To {
				if c.From == c.To {
					continue
				}
				for _, c.Family = range []int{4, 6} {
					source, dest, err := l.ends(c)
					if err != nil {
						return err
					}
					c.Expected, c.Why = expect(cluster, c, source, dest)
					m.Cells = append(m.Cells, c)
				}
			}
		}
	}
	return nil
}

func (l *Lab) ends(c Cell) (source, dest netip.Addr, err error) {
	from, err := l.workload(c.From)
	if err != nil {
		return source, dest, err
	}
	to, err := l.workload(c.To)
	if c.Family == 4 {
		return from.IPv4, to.IPv4, err
	}
	return from.IPv6, to.IPv6, err
}

// ask observes one cell.
func (l *Lab) ask(ctx context.Context, c *Cell, wait time.Duration) error {
	_, dest, err := l.ends(*c)
	if err != nil {
		return err
	}
	if c.Expected {
		wait = answerWait
	}
	c.Observed, err = probe(ctx, l.namespace(c.From), c.Protocol, netip.AddrPortFrom(dest, c.Port), wait)
	return err
}

// ephemeral stands for the port that a client gets.
const ephemeral = 40000

func expect(cluster *explain.Cluster, c Cell, source, dest netip.Addr) (bool, string) {
	p := explain.Packet{Src: source, Dst: dest}
	switch c.Protocol {
	case TCP:
		p.Protocol, p.SrcPort, p.DstPort = 6, ephemeral, c.Port
	case UDP:
		p.Protocol, p.SrcPort, p.DstPort = 17, ephemeral, c.Port
	default:
		p.Protocol, p.ICMPType = 1, 8
		if source.Is6() {
			p.Protocol, p.ICMPType = 58, 128
		}
	}
	r := cluster.Connection(p)
	var why []string
	for _, d := range []*explain.Decision{r.Source, r.Destination} {
		if d != nil {
			why = append(why, d.String())
		}
	}
	return r.Verdict == api.Allow, strings.Join(why, "; ")
}

// cluster reads the datastore into what explain works on.
func (l *Lab) cluster(ctx context.Context) (*explain.Cluster, error) {
	s, err := l.Store()
	if err != nil {
		return nil, err
	}
	cluster := explain.New()
	for _, kind := range api.Kinds() {
		entries, _, err := s.List(ctx, api.Prefix(kind.Kind))
		if err != nil {
			return nil, fmt.Errorf("read the datastore: %w", err)
		}
		for _, e := range entries {
			if o, _, err := api.Decode(e.Path, e.Value); err == nil { // else the hosts ignore it as well
				cluster.Put(o)
			}
		}
	}
	return cluster, nil
}

// Wrong lists the cells where what was observed is not what was expected.
func (m *Matrix) Wrong() []Cell {
	var out []Cell
	for _, c := range m.Cells {
		if c.Expected != c.Observed {
			out = append(out, c)
		}
	}
	return out
}

// Reached is how many were observed to be reached.
func (m *Matrix) Reached() int {
	n := 0
	for _, c := range m.Cells {
		if c.Observed {
			n++
		}
	}
	return n
}

// String says what a cell asks and what came of it.
func (c Cell) String() string {
	words := map[bool]string{true: "reached", false: "not reached"}
	return fmt.Sprintf("%s to %s by %s over IPv%d: expected %s, observed %s (%s)",
		c.From, c.To, c.what(), c.Family, words[c.Expected], words[c.Observed], c.Why)
}

func (c Cell) what() string {
	if c.Protocol == ICMP {
		return ICMP
	}
	return fmt.Sprintf("%s/%d", c.Protocol, c.Port)
}

// String prints a table for each protocol, those that are alike as one. Its left
// half is what is expected, the right one what was observed: 4 and 6 for the
// families over which the row's workload reaches the column's, a dot for one
// over which it does not, and a ! where the two differ.
func (m *Matrix) String() string {
	var b strings.Builder
	var tables []string // without the first line
	titles := map[string][]string{}
	for i := 0; i < len(m.Cells); {
		what := m.Cells[i].what()
		first := i
		for ; i < len(m.Cells) && m.Cells[i].what() == what; i++ {
			continue
		}
		t := m.table(m.Cells[first:i])
		if titles[t] == nil {
			tables = append(tables, t)
		}
		titles[t] = append(titles[t], what)
	}
	for _, t := range tables {
		fmt.Fprintf(&b, "%s: expected, and observed\n%s", strings.Join(titles[t], ", "), t)
	}
	wrong := m.Wrong()
	fmt.Fprintf(&b, "%d of %d reached; %d are not as expected\n", m.Reached(), len(m.Cells), len(wrong))
	for _, c := range wrong {
		fmt.Fprintf(&b, "  %s\n", c)
	}
	return b.String()
}

// table prints the cells of one protocol.
func (m *Matrix) table(cells []Cell) string {
	expected, observed := map[[2]string]string{}, map[[2]string]string{}
	for _, c := range cells {
		pair := [2]string{c.From, c.To}
		expected[pair] += mark(c.Expected, c.Family)
		observed[pair] += mark(c.Observed, c.Family)
		if c.Expected != c.Observed {
			observed[pair] += "!"
		}
	}
	width := 4
	for _, n := range append(slices.Clone(m.From), m.To...) {
		width = max(width, len(n))
	}
	var b strings.Builder
	line := func(first string, text func(half int, to string) string) {
		var l strings.Builder
		fmt.Fprintf(&l, "  %-*s", width, first)
		for half := range 2 {
			if half == 1 {
				l.WriteString("  |")
			}
			for _, to := range m.To {
				fmt.Fprintf(&l, " %-*s", width, text(half, to))
			}
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	line("", func(_ int, to string) string { return to })
	for _, from := range m.From {
		line(from, func(half int, to string) string {
			return []map[[2]string]string{expected, observed}[half][[2]string{from, to}]
		})
	}
	return b.String()
}

func mark(reached bool, family int) string {
	if reached {
		return fmt.Sprint(family)
	}
	return "."
}
