package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tortie/desired"
)

// Diff returns, as sorted lines, what the kernel lacks (+), has too much (-) or
// has otherwise (~), and writes nothing. It reads the kernel anew, through a
// handle of its own.
func (t *Tables) Diff(ctx context.Context, want *desired.State) (string, error) {
	fresh, err := Open(t.opts)
	if err != nil {
		return "", err
	}
	defer func() { _ = fresh.Close() }()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if _, err := fresh.read(want, &Result{}); err != nil {
		return "", fmt.Errorf("compare nftables: %w", err)
	}
	return fresh.diff(want).ch.text(), nil
}

// text prints what a transaction would do, one line an object or element.
func (c *changes) text() string {
	var lines []string
	add := func(sign, format string, args ...any) {
		lines = append(lines, sign+" "+fmt.Sprintf(format, args...)+"\n")
	}
	for _, f := range c.tables {
		add("+", "table %s", familyName(f))
	}
	for _, o := range c.counters {
		add("+", "counter %s", o.name)
	}
	for _, o := range c.noCounters {
		add("-", "counter %s", o.name)
	}
	for o, s := range c.sets {
		if s.create {
			add("+", "set %s", o.name)
		} else if s.remove {
			add("-", "set %s", o.name)
		}
		for _, e := range s.adds {
			add("+", "element %s %s", o.name, s.elemText(e))
		}
		for _, e := range s.dels {
			add("-", "element %s %s", o.name, s.elemText(e))
		}
	}
	for o, ch := range c.chains {
		switch {
		case ch.remove:
			add("-", "chain %s", o.name)
		case ch.create:
			add("+", "chain %s of %d rules", o.name, len(ch.rules))
		default:
			add("~", "chain %s: %d rules differ", o.name, max(len(ch.edits), len(ch.result)*b2i(ch.rewrite)))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func familyName(f family) string {
	if f == arp {
		return "arp"
	}
	return "inet"
}
