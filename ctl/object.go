package ctl

import (
	"bytes"
	"context"
	"crypto/rand"
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

// What can be wrong with one object.
var (
	errNotExist    = errors.New("resource does not exist")
	errExists      = errors.New("resource already exists")
	errConflict    = errors.New("update conflict")
	errUnsupported = errors.New("operation not supported")
)

// resourceError says what is wrong with one object; others are tried
// nevertheless. Its text begins as calicoctl's does, for scripts match it.
type resourceError struct {
	what error // one of those above
	key  api.Key
	why  string
}

// Error implements error.
func (e *resourceError) Error() string {
	if errors.Is(e.what, errNotExist) || errors.Is(e.what, errExists) {
		return fmt.Sprintf("%v: %v with error: %s", e.what, e.key, e.why)
	}
	return fmt.Sprintf("%v: %v: %s", e.what, e.key, e.why)
}

func (e *resourceError) Unwrap() error { return e.what }

func doesNotExist(key api.Key) error {
	return &resourceError{errNotExist, key, "there is no key " + key.Path()}
}

func alreadyExists(key api.Key) error {
	return &resourceError{errExists, key, "there is a key " + key.Path()}
}

func conflict(key api.Key, format string, args ...any) error {
	return &resourceError{errConflict, key, fmt.Sprintf(format, args...)}
}

func notSupported(operation string, key api.Key, why string) error {
	return &resourceError{errUnsupported, key, operation + ": " + why}
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
	api.Prepare(o, time.Now(), newUID())
	value, err := api.Encode(o)
	if err != nil {
		return outcome{}, err
	}
	revision, err := s.Commit(ctx, store.Op{Path: o.Key().Path(), Value: value, If: 0})
	switch {
	case errors.Is(err, store.ErrConflict):
		return outcome{}, alreadyExists(o.Key())
	case err != nil:
		return outcome{}, fmt.Errorf("create %v: %w", o.Key(), err)
	}
	return outcome{"created", revision}, nil
}

// replace makes the stored object as o says, except for what this version does
// not know, its status, and its identity. It must exist.
func replace(ctx context.Context, s store.Store, o api.Object) (outcome, error) {
	return update(ctx, s, o, func() (outcome, error) { return outcome{}, doesNotExist(o.Key()) })
}

// apply creates o or makes the stored object as o says.
func apply(ctx context.Context, s store.Store, o api.Object) (outcome, error) {
	return update(ctx, s, o, func() (outcome, error) {
		if o.Metadata().ResourceVersion != "" {
			return outcome{}, doesNotExist(o.Key())
		}
		return create(ctx, s, o)
	})
}

// update does what replace says; absent is called where there is no object.
func update(ctx context.Context, s store.Store, o api.Object, absent func() (outcome, error)) (outcome, error) {
	key := o.Key()
	for range attempts {
		e, err := lookupEntry(ctx, s, key)
		if err != nil {
			return outcome{}, err
		}
		if e == nil {
			done, err := absent()
			if errors.Is(err, errExists) {
				continue // somebody was faster
			}
			return done, err
		}
		if v := o.Metadata().ResourceVersion; v != "" && v != strconv.FormatInt(e.Revision, 10) {
			return outcome{}, conflict(key, "resource version %s is not the latest, which is %d", v, e.Revision)
		}
		value, err := merged(o, e)
		if err != nil {
			return outcome{}, err
		}
		if sameJSON(value, e.Value) {
			return outcome{"unchanged", e.Revision}, nil
		}
		revision, err := s.Commit(ctx, store.Op{Path: e.Path, Value: value, If: e.Revision})
		if err == nil {
			return outcome{"configured", revision}, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return outcome{}, fmt.Errorf("update %v: %w", key, err)
		}
	}
	return outcome{}, conflict(key, "it was changed by others during each of %d attempts", attempts)
}

// merged returns what to store for o in place of what is stored. A stored
// document that nobody can read is replaced.
func merged(o api.Object, e *store.Entry) ([]byte, error) {
	if stored, _, err := api.DecodeKeep(e.Path, e.Value); err == nil {
		if o, err = api.Update(stored, o); err != nil {
			return nil, err
		}
	}
	api.Prepare(o, time.Now(), newUID())
	return api.Encode(o)
}

// remove deletes the object with a key, if its resource version is the given
// one or none is given.
func remove(ctx context.Context, s store.Store, key api.Key, version string) (outcome, error) {
	for range attempts {
		e, err := lookupEntry(ctx, s, key)
		switch {
		case err != nil:
			return outcome{}, err
		case e == nil:
			return outcome{}, doesNotExist(key)
		case version != "" && version != strconv.FormatInt(e.Revision, 10):
			return outcome{}, conflict(key, "resource version %s is not the latest, which is %d", version, e.Revision)
		}
		revision, err := s.Commit(ctx, store.Op{Path: e.Path, Delete: true, If: e.Revision})
		if err == nil {
			return outcome{"deleted", revision}, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return outcome{}, fmt.Errorf("delete %v: %w", key, err)
		}
	}
	return outcome{}, conflict(key, "it was changed by others during each of %d attempts", attempts)
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

// newUID makes a random UUID, version 4 of RFC 9562.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
