package qdisc

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"

	"tortie/desired"
	"tortie/internal/nlattr"
	"tortie/kernel/link"
)

// What the kernel's headers call these, and golang.org/x/sys does not have.
const (
	sizeofTcmsg = 20

	rootParent    = 0xffffffff // TC_H_ROOT
	clsactParent  = 0xfffffff1 // TC_H_CLSACT, and TC_H_INGRESS
	clsactHandle  = 0xffff0000
	ingressParent = 0xfffffff2 // of filters: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
	egressParent  = 0xfffffff3

	tbfParms  = 1 // TCA_TBF_PARMS
	tbfRate64 = 4
	tbfPeak64 = 5
	tbfBurst  = 6
	tbfLeast  = 7 // TCA_TBF_PBURST

	u32Select   = 5 // TCA_U32_SEL
	u32Act      = 7 // TCA_U32_ACT
	u32Terminal = 1

	actKind     = 1 // TCA_ACT_KIND
	actOptions  = 2
	mirredParms = 2 // TCA_MIRRED_PARMS
	actStolen   = 4 // TC_ACT_STOLEN
	redirect    = 1 // TCA_EGRESS_REDIR

	inet6AddrGenMode = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenNone      = 1

	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS

	tick = 64 // nanoseconds in a tick of the packet scheduler
)

// bucket is a tbf as it is written.
type bucket struct {
	desired.Shape
	queue uint32 // bytes that may wait
}

// makeBucket fits a shape to a link: a bucket that is smaller than a packet
// would let none pass.
func makeBucket(s desired.Shape, mtu uint32) bucket {
	packet := mtu + 18 // Ethernet and a VLAN tag
	s.Burst = max(s.Burst, packet)
	if s.Peak != 0 {
		s.Least = max(s.Least, packet)
	}
	return bucket{s, queue(s.Rate)}
}

// queue is what may wait: as much as leaves within 50 ms, but room for two of
// the largest packets that the kernel puts together.
func queue(rate uint64) uint32 {
	return uint32(min(max(rate/20, 128<<10), math.MaxUint32))
}

func tcmsg(index int, handle, parent, info uint32) []byte {
	b := make([]byte, 4, 128)
	for _, v := range []uint32{uint32(index), handle, parent, info} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// tbf is the request that makes, or changes, the root qdisc of a link.
func tbf(index int, b bucket) []byte {
	parms := rateSpec(nil, b.Rate)
	parms = rateSpec(parms, b.Peak)
	parms = binary.NativeEndian.AppendUint32(parms, b.queue)
	parms = append(parms, make([]byte, 8)...) // burst and least, in ticks: given in bytes below
	opts := nlattr.Append(nil, tbfParms, parms)
	opts = appendRate64(opts, tbfRate64, b.Rate)
	opts = nlattr.Append32(opts, tbfBurst, b.Burst)
	if b.Peak != 0 {
		opts = appendRate64(opts, tbfPeak64, b.Peak)
		opts = nlattr.Append32(opts, tbfLeast, b.Least)
	}
	msg := nlattr.Append(tcmsg(index, Handle, rootParent, 0), unix.TCA_KIND, []byte("tbf\x00"))
	return nlattr.Append(msg, unix.TCA_OPTIONS, opts)
}

// rateSpec appends a struct tc_ratespec: no overhead, link layer Ethernet.
func rateSpec(b []byte, rate uint64) []byte {
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	return binary.NativeEndian.AppendUint32(b, uint32(min(rate, math.MaxUint32)))
}

func appendRate64(b []byte, typ uint16, rate uint64) []byte {
	if rate <= math.MaxUint32 {
		return b
	}
	return nlattr.Append(b, typ, binary.NativeEndian.AppendUint64(nil, rate))
}

// redirectAll is the request for a filter that sends all that comes in by a
// link to another.
func redirectAll(index int, pref uint16, to int) []byte {
	mirred := make([]byte, 8, 28)
	for _, v := range []uint32{actStolen, 0, 0, redirect, uint32(to)} {
		mirred = binary.NativeEndian.AppendUint32(mirred, v)
	}
	act := nlattr.Append(nil, actKind, []byte("mirred\x00"))
	act = nlattr.Append(act, actOptions|unix.NLA_F_NESTED, nlattr.Append(nil, mirredParms, mirred))
	selector := make([]byte, 32)
	selector[0], selector[2] = u32Terminal, 1 // one key, which matches anything
	opts := nlattr.Append(nil, u32Select, selector)
	opts = nlattr.Append(opts, u32Act|unix.NLA_F_NESTED, nlattr.Append(nil, 1|unix.NLA_F_NESTED, act))
	msg := nlattr.Append(filterHead(index, pref), unix.TCA_KIND, []byte("u32\x00"))
	return nlattr.Append(msg, unix.TCA_OPTIONS|unix.NLA_F_NESTED, opts)
}

// filterHead names all filters of one preference.
func filterHead(index int, pref uint16) []byte {
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	return tcmsg(index, 0, ingressParent, uint32(pref)<<16|uint32(all))
}

func ifinfo(index int, flags uint32) []byte {
	b := make([]byte, 4, 128)
	for _, v := range []uint32{uint32(index), flags, flags} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// newIFB makes a link.
func newIFB(name string) []byte {
	b := nlattr.Append(ifinfo(0, 0), unix.IFLA_IFNAME, append([]byte(name), 0))
	b = nlattr.Append32(b, unix.IFLA_NUM_TX_QUEUES, 1)
	return nlattr.Append(b, unix.IFLA_LINKINFO, nlattr.Append(nil, unix.IFLA_INFO_KIND, []byte("ifb\x00")))
}

// setIFB marks it as ours and sets it up. It needs no address.
func setIFB(index int) []byte {
	b := nlattr.Append(ifinfo(index, unix.IFF_UP), unix.IFLA_IFALIAS, []byte(link.Alias))
	inet6 := nlattr.Append(nil, inet6AddrGenMode, []byte{addrGenNone})
	return nlattr.Append(b, unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nlattr.Append(nil, unix.AF_INET6|unix.NLA_F_NESTED, inet6))
}

// device is a link as it is listed.
type device struct {
	index       int
	name, alias string
	kind        string
	mtu         uint32
	up          bool
}

func parseDevice(b []byte) (d device, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return d, false
	}
	d.index = int(nlattr.Uint32(b[4:]))
	d.up = nlattr.Uint32(b[8:])&unix.IFF_UP != 0
	for typ, v := range nlattr.All(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			d.name = unix.ByteSliceToString(v)
		case unix.IFLA_IFALIAS:
			d.alias = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			d.mtu = nlattr.Uint32(v)
		case unix.IFLA_LINKINFO:
			for typ, v := range nlattr.All(v) {
				if typ == unix.IFLA_INFO_KIND {
					d.kind = unix.ByteSliceToString(v)
				}
			}
		}
	}
	return d, d.name != ""
}

