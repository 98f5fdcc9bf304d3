package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Promise B11: ssh to the host and etcd from it are failsafe by default; the
// lists can be replaced, and be none.
func TestFailsafes(t *testing.T) {
	net4, net6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	c, problems := load(t, "").With(nil, nil)
	in, out := c.Failsafes()
	if len(problems) > 0 || !slices.Contains(in, Failsafe{Protocol: 6, Port: 22}) || !slices.Contains(in, Failsafe{Protocol: 17, Port: 68}) ||
		!slices.Contains(out, Failsafe{Protocol: 6, Port: 2379}) || !slices.Contains(out, Failsafe{Protocol: 17, Port: 53}) || slices.Contains(out, Failsafe{Protocol: 6, Port: 22}) {
		t.Errorf("by default %v, %v, %v", in, out, problems)
	}
	for spec, want := range map[string][]Failsafe{
		`[]`:     {},
		`"none"`: {},
		`"23"`:   {{Protocol: 6, Port: 23}},
		`"udp:53,tcp:10.0.0.0/8:22,tcp:[fd00::]/8:22,tcp:fd00::/8:23,132:7"`: {
			{Protocol: 17, Port: 53}, {Protocol: 6, Port: 22, Net: net4}, {Protocol: 6, Port: 22, Net: net6}, {Protocol: 6, Port: 23, Net: net6}, {Protocol: 132, Port: 7},
		},
		`[{"protocol":"TCP","port":22,"net":"10.1.2.3/8"},{"port":23},{"protocol":"UDP","port":"68","net":"fd00::/8"}]`: {
			{Protocol: 6, Port: 22, Net: net4}, {Protocol: 6, Port: 23}, {Protocol: 17, Port: 68, Net: net6},
		},
	} {
		c, problems := load(t, "").With(felix(t, "default", `{"failsafeInboundHostPorts":`+spec+`}`), nil)
		if in, _ := c.Failsafes(); len(problems) > 0 || !slices.Equal(in, want) {
			t.Errorf("%s: %v, %v, want %v", spec, in, problems, want)
		}
	}
	// What cannot be read leaves the default, and is reported.
	for _, bad := range []string{`""`, `"tcp"`, `"tcp:0"`, `"icmp:5"`, `"tcp:10.0.0.0/33:22"`, `"tcp:::ffff:10.0.0.1:22"`, `[{"port":22,"colour":"red"}]`, `[{"port":true}]`, `[22]`, `"22,"`} {
		c, problems := load(t, "").With(felix(t, "default", `{"failsafeInboundHostPorts":`+bad+`}`), nil)
		if got, _ := c.Failsafes(); len(problems) != 1 || !strings.Contains(problems[0].String(), "failsafeInboundHostPorts") || !slices.Equal(got, in) {
			t.Errorf("%s: %v, %v", bad, got, problems)
		}
	}
}

// FuzzFailsafes: what is accepted has a port and a protocol with ports.
func FuzzFailsafes(f *testing.F) {
	f.Add("tcp:22,udp:10.0.0.0/8:53")
	f.Add("tcp:[fd00::]/8:1,none")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseFailsafes(text)
		if err != nil && list != nil {
			t.Errorf("%v with %v", list, err)
		}
		for _, p := range list {
			if p.Port == 0 || !slices.Contains([]uint8{6, 17, 132, 136}, p.Protocol) || p.Net.IsValid() && p.Net != p.Net.Masked() {
				t.Errorf("%q gives %+v", text, p)
			}
		}
	})
}
