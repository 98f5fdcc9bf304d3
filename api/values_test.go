package api

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// reread reads text as a T and returns what it is written as.
func reread[T any](t *testing.T, text string) (T, string) {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v, string(out)
}

func TestNets(t *testing.T) {
	for text, want := range map[string]string{
		`["10.65.0.2/32","fd00::2/128"]`:        `["10.65.0.2/32","fd00::2/128"]`,
		`["10.65.0.2","fd00::2"]`:               `["10.65.0.2/32","fd00::2/128"]`,
		`["198.51.100.77/24","2001:DB8::1/32"]`: `["198.51.100.0/24","2001:db8::/32"]`,
		`["0.0.0.0/0","::/0"]`:                  `["0.0.0.0/0","::/0"]`,
		`["::ffff:10.0.0.1","::ffff:0:0/100"]`:  `["10.0.0.1/32","0.0.0.0/4"]`,
		`["10.0.0.0/24/32","1.2.3.4"]`:          `["1.2.3.4/32","10.0.0.0/24/32"]`,
		`["fe80::1%eth0",7,null,["1.2.3.4"]]`:   `["fe80::1%eth0","7","null","[\"1.2.3.4\"]"]`,
		`"10.0.0.1"`:                            `["10.0.0.1"]`,
		`["::ffff:0:0/90","1.2.3.4/33","/8"]`:   `["::ffff:0:0/90","1.2.3.4/33","/8"]`,
		`[]`:                                    `[]`,
		`null`:                                  `[]`,
	} {
		if _, got := reread[Nets](t, text); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	n := ParseNets("10.0.0.1", "fd00::/64", "rubbish")
	if len(n.Prefixes) != 2 || !slices.Equal(n.Bad, []string{"rubbish"}) || n.IsZero() {
		t.Errorf("got %+v", n)
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{`"10.0.0.1"`: `"10.0.0.1"`, `"FD00::1"`: `"fd00::1"`, `""`: `""`, `null`: `""`, `"10.0.0.1/32"`: `"10.0.0.1/32"`, `7`: `"7"`} {
		a, got := reread[IP](t, text)
		if got != want || (a.Bad == "") != (a.IsValid() || a.IsZero()) {
			t.Errorf("%s: got %s, %+v", text, got, a)
		}
	}
	for text, want := range map[string]string{
		`"fa:16:3e:00:00:01"`: `"fa:16:3e:00:00:01"`, `"FA-16-3E-00-00-01"`: `"fa:16:3e:00:00:01"`, `"fa16.3e00.0001"`: `"fa:16:3e:00:00:01"`, `""`: `""`, `null`: `""`,
		`"fa163e000001"`: `"fa163e000001"`, `"fa:16:3e:00:00"`: `"fa:16:3e:00:00"`, `"fa:16:3e:00:00:0g"`: `"fa:16:3e:00:00:0g"`, `"f:a16:3e:00:00:01"`: `"f:a16:3e:00:00:01"`,
		`"+a:16:3e:00:00:01"`: `"+a:16:3e:00:00:01"`,
	} {
		m, got := reread[MAC](t, text)
		if got != want || m.Set != (len(text) > 14 && m.Bad == "") {
			t.Errorf("%s: got %s, %+v", text, got, m)
		}
	}
}

func TestProtocols(t *testing.T) {
	for _, c := range []struct {
		text, want string
		number     uint8
	}{
		{`"TCP"`, `"TCP"`, 6},
		{`"tcp"`, `"TCP"`, 6},
		{`6`, `6`, 6},
		{`"6"`, `6`, 6},
		{`"ICMPv6"`, `"ICMPv6"`, 58},
		{`"UDPLite"`, `"UDPLite"`, 136},
		{`"SCTP"`, `"SCTP"`, 132},
		{`255`, `255`, 255},
		{`null`, `0`, 0},
		{`0`, `"0"`, 0},
		{`256`, `"256"`, 0},
		{`"GRE"`, `"GRE"`, 0},
		{`""`, `0`, 0},
		{`6.0`, `"6.0"`, 0},
		{`{"a":1}`, `"{\"a\":1}"`, 0},
	} {
		p, got := reread[Protocol](t, c.text)
		if got != c.want || p.Number != c.number {
			t.Errorf("%s: got %s, %+v", c.text, got, p)
		}
	}
}

func TestPorts(t *testing.T) {
	for _, c := range []struct {
		text, want string
		port       Port
	}{
		{`22`, `22`, Port{Min: 22, Max: 22}},
		{`"22"`, `22`, Port{Min: 22, Max: 22}},
		{`"8000:8080"`, `"8000:8080"`, Port{Min: 8000, Max: 8080}},
		{`"80:80"`, `80`, Port{Min: 80, Max: 80}},
		{`"http"`, `"http"`, Port{Name: "http"}},
		{`"1a"`, `"1a"`, Port{Name: "1a"}},
		{`"129:None"`, `"129:None"`, Port{Bad: "129:None"}},
		{`0`, `"0"`, Port{Bad: "0"}},
		{`65536`, `"65536"`, Port{Bad: "65536"}},
		{`"9:8"`, `"9:8"`, Port{Bad: "9:8"}},
		{`1.5`, `"1.5"`, Port{Bad: "1.5"}},
		{`null`, `"null"`, Port{Bad: "null"}},
		{`-1`, `"-1"`, Port{Bad: "-1"}},
		{`["x"]`, `"[\"x\"]"`, Port{Bad: `["x"]`}},
	} {
		p, got := reread[Port](t, c.text)
		if got != c.want || p != c.port {
			t.Errorf("%s: got %s, %+v", c.text, got, p)
		}
	}
}

func TestASNumbers(t *testing.T) {
	for text, want := range map[string]ASNumber{
		`65000`: 65000, `"65000"`: 65000, `"1.10"`: 1<<16 | 10, `4294967295`: 4294967295, `"65535.65535"`: 4294967295, `null`: 0,
		`"65536.1"`: 0, `1.10`: 0, `4294967296`: 0, `"x"`: 0, `-1`: 0,
	} {
		if got, _ := reread[ASNumber](t, text); got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
}

func TestSelectors(t *testing.T) {
	s, out := reread[Selector](t, `"a == 'b' \u0026\u0026 has(c)"`)
	if s.Text != "a == 'b' && has(c)" || s.Expr == nil || !s.Expr.Match(map[string]string{"a": "b", "c": ""}) {
		t.Errorf("got %+v", s)
	}
	if again, _ := reread[Selector](t, out); again.Text != s.Text {
		t.Errorf("got %s", out)
	}
	for _, text := range []string{`"a =="`, `5`, `true`, `{"a":"b"}`, `["all()"]`} {
		s, out := reread[Selector](t, text)
		if s.Err == nil || s.Expr != nil || s.IsZero() {
			t.Errorf("%s: got %+v", text, s)
		}
		if again, _ := reread[Selector](t, out); again.Err == nil {
			t.Errorf("%s: good after it was written as %s", text, out)
		}
	}
	if s, _ := reread[Selector](t, `null`); !s.IsZero() {
		t.Errorf("got %+v", s)
	}
}

func TestPeerIPs(t *testing.T) {
	for text, want := range map[string]string{"192.0.2.1": "192.0.2.1:0", "192.0.2.1:1790": "192.0.2.1:1790", "fd00::1": "[fd00::1]:0", "[fd00::1]:179": "[fd00::1]:179"} {
		if got, err := ParsePeerIP(text); err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "192.0.2.1/24", "192.0.2.1:0", "[fd00::1]", "fe80::1%eth0", "tor1"} {
		if got, err := ParsePeerIP(text); err == nil {
			t.Errorf("%s: accepted as %v", text, got)
		}
	}
}

// What this scanner takes for JSON is what encoding/json does.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+3,true,false,null,"\u00e9\n"],"b":{}}`, `[1,]`, `{"a":1,}`, `01`, `"\x"`, `-`, `1e`, ` {} `, `{"a" : "b" , "c":[ ]}`, "\"\xff\"", `{} {}`, `nul`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := scanner{data: data}
		s.skip()
		if got, want := s.end(), json.Valid(data); got != want && !errors.Is(s.err, errDepth) {
			t.Errorf("%q: taken as valid: %v; want %v", data, got, want)
		}
	})
}
