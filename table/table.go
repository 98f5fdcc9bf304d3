package table

// maxKept is how many dirty keys a table keeps the memory for: a map never
// shrinks, and clearing one costs as much as it was ever large.
const maxKept = 1024

// Table is a map that remembers which keys changed since the last Clear.
// Setting a key to an equal value is not a change. The zero Table is not
// ready for use; call New.
type Table[K comparable, V any] struct {
	m     map[K]V
	dirty map[K]struct{}
	equal func(a, b V) bool
}

// New returns an empty table whose values are compared with equal.
func New[K comparable, V any](equal func(a, b V) bool) *Table[K, V] {
	return &Table[K, V]{m: map[K]V{}, dirty: map[K]struct{}{}, equal: equal}
}

// Set stores v under k and reports whether that changed the table.
func (t *Table[K, V]) Set(k K, v V) bool {
	if old, ok := t.m[k]; ok && t.equal(old, v) {
		return false
	}
	t.m[k] = v
	t.dirty[k] = struct{}{}
	return true
}

// Delete removes k and reports whether it was there.
func (t *Table[K, V]) Delete(k K) bool {
	if _, ok := t.m[k]; !ok {
		return false
	}
	delete(t.m, k)
	t.dirty[k] = struct{}{}
	return true
}

// Get returns the value under k.
func (t *Table[K, V]) Get(k K) (V, bool) {
	v, ok := t.m[k]
	return v, ok
}

// Len is the number of keys.
func (t *Table[K, V]) Len() int { return len(t.m) }

// All iterates over the table in no particular order.
func (t *Table[K, V]) All() func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		for k, v := range t.m {
			if !yield(k, v) {
				return
			}
		}
	}
}

// Dirty iterates over the keys that changed since the last Clear, in no
// particular order. A changed key that Get does not find was deleted.
func (t *Table[K, V]) Dirty() func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range t.dirty {
			if !yield(k) {
				return
			}
		}
	}
}

// DirtyLen is the number of keys that changed since the last Clear.
func (t *Table[K, V]) DirtyLen() int { return len(t.dirty) }

// Touch marks k as changed, whether or not the table has it.
func (t *Table[K, V]) Touch(k K) { t.dirty[k] = struct{}{} }

// Clear forgets which keys changed; their values stay.
func (t *Table[K, V]) Clear() {
	if len(t.dirty) > maxKept {
		t.dirty = map[K]struct{}{}
		return
	}
	clear(t.dirty)
}
