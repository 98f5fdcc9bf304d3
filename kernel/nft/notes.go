package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mostNote is how long a note may be: it is a rule's comment.
const mostNote = 120

var noteChain = object{inet, chainRemember}

// renderNotes keeps what we have to remember in the comments of rules that
// nothing reaches.
func renderNotes(notes map[string]string) chain {
	c := chain{object: noteChain}
	for _, k := range slices.Sorted(maps.Keys(notes)) {
		c.rules = append(c.rules, rule{does: []action{{kind: back}}, comment: k + "=" + notes[k]})
	}
	return c
}

// Remember keeps a value in the kernel, with our table, until Cleanup: what a
// setting of the host was before we changed it. A key that is remembered
// already keeps its first value, since a later one is our own. If our table is
// missing, it is made first, closed.
func (t *Tables) Remember(ctx context.Context, key, value string) error {
	if key == "" || strings.Contains(key, "=") || len(key)+len(value) >= mostNote || strings.ContainsRune(key+value, 0) {
		return fmt.Errorf("remember %s=%s: not a note", key, value)
	}
	if _, err := t.Skeleton(ctx); err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	if err := t.readNotes(); err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	if _, ok := t.notes[key]; ok {
		return nil
	}
	notes := maps.Clone(t.notes)
	notes[key] = value
	there, err := t.conn.hasChain(noteChain)
	if err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	h, ch := newHave(), newChanges()
	ch.chains[noteChain] = diffChain(renderNotes(notes), nil, true)
	ch.chains[noteChain].create = !there
	if err := t.conn.write(ch, h, 0, nil); err != nil {
		t.Resync()
		return fmt.Errorf("remember %s: %w", key, err)
	}
	t.notes = notes
	if t.have != nil {
		t.have.chains[noteChain] = h.chains[noteChain]
	}
	return nil
}

// Remembered returns what Remember kept, in this life or an earlier one.
func (t *Tables) Remembered(ctx context.Context) (map[string]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.readNotes(); err != nil {
		return nil, fmt.Errorf("read what we remember: %w", err)
	}
	return maps.Clone(t.notes), nil
}

// readNotes adds the kernel's notes to those we know.
func (t *Tables) readNotes() error {
	ask := func(w *writer) {
		w.str(unix.NFTA_RULE_TABLE, TableName)
		w.str(unix.NFTA_RULE_CHAIN, chainRemember)
	}
	err := t.conn.query(unix.NFT_MSG_GETRULE, true, inet, ask, func(_ family, attrs []byte) error {
		each(attrs, func(typ uint16, v []byte) {
			if typ == unix.NFTA_RULE_USERDATA {
				t.learn(parseUserdata(v))
			}
		})
		return nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errInterrupted) {
		return nil
	}
	return err
}

func (t *Tables) learn(u userdata) {
	k, v, ok := strings.Cut(u.comment, "=")
	if _, known := t.notes[k]; ok && !known && u.hash != 0 {
		t.notes[k] = v
	}
}
