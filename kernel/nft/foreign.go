package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ForeignDrop is a chain of another table that refuses what we may have
// allowed. An accept of ours cannot override it: every base chain of a hook is
// asked.
type ForeignDrop struct {
	Family string // ip, ip6 or inet
	Table  string
	Chain  string
	Hook   string // forward or input
	Why    string
}

// String names the chain as the nft command does, and says why it drops.
func (f ForeignDrop) String() string {
	return fmt.Sprintf("%s %s %s (%s): %s", f.Family, f.Table, f.Chain, f.Hook, f.Why)
}

// familyNames has the families whose packets are ours too.
var familyNames = map[family]string{inet: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}

// Foreign looks for base chains of other tables on the forward and input hooks
// that drop by policy, or whose last rule drops or rejects all that is left.
func (t *Tables) Foreign(ctx context.Context) ([]ForeignDrop, error) {
	var chains []chainInfo
	err := t.conn.query(unix.NFT_MSG_GETCHAIN, true, 0, nil, func(fam family, attrs []byte) error {
		i := parseChain(fam, attrs)
		ours := i.table == TableName && fam == inet
		if familyNames[fam] != "" && !ours && i.kind == "filter" && i.hook != nil &&
			(i.hook.num == unix.NF_INET_FORWARD || i.hook.num == unix.NF_INET_LOCAL_IN) {
			chains = append(chains, i)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		return nil, fmt.Errorf("look for foreign drops: %w", err)
	}
	var found []ForeignDrop
	for _, i := range chains {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		why := "policy drop"
		if i.policy != verdictDrop {
			if why, err = t.conn.lastWord(i, maxDepth); err != nil {
				return nil, fmt.Errorf("look for foreign drops: %w", err)
			}
		}
		if why != "" {
			hook := "forward"
			if i.hook.num == unix.NF_INET_LOCAL_IN {
				hook = "input"
			}
			found = append(found, ForeignDrop{familyNames[i.family], i.table, i.name, hook, why})
		}
	}
	return found, nil
}

// lastWord says how the last rule of a chain drops everything, if it does; it
// follows where that rule leads.
func (c *conn) lastWord(i chainInfo, depth int) (why string, err error) {
	var last []byte
	ask := func(w *writer) {
		w.str(unix.NFTA_RULE_TABLE, i.table)
		w.str(unix.NFTA_RULE_CHAIN, i.name)
	}
	err = c.query(unix.NFT_MSG_GETRULE, true, i.family, ask, func(_ family, attrs []byte) error {
		last = append(last[:0], attrs...)
		return nil
	})
	if err != nil && !errors.Is(err, errInterrupted) && !errors.Is(err, unix.ENOENT) {
		return "", err
	}
	why, next := unconditional(last)
	if next != "" && depth > 0 {
		i.name = next
		return c.lastWord(i, depth-1)
	}
	return why, nil
}

// unconditional looks at a rule that matches everything: why says that it ends
// in a drop or reject, next where it leads to.
func unconditional(rule []byte) (why, next string) {
	matches := false
	each(rule, func(typ uint16, v []byte) {
		if typ != unix.NFTA_RULE_EXPRESSIONS {
			return
		}
		eachExpr(v, func(name string, data []byte) {
			switch name {
			case "counter", "log", "objref":
			case "reject":
				why = "final reject"
			case "target":
				if _, v, _, ok := nextAttr(data); ok && attrString(v) == "REJECT" {
					why = "final reject"
				} else {
					matches = true
				}
			case "immediate":
				code, chain, ok := immediateVerdict(data)
				switch {
				case !ok:
					matches = true
				case code == verdictDrop:
					why = "final drop"
				case code == unix.NFT_JUMP || code == unix.NFT_GOTO:
					next = chain
				}
			default:
				matches = true
			}
		})
	})
	if matches {
		return "", ""
	}
	return why, next
}

func eachExpr(list []byte, f func(name string, data []byte)) {
	each(list, func(_ uint16, v []byte) {
		var name string
		var data []byte
		each(v, func(typ uint16, v []byte) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = attrString(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
		})
		f(name, data)
	})
}

func immediateVerdict(data []byte) (code int32, chain string, ok bool) {
	each(data, func(typ uint16, v []byte) {
		if typ != unix.NFTA_IMMEDIATE_DATA {
			return
		}
		if typ, v, _, is := nextAttr(v); is && typ == unix.NFTA_DATA_VERDICT {
			code, chain = parseVerdict(v)
			ok = true
		}
	})
	return code, chain, ok
}
