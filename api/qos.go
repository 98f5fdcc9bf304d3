package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// DSCP is an optional differentiated services code point (RFC 2474). It is
// written as a number, as what it was read from or as its name.
type DSCP struct {
	Value uint8 // 0 to 63
	Set   bool
	Text  string // as it was written; of a bad one, all that there is
}

// codePoints are the names that have a meaning: default forwarding, class
// selectors (RFC 2474), assured (RFC 2597) and expedited forwarding (RFC 3246).
var codePoints = func() map[string]uint8 {
	m := map[string]uint8{"DF": 0, "EF": 46}
	for class := range uint8(8) {
		m["CS"+strconv.Itoa(int(class))] = class << 3
	}
	for class := uint8(1); class <= 4; class++ {
		for drop := uint8(1); drop <= 3; drop++ {
			m[fmt.Sprintf("AF%d%d", class, drop)] = class<<3 | drop<<1
		}
	}
	return m
}()

// ParseDSCP reads a number from 0 to 63 or a name such as EF, AF11 or CS3.
func ParseDSCP(s string) (DSCP, error) {
	if v, ok := codePoints[strings.ToUpper(s)]; ok {
		return DSCP{Value: v, Set: true, Text: s}, nil
	}
	v, err := strconv.ParseUint(s, 10, 6)
	if err != nil {
		return DSCP{}, fmt.Errorf("%q: want a number from 0 to 63, or DF, EF, AFxy or CSx", s)
	}
	return DSCP{Value: uint8(v), Set: true, Text: s}, nil
}

// IsZero reports that there is none, not even a bad one.
func (c DSCP) IsZero() bool { return !c.Set && c.Text == "" }

// MarshalJSON writes a number as such and anything else as a string.
func (c DSCP) MarshalJSON() ([]byte, error) {
	if v, err := strconv.ParseUint(c.Text, 10, 64); err == nil {
		return strconv.AppendUint(nil, v, 10), nil
	}
	return json.Marshal(c.Text)
}

// UnmarshalJSON reads one.
func (c *DSCP) UnmarshalJSON(data []byte) error { *c = DSCP{}; return readAlone(data, c) }

func (c *DSCP) read(d *decoder) bool {
	raw := d.skip()
	s := text(raw)
	if d.err != nil || raw[0] == 'n' || s == "" {
		return d.err == nil
	}
	v, err := ParseDSCP(s)
	if err != nil {
		c.Text = s
		return d.bad(raw, "want a number from 0 to 63, or DF, EF, AFxy or CSx")
	}
	*c = v
	return true
}

// Limits is the half of QoSControls that is of one direction; 0 is none.
type Limits struct {
	Bandwidth      int64 // bit/s
	Burst          int64 // bits
	Peakrate       int64 // bit/s
	Minburst       int64 // bytes
	PacketRate     int64 // packets/s
	PacketBurst    int64 // packets
	MaxConnections int64
}

// Limits returns those of a direction. Those that Problems names are left out.
func (q *QoSControls) Limits(dir Direction) Limits {
	l := q.all(dir)
	for _, f := range l.fields() {
		if !f.good() {
			*f.value = 0
		}
	}
	if l.Peakrate <= l.Bandwidth {
		l.Peakrate = 0
	}
	return l
}

// Problems reports the values that cannot be.
func (q *QoSControls) Problems() (list []Problem) {
	for _, dir := range []Direction{Ingress, Egress} {
		prefix := "spec.qosControls." + strings.ToLower(string(dir))
		l := q.all(dir)
		bad := false
		for _, f := range l.fields() {
			if !f.good() {
				bad = true
				list = append(list, Problem{Field: prefix + f.name, Value: strconv.FormatInt(*f.value, 10), Reason: fmt.Sprintf("want %d to %d", f.low, f.high)})
			}
		}
		if !bad && l.Peakrate != 0 && l.Bandwidth != 0 && l.Peakrate <= l.Bandwidth {
			list = append(list, Problem{Field: prefix + "Peakrate", Value: strconv.FormatInt(l.Peakrate, 10), Reason: "want more than " + strings.ToLower(string(dir)) + "Bandwidth"})
		}
	}
	return list
}

// Idle reports the values that have no effect without another.
func (q *QoSControls) Idle() (list []Problem) {
	for _, dir := range []Direction{Ingress, Egress} {
		word := strings.ToLower(string(dir))
		l := q.all(dir)
		note := func(value int64, name, other string) {
			if value != 0 {
				list = append(list, Problem{Field: "spec.qosControls." + word + name, Value: strconv.FormatInt(value, 10), Reason: "has no effect without " + word + other})
			}
		}
		if l.Bandwidth == 0 {
			note(l.Burst, "Burst", "Bandwidth")
			note(l.Peakrate, "Peakrate", "Bandwidth")
			note(l.Minburst, "Minburst", "Bandwidth")
		} else if l.Peakrate == 0 {
			note(l.Minburst, "Minburst", "Peakrate")
		}
		if l.PacketRate == 0 {
			note(l.PacketBurst, "PacketBurst", "PacketRate")
		}
	}
	return list
}

func (q *QoSControls) all(dir Direction) Limits {
	if dir == Ingress {
		return Limits{q.IngressBandwidth, q.IngressBurst, q.IngressPeakrate, q.IngressMinburst, q.IngressPacketRate, q.IngressPacketBurst, q.IngressMaxConnections}
	}
	return Limits{q.EgressBandwidth, q.EgressBurst, q.EgressPeakrate, q.EgressMinburst, q.EgressPacketRate, q.EgressPacketBurst, q.EgressMaxConnections}
}

// limitField is a field of Limits and what it may hold besides 0.
type limitField struct {
	name      string
	value     *int64
	low, high int64
}

func (f limitField) good() bool { return *f.value == 0 || *f.value >= f.low && *f.value <= f.high }

func (l *Limits) fields() []limitField {
	return []limitField{
		{"Bandwidth", &l.Bandwidth, 1000, 1e15},
		{"Burst", &l.Burst, 1000, 34359738360},
		{"Peakrate", &l.Peakrate, 1010, 1.01e15},
		{"Minburst", &l.Minburst, 1000, 1e8},
		{"PacketRate", &l.PacketRate, 1, 10000},
		{"PacketBurst", &l.PacketBurst, 1, 10000},
		{"MaxConnections", &l.MaxConnections, 1, 4294967295},
	}
}
