package analysis

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tortie/api"
	"tortie/explain"
)

// is reports whether an end of a change is a spot.
func (p spot) is(list []string) bool {
	return slices.ContainsFunc(list, func(text string) bool {
		if p.key == (api.Key{}) {
			return within(text, p.addr)
		}
		name, at, several := strings.Cut(text, " (")
		return name == p.key.Namespace+"/"+p.key.Name && (!several || at == p.addr.String()+")" || !p.single && within(strings.TrimSuffix(at, ")"), p.addr))
	})
}

// within reports whether an address is in what text says.
func within(text string, a netip.Addr) bool {
	if net, err := netip.ParsePrefix(text); err == nil {
		return net.Contains(a)
	}
	first, last, ok := strings.Cut(text, "-")
	if !ok {
		last = first
	}
	low, err1 := netip.ParseAddr(first)
	high, err2 := netip.ParseAddr(last)
	return err1 == nil && err2 == nil && low.Is4() == a.Is4() && low.Compare(a) <= 0 && a.Compare(high) <= 0
}

// said reports whether a packet is of the traffic that words say.
func said(words []string, p explain.Packet) bool {
	if words[0] == "all" {
		return true
	}
	if words[0] == "all but" {
		return !said(words[1:], p)
	}
	in := func(ranges string, v int) bool {
		return slices.ContainsFunc(strings.Split(ranges, ","), func(r string) bool {
			low, high, ok := strings.Cut(r, "-")
			if !ok {
				high = low
			}
			a, _ := strconv.Atoi(low)
			b, _ := strconv.Atoi(high)
			return a <= v && v <= b
		})
	}
	return slices.ContainsFunc(words, func(w string) bool {
		w, sources, hasSources := strings.Cut(w, " from ")
		parts := strings.Split(w, "/")
		first, second := int(p.DstPort), int(p.SrcPort)
		if p.Protocol == protoICMP || p.Protocol == protoICMPv6 {
			first, second = int(p.ICMPType), int(p.ICMPCode)
		}
		name := protocolNames[p.Protocol]
		return (parts[0] == name && name != "" || parts[0] == strconv.Itoa(int(p.Protocol))) && (len(parts) < 2 || in(parts[1], first)) &&
			(len(parts) < 3 || in(parts[2], second)) && (!hasSources || in(sources, second))
	})
}

// judge is what explain says of each end: nil where there is none that decides.
func judge(c *explain.Cluster, from, to spot, p explain.Packet) (allowed bool, ends [2]*Cause) {
	allowed = true
	for i, at := range []spot{from, to} {
		if at.key == (api.Key{}) {
			continue
		}
		end := []string{"source", "destination"}[i]
		if !slices.Contains(c.Owners(at.addr), at.key) {
			allowed, ends[i] = false, &Cause{End: end, Reason: "no endpoint with this address"}
			continue
		}
		d := c.Endpoint(at.key, []api.Direction{api.Egress, api.Ingress}[i], p)
		allowed = allowed && d.Verdict == api.Allow
		if ends[i] = (&Cause{End: end, Rule: d.Rule, Reason: d.Reason}); d.Rule != nil {
			ends[i].Reason = ruleText(*d.Rule)
		}
	}
	return allowed, ends
}

func sameCause(a, b *Cause) bool {
	return a != nil && b != nil && a.End == b.End && a.Reason == b.Reason && (a.Rule == nil) == (b.Rule == nil) && (a.Rule == nil || *a.Rule == *b.Rule)
}

// checkChanges compares what is reported with explain for a packet.
func checkChanges(t *rapid.T, changes []Change, before, after *explain.Cluster, from, to spot, p explain.Packet) {
	was, causesBefore := judge(before, from, to, p)
	is, causesAfter := judge(after, from, to, p)
	version := version(p.Dst)
	var found []Change
	for _, c := range changes {
		if slices.Contains(c.IPVersions, version) && from.is(c.From) && to.is(c.To) && said(c.Traffic, p) {
			found = append(found, c)
		}
	}
	what := fmt.Sprintf("%v %v > %v %v: %+v: allowed %v, then %v; reported: %+v", from.key, from.addr, to.key, to.addr, p, was, is, found)
	if was == is {
		if len(found) > 0 && from != to {
			t.Fatal(what)
		}
		return
	}
	if len(found) != 1 || (found[0].Effect == Lost) != was {
		if from.key == to.key && len(found) == 0 {
			return // to itself
		}
		t.Fatal(what)
	}
	c := found[0]
	at := 0
	if c.By.End == "destination" {
		at = 1
	}
	if !sameCause(&c.By, causesAfter[at]) || !sameCause(&c.Before, causesBefore[at]) {
		t.Fatalf("%s: but explain says before %+v, after %+v", what, causesBefore[at], causesAfter[at])
	}
}

// TestPreviewAgainstExplain: of random clusters and random changes, what is
// reported is what explain says of each packet that rules can tell apart.
func TestPreviewAgainstExplain(t *testing.T) {
	all := services()
	changed := 0
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		objects := map[api.Key]api.Object{}
		for range 4 + d.n(14) {
			o := d.object(t)
			objects[o.Key()] = o
		}
		before := values(objects)
		for range 1 + d.n(3) {
			o := d.object(t)
			if _, there := objects[o.Key()]; there && d.n(2) == 0 {
				delete(objects, o.Key())
			} else {
				objects[o.Key()] = o
			}
		}
		after := values(objects)
		changes, err := Preview(before, after)
		if err != nil {
			rt.Fatal(err)
		}
		changed += min(1, len(changes))
		a, b := cluster(before), cluster(after)
		ends := spots(a, b)
		offset := d.n(len(all) - 1)
		for i, from := range ends {
			for j, to := range ends {
				if version(from.addr) != version(to.addr) || from.key == (api.Key{}) && to.key == (api.Key{}) {
					continue
				}
				for k := range 24 { // others for each pair
					p := all[(offset+7*k+31*i+17*j)%len(all)]
					p.Src, p.Dst = from.addr, to.addr
					checkChanges(rt, changes, a, b, from, to, p)
				}
			}
		}
	})
	if changed < 10 {
		t.Errorf("%d changes had an effect, which is too few", changed)
	}
}

func values(objects map[api.Key]api.Object) []api.Object {
	var list []api.Object
	for _, o := range objects {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b api.Object) int { return a.Key().Compare(b.Key()) })
	return list
}
