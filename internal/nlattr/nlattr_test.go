package nlattr

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

type attr struct {
	Type  uint16
	Value string
}

func read(b []byte) (list []attr) {
	for typ, v := range All(b) {
		list = append(list, attr{typ, string(v)})
	}
	return list
}

func TestAttributes(t *testing.T) {
	inner := Append(nil, 7, []byte("odd"))
	b := Append(Append32(Append(nil, 1, nil), 2, 0x01020304), 3|unix.NLA_F_NESTED, inner)
	want := []attr{{1, ""}, {2, string(Append32(nil, 0, 0x01020304)[4:])}, {3, string(inner)}}
	if diff := cmp.Diff(want, read(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]attr{{7, "odd"}}, read(inner)); diff != "" {
		t.Errorf("nested (-want +got):\n%s", diff)
	}
	if n := Uint32([]byte(want[1].Value)); n != 0x01020304 || Uint32([]byte{1, 2, 3}) != 0 {
		t.Errorf("number %#x", n)
	}
	for range All(b) {
		break
	}
	for cut := range len(b) {
		if got := read(b[:cut]); len(got) >= len(want) {
			t.Errorf("cut at %d: %v", cut, got)
		}
	}
}

func FuzzAll(f *testing.F) {
	f.Add(Append32(Append(nil, 1, []byte("abc")), 2, 3))
	f.Add([]byte{0, 0, 1, 0, 255, 255, 1, 0, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		for typ, v := range All(b) {
			if got := read(Append(nil, typ, v)); len(v) < 1<<16-4 && (len(got) != 1 || got[0] != attr{typ, string(v)}) {
				t.Errorf("type %d, %x: read again as %v", typ, v, got)
			}
		}
	})
}
