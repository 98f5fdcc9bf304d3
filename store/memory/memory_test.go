package memory_test

import (
	"testing"

	"tortie/store"
	"tortie/store/memory"
	"tortie/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Harness {
		m := memory.New()
		other := m.Client()
		return storetest.Harness{
			Store: m, Other: other,
			Disconnect: m.Disconnect, Reconnect: m.Reconnect,
			Compact: m.Compact,
			Expire:  func(l store.Lease) { m.Expire(l) },
		}
	})
}
