package agent

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/autohep"
	"tortie/kernel/link"
)

// tellMaker tells the maker of host endpoints of an object.
func (l *loop) tellMaker(c change) {
	switch c.key.Kind {
	case api.KindHostEndpoint:
		o, _ := c.object.(*api.HostEndpoint)
		l.maker.SetEndpoint(c.key.Name, o)
	case api.KindNode:
		if c.key.Name == l.cfg.Hostname {
			o, _ := c.object.(*api.Node)
			l.maker.SetNode(o)
		}
	case api.KindKubeControllersConfiguration:
		if o, _ := c.object.(*api.KubeControllersConfiguration); o != nil {
			l.maker.SetConfig(o.Spec.HostEndpoints())
		} else {
			l.maker.SetConfig(nil)
		}
	}
}

// tellMakerLinks tells it of the interfaces that endpoints may be about.
func (l *loop) tellMakerLinks(events []link.Event) {
	changed := false
	for _, e := range events {
		if e.Name == "lo" || slices.ContainsFunc(l.cfg.InterfacePrefixes, func(p string) bool { return strings.HasPrefix(e.Name, p) }) {
			continue
		}
		addrs := []netip.Addr{}
		for _, a := range e.Addrs {
			if a = a.Unmap(); api.IsKnowable(a) {
				addrs = append(addrs, a)
			}
		}
		if have := l.nics[e.Name]; e.Gone == (have == nil) && slices.Equal(have, addrs) {
			continue
		}
		changed = true
		if l.nics[e.Name] = addrs; e.Gone {
			delete(l.nics, e.Name)
		}
	}
	if !changed {
		return
	}
	var list []autohep.Interface
	for _, name := range slices.Sorted(maps.Keys(l.nics)) {
		list = append(list, autohep.Interface{Name: name, Addrs: l.nics[name]})
	}
	l.maker.SetInterfaces(list)
}
