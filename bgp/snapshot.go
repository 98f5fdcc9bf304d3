package bgp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"time"

	"tortie/store"
)

// patience is how long a starting process waits for the store before it
// follows what the store last said to the one before it.
const patience = 5 * time.Second

// snapshot is the resources as the last process knew them. It lies in the run
// directory, which like the kernel's routes does not outlive the host: a
// speaker that starts while the store is away must be back before its peers
// give up its routes.
type snapshot struct {
	path     string
	last     map[string]json.RawMessage // what the file has
	deadline time.Time                  // when to use it; zero: no more
	seen     map[string]struct{}        // paths that the store has told of, until it is in sync
}

// loadSnapshot reads the file. One that is absent or damaged is as good as
// empty; the error is for the log.
func loadSnapshot(path string, now time.Time) (*snapshot, error) {
	s := &snapshot{path: path, deadline: now.Add(patience), seen: map[string]struct{}{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s.last)
	}
	if err != nil {
		s.last = nil
		return s, fmt.Errorf("read the last snapshot: %w", err)
	}
	return s, nil
}

// save writes the file if it would change.
func (s *snapshot) save(resources map[string]json.RawMessage) error {
	same := func(a, b json.RawMessage) bool { return string(a) == string(b) }
	if maps.EqualFunc(s.last, resources, same) {
		return nil
	}
	b, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	early := s.path + ".new"
	if err := os.WriteFile(early, b, 0o600); err != nil {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	if err := os.Rename(early, s.path); err != nil {
		return fmt.Errorf("write a snapshot: %w", err)
	}
	s.last = maps.Clone(resources)
	return nil
}

// due says that it is time to follow the snapshot.
func (s *snapshot) due(now time.Time) bool {
	return len(s.last) > 0 && !s.deadline.IsZero() && !now.Before(s.deadline)
}

// events are the resources of the file that the store has not told of, as it
// would have told them.
func (s *snapshot) events() []store.Event {
	var list []store.Event
	for path, value := range s.last {
		if _, newer := s.seen[path]; newer {
			continue
		}
		list = append(list, store.Event{Entry: store.Entry{Path: path, Value: value}})
	}
	return list
}

// note takes down what the store tells before it is in sync.
func (s *snapshot) note(events []store.Event) {
	for _, ev := range events {
		if s.seen[ev.Path] = struct{}{}; ev.Deleted {
			delete(s.seen, ev.Path)
		}
	}
}

// gone returns, when the store is in sync, which resources are followed that
// it does not have.
func (s *snapshot) gone(resources map[string]json.RawMessage) []store.Event {
	var list []store.Event
	for path := range resources {
		if _, ok := s.seen[path]; !ok {
			list = append(list, store.Event{Entry: store.Entry{Path: path}, Deleted: true})
		}
	}
	s.seen, s.deadline = map[string]struct{}{}, time.Time{}
	return list
}
