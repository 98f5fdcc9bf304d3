package proof

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
)

// Case is a history of a cluster and one packet, as a file has it.
type Case struct {
	Note   string     `json:"note,omitempty"`
	Steps  [][]Change `json:"steps"` // each is enforced before the next
	Packet Packet     `json:"packet"`
}

// ReadCase reads a file.
func ReadCase(path string) (c Case, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return c, fmt.Errorf("case %s: %w", path, err)
	}
	return c, nil
}

// Write writes it to a file, one object a line.
func (c Case) Write(path string) error {
	var b bytes.Buffer
	line := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			panic(err) // documents were decoded before
		}
		return data
	}
	fmt.Fprintf(&b, "{\n\"note\": %s,\n", line(c.Note))
	fmt.Fprint(&b, "\"steps\": [\n")
	for i, step := range c.Steps {
		fmt.Fprint(&b, map[bool]string{true: "[", false: ",\n["}[i == 0])
		for j, change := range step {
			fmt.Fprintf(&b, "%s%s", map[bool]string{true: "", false: ",\n"}[j == 0], line(change))
		}
		fmt.Fprint(&b, "]")
	}
	fmt.Fprintf(&b, "\n],\n\"packet\": %s\n}\n", line(c.Packet))
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// Run plays the case on an empty cluster and says what is wrong: an agent that
// does not enforce it, or the fate of its packet; "" if nothing.
func (w *World) Run(c Case) string {
	w.t.Helper()
	if err := w.Reset(); err != nil {
		w.t.Fatal(err) // it is of an earlier case
	}
	for _, step := range c.Steps {
		if err := w.Change(step...); err != nil {
			return err.Error()
		}
	}
	w.Forget()
	wrong, _ := w.Check([]Packet{c.Packet})
	return wrong[0]
}

// Check sends packets, of connections that there are none of yet, and says of
// each what is wrong with its fate, "" if nothing, and where it arrived.
func (w *World) Check(packets []Packet) (wrong []string, arrived [][]Arrival) {
	w.t.Helper()
	wrong = make([]string, len(packets))
	arrived = w.Send(packets, func(p Packet) Ends { return w.translated(p) })
	for i, at := range arrived {
		want := w.Expect(packets[i])
		switch {
		case want.Place == "" && len(at) == 0:
		case len(at) == 1 && at[0].Place == want.Place && (isHost(want.Place) || at[0].Src == want.As.Src && at[0].Dst == want.As.Dst):
		default:
			wrong[i] = fmt.Sprintf("%s: arrived %v, want %q as %v\n%s", packets[i], at, want.Place, want.As, want)
		}
	}
	return wrong, arrived
}

// shrinkTime bounds one shrinking.
const shrinkTime = 90 * time.Second

// Shrink makes a case that fails smaller while fails says that it does: all at
// once instead of step by step, fewer objects, fewer members of them.
func Shrink(c Case, fails func(Case) bool) Case {
	deadline := time.Now().Add(shrinkTime)
	try := func(next Case) bool {
		if time.Now().After(deadline) || !fails(next) {
			return false
		}
		c = next
		return true
	}
	once := c
	once.Steps = [][]Change{final(c.Steps)}
	try(once)
	for smaller := true; smaller; {
		smaller = false
		for n := max(1, changes(c)/2); n >= 1; n /= 2 {
			for at := 0; at < changes(c); {
				if try(c.without(at, n)) {
					smaller = true
				} else {
					at += n
				}
			}
		}
	}
	for smaller := true; smaller; {
		smaller = false
		for _, next := range c.simpler() {
			if try(next) {
				smaller = true
				break
			}
		}
	}
	return c
}

// final is the puts that make the last state, in order.
func final(steps [][]Change) []Change {
	var out []Change
	for _, c := range slices.Concat(steps...) {
		key, _ := c.key()
		out = slices.DeleteFunc(out, func(old Change) bool { k, _ := old.key(); return k == key })
		if c.Put != nil {
			out = append(out, c)
		}
	}
	return out
}

func changes(c Case) (n int) {
	for _, s := range c.Steps {
		n += len(s)
	}
	return n
}

// without is the case without n changes from the at-th on.
func (c Case) without(at, n int) Case {
	var steps [][]Change
	i := 0
	for _, s := range c.Steps {
		var kept []Change
		for _, change := range s {
			if i < at || i >= at+n {
				kept = append(kept, change)
			}
			i++
		}
		if len(kept) > 0 {
			steps = append(steps, kept)
		}
	}
	c.Steps = steps
	return c
}

// simpler are all cases with one member of one document less.
func (c Case) simpler() []Case {
	var out []Case
	for i, s := range c.Steps {
		for j, change := range s {
			var doc map[string]any
			if change.Put == nil || json.Unmarshal(change.Put, &doc) != nil {
				continue
			}
			for _, part := range []any{doc["spec"], doc["metadata"]} {
				each(part, func() {
					next := c
					next.Steps = slices.Clone(c.Steps)
					next.Steps[i] = slices.Clone(s)
					text, err := json.Marshal(doc)
					if err == nil {
						next.Steps[i][j].Put = text
						out = append(out, next)
					}
				})
			}
		}
	}
	return out
}

// each takes each member of an object and each element of a list away, tells
// visit, and puts it back; the outermost first. The names of an object and of
// what it is about stay.
func each(v any, visit func()) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			old := v[k]
			if slices.Contains([]string{"name", "namespace", "action", "node", "workload", "endpoint", "orchestrator", "interfaceName"}, k) {
				continue
			}
			delete(v, k)
			visit()
			v[k] = old
			if list, ok := old.([]any); ok {
				for i := range list {
					v[k] = slices.Concat(list[:i], list[i+1:])
					visit()
				}
				v[k] = old
			}
			each(old, visit)
		}
	case []any:
		for _, e := range v {
			each(e, visit)
		}
	}
}
