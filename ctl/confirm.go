package ctl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tortie/api"
	"tortie/store"
)

// trial is what apply --confirm has written, and what was there before.
type trial struct {
	limit  time.Duration
	undo   []undo
	ending chan os.Signal // the operator's session ends
}

type undo struct {
	key    api.Key
	before store.Entry // of no revision: there was none
	after  int64       // the revision that was written
}

// newTrial makes it outlive the session of who began it: a policy that locks
// its operator out is what it is for.
func newTrial(limit time.Duration) *trial {
	t := &trial{limit: limit, ending: make(chan os.Signal, 1)}
	signal.Notify(t.ending, syscall.SIGHUP, syscall.SIGPIPE)
	return t
}

func (t *trial) end() { signal.Stop(t.ending) }

// apply writes an object in the place of exactly what it remembers.
func (t *trial) apply(ctx context.Context, s store.Store, o api.Object) (store.Outcome, error) {
	before, err := store.Find(ctx, s, o.Key())
	do := store.Apply
	switch {
	case errors.Is(err, store.ErrNotFound):
		before, do = store.Entry{Path: o.Key().Path()}, store.Create
	case err != nil:
		return store.Outcome{}, err
	case o.Metadata().ResourceVersion == "":
		o.Metadata().ResourceVersion = strconv.FormatInt(before.Revision, 10)
	}
	done, err := do(ctx, s, o)
	if err == nil && done.Revision != before.Revision {
		t.undo = append(t.undo, undo{o.Key(), before, done.Revision})
	}
	return done, err
}

// confirmed asks whether what was written is to stay, and waits for a line. No
// answer, the end of the input or of the session is a no.
func (t *trial) confirmed(cmd *cobra.Command) error {
	if len(t.undo) == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "Press Enter within %s to keep this; else it is taken back.\n", t.limit)
	answer := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answer <- err
	}()
	limit := time.NewTimer(t.limit)
	defer limit.Stop()
	select {
	case err := <-answer:
		if err == nil {
			return nil
		}
		return errors.New("not confirmed: the input ended")
	case <-limit.C:
		return fmt.Errorf("not confirmed within %s", t.limit)
	case <-t.ending:
		return errors.New("not confirmed: the session ended")
	case <-cmd.Context().Done():
		return errors.New("not confirmed: interrupted")
	}
}

// takeBackLimit is how long it is tried: the datastore may be away because of
// what is to be taken back, at some other place.
const takeBackLimit = 10 * time.Minute

// takeBack makes everything as it was, the last first, and returns why that
// was to be, with what could not be.
func (t *trial) takeBack(ctx context.Context, s store.Store, out io.Writer, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackLimit)
	defer cancel()
	slices.Reverse(t.undo)
	for _, u := range t.undo {
		switch err := u.takeBack(ctx, s); {
		case err == nil:
			_, _ = fmt.Fprintf(out, "%v taken back\n", u.key)
		case errors.Is(err, store.ErrConflict):
			why = errors.Join(why, fmt.Errorf("%v is left: it was changed by others meanwhile", u.key))
		default:
			why = errors.Join(why, fmt.Errorf("%v is not taken back: %w", u.key, err))
		}
	}
	return why
}

func (u undo) takeBack(ctx context.Context, s store.Store) error {
	op := store.Op{Path: u.before.Path, Value: u.before.Value, Delete: u.before.Revision == 0, If: u.after}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		_, err := s.Commit(ctx, op)
		if errors.Is(err, store.ErrConflict) && u.isBack(ctx, s) {
			return nil // a commit whose answer was lost
		}
		if err == nil || errors.Is(err, store.ErrConflict) || ctx.Err() != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (u undo) isBack(ctx context.Context, s store.Store) bool {
	e, err := store.Find(ctx, s, u.key)
	return u.before.Revision == 0 && errors.Is(err, store.ErrNotFound) || err == nil && bytes.Equal(e.Value, u.before.Value)
}
