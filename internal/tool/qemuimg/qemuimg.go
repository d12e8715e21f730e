// Package qemuimg is the work-alike of qemu-img: its verbs, options, output,
// messages and exit statuses. What the verbs do is in package image; here are
// only flags and text.
package qemuimg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

// Compatible is the version of the stock tool whose behaviour is kept.
const Compatible = "7.2.22"

// Exit statuses. Check has more; see check.go.
const (
	exitOK     = 0
	exitFailed = 1
)

// softMemory is what the garbage collector tries to stay below, so that the
// caches of two images (in qcow2 16 MiB of L2 tables and 8 MiB of refcounts
// each) and the buffers of the requests do not take twice their size.
const softMemory = 52 << 20

// verb is one command of the tool.
type verb struct {
	name string
	run  func(t *tool, args []string) int
	// syntax is what help prints behind the name.
	syntax string
}

// verbs are the commands, in the order of the help. It is a function so that
// nothing is built when a program that links this package starts.
func verbs() []verb {
	return []verb{
		{"amend", (*tool).amend, amendSyntax},
		{"bench", (*tool).bench, benchSyntax},
		{"bitmap", (*tool).bitmap, bitmapSyntax},
		{"check", (*tool).check, checkSyntax},
		{"commit", (*tool).commit, commitSyntax},
		{"compare", (*tool).compare, compareSyntax},
		{"convert", (*tool).convert, convertSyntax},
		{"create", (*tool).create, createSyntax},
		{"dd", (*tool).dd, ddSyntax},
		{"info", (*tool).info, infoSyntax},
		{"map", (*tool).mapVerb, mapSyntax},
		{"measure", (*tool).measure, measureSyntax},
		{"snapshot", (*tool).snapshot, snapshotSyntax},
		{"rebase", (*tool).rebase, rebaseSyntax},
		{"resize", (*tool).resize, resizeSyntax},
	}
}

// ownVerbs are the commands that the stock tool does not have.
func ownVerbs() []verb {
	return []verb{
		{"cp", (*tool).cp, cpSyntax},
		{"sparsify", (*tool).sparsify, sparsifySyntax},
		{"tree", (*tool).tree, treeSyntax},
	}
}

// Verbs returns the names of all commands, for completion.
func Verbs() []string {
	var names []string
	for _, v := range append(verbs(), ownVerbs()...) {
		names = append(names, v.name)
	}
	slices.Sort(names)
	return names
}

// extended reports whether what the stock tool refuses (more verbs, several
// images) is there. Under its name it is not: who calls that may rely on errors.
func (t *tool) extended() bool { return t.prog != "qemu-img" }

// tool is one run.
type tool struct {
	ctx    context.Context // of the whole run; it tells warn what is wrong with images
	prog   string          // for messages: "qemu-img", "lamina img"
	stdin  io.Reader
	stdout io.Writer
	out    *bufio.Writer // on stdout
	stderr io.Writer
	// damageMu makes lines about damage come one at a time.
	damageMu sync.Mutex
	// spelled are the names that --image-opts was turned into, with the
	// options as they were typed.
	spelled map[string]string
	outErr  error // the first failed write to standard output
	// secrets are the keys of `--object secret`.
	secrets secretStore
	trace   tracing
}

// Main runs the tool. prog is the program's name for messages ("qemu-img",
// "lamina img"), args the words behind it. It returns the exit status.
func Main(prog string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
	// As the stock tool: a reader that went away, as head does, neither ends
	// the work nor makes it a failure.
	signal.Ignore(syscall.SIGPIPE)
	t := &tool{prog: prog, stdin: stdin, stdout: stdout, out: bufio.NewWriter(stdout), stderr: stderr}
	t.ctx = image.WithDamage(image.WithWarnings(context.Background(), t.warn), t.damage)
	defer t.secrets.wipe()
	status := t.main(args)
	t.flush()
	if t.outErr != nil && !errors.Is(t.outErr, syscall.EPIPE) {
		t.errorf("write to standard output: %v", t.outErr)
		return max(status, exitFailed)
	}
	return status
}

func (t *tool) main(args []string) int {
	p := getopt.New(append([]string{t.prog}, args...), "+:hVT:", []getopt.Long{
		{Name: "help", Val: 'h'},
		{Name: "version", Val: 'V'},
		{Name: "trace", Arg: getopt.RequiredArgument, Val: 'T'},
	})
	for o, err := range p.All() {
		if err != nil {
			return t.badOption(err)
		}
		switch o.Val {
		case 'h':
			return t.help()
		case 'V':
			t.printf("%s", versionText)
			return exitOK
		case 'T':
			if status, done := t.traceOption(o.Arg); done {
				return status
			}
		}
	}
	rest := p.Rest()
	if len(rest) == 0 {
		return t.exit("Not enough arguments")
	}
	if !t.startTrace() {
		return exitFailed
	}
	list := verbs()
	if t.extended() {
		list = append(list, ownVerbs()...)
	}
	for _, v := range list {
		if v.name == rest[0] {
			return v.run(t, rest)
		}
	}
	return t.exit("Command not found: %s", rest[0])
}

// printf writes to standard output, which is buffered until the tool ends.
func (t *tool) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(t.out, format, args...); err != nil && t.outErr == nil {
		t.outErr = err
	}
}

// warn reports what is wrong with an image and no error. Stock ends its hint
// without a new line.
func (t *tool) warn(text, hint string) {
	t.errorf("warning: %s", text)
	t.stderrf("%s", hint)
}

// damage prints what was found damaged in an image. It may come from another
// goroutine, so what printf holds is left alone.
func (t *tool) damage(line string) {
	t.damageMu.Lock()
	defer t.damageMu.Unlock()
	t.stderrf("%s\n", line)
}

// flush writes what printf holds.
func (t *tool) flush() {
	if err := t.out.Flush(); err != nil && t.outErr == nil {
		t.outErr = err
	}
}

// errorf reports an error or warning on standard error, behind the program's
// name. What was printed before appears before it.
func (t *tool) errorf(format string, args ...any) {
	t.flush()
	t.stderrf(t.prog+": "+format+"\n", args...)
}

// stderrf writes to standard error as it is.
func (t *tool) stderrf(format string, args ...any) {
	// Where standard error is gone there is nobody left to tell.
	_, _ = fmt.Fprintf(t.stderr, format, args...)
}

// exit reports a command line that makes no sense, with the pointer to the help.
func (t *tool) exit(format string, args ...any) int {
	t.errorf(format, args...)
	t.stderrf("Try '%s --help' for more information\n", t.prog)
	return exitFailed
}

// badOption reports an option that getopt could not make sense of, in the
// words of qemu-img (which are not glibc's).
func (t *tool) badOption(err error) int {
	var bad *getopt.Error
	switch {
	case !errors.As(err, &bad):
		return t.exit("%v", err)
	case bad.Kind == getopt.MissingArgument:
		return t.exit("missing argument for option '%s'", bad.Word)
	}
	return t.exit("unrecognized option '%s'", bad.Word)
}
