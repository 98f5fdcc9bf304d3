package nft

import (
	lru "container/list"
	"slices"

	"tortie/desired"
)

const (
	// leastRemembered is how many rules a stage has at least for what was made of it
	// to be remembered: programs that have it too, and the next change of this one,
	// need not make it again.
	leastRemembered = 64

	// mostRemembered is how many rules of the kernel's are remembered at most, some
	// hundred bytes each; what was not needed for longest is forgotten.
	mostRemembered = 50_000
)

// ledStage is what leads to the lists of a stage, and their chains.
type ledStage struct {
	rules  []rule
	chains []chain
	depth  int
	has    map[desired.SetKey]bool // which sets there were
}

func (m *ledStage) size() int {
	n := len(m.rules)
	for i := range m.chains {
		n += len(m.chains[i].rules)
	}
	return n
}

// ledKey is all that a ledStage depends on, but for sets. Lists are never
// changed, so what points to one says what is in it.
type ledKey struct {
	led    *desired.Dispatch
	others *desired.List
	view   desired.View
	next   string // if a rule leads there
	end    string
	last   bool
	trial  bool
	events bool
}

func (r *stageRenderer) ledKey(s *desired.Stage) ledKey {
	k := ledKey{led: &s.Dispatch[0], others: s.Others, view: s.View, end: string(r.end.appendText(nil)), last: r.last, trial: r.trial, events: r.events}
	if slices.ContainsFunc(s.Rules, func(r desired.Rule) bool { return r.Verdict == desired.Next }) {
		k.next = r.next
	}
	return k
}

// memo remembers them.
type memo struct {
	stages map[ledKey]*lru.Element // of memorized
	recent lru.List                // the last one used comes first
	rules  int
}

type memorized struct {
	key   ledKey
	stage *ledStage
}

// find returns what was made, if the same sets are there as were then.
func (m *memo) find(k ledKey, has func(desired.SetKey) bool) *ledStage {
	e := m.stages[k]
	if e == nil {
		return nil
	}
	s := e.Value.(memorized).stage
	for set, had := range s.has {
		if has(set) != had {
			m.drop(e)
			return nil
		}
	}
	m.recent.MoveToFront(e)
	return s
}

func (m *memo) put(k ledKey, s *ledStage) {
	if m.stages == nil {
		m.stages = map[ledKey]*lru.Element{}
	}
	m.stages[k] = m.recent.PushFront(memorized{k, s})
	for m.rules += s.size(); m.rules > mostRemembered && m.recent.Len() > 1; {
		m.drop(m.recent.Back())
	}
}

func (m *memo) drop(e *lru.Element) {
	one := m.recent.Remove(e).(memorized)
	delete(m.stages, one.key)
	m.rules -= one.stage.size()
}
