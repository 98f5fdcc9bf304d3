package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Failsafe is a port that stays open whatever policy says.
type Failsafe struct {
	Protocol uint8
	Port     uint16
	Net      netip.Prefix // of the other end; none: any
}

// Failsafes are the ports that stay open, to the host and from it.
func (c Config) Failsafes() (in, out []Failsafe) {
	in, _ = parseFailsafes(c.FailsafeInboundHostPorts) // they were checked
	out, _ = parseFailsafes(c.FailsafeOutboundHostPorts)
	return in, out
}

// failsafeProtocols are those that have ports.
var failsafeProtocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136}

// parseFailsafes reads none, or a list of port, protocol:port or
// protocol:network:port.
func parseFailsafes(text string) ([]Failsafe, error) {
	if strings.EqualFold(text, "none") {
		return nil, nil
	}
	var list []Failsafe
	for s := range strings.SplitSeq(text, ",") {
		f, err := parseFailsafe(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		list = append(list, f)
	}
	return list, nil
}

var errFailsafe = errors.New("want protocol:port or protocol:network:port, or none")

func parseFailsafe(s string) (f Failsafe, err error) {
	protocol, rest := "tcp", s // upstream's shorthand
	if before, after, ok := strings.Cut(s, ":"); ok {
		protocol, rest = strings.ToLower(before), after
	}
	if i := strings.LastIndex(rest, ":"); i >= 0 { // an IPv6 network has colons too
		network := strings.NewReplacer("[", "", "]", "").Replace(rest[:i])
		if f.Net, err = netip.ParsePrefix(network); err != nil {
			a, err := netip.ParseAddr(network)
			if err != nil {
				return f, errFailsafe
			}
			f.Net = netip.PrefixFrom(a, a.BitLen())
		}
		f.Net, rest = f.Net.Masked(), rest[i+1:]
	}
	port, err := strconv.ParseUint(rest, 10, 16)
	f.Port = uint16(port)
	number, known := failsafeProtocols[protocol]
	if f.Protocol = number; !known {
		n, _ := strconv.ParseUint(protocol, 10, 8)
		f.Protocol = uint8(n)
		for _, number := range failsafeProtocols {
			known = known || number == f.Protocol
		}
	}
	if err != nil || port == 0 || !known || f.Net.Addr().Is4In6() {
		return f, errFailsafe
	}
	return f, nil
}

// failsafeText is one element of the list in a resource as it is written
// elsewhere.
func failsafeText(m map[string]any) (string, bool) {
	parts := make([]string, 0, 3)
	protocol, port := "TCP", ""
	for name, v := range m {
		s, isText := v.(string)
		if n, isNumber := v.(float64); isNumber {
			s, isText = strconv.FormatFloat(n, 'f', -1, 64), true
		}
		switch name {
		case "protocol":
			protocol = s
		case "port":
			port = s
		case "net":
			if s != "" {
				parts = append(parts, s)
			}
		default:
			return "", false
		}
		if !isText {
			return "", false
		}
	}
	parts = append(append([]string{protocol}, parts...), port)
	return strings.Join(parts, ":"), !slices.ContainsFunc(parts, func(s string) bool { return strings.Contains(s, ",") })
}

// orNone is the text of an empty list, which for these means that there are
// none; for others it is no value.
func (p *param) orNone(text string, raw json.RawMessage) string {
	if p.check == "failsafe" && text == "" && strings.HasPrefix(strings.TrimSpace(string(raw)), "[") {
		return "none"
	}
	return text
}
