package nft

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// rejudge has the kernel judge every connection again, if that is called for
// and safe by the transaction itself: all but interval sets change in the same
// moment. Else the bump of the epoch is left for after the transaction.
func (d *differ) rejudge() (bumped bool) {
	if !d.tightens() {
		return false
	}
	interval := func(sc *setChange) bool { return sc.interval && len(sc.adds)+len(sc.dels) > 0 }
	if d.all || d.bumpDue || d.doubtful || slices.ContainsFunc(slices.Collect(maps.Values(d.ch.sets)), interval) {
		d.due()
		return false
	}
	d.advance()
	return true
}

// tightens says whether the transaction calls for that.
func (d *differ) tightens() bool {
	return !d.ch.empty() && (d.bumpDue || d.want.Tightened || d.doubtful)
}

// advance moves on to the next epoch.
func (d *differ) advance() {
	old := makeElem(native32(d.epoch))
	d.setEpoch(nextEpoch(d.epoch))
	c := renderMark(d.epoch, d.controlled())
	d.chain(c, baseOwner, d.force[c.object])
	d.element(epochSet, old)
	d.element(epochSet, makeElem(native32(d.epoch)))
	if h := d.have.sets[dueSet]; h != nil && h.len() > 0 {
		d.ch.set(h.set).dels = slices.Collect(maps.Keys(h.elems))
	}
}

// setEpoch decides on the epoch that the kernel is to have.
func (t *Tables) setEpoch(epoch uint32) {
	t.epoch = epoch
	t.intent.elems[epochSet] = map[elem]*wanted{makeElem(native32(epoch)): {refs: 1}}
}

// due leaves word in the kernel that the epoch has to be bumped after this
// transaction, should this process not live to do it.
func (d *differ) due() {
	s, _, _ := describeSet(dueSet)
	h := d.have.sets[dueSet]
	if h != nil && h.len() > 0 {
		return
	}
	if h != nil {
		s = h.set
	}
	sc := d.ch.set(s)
	sc.adds = append(sc.adds, elem{})
}

// newEpoch is the epoch of the rules that were read or, if there is none,
// more than one or one out of range, one that connections are unlikely to carry.
func newEpoch(read map[uint32]bool) uint32 {
	if len(read) == 1 {
		for e := range read {
			if e&^EpochMask == 0 {
				return e
			}
		}
	}
	var b [4]byte
	_, _ = rand.Read(b[:])
	return nextEpoch(binary.NativeEndian.Uint32(b[:]))
}

// nextEpoch counts within the mask and leaves out 0, the mark of a connection
// that nobody judged.
func nextEpoch(e uint32) uint32 {
	if e = (e + 1) & EpochMask; e == 0 {
		return 1
	}
	return e
}

// BumpEpoch makes the kernel judge every connection again, where Apply did not.
// It is the second commit, after the policy: the kernel shows a commit's
// generation before it swaps interval sets, so in one commit an old verdict
// could be kept under the new epoch.
func (t *Tables) BumpEpoch(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !t.applied {
		return errors.New("bump the policy epoch: nothing was applied yet")
	}
	old := t.epoch
	d := t.newDiffer(nil)
	d.advance()
	err := t.conn.write(d.ch, t.have, 0, nil)
	if err != nil {
		t.setEpoch(old)
		t.Resync()
		return fmt.Errorf("bump the policy epoch: %w", err)
	}
	t.bumpDue = false
	return nil
}
