package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Every rule of a program, and every end of a stage, counts in a named counter
// of its own before its verdict: buckets and programs that have the same rule
// share it. A counter goes with the last program that has its rule, so it keeps
// what it counted while chains are rewritten, and while there is no agent.

// CounterName is the name of the counter of a rule or of a stage's end, by its
// identity.
func CounterName(id string) string { return shorten(id) }

// maxComment is what tools show of a comment, and the kernel of a log prefix.
const maxComment = 120

// shorten keeps a rule's ID within what the kernel keeps of a log prefix and
// tools of a comment; a cut one ends in a hash, so that it stays one of a kind.
func shorten(id string) string {
	if len(id) <= maxComment {
		return id
	}
	return fmt.Sprintf("%s~%016x", id[:maxComment-17], hash64(id))
}

// counts is what a rule with that identity does before its verdict.
func counts(id string, verdict ...action) []action {
	if id == "" {
		return verdict
	}
	return append([]action{{kind: count, name: CounterName(id)}}, verdict...)
}

// programCounters are the counters that a program needs, each at least once.
func programCounters(p desired.Program) []string {
	n := 0
	for _, stages := range [][]desired.Stage{p.Stages, p.Trial} {
		for i := range stages {
			n += 1 + len(stages[i].Rules)
		}
	}
	names := make([]string, 0, n)
	add := func(id string) {
		if id == "" {
			return
		}
		// What one rule of a policy was translated to is side by side.
		if name := CounterName(id); len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	for _, stages := range [][]desired.Stage{p.Stages, p.Trial} {
		for i := range stages {
			for j := range stages[i].Rules {
				add(stages[i].Rules[j].ID)
			}
			if s := &stages[i]; s.End == desired.Deny || i == len(stages)-1 {
				add(s.EndID)
			}
		}
	}
	return names
}

// counters makes the counters that programs need first, and deletes those that
// none needs any more.
func (d *differ) counters() {
	change := map[string]int{}
	for first, names := range d.counted {
		if !d.all {
			for _, n := range d.Tables.counted[first] {
				change[n]--
			}
		}
		for _, n := range names {
			change[n]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(change)) {
		o, n := object{inet, name}, change[name]
		if !d.all {
			n += d.counts[name]
		}
		switch {
		case n > 0 && !d.have.counters[o]:
			d.ch.counters = append(d.ch.counters, o)
		case n > 0 || !d.have.counters[o] || slices.Contains(baseCounters, o):
		case d.bad[culprit{removal: o, isCounter: true}] != nil:
			d.resync = true // it is rubbish from now on
		default:
			d.ch.noCounters = append(d.ch.noCounters, o)
		}
	}
}

// strayCounters deletes those that nobody wants, of all that there are.
func (d *differ) strayCounters() {
	wanted := map[object]bool{}
	for _, o := range baseCounters {
		wanted[o] = true
	}
	for _, names := range d.counted {
		for _, n := range names {
			wanted[object{inet, n}] = true
		}
	}
	for o := range d.have.counters {
		// What a program that was refused still names is not known.
		if !wanted[o] && len(d.held.programs) == 0 && d.bad[culprit{removal: o, isCounter: true}] == nil {
			d.ch.noCounters = append(d.ch.noCounters, o)
		}
	}
}

// keepCounters remembers what the programs looked at count in.
func (t *Tables) keepCounters(d *differ) {
	for first, names := range d.counted {
		for _, n := range t.counted[first] {
			if t.counts[n]--; t.counts[n] == 0 {
				delete(t.counts, n)
			}
		}
		for _, n := range names {
			t.counts[n]++
		}
		if t.counted[first] = names; len(names) == 0 {
			delete(t.counted, first)
		}
	}
}

// Counters reads our named counters. Those of the arp table begin with "arp/".
// It may be called from any goroutine.
func (t *Tables) Counters(ctx context.Context) (map[string]Counter, error) {
	cs := map[string]Counter{}
	for _, f := range []family{inet, arp} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := t.conn.query(unix.NFT_MSG_GETOBJ, true, f, ofTable, func(fam family, attrs []byte) error {
			o := parseObject(attrs)
			if fam == arp {
				o.name = "arp/" + o.name
			}
			if o.table == TableName && o.kind == unix.NFT_OBJECT_COUNTER {
				cs[o.name] = o.Counter
			}
			return nil
		})
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, fmt.Errorf("read nftables counters: %w", err)
		}
	}
	return cs, nil
}
