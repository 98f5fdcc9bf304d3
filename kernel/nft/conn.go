package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// bufferSize is of the socket's buffers: a transaction is one message to it.
const bufferSize = 64 << 20

// conn is one netlink socket. The kernel answers a request before sendmsg
// returns, and goes on with a dump when it is read, so nothing here waits.
type conn struct {
	nl   *netlink.Conn
	raw  syscall.RawConn
	port uint32 // by which the kernel names us in notifications
	// gen is the ruleset's generation if nobody else committed since it was
	// read back; 0 if that is not known. Only who commits uses it.
	gen uint32

	mu  sync.Mutex // guards what follows, and makes a request and its answers one
	seq uint32
	buf []byte
}

var (
	errLost        = errors.New("the kernel's answer did not fit the socket's buffer")
	errNoAnswer    = errors.New("the kernel did not answer")
	errInterrupted = errors.New("the ruleset changed during the dump")
	errMalformed   = errors.New("malformed message from the kernel")
)

// refused is the kernel's no to an operation.
type refused struct {
	op    operation
	errno unix.Errno
	text  string // the kernel's own words, where it has some
	index int    // of the operation, -1 for the transaction as such
}

func (e *refused) Error() string {
	s := fmt.Sprintf("%v: %v", e.op, e.errno)
	if e.text != "" {
		s += " (" + e.text + ")"
	}
	return s
}

func (e *refused) Unwrap() error { return e.errno }

func dial() (*conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	c := &conn{nl: nl, port: nl.PID(), buf: make([]byte, 256<<10)}
	err = errors.Join(nl.SetReadBuffer(bufferSize), nl.SetWriteBuffer(bufferSize),
		nl.SetOption(netlink.ExtendedAcknowledge, true), nl.SetOption(netlink.CapAcknowledge, true))
	if err == nil {
		c.raw, err = nl.SyscallConn()
	}
	if err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("set up a netfilter socket: %w", err)
	}
	return c, nil
}

func (c *conn) close() error { return c.nl.Close() }

// sibling opens another socket in this one's network namespace, from whichever
// thread.
func (c *conn) sibling() (*netlink.Conn, error) {
	ns := -1
	var err error
	ctl := c.raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS) })
	if err = errors.Join(ctl, err); err != nil {
		return nil, fmt.Errorf("find the socket's namespace: %w", err)
	}
	defer func() { _ = unix.Close(ns) }()
	return netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
}

func (c *conn) send(b []byte) error {
	var err error
	ctl := c.raw.Control(func(fd uintptr) {
		for {
			err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if err != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(ctl, err)
}

// receive reads one datagram; done says that there is none.
func (c *conn) receive() (b []byte, done bool, err error) {
	n := 0
	ctl := c.raw.Control(func(fd uintptr) {
		for {
			n, _, err = unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				return
			}
		}
	})
	switch {
	case ctl != nil:
		return nil, true, ctl
	case err == unix.EAGAIN:
		return nil, true, nil
	case err == unix.ENOBUFS:
		return nil, false, errLost
	case err != nil:
		return nil, true, err
	}
	return c.buf[:n], false, nil
}

// message is one netlink message; body begins with nfgenmsg's family.
type message struct {
	typ, flags uint16
	seq, port  uint32
	body       []byte
}

// nextMessage cuts the first message off b.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, errMalformed
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < unix.SizeofNlMsghdr || n > len(b) {
		return m, nil, errMalformed
	}
	m = message{
		typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
		seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]),
		body: b[unix.SizeofNlMsghdr:n],
	}
	return m, b[min(pad4(n), len(b)):], nil
}

// attr is the next attribute of a list; ok is false at its end, or where it is
// malformed.
func nextAttr(b []byte) (typ uint16, v, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < 4 || n > len(b) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[4:n], b[min(pad4(n), len(b)):], true
}

// nfAttrs are the attributes of a netfilter message and its family.
func (m *message) nfAttrs() (family, []byte) {
	if len(m.body) < 4 {
		return 0, nil
	}
	return family(m.body[0]), m.body[4:]
}

func attrString(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}

func attrUint32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

func attrUint64(v []byte) uint64 {
	if len(v) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}

// errorOf reads an NLMSG_ERROR message, whose payload begins with the errno.
func errorOf(m *message) (errno unix.Errno, text string) {
	if len(m.body) < 4+unix.SizeofNlMsghdr {
		return unix.EBADMSG, ""
	}
	errno = unix.Errno(-int32(binary.NativeEndian.Uint32(m.body)))
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return errno, ""
	}
	at := 4 + unix.SizeofNlMsghdr
	if m.flags&unix.NLM_F_CAPPED == 0 {
		at = 4 + pad4(int(binary.NativeEndian.Uint32(m.body[4:])))
	}
	for rest := m.body[min(max(at, 4), len(m.body)):]; ; {
		typ, v, next, ok := nextAttr(rest)
		if !ok {
			return errno, text
		}
		if typ == unix.NLMSGERR_ATTR_MSG {
			text = attrString(v)
		}
		rest = next
	}
}

// mostOperations is how many sequence numbers a transaction sets aside.
const mostOperations = 1 << 24

