package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Counters reads our named counters. Those of the arp table begin with "arp/".
func (t *Tables) Counters(ctx context.Context) (map[string]Counter, error) {
	cs := map[string]Counter{}
	for _, f := range []family{inet, arp} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := t.conn.query(unix.NFT_MSG_GETOBJ, true, f, ofTable(unix.NFTA_OBJ_TABLE), func(fam family, attrs []byte) error {
			o := parseObject(attrs)
			if fam == arp {
				o.name = "arp/" + o.name
			}
			if o.table == TableName && o.kind == unix.NFT_OBJECT_COUNTER {
				cs[o.name] = o.Counter
			}
			return nil
		})
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, fmt.Errorf("read nftables counters: %w", err)
		}
	}
	return cs, nil
}
