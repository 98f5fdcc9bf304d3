package verify

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/space"
)

// machine runs chains over sets of headers. A value in it, of a register or of
// a packet, is a list of bits, and a bit is the set of headers for which it is
// set; so all headers go through at once, and each expression is run once for
// all that come to it.
type machine struct {
	*space.Space
	rules *Ruleset
	way   way

	src, dst, srcPort, dstPort []space.Set // as the packet has them now
	srcGone                    space.Set   // for these the source is not known: a host's address
	ctMark, packetMark         []space.Set
	sourceNAT, destNAT         space.Set // the connection is translated
	hook                       *chain

	dropped, undecided space.Set
	why                []string // what was not known, each once
	steps              int
	members            map[string]hits
}

// way is where packets come from and go to.
type way struct {
	in, out device
	mac     []byte // of the sender
	hooks   []uint32
}

// device is an interface.
type device struct {
	name  string
	index uint32
}

var forwarded = []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_POST_ROUTING}

// most bounds the rules of one run: chains that lead to each other through
// maps are run once for each way.
const most = 4 << 20

func newMachine(s *space.Space, r *Ruleset, w way) *machine {
	none := s.None()
	return &machine{
		Space: s, rules: r, way: w,
		src: s.Field(space.SrcAddr), dst: s.Field(space.DstAddr), srcPort: s.Field(space.SrcPort), dstPort: s.Field(space.DstPort),
		srcGone: none, ctMark: slices.Repeat([]space.Set{none}, 32), packetMark: slices.Repeat([]space.Set{none}, 32),
		sourceNAT: none, destNAT: none, dropped: none, undecided: none, members: map[string]hits{},
	}
}

// run sends headers through all hooks and returns those that pass.
func (m *machine) run(start space.Set) space.Set {
	active := start
	for _, hook := range m.way.hooks {
		var bases []*chain
		for _, c := range m.rules.chains {
			if c.base && c.hook == hook {
				bases = append(bases, c)
			}
		}
		slices.SortFunc(bases, func(a, b *chain) int { return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.name, b.name)) })
		for i, c := range bases {
			if i > 0 && bases[i-1].priority == c.priority {
				active = m.stuck(active, "two base chains of one priority")
			}
			m.hook = c
			through := active
			if c.kind == "nat" { // asked until one translates
				through = active.Minus(m.translated(hook))
			}
			o := m.chain(c.name, through, 0)
			passed := o.accepted
			if c.policy == codeDrop {
				m.dropped = m.dropped.Or(o.fell)
			} else {
				passed = passed.Or(o.fell)
			}
			active = active.Minus(through).Or(passed)
		}
	}
	return active
}

// translated are the headers whose connections a hook has translated.
func (m *machine) translated(hook uint32) space.Set {
	if hook == unix.NF_INET_PRE_ROUTING || hook == unix.NF_INET_LOCAL_OUT {
		return m.destNAT
	}
	return m.sourceNAT
}

// stuck takes headers out of which nothing is known any more.
func (m *machine) stuck(active space.Set, why string, args ...any) space.Set {
	if !active.IsEmpty() {
		m.undecided = m.undecided.Or(active)
		if text := fmt.Sprintf(why, args...); !slices.Contains(m.why, text) {
			m.why = append(m.why, text)
		}
	}
	return m.None()
}

// outcome is what becomes of the headers that a chain is given, besides those
// that are dropped.
type outcome struct {
	fell     space.Set // through its end, or returned
	accepted space.Set
}

// deepest bounds nested chains, as the kernel does.
const deepest = 32

// chain runs a chain.
func (m *machine) chain(name string, active space.Set, depth int) outcome {
	o := outcome{m.None(), m.None()}
	c := m.rules.chains[name]
	if c == nil || depth > deepest {
		m.stuck(active, "a chain %q that is not there, or leads too deep", name)
		return o
	}
	for i := range c.rules {
		if active.IsEmpty() || m.Err() != nil {
			break
		}
		if m.steps++; m.steps > most {
			active = m.stuck(active, "too many ways through the chains")
			break
		}
		active = m.rule(&c.rules[i], active, depth, &o)
	}
	o.fell = o.fell.Or(active)
	return o
}

// branch is a verdict for some headers.
type branch struct {
	verdict
	on space.Set
}

// rule runs a rule and returns the headers that go on to the next.
func (m *machine) rule(r *rule, active space.Set, depth int, o *outcome) space.Set {
	at := &step{machine: m, active: active}
	at.forget()
	for i := range r.exprs {
		if at.active.IsEmpty() {
			break
		}
		at.expr(&r.exprs[i])
	}
	next := active.Minus(m.undecided)
	for _, b := range at.branches {
		next = next.Minus(b.on)
	}
	for _, b := range at.branches {
		switch b.code {
		case codeAccept:
			o.accepted = o.accepted.Or(b.on)
		case codeDrop:
			m.dropped = m.dropped.Or(b.on)
		case unix.NFT_RETURN:
			o.fell = o.fell.Or(b.on)
		case unix.NFT_JUMP:
			in := m.chain(b.chain, b.on, depth+1)
			o.accepted, next = o.accepted.Or(in.accepted), next.Or(in.fell)
		case unix.NFT_GOTO:
			in := m.chain(b.chain, b.on, depth+1)
			o.accepted, o.fell = o.accepted.Or(in.accepted), o.fell.Or(in.fell)
		case unix.NFT_CONTINUE, unix.NFT_BREAK:
			next = next.Or(b.on)
		default:
			m.stuck(b.on, "verdict %d", b.code)
		}
	}
	return next
}