// newBatch starts a transaction. gen is the generation that it was computed
// from, 0 not to check it.
func (c *conn) newBatch(gen uint32) *batch {
	c.mu.Lock()
	b := &batch{seq: c.seq + 1}
	c.seq += mostOperations
	c.mu.Unlock()
	b.w.b = make([]byte, 0, 4096)
	at := c.batchEdge(b, unix.NFNL_MSG_BATCH_BEGIN, b.seq)
	if gen != 0 {
		b.w.u32(unix.NFNL_BATCH_GENID, gen)
	}
	b.end(at)
	return b
}

func (c *conn) batchEdge(b *batch, typ uint16, seq uint32) int {
	at := len(b.w.b)
	b.w.b = append(b.w.b, make([]byte, messageHeader)...)
	putHeader(b.w.b[at:], typ, 0, seq)
	binary.BigEndian.PutUint16(b.w.b[at+unix.SizeofNlMsghdr+2:], unix.NFNL_SUBSYS_NFTABLES)
	return at
}

// commit sends the transaction and reads what the kernel says to it. echoed
// has the handles of rules by sequence number. The error is a *refused if the
// kernel said no, which undid everything.
func (c *conn) commit(b *batch) (echoed map[uint32]uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The last operation is acknowledged, so that silence is not taken for yes.
	last := b.seq + uint32(len(b.ops))
	flags := binary.NativeEndian.Uint16(b.w.b[b.last+6:])
	binary.NativeEndian.PutUint16(b.w.b[b.last+6:], flags|unix.NLM_F_ACK)
	b.end(c.batchEdge(b, unix.NFNL_MSG_BATCH_END, last+1))
	if err := c.send(b.w.b); err != nil {
		return nil, fmt.Errorf("send a transaction: %w", err)
	}
	echoed = map[uint32]uint64{}
	acked := false
	for {
		in, done, rerr := c.receive()
		if done && rerr == nil {
			break
		}
		if rerr != nil {
			err = errors.Join(err, rerr)
			if done {
				return nil, err
			}
			continue
		}
		for len(in) > 0 {
			var m message
			var merr error
			if m, in, merr = nextMessage(in); merr != nil {
				err = errors.Join(err, merr)
				break
			}
			switch m.typ {
			case unix.NLMSG_ERROR:
				no := b.refusal(&m)
				acked = acked || no == nil && m.seq == last
				if no != nil && err == nil {
					err = no
				}
			case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE:
				_, attrs := m.nfAttrs()
				echoed[m.seq] = ruleHandle(attrs)
			}
		}
	}
	if err == nil && !acked {
		err = errNoAnswer
	}
	switch {
	case err == nil && c.gen != 0:
		c.gen++ // each commit is one generation
	case errors.Is(err, errNoAnswer):
		c.gen = 0
	}
	return echoed, err
}

// refusal finds the operation that an error message is about; nil for an
// acknowledgement, or an answer to something else.
func (b *batch) refusal(m *message) error {
	errno, text := errorOf(m)
	i := int(m.seq) - int(b.seq) - 1
	if errno == 0 || i < -1 || i >= len(b.ops) {
		return nil
	}
	e := &refused{errno: errno, text: text, index: i, op: operation{what: "transaction", object: object{name: "of " + TableName}}}
	if i >= 0 {
		e.op = b.ops[i]
	}
	return e
}

func ruleHandle(attrs []byte) (handle uint64) {
	for {
		typ, v, rest, ok := nextAttr(attrs)
		if !ok {
			return handle
		}
		if typ == unix.NFTA_RULE_HANDLE {
			return attrUint64(v)
		}
		attrs = rest
	}
}

// query sends one request and gives every answer to f. With errInterrupted
// all answers were given, but they may not be of one moment.
func (c *conn) query(typ uint16, dump bool, fam family, attrs func(*writer), f func(family, []byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	var w writer
	w.b = make([]byte, messageHeader, 128)
	flags := uint16(unix.NLM_F_ACK)
	if dump {
		flags = unix.NLM_F_DUMP
	}
	putHeader(w.b, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, c.seq)
	w.b[unix.SizeofNlMsghdr] = byte(fam)
	if attrs != nil {
		attrs(&w)
	}
	binary.NativeEndian.PutUint32(w.b, uint32(len(w.b)))
	if err := c.send(w.b); err != nil {
		return fmt.Errorf("send a request: %w", err)
	}
	var failed, interrupted error
	for {
		in, done, err := c.receive()
		if err != nil {
			failed = errors.Join(failed, err)
		}
		if done {
			if failed == nil {
				failed = errNoAnswer
			}
			return failed
		}
		for len(in) > 0 && err == nil {
			var m message
			if m, in, err = nextMessage(in); err != nil {
				failed = errors.Join(failed, err)
				break
			}
			if m.seq != c.seq {
				continue
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = errInterrupted
			}
			switch m.typ {
			case unix.NLMSG_ERROR:
				if errno, text := errorOf(&m); errno != 0 {
					failed = errors.Join(failed, &refused{errno: errno, text: text, op: operation{what: "read"}})
				}
				return errors.Join(failed, interrupted)
			case unix.NLMSG_DONE:
				return errors.Join(failed, interrupted)
			default:
				if failed == nil {
					fam, attrs := m.nfAttrs()
					failed = f(fam, attrs)
				}
			}
		}
	}
}
