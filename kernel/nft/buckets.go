package nft

import (
	"encoding/binary"
	"fmt"

	"tortie/desired"
)

// stageRenderer makes the rules of one stage, and the chains, called buckets, of
// the lists that it leads to.
type stageRenderer struct {
	*programRenderer
	next string // the chain of the next stage
	last bool
	end  rule // of the stage
	made map[*desired.List]target
}

// lists leads from the stage's chain to the lists, as was made before if it was.
func (r *stageRenderer) lists(cur *chain, s *desired.Stage) error {
	if r.memo == nil || len(s.Rules) < leastRemembered {
		return r.makeLists(cur, s)
	}
	key := r.ledKey(s)
	m := r.memo.find(key, r.has)
	if m == nil {
		m = &ledStage{has: map[desired.SetKey]bool{}}
		own := programRenderer{carrying: r.carrying, trial: r.trial, buckets: map[target]bool{}}
		own.has = func(k desired.SetKey) bool { m.has[k] = r.has(k); return m.has[k] }
		own.sees = viewOf(s.View, own.carrying)
		st := &stageRenderer{programRenderer: &own, next: r.next, last: r.last, end: r.end, made: map[*desired.List]target{}}
		var c chain
		if err := st.makeLists(&c, s); err != nil {
			return err
		}
		m.rules, m.chains, m.depth = c.rules, own.lists, own.depth
		r.memo.put(key, m)
	}
	cur.rules = append(cur.rules, m.rules...)
	r.depth += m.depth
	for _, c := range m.chains {
		r.add(c)
	}
	return nil
}

// makeLists makes them.
func (r *stageRenderer) makeLists(cur *chain, s *desired.Stage) error {
	deepest := 0
	for _, d := range s.Dispatch {
		to := &leads{part: typePort}
		for i, l := range d.Lists {
			bucket, err := r.bucket(l)
			if err != nil {
				return err
			}
			deepest = max(deepest, depth(l))
			to.targets = append(to.targets, bucket)
			if d.Starts != nil {
				to.starts = append(to.starts, binary.BigEndian.AppendUint16(nil, d.Starts[i]))
			}
		}
		does := lead(string(to.targets[0]))
		if len(to.starts) > 0 {
			does = to.lookup(ctDestinationPort)
		}
		cur.rules = append(cur.rules, when(does, is(ctProtocol, d.Protocol)))
	}
	r.depth += max(deepest, depth(s.Others)-1)
	return r.list(cur, s.Others)
}

// depth is how many chains lead on to each other from that of a list on.
func depth(l *desired.List) int {
	below := 0
	for _, s := range l.Steps {
		if s.To != nil {
			below = max(below, depth(s.To))
		}
	}
	if l.Addresses != nil {
		for _, to := range l.Addresses.Lists {
			below = max(below, depth(to))
		}
	}
	if l.Rest != nil {
		below = max(below, depth(l.Rest))
	}
	return 1 + below
}

// rule adds what one rule is to a chain.
func (r *stageRenderer) rule(to *chain, rule desired.Rule) error {
	rules, err := renderRule(&rule, r.next, &r.sees)
	if err != nil {
		return fmt.Errorf("rule %s: %w", rule.ID, err)
	}
	if r.trial && rule.Verdict != desired.Next {
		tried(rules, &rule)
	}
	if r.last && rule.Verdict == desired.Next {
		for i := range rules {
			rules[i].does = counts(rule.ID, r.end.does...)
		}
	}
	to.rules = append(to.rules, rules...)
	return nil
}

// list adds what a list is to a chain, but for the end of the stage.
func (r *stageRenderer) list(to *chain, l *desired.List) error {
	for _, s := range l.Steps {
		if s.To == nil {
			if err := r.rule(to, s.Rule); err != nil {
				return err
			}
			continue
		}
		bucket, err := r.bucket(s.To)
		if err != nil {
			return err
		}
		rules, err := renderRule(&s.Rule, r.next, &r.sees)
		if err != nil {
			return fmt.Errorf("rule %s: %w", s.ID, err)
		}
		for _, rule := range rules {
			to.rules = append(to.rules, when(lead(string(bucket)), rule.matches...))
		}
	}
	if l.Addresses != nil {
		if err := r.addresses(to, l.Addresses); err != nil {
			return err
		}
	}
	if l.Rest != nil {
		bucket, err := r.bucket(l.Rest)
		if err != nil {
			return err
		}
		to.rules = append(to.rules, when(lead(string(bucket))))
	}
	return nil
}

// addresses leads by address, in each family.
func (r *stageRenderer) addresses(to *chain, a *desired.Addresses) error {
	four, six := &leads{part: typeIP4}, &leads{part: typeIP6}
	for i, start := range a.Starts {
		bucket, err := r.bucket(a.Lists[i])
		if err != nil {
			return err
		}
		of := six
		if start.Is4() {
			of = four
		}
		of.starts, of.targets = append(of.starts, start.AsSlice()), append(of.targets, bucket)
	}
	fields := [2]field{ctSource4, ctSource6}
	if a.Destination {
		fields = [2]field{ctDestination4, ctDestination6}
	}
	for i, of := range []*leads{four, six} {
		if len(of.starts) > 0 {
			to.rules = append(to.rules, when(of.lookup(fields[i])))
		}
	}
	return nil
}

const bucketPrefix = "b-"

// bucket makes the chain of a list. It is named after what is in it, so that
// equal ones are one, those of other programs too, and one that does not change
// is not written anew.
func (r *stageRenderer) bucket(l *desired.List) (target, error) {
	if to, ok := r.made[l]; ok {
		return to, nil
	}
	c := chain{object: object{family: inet}}
	if err := r.list(&c, l); err != nil {
		return "", err
	}
	c.rules = append(c.rules, r.end)
	to := r.keep(c)
	r.made[l] = to
	return to, nil
}

// keep names a chain after what is in it.
func (r *programRenderer) keep(c chain) target {
	var text []byte
	for i := range c.rules {
		text = append(c.rules[i].appendText(text), '\n')
	}
	c.name = fmt.Sprintf(bucketPrefix+"%016x", hash64(string(text)))
	r.add(c)
	return target(c.name)
}

// add adds a bucket that has its name.
func (r *programRenderer) add(c chain) {
	if to := target(c.name); !r.buckets[to] {
		r.buckets[to] = true
		r.lists = append(r.lists, c)
	}
}
