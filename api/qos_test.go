package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestParseDSCP(t *testing.T) {
	for text, want := range map[string]uint8{"0": 0, "63": 63, "DF": 0, "EF": 46, "ef": 46, "CS0": 0, "CS7": 56, "AF11": 10, "AF43": 38} {
		c, err := ParseDSCP(text)
		if err != nil || c.Value != want || !c.Set {
			t.Errorf("ParseDSCP(%q) = %+v, %v, want %d", text, c, err, want)
		}
	}
	for _, text := range []string{"", "64", "-1", "AF14", "AF51", "CS8", "BE", "4.5", " 4", "0x10"} {
		if c, err := ParseDSCP(text); err == nil {
			t.Errorf("ParseDSCP(%q) = %+v, want an error", text, c)
		}
	}
}

func TestDSCPInJSON(t *testing.T) {
	for in, out := range map[string]string{`{"dscp":46}`: `{"dscp":46}`, `{"dscp":"EF"}`: `{"dscp":"EF"}`, `{"dscp":0}`: `{"dscp":0}`, `{"dscp":null}`: `{}`, `{}`: `{}`} {
		var q QoSControls
		if err := json.Unmarshal([]byte(in), &q); err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if b, err := json.Marshal(q); err != nil || string(b) != out {
			t.Errorf("%s is written as %s, %v, want %s", in, b, err, out)
		}
	}
	for _, in := range []string{`{"dscp":64}`, `{"dscp":"gold"}`, `{"dscp":[1]}`} {
		var q QoSControls
		_ = json.Unmarshal([]byte(in), &q) // what is bad is kept as it is
		if q.DSCP.Set || q.DSCP.IsZero() {
			t.Errorf("%s is read as %+v, want one that is bad", in, q.DSCP)
		}
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		q              QoSControls
		problems, idle string
		ingress        Limits
	}{
		{q: QoSControls{}},
		{
			q:       QoSControls{IngressBandwidth: 1000, IngressBurst: 1000, IngressPeakrate: 1010, IngressMinburst: 1000, IngressPacketRate: 1, IngressPacketBurst: 10000, IngressMaxConnections: 4294967295},
			ingress: Limits{1000, 1000, 1010, 1000, 1, 10000, 4294967295},
		},
		{
			q:        QoSControls{IngressBandwidth: 999, EgressPacketRate: 10001, IngressMaxConnections: -1},
			problems: "spec.qosControls.ingressBandwidth spec.qosControls.ingressMaxConnections spec.qosControls.egressPacketRate",
		},
		{
			q:        QoSControls{IngressBandwidth: 2000, IngressPeakrate: 2000, IngressPacketRate: 5},
			problems: "spec.qosControls.ingressPeakrate", ingress: Limits{Bandwidth: 2000, PacketRate: 5},
		},
		{
			q:       QoSControls{EgressBurst: 8000, EgressPacketBurst: 5, IngressBandwidth: 2000, IngressMinburst: 1500},
			idle:    "spec.qosControls.ingressMinburst spec.qosControls.egressBurst spec.qosControls.egressPacketBurst",
			ingress: Limits{Bandwidth: 2000, Minburst: 1500},
		},
	} {
		if got := fieldsOf(c.q.Problems()); got != c.problems {
			t.Errorf("%+v: problems with %q, want %q", c.q, got, c.problems)
		}
		if got := fieldsOf(c.q.Idle()); got != c.idle {
			t.Errorf("%+v: without effect %q, want %q", c.q, got, c.idle)
		}
		if got := c.q.Limits(Ingress); got != c.ingress {
			t.Errorf("%+v: %+v, want %+v", c.q, got, c.ingress)
		}
	}
}

func fieldsOf(list []Problem) string {
	var names []string
	for _, p := range list {
		names = append(names, p.Field)
	}
	return strings.Join(names, " ")
}
