package agent

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tortie/internal/nstest"
)

// wire is a guest's interface as a thing that takes and gives whole frames.
type wire struct {
	t   *testing.T
	fd  int
	mac net.HardwareAddr
	gw  net.HardwareAddr // to which it sends
}

// wire opens an interface of a guest for frames.
func (h *testHost) wire(g *guest) *wire {
	h.t.Helper()
	w := &wire{t: h.t}
	w.gw, _ = net.ParseMAC(hostMAC)
	var err error
	g.ns.Do(func() {
		var in *net.Interface
		if in, err = net.InterfaceByName("eth0"); err != nil {
			return
		}
		w.mac = in.HardwareAddr
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: 0x0300 /* all, in network order */, Ifindex: in.Index})
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// to has it send to an interface of the host that is no guest's.
func (w *wire) to(host *nstest.NS, name string) {
	w.t.Helper()
	var err error
	host.Do(func() {
		var in *net.Interface
		if in, err = net.InterfaceByName(name); err == nil {
			w.gw = in.HardwareAddr
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// send sends a frame to the host from the guest's own MAC.
func (w *wire) send(etherType uint16, payload []byte) {
	w.t.Helper()
	w.sendFrom(w.mac, etherType, payload)
}

func (w *wire) sendFrom(mac net.HardwareAddr, etherType uint16, payload []byte) {
	w.t.Helper()
	to := slices.Clone(w.gw)
	if etherType == unix.ETH_P_ARP {
		to = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	b := binary.BigEndian.AppendUint16(append(to, mac...), etherType)
	if _, err := unix.Write(w.fd, append(b, payload...)); err != nil {
		w.t.Fatal(err)
	}
}

// packet sends an IP packet.
func (w *wire) packet(p []byte) {
	w.t.Helper()
	w.send(etherType(p), p)
}

func etherType(p []byte) uint16 {
	if p[0]>>4 == 6 {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// await reads frames until one is as it should be.
func (w *wire) await(what string, is func(frame []byte) bool) []byte {
	w.t.Helper()
	b := make([]byte, 65536)
	for range 100000 {
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(timeout.Milliseconds())); err == unix.EINTR {
			continue
		} else if n == 0 || err != nil {
			break
		}
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING && is(b[:n]) {
			return b[:n]
		}
	}
	w.t.Fatalf("waited %s for %s", timeout, what)
	return nil
}

// all reads the frames that have come in so far.
func (w *wire) all(each func(frame []byte)) {
	w.t.Helper()
	b := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(w.fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			w.t.Fatal(err)
		case from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING:
			each(b[:n])
		}
	}
}

// ipPacket makes a packet, with the checksums of what it carries.
func ipPacket(from, to string, protocol uint8, payload []byte) []byte {
	source, dest := netip.MustParseAddr(from), netip.MustParseAddr(to)
	at, summed := map[uint8]int{unix.IPPROTO_UDP: 6, unix.IPPROTO_TCP: 16, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}[protocol]
	var pseudo []byte
	if protocol != unix.IPPROTO_ICMP {
		pseudo = append(append(pseudo, source.AsSlice()...), dest.AsSlice()...)
		pseudo = append(pseudo, 0, protocol, byte(len(payload)>>8), byte(len(payload)))
	}
	if summed {
		binary.BigEndian.PutUint16(payload[at:], nstest.Checksum(append(pseudo, payload...)))
	}
	if source.Is6() {
		b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, 64}
		return append(append(append(b, source.AsSlice()...), dest.AsSlice()...), payload...)
	}
	n := 20 + len(payload)
	b := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, protocol, 0, 0}
	b = append(append(b, source.AsSlice()...), dest.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], nstest.Checksum(b))
	return append(b, payload...)
}

func udpSegment(from, to uint16, data string) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

// sctpInit is a packet that opens an association.
func sctpInit(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // its tag, and the checksum
	b = append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0x40, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

func tcpSegment(from, to uint16, seq, ack uint32, flags byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	return append(b, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
}

// icmpMessage is one with an identifier, a sequence number and some data.
func icmpMessage(typ, code byte, id, seq uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{typ, code, 0, 0}, id)
	return append(binary.BigEndian.AppendUint16(b, seq), "data"...)
}

// arpMessage claims that from is at mac, and asks for (1), or tells (2), to.
func arpMessage(operation byte, mac net.HardwareAddr, from, to string) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, mac...)
	b = append(append(b, netip.MustParseAddr(from).AsSlice()...), make([]byte, 6)...)
	return append(b, netip.MustParseAddr(to).AsSlice()...)
}

// neighbourMessage is a solicitation of target with the source's MAC, or an
// advertisement that target is there.
func neighbourMessage(advert bool, mac net.HardwareAddr, target string) []byte {
	typ, flags, option := byte(135), byte(0), byte(1)
	if advert {
		typ, flags, option = 136, 0x20, 2
	}
	b := append([]byte{typ, 0, 0, 0, flags, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
	return append(append(b, option, 1), mac...)
}

// neighbourPacket carries a neighbour message, whose hop limit must be 255.
func neighbourPacket(from, to string, message []byte) []byte {
	p := ipPacket(from, to, unix.IPPROTO_ICMPV6, message)
	p[7] = 255
	return p
}
