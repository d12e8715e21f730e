package names

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	for _, c := range []struct {
		pattern string
		want    string // names joined by a blank, or "!" and a part of the error
	}{
		{"web", "web"},
		{"", ""},
		{"w-{01..03}", "w-01 w-02 w-03"},
		{"w-{8..11}", "w-8 w-9 w-10 w-11"},
		{"w-{08..11}", "w-08 w-09 w-10 w-11"},
		{"w-{1..003}", "w-001 w-002 w-003"},
		{"w-{3..1}", "w-3 w-2 w-1"},
		{"w-{0..1}", "w-0 w-1"},
		{"{a,b,c}", "a b c"},
		{"x{,y}", "x xy"},
		{"{c..a}", "c b a"},
		{"{a,b}-{1..2}z", "a-1z a-2z b-1z b-2z"},
		{"{5..5}", "5"},
		{"w-{1..10001}", "!more than"},
		{"{1..101}{1..100}", "!more than"},
		{"{1..10000}" + strings.Repeat("x", 1<<20), "!characters"},
		{"{0..2147483647}", "!more than"},
		{"{0..99999999999999999999}", "!not a range"},
		{"{1..}", "!not a range"},
		{"{-1..2}", "!not a range"},
		{"{1}", "!neither"},
		{"{}", "!neither"},
		{"a}", "!without {"},
		{"{a,{b,c}}", "!without }"},
		{"{1..2", "!without }"},
		{"{" + strings.Repeat("0", 80) + "..1}", "!wider"},
	} {
		got, err := Expand(c.pattern)
		if part, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), part) || !errors.Is(err, ErrInvalid) {
				t.Errorf("%.40q: %.60q, %v; want an error with %q", c.pattern, got, err, part)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, %v; want %q", c.pattern, got, err, c.want)
		}
	}
	if got, err := Expand("{1..100}x{1..100}"); err != nil || len(got) != MaxExpansion {
		t.Errorf("the largest expansion: %d names, %v", len(got), err)
	}
}

func TestExpandMachines(t *testing.T) {
	got, err := ExpandMachines([]string{"a-{1..2}", "b"})
	if err != nil || !slices.Equal(got, []string{"a-1", "a-2", "b"}) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range [][]string{nil, {"a", "a"}, {"{a,a}"}, {"-a"}, {""}, {"{1..6000}", "x{1..6000}"}} {
		if got, err := ExpandMachines(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %d names, %v", bad, len(got), err)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, good := range []string{"a", "web", "W-01.x_y", strings.Repeat("a", 63), "0"} {
		if err := CheckMachine(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", ".", "..", "a/b", "a b", "ä", "a\n", "a:b", strings.Repeat("a", 64), "a\x00b"} {
		if err := CheckMachine(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := CheckTemplate("debian:12"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"0123456789ab", strings.Repeat("f", 63), "a:", ":", "http://x"} {
		if err := CheckTemplate(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMade(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		n := Make("Debian 12", func(s string) bool { return seen[s] })
		if err := CheckMachine(n); err != nil || seen[n] || !strings.HasPrefix(n, "Debian-12-") {
			t.Fatalf("%q: %v", n, err)
		}
		seen[n] = true
	}
	for _, base := range []string{"", "///", strings.Repeat("x", 200), "日本"} {
		if n := Make(base, func(string) bool { return false }); CheckMachine(n) != nil {
			t.Errorf("%q: made %q", base, n)
		}
		tries := 0
		if n := Free(base, func(string) bool { tries++; return tries < 1200 }); CheckMachine(n) != nil {
			t.Errorf("%q: free %q", base, n)
		}
	}
	for source, want := range map[string]string{
		"/a/debian-12.qcow2":            "debian-12",
		"https://h/x/cirros.img?x=a/b":  "cirros",
		"debian:12":                     "debian-12",
		"Fedora.raw.xz":                 "Fedora",
		"https://h/AlmaLinux-9.2.qcow2": "AlmaLinux-9.2",
	} {
		if got := FromSource(source); got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
	if got := Hostname("Web_1.x"); got != "web-1-x" {
		t.Errorf("hostname %q", got)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"w-{01..10}", "{a,b}{1..2}", "{", "}", "{..}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := Expand(s)
		if err == nil && (len(list) == 0 || len(list) > MaxExpansion) {
			t.Errorf("%q: %d names", s, len(list))
		}
	})
}
