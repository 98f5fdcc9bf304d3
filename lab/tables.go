package lab

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DropTables removes tortie's nftables tables from a host's kernel, as a
// foreign hand would. A table that is not there is fine.
func (l *Lab) DropTables(host string) error {
	if _, err := l.host(host); err != nil {
		return err
	}
	for _, family := range []byte{unix.NFPROTO_INET, unix.NFPROTO_ARP} {
		err := l.In(host, func() error { return dropTable(family, "tortie") })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove a table of %s: %w", host, err)
		}
	}
	return nil
}

// dropTable removes a table of the calling thread's namespace: a transaction
// of one message, between the two that mark its begin and end.
func dropTable(family byte, name string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	attribute := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(name)+1))
	attribute = binary.NativeEndian.AppendUint16(attribute, unix.NFTA_TABLE_NAME)
	attribute = append(append(attribute, name...), 0)
	var batch []byte
	batch = appendMessage(batch, unix.NFNL_MSG_BATCH_BEGIN, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES})
	batch = appendMessage(batch, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attribute...))
	batch = appendMessage(batch, unix.NFNL_MSG_BATCH_END, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES})
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is not understood")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

func appendMessage(b []byte, kind, flags uint16, payload []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number and port
	b = append(b, payload...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}
