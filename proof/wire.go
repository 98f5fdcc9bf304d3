package proof

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// link is one of the outside's links.
type link struct {
	name  string
	index int
	mac   net.HardwareAddr
}

// raw is a socket of a host that gets what is let in of one protocol.
type raw struct {
	fd       int
	protocol uint8
}

// pin keeps the calling thread on one processor until the function that it
// returns is called.
func pin(t testing.TB) func() {
	t.Helper()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	return func() { _ = unix.SchedSetaffinity(0, &before) }
}

// openWire opens the socket for all of the outside's frames and finds its
// links, which must be running.
func (w *World) openWire() {
	w.t.Helper()
	var err error
	w.outside.Do(func() {
		w.relayed.name = w.fence.From
		links := []*link{&w.hosts[0].beyond, &w.hosts[1].beyond, &w.relayed}
		for _, s := range w.slots {
			links = append(links, &s.wire)
		}
		for _, l := range links {
			var in *net.Interface
			if in, err = net.InterfaceByName(l.name); err != nil {
				return
			}
			l.index, l.mac = in.Index, in.HardwareAddr
		}
		w.wire, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(
				unix.SetsockoptInt(w.wire, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
				unix.SetsockoptInt(w.wire, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
				unix.Bind(w.wire, &unix.SockaddrLinklayer{Protocol: 0x0300 /* all, in network order */}))
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range w.slots {
		w.places[s.wire.index] = s.name
	}
	for _, h := range w.hosts {
		w.places[h.beyond.index] = Outside
	}
	w.t.Cleanup(func() { _ = unix.Close(w.wire) })
}

// openRaw opens the host's sockets.
func (h *host) openRaw() {
	h.t.Helper()
	var fds []int
	open := func(domain, protocol int) (int, error) {
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err == nil {
			fds = append(fds, fd)
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		}
		return fd, err
	}
	var err error
	h.ns.Do(func() {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			for _, p := range protocols {
				var fd int
				if fd, err = open(domain, int(p)); err != nil {
					return
				}
				h.raws = append(h.raws, raw{fd, p})
			}
		}
		if h.send4, err = open(unix.AF_INET, unix.IPPROTO_RAW); err == nil {
			if h.send6, err = open(unix.AF_INET6, unix.IPPROTO_RAW); err == nil {
				err = unix.SetsockoptInt(h.send6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1)
			}
		}
	})
	h.t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// Outside is the place that packets arrive at which are for nobody here.
const Outside = "outside"

// Arrival is where a packet arrived, and as what: its ends may be translated.
type Arrival struct {
	Place            string
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // or, of ICMP, the identifier
}

// Send sends packets and returns, for each, where it arrived; it returns when
// no packet is on its way any more. What arrives with other ends than those of
// the packet and those that seen gives for it, is not it; a source that it does not give may be any.
func (w *World) Send(packets []Packet, seen func(Packet) Ends) [][]Arrival {
	w.t.Helper()
	arrived := make([][]Arrival, len(packets))
	const most = 100 // at once, far fewer than a queue of the kernel holds
	for start := 0; start < len(packets); start += most {
		end := min(start+most, len(packets))
		w.sendSome(packets[start:end], arrived[start:end], seen)
	}
	return arrived
}

func (w *World) sendSome(packets []Packet, arrived [][]Arrival, seen func(Packet) Ends) {
	w.t.Helper()
	first := w.nextID
	w.nextID += uint32(len(packets)) + 1
	fence := w.nextID - 1
	pinned(w.t, func() {
		for i := range packets {
			w.emit(packets[i], first+uint32(i))
		}
		w.emit(w.fence, fence)
	})
	arrive := func(id uint32, a Arrival, check func(Packet) bool) {
		if i := int(id) - int(first); i >= 0 && i < len(packets) && check(packets[i]) {
			arrived[i] = append(arrived[i], a)
		}
	}
	for through := false; !through; {
		fds := []unix.PollFd{{Fd: int32(w.wire), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(timeout.Milliseconds())); n == 0 || err != nil && err != unix.EINTR {
			w.t.Fatalf("waited %s for the last packet: %v", timeout, err)
		} else if err != nil {
			continue
		}
		n, from, err := unix.Recvfrom(w.wire, w.frame, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		ip := w.frame[min(n, 14):n]
		id := idOf(ip)
		a, protocol, ok := header(ip)
		if id == 0 || !ok {
			continue // of the kernel's own
		}
		through = id == fence
		a.Place = w.places[from.(*unix.SockaddrLinklayer).Ifindex]
		arrive(id, a, func(p Packet) bool { // and not one that is about it
			as := seen(p)
			return (a.Src == p.Src || a.Src == as.Src || !as.Src.IsValid()) && (a.Dst == p.Dst || a.Dst == as.Dst) && p.Protocol == protocol
		})
	}
	for _, h := range w.hosts {
		for _, r := range h.raws {
			for {
				n, _, err := unix.Recvfrom(r.fd, w.frame, unix.MSG_DONTWAIT)
				if err == unix.EAGAIN {
					break
				} else if err != nil {
					w.t.Fatal(err)
				}
				arrive(idOf(w.frame[:n]), Arrival{Place: h.name}, func(p Packet) bool { return p.Protocol == r.protocol && w.owner[p.Dst] == h.name })
			}
		}
	}
}

// emit sends one packet from its place.
func (w *World) emit(p Packet, id uint32) {
	w.t.Helper()
	var l link
	if p.From == w.relayed.name {
		l = w.relayed
	}
	for _, h := range w.hosts {
		switch p.From {
		case h.name:
			h.emit(p, p.bytes(id))
			return
		case h.beyond.name:
			l = h.beyond
		}
	}
	if s := w.slot(p.From); s != nil {
		l = s.wire
	}
	if l.name == "" {
		w.t.Fatalf("no place %q", p.From)
	}
	to, _ := net.ParseMAC(hostMAC)
	from := l.mac
	if p.MAC != "" {
		from, _ = net.ParseMAC(p.MAC)
	}
	etherType := uint16(unix.ETH_P_IP)
	if p.Dst.Is6() {
		etherType = unix.ETH_P_IPV6
	}
	frame := append(binary.BigEndian.AppendUint16(append(to, from...), etherType), p.bytes(id)...)
	if err := unix.Sendto(w.wire, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.index, Halen: 6}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *World) slot(name string) *slot {
	for _, s := range w.slots {
		if s.name == name {
			return s
		}
	}
	return nil
}

// emit has the host send a packet of its own. That it may not be sent is one
// way of not arriving.
func (h *host) emit(p Packet, b []byte) {
	h.t.Helper()
	var err error
	if p.Dst.Is4() {
		err = unix.Sendto(h.send4, b, 0, &unix.SockaddrInet4{Addr: p.Dst.As4()})
	} else {
		err = unix.Sendto(h.send6, b, 0, &unix.SockaddrInet6{Addr: p.Dst.As16()})
	}
	if err != nil && !errors.Is(err, unix.EPERM) {
		h.t.Fatalf("%s: send %s: %v", h.name, p, err)
	}
}

// Forget has both hosts forget all connections, so that none decides what
// comes next.
func (w *World) Forget() {
	w.t.Helper()
	for _, h := range w.hosts {
		ns, err := netns.GetFromName(h.ns.Name)
		if err != nil {
			w.t.Fatal(err)
		}
		handle, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
		if err == nil {
			err = handle.ConntrackTableFlush(netlink.ConntrackTable)
			handle.Close()
		}
		_ = ns.Close()
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// isHost says that a place is a host.
func isHost(place string) bool { return strings.HasPrefix(place, "h") && !strings.Contains(place, "/") }
