package calc

import (
	"cmp"

	"tortie/api"
	"tortie/desired"
)

// Upstream's values for what is not given.
const (
	defaultBurst       = 4294967296 // bits
	defaultPacketBurst = 5
)

// setControls writes the limits and marks of an interface; none if l is nil. It
// reports whether connections that there are have to be looked at for the first
// time: which of them are is remembered with the verdict.
func setControls(d *desired.State, name string, index int, l *local) (first bool) {
	var c desired.Controls
	if l != nil && l.qos != nil {
		c = desired.Controls{Ingress: limits(l.qos.Limits(api.Ingress)), Egress: limits(l.qos.Limits(api.Egress)), Mark: l.qos.DSCP.Set, DSCP: l.qos.DSCP.Value}
	}
	if c == (desired.Controls{}) {
		d.Controls.Delete(name)
		return false
	}
	c.Index = index
	old, _ := d.Controls.Get(name)
	d.Controls.Set(name, c)
	return c.OnPackets() && !old.OnPackets()
}

func limits(l api.Limits) (out desired.Limits) {
	if l.Bandwidth != 0 {
		out.Shape = desired.Shape{Rate: uint64(l.Bandwidth) / 8, Burst: uint32(cmp.Or(l.Burst, defaultBurst) / 8)}
		if l.Peakrate != 0 {
			out.Peak, out.Least = max(uint64(l.Peakrate)/8, out.Rate+1), uint32(l.Minburst)
		}
	}
	if l.PacketRate != 0 {
		out.PacketRate, out.PacketBurst = uint32(l.PacketRate), uint32(cmp.Or(l.PacketBurst, defaultPacketBurst))
	}
	out.Connections = uint32(l.MaxConnections)
	return out
}
