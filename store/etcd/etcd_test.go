package etcd

import (
	"testing"

	"go.uber.org/goleak"

	"tortie/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) { storetest.Run(t, harness) }
