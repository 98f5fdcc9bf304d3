package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tortie/api"
)

// param is what the tags of one field of Config say.
type param struct {
	field    int
	name     string
	names    []string // lower case, with aliases
	env      string
	builtIn  string
	check    string
	min      time.Duration
	local    bool
	lenient  bool // a bad value of it does not keep the process from its work
	secret   bool
	describe string
}

// params has the fields of Config that are parameters, in their order.
var params = readParams()

func readParams() []param {
	t := reflect.TypeFor[Config]()
	var list []param
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("name")
		if name == "" {
			continue
		}
		p := param{
			field: i, name: name, env: tag.Get("env"), builtIn: tag.Get("default"), check: tag.Get("type"),
			local: tag.Get("local") != "", lenient: tag.Get("local") == "lenient", secret: t.Field(i).Type == reflect.TypeFor[Secret](),
			describe: tag.Get("doc"), names: []string{strings.ToLower(name)},
		}
		for alias := range strings.SplitSeq(tag.Get("alias"), ",") {
			if alias != "" {
				p.names = append(p.names, strings.ToLower(alias))
			}
		}
		p.min, _ = time.ParseDuration(tag.Get("min")) // without one, 0
		list = append(list, p)
	}
	return list
}

// find returns the parameter of a name in any case, nil if there is none.
func find(name string) *param {
	name = strings.ToLower(name)
	for i := range params {
		if slices.Contains(params[i].names, name) {
			return &params[i]
		}
	}
	return nil
}

// shown is a value as it may be printed.
func (p *param) shown(text string) string {
	if p.secret || strings.Contains(text, "@") { // user and password in a URL
		return Secret(text).String()
	}
	return text
}

// set parses and checks text and stores it in c.
func (p *param) set(c *Config, text string) error {
	v := reflect.ValueOf(c).Elem().Field(p.field)
	if !p.secret {
		text = strings.TrimSpace(text)
	}
	switch v.Interface().(type) {
	case bool:
		b, err := parseBool(text)
		if err != nil {
			return err
		}
		v.SetBool(b)
	case time.Duration:
		d, err := p.parseDuration(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(d))
	case int, uint16:
		return p.setNumber(v, text)
	case []string:
		list, err := p.parseList(text)
		if err != nil {
			return err
		}
		v.Set(reflect.ValueOf(list))
	default:
		s, err := p.parseText(text)
		if err != nil {
			return err
		}
		v.SetString(s)
	}
	return nil
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1", "yes", "y", "t", "enabled":
		return true, nil
	case "false", "0", "no", "n", "f", "disabled":
		return false, nil
	}
	return false, errors.New("want true or false")
}

// parseDuration takes a number as seconds.
func (p *param) parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if seconds, err2 := strconv.ParseFloat(text, 64); err2 == nil && seconds >= 0 && seconds < 1e9 {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil {
		return 0, errors.New(`want a duration as "90s", or a number of seconds`)
	}
	if d == 0 && strings.HasSuffix(p.name, "RefreshInterval") {
		return 24 * time.Hour, nil
	}
	if d < p.min {
		return 0, fmt.Errorf("want at least %v", p.min)
	}
	return d, nil
}

func (p *param) setNumber(v reflect.Value, text string) error {
	n, err := strconv.Atoi(text)
	if p.check == "protocol" {
		if err != nil || n <= 4 || n > 255 || n == 81 {
			return errors.New("want a number from 5 to 255, but not 81")
		}
		v.SetInt(int64(n))
		return nil
	}
	if p.check == "rate" {
		if err != nil || n < 0 || n > 1e6 {
			return errors.New("want a number from 0 to 1000000")
		}
		v.SetInt(int64(n))
		return nil
	}
	if err != nil || n < 1 || n > 65535 {
		return errors.New("want a port from 1 to 65535")
	}
	v.SetUint(uint64(n))
	return nil
}

func (p *param) parseList(text string) ([]string, error) {
	var list []string
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("want at least one")
	}
	for _, s := range list {
		if p.check == "prefixes" {
			// With an empty or a one-letter prefix the host's own
			// interfaces would be taken for those of workloads.
			if !prefixRE.MatchString(s) {
				return nil, errors.New("want what names of interfaces begin with: 2 to 14 letters, digits, '_', '.' or '-'")
			}
			continue
		}
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			return nil, errors.New("want URLs such as https://host:2379, without user and password")
		}
	}
	return list, nil
}

var (
	prefixRE = regexp.MustCompile(`^[a-zA-Z0-9_.-]{2,14}$`)
	hostRE   = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?$`)
)

func (p *param) parseText(text string) (string, error) {
	switch p.check {
	case "":
		return text, nil
	case "region":
		if strings.EqualFold(text, "none") {
			return "", nil
		}
		return text, api.CheckRegion(text)
	case "host":
		if !hostRE.MatchString(text) {
			return "", errors.New("want a host's name")
		}
		return text, nil
	case "hostport":
		if u, err := url.Parse("http://" + text); err != nil || u.Host != text || u.Port() == "" {
			return "", errors.New("want host:port")
		}
		return text, nil
	case "ip":
		if _, err := netip.ParseAddr(text); err != nil && text != "" {
			return "", errors.New("want an IP address")
		}
		return text, nil
	case "ports":
		_, err := parsePorts(text)
		return text, err
	case "failsafe":
		_, err := parseFailsafes(text)
		return text, err
	case "address":
		if strings.EqualFold(text, "none") {
			return "", nil
		}
		if _, err := netip.ParseAddr(text); err != nil && !hostRE.MatchString(text) {
			return "", errors.New("want an IP address, a host's name or none")
		}
		return text, nil
	}
	for choice := range strings.SplitSeq(p.check, ",") {
		if strings.EqualFold(choice, text) {
			return choice, nil
		}
	}
	return "", fmt.Errorf("want one of %s", p.check)
}

// parsePorts reads a port or min:max; an empty text is no range.
func parsePorts(text string) (ports [2]uint16, err error) {
	if text == "" {
		return ports, nil
	}
	first, last, isRange := strings.Cut(text, ":")
	if !isRange {
		last = first
	}
	for i, s := range []string{first, last} {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return [2]uint16{}, errors.New("want a port from 1 to 65535, or min:max")
		}
		ports[i] = uint16(n)
	}
	if ports[0] > ports[1] {
		return [2]uint16{}, errors.New("want min:max, the lower port first")
	}
	return ports, nil
}
