package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"

	"tortie/api"
	"tortie/store"
)

// errUnsupported is beside the store's errors what can be wrong with one
// object, so that others are tried nevertheless.
var errUnsupported = errors.New("operation not supported")

func concernsOne(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) || errors.Is(err, errUnsupported)
}

func doesNotExist(key api.Key) error {
	return fmt.Errorf("%w: %v with error: there is no key %s", store.ErrNotFound, key, key.Path())
}

func notLatest(key api.Key, version string, e *store.Entry) error {
	return fmt.Errorf("%w: %v: resource version %s is not the latest, which is %d", store.ErrConflict, key, version, e.Revision)
}

func alwaysChanged(key api.Key) error {
	return fmt.Errorf("%w: %v: it was changed by others during each of %d attempts", store.ErrConflict, key, attempts)
}

func notSupported(operation string, key api.Key, why string) error {
	return fmt.Errorf("%w: %v: %s: %s", errUnsupported, key, operation, why)
}

// attempts is how often a write is tried that others get in the way of.
const attempts = 5

// outcome is what a write did, and the revision from which on the object is as
// it is now.
type outcome struct {
	did      string // created, configured, unchanged, deleted
	revision int64
}

// lookupEntry returns the stored entry of a key, nil if there is none. Old
// releases stored a policy x of the default tier as default.x.
func lookupEntry(ctx context.Context, s store.Store, key api.Key) (*store.Entry, error) {
	keys := []api.Key{key}
	if isPolicy(key.Kind) {
		keys = append(keys, api.Key{Kind: key.Kind, Namespace: key.Namespace, Name: api.DefaultTier + "." + key.Name})
	}
	for _, k := range keys {
		path := k.Path()
		entries, _, err := s.List(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("read %v: %w", key, err)
		}
		for i := range entries {
			if entries[i].Path != path {
				continue
			}
			if o, _, err := api.Decode(path, entries[i].Value); k == key || err == nil && o.Key() == key {
				return &entries[i], nil
			}
		}
	}
	return nil, nil
}

// isPolicy says of which kinds a policy is in a tier and named as above.
func isPolicy(k api.Kind) bool { return slices.Contains(policyKinds, k) }

var policyKinds = []api.Kind{
	api.KindGlobalNetworkPolicy, api.KindNetworkPolicy, api.KindStagedGlobalNetworkPolicy, api.KindStagedNetworkPolicy,
}

// create stores an object that must not exist.
func create(ctx context.Context, s store.Store, o api.Object) (outcome, error) {
	o.Metadata().ResourceVersion = "" // that of where it was printed
	if err := store.Create(ctx, s, o); err != nil {
		return outcome{}, err
	}
	return outcome{"created", revisionOf(o)}, nil
}

// replace makes the stored object as o says, except for what this version does
// not know, its status, and its identity. It must exist.
func replace(ctx context.Context, s store.Store, o api.Object) (outcome, error) {
	return update(ctx, s, o, func() (outcome, error) { return outcome{}, doesNotExist(o.Key()) })
}

// apply creates o or makes the stored object as o says.
func apply(ctx context.Context, s store.Store, o api.Object) (outcome, error) {
	return update(ctx, s, o, func() (outcome, error) { return create(ctx, s, o) })
}

// update does what replace says; absent is called where there is no object.
func update(ctx context.Context, s store.Store, o api.Object, absent func() (outcome, error)) (outcome, error) {
	key, version := o.Key(), o.Metadata().ResourceVersion
	for range attempts {
		e, err := lookupEntry(ctx, s, key)
		if err != nil {
			return outcome{}, err
		}
		var done outcome
		switch {
		case e == nil:
			done, err = absent()
			if !errors.Is(err, store.ErrExists) {
				return done, err
			}
			continue // somebody was faster
		case version != "" && version != strconv.FormatInt(e.Revision, 10):
			return outcome{}, notLatest(key, version, e)
		}
		if done, err = overwrite(ctx, s, o, e); !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return done, err
		}
	}
	return outcome{}, alwaysChanged(key)
}

// overwrite writes o in place of e, unless that changes nothing. A stored
// document that nobody can read is replaced as a whole.
func overwrite(ctx context.Context, s store.Store, o api.Object, e *store.Entry) (outcome, error) {
	if stored, _, err := api.DecodeKeep(e.Path, e.Value); err == nil {
		if o, err = api.Update(stored, o); err != nil {
			return outcome{}, err
		}
	}
	api.Prepare(o, time.Now(), "")
	value, err := api.Encode(o)
	switch {
	case err != nil:
		return outcome{}, err
	case sameJSON(value, e.Value):
		return outcome{"unchanged", e.Revision}, nil
	case e.Path != o.Key().Path(): // a key of old releases stays
		revision, err := s.Commit(ctx, store.Op{Path: e.Path, Value: value, If: e.Revision})
		if err != nil {
			return outcome{}, fmt.Errorf("update %v: %w", o.Key(), err)
		}
		return outcome{"configured", revision}, nil
	}
	o.Metadata().ResourceVersion = strconv.FormatInt(e.Revision, 10)
	if err := store.Update(ctx, s, o); err != nil {
		return outcome{}, err
	}
	return outcome{"configured", revisionOf(o)}, nil
}

// revisionOf is the revision of an object that was just written.
func revisionOf(o api.Object) int64 {
	revision, _ := strconv.ParseInt(o.Metadata().ResourceVersion, 10, 64)
	return revision
}

// remove deletes the object with a key, also one that nobody can read, if its
// resource version is the given one or none is given.
func remove(ctx context.Context, s store.Store, key api.Key, version string) (outcome, error) {
	for range attempts {
		e, err := lookupEntry(ctx, s, key)
		switch {
		case err != nil:
			return outcome{}, err
		case e == nil:
			return outcome{}, doesNotExist(key)
		case version != "" && version != strconv.FormatInt(e.Revision, 10):
			return outcome{}, notLatest(key, version, e)
		}
		revision, err := s.Commit(ctx, store.Op{Path: e.Path, Delete: true, If: e.Revision})
		if err == nil {
			return outcome{"deleted", revision}, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return outcome{}, fmt.Errorf("delete %v: %w", key, err)
		}
	}
	return outcome{}, alwaysChanged(key)
}

// sameJSON compares values, not bytes: writers differ in how they write them.
func sameJSON(a, b []byte) bool {
	var x, y any
	return readJSON(a, &x) == nil && readJSON(b, &y) == nil && reflect.DeepEqual(number(x), number(y))
}

// number replaces the numbers in a decoded value by what they stand for, so
// that 10 and 10.0 are the same.
func number(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = number(v[k])
		}
	case []any:
		for i := range v {
			v[i] = number(v[i])
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		switch {
		case err != nil:
			return v
		case f == math.Trunc(f) && math.Abs(f) < 1<<53:
			return int64(f)
		}
		return f
	}
	return v
}

// readJSON keeps numbers as they are written.
func readJSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}
