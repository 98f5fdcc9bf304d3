package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// maxProblems bounds what is reported of one object.
const maxProblems = 100

// decoder reads one document into Go values. A value of the wrong type leaves
// its field empty and adds a problem; only a document that is not JSON fails
// as a whole.
type decoder struct {
	scanner
	path     []step
	problems []Problem
	unknown  []string       // members that no type has
	faults   int            // problems found, also those beyond maxProblems
	mask     uint64         // of the structure read last: members with problems
	nets     []netip.Prefix // scratch

	strings map[string]string // shares equal strings between documents
}

// step is one element of the path to the value being read.
type step struct {
	name  string
	index int // in a list, if name is empty
}

// fault bits of decoder.mask beside those of the members.
const faultOther uint64 = 1 << 63 // an unknown member, or one that is given twice

// reader is a type that reads itself. It reports whether the value was good.
type reader interface {
	read(d *decoder) bool
}

// plan is how a structure is read.
type plan struct {
	fields []planField
	byName map[string]int
}

type planField struct {
	name string
	// tag is what the field's "api" tag says: "unbuilt" is reported as not
	// enforced where it is given, "addresses" is a list of what an endpoint has,
	// "shared" has few different values, and of "quiet" nothing is reported.
	tag string
}

var plans sync.Map // of reflect.Type to *plan

func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p := &plan{byName: map[string]int{}}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p.fields = append(p.fields, planField{name: name, tag: f.Tag.Get("api")})
		if name != "" && name != "-" {
			p.byName[name] = i
		}
	}
	plans.Store(t, p)
	return p
}

// find returns the index of a member. As in upstream's reader, its case does
// not matter.
func (p *plan) find(name []byte) int {
	if i, ok := p.byName[string(name)]; ok {
		return i
	}
	for known, i := range p.byName {
		if strings.EqualFold(known, string(name)) {
			return i
		}
	}
	return -1
}

// decoders keeps the tables of strings from one document to the next.
var decoders = sync.Pool{New: func() any { return &decoder{strings: map[string]string{}} }}

const (
	maxShared       = 64 // bytes of a string that is shared
	maxSharedNumber = 1 << 14
)

func newDecoder(data []byte) *decoder {
	d := decoders.Get().(*decoder)
	shared, nets := d.strings, d.nets
	if len(shared) > maxSharedNumber {
		clear(shared)
	}
	*d = decoder{scanner: scanner{data: data}, path: d.path[:0], nets: nets, strings: shared}
	return d
}

// release gives the decoder back; what it returned stays valid.
func (d *decoder) release() {
	d.data, d.problems, d.unknown = nil, nil, nil
	decoders.Put(d)
}

// share returns text as a string, the same one for equal texts. It is for what
// many documents have in common: labels, names of nodes and profiles.
func (d *decoder) share(text []byte) string {
	if len(text) > maxShared {
		return string(text)
	}
	if s, ok := d.strings[string(text)]; ok {
		return s
	}
	s := string(text)
	d.strings[s] = s
	return s
}

func (d *decoder) push(name string, index int) { d.path = append(d.path, step{name, index}) }
func (d *decoder) pop()                        { d.path = d.path[:len(d.path)-1] }

// where prints the path to the value being read.
func (d *decoder) where() string {
	var b strings.Builder
	for i, s := range d.path {
		switch {
		case s.name == "":
			fmt.Fprintf(&b, "[%d]", s.index)
		case i > 0:
			b.WriteString("." + s.name)
		default:
			b.WriteString(s.name)
		}
	}
	return b.String()
}

func (d *decoder) report(p Problem) {
	d.faults++
	switch len(d.problems) {
	case maxProblems:
	case maxProblems - 1:
		d.problems = append(d.problems, Problem{Field: p.Field, Reason: "and more"})
	default:
		d.problems = append(d.problems, p)
	}
}

// bad reports the value being read; it returns false.
func (d *decoder) bad(raw []byte, format string, args ...any) bool {
	d.report(Problem{Field: d.where(), Value: shorten(text(raw)), Reason: fmt.Sprintf(format, args...)})
	return false
}

// unbuilt reports that nothing enforces what the value being read asks for.
func (d *decoder) unbuilt(raw []byte) {
	d.report(Problem{Field: d.where(), Value: shorten(text(raw)), Reason: "not enforced yet", Unsupported: true})
}

