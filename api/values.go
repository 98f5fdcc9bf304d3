package api

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tortie/selector"
)

// Raw is a value that is kept as it was stored: JSON text, "" for none.
type Raw string

// MarshalJSON returns the value.
func (r Raw) MarshalJSON() ([]byte, error) {
	if r == "" {
		return []byte("null"), nil
	}
	return []byte(r), nil
}

func (r *Raw) read(d *decoder) bool {
	if raw := d.skip(); d.err == nil && raw[0] != 'n' {
		*r = Raw(raw)
	}
	return d.err == nil
}

// ParsePrefix reads a prefix, or an address as the prefix of only it. Host bits
// are masked off; an IPv4 address in IPv6 form is an IPv4 address.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.IndexByte(s, '/') < 0 {
		a, err := ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q: want an address or a prefix", s)
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q: want an address or a prefix of one family", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// ParseAddr reads an address without a zone; an IPv4 address in IPv6 form is
// an IPv4 address.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q: want an IP address", s)
	}
	return a.Unmap(), nil
}

// ParseNets makes a list of the given prefixes and addresses.
func ParseNets(list ...string) Nets {
	var n Nets
	for _, s := range list {
		if p, err := ParsePrefix(s); err == nil {
			n.Prefixes = append(n.Prefixes, p)
		} else {
			n.Bad = append(n.Bad, s)
		}
	}
	return n
}

// IsZero reports an empty list.
func (n Nets) IsZero() bool { return len(n.Prefixes) == 0 && len(n.Bad) == 0 }

// MarshalJSON writes the list, bad elements last.
func (n Nets) MarshalJSON() ([]byte, error) {
	list := make([]string, 0, len(n.Prefixes)+len(n.Bad))
	for _, p := range n.Prefixes {
		list = append(list, p.String())
	}
	return json.Marshal(append(list, n.Bad...))
}

// UnmarshalJSON reads a list.
func (n *Nets) UnmarshalJSON(data []byte) error { *n = Nets{}; return readAlone(data, n) }

func (n *Nets) read(d *decoder) bool { return n.readBy(d, anyNet) }

// readBy reads a list of what parse can read, or says why it cannot.
func (n *Nets) readBy(d *decoder, parse func(string) (netip.Prefix, string)) bool {
	if d.null() {
		return true
	}
	if d.peek() != '[' {
		raw := d.skip()
		n.Bad = append(n.Bad, text(raw))
		return d.err == nil && d.bad(raw, "want a list")
	}
	good := d.nets[:0]
	for range d.elements {
		raw := d.skip()
		if d.err != nil {
			break
		}
		p, reason := parse(text(raw))
		if reason == "" {
			good = append(good, p)
			continue
		}
		n.Bad = append(n.Bad, text(raw))
		d.report(Problem{Field: d.where(), Value: shorten(text(raw)), Reason: reason})
	}
	if len(good) > 0 {
		n.Prefixes = slices.Clone(good)
	}
	if d.nets = good; cap(good) > 1024 {
		d.nets = nil
	}
	return len(n.Bad) == 0 && d.err == nil
}

func anyNet(s string) (netip.Prefix, string) {
	p, err := ParsePrefix(s)
	if err != nil {
		return p, "want an address or a prefix"
	}
	return p, ""
}

// ownNet reads an address or range that an endpoint has. One of all addresses
// would take the host's default route. Where OpenStack's driver writes an
// address pair that is a range, the length of an address follows its own.
func ownNet(s string) (netip.Prefix, string) {
	address := "/32"
	if strings.Contains(s, ":") {
		address = "/128"
	}
	if pair, ok := strings.CutSuffix(s, address); ok && strings.Contains(pair, "/") {
		s = pair
	}
	p, reason := anyNet(s)
	if reason == "" && p.Bits() == 0 {
		reason = "want less than all addresses"
	}
	return p, reason
}

// IsZero reports that there is no address, not even a bad one.
func (a IP) IsZero() bool { return !a.IsValid() && a.Bad == "" }

// MarshalJSON writes the address, or the bad text.
func (a IP) MarshalJSON() ([]byte, error) {
	if a.IsValid() {
		return json.Marshal(a.Addr)
	}
	return json.Marshal(a.Bad)
}

// UnmarshalJSON reads an address.
func (a *IP) UnmarshalJSON(data []byte) error { *a = IP{}; return readAlone(data, a) }

func (a *IP) read(d *decoder) bool {
	raw := d.skip()
	s := text(raw)
	if d.err != nil || raw[0] == 'n' || s == "" {
		return d.err == nil
	}
	addr, err := ParseAddr(s)
	if err != nil {
		a.Bad = s
		return d.bad(raw, "want an IP address")
	}
	a.Addr = addr
	return true
}

