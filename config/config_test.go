package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tortie/api"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

// felix makes a FelixConfiguration with the given fields.
func felix(t *testing.T, name, spec string) *api.FelixConfiguration {
	t.Helper()
	o, _, err := api.DecodeKey(api.Key{Kind: api.KindFelixConfiguration, Name: name}, []byte(`{"spec":`+spec+`}`))
	if err != nil {
		t.Fatal(err)
	}
	return o.(*api.FelixConfiguration)
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tortie.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func load(t *testing.T, file string, environ ...string) *Local {
	t.Helper()
	l, err := Load(file, environ)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func setting(c Config, name string) Setting {
	list := c.Explain()
	i := slices.IndexFunc(list, func(s Setting) bool { return s.Name == name })
	return list[i]
}

func TestPrecedence(t *testing.T) {
	file := writeFile(t, "interfacePrefix: file\n")
	node := felix(t, "node.h", `{"interfacePrefix":"node"}`)
	global := felix(t, "default", `{"interfacePrefix":"global"}`)
	annotated := felix(t, "default", `{"interfacePrefix":"global"}`)
	annotated.Meta.Annotations = map[string]string{"config.projectcalico.org/InterfacePrefix": "raw", "other": "x"}
	for _, c := range []struct {
		local        *Local
		node, global *api.FelixConfiguration
		want, source string
	}{
		{load(t, ""), nil, nil, "cali,tap", builtIn},
		{load(t, ""), nil, global, "global", "FelixConfiguration(default) spec.interfacePrefix"},
		{load(t, ""), nil, annotated, "raw", "FelixConfiguration(default) annotation config.projectcalico.org/InterfacePrefix"},
		{load(t, ""), node, annotated, "node", "FelixConfiguration(node.h) spec.interfacePrefix"},
		{load(t, file), node, global, "file", "file " + file + " interfacePrefix"},
		{load(t, file, "FELIX_INTERFACEPREFIX=env,env2"), node, global, "env,env2", "environment FELIX_INTERFACEPREFIX"},
		{load(t, file, "felix_InterfacePrefix=env"), node, global, "env", "environment felix_InterfacePrefix"},
		{load(t, file, "FELIX_INTERFACEPREFIX="), node, global, "file", "file " + file + " interfacePrefix"},
	} {
		cfg, problems := c.local.With(c.global, c.node)
		got := setting(cfg, "InterfacePrefix")
		if got.Value != c.want || got.Source != c.source || len(problems) > 0 || strings.Join(cfg.InterfacePrefixes, ",") != c.want {
			t.Errorf("got %+v, %v; want %s from %s", got, problems, c.want, c.source)
		}
	}
	again, _ := load(t, "").With(felix(t, "default", `{"interfacePrefix":"cali,tap"}`), nil)
	plain, _ := load(t, "").With(nil, nil)
	if !again.Equal(plain) || reflect.DeepEqual(again, plain) {
		t.Error("a source makes a difference, or is not remembered")
	}
}

// Promise C16: upstream's names for the connection to etcd are accepted.
func TestEtcd(t *testing.T) {
	for _, c := range []struct {
		file    string
		environ []string
		want    Config
	}{
		{"", nil, Config{EtcdEndpoints: []string{"http://127.0.0.1:2379"}}},
		{
			"",
			[]string{"ETCD_ENDPOINTS=https://a:2379, https://b:2379", "ETCD_CA_CERT_FILE=/ca", "ETCD_CERT_FILE=/cert", "ETCD_KEY_FILE=/key", "ETCD_USERNAME=u", "ETCD_PASSWORD=p "},
			Config{EtcdEndpoints: []string{"https://a:2379", "https://b:2379"}, EtcdCAFile: "/ca", EtcdCertFile: "/cert", EtcdKeyFile: "/key", EtcdUsername: "u", EtcdPassword: "p "},
		},
		{
			"",
			[]string{"FELIX_ETCDADDR=a:4001", "FELIX_ETCDSCHEME=HTTPS", "FELIX_ETCDCAFILE=/ca", "FELIX_ETCDCERTFILE=/cert", "FELIX_ETCDKEYFILE=/key"},
			Config{EtcdEndpoints: []string{"https://a:4001"}, EtcdAddr: "a:4001", EtcdScheme: "https", EtcdCAFile: "/ca", EtcdCertFile: "/cert", EtcdKeyFile: "/key"},
		},
		{"", []string{"ETCD_ENDPOINTS=http://a:1", "FELIX_ETCDENDPOINTS=http://b:1", "FELIX_ETCDADDR=c:1"}, Config{EtcdEndpoints: []string{"http://b:1"}, EtcdAddr: "c:1"}},
		{
			"EtcdEndpoints: [http://a:1, http://b:1]\netcdCaFile: /ca\nEtcdPassword: p\nEtcdUsername: u\n",
			[]string{"ETCD_PASSWORD=q"},
			Config{EtcdEndpoints: []string{"http://a:1", "http://b:1"}, EtcdCAFile: "/ca", EtcdUsername: "u", EtcdPassword: "q"},
		},
	} {
		file := ""
		if c.file != "" {
			file = writeFile(t, c.file)
		}
		got, problems := load(t, file, c.environ...).With(nil, nil)
		if c.want.EtcdScheme == "" {
			c.want.EtcdScheme = "http"
		}
		want := got
		want.EtcdEndpoints, want.EtcdAddr, want.EtcdScheme = c.want.EtcdEndpoints, c.want.EtcdAddr, c.want.EtcdScheme
		want.EtcdCAFile, want.EtcdCertFile, want.EtcdKeyFile = c.want.EtcdCAFile, c.want.EtcdCertFile, c.want.EtcdKeyFile
		want.EtcdUsername, want.EtcdPassword = c.want.EtcdUsername, c.want.EtcdPassword
		if !got.Equal(want) || len(problems) > 0 {
			t.Errorf("%v: got %v, %v", c.environ, got.Explain(), problems)
		}
	}
}

func TestValues(t *testing.T) {
	l := load(t, "", "FELIX_FELIXHOSTNAME=Compute-1", "FELIX_OPENSTACKREGION=east", "FELIX_ENDPOINTREPORTINGDELAYSECS=0.5", "FELIX_REPORTINGINTERVALSECS=10",
		"FELIX_METADATAADDR=None", "FELIX_IPTABLESREFRESHINTERVAL=60", "FELIX_RUNDIR=/run/h1", "FELIX_LOGSEVERITYSCREEN=warning", "FELIX_DEVICEROUTEPROTOCOL=82")
	c, problems := l.With(felix(t, "default", `{"endpointReportingEnabled":true,"reportingTTL":"1m0s","defaultEndpointToHostAction":"ACCEPT","ipv6Support":false,"metadataPort":80,
		"routeRefreshInterval":"0s","interfaceRefreshInterval":"5s","prometheusMetricsEnabled":true,"prometheusMetricsHost":"::1","prometheusMetricsPort":9999,"healthEnabled":true}`), nil)
	if len(problems) > 0 {
		t.Error(problems)
	}
	got := fmt.Sprintln(c.Hostname, c.OpenstackRegion, c.EndpointReportingDelay, c.ReportingInterval, c.MetadataAddr == "", c.NftablesRefreshInterval, c.RunDir, c.LogLevel(), c.EndpointReportingEnabled,
		c.ReportingTTL, c.DefaultEndpointToHostAction, c.IPv6Support, c.MetadataPort, c.RouteRefreshInterval, c.InterfaceRefreshInterval, c.RefreshInterval, c.DeviceRouteProtocol,
		c.PrometheusMetricsEnabled, c.PrometheusMetricsHost, c.PrometheusMetricsPort, c.HealthEnabled, c.HealthHost, c.HealthPort)
	if want := "Compute-1 east 500ms 10s true 1m0s /run/h1 WARN true 1m0s Accept false 80 24h0m0s 5s 5s 82 true ::1 9999 true localhost 9099\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	for text, level := range map[string]slog.Level{"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "error": slog.LevelError, "fatal": slog.LevelError} {
		if c, _ := load(t, "", "FELIX_LOGSEVERITYSCREEN="+text).With(nil, nil); c.LogLevel() != level {
			t.Errorf("%s: %v", text, c.LogLevel())
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := load(t, "").With(nil, nil); c.Hostname != strings.ToLower(host) || c.RefreshInterval != 90*time.Second || c.DeviceRouteProtocol != 80 {
		t.Errorf("built in: %s, %v, %d", c.Hostname, c.RefreshInterval, c.DeviceRouteProtocol)
	}
}

func TestBadValues(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"InterfacePrefix", ","},
		{"InterfacePrefix", "a b"},
		{"InterfacePrefix", "e"},
		{"InterfacePrefix", "abcdefghijklmno"},
		{"OpenstackRegion", "East"},
		{"EndpointReportingEnabled", "maybe"},
		{"EndpointReportingDelaySecs", "-1s"},
		{"ReportingIntervalSecs", "0"},
		{"ReportingIntervalSecs", "soon"},
		{"DefaultEndpointToHostAction", "Reject"},
		{"MetadataAddr", "a b"},
		{"MetadataPort", "0"},
		{"MetadataPort", "65536"},
		{"EndpointToHostPacketRate", "-1"},
		{"EndpointToHostPacketRate", "1000001"},
		{"EndpointToHostPacketRate", "many"},
		{"RouteRefreshInterval", "1ms"},
		{"DeviceRouteProtocol", "3"},
		{"DeviceRouteProtocol", "81"},
		{"DeviceRouteProtocol", "256"},
		{"LogSeverityScreen", "loud"},
		{"HealthPort", "x"},
	} {
		good, _ := load(t, "").With(nil, nil)
		cfg, problems := load(t, "", "FELIX_"+c.name+"="+c.text).With(nil, nil)
		if len(problems) != 1 || problems[0].Field != "environment FELIX_"+c.name || problems[0].Value != c.text || !strings.Contains(problems[0].Reason, find(c.name).name) {
			t.Errorf("%s=%s: %v", c.name, c.text, problems)
		}
		if !reflect.DeepEqual(cfg, good) {
			t.Errorf("%s=%s: %v", c.name, c.text, cfg)
		}
	}
	// The next source counts.
	cfg, problems := load(t, "", "FELIX_METADATAPORT=x").With(felix(t, "default", `{"metadataPort":70}`), felix(t, "node.h", `{"metadataPort":[7]}`))
	if cfg.MetadataPort != 70 || len(problems) != 2 {
		t.Errorf("%d, %v", cfg.MetadataPort, problems)
	}
	cfg, problems = load(t, "", "FELIX_REPORTINGINTERVAL=100s").With(nil, nil)
	if cfg.ReportingTTL != 300*time.Second || len(problems) != 1 {
		t.Errorf("%v, %v", cfg.ReportingTTL, problems)
	}
	// Without these, a process cannot do its work.
	for _, environ := range []string{"FELIX_FELIXHOSTNAME=a/b", "ETCD_ENDPOINTS=a:2379", "ETCD_ENDPOINTS=http://u:pw@a:2379", "FELIX_ETCDSCHEME=ftp", "FELIX_ETCDADDR=a"} {
		if l, err := Load("", []string{environ}); err == nil || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %v, %v", environ, l, err)
		}
	}
	for _, text := range []string{"a: b: c", "- a", "MetadataPort: {a: b}", "MetadataPort: 1\nMetadataPort: 2\n"} {
		if _, err := Load(writeFile(t, text), nil); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that is not there was accepted")
	}
}

