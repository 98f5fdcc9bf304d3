package nft

import (
	"fmt"
	"hash/fnv"
	"strconv"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// What policy denies is told of through the packet log, if Options say so: the
// rule puts its number into the packet's mark, which nobody reads any more, and
// leads to one chain for all. That chain has a limit for each rule and pair of
// interfaces, so that a flood at one endpoint does not hide what is denied at
// another, and one for all together, so that a flood costs little.
const (
	DeniedPrefix      = "denied"       // of a packet of a connection's original direction
	DeniedReplyPrefix = "denied-reply" // of the other

	chainDenied = "denied"
	deniedSize  = 4096   // rules and interfaces at a time; for more there are no events
	deniedTime  = 10_000 // milliseconds after which one that denies nothing is forgotten
)

var (
	deniedSet  = object{inet, "denied-limit"}
	deniedEach = rate{5, 10}
	deniedAll  = rate{200, 400}
)

// Log rules have a limit each, so that one does not fill the buffer of all.
var logEach = rate{1000, 1000}

// DeniedMark is the number of a rule or stage's end, by its identity.
func DeniedMark(id string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return h.Sum32()
}

// carrying is how the verdicts of a program are carried out.
type carrying struct {
	has    func(desired.SetKey) bool // the set is there
	events bool                      // denied packets are told of
	memo   *memo                     // of what was made before; may be nil
}

func (t *Tables) carrying(want *desired.State) carrying {
	has := func(k desired.SetKey) bool { _, ok := want.Sets.Get(k); return ok }
	return carrying{has: has, events: t.opts.DeniedEvents, memo: &t.memo}
}

// verdict is what a rule does; next is the chain of the next stage.
func (v *view) verdict(r *desired.Rule, next string) ([]action, error) {
	switch r.Verdict {
	case desired.Allow:
		return counts(r.ID, v.allow), nil
	case desired.Deny:
		return counts(r.ID, v.deny(r.ID)...), nil
	case desired.Next:
		return counts(r.ID, lead(next)), nil
	case desired.Log:
		return counts(r.ID, action{kind: limit, rate: logEach}, action{kind: logs, name: shorten(r.ID)}), nil
	}
	return nil, fmt.Errorf("verdict %d is unknown", r.Verdict)
}

// deny drops, and says so if it is known who denies.
func (c carrying) deny(id string) []action {
	if !c.events || id == "" {
		return []action{{kind: drop}}
	}
	return []action{{kind: markIt, value: DeniedMark(id)}, lead(chainDenied)}
}

// end denies what comes to the end of a stage, and counts it.
func (c carrying) end(s *desired.Stage) rule {
	return rule{does: append([]action{{kind: count, name: counterUnmatched}}, counts(s.EndID, c.deny(s.EndID)...)...)}
}

// renderDenied logs, within limits, and drops.
func renderDenied() chain {
	tell := func(m match, prefix string) rule {
		return rule{matches: []match{m}, does: []action{
			{kind: limitBy, name: deniedSet.name, rate: deniedEach},
			{kind: limit, rate: deniedAll},
			{kind: logs, name: prefix},
		}}
	}
	return chain{object{inet, chainDenied}, nil, []rule{
		tell(isOriginal, DeniedPrefix),
		tell(isReply, DeniedReplyPrefix),
		when(action{kind: drop}),
	}}
}

// limiting writes actions that mark packets and that limit how many go on.
func (w *writer) limiting(a *action) {
	switch a.kind {
	case markIt:
		w.constant(firstReg, native32(a.value))
		at := w.expr("meta")
		w.u32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		w.u32(unix.NFTA_META_SREG, firstReg)
		w.done(at)
	case limit:
		at := w.expr("limit")
		w.rate(a.rate)
		w.done(at)
	case limitBy:
		w.load(packetMark, firstReg)
		w.load(inIndex, firstReg+1)
		w.load(outIndex, firstReg+2)
		at := w.expr("dynset")
		w.str(unix.NFTA_DYNSET_SET_NAME, a.name)
		w.u32(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE)
		w.u32(unix.NFTA_DYNSET_SREG_KEY, firstReg)
		w.u64(unix.NFTA_DYNSET_TIMEOUT, deniedTime)
		in := w.open(unix.NFTA_DYNSET_EXPR)
		w.str(unix.NFTA_EXPR_NAME, "limit")
		data := w.open(unix.NFTA_EXPR_DATA)
		w.rate(a.rate)
		w.close(data)
		w.close(in)
		w.done(at)
	}
}

func (w *writer) rate(r rate) {
	w.u64(unix.NFTA_LIMIT_RATE, uint64(r.second))
	w.u64(unix.NFTA_LIMIT_UNIT, 1)
	w.u32(unix.NFTA_LIMIT_BURST, r.burst)
	w.u32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
}

func (r rate) appendText(b []byte) []byte {
	b = strconv.AppendUint(append(b, "limit rate "...), uint64(r.second), 10)
	return strconv.AppendUint(append(b, "/second burst "...), uint64(r.burst), 10)
}

// parseRate is the inverse of writer.rate.
func parseRate(attrs []byte) (r rate) {
	each(attrs, func(typ uint16, v []byte) {
		switch typ {
		case unix.NFTA_LIMIT_RATE:
			r.second = uint32(attrUint64(v))
		case unix.NFTA_LIMIT_BURST:
			r.burst = attrUint32(v)
		}
	})
	return r
}

// limitByOf reads the attributes of a dynset expression.
func limitByOf(a *exprAttrs) action {
	does := action{kind: limitBy, name: attrString(a[unix.NFTA_DYNSET_SET_NAME])}
	each(a[unix.NFTA_DYNSET_EXPR], func(typ uint16, v []byte) {
		if typ == unix.NFTA_EXPR_DATA {
			does.rate = parseRate(v)
		}
	})
	return does
}