// text is the value of a string, and the JSON of any other value.
func text(raw []byte) string {
	switch {
	case len(raw) == 0 || raw[0] != '"':
		return string(raw)
	case plain(raw):
		return string(raw[1 : len(raw)-1])
	}
	return unquote(raw)
}

func shorten(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// null consumes a null, if that is what follows.
func (d *decoder) null() bool {
	if d.peek() != 'n' {
		return false
	}
	d.literal("null")
	return true
}

// value reads the next value into v, which is addressable and empty. It
// reports whether the value was good; null is good and leaves v empty.
func (d *decoder) value(v reflect.Value) bool {
	if r, ok := v.Addr().Interface().(reader); ok {
		return r.read(d)
	}
	if d.null() {
		return true
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.structure(v)
	case reflect.Slice:
		return d.list(v)
	case reflect.Map:
		return d.stringMap(v)
	case reflect.Pointer:
		elem := reflect.New(v.Type().Elem())
		if !d.value(elem.Elem()) && elem.Elem().Kind() != reflect.Struct {
			return false
		}
		v.Set(elem)
		return true
	default:
		return d.scalar(v)
	}
}

func (d *decoder) scalar(v reflect.Value) bool {
	raw := d.skip()
	if d.err != nil {
		return false
	}
	switch v.Kind() {
	case reflect.String:
		if raw[0] != '"' {
			return d.bad(raw, "want a string")
		}
		v.SetString(text(raw))
		return true
	case reflect.Bool:
		if raw[0] != 't' && raw[0] != 'f' {
			return d.bad(raw, "want true or false")
		}
		v.SetBool(raw[0] == 't')
		return true
	case reflect.Interface:
		var x any
		if err := json.Unmarshal(raw, &x); err != nil {
			return d.bad(raw, "unreadable")
		}
		v.Set(reflect.ValueOf(&x).Elem())
		return true
	}
	return d.number(v, raw)
}

func (d *decoder) number(v reflect.Value, raw []byte) bool {
	if raw[0] == '"' && v.Kind() == reflect.Float64 {
		raw = []byte(unquote(raw)) // some writers quote an order
	}
	switch v.Kind() {
	case reflect.Float64:
		if x, err := strconv.ParseFloat(string(raw), 64); err == nil && !math.IsNaN(x) && !math.IsInf(x, 0) {
			v.SetFloat(x)
			return true
		}
		return d.bad(raw, "want a number")
	case reflect.Int, reflect.Int64:
		if x, err := strconv.ParseInt(string(raw), 10, 64); err == nil && !v.OverflowInt(x) {
			v.SetInt(x)
			return true
		}
	default:
		if x, err := strconv.ParseUint(string(raw), 10, 64); err == nil && !v.OverflowUint(x) {
			v.SetUint(x)
			return true
		}
	}
	return d.bad(raw, "want a whole number in range")
}

// shared is text for a value that many documents have in common.
func (d *decoder) shared(raw []byte) string {
	if plain(raw) {
		return d.share(raw[1 : len(raw)-1])
	}
	return text(raw)
}

// plain reports a string token whose value is what is between the quotes.
func plain(raw []byte) bool {
	if raw[0] != '"' {
		return false
	}
	for _, c := range raw {
		if c == '\\' || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// structure reads an object. It reports whether it is one, and leaves in
// d.mask which of its members had problems.
func (d *decoder) structure(v reflect.Value) bool {
	if d.peek() != '{' {
		raw := d.skip()
		d.mask = faultOther
		if d.err == nil && len(d.path) == 1 && d.path[0].name == "spec" {
			d.err = errors.New("spec is not an object")
		}
		return d.err == nil && d.bad(raw, "want an object")
	}
	var mask uint64
	for i := range d.members(v, &mask) {
		d.member(v, i, &mask)
	}
	d.mask = mask
	return d.err == nil
}

// members walks the members of an object that v has, in the order given. What
// it has not, or has twice, is reported and noted in mask.
func (d *decoder) members(v reflect.Value, mask *uint64) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		p := planOf(v.Type())
		var seen uint64
		d.open('{')
		for first := true; d.next('}', first); first = false {
			key := d.key()
			i := p.find(key)
			if i < 0 {
				d.push(shorten(string(key)), 0)
				*mask |= faultOther
				d.unknownMember(d.skip())
				d.pop()
				continue
			}
			d.push(p.fields[i].name, 0)
			if seen&(1<<i) != 0 {
				*mask |= faultOther
				d.bad(nil, "given twice; the last one counts")
				v.Field(i).SetZero()
			}
			seen |= 1 << i
			if !yield(i) {
				return
			}
			d.pop()
		}
	}
}

// member reads member i of v.
func (d *decoder) member(v reflect.Value, i int, mask *uint64) {
	before, known := d.faults, len(d.problems)
	start := d.pos
	field := v.Field(i)
	switch planOf(v.Type()).fields[i].tag {
	case "addresses":
		field.Addr().Interface().(*Nets).readBy(d, ownNet)
	case "quiet":
		d.value(field)
		d.problems, d.faults = d.problems[:known], before
	case "shared":
		if d.peek() == '"' {
			field.SetString(d.shared(d.skip()))
		} else {
			d.value(field)
		}
	case "unbuilt":
		if d.value(field); d.err == nil && !field.IsZero() {
			d.unbuilt(bytes.TrimSpace(d.data[start:d.pos]))
		}
	default:
		d.value(field)
	}
	if d.faults != before {
		*mask |= 1 << i
	}
}

// unknownMember notes a member that no type has. Below spec it is reported,
// for it may ask for something; elsewhere it is not ours to judge.
func (d *decoder) unknownMember(raw []byte) {
	if d.err != nil {
		return
	}
	inMeta := len(d.path) == 2 && d.path[0].name == "metadata"
	if inMeta && serverMetadata[d.path[1].name] {
		return
	}
	d.unknown = append(d.unknown, d.where())
	if !inMeta && len(d.path) > 1 {
		d.report(Problem{Field: d.where(), Value: shorten(text(raw)), Reason: "unknown field", Unsupported: true})
	}
}

// serverMetadata is metadata that a server keeps and that nobody writes.
var serverMetadata = map[string]bool{
	"resourceVersion": true, "selfLink": true, "generation": true, "managedFields": true, "ownerReferences": true,
	"finalizers": true, "deletionTimestamp": true, "deletionGracePeriodSeconds": true,
}

// elements walks the elements of a list, or takes anything else as bad.
func (d *decoder) elements(yield func(int) bool) {
	d.open('[')
	i := 0
	for ; d.next(']', i == 0); i++ {
		d.push("", i)
		if !yield(i) {
			return
		}
		d.pop()
	}
}

// list reads a list into a slice. An element that cannot be read stays, empty,
// so that the elements keep their places; in a list of strings its text stays.
// Rules that are not a list are one that denies all.
func (d *decoder) list(v reflect.Value) bool {
	if d.peek() != '[' {
		raw := d.skip()
		if rules, ok := v.Addr().Interface().(*[]Rule); ok {
			*rules = []Rule{{Action: Deny}}
		}
		return d.err == nil && d.bad(raw, "want a list")
	}
	good := true
	for range d.elements {
		n := v.Len()
		v.Grow(1)
		v.SetLen(n + 1)
		v.Index(n).SetZero()
		start := d.pos
		if !d.value(v.Index(n)) {
			good = false
			if v.Index(n).Kind() == reflect.String && d.err == nil {
				v.Index(n).SetString(strings.TrimSpace(string(d.data[start:d.pos])))
			}
		}
	}
	return good && d.err == nil
}

// stringMap reads a map of strings. A number or truth value stays as its text;
// anything else is left out.
func (d *decoder) stringMap(v reflect.Value) bool {
	if d.peek() != '{' {
		raw := d.skip()
		return d.err == nil && d.bad(raw, "want an object")
	}
	m := map[string]string{}
	good := true
	d.open('{')
	for first := true; d.next('}', first); first = false {
		key := d.share(d.key())
		raw := d.skip()
		if d.err != nil {
			return false
		}
		switch raw[0] {
		case '"':
			m[key] = d.shared(raw)
			continue
		case 'n':
			m[key] = ""
			continue
		case '{', '[':
		default:
			m[key] = string(raw)
		}
		d.push(key, 0)
		good = d.bad(raw, "want a string")
		d.pop()
	}
	if len(m) > 0 {
		v.Set(reflect.ValueOf(m))
	}
	return good && d.err == nil
}
