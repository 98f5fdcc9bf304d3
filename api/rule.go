package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Which members of rules and their ends the masks of faults stand for.
var (
	ruleFields   = planOf(reflect.TypeFor[Rule]())
	entityFields = planOf(reflect.TypeFor[EntityRule]())
)

// faulty is a set of members that had problems.
type faulty struct {
	mask uint64
	plan *plan
}

func (f faulty) has(member string) bool { return f.mask&(1<<f.plan.byName[member]) != 0 }

// read reads a rule and makes what it could not read fail closed.
func (r *Rule) read(d *decoder) bool {
	v := reflect.ValueOf(r).Elem()
	rule, source, destination := faulty{plan: ruleFields}, faulty{plan: entityFields}, faulty{plan: entityFields}
	start := d.pos
	if d.peek() != '{' {
		rule.mask = faultOther
		if raw := d.skip(); d.err == nil {
			d.bad(raw, "want an object")
		}
	} else {
		for i := range d.members(v, &rule.mask) {
			d.mask = 0
			d.member(v, i, &rule.mask)
			switch ruleFields.fields[i].name {
			case "source":
				source.mask = d.mask
			case "destination":
				destination.mask = d.mask
			}
		}
	}
	if d.err != nil {
		return false
	}
	before := d.faults
	r.close(d, rule, source, destination)
	if rule.mask != 0 || d.faults != before {
		r.stored = Raw(bytes.TrimSpace(d.data[start:d.pos]))
	}
	return r.stored == ""
}

// MarshalJSON writes a rule; of one that could not be read in full, what was
// stored and not changed since, lest it be read as matching more.
func (r Rule) MarshalJSON() ([]byte, error) {
	type plain Rule
	current, err := json.Marshal(plain(r))
	if r.stored == "" || err != nil {
		return current, err
	}
	var before Rule
	if err := readAlone([]byte(r.stored), &before); err != nil {
		return nil, err
	}
	old, err := json.Marshal(plain(before))
	if err != nil {
		return nil, err
	}
	return mergeText([]byte(r.stored), old, current)
}

// UnmarshalJSON reads a rule.
func (r *Rule) UnmarshalJSON(data []byte) error { *r = Rule{}; return readAlone(data, r) }

// close carries out what the comment of Rule promises. Where something is
// missing without which the rule would match more, the rule is Never; a Deny
// rule is left to match more.
func (r *Rule) close(d *decoder, rule, source, destination faulty) {
	r.closeAction(d)
	deny := r.Action == Deny
	widens := rule.mask&faultOther != 0
	if bad := rule.has("ipVersion"); bad || r.IPVersion != 0 && r.IPVersion != 4 && r.IPVersion != 6 {
		if widens = true; !bad {
			d.fault("ipVersion", "want 4 or 6")
		}
		if deny {
			r.IPVersion = 0
		}
	}
	for _, end := range []struct {
		name   string
		entity *EntityRule
		faults faulty
	}{{"source", &r.Source, source}, {"destination", &r.Destination, destination}} {
		d.push(end.name, 0)
		widens = end.entity.close(d, deny, end.faults) || widens
		if end.entity.needsProtocol(r.Protocol) {
			if widens = true; !rule.has("protocol") {
				d.fault("ports", "need protocol TCP, UDP or SCTP")
			}
			if deny {
				end.entity.Ports, end.entity.NotPorts = nil, nil
			}
		}
		d.pop()
	}
	widens = r.closeProtocol(d, deny, rule) || widens
	r.Never = widens && !deny
}

func (r *Rule) closeAction(d *decoder) {
	for _, a := range []Action{Allow, Deny, Log, Pass} {
		if strings.EqualFold(string(r.Action), string(a)) {
			r.Action = a
			return
		}
	}
	d.push("action", 0)
	d.report(Problem{Field: d.where(), Value: shorten(string(r.Action)), Reason: "want Allow, Deny, Log or Pass; taken as Deny"})
	d.pop()
	r.Action = Deny
}

