package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"tortie/api"
)

// DefaultFile is where the settings of a host are by default.
const DefaultFile = "/etc/tortie/tortie.yaml"

// value is what one source says of one parameter.
type value struct {
	param  *param
	text   string
	source string
}

// Local has what the environment and the file say.
type Local struct {
	hostname string
	values   []value // what counts first is first
	problems []api.Problem
}

// Load reads the environment, given as os.Environ does, and the file: YAML
// with parameters and their values. No file need be at DefaultFile, and "" is
// none. It fails where the file cannot be read, or where a parameter without
// which a process cannot find its datastore or itself is bad; what else is
// wrong is among the problems that With returns.
func Load(file string, environ []string) (*Local, error) {
	l := &Local{}
	name, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("load configuration: %w", err)
	}
	l.hostname = strings.ToLower(strings.TrimSpace(name))
	l.readEnvironment(environ)
	if file != "" {
		if err := l.readFile(file); err != nil {
			return nil, fmt.Errorf("load configuration: %w", err)
		}
	}
	c, problems := l.With(nil, nil)
	if c.EtcdKeyFile != "" {
		l.checkMode(c.EtcdKeyFile)
	}
	for _, v := range l.values {
		for _, p := range problems {
			if v.param.local && !v.param.lenient && p.Field == v.source {
				return nil, fmt.Errorf("load configuration: %v", p)
			}
		}
	}
	return l, nil
}

// readEnvironment takes FELIX_<NAME> before the further variables, which are
// those that etcd's own tools read.
func (l *Local) readEnvironment(environ []string) {
	var further []value
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		variable, text, _ := strings.Cut(entry, "=")
		if text == "" {
			continue // in files of variables, the usual way to give none
		}
		source := "environment " + variable
		if len(variable) > 6 && strings.EqualFold(variable[:6], "FELIX_") {
			if p := find(variable[6:]); p != nil {
				l.values = append(l.values, value{p, text, source})
			} else {
				l.notActedUpon(source, variable[6:], text)
			}
			continue
		}
		for i := range params {
			if params[i].env == variable {
				further = append(further, value{&params[i], text, source})
			}
		}
	}
	l.values = append(l.values, further...)
}

func (l *Local) readFile(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && file == DefaultFile {
		return nil
	}
	if err != nil {
		return err
	}
	return l.readSettings(file, data)
}

// readSettings reads what is in a file.
func (l *Local) readSettings(file string, data []byte) error {
	var entries map[string]json.RawMessage
	if err := yaml.UnmarshalStrict(data, &entries); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, name := range sortedKeys(entries) {
		source := "file " + file + " " + name
		text, err := textOf(entries[name])
		p := find(name)
		switch {
		case p == nil:
			l.notActedUpon(source, name, text)
			continue
		case err != nil:
			return fmt.Errorf("%s: %s: %w", file, name, err)
		}
		l.values = append(l.values, value{p, p.orNone(text, entries[name]), source})
		if p.secret {
			l.checkMode(file)
		}
	}
	return nil
}

// checkMode reports a file with a secret that others can read.
func (l *Local) checkMode(file string) {
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o077 != 0 {
		l.problems = append(l.problems, api.Problem{
			Field:  file,
			Reason: fmt.Sprintf("mode %04o: others than its owner can read a secret", info.Mode().Perm()),
		})
	}
}

func (l *Local) notActedUpon(source, name, text string) {
	if p, ok := notActedUpon(source, name, text); ok {
		l.problems = append(l.problems, p)
	}
}

// With adds what the datastore says and returns the settings that count, and
// what is wrong. Either resource may be nil.
func (l *Local) With(global, node *api.FelixConfiguration) (Config, []api.Problem) {
	problems := slices.Clone(l.problems)
	values := slices.Clone(l.values)
	for _, r := range []*api.FelixConfiguration{node, global} {
		if r != nil {
			values = append(values, fromResource(r, &problems)...)
		}
	}
	c := Config{sources: map[string]string{}}
	for i := range params {
		_ = params[i].set(&c, params[i].builtIn) // what has no default stays empty
	}
	c.Hostname = l.hostname
	for _, v := range values {
		if c.sources[v.param.name] != "" {
			continue
		}
		next := c
		if err := v.param.set(&next, v.text); err != nil {
			problems = append(problems, api.Problem{Field: v.source, Value: v.param.shown(v.text), Reason: v.param.name + ": " + err.Error()})
			continue
		}
		c = next
		c.sources[v.param.name] = v.source
	}
	l.settle(&c, &problems)
	return c, problems
}

// settle does what concerns several settings.
func (l *Local) settle(c *Config, problems *[]api.Problem) {
	if c.sources["EtcdEndpoints"] == "" && c.EtcdAddr != "" {
		c.EtcdEndpoints = []string{c.EtcdScheme + "://" + c.EtcdAddr}
		c.sources["EtcdEndpoints"] = c.sources["EtcdAddr"]
	}
	c.RefreshInterval = min(c.NftablesRefreshInterval, c.RouteRefreshInterval, c.InterfaceRefreshInterval)
	if c.ReportingTTL <= c.ReportingInterval {
		*problems = append(*problems, api.Problem{
			Field: cmp.Or(c.sources["ReportingTTL"], "ReportingTTL"), Value: c.ReportingTTL.String(),
			Reason: "ReportingTTL: must be longer than ReportingInterval; taken as three times that",
		})
		c.ReportingTTL = 3 * c.ReportingInterval
	}
}

// annotationPrefix begins annotations that give a parameter by its raw name.
const annotationPrefix = "config.projectcalico.org/"

// fromResource returns what a resource says, its annotations first.
func fromResource(r *api.FelixConfiguration, problems *[]api.Problem) []value {
	var values []value
	add := func(source, name, text string) {
		switch p := find(name); {
		case p == nil:
			if p, ok := notActedUpon(source, name, text); ok {
				*problems = append(*problems, p)
			}
		case p.local:
			*problems = append(*problems, api.Problem{Field: source, Value: p.shown(text), Reason: p.name + ": is not taken from the datastore"})
		default:
			values = append(values, value{p, text, source})
		}
	}
	for _, key := range sortedKeys(r.Meta.Annotations) {
		if name, ok := strings.CutPrefix(key, annotationPrefix); ok {
			add(r.Key().String()+" annotation "+key, name, r.Meta.Annotations[key])
		}
	}
	for _, name := range sortedKeys(r.Spec) {
		source := r.Key().String() + " spec." + name
		if text, err := textOf(r.Spec[name]); err == nil {
			if p := find(name); p != nil {
				text = p.orNone(text, r.Spec[name])
			}
			add(source, name, text)
		} else if string(r.Spec[name]) != "null" {
			*problems = append(*problems, api.Problem{Field: source, Reason: name + ": " + err.Error()})
		}
	}
	return values
}
