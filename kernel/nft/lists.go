package nft

import "slices"

// listSets makes the lists that are named for the first time, and deletes
// those that nothing names any more.
func (d *differ) listSets() {
	for _, lists := range d.lists {
		for o, c := range lists {
			if h := d.have.sets[o]; (h == nil || d.all) && d.ch.sets[o] == nil {
				d.listSet(o, c, h)
			}
		}
	}
	gone := map[object]bool{}
	for owner := range d.lists {
		for _, o := range d.Tables.lists[owner] {
			gone[o] = true
		}
	}
	if d.all && !d.unsure() {
		for o := range d.have.sets {
			if _, ok := listSet(o); ok {
				gone[o] = true
			}
		}
	}
	if len(gone) == 0 {
		return
	}
	for owner, old := range d.Tables.lists {
		if d.lists[owner] == nil && !d.all {
			for _, o := range old {
				delete(gone, o)
			}
		}
	}
	for _, lists := range d.lists {
		for o := range lists {
			delete(gone, o)
		}
	}
	for o := range gone {
		if h := d.have.sets[o]; h != nil && d.bad[culprit{removal: o, isSet: true}] == nil {
			d.ch.set(h.set).remove = true
		}
	}
}

// listSet makes a list, or repairs it.
func (d *differ) listSet(o object, c content, h *haveSet) {
	s, _ := listSet(o)
	es, targets := listElems(c)
	if h == nil {
		sc := d.ch.set(s)
		sc.create, sc.adds, sc.targets = true, es, targets
		return
	}
	there := 0
	for i, e := range es {
		to := target("")
		if targets != nil {
			to = targets[i]
		}
		if h.has(e, to) {
			there++
			continue
		}
		sc := d.ch.set(s)
		if h.contains(e) {
			there++
			sc.dels = append(sc.dels, e)
		}
		if sc.adds = append(sc.adds, e); targets != nil {
			sc.targets = append(sc.targets, to)
		}
	}
	if h.len() > there {
		d.extra(h, func(e elem) bool { return slices.Contains(es, e) })
	}
}