func TestNotActedUpon(t *testing.T) {
	l := load(t, writeFile(t, "Colour: red\nbpfEnabled: false\n"), "FELIX_BPFENABLED=true", "FELIX_CHAININSERTMODE=Insert", "FELIX_TYPO=1", "FELIX_OTHERPASSWORD=x", "HOME=/", "FELIX=1")
	r := felix(t, "default", `{"bpfLogLevel":"","nftablesMode":"Auto","wireguardEnabled":true,"newField":null,"felixHostname":"h"}`)
	r.Meta.Annotations = map[string]string{"config.projectcalico.org/Odd": "1"}
	_, problems := l.With(r, nil)
	got := map[string]bool{}
	for _, p := range problems {
		got[p.Field] = p.Unsupported
		if p.Value == "x" {
			t.Errorf("printed: %v", p)
		}
	}
	want := []string{"FELIX_BPFENABLED", "FELIX_TYPO", "FELIX_OTHERPASSWORD", "Colour", "spec.wireguardEnabled", "config.projectcalico.org/Odd", "spec.felixHostname"}
	for _, name := range want {
		found := false
		for field := range got {
			found = found || strings.HasSuffix(field, name)
		}
		if !found {
			t.Errorf("%s is not reported", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
}

func TestLocalOnly(t *testing.T) {
	before, _ := load(t, "").With(nil, nil)
	var fields []string
	for _, p := range params {
		if p.local {
			fields = append(fields, fmt.Sprintf("%q:%q", p.name, "https://other"))
		}
	}
	after, problems := load(t, "").With(felix(t, "default", "{"+strings.Join(fields, ",")+"}"), nil)
	if !reflect.DeepEqual(before, after) || len(problems) != len(fields) || len(fields) < 9 {
		t.Errorf("%v, %v", after, problems)
	}
}

// Promise C15: a secret that others can read is reported.
func TestModesOfFiles(t *testing.T) {
	file := writeFile(t, "EtcdPassword: x\nEtcdUsername: u\n")
	key := writeFile(t, "key")
	l := load(t, file, "ETCD_KEY_FILE="+key)
	if _, problems := l.With(nil, nil); len(problems) > 0 {
		t.Error(problems)
	}
	for _, name := range []string{file, key} {
		if err := os.Chmod(name, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	_, problems := load(t, file, "ETCD_KEY_FILE="+key).With(nil, nil)
	if len(problems) != 2 || problems[0].Field != file || problems[1].Field != key {
		t.Error(problems)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	const secret = "s3cret"
	c, _ := load(t, "", "ETCD_PASSWORD="+secret).With(felix(t, "default", `{"etcdPassword":"`+secret+`"}`), nil)
	if string(c.EtcdPassword) != secret {
		t.Fatal("no password")
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "config", c, "password", c.EtcdPassword)
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	_, problems := load(t, "", "ETCD_PASSWORD="+secret).With(felix(t, "default", `{"etcdPassword":"`+secret+`"}`), nil)
	for _, text := range []string{log.String(), string(data), fmt.Sprint(c), fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%#v", c.EtcdPassword), fmt.Sprint(c.Explain(), problems)} {
		if strings.Contains(text, secret) || !strings.Contains(text, "(set)") {
			t.Errorf("printed: %s", text)
		}
	}
}

func TestDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Configuration

This page is generated from the struct ` + "`config.Config`" + ` (` + "`go test ./config -update`" + `).

A value comes from the first of these that has a good one:

1. the environment: ` + "`FELIX_<PARAMETER>`" + ` in any case, then the variables named below; an empty variable is none;
2. the file ` + "`" + DefaultFile + "`" + `: YAML, a parameter and its value a line;
3. the resource ` + "`FelixConfiguration node.<host>`" + `: its annotations ` + "`config.projectcalico.org/<Parameter>`" + `, then its spec;
4. the resource ` + "`FelixConfiguration default`" + `, likewise;
5. what is built in.

The case of a parameter's name does not matter. A duration is written as ` + "`90s`" + ` or as a number of seconds. A bad value is
reported, and the next source counts; where a local parameter is bad, the process does not start. A parameter that nothing acts on
is reported, unless its value is the one that asks for nothing. ` + "`tortie show config`" + ` prints each value with its source.

Local parameters are not taken from the datastore.

| parameter | default | what it does |
|---|---|---|
`)
	for _, p := range params {
		names := "`" + p.name + "`"
		for _, alias := range p.names[1:] {
			names += ", `" + alias + "`"
		}
		if p.env != "" {
			names += ", `" + p.env + "`"
		}
		if p.local {
			names += " (local)"
		}
		value := ""
		if p.builtIn != "" {
			value = "`" + p.builtIn + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", names, value, p.describe)
		if p.describe == "" {
			t.Errorf("%s is not described", p.name)
		}
	}
	b.WriteString(`
## Routes

The routes to a host's workloads have protocol ` + "`DeviceRouteProtocol`" + ` and metric 1024; those that are learned from other hosts have protocol 81
and metric 2048. A route with another protocol is never touched. Upstream's ` + "`ipv4NormalRoutePriority`" + ` and its kin are not acted upon.
`)
	const file = "../docs/configuration.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != b.String() {
		t.Errorf("%s is not what the struct says; run go test ./config -update (%v)", file, err)
	}
}

// FuzzSources: no environment, file or resource makes Load or With panic; a
// value that counts is one that its parameter accepts, and what is wrong has a
// name and a reason.
func FuzzSources(f *testing.F) {
	f.Add("FELIX_REPORTINGTTLSECS=10", "interfacePrefix: [cali, tap]\nreportingInterval: 90s\n", `{"healthPort":9099,"bpfEnabled":true}`)
	f.Add("ETCD_ENDPOINTS=https://[::1]:2379,http://a", "etcdPassword: x\nhealthPort: 1e3", `{"reportingInterval":"-1s","interfacePrefix":["a"],"nftablesRefreshInterval":0}`)
	f.Add("FELIX_OPENSTACKREGION=None", "{a: {b: c}}", `{"deviceRouteProtocol":80,"metadataAddr":null}`)
	f.Fuzz(func(t *testing.T, variable, file, spec string) {
		l := &Local{hostname: "h"}
		l.readEnvironment([]string{variable})
		_ = l.readSettings("f.yaml", []byte(file)) // it says what is wrong with the file
		var node, global *api.FelixConfiguration
		key := api.Key{Kind: api.KindFelixConfiguration, Name: "default"}
		if o, _, err := api.DecodeKey(key, []byte(`{"metadata":{"annotations":{"config.projectcalico.org/HealthPort":"1"}},"spec":`+spec+`}`)); err == nil {
			global = o.(*api.FelixConfiguration)
			node = global
		}
		c, problems := l.With(global, node)
		for _, p := range problems {
			if p.Reason == "" || p.Field == "" {
				t.Errorf("problem %+v", p)
			}
		}
		for i, s := range c.Explain() {
			again := Config{sources: map[string]string{}}
			if p := params[i]; !p.secret && s.Source != builtIn && s.Name != "ReportingTTL" && p.set(&again, s.Value) != nil {
				t.Errorf("%s = %q of %s is not accepted again", s.Name, s.Value, s.Source)
			}
		}
		if c.ReportingTTL <= c.ReportingInterval || len(c.InterfacePrefixes) == 0 || c.RefreshInterval <= 0 {
			t.Errorf("settings %v", c)
		}
	})
}
