package qdisc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/kernel/link"
)

// step is one thing to write.
type step struct {
	text string // as Diff shows it
	do   func() error
}

// run takes steps in order until one fails.
func run(ctx context.Context, steps []step) (n int, err error) {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if err := s.do(); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// planner works out the steps for one interface.
type planner struct {
	socket *socket
	view   *view
	name   string
	want   desired.Controls
	steps  []step
	ifb    int // index of the ifb, once there is one
}

func (p *planner) add(sign, what string, do func() error) {
	p.steps = append(p.steps, step{sign + " " + what, func() error {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}})
}

// plan: the redirect is the last to come and the first to go, for without an
// ifb nothing would pass.
func (p *planner) plan(ctx context.Context) error {
	if d := p.view.devices[p.name]; d.isOurs() { // whose interface has gone
		p.removeLink(d)
		return nil
	}
	dev, there := p.view.devices[p.name]
	if there && p.want.Index != 0 && dev.index != p.want.Index {
		return nil // it was made anew, and word of that is on its way
	}
	if there {
		p.root(dev, p.want.Ingress.Shape, dev.mtu)
	}
	egress := p.want.Egress.Shape
	if !there || egress.Rate == 0 {
		return p.removeRedirect(ctx, dev)
	}
	p.makeIFB(egress, dev.mtu)
	return p.redirect(ctx, dev)
}

// root makes the root qdisc of a link a tbf, or takes ours away.
func (p *planner) root(dev device, s desired.Shape, mtu uint32) {
	has := p.view.roots[dev.index]
	ours := has.handle == Handle && has.kind == "tbf"
	what := "tbf of " + dev.name
	remove := func() error {
		return gone(p.socket.write(unix.RTM_DELQDISC, 0, tcmsg(dev.index, Handle, rootParent, 0)))
	}
	switch {
	case s.Rate == 0 && has.handle == Handle:
		p.add("-", what, remove)
	case s.Rate == 0:
	case has.handle != 0 && has.handle != Handle:
		p.add("+", what, func() error {
			return fmt.Errorf("there is a root qdisc %s of another program (handle %x:)", has.kind, has.handle>>16)
		})
	case !ours || !has.is(makeBucket(s, mtu)):
		sign := "~"
		if !ours {
			sign = "+"
		}
		if !ours && has.handle == Handle {
			p.add("-", has.kind+" of "+dev.name, remove)
		}
		p.add(sign, what, func() error {
			// Without NLM_F_REPLACE the kernel refuses where another program was faster.
			return unsupported("tbf", p.socket.write(unix.RTM_NEWQDISC, unix.NLM_F_CREATE, tbf(dev.index, makeBucket(s, mtu))))
		})
	}
}

// makeIFB has the ifb exist, be up and have its tbf.
func (p *planner) makeIFB(s desired.Shape, mtu uint32) {
	name := ifbName(p.name)
	has, there := p.view.devices[name]
	if there && !has.isOurs() && has.alias != link.Alias {
		p.add("+", "link "+name, func() error { return errors.New("another program has a link of that name") })
		return
	}
	p.ifb = has.index
	if !there {
		p.add("+", "link "+name, func() error {
			err := unsupported("ifb", p.socket.write(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, newIFB(name)))
			if err != nil {
				return err
			}
			p.ifb, err = p.index(name)
			return err
		})
	}
	if !there || has.alias != link.Alias || !has.up {
		p.add("~", "link "+name, func() error { return p.socket.write(unix.RTM_NEWLINK, 0, setIFB(p.ifb)) })
	}
	if !there {
		p.add("+", "tbf of "+name, func() error {
			return unsupported("tbf", p.socket.write(unix.RTM_NEWQDISC, unix.NLM_F_CREATE, tbf(p.ifb, makeBucket(s, mtu))))
		})
		return
	}
	p.root(has, s, mtu)
}

// index asks for the index of a link.
func (p *planner) index(name string) (int, error) {
	ask := append(ifinfo(0, 0), attrName(name)...)
	list, err := p.socket.request(unix.RTM_GETLINK, 0, ask)
	if err != nil {
		return 0, err
	}
	for _, b := range list {
		if d, ok := parseDevice(b); ok {
			return d.index, nil
		}
	}
	return 0, unix.ENODEV
}

// redirect has what comes in by the interface go to the ifb.
func (p *planner) redirect(ctx context.Context, dev device) error {
	kind := p.view.ingress[dev.index]
	var have []filter
	if kind != "" {
		var err error
		if have, err = p.socket.filters(ctx, dev.index, ingressParent); err != nil {
			return gone(err)
		}
	}
	pref := uint16(Pref)
	nodes, good := 0, 0
	stale := map[uint16]bool{}
	for _, f := range have {
		if !f.isOurs() {
			continue
		}
		stale[f.pref] = true
		if pref = f.pref; f.node {
			nodes++
		}
		if f.to != 0 && f.to == p.ifb {
			good++
		}
	}
	if nodes == 1 && good == 1 && len(stale) == 1 {
		return nil
	}
	for old := range stale {
		p.removeFilter(dev, old)
	}
	if kind == "" {
		pref = PrefAlone
		p.add("+", "clsact of "+dev.name, func() error {
			return unsupported("clsact", p.socket.write(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, clsact(dev.index)))
		})
	}
	p.add("+", "redirect of "+dev.name, func() error {
		return unsupported("u32 or mirred", p.socket.write(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, redirectAll(dev.index, pref, p.ifb)))
	})
	return nil
}

func (p *planner) removeFilter(dev device, pref uint16) {
	p.add("-", "redirect of "+dev.name, func() error {
		return gone(p.socket.write(unix.RTM_DELTFILTER, 0, filterHead(dev.index, pref)))
	})
}

// removeRedirect takes the filter away, the clsact qdisc if it is ours and
// nobody else has a filter there, and the ifb.
func (p *planner) removeRedirect(ctx context.Context, dev device) error {
	if p.view.ingress[dev.index] != "" {
		in, err := p.socket.filters(ctx, dev.index, ingressParent)
		if err != nil {
			return gone(err)
		}
		out, err := p.socket.filters(ctx, dev.index, egressParent)
		if err != nil {
			return gone(err)
		}
		ours := map[uint16]bool{}
		for _, f := range in {
			if f.isOurs() {
				ours[f.pref] = true
			}
		}
		for pref := range ours {
			p.removeFilter(dev, pref)
		}
		others := slices.ContainsFunc(append(in, out...), func(f filter) bool { return !f.isOurs() })
		if ours[PrefAlone] && !others {
			p.add("-", "clsact of "+dev.name, func() error {
				return gone(p.socket.write(unix.RTM_DELQDISC, 0, tcmsg(dev.index, clsactHandle, clsactParent, 0)))
			})
		}
	}
	if d := p.view.devices[ifbName(p.name)]; d.isOurs() {
		p.removeLink(d)
	}
	return nil
}

func (p *planner) removeLink(d device) {
	p.add("-", "link "+d.name, func() error { return gone(p.socket.write(unix.RTM_DELLINK, 0, ifinfo(d.index, 0))) })
}

// gone makes it no failure that something is not there any more.
func gone(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// unsupported says what the kernel lacks. A link that is gone is no failure:
// word of that is on its way.
func unsupported(what string, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel has no %s: %w", what, err)
	case errors.Is(err, unix.ENODEV):
		return nil
	}
	return err
}
