package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tortie/desired"
)

// Sysctl is a kernel setting by its dotted name. A dot within an interface's
// name is written as a slash there, as sysctl(8) has it.
type Sysctl struct {
	Name  string
	Value string
}

var swapDots = strings.NewReplacer(".", "/", "/", ".")

func (l *Links) path(name string) string {
	return filepath.Join(l.opts.ProcSys, swapDots.Replace(name))
}

// read and write must be called on the handle's thread. A thousand interfaces
// have fourteen thousand settings, so read makes three system calls each.
func (l *Links) read(name string) (string, error) {
	fd, err := unix.Open(l.path(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	_ = unix.Close(fd)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

func (l *Links) write(s Sysctl) error {
	if err := os.WriteFile(l.path(s.Name), []byte(s.Value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", s.Name, s.Value, err)
	}
	return nil
}

// settings are what a workload interface needs. Those that guard the host come
// first, and are all that an interface gets to which no endpoint is bound.
func (l *Links) settings(name string, bound *desired.Interface) []Sysctl {
	name = swapDots.Replace(name)
	v4, v6 := "net.ipv4.conf."+name+".", "net.ipv6.conf."+name+"."
	out := []Sysctl{
		{v4 + "accept_redirects", "0"},
		{v4 + "send_redirects", "0"},
		// With a route of its own, what a workload sends to the host is
		// judged as that, and goes on to another. The default is 1.
		{v4 + "accept_source_route", "0"},
	}
	if l.ipv6 {
		out = append(out,
			Sysctl{v6 + "accept_ra", "0"},
			Sysctl{v6 + "accept_redirects", "0"},
			// A tentative link-local address would leave the guest without
			// a gateway for its first second or two.
			Sysctl{v6 + "accept_dad", "0"},
		)
	}
	if bound == nil {
		return out
	}
	out = append(out,
		Sysctl{v4 + "rp_filter", l.pathFilter(bound)},
		Sysctl{"net.ipv4.neigh." + name + ".proxy_delay", "0"},
		Sysctl{v4 + "forwarding", "1"},
		Sysctl{v4 + "proxy_arp", "1"},
	)
	if l.ipv6 {
		out = append(out,
			Sysctl{v6 + "disable_ipv6", "0"},
			Sysctl{"net.ipv6.neigh." + name + ".proxy_delay", "0"},
			Sysctl{v6 + "forwarding", "1"},
			Sysctl{v6 + "proxy_ndp", "1"},
		)
	}
	return out
}

// pathFilter is strict, unless an endpoint may use sources that are routed
// elsewhere. The kernel takes the higher of this and the value for all; where
// that is strict, only a loose one, which is higher, undoes it.
func (l *Links) pathFilter(bound *desired.Interface) string {
	if len(bound.Spoofed) == 0 {
		return "1"
	}
	if all, err := l.read("net.ipv4.conf.all.rp_filter"); err == nil && all == "0" {
		return "0"
	}
	return "2"
}

// HostSettings lists what ApplyHost sets on the whole host. Uplinks that take
// router advertisements are beside them: see ApplyHost.
func (l *Links) HostSettings() []Sysctl {
	out := []Sysctl{{"net.ipv4.ip_forward", "1"}}
	if l.ipv6 {
		out = append(out, Sysctl{"net.ipv6.conf.all.forwarding", "1"})
	}
	return out
}

// ApplyHost turns forwarding on. IPv6 forwarding makes the kernel ignore
// router advertisements, so where an interface that is not a workload's takes
// them, it is first told to go on. remember is called with a setting's value
// before that is changed, and its error leaves the setting as it is. What is
// right already is not written.
func (l *Links) ApplyHost(ctx context.Context, remember func(name, previous string) error) error {
	var err error
	l.thread.do(func() { err = l.applyHost(ctx, remember) })
	return err
}

func (l *Links) applyHost(ctx context.Context, remember func(name, previous string) error) error {
	uplinks, err := l.advertised()
	if err != nil {
		return err
	}
	for _, s := range append(uplinks, l.HostSettings()...) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("set %s to %s: %w", s.Name, s.Value, err)
		}
		old, err := l.read(s.Name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(s.Name, ".accept_ra") {
			continue // the link went meanwhile
		}
		if err != nil {
			return err
		}
		if old == s.Value {
			continue
		}
		if err := remember(s.Name, old); err != nil {
			return fmt.Errorf("remember %s: %w", s.Name, err)
		}
		if err := l.write(s); err != nil {
			return err
		}
	}
	return nil
}

// advertised returns the settings of the uplinks that take advertisements.
func (l *Links) advertised() ([]Sysctl, error) {
	if !l.ipv6 {
		return nil, nil
	}
	dirs, err := os.ReadDir(filepath.Join(l.opts.ProcSys, "net/ipv6/conf"))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []Sysctl
	for _, d := range dirs {
		if l.isWorkload(d.Name()) || strings.HasPrefix(d.Name(), Prefix) || slices.Contains([]string{"all", "default", "lo"}, d.Name()) {
			continue
		}
		s := Sysctl{"net.ipv6.conf." + swapDots.Replace(d.Name()) + ".accept_ra", "2"}
		if v, err := l.read(s.Name); err == nil && v == "1" {
			out = append(out, s)
		}
	}
	return out, nil
}

// RestoreHost writes back what was remembered, forwarding first.
func (l *Links) RestoreHost(values map[string]string) error {
	var names []string
	for n := range values {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := strings.Count(a, "accept_ra") - strings.Count(b, "accept_ra"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	var errs []error
	l.thread.do(func() {
		for _, n := range names {
			err := l.write(Sysctl{n, values[n]})
			if errors.Is(err, fs.ErrNotExist) {
				continue // the link is gone
			}
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}
