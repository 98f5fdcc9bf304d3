package desired

import "strconv"

// Controls are the limits and marks of a workload interface; one that has none
// is not in the table.
type Controls struct {
	Index   int
	Ingress Limits // of what is sent to the endpoint
	Egress  Limits // of what it sends
	Mark    bool   // give what it sends the code point DSCP
	DSCP    uint8
}

// Limits are those of one direction; a zero one is none.
type Limits struct {
	Shape
	PacketRate  uint32 // a second
	PacketBurst uint32
	Connections uint32 // TCP, at a time
}

// Shape is a token bucket, in bytes and bytes a second.
type Shape struct {
	Rate  uint64
	Burst uint32
	Peak  uint64 // 0 for none
	Least uint32 // the burst at the peak rate; 0 for one packet
}

// OnPackets says whether there are others than of the bandwidth.
func (c Controls) OnPackets() bool {
	count := func(l Limits) bool { return l.PacketRate != 0 || l.Connections != 0 }
	return c.Mark || count(c.Ingress) || count(c.Egress)
}

// String is the controls as they are shown.
func (c Controls) String() string {
	var f fields
	f.add("index", strconv.Itoa(c.Index))
	f.addLimits("ingress", c.Ingress)
	f.addLimits("egress", c.Egress)
	if c.Mark {
		f.add("dscp", strconv.Itoa(int(c.DSCP)))
	}
	return f.String()
}

func (f *fields) addLimits(name string, l Limits) {
	number := func(key string, v uint64) {
		if v != 0 {
			f.add(name+"-"+key, strconv.FormatUint(v, 10))
		}
	}
	number("rate", l.Rate)
	number("burst", uint64(l.Burst))
	number("peak", l.Peak)
	number("least", uint64(l.Least))
	number("packets", uint64(l.PacketRate))
	number("packet-burst", uint64(l.PacketBurst))
	number("connections", uint64(l.Connections))
}
