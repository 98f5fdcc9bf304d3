package nft

import (
	"context"
	"golang.org/x/sys/unix"
)

func (t *Tables) Cleanup(ctx context.Context) error {
	b := t.conn.newBatch(0)
	for _, f := range []family{inet, arp} {
		b.table(f, unix.NFT_MSG_NEWTABLE)
		b.table(f, unix.NFT_MSG_DELTABLE)
	}
	_, err := t.conn.commit(b)
	return err
}
