package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tortie/internal/nlattr"
)

// conn is a route netlink socket that sends many requests with one system
// call. The kernel works on them within that call, so the answers are there
// when it returns.
type conn struct {
	fd   int
	port uint32 // how the kernel names the socket in notifications
	seq  uint32
	buf  []byte // for answers
}

const (
	batchMessages = 512       // bounds the answers that wait in the receive buffer
	receiveBuffer = 4 << 20   // bytes
	answerBuffer  = 256 << 10 // bytes; the kernel makes dumps of at most 32 KiB
	dumpAttempts  = 20
)

var errInterrupted = errors.New("the table changed while it was read")

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conn{fd: fd, buf: make([]byte, answerBuffer)}
	if err := c.setUp(); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) setUp() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	addr, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.port = addr.(*unix.SockaddrNetlink).Pid
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return err
		}
	}
	// A lost answer must not block for ever.
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
}

func (c *conn) close() error { return os.NewSyscallError("close", unix.Close(c.fd)) }

// request is one message to the kernel without its header.
type request struct {
	typ, flags uint16
	body       []byte
}

// answer is one message from the kernel.
type answer struct {
	typ, flags uint16
	seq, port  uint32
	body       []byte
}

// dump calls start and then each with every object of a table, again from
// start if the table changed meanwhile.
func (c *conn) dump(ctx context.Context, r request, start func(), each func(typ uint16, body []byte)) error {
	r.flags |= unix.NLM_F_DUMP
	err := errInterrupted
	for i := 0; i < dumpAttempts && errors.Is(err, errInterrupted) && ctx.Err() == nil; i++ {
		start()
		err = c.dumpOnce(r, each)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *conn) dumpOnce(r request, each func(typ uint16, body []byte)) error {
	c.seq++
	seq, interrupted := c.seq, false
	if err := c.send(appendRequest(nil, r, seq)); err != nil {
		return err
	}
	for {
		answers, err := c.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.seq != seq {
				continue // left over from a request that was given up
			}
			interrupted = interrupted || a.flags&unix.NLM_F_DUMP_INTR != 0
			switch a.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := answerError(a); err != nil {
					return err
				}
				if interrupted {
					return errInterrupted
				}
				return nil
			default:
				each(a.typ, a.body)
			}
		}
	}
}

// batch sends the requests, in order, and returns what became of each. Objects
// the kernel sends back go to reply with the index of the request.
func (c *conn) batch(ctx context.Context, requests []request, reply func(i int, body []byte)) []error {
	errs := make([]error, len(requests))
	for from := 0; from < len(requests); from += batchMessages {
		to := min(from+batchMessages, len(requests))
		err := ctx.Err()
		if err == nil {
			err = c.chunk(requests[from:to], errs[from:to], func(i int, body []byte) { reply(from+i, body) })
		}
		if err == nil {
			continue
		}
		for i := from; i < to; i++ {
			errs[i] = err // unknown what became of it
		}
	}
	return errs
}

func (c *conn) chunk(requests []request, errs []error, reply func(i int, body []byte)) error {
	first := c.seq + 1
	c.seq += uint32(len(requests))
	var b []byte
	for i, r := range requests {
		if i == len(requests)-1 {
			r.flags |= unix.NLM_F_ACK // the others speak up only if they fail
		}
		b = appendRequest(b, r, first+uint32(i))
	}
	if err := c.send(b); err != nil {
		return err
	}
	for {
		answers, err := c.receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			i := int(a.seq - first)
			if i < 0 || i >= len(requests) {
				continue
			}
			if a.typ != unix.NLMSG_ERROR {
				reply(i, a.body)
				continue
			}
			errs[i] = answerError(a)
			if i == len(requests)-1 {
				return nil
			}
		}
	}
}

func (c *conn) send(b []byte) error {
	return os.NewSyscallError("sendto", unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// receive returns the messages of one datagram, valid until the next one.
func (c *conn) receive() ([]answer, error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid == 0 { // from the kernel
			return splitAnswers(c.buf[:n]), nil
		}
	}
}

func splitAnswers(b []byte) []answer {
	var out []answer
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			break
		}
		out = append(out, answer{
			typ:   binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			port:  binary.NativeEndian.Uint32(b[12:]),
			body:  b[unix.SizeofNlMsghdr:n],
		})
		b = b[min(align(n), len(b)):]
	}
	return out
}

// answerError is the error that an acknowledgement or the end of a dump
// carries, with the kernel's words where it has any.
func answerError(a answer) error {
	if len(a.body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(a.body))
	if errno == 0 {
		return nil
	}
	err := error(unix.Errno(errno))
	if a.flags&unix.NLM_F_ACK_TLVS == 0 {
		return err
	}
	skip := 4
	if a.typ == unix.NLMSG_ERROR {
		skip += unix.SizeofNlMsghdr // of the request
	}
	for typ, v := range nlattr.All(a.body[min(skip, len(a.body)):]) {
		if typ == unix.NLMSGERR_ATTR_MSG {
			err = fmt.Errorf("%w: %s", err, unix.ByteSliceToString(v))
		}
	}
	return err
}

func appendRequest(b []byte, r request, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(r.body)))
	b = binary.NativeEndian.AppendUint16(b, r.typ)
	b = binary.NativeEndian.AppendUint16(b, r.flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, r.body...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func align(n int) int { return (n + 3) &^ 3 }
