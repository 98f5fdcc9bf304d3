package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/compile"
	"tortie/desired"
	"tortie/internal/socket"
	"tortie/kernel/nft"
)

// showCounters writes what each rule of the programs here has counted, and what
// each rule of a staged policy would have decided.
func (l *loop) showCounters(ctx context.Context, w io.Writer) error {
	if l.kernel == nil {
		return errNotInSync
	}
	counters, err := l.kernel.nft.Counters(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(ruleCounts(l.want, counters))
}

// ruleCounts has a row for each rule, and for each end that denies, in order of
// tier, policy and place.
func ruleCounts(want *desired.State, counters map[string]nft.Counter) []socket.RuleCount {
	rows := map[string]socket.RuleCount{}
	add := func(tier, id string, v desired.Verdict) {
		if _, ok := rows[id]; ok || id == "" {
			return
		}
		row := ruleCount(id)
		if row.Tier = tier; row.Kind == string(api.KindProfile) {
			row.Tier = ""
		}
		c := counters[nft.CounterName(id)]
		row.Action, row.Packets, row.Bytes = string(actionOf(v)), c.Packets, c.Bytes
		rows[id] = row
	}
	for _, p := range want.Programs.All() {
		for _, s := range slices.Concat(p.Stages, p.Trial) {
			for j := range s.Rules {
				add(s.Name, s.Rules[j].ID, s.Rules[j].Verdict)
			}
			if s.End == desired.Deny {
				add(s.Name, s.EndID, s.End)
			}
		}
	}
	list := make([]socket.RuleCount, 0, len(rows))
	for _, row := range rows {
		list = append(list, row)
	}
	slices.SortFunc(list, func(a, b socket.RuleCount) int {
		return cmp.Or(strings.Compare(a.Tier, b.Tier), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name), strings.Compare(a.Direction, b.Direction), place(a)-place(b))
	})
	return list
}

// place puts ends before rules, and that of a trial behind its like.
func place(c socket.RuleCount) int {
	switch {
	case c.Rule != nil:
		return *c.Rule
	case c.Staged:
		return -1
	}
	return -2
}

// ruleCount is a row with what the identity of a rule, or of a stage's end,
// says.
func ruleCount(id string) socket.RuleCount {
	parts := strings.Split(id, "/")
	if len(parts) != 5 {
		return socket.RuleCount{Name: id}
	}
	row := socket.RuleCount{Kind: parts[0], Namespace: parts[1], Name: parts[2], Direction: parts[3]}
	if n, err := strconv.Atoi(parts[4]); err == nil {
		row.Rule = &n
	}
	row.Staged = parts[4] == compile.StagedEnd || api.Key{Kind: api.Kind(parts[0])}.IsStaged()
	return row
}

func actionOf(v desired.Verdict) api.Action {
	switch v {
	case desired.Allow:
		return api.Allow
	case desired.Next:
		return api.Pass
	case desired.Log:
		return api.Log
	default:
		return api.Deny
	}
}
