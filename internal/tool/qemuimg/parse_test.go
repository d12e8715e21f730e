package qemuimg

import (
	"errors"
	"math"
	"reflect"
	"testing"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{"0": 0, "1": 1, "1b": 1, "1B": 1, "2k": 2048, "1.5K": 1536, "1m": 1 << 20, "3G": 3 << 30, "1T": 1 << 40, "2p": 2 << 50, "7E": 7 << 60, "0x10": 16, " 5": 5, "+5": 5, "1.k": 1024, "18446744073709551615": math.MaxUint64} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "k", "-1", "1.5", "1.5b", "1kk", "1q", "0x", "1e3", ".5k", "1 ", "0x1.8"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
	for _, s := range []string{"16E", "18446744073709551616", "0x10000000000000000", "15.99999999999999999999E"} {
		if _, err := parseSize(s); !errors.Is(err, errSizeTooBig) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseKeyvals(t *testing.T) {
	for s, want := range map[string][]keyval{
		"":               nil,
		"a=1,b=2":        {{"a", "1"}, {"b", "2"}},
		"a=1,,2,b":       {{"a", "1,2"}, {"b", "on"}},
		"nocow,x=y=z":    {{"cow", "off"}, {"x", "y=z"}},
		"help":           {{"help", "on"}},
		"a=,,,,b":        {{"a", ",,b"}},
		"file.name=a,,b": {{"file.name", "a,b"}},
	} {
		if got := parseKeyvals(s, ""); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// FuzzParse: no option list and no size makes the parsers fail otherwise than
// by an error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"1.5k", "a=b,,c,no", "0x1fG", ",,,", "9999999999999999999999E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err != nil && n != 0 {
			t.Errorf("%q: %d with %v", s, n, err)
		}
		var l optionList
		if l.add(s) && len(l.parse("")) == 0 {
			t.Errorf("%q: a list of nothing", s)
		}
	})
}

func TestWriteJSON(t *testing.T) {
	got := writeJSON([]any{object{{"a\"\\\n\x01\x7fé𝄞", int64(1)}, {"b", object{{"c", true}}}}})
	want := "[\n    {\n        \"a\\\"\\\\\\n\\u0001\\u007F\\u00E9\\uD834\\uDD1E\": 1,\n        \"b\": {\n            \"c\": true\n        }\n    }\n]"
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