// registers are 16 of 4 bytes.
const registers = 64

// step is a rule on its way: what headers are still in it, the registers, and
// the verdicts that some have been given.
type step struct {
	*machine
	active   space.Set
	reg      [registers * 8]space.Set
	unknown  [registers]space.Set // for these headers a byte is not known
	branches []branch
}

func (s *step) forget() {
	none, all := s.None(), s.All()
	for i := range s.reg {
		s.reg[i] = none
	}
	for i := range s.unknown {
		s.unknown[i] = all
	}
}

// offset is where a register is, in bytes; -1 if there is none such.
func offset(reg uint32, size int) int {
	at := -1
	switch {
	case reg >= unix.NFT_REG_1 && reg <= unix.NFT_REG_4:
		at = int(reg-unix.NFT_REG_1) * 16
	case reg >= unix.NFT_REG32_00 && reg <= unix.NFT_REG32_15:
		at = int(reg-unix.NFT_REG32_00) * 4
	}
	if at < 0 || at+size > registers {
		return -1
	}
	return at
}

// store puts bits, whole bytes, into registers from one on; the rest of the
// last is zero. For some headers they are not known.
func (s *step) store(reg uint32, bits []space.Set, unknown space.Set) {
	size := (len(bits) + 31) / 32 * 4
	at := offset(reg, size)
	if at < 0 {
		s.lost("register %d", reg)
		return
	}
	none := s.None()
	for i := range size * 8 {
		b := none
		if i < len(bits) {
			b = bits[i]
		}
		s.reg[at*8+i] = b
	}
	for i := range size {
		s.unknown[at+i] = unknown
	}
}

// load takes bytes from registers; headers for which they are not known are
// undecided.
func (s *step) load(reg uint32, size int) []space.Set {
	at := offset(reg, size)
	if at < 0 {
		s.lost("register %d", reg)
		return slices.Repeat([]space.Set{s.None()}, size*8)
	}
	gone := s.None()
	for _, u := range s.unknown[at : at+size] {
		if u != gone {
			gone = gone.Or(u)
		}
	}
	s.lose(gone, "what is in register %d", reg)
	return s.reg[at*8 : (at+size)*8]
}

// lose makes some headers undecided.
func (s *step) lose(which space.Set, why string, args ...any) {
	s.stuck(s.active.And(which), why, args...)
	s.active = s.active.Minus(which)
}

// lost makes all of them undecided.
func (s *step) lost(why string, args ...any) { s.active = s.stuck(s.active, why, args...) }

// give ends the rule for all headers in it.
func (s *step) give(v verdict) {
	s.branches = append(s.branches, branch{v, s.active})
	s.active = s.None()
}

// constant is bytes as bits.
func (m *machine) constant(b []byte) []space.Set {
	bits := make([]space.Set, len(b)*8)
	for i := range bits {
		bits[i] = m.None()
		if b[i/8]>>(7-i%8)&1 == 1 {
			bits[i] = m.All()
		}
	}
	return bits
}

func (m *machine) native32(v uint32) []space.Set {
	return m.constant(binary.NativeEndian.AppendUint32(nil, v))
}

// equal are the headers for which bits are these bytes. It goes backwards, so
// that what a diagram decides first is put on last.
func (m *machine) equal(bits []space.Set, value []byte) space.Set {
	r := m.All()
	for i := len(bits) - 1; i >= 0 && !r.IsEmpty(); i-- {
		if value[i/8]>>(7-i%8)&1 == 1 {
			r = bits[i].And(r)
		} else {
			r = r.Minus(bits[i])
		}
	}
	return r
}

// compare returns the headers for which bits, as a number, are below bytes,
// and those for which they are above.
func (m *machine) compare(bits []space.Set, value []byte) (below, above space.Set) {
	below, above = m.None(), m.None()
	for i := len(bits) - 1; i >= 0; i-- {
		if value[i/8]>>(7-i%8)&1 == 1 {
			below, above = bits[i].Choose(below, m.All()), bits[i].And(above)
		} else {
			below, above = below.Minus(bits[i]), bits[i].Choose(m.All(), above)
		}
	}
	return below, above
}

// between are the headers for which bits are from low to high, both inclusive.
func (m *machine) between(bits []space.Set, low, high []byte) space.Set {
	below, _ := m.compare(bits, low)
	_, above := m.compare(bits, high)
	return m.All().Minus(below).Minus(above)
}
