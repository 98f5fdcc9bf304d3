package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tortie/internal/nstest"
	"tortie/proof"
	"tortie/store"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// TestVerify: of the table that an agent made it is proven that it does what
// policy says; of one that somebody changed, a packet is named that has the
// wrong fate.
func TestVerify(t *testing.T) {
	w := proof.New(t)
	const policy = `{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}],"egress":[{"action":"Allow"}]}}`
	changes := []proof.Change{{Put: json.RawMessage(policy)}}
	for n := range 2 {
		changes = append(changes, proof.Change{Put: json.RawMessage(fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"h1-openstack-%d-eth0","namespace":"n"},`+
			`"spec":{"orchestrator":"openstack","node":"h1","workload":"%d","endpoint":"eth0","interfaceName":"cali%d","mac":"02:00:00:00:01:0%d","ipNetworks":["10.65.1.%d/32","fd00:65:1::%x/128"]}}`, n, n, n, n, 4*n, 4*n))})
	}
	if err := w.Change(changes...); err != nil {
		t.Fatal(err)
	}
	run := func(want int, says string, args ...string) {
		t.Helper()
		w.Do("h1", func() {
			o := Options{
				Open: func(context.Context) (store.Store, func(), error) { return w.Store(), func() {}, nil },
				Host: func() (string, error) { return "h1", nil },
			}
			code, stdout, stderr := commandOf(o, append([]string{"verify"}, args...)...)
			if out := stdout + stderr; code != want || !strings.Contains(out, says) {
				t.Errorf("verify %q: exit code %d, want %d and %q:\n%s", args, code, want, says, out)
			}
		})
	}
	nft := func(command string) {
		t.Helper()
		w.Do("h1", func() {
			if out, err := exec.Command("nft", command).CombinedOutput(); err != nil {
				t.Errorf("nft %s: %v\n%s", command, err, out)
			}
		})
	}
	files := filepath.Join(t.TempDir(), "files.yaml")
	write := func(changes ...proof.Change) {
		text := ""
		for _, c := range changes {
			text += "---\n" + string(c.Put) + "\n"
		}
		if err := os.WriteFile(files, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	run(0, "host h1: 2 endpoints, 7 ways, 0 findings\n")
	run(0, "host h1: 2 endpoints, 5 ways, 0 findings\n", "--peers", "0")
	write(changes...)
	run(0, "7 ways, 0 findings", "-f", files)
	write(changes[1:]...)
	run(2, "passes, and policy denies it\n", "-f", files)

	write(changes...)
	w.Stop("h1") // lest it repair what is changed
	nft("insert rule inet tortie forward tcp dport 22 accept")
	run(2, "from outside to n/h1-openstack-0-eth0: tcp ")
	run(2, ":22 passes, and policy denies it\n", "-f", files)
	nft("insert rule inet tortie forward tcp dport 80 drop")
	run(2, ":80 is dropped, and policy allows it\n", "-f", files)
	nft("insert rule inet tortie forward meta cpu 0 drop")
	run(1, "Error: it could not be decided for all packets", "-f", files)
	nft("delete table inet tortie")
	run(1, "Error: there is no table inet tortie: no agent has run on this host")
}
