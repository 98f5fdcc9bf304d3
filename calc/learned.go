package calc

import (
	"net/netip"
	"slices"
	"strings"

	"tortie/api"
	"tortie/desired"
)

// learner is a host endpoint that expects no addresses: selectors know it by
// those that its interface has, or for any interface by all of the host's.
type learner struct {
	node, iface string
	item        *inheritor
}

// learnFor gives an endpoint the addresses by which it is known, if its spec
// does not say them.
func (c *Calc) learnFor(i *inheritor, spec *api.HostEndpointSpec) {
	delete(c.learners, i.key)
	if len(spec.ExpectedIPs) == 0 {
		l := &learner{spec.Node, spec.InterfaceName, i}
		c.learners[i.key] = l
		i.prefixes = l.addresses(c.learned[l.node])
	}
}

func (l *learner) addresses(has *api.HostAddressesSpec) []netip.Prefix {
	var list []netip.Prefix
	if has == nil {
		return nil
	}
	for _, i := range has.Interfaces {
		if i.Name != l.iface && l.iface != desired.AnyInterface {
			continue
		}
		for _, ip := range i.Addresses {
			if a := ip.Unmap(); a.IsValid() {
				list = append(list, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// SetAddresses sets what another host says of its addresses; nil means that it
// says nothing any more.
func (c *Calc) SetAddresses(host string, has *api.HostAddresses) {
	switch {
	case host == c.opts.Host: // which knows better
	case has == nil:
		c.learn(host, nil)
	default:
		c.learn(host, &has.Spec)
	}
}

// Addresses returns what this host is to say of its addresses: nil, for nothing,
// where no endpoint of it depends on that. It is never changed, only replaced.
func (c *Calc) Addresses() *api.HostAddressesSpec { return c.learned[c.opts.Host] }

// learnOwn finds out what there is to say of this host.
func (c *Calc) learnOwn() {
	var own *api.HostAddressesSpec
	for _, l := range c.learners {
		if l.node == c.opts.Host {
			own = &api.HostAddressesSpec{Interfaces: c.ownAddresses()}
			break
		}
	}
	c.learn(c.opts.Host, own)
}

func (c *Calc) ownAddresses() (list []api.InterfaceAddresses) {
	for name, i := range c.interfaces {
		if i.host == nil || !c.isHost(name) {
			continue
		}
		has := api.InterfaceAddresses{Name: name}
		for _, a := range i.host.Addrs {
			if a = a.Unmap(); api.IsKnowable(a) {
				has.Addresses = append(has.Addresses, api.IP{Addr: a})
			}
		}
		if len(has.Addresses) > 0 {
			slices.SortFunc(has.Addresses, func(a, b api.IP) int { return a.Compare(b.Addr) })
			list = append(list, has)
		}
	}
	slices.SortFunc(list, func(a, b api.InterfaceAddresses) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// learn gives the endpoints of a host that depend on its addresses those.
func (c *Calc) learn(host string, has *api.HostAddressesSpec) {
	switch was := c.learned[host]; {
	case has == nil && was == nil, has != nil && was != nil && slices.EqualFunc(has.Interfaces, was.Interfaces, sameAddresses):
		return
	case has == nil:
		delete(c.learned, host)
	default:
		c.learned[host] = has
	}
	for k, l := range c.learners {
		if l.node != host {
			continue
		}
		known := l.addresses(has)
		if slices.Equal(known, l.item.prefixes) {
			continue
		}
		l.item.prefixes = known
		if own := c.locals[k]; own != nil {
			own.host.known = known
			c.dirty.locals.add(own)
		} else {
			c.setItem(l.item)
		}
	}
}

func sameAddresses(a, b api.InterfaceAddresses) bool {
	return a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
}