// discipline is a qdisc as it is listed, with the parameters of a tbf. The
// kernel keeps bursts as the time that they take.
type discipline struct {
	index          int
	handle, parent uint32
	kind           string
	rate, peak     uint64
	queue          uint32
	burst, least   uint32 // ticks
}

func parseDiscipline(b []byte) (q discipline, ok bool) {
	if len(b) < sizeofTcmsg {
		return q, false
	}
	q.index, q.handle, q.parent = int(nlattr.Uint32(b[4:])), nlattr.Uint32(b[8:]), nlattr.Uint32(b[12:])
	for typ, v := range nlattr.All(b[sizeofTcmsg:]) {
		switch typ {
		case unix.TCA_KIND:
			q.kind = unix.ByteSliceToString(v)
		case unix.TCA_OPTIONS:
			if q.kind == "tbf" {
				q.parseTBF(v)
			}
		}
	}
	return q, q.kind != ""
}

func (q *discipline) parseTBF(opts []byte) {
	for typ, v := range nlattr.All(opts) {
		switch {
		case typ == tbfParms && len(v) >= 36:
			q.rate, q.peak = max(q.rate, uint64(nlattr.Uint32(v[8:]))), max(q.peak, uint64(nlattr.Uint32(v[20:])))
			q.queue, q.burst, q.least = nlattr.Uint32(v[24:]), nlattr.Uint32(v[28:]), nlattr.Uint32(v[32:])
		case typ == tbfRate64 && len(v) >= 8:
			q.rate = binary.NativeEndian.Uint64(v)
		case typ == tbfPeak64 && len(v) >= 8:
			q.peak = binary.NativeEndian.Uint64(v)
		}
	}
}

// is says whether a tbf is what was asked for.
func (q *discipline) is(b bucket) bool {
	return q.rate == b.Rate && q.peak == b.Peak && q.queue == b.queue && takes(q.burst, b.Burst, b.Rate) &&
		(b.Peak == 0 || takes(q.least, b.Least, b.Peak))
}

// takes compares a time in ticks, of which the kernel tells 32 bits, with what
// so many bytes take. It reckons with a factor of at least 31 bits.
func takes(ticks, size uint32, rate uint64) bool {
	want := uint64(float64(size) * (1e9 / tick) / float64(rate))
	return math.Abs(float64(int32(ticks-uint32(want)))) <= float64(want>>28)+2
}

// filter is a filter at a link's ingress as it is listed.
type filter struct {
	pref uint16
	kind string
	to   int // where it redirects all that it sees, 0 for something else
	node bool
}

func parseFilter(b []byte) (f filter, ok bool) {
	if len(b) < sizeofTcmsg {
		return f, false
	}
	f.pref = uint16(nlattr.Uint32(b[16:]) >> 16)
	for typ, v := range nlattr.All(b[sizeofTcmsg:]) {
		switch typ {
		case unix.TCA_KIND:
			f.kind = unix.ByteSliceToString(v)
		case unix.TCA_OPTIONS:
			if f.kind == "u32" {
				f.parseU32(v)
			}
		}
	}
	return f, f.kind != ""
}

func (f *filter) parseU32(opts []byte) {
	all, to := false, 0
	for typ, v := range nlattr.All(opts) {
		switch typ {
		case u32Select:
			f.node = true
			all = len(v) >= 24 && v[2] == 1 && nlattr.Uint32(v[16:]) == 0
		case u32Act:
			to = parseRedirect(v)
		}
	}
	if all {
		f.to = to
	}
}

// parseRedirect returns where a single action redirects to.
func parseRedirect(acts []byte) (to int) {
	n := 0
	for _, act := range nlattr.All(acts) {
		n++
		kind := ""
		for typ, v := range nlattr.All(act) {
			switch typ {
			case actKind:
				kind = unix.ByteSliceToString(v)
			case actOptions:
				for typ, v := range nlattr.All(v) {
					if typ == mirredParms && kind == "mirred" && len(v) >= 28 &&
						nlattr.Uint32(v[8:]) == actStolen && nlattr.Uint32(v[20:]) == redirect {
						to = int(nlattr.Uint32(v[24:]))
					}
				}
			}
		}
	}
	if n != 1 {
		return 0
	}
	return to
}

func clsact(index int) []byte {
	return nlattr.Append(tcmsg(index, clsactHandle, clsactParent, 0), unix.TCA_KIND, []byte("clsact\x00"))
}

func attrName(name string) []byte {
	return nlattr.Append(nil, unix.IFLA_IFNAME, append([]byte(name), 0))
}
