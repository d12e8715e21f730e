package getopt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

var longs = []Long{
	{"help", NoArgument, 'h'},
	{"format", RequiredArgument, 'f'},
	{"force", NoArgument, 1},
	{"output", RequiredArgument, 2},
	{"outer", RequiredArgument, 2},
	{"level", OptionalArgument, 3},
}

const shorts = "hf:o::q"

// read goes through a command line and writes it as util-linux's getopt does,
// which is glibc's getopt_long with quotes.
func read(args []string) (out string, messages []string) {
	p := New(append([]string{"getopt"}, args...), shorts, longs)
	names := map[rune]string{'h': "-h", 'f': "-f", 'o': "-o", 'q': "-q"}
	var b strings.Builder
	for {
		o, err := p.Next()
		if err == io.EOF {
			break
		}
		var bad *Error
		if errors.As(err, &bad) {
			messages = append(messages, "getopt: "+bad.Error())
			continue
		}
		fmt.Fprintf(&b, " %s=%s", names[o.Val], o.Arg)
	}
	b.WriteString(" --")
	for _, w := range p.Rest() {
		b.WriteString(" '" + w + "'")
	}
	return b.String(), messages
}

// TestAgainstGlibc compares operands, errors and the number of options with
// what the C library makes of random command lines.
func TestAgainstGlibc(t *testing.T) {
	tool, err := exec.LookPath("getopt")
	if err != nil {
		t.Fatal("getopt of util-linux is not installed: run make deps")
	}
	words := []string{"-h", "-f", "-fx", "-qh", "-qf", "-qfx", "-o", "-ox", "-x", "-xq", "-", "--", "--help", "--he", "--fo", "--format",
		"--format=a", "--form", "--out", "--out=1", "--output=", "--level", "--level=2", "--help=1", "--nope", "--nope=3", "a", "b", "c"}
	rnd := rand.New(rand.NewPCG(1, 2))
	long := "help,format:,force,output:,outer:,level::"
	for i := range 400 {
		args := make([]string, rnd.IntN(7))
		for j := range args {
			args[j] = words[rnd.IntN(len(words))]
		}
		cmd := exec.Command(tool, append([]string{"-o", shorts, "-l", long, "--"}, args...)...)
		cmd.Args[0] = "getopt"
		cmd.Env = []string{"LC_ALL=C"}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		runErr := cmd.Run()
		got, messages := read(args)
		wantMessages := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
		if stderr.Len() == 0 {
			wantMessages = nil
		}
		// util-linux keeps --output and --outer apart (it gives each its own
		// value), so that an abbreviation of both is ambiguous there.
		if ambiguous := strings.Contains(stderr.String(), "--outer"); ambiguous {
			continue
		}
		if !reflect.DeepEqual(messages, wantMessages) {
			t.Fatalf("%d: %q:\n got %q\nwant %q", i, args, messages, wantMessages)
		}
		want := strings.TrimSuffix(stdout.String(), "\n")
		if g, w := got[strings.Index(got, " --"):], want[strings.LastIndex(want+" ", " -- "):]; runErr == nil && strings.TrimSpace(g) != strings.TrimSpace(w) {
			t.Fatalf("%d: %q: operands\n got %s\nwant %s", i, args, g, w)
		}
	}
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
		rest []string
	}{
		{[]string{"a", "-f", "x", "b", "--help", "--", "-q"}, "f=x h= ", []string{"a", "b", "-q"}},
		{[]string{"-qfraw", "-o", "-ov"}, "q= f=raw o= o=v ", []string{}},
		{[]string{"--form=qcow2", "--out", "json"}, "f=qcow2 \x02=json ", []string{}},
		{[]string{"-", "-q"}, "q= ", []string{"-"}},
		{[]string{"--fo"}, "!option '--fo' is ambiguous; possibilities: '--format' '--force' ", []string{}},
		{[]string{"-f"}, "!option requires an argument -- 'f' ", []string{}},
		{[]string{"--format"}, "!option '--format' requires an argument ", []string{}},
		{[]string{"--foo=1"}, "!unrecognized option '--foo=1' ", []string{}},
		{[]string{"-z"}, "!invalid option -- 'z' ", []string{}},
		{[]string{"--force=1"}, "!option '--force' doesn't allow an argument ", []string{}},
	} {
		p := New(append([]string{"prog"}, c.args...), shorts, longs)
		var got strings.Builder
		for {
			o, err := p.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				fmt.Fprintf(&got, "!%v ", err)
				continue
			}
			fmt.Fprintf(&got, "%c=%s ", o.Val, o.Arg)
		}
		if got.String() != c.want || !reflect.DeepEqual(append([]string{}, p.Rest()...), c.rest) {
			t.Errorf("%q: got %q, rest %q; want %q, rest %q", c.args, got.String(), p.Rest(), c.want, c.rest)
		}
	}
}

func TestInOrder(t *testing.T) {
	p := New([]string{"prog", "-q", "verb", "-h"}, "+"+shorts, longs)
	if o, err := p.Next(); err != nil || o.Val != 'q' {
		t.Fatal(o, err)
	}
	if _, err := p.Next(); err != io.EOF {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.Rest(), []string{"verb", "-h"}) {
		t.Fatal(p.Rest())
	}
}
