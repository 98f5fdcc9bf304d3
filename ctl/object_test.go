package ctl

import (
	"strings"
	"testing"

	"tortie/api"
	"tortie/store"
	"tortie/store/memory"
)

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
		_, err := store.Delete(t.Context(), s, api.Key{Kind: api.KindTier, Name: name}, "")
		return err
	})
	want := "resource does not exist: Tier(a) with error: there is no key /calico/resources/v3/projectcalico.org/tiers/a\n" +
		"read Tier(b): "
	if strings.Join(tried, "") != "ab" || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "\n2 further objects were not tried") {
		t.Errorf("tried %q: %v", tried, err)
	}
}
