package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
)

// busy is a store in which somebody else changes a key before each of the
// first few writes.
type busy struct {
	store.Store
	path  string
	times int
	count int
}

func (b *busy) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if b.count < b.times {
		b.count++
		value := fmt.Sprintf(`{"kind":"Tier","apiVersion":%q,"metadata":{"name":"t"},"spec":{"order":1,"defaultAction":"Deny","seen":%d}}`, api.APIVersion, b.count)
		if _, err := b.Store.Commit(ctx, store.Op{Path: b.path, Value: []byte(value), If: store.AnyRevision}); err != nil {
			return 0, err
		}
	}
	return b.Store.Commit(ctx, ops...)
}

func tier(order float64) *api.Tier {
	return &api.Tier{Kind: api.KindTier, Meta: api.Meta{Name: "t"}, Spec: api.TierSpec{Order: &order}}
}

// TestApplyAmongOthers: what others write between the reading and the writing
// is not overwritten; the apply begins again with it, a few times.
func TestApplyAmongOthers(t *testing.T) {
	key := tier(0).Key()
	s := &busy{Store: memory.New(), path: key.Path(), times: 3}
	done, err := apply(t.Context(), s, tier(7))
	if err != nil || done.did != "configured" {
		t.Errorf("%+v, %v", done, err)
	}
	e, err := lookupEntry(t.Context(), s, key)
	if err != nil || e.Revision != done.revision || !strings.Contains(string(e.Value), `"seen":3`) || !strings.Contains(string(e.Value), `"order":7`) {
		t.Errorf("%+v, %v", e, err)
	}
	for what, write := range map[string]func() (outcome, error){
		"apply":   func() (outcome, error) { return apply(t.Context(), s, tier(8)) },
		"replace": func() (outcome, error) { return replace(t.Context(), s, tier(8)) },
		"delete":  func() (outcome, error) { return remove(t.Context(), s, key, "") },
	} {
		s.times, s.count = 100, 0
		_, err := write()
		const want = "update conflict: Tier(t): it was changed by others during each of 5 attempts"
		if !errors.Is(err, store.ErrConflict) || err.Error() != want {
			t.Errorf("%s: got %v\nwant %s", what, err, want)
		}
	}
}

// TestEachStops: what is wrong with one object does not stop the rest; a
// datastore that does not answer does, and says how much was left.
func TestEachStops(t *testing.T) {
	s := memory.New()
	var tried []string
	err := each([]string{"a", "b", "c", "d"}, func(name string) error {
		tried = append(tried, name)
		if name == "b" {
			s.Disconnect()
		}
		_, err := remove(t.Context(), s, api.Key{Kind: api.KindTier, Name: name}, "")
		return err
	})
	want := "resource does not exist: Tier(a) with error: there is no key /calico/resources/v3/projectcalico.org/tiers/a\n" +
		"read Tier(b): "
	if strings.Join(tried, "") != "ab" || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "\n2 further objects were not tried") {
		t.Errorf("tried %q: %v", tried, err)
	}
}