// ParseMAC reads an Ethernet address in colon, hyphen or dot notation.
func ParseMAC(s string) (MAC, error) {
	m := MAC{Set: true}
	hex := s
	switch {
	case len(s) == 17 && (strings.Count(s, ":") == 5 || strings.Count(s, "-") == 5):
		for i := 2; i < 17; i += 3 {
			if s[i] != ':' && s[i] != '-' {
				return MAC{}, fmt.Errorf("%q: want an Ethernet address", s)
			}
		}
		hex = s[0:2] + s[3:5] + s[6:8] + s[9:11] + s[12:14] + s[15:17]
	case len(s) == 14 && s[4] == '.' && s[9] == '.':
		hex = s[0:4] + s[5:9] + s[10:14]
	}
	n, err := strconv.ParseUint(hex, 16, 48)
	if err != nil || len(hex) != 12 || hex == s {
		return MAC{}, fmt.Errorf("%q: want an Ethernet address", s)
	}
	for i := range m.Addr {
		m.Addr[i] = byte(n >> (40 - 8*i))
	}
	return m, nil
}

// String prints the address in colon notation, or the bad text.
func (m MAC) String() string {
	if !m.Set {
		return m.Bad
	}
	a := m.Addr
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3], a[4], a[5])
}

// IsZero reports that there is no address, not even a bad one.
func (m MAC) IsZero() bool { return !m.Set && m.Bad == "" }

// MarshalJSON writes the address, or the bad text.
func (m MAC) MarshalJSON() ([]byte, error) { return json.Marshal(m.String()) }

// UnmarshalJSON reads an address.
func (m *MAC) UnmarshalJSON(data []byte) error { *m = MAC{}; return readAlone(data, m) }

func (m *MAC) read(d *decoder) bool {
	raw := d.skip()
	s := text(raw)
	if d.err != nil || raw[0] == 'n' || s == "" {
		return d.err == nil
	}
	mac, err := ParseMAC(s)
	if err != nil {
		m.Bad = s
		return d.bad(raw, "want an Ethernet address")
	}
	*m = mac
	return true
}

// MaxSelector is the greatest length of a selector, in bytes.
const MaxSelector = 1024

// ParseSelector makes a Selector of a text. Err is set in it where the text is
// not a selector.
func ParseSelector(s string) Selector {
	sel := Selector{Text: s}
	if s != "" {
		sel.Expr, sel.Err = selector.Parse(s)
	}
	return sel
}

// IsZero reports the empty selector, which is all().
func (s Selector) IsZero() bool { return s.Text == "" && s.Err == nil }

// MarshalJSON writes the text.
func (s Selector) MarshalJSON() ([]byte, error) { return json.Marshal(s.Text) }

// UnmarshalJSON reads a selector.
func (s *Selector) UnmarshalJSON(data []byte) error { *s = Selector{}; return readAlone(data, s) }

func (s *Selector) read(d *decoder) bool {
	raw := d.skip()
	if d.err != nil || raw[0] == 'n' {
		return d.err == nil
	}
	if raw[0] != '"' {
		s.Text, s.Err = string(raw), fmt.Errorf("%s: want a string", shorten(string(raw)))
		return d.bad(raw, "want a string")
	}
	if *s = ParseSelector(text(raw)); s.Err != nil {
		return d.bad(raw, "%v", s.Err)
	}
	return true
}

// protocolNames are the protocols that have a name in the data model.
var protocolNames = []struct {
	name   string
	number uint8
}{{"TCP", 6}, {"UDP", 17}, {"ICMP", 1}, {"ICMPv6", 58}, {"SCTP", 132}, {"UDPLite", 136}}

// ParseProtocol reads the name or number of a protocol.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range protocolNames {
		if strings.EqualFold(s, p.name) {
			return Protocol{Number: p.number, Text: p.name}, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return Protocol{}, fmt.Errorf("%q: want a protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or 1 to 255", s)
	}
	return Protocol{Number: uint8(n)}, nil
}

// HasPorts reports a protocol that has ports.
func (p Protocol) HasPorts() bool {
	switch p.Number {
	case 6, 17, 33, 132, 136:
		return true
	}
	return false
}

// IsICMP reports ICMP or ICMPv6.
func (p Protocol) IsICMP() bool { return p.Number == 1 || p.Number == 58 }

// String is the name, where the protocol was written as one, or the number.
func (p Protocol) String() string {
	switch {
	case p.Bad != "":
		return p.Bad
	case p.Text != "":
		return p.Text
	}
	return strconv.Itoa(int(p.Number))
}

