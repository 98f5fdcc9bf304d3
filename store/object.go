package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"tortie/api"
)

// Errors of the helpers for objects that callers branch on; ErrConflict is the
// third. The texts of the errors that wrap them begin as other tools of the
// data model write them, since scripts match that:
//
//	resource does not exist: Kind(name) with error: …
//	resource already exists: Kind(name) with error: …
//	update conflict: Kind(name): …
var (
	ErrNotFound = errors.New("resource does not exist")
	ErrExists   = errors.New("resource already exists")
)

// attempts is how often a write is tried that others get in the way of.
const attempts = 5

// Outcome is what a write of an object did, and the revision from which on the
// object is as it is now.
type Outcome struct {
	Did      string // created, configured, unchanged or deleted
	Revision int64
}

// Find returns the stored entry of an object. Old releases stored a policy x
// of the default tier as default.x; it is found by the name x.
func Find(ctx context.Context, s Store, key api.Key) (Entry, error) {
	if key.Path() == "" {
		return Entry{}, fmt.Errorf("read %v: this kind is not stored", key)
	}
	keys := []api.Key{key}
	if key.Kind.IsPolicy() {
		keys = append(keys, api.Key{Kind: key.Kind, Namespace: key.Namespace, Name: api.DefaultTier + "." + key.Name})
	}
	for _, k := range keys {
		path := k.Path()
		entries, _, err := s.List(ctx, path)
		if err != nil {
			return Entry{}, fmt.Errorf("read %v: %w", key, err)
		}
		for _, e := range entries {
			if e.Path != path {
				continue // it has the path as a prefix
			}
			if k != key {
				if o, _, err := api.Decode(path, e.Value); err != nil || o.Key() != key {
					continue
				}
			}
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("%w: %v with error: there is no key %s", ErrNotFound, key, key.Path())
}

// Create stores an object that must not exist; its resource version, that of
// where it was read perhaps, does not matter. What the data model stores with
// each object (identity, time, defaults) is filled in, in o.
func Create(ctx context.Context, s Store, o api.Object) (Outcome, error) {
	path := o.Key().Path()
	if path == "" {
		return Outcome{}, fmt.Errorf("create %v: this kind is not stored", o.Key())
	}
	api.Prepare(o, time.Now(), newUID())
	value, err := api.Encode(o)
	if err != nil {
		return Outcome{}, err
	}
	revision, err := s.Commit(ctx, Op{Path: path, Value: value})
	switch {
	case errors.Is(err, ErrConflict):
		return Outcome{}, fmt.Errorf("%w: %v with error: there is a key %s", ErrExists, o.Key(), path)
	case err != nil:
		return Outcome{}, fmt.Errorf("create %v: %w", o.Key(), err)
	}
	return Outcome{"created", revision}, nil
}

// Replace makes the stored object as o says. Its identity, its status and the
// fields that this version does not know are kept. It must exist and, if o has
// a resource version, have that. Where that changes nothing, nothing is written.
func Replace(ctx context.Context, s Store, o api.Object) (Outcome, error) {
	return update(ctx, s, o, false)
}

// Apply is Replace for an object that exists, Create for one that does not.
func Apply(ctx context.Context, s Store, o api.Object) (Outcome, error) {
	return update(ctx, s, o, true)
}

func update(ctx context.Context, s Store, o api.Object, mayCreate bool) (Outcome, error) {
	key, version := o.Key(), o.Metadata().ResourceVersion
	for range attempts {
		e, err := Find(ctx, s, key)
		var done Outcome
		switch {
		case err == nil && isOther(e, version):
			return Outcome{}, notLatest(key, version, e)
		case err == nil:
			done, err = overwrite(ctx, s, o, e)
		case mayCreate && errors.Is(err, ErrNotFound):
			done, err = Create(ctx, s, o)
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
			return done, err
		}
	}
	return Outcome{}, alwaysChanged(key)
}

// overwrite writes o in place of e, unless that changes nothing. A stored
// document that nobody can read is replaced as a whole.
func overwrite(ctx context.Context, s Store, o api.Object, e Entry) (Outcome, error) {
	if stored, _, err := api.DecodeKeep(e.Path, e.Value); err == nil {
		if o, err = api.Update(stored, o); err != nil {
			return Outcome{}, err
		}
	}
	// That some writers store no UID is no reason to write.
	api.Prepare(o, time.Now(), "")
	value, err := api.Encode(o)
	if err == nil && api.SameJSON(value, e.Value) {
		return Outcome{"unchanged", e.Revision}, nil
	}
	if err == nil {
		api.Prepare(o, time.Now(), newUID())
		value, err = api.Encode(o)
	}
	if err != nil {
		return Outcome{}, err
	}
	revision, err := s.Commit(ctx, Op{Path: e.Path, Value: value, If: e.Revision}) // a key of old releases stays
	if err != nil {
		return Outcome{}, fmt.Errorf("update %v: %w", o.Key(), err)
	}
	return Outcome{"configured", revision}, nil
}

// Delete removes an object, also one that nobody can read; if version is not
// empty, only that version of it.
func Delete(ctx context.Context, s Store, key api.Key, version string) (Outcome, error) {
	for range attempts {
		e, err := Find(ctx, s, key)
		switch {
		case err != nil:
			return Outcome{}, err
		case isOther(e, version):
			return Outcome{}, notLatest(key, version, e)
		}
		revision, err := s.Commit(ctx, Op{Path: e.Path, Delete: true, If: e.Revision})
		switch {
		case err == nil:
			return Outcome{"deleted", revision}, nil
		case !errors.Is(err, ErrConflict):
			return Outcome{}, fmt.Errorf("delete %v: %w", key, err)
		}
	}
	return Outcome{}, alwaysChanged(key)
}

// isOther reports an entry of another resource version than is wanted, if any is.
func isOther(e Entry, version string) bool {
	return version != "" && version != strconv.FormatInt(e.Revision, 10)
}

func notLatest(key api.Key, version string, e Entry) error {
	return fmt.Errorf("%w: %v: resource version %s is not the latest, which is %d", ErrConflict, key, version, e.Revision)
}

func alwaysChanged(key api.Key) error {
	return fmt.Errorf("%w: %v: it was changed by others during each of %d attempts", ErrConflict, key, attempts)
}

// newUID makes a random UUID, version 4 of RFC 9562.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
