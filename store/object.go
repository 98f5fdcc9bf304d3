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
//	update conflict: Kind(name)
var (
	ErrNotFound = errors.New("resource does not exist")
	ErrExists   = errors.New("resource already exists")
)

// attempts is how often Apply tries when others write at the same moment.
const attempts = 5

func conflict(key api.Key) error { return fmt.Errorf("%w: %v", ErrConflict, key) }

// find returns the stored entry of a key.
func find(ctx context.Context, s Store, key api.Key) (Entry, error) {
	path := key.Path()
	if path == "" {
		return Entry{}, fmt.Errorf("get %v: this kind is not stored", key)
	}
	entries, _, err := s.List(ctx, path)
	if err != nil {
		return Entry{}, fmt.Errorf("get %v: %w", key, err)
	}
	if len(entries) > 0 && entries[0].Path == path { // others have the path as a prefix
		return entries[0], nil
	}
	return Entry{}, fmt.Errorf("%w: %v with error: no key %s", ErrNotFound, key, path)
}

// Get returns one object, ready to be changed and given to Update. Fields that
// could not be read are not reported here, and are kept.
func Get(ctx context.Context, s Store, key api.Key) (api.Object, error) {
	e, err := find(ctx, s, key)
	if err != nil {
		return nil, err
	}
	return decode(e)
}

// List returns the objects of a kind in the order of their keys, of all
// namespaces if namespace is empty, and the store's revision. Of documents
// that are unusable it returns the joined errors, and the rest. A policy that
// an old release stored as default.x is called x, and Update does not find it.
func List(ctx context.Context, s Store, kind api.Kind, namespace string) ([]api.Object, int64, error) {
	prefix := api.Prefix(kind)
	if prefix == "" {
		return nil, 0, fmt.Errorf("list %s: this kind is not stored", kind)
	}
	if namespace != "" {
		prefix += namespace + "/"
	}
	entries, revision, err := s.List(ctx, prefix)
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", kind, err)
	}
	objects := make([]api.Object, 0, len(entries))
	var problems []error
	for _, e := range entries {
		if o, err := decode(e); err != nil {
			problems = append(problems, err)
		} else {
			objects = append(objects, o)
		}
	}
	return objects, revision, errors.Join(problems...)
}

// Create stores an object that must not exist. What the data model stores with
// each object (identity, time, defaults) is filled in, in o, as is its
// resource version.
func Create(ctx context.Context, s Store, o api.Object) error {
	if v := o.Metadata().ResourceVersion; v != "" {
		return fmt.Errorf("create %v: it has resource version %s, so it exists already", o.Key(), v)
	}
	err := write(ctx, s, o, 0)
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%w: %v with error: there is a key %s", ErrExists, o.Key(), o.Key().Path())
	}
	return err
}

// Update stores an object that must exist with the resource version of o,
// which Get, List or the last write gave it, and sets its new one.
func Update(ctx context.Context, s Store, o api.Object) error {
	revision, err := strconv.ParseInt(o.Metadata().ResourceVersion, 10, 64)
	if err != nil || revision <= 0 {
		return fmt.Errorf("update %v: resource version %q: want the one that was read", o.Key(), o.Metadata().ResourceVersion)
	}
	err = write(ctx, s, o, revision)
	if errors.Is(err, ErrConflict) {
		if _, absent := find(ctx, s, o.Key()); errors.Is(absent, ErrNotFound) {
			return absent
		}
		return conflict(o.Key())
	}
	return err
}

// Apply stores an object whether it exists or not. Of one that exists, the
// identity, the status and the fields that are unknown here are kept. If o has
// a resource version, what is stored must have it.
func Apply(ctx context.Context, s Store, o api.Object) error {
	version := o.Metadata().ResourceVersion
	for range attempts {
		stored, err := Get(ctx, s, o.Key())
		switch {
		case errors.Is(err, ErrNotFound) && version != "":
			return err
		case errors.Is(err, ErrNotFound):
			err = Create(ctx, s, o)
		case err != nil:
			return err
		case version != "" && stored.Metadata().ResourceVersion != version:
			return conflict(o.Key())
		default:
			err = replace(ctx, s, stored, o)
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return conflict(o.Key())
}

// replace writes o in place of what is stored and takes over its new version.
func replace(ctx context.Context, s Store, stored, o api.Object) error {
	merged, err := api.Update(stored, o)
	if err != nil {
		return err
	}
	merged.Metadata().ResourceVersion = stored.Metadata().ResourceVersion
	if err := Update(ctx, s, merged); err != nil {
		return err
	}
	o.Metadata().ResourceVersion = merged.Metadata().ResourceVersion
	return nil
}

// Delete removes an object; if version is not empty, only that version of it.
func Delete(ctx context.Context, s Store, key api.Key, version string) error {
	for range attempts {
		e, err := find(ctx, s, key)
		if err != nil {
			return err
		}
		if version != "" && version != strconv.FormatInt(e.Revision, 10) {
			break
		}
		_, err = s.Commit(ctx, Op{Path: e.Path, Delete: true, If: e.Revision})
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("delete %v: %w", key, err)
		}
	}
	return conflict(key)
}

// write stores o if its key has the revision, and sets its resource version.
func write(ctx context.Context, s Store, o api.Object, revision int64) error {
	if o.Key().Path() == "" {
		return fmt.Errorf("write %v: this kind is not stored", o.Key())
	}
	api.Prepare(o, time.Now(), newUID())
	value, err := api.Encode(o)
	if err != nil {
		return fmt.Errorf("write %v: %w", o.Key(), err)
	}
	at, err := s.Commit(ctx, Op{Path: o.Key().Path(), Value: value, If: revision})
	if err != nil {
		return fmt.Errorf("write %v: %w", o.Key(), err)
	}
	o.Metadata().ResourceVersion = strconv.FormatInt(at, 10)
	return nil
}

func decode(e Entry) (api.Object, error) {
	o, _, err := api.DecodeKeep(e.Path, e.Value)
	if err != nil {
		return nil, err
	}
	o.Metadata().ResourceVersion = strconv.FormatInt(e.Revision, 10)
	return o, nil
}

// newUID makes a random UUID, version 4 of RFC 9562.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