// closeProtocol handles protocol, ICMP and HTTP.
func (r *Rule) closeProtocol(d *decoder, deny bool, f faulty) (widens bool) {
	for _, m := range []struct {
		name string
		icmp **ICMP
	}{{"icmp", &r.ICMP}, {"notICMP", &r.NotICMP}} {
		bad := f.has(m.name)
		if reason := (*m.icmp).check(r.Protocol, m.name == "notICMP"); !bad && reason != "" {
			if bad = true; !f.has("protocol") {
				d.fault(m.name, reason)
			}
		}
		if widens = widens || bad; bad && deny {
			*m.icmp = nil
		}
	}
	if r.HTTP != nil || f.has("http") {
		widens = true
		d.unbuiltMember("http")
	}
	widens = widens || f.has("protocol") || f.has("notProtocol")
	if deny {
		r.HTTP = nil
		if f.has("protocol") {
			r.Protocol = Protocol{}
		}
		if f.has("notProtocol") {
			r.NotProtocol = Protocol{}
		}
	}
	return widens
}

// check says why the match cannot be carried out, "" if it can.
func (c *ICMP) check(p Protocol, negated bool) string {
	switch {
	case c == nil:
		return ""
	case !p.IsICMP():
		return "needs protocol ICMP or ICMPv6"
	case c.Type == nil && (c.Code != nil || negated):
		return "needs a type"
	case c.Type != nil && (*c.Type < 0 || *c.Type > 254):
		return "want a type from 0 to 254"
	case c.Code != nil && (*c.Code < 0 || *c.Code > 255):
		return "want a code from 0 to 255"
	}
	return ""
}

// needsProtocol reports ports that a rule cannot have with its protocol: named
// ones alone have protocols of their own.
func (e *EntityRule) needsProtocol(p Protocol) bool {
	if p.HasPorts() {
		return false
	}
	return slices.ContainsFunc(slices.Concat(e.Ports, e.NotPorts), func(port Port) bool { return port.Name == "" || !p.IsZero() })
}

// close does for one end what Rule.close does for the rule.
func (e *EntityRule) close(d *decoder, deny bool, f faulty) (widens bool) {
	widens = f.mask&faultOther != 0
	e.Ports, e.NotPorts = readable(e.Ports), readable(e.NotPorts)
	if f.has("nets") && (deny || len(e.Nets.Prefixes) == 0) {
		widens = true
		if deny {
			e.Nets = Nets{}
		}
	}
	if f.has("ports") && (deny || len(e.Ports) == 0) {
		e.Ports = nil
		widens = true
	}
	if f.has("notNets") {
		widens = true
		if deny {
			e.NotNets.Bad = nil
		}
	}
	for _, s := range []struct {
		name     string
		selector *Selector
	}{{"selector", &e.Selector}, {"notSelector", &e.NotSelector}, {"namespaceSelector", &e.NamespaceSelector}} {
		if f.has(s.name) {
			widens = true
			if deny {
				*s.selector = Selector{}
			}
		}
	}
	if a := e.ServiceAccounts; f.has("serviceAccounts") || a != nil && len(a.Names) == 0 && a.Selector.IsZero() {
		if widens = true; !f.has("serviceAccounts") {
			d.fault("serviceAccounts", "want names or a selector")
		}
		if deny {
			e.ServiceAccounts = nil
		}
	}
	if e.Services != nil || f.has("services") {
		widens = true
		d.unbuiltMember("services")
	}
	if deny {
		e.Services = nil
	}
	return widens || f.has("notPorts")
}

// readable returns the ports that could be read.
func readable(ports []Port) []Port {
	return slices.DeleteFunc(ports, func(p Port) bool { return p.Min == 0 && p.Name == "" })
}

// fault reports a member of the structure that is being read.
func (d *decoder) fault(member, reason string) {
	d.push(member, 0)
	d.report(Problem{Field: d.where(), Reason: reason})
	d.pop()
}

func (d *decoder) unbuiltMember(member string) {
	d.push(member, 0)
	d.unbuilt(nil)
	d.pop()
}
