package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// keeper is what every Resource can do besides being an Object.
type keeper interface {
	keep(stored []byte) error
	carryOver(from keeper)
	document() (stored []byte, status json.RawMessage, meta *Meta)
}

func (r *Resource[S]) keep(stored []byte) error {
	known, err := r.plain()
	if err != nil {
		return fmt.Errorf("keep %v: %w", r.Key(), err)
	}
	r.stored, r.known = stored, known
	return nil
}

func (r *Resource[S]) document() ([]byte, json.RawMessage, *Meta) { return r.stored, r.Status, &r.Meta }

// carryOver takes from what was stored the metadata and status that a user
// does not write.
func (r *Resource[S]) carryOver(from keeper) {
	_, status, meta := from.document()
	r.Meta.UID, r.Meta.CreationTimestamp = meta.UID, meta.CreationTimestamp
	if r.Status == nil {
		r.Status = status
	}
}

// Update returns the object to store where wanted, which a user wrote, takes
// the place of stored, which DecodeKeep returned: what is wanted, with the
// identity and status of what is stored, and its unknown fields.
func Update(stored, wanted Object) (Object, error) {
	wanted.(keeper).carryOver(stored.(keeper))
	untyped := lacksTypes(stored) && lacksTypes(wanted)
	to, err := wanted.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("update %v: %w", wanted.Key(), err)
	}
	doc, _, _ := stored.(keeper).document()
	info := infoByKind[string(wanted.Key().Kind)]
	if doc == nil || info == nil || stored.Key().Kind != wanted.Key().Kind {
		leaveUntyped(wanted, untyped)
		return wanted, nil
	}
	d := newDecoder(doc)
	defer d.release()
	if _, err := info.decode(d, info.Kind); err != nil {
		return nil, fmt.Errorf("update %v: %w", wanted.Key(), err)
	}
	known, err := without(doc, d.unknown)
	if err != nil {
		return nil, fmt.Errorf("update %v: %w", wanted.Key(), err)
	}
	merged, err := mergeText(doc, known, to)
	if err != nil {
		return nil, fmt.Errorf("update %v: %w", wanted.Key(), err)
	}
	o, _, err := DecodeKey(wanted.Key(), merged)
	if err != nil {
		return nil, fmt.Errorf("update %v: %w", wanted.Key(), err)
	}
	leaveUntyped(o, untyped)
	return o, o.(keeper).keep(merged)
}

// lacksTypes reports a policy that does not say of which directions it is,
// which is enforced in both.
func lacksTypes(o Object) bool {
	p, ok := o.(*Policy)
	return ok && len(p.Spec.Types) == 0
}

// leaveUntyped says whether Prepare is to leave a policy without types: given
// those of its rules, as a new one is, it would come to judge less than before.
func leaveUntyped(o Object, leave bool) {
	if p, ok := o.(*Policy); ok {
		p.untyped = leave
	}
}

// without returns a document without the members at the given paths, written
// as in problems.
func without(doc []byte, paths []string) ([]byte, error) {
	var v any
	if err := parseAny(doc, &v); err != nil {
		return nil, err
	}
	var walk func(v any, path string)
	walk = func(v any, path string) {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				at := strings.TrimPrefix(path+"."+shorten(name), ".")
				if slices.Contains(paths, at) {
					delete(v, name)
					continue
				}
				walk(member, at)
			}
		case []any:
			for i, element := range v {
				walk(element, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
	walk(v, "")
	return json.Marshal(v)
}

func parseAny(text []byte, into *any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}

// SameJSON reports whether two JSON texts have the same value: writers differ
// in spaces, escapes, the order of members and the spelling of numbers.
func SameJSON(a, b []byte) bool {
	var x, y any
	return parseAny(a, &x) == nil && parseAny(b, &y) == nil && sameValue(x, y)
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, sameValue)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, sameValue)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && sameNumber(a, b)
	}
	return a == b
}

