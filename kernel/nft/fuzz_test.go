package nft

import (
	"net/netip"
	"testing"
)

// FuzzParse gives the parsers what no kernel would: none may panic, whatever
// the bytes are.
func FuzzParse(f *testing.F) {
	b := &batch{}
	st := everyFeature()
	chains := renderNAT(testPrefixes, nat{
		floating: [2]bool{true, true}, masquerade: [2]bool{true, true}, inside: prefixes("10.65.0.0/16", "fd00::/16"),
		address: netip.MustParseAddr("198.51.100.1"), ports: [2]uint16{1000, 2000},
	})
	for _, c := range append(chains, renderBase(base{prefixes: testPrefixes, epoch: 5, anyMAC: true, fixedMAC: true, ranges: ranges{own: true, others: true, nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9"), netip.MustParsePrefix("fd00::/8")}}, controls: everyControl, hosts: everyHost})...) {
		b.newChain(c.object, c.hook, culprit{})
		for i := range c.rules {
			b.rule(c.object, &c.rules[i], c.rules[i].hash(), place{}, culprit{})
		}
	}
	for id, p := range st.Programs.All() {
		chains, err := renderProgram(id, p, (&Tables{opts: Options{DeniedEvents: true}}).carrying(st))
		if err != nil {
			f.Fatal(err)
		}
		for i := range chains[0].rules {
			b.rule(chains[0].object, &chains[0].rules[i], 1, place{}, culprit{})
		}
	}
	for i := range baseSets {
		b.newSet(&baseSets[i])
		b.elements(&baseSets[i], 12, []elem{{}, {flag: elemAny}}, []target{rateTarget(1, 2), "x"}, true)
	}
	b.table(inet, 0)
	b.counter(object{inet, "x"}, 18)
	for rest := b.w.b; len(rest) > 0; {
		m, next, err := nextMessage(rest)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(rest[:len(rest)-len(next)])
		_, rest = m, next
	}
	f.Add([]byte{36, 0, 0, 0, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 20, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Fuzz(func(t *testing.T, b []byte) {
		readNotifications(b)
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			b = rest
			parseAll(&m)
		}
	})
}

func parseAll(m *message) {
	errorOf(m)
	_ = (&batch{}).refusal(m)
	fam, attrs := m.nfAttrs()
	h := newHave()
	for _, add := range []func(family, []byte) error{h.addTable, h.addChain, h.addRule, h.addRule, h.addObject, h.addSet, h.addSet} {
		_ = add(fam, attrs)
	}
	h.checkHooks()
	h.equal(newHave())
	for i := range baseSets {
		s := newHaveSet(baseSets[i], 0)
		_ = s.addElements(fam, attrs)
		s.text()
	}
	ruleHandle(attrs)
	ruleText(attrs)
	unconditional(attrs)
}
