package api

import (
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// maxDepth bounds the nesting of a document.
const maxDepth = 1000

var (
	errJSON  = errors.New("not valid JSON")
	errDepth = errors.New("nested too deeply")
)

// scanner walks one JSON text and checks its syntax on the way. After an
// error it stays at the end of its input, so that every loop over it ends.
type scanner struct {
	data  []byte
	pos   int
	depth int
	err   error
}

func (s *scanner) fail() {
	if s.err == nil {
		s.err = errJSON
	}
	s.pos = len(s.data)
}

// peek skips white space and returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; c {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// open enters an object or array.
func (s *scanner) open(c byte) {
	if s.peek() != c {
		s.fail()
		return
	}
	if s.depth++; s.depth > maxDepth {
		s.err = errDepth
		s.fail()
		return
	}
	s.pos++
}

// next reports whether another member or element follows, and consumes what
// separates it from the last, or the closing byte.
func (s *scanner) next(closing byte, first bool) bool {
	c := s.peek()
	if c == closing {
		s.pos++
		s.depth--
		return false
	}
	if !first {
		if c != ',' {
			s.fail()
			return false
		}
		s.pos++
		if s.peek() == closing {
			s.fail()
			return false
		}
	}
	if s.pos >= len(s.data) {
		s.fail()
	}
	return s.err == nil
}

// key reads a member's name and the colon.
func (s *scanner) key() []byte {
	raw, plain := s.stringToken()
	if s.peek() != ':' {
		s.fail()
		return nil
	}
	s.pos++
	if !plain {
		return []byte(unquote(raw))
	}
	return raw[1 : len(raw)-1]
}

// stringToken reads a string and returns it with its quotes. It is plain if
// what is between the quotes is the value.
func (s *scanner) stringToken() (raw []byte, plain bool) {
	if s.peek() != '"' {
		s.fail()
		return nil, false
	}
	start := s.pos
	plain = true
	ascii := true
	for s.pos++; s.pos < len(s.data); s.pos++ {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			raw = s.data[start:s.pos]
			return raw, plain && (ascii || utf8.Valid(raw))
		case c == '\\':
			plain = false
			if !s.escape() {
				s.fail()
				return nil, false
			}
		case c < 0x20:
			s.fail()
			return nil, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	s.fail()
	return nil, false
}

// escape checks an escape sequence and stops at its last byte.
func (s *scanner) escape() bool {
	if s.pos++; s.pos >= len(s.data) {
		return false
	}
	switch s.data[s.pos] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
		for range 4 {
			if s.pos++; s.pos >= len(s.data) || !isHex(s.data[s.pos]) {
				return false
			}
		}
		return true
	}
	return false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// skip reads a value of any kind and returns its text, that of null after an
// error: it is never empty.
func (s *scanner) skip() []byte {
	c := s.peek()
	start := s.pos
	switch {
	case c == '"':
		s.stringToken()
	case c == '{':
		s.open('{')
		for first := true; s.next('}', first); first = false {
			s.key()
			s.skip()
		}
	case c == '[':
		s.open('[')
		for first := true; s.next(']', first); first = false {
			s.skip()
		}
	case c == 't':
		s.literal("true")
	case c == 'f':
		s.literal("false")
	case c == 'n':
		s.literal("null")
	case c == '-' || '0' <= c && c <= '9':
		s.number()
	default:
		s.fail()
	}
	if s.err != nil {
		return []byte("null")
	}
	return s.data[start:s.pos]
}

func (s *scanner) literal(text string) {
	if len(s.data)-s.pos < len(text) || string(s.data[s.pos:s.pos+len(text)]) != text {
		s.fail()
		return
	}
	s.pos += len(text)
}

func (s *scanner) number() {
	if s.data[s.pos] == '-' {
		s.pos++
	}
	if s.pos < len(s.data) && s.data[s.pos] == '0' {
		s.pos++
	} else if !s.digits() {
		s.fail()
		return
	}
	if s.pos < len(s.data) && s.data[s.pos] == '.' {
		if s.pos++; !s.digits() {
			s.fail()
			return
		}
	}
	if s.pos < len(s.data) && s.data[s.pos]|0x20 == 'e' {
		s.pos++
		if s.pos < len(s.data) && (s.data[s.pos] == '+' || s.data[s.pos] == '-') {
			s.pos++
		}
		if !s.digits() {
			s.fail()
		}
	}
}

func (s *scanner) digits() bool {
	start := s.pos
	for s.pos < len(s.data) && '0' <= s.data[s.pos] && s.data[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > start
}

// end reports whether nothing but white space follows.
func (s *scanner) end() bool { return s.peek() == 0 && s.pos == len(s.data) && s.err == nil }

// unquote decodes a string token that scanner has accepted.
func unquote(raw []byte) string {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return string(raw)
	}
	return text
}