// IsZero reports that there is no protocol, not even a bad one.
func (p Protocol) IsZero() bool { return p.Number == 0 && p.Text == "" && p.Bad == "" }

// MarshalJSON writes the name as a string, or the number.
func (p Protocol) MarshalJSON() ([]byte, error) {
	if p.Bad == "" && p.Text == "" {
		return strconv.AppendUint(nil, uint64(p.Number), 10), nil
	}
	return json.Marshal(p.String())
}

// UnmarshalJSON reads a name or a number.
func (p *Protocol) UnmarshalJSON(data []byte) error { *p = Protocol{}; return readAlone(data, p) }

func (p *Protocol) read(d *decoder) bool {
	raw := d.skip()
	if d.err != nil || raw[0] == 'n' {
		return d.err == nil
	}
	proto, err := ParseProtocol(text(raw))
	if err != nil {
		p.Bad = text(raw)
		return d.bad(raw, "want a protocol's name or a number from 1 to 255")
	}
	*p = proto
	return true
}

// ParsePort reads a port, a range "min:max" or the name of a port.
func ParsePort(s string) (Port, error) {
	low, high, isRange := strings.Cut(s, ":")
	if !isRange {
		high = low
	}
	first, err1 := strconv.ParseUint(low, 10, 16)
	last, err2 := strconv.ParseUint(high, 10, 16)
	switch {
	case err1 == nil && err2 == nil && first >= 1 && first <= last:
		return Port{Min: uint16(first), Max: uint16(last)}, nil
	case isPortName(s) && strings.Trim(s, "0123456789") != "":
		return Port{Name: s}, nil
	}
	return Port{}, fmt.Errorf(`%q: want a port from 1 to 65535, "min:max" or a name`, s)
}

func isPortName(s string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	return s != "" && len(s) <= 128 && strings.Trim(s, allowed) == ""
}

// String prints the port as ParsePort reads it.
func (p Port) String() string {
	switch {
	case p.Bad != "":
		return p.Bad
	case p.Name != "":
		return p.Name
	case p.Min == p.Max:
		return strconv.Itoa(int(p.Min))
	}
	return fmt.Sprintf("%d:%d", p.Min, p.Max)
}

// MarshalJSON writes a single port as a number, all else as a string.
func (p Port) MarshalJSON() ([]byte, error) {
	if p.Bad == "" && p.Name == "" && p.Min == p.Max {
		return strconv.AppendUint(nil, uint64(p.Min), 10), nil
	}
	return json.Marshal(p.String())
}

// UnmarshalJSON reads a port.
func (p *Port) UnmarshalJSON(data []byte) error { *p = Port{}; return readAlone(data, p) }

func (p *Port) read(d *decoder) bool {
	raw := d.skip()
	if d.err != nil {
		return false
	}
	port, err := ParsePort(text(raw))
	if err != nil || port.Name != "" && raw[0] != '"' {
		p.Bad = text(raw)
		return d.bad(raw, `want a port from 1 to 65535, "min:max" or a name`)
	}
	*p = port
	return true
}

// ParseASNumber reads an AS number, plain or as "hi.lo".
func ParseASNumber(s string) (ASNumber, error) {
	if high, low, ok := strings.Cut(s, "."); ok {
		h, err1 := strconv.ParseUint(high, 10, 16)
		l, err2 := strconv.ParseUint(low, 10, 16)
		if err1 == nil && err2 == nil {
			return ASNumber(h<<16 | l), nil
		}
	} else if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return ASNumber(n), nil
	}
	return 0, fmt.Errorf(`%q: want an AS number up to 4294967295, or "hi.lo"`, s)
}

// MarshalJSON writes the number.
func (a ASNumber) MarshalJSON() ([]byte, error) { return strconv.AppendUint(nil, uint64(a), 10), nil }

// UnmarshalJSON reads a number or "hi.lo".
func (a *ASNumber) UnmarshalJSON(data []byte) error { *a = 0; return readAlone(data, a) }

func (a *ASNumber) read(d *decoder) bool {
	raw := d.skip()
	if d.err != nil || raw[0] == 'n' {
		return d.err == nil
	}
	n, err := ParseASNumber(text(raw))
	if err != nil || raw[0] != '"' && strings.Contains(string(raw), ".") {
		return d.bad(raw, `want an AS number up to 4294967295, or "hi.lo"`)
	}
	*a = n
	return true
}

// readAlone reads a value outside any document, for encoding/json.
func readAlone(data []byte, r reader) error {
	d := newDecoder(data)
	defer d.release()
	r.read(d)
	if d.err != nil {
		return d.err
	}
	return nil
}
