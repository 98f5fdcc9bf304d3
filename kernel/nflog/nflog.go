package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

// ErrBusy says that another program reads the group.
var ErrBusy = errors.New("another program reads it")

var errNoAnswer = errors.New("the kernel did not answer")

// Options say what to read.
type Options struct {
	Group  uint16
	Copy   int // bytes of each packet that are looked at; 0 is 128
	Buffer int // bytes that the kernel holds until they are read; 0 is 8 MiB
}

// Reader reads the packets of one group.
type Reader struct {
	nl   *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
	next uint32 // number of the next packet, if none is lost
}

// Of the messages and attributes of nfnetlink_log, those that are used here.
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8
	msgConfig = msgPacket | 1

	cfgCommand = 1
	cfgMode    = 2
	cfgSize    = 3
	cfgTimeout = 4
	cfgFlags   = 6

	commandBind    = 1
	copyPacket     = 2
	flagSequence   = 1
	sizeofNfgenmsg = 4
)

// What the kernel collects before it wakes the reader: so many bytes, a hundred
// packets, or what came in a tenth of a second.
const (
	batchSize    = 32 << 10
	batchTimeout = 10 // in hundredths of a second
)

// Open takes the group, in the calling thread's network namespace. The error is
// ErrBusy if another program has it.
func Open(opts Options) (*Reader, error) {
	if opts.Copy == 0 {
		opts.Copy = 128
	}
	if opts.Buffer == 0 {
		opts.Buffer = 8 << 20
	}
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	r := &Reader{nl: nl, buf: make([]byte, 2*batchSize)}
	if r.raw, err = nl.SyscallConn(); err == nil {
		err = errors.Join(nl.SetReadBuffer(opts.Buffer), r.bind(opts))
	}
	if err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("take nflog group %d: %w", opts.Group, err)
	}
	return r, nil
}

// Close gives the group back.
func (r *Reader) Close() error { return r.nl.Close() }

// Run hands each packet on, in order, until ctx ends or the socket fails; then
// it closes the reader. While each is busy the kernel collects, and what it
// cannot hold is lost.
func (r *Reader) Run(ctx context.Context, each func(Packet)) error {
	defer func() { _ = r.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = r.nl.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		b, err := r.receive()
		switch {
		case err == nil:
			r.take(b, each)
		case errors.Is(err, unix.ENOBUFS): // the numbers tell how many it were
		case ctx.Err() == nil:
			return fmt.Errorf("read nflog: %w", err)
		}
	}
	return nil
}

// receive waits for a datagram.
func (r *Reader) receive() (b []byte, err error) {
	n := 0
	ctl := r.raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), r.buf, unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if ctl != nil {
		return nil, ctl
	}
	return r.buf[:max(n, 0)], err
}

// take hands on the packets of a datagram. A gap in their numbers is loss.
func (r *Reader) take(b []byte, each func(Packet)) {
	for p := range packets(b) {
		if p.numbered {
			p.Lost = p.number - r.next
			r.next = p.number + 1
		}
		each(p.Packet)
	}
}

// bind asks for the group and for what it is to be sent as, in one message: no
// packet comes in between that is not numbered. It leaves alone which logger
// the namespace uses for what names no group.
func (r *Reader) bind(opts Options) error {
	const seq = 1
	b := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}
	b = binary.BigEndian.AppendUint16(b, opts.Group)
	b = nlattr.Append(b, cfgCommand, []byte{commandBind})
	b = nlattr.Append(b, cfgMode, append(binary.BigEndian.AppendUint32(nil, uint32(opts.Copy)), copyPacket, 0))
	b = nlattr.Append(b, cfgSize, binary.BigEndian.AppendUint32(nil, batchSize))
	b = nlattr.Append(b, cfgTimeout, binary.BigEndian.AppendUint32(nil, batchTimeout))
	b = nlattr.Append(b, cfgFlags, binary.BigEndian.AppendUint16(nil, flagSequence))
	m := netlink.Message{Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge, Sequence: seq}, Data: b}
	m.Header.Length = uint32(unix.SizeofNlMsghdr + len(b))
	text, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	ctl := r.raw.Control(func(fd uintptr) {
		err = unix.Sendto(int(fd), text, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			err = r.answer(int(fd), seq)
		}
	})
	return errors.Join(ctl, err)
}

// answer reads what the kernel said to a request before it returned from
// sending it. Packets may have come first; they count as lost.
func (r *Reader) answer(fd int, seq uint32) error {
	for {
		n, _, err := unix.Recvfrom(fd, r.buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR || err == unix.ENOBUFS:
			continue
		case err == unix.EAGAIN:
			return errNoAnswer
		case err != nil:
			return err
		}
		for m := range messages(r.buf[:n]) {
			if m.typ == unix.NLMSG_ERROR && m.seq == seq && len(m.body) >= 4 {
				return failure(unix.Errno(-int32(binary.NativeEndian.Uint32(m.body))))
			}
		}
	}
}

// failure tells a group that is taken. The kernel says EPERM to who wants
// another's; without privilege it says so too, but then nothing else works.
func failure(errno unix.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EPERM, unix.EBUSY, unix.EEXIST:
		return fmt.Errorf("%w (%w)", ErrBusy, errno)
	default:
		return errno
	}
}
