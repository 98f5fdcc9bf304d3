package status

import (
	"bytes"
	"context"
	"fmt"

	"tortie/api"
	"tortie/store"
)

// addresses is what the store has of the host's.
type addresses struct {
	read  bool
	value []byte // nil: nothing
}

// SetAddresses notes what is to be said of the host's own addresses, nil for
// nothing.
func (w *Writer) SetAddresses(spec *api.HostAddressesSpec) {
	w.input.Lock()
	defer w.input.Unlock()
	w.input.address, w.input.known = nil, true
	if spec != nil {
		w.input.address = encode(map[string]any{"spec": spec})
	}
	w.signal()
}

// CheckAddresses notes that the store may have others than it should.
func (w *Writer) CheckAddresses() {
	w.input.Lock()
	defer w.input.Unlock()
	w.input.recheck = true
	w.signal()
}

// writeAddresses makes the store say of the host's addresses what it should.
func (w *Writer) writeAddresses(ctx context.Context) error {
	w.input.Lock()
	want, known, recheck := w.input.address, w.input.known, w.input.recheck
	w.input.recheck = false
	w.input.Unlock()
	has := &w.addresses
	has.read = has.read && !recheck
	if !known || has.read && bytes.Equal(want, has.value) {
		return nil
	}
	path := api.Key{Kind: api.KindHostAddresses, Name: w.opts.Host}.Path()
	if !has.read {
		entries, err := w.listAddresses(ctx, path)
		if err != nil {
			return fmt.Errorf("read the addresses of this host: %w", err)
		}
		*has = addresses{read: true}
		for _, e := range entries {
			if e.Path == path { // and not that of a host whose name begins so
				has.value = e.Value
			}
		}
		if bytes.Equal(want, has.value) {
			return nil
		}
	}
	if err := w.commit(ctx, []store.Op{{Path: path, Value: want, Delete: want == nil}}); err != nil {
		has.read = false
		return fmt.Errorf("write the addresses of this host: %w", err)
	}
	has.value = want
	return nil
}

func (w *Writer) listAddresses(ctx context.Context, path string) ([]store.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	entries, _, err := w.store.List(ctx, path)
	return entries, err
}
