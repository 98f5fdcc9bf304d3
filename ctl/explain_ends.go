package ctl

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"tortie/api"
	"tortie/explain"
)

// end is one end of a connection: an endpoint, or an address.
type end struct {
	text  string       // the flag and its value, for messages
	key   api.Key      // zero if an address was given
	addrs []netip.Addr // the first of a family is used
}

// addr returns the address of a family that the end has.
func (e end) addr(family int) (netip.Addr, bool) {
	i := slices.IndexFunc(e.addrs, func(a netip.Addr) bool { return a.Is4() == (family == 4) })
	if i < 0 {
		return netip.Addr{}, false
	}
	return e.addrs[i], true
}

// end finds what a flag names.
func (c *cluster) end(flag, text string) (end, error) {
	e := end{text: flag + " " + text}
	if p, err := api.ParsePrefix(text); err == nil && p.IsSingleIP() {
		e.addrs = []netip.Addr{p.Addr()}
		return e, nil
	}
	var err error
	if e.key, err = c.only(text); err != nil {
		return e, fmt.Errorf("%s: %w", e.text, err)
	}
	if e.addrs = c.Addresses(e.key); len(e.addrs) == 0 {
		host, _, _ := c.Interface(e.key)
		e.addrs = c.HostAddresses(host)
	}
	return e, nil
}

// via finds the host endpoints that a flag names: the interface that each is
// for, by host.
func (c *cluster) via(names []string) (map[string]explain.Interface, error) {
	via := map[string]explain.Interface{}
	for _, name := range names {
		host, i, ok := c.Interface(api.Key{Kind: api.KindHostEndpoint, Name: name})
		_, twice := via[host]
		switch {
		case !ok:
			return nil, fmt.Errorf("--via %s: there is no such host endpoint", name)
		case twice:
			return nil, fmt.Errorf("--via %s: host %s has another that was given", name, host)
		}
		via[host] = i
	}
	return via, nil
}

// only returns the one endpoint that a text means: by its address, else its
// name, else its labels.
func (c *cluster) only(text string) (api.Key, error) {
	var keys []api.Key
	var err error
	if p, notOne := api.ParsePrefix(text); notOne == nil && p.IsSingleIP() {
		if keys = c.Owners(p.Addr()); len(keys) == 0 {
			keys = c.KnownBy(p.Addr())
		}
	} else if keys = c.named(text); len(keys) == 0 {
		keys, err = c.selected(text)
	}
	switch {
	case err != nil:
		return api.Key{}, err
	case len(keys) == 0:
		return api.Key{}, errors.New("no endpoint has this address")
	case len(keys) > 1:
		return api.Key{}, fmt.Errorf("%d endpoints match, where one is meant: %s", len(keys), shortList(keys))
	}
	return keys[0], nil
}

// maxListed is how many matches an error lists.
const maxListed = 20

func shortList(keys []api.Key) string {
	var names []string
	for _, k := range keys[:min(len(keys), maxListed)] {
		names = append(names, strings.TrimPrefix(k.Namespace+"/"+k.Name, "/"))
	}
	if more := len(keys) - maxListed; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// named returns the endpoints with a name: that of the object or, if none has
// it, of its workload or, if none has that either, its own within the workload
// (with OpenStack, the id of the port). A namespace may stand before each.
func (c *cluster) named(text string) []api.Key {
	var byName, byWorkload, byID []api.Key
	for key := range c.objects {
		if key.Kind == api.KindHostEndpoint && text == key.Name {
			byName = append(byName, key)
		}
		w := c.endpoint(key)
		if w == nil {
			continue
		}
		id, err := api.ParseWorkloadName(key.Name)
		if err != nil {
			id = w.Spec.Identity()
		}
		is := func(name string) bool {
			return name != "" && (text == name || text == key.Namespace+"/"+name)
		}
		switch {
		case is(key.Name):
			byName = append(byName, key)
		case is(id.Workload):
			byWorkload = append(byWorkload, key)
		case is(id.Endpoint):
			byID = append(byID, key)
		}
	}
	for _, keys := range [][]api.Key{byName, byWorkload, byID} {
		if len(keys) > 0 {
			slices.SortFunc(keys, api.Key.Compare)
			return keys
		}
	}
	return nil
}

var labelValue = regexp.MustCompile(`^([A-Za-z0-9_./-]+)=([A-Za-z0-9_.-]*)$`)

// selected returns the endpoints with a label, given as label=value, or that a
// selector selects.
func (c *cluster) selected(text string) ([]api.Key, error) {
	if m := labelValue.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("%s == '%s'", m[1], m[2])
	}
	s := api.ParseSelector(text)
	switch {
	case s.Err != nil && strings.ContainsAny(text, `=!(){}'" `):
		return nil, s.Err
	case s.Err != nil || text == "":
		return nil, errors.New("no endpoint has this name, and it is neither an address nor a selector")
	}
	keys := append(c.Select(s), c.SelectHosts(s)...)
	if len(keys) == 0 {
		return nil, fmt.Errorf("no endpoint is selected by %s", s.Expr)
	}
	return keys, nil
}

// service is what --port asks for: the packet of each family that it is of,
// without addresses.
type service map[int]explain.Packet

// parseService reads PROTOCOL[/PORT] or, of ICMP, PROTOCOL[/TYPE[/CODE]].
func parseService(text string) (service, error) {
	parts := strings.Split(text, "/")
	protocol, err := api.ParseProtocol(parts[0])
	if err != nil {
		return nil, fmt.Errorf("--port %s: %w", text, err)
	}
	most, bits, want := 1, 0, "this protocol has no ports"
	switch {
	case protocol.HasPorts():
		most, bits, want = 2, 16, "want a port from 1 to 65535 after the protocol"
	case protocol.IsICMP():
		most, bits, want = 3, 8, "want a type and a code, up to 255, after the protocol"
	}
	var n [2]uint64
	for i, part := range parts[1:] {
		if len(parts) <= most {
			n[i], err = strconv.ParseUint(part, 10, bits)
		}
		if len(parts) > most || err != nil || bits == 16 && n[i] == 0 {
			return nil, fmt.Errorf("--port %s: %s", text, want)
		}
	}
	if protocol.IsICMP() {
		return icmp(protocol.Number, len(parts) > 1, uint8(n[0]), uint8(n[1])), nil
	}
	p := explain.Packet{Protocol: protocol.Number, DstPort: uint16(n[0])}
	if protocol.HasPorts() {
		p.SrcPort = ephemeral
	}
	return service{4: p, 6: p}, nil
}

// icmp returns packets of ICMP, which is a protocol of its own in each family;
// without a type, pings, and those of ICMP in both.
func icmp(protocol uint8, typed bool, typ, code uint8) service {
	family := map[uint8]int{1: 4, 58: 6}[protocol]
	pings := service{4: {Protocol: 1, ICMPType: 8}, 6: {Protocol: 58, ICMPType: 128}}
	switch {
	case typed:
		return service{family: {Protocol: protocol, ICMPType: typ, ICMPCode: code}}
	case family == 6:
		return service{6: pings[6]}
	}
	return pings
}
