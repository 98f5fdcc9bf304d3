package selector

import (
	"fmt"
	"slices"
	"strings"
)

// maxDepth bounds the nesting of parentheses. No selector of the 1024 bytes
// that a stored one may have can reach it.
const maxDepth = 1000

// maxLabel is the longest label, in bytes.
const maxLabel = 512

// Parse parses a selector; the empty one is all(). An error names the offset
// in bytes, counted from 0, and what was expected there.
func Parse(s string) (*Selector, error) {
	p := parser{in: s}
	if p.space(); p.pos == len(s) {
		return all, nil
	}
	n, err := p.or(0)
	if err == nil && p.pos < len(s) {
		err = p.fail("&&, || or the end")
	}
	if err != nil {
		return nil, err
	}
	return newSelector(n), nil
}

// parser reads in from pos on. Its methods leave pos behind what they took and
// the space that follows it.
type parser struct {
	in  string
	pos int
}

func (p *parser) fail(expected string) error {
	found := "the end"
	if rest := p.in[p.pos:]; rest != "" {
		found = fmt.Sprintf("%q", rest[:min(len(rest), 16)])
	}
	return fmt.Errorf("selector: offset %d: expected %s, found %s", p.pos, expected, found)
}

func (p *parser) space() {
	for p.pos < len(p.in) && (p.in[p.pos] == ' ' || p.in[p.pos] == '\t') {
		p.pos++
	}
}

// take takes text if it comes next, and the space behind it.
func (p *parser) take(text string) bool {
	if !strings.HasPrefix(p.in[p.pos:], text) {
		return false
	}
	p.pos += len(text)
	p.space()
	return true
}

// take2 takes two words with any space, or none, between them.
func (p *parser) take2(first, second string) bool {
	start := p.pos
	if p.take(first) && p.take(second) {
		return true
	}
	p.pos = start
	return false
}

func (p *parser) or(depth int) (*node, error) {
	return p.list(opOr, "||", func() (*node, error) {
		return p.list(opAnd, "&&", func() (*node, error) { return p.operation(depth) })
	})
}

// list parses operands with sign between them.
func (p *parser) list(o op, sign string, operand func() (*node, error)) (*node, error) {
	var kids []*node
	for {
		n, err := operand()
		if err != nil {
			return nil, err
		}
		if kids = append(kids, n); !p.take(sign) {
			return group(o, kids), nil
		}
	}
}

func (p *parser) operation(depth int) (*node, error) {
	negate := false
	for p.take("!") {
		negate = !negate
	}
	n, err := p.operand(depth)
	if err != nil || !negate {
		return n, err
	}
	if n.op == opNot { // !(!x)
		return n.kids[0], nil
	}
	return &node{op: opNot, kids: []*node{n}}, nil
}

// operand parses a group, a function or a comparison. A function's name and
// its parenthesis touch, else the name is a label.
func (p *parser) operand(depth int) (*node, error) {
	switch {
	case p.take("("):
		if depth == maxDepth {
			return nil, fmt.Errorf("selector: offset %d: more than %d nested parentheses", p.pos-1, maxDepth)
		}
		n, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return n, p.expect(")")
	case p.take("has("):
		label, err := p.label("a label")
		if err != nil {
			return nil, err
		}
		p.space()
		return &node{op: opHas, label: label}, p.expect(")")
	case p.take("all("):
		return &node{op: opAll}, p.expect(")")
	case p.take("global("):
		return &node{op: opGlobal}, p.expect(")")
	}
	label, err := p.label("a label, has(), all(), global(), ! or (")
	if err != nil {
		return nil, err
	}
	p.space()
	return p.comparison(label)
}

func (p *parser) comparison(label string) (*node, error) {
	n := &node{label: label}
	switch {
	case p.take("=="):
		n.op = opEqual
	case p.take("!="):
		n.op = opNotEqual
	case p.take("contains"):
		n.op = opContains
	case p.take2("starts", "with"):
		n.op = opStartsWith
	case p.take2("ends", "with"):
		n.op = opEndsWith
	case p.take2("not", "in"):
		n.op = opNotIn
	case p.take("in"):
		n.op = opIn
	default:
		return nil, p.fail("==, !=, in, not in, contains, starts with or ends with")
	}
	var err error
	if n.op == opIn || n.op == opNotIn {
		n.values, err = p.set()
	} else {
		n.value, err = p.str("a quoted string")
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (p *parser) expect(text string) error {
	if !p.take(text) {
		return p.fail(text)
	}
	return nil
}

// label takes a label, without the space that follows.
func (p *parser) label(expected string) (string, error) {
	start := p.pos
	for p.pos < len(p.in) && isLabel(p.in[p.pos]) {
		p.pos++
	}
	label := p.in[start:p.pos]
	if label == "" || len(label) > maxLabel {
		p.pos = start
		if label != "" {
			expected = fmt.Sprintf("a label of at most %d bytes", maxLabel)
		}
		return "", p.fail(expected)
	}
	return label, nil
}

func isLabel(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '_' || c == '.' || c == '/' || c == '-'
}

// str takes a quoted string; there are no escapes.
func (p *parser) str(expected string) (string, error) {
	if p.pos == len(p.in) || p.in[p.pos] != '"' && p.in[p.pos] != '\'' {
		return "", p.fail(expected)
	}
	body := p.in[p.pos+1:]
	end := strings.IndexByte(body, p.in[p.pos])
	if end < 0 {
		quote := p.in[p.pos]
		p.pos = len(p.in)
		return "", p.fail("the closing " + string(quote))
	}
	p.pos += end + 2
	p.space()
	return body[:end], nil
}

// set takes { string, … }; a comma may follow the last string.
func (p *parser) set() ([]string, error) {
	if err := p.expect("{"); err != nil {
		return nil, err
	}
	var values []string
	for !p.take("}") {
		v, err := p.str("a quoted string or }")
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		if p.take(",") {
			continue
		}
		if err := p.expect("}"); err != nil {
			return nil, err
		}
		break
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}
