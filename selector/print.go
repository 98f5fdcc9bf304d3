package selector

import "strings"

// signs are the operators between a label and its value or values.
var signs = map[op]string{
	opEqual:      " == ",
	opNotEqual:   " != ",
	opContains:   " contains ",
	opStartsWith: " starts with ",
	opEndsWith:   " ends with ",
	opIn:         " in ",
	opNotIn:      " not in ",
	opAnd:        " && ",
	opOr:         " || ",
}

// print returns the canonical text: one way to write each selector.
func (n *node) print() string {
	var b strings.Builder
	n.write(&b, false)
	return b.String()
}

// write appends the text of n, in parentheses if n is a group and nested.
func (n *node) write(b *strings.Builder, nested bool) {
	switch n.op {
	case opAll:
		b.WriteString("all()")
	case opGlobal:
		b.WriteString("global()")
	case opHas:
		b.WriteString("has(" + n.label + ")")
	case opNot:
		b.WriteByte('!')
		n.kids[0].write(b, true)
	case opAnd, opOr:
		n.writeKids(b, nested)
	case opIn, opNotIn:
		b.WriteString(n.label + signs[n.op] + "{")
		for i, v := range n.values {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(quote(v))
		}
		b.WriteByte('}')
	default:
		b.WriteString(n.label + signs[n.op] + quote(n.value))
	}
}

func (n *node) writeKids(b *strings.Builder, nested bool) {
	if nested {
		b.WriteByte('(')
	}
	for i, k := range n.kids {
		if i > 0 {
			b.WriteString(signs[n.op])
		}
		k.write(b, true)
	}
	if nested {
		b.WriteByte(')')
	}
}

func quote(v string) string {
	if strings.Contains(v, `"`) {
		return "'" + v + "'"
	}
	return `"` + v + `"`
}
