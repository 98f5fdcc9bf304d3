package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"tortie/api"
	"tortie/store"
)

// errUnsupported is beside the store's errors what can be wrong with one
// object, so that others are tried nevertheless.
var errUnsupported = errors.New("operation not supported")

func concernsOne(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) || errors.Is(err, errUnsupported)
}

func notSupported(operation string, key api.Key, why string) error {
	return fmt.Errorf("%w: %v: %s: %s", errUnsupported, key, operation, why)
}

// each calls f for every element. What is wrong with one object does not keep
// the others from being tried; any other trouble does.
func each[T any](all []T, f func(T) error) error {
	var problems []error
	for i, v := range all {
		err := f(v)
		if err == nil {
			continue
		}
		problems = append(problems, err)
		if rest := len(all) - i - 1; !concernsOne(err) && rest > 0 {
			problems = append(problems, fmt.Errorf("%d further objects were not tried", rest))
			break
		}
	}
	return errors.Join(problems...)
}

// readJSON keeps numbers as they are written.
func readJSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}
