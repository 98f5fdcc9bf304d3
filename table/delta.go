package table

// Delta is what is wanted against what is there. It knows which keys differ:
// a writer works through Pending and reports with Have or Gone what it did;
// what failed it does not report, so that stays pending.
//
// The zero Delta is not ready for use; call NewDelta.
type Delta[K comparable, V any] struct {
	want    map[K]V
	have    map[K]V
	pending map[K]struct{}
	equal   func(want, have V) bool
}

// NewDelta returns an empty delta. Equal says whether nothing has to be
// written where want is wanted and have is there.
func NewDelta[K comparable, V any](equal func(want, have V) bool) *Delta[K, V] {
	return &Delta[K, V]{want: map[K]V{}, have: map[K]V{}, pending: map[K]struct{}{}, equal: equal}
}

// Want says that v is wanted under k.
func (d *Delta[K, V]) Want(k K, v V) {
	d.want[k] = v
	d.compare(k)
}

// Unwant says that nothing is wanted under k.
func (d *Delta[K, V]) Unwant(k K) {
	delete(d.want, k)
	d.compare(k)
}

// Have says that v is there under k.
func (d *Delta[K, V]) Have(k K, v V) {
	d.have[k] = v
	d.compare(k)
}

// Gone says that nothing is there under k.
func (d *Delta[K, V]) Gone(k K) {
	delete(d.have, k)
	d.compare(k)
}

// ReadBack replaces all that is there with what was just read.
func (d *Delta[K, V]) ReadBack(have map[K]V) {
	old := d.have
	d.have = make(map[K]V, len(have))
	for k, v := range have {
		d.have[k] = v
	}
	for k := range old {
		d.compare(k)
	}
	for k := range have {
		d.compare(k)
	}
}

// Wanted returns what is wanted under k.
func (d *Delta[K, V]) Wanted(k K) (V, bool) {
	v, ok := d.want[k]
	return v, ok
}

// There returns what is there under k.
func (d *Delta[K, V]) There(k K) (V, bool) {
	v, ok := d.have[k]
	return v, ok
}

// Pending iterates, in no particular order, over the keys under which what is
// there is not what is wanted. The keys may be settled meanwhile.
func (d *Delta[K, V]) Pending() func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range d.pending {
			if !yield(k) {
				return
			}
		}
	}
}

// PendingLen is the number of keys that differ.
func (d *Delta[K, V]) PendingLen() int { return len(d.pending) }

func (d *Delta[K, V]) compare(k K) {
	w, wanted := d.want[k]
	h, there := d.have[k]
	if wanted == there && (!wanted || d.equal(w, h)) {
		delete(d.pending, k)
		return
	}
	d.pending[k] = struct{}{}
}