func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	n, err1 := a.Int64()
	m, err2 := b.Int64()
	if err1 == nil && err2 == nil {
		return n == m
	}
	x, err1 := a.Float64()
	y, err2 := b.Float64()
	return err1 == nil && err2 == nil && x == y
}

// Encode returns the document to store.
func Encode(o Object) ([]byte, error) {
	value, err := o.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode %v: %w", o.Key(), err)
	}
	return value, nil
}

// MarshalJSON returns the document to store. If the object came from
// DecodeKeep or DecodeManifest, only what was changed since differs from the
// document it came from.
func (r *Resource[S]) MarshalJSON() ([]byte, error) {
	current, err := r.plain()
	if err != nil || r.stored == nil {
		return current, err
	}
	return mergeText(r.stored, r.known, current)
}

// mergeText is merge for JSON texts.
func mergeText(stored, from, to []byte) ([]byte, error) {
	if bytes.Equal(from, to) {
		return slices.Clone(stored), nil
	}
	var values [3]any
	for i, text := range [][]byte{stored, from, to} {
		if err := parseAny(text, &values[i]); err != nil {
			return nil, err
		}
	}
	return json.Marshal(merge(values[0], values[1], values[2]))
}

// plain is the document without regard to the one it came from.
func (r *Resource[S]) plain() ([]byte, error) {
	return json.Marshal(struct {
		Kind       Kind            `json:"kind"`
		APIVersion string          `json:"apiVersion"`
		Metadata   *Meta           `json:"metadata"`
		Spec       *S              `json:"spec"`
		Status     json.RawMessage `json:"status,omitempty"`
	}{r.Kind, APIVersion, &r.Meta, &r.Spec, r.Status})
}

// merge carries the difference between from and to over to stored. from is
// what was understood of stored.
func merge(stored, from, to any) any {
	if reflect.DeepEqual(from, to) {
		return stored
	}
	switch to := to.(type) {
	case map[string]any:
		s, ok1 := stored.(map[string]any)
		f, ok2 := from.(map[string]any)
		if ok1 && (ok2 || from == nil) {
			return mergeObject(s, f, to)
		}
	case []any:
		s, ok1 := stored.([]any)
		f, ok2 := from.([]any)
		if ok1 && ok2 && len(s) == len(f) {
			return mergeList(s, f, to)
		}
	}
	return to
}

func mergeObject(stored, from, to map[string]any) any {
	for name := range from {
		if _, ok := to[name]; !ok {
			delete(stored, spelling(stored, name))
		}
	}
	for name, value := range to {
		old, had := from[name]
		at := spelling(stored, name)
		is, stands := stored[at]
		switch {
		case stands && (had || is != nil):
			stored[at] = merge(is, old, value)
		case !had || !reflect.DeepEqual(old, value):
			stored[at] = value
		}
	}
	return stored
}

// spelling is how stored spells a name.
func spelling(stored map[string]any, name string) string {
	if _, ok := stored[name]; ok {
		return name
	}
	for s := range stored {
		if strings.EqualFold(s, name) {
			return s
		}
	}
	return name
}

// mergeList keeps, of the elements that are still there, what is stored of
// them. One that was changed is known by its place if none was added or
// removed.
func mergeList(stored, from, to []any) any {
	result := make([]any, len(to))
	kept := make([]bool, len(from)) // from[j] is in to
	set := make([]bool, len(to))
	next := 0
	for i, value := range to {
		for j := next; j < len(from); j++ {
			if reflect.DeepEqual(from[j], value) {
				result[i], set[i], kept[j], next = stored[j], true, true, j+1
				break
			}
		}
	}
	for i, value := range to {
		switch {
		case set[i]:
		case len(to) == len(from) && !kept[i]:
			result[i] = merge(stored[i], from[i], value)
		default:
			result[i] = value
		}
	}
	return result
}
