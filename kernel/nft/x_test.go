package nft

import (
	"context"
	"testing"
	"time"
	"tortie/desired"
	"tortie/internal/nstest"
)

func TestX(t *testing.T) {
	nstest.New(t)
	st := benchState(1000, 0)
	for _, strip := range []bool{false, true} {
		if strip {
			for p := range 20 {
				for _, dir := range []string{"in", "out"} {
					pr := benchRules(p, dir, 443)
					for i := range pr.Stages[0].Rules {
						r := &pr.Stages[0].Rules[i]
						if len(r.Destination.Ports) > 1 {
							r.Destination.Ports = r.Destination.Ports[:1]
						}
						if len(r.Source.Nets) > 1 {
							r.Source.Nets = r.Source.Nets[:1]
						}
						if len(r.Destination.Nets) > 1 {
							r.Destination.Nets = r.Destination.Nets[:1]
						}
					}
					st.Programs.Set(benchProgram(dir, p), pr)
				}
			}
		}
		tb := open(t)
		t0 := time.Now()
		tb.read(st, &Result{})
		t1 := time.Now()
		ch := tb.diff(st).ch
		t2 := time.Now()
		b := tb.conn.newBatch(0)
		ch.encode(b, nil)
		t3 := time.Now()
		_, err := tb.conn.commit(b)
		t.Log(strip, ch.rules(), b.sets, len(b.ops), len(b.w.b), "read", t1.Sub(t0), "diff", t2.Sub(t1), "enc", t3.Sub(t2), "commit", time.Since(t3), err)
		tb.Cleanup(context.Background())
	}
	_ = desired.New
}
