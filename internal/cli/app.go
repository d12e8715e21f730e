package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/progress"
)

// The exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errInterrupted is why the context of a verb ends at Ctrl-C.
var errInterrupted = errors.New("interrupted")

// usageError is a command line that says nothing that can be done.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// silentError ends the program with status 1; what there was to say has been
// said.
type silentError struct{}

func (silentError) Error() string { return "" }

// app is one run of the command: where it reads and writes.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr *os.File
	// display shows progress on stderr.
	display *progress.Display
	quiet   bool
	warned  sync.Map // what warnings were about
	uri     string   // of --connect
	heavy   Heavy    // what of it is nil laminad has
	// entered: a verb has begun its work; errors before that are of usage.
	entered bool
}

func newApp(stdin, stdout, stderr *os.File, heavy Heavy) *app {
	return &app{stdin: stdin, stdout: stdout, stderr: stderr, heavy: heavy, display: progress.For(stderr)}
}

// main runs the verb that args name and returns the exit status.
func (a *app) main(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
		signal.Stop(signals) // a second Ctrl-C ends the program at once
	}()
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.display.Close()
	if err != nil && !a.entered {
		err = usageError{err}
	}
	return a.status(cmd.CommandPath(), err)
}

// status says what went wrong and returns the exit status for it.
func (a *app) status(path string, err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		a.say("lamina: %v", err)
		a.say("See `%s --help`.", path)
		return exitUsage
	case errors.Is(err, silentError{}):
		return exitFailed
	case errors.Is(err, syscall.EPIPE): // `lamina ls | head -1`
		return exitFailed
	}
	a.say("lamina: %v", err)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Problem != nil {
		a.explain(refused.Problem)
	}
	return exitFailed
}

// say writes a line to stderr, above what is shown of the progress.
func (a *app) say(format string, args ...any) { a.display.Printf(format, args...) }

// terminal says whether progress is shown on one.
func (a *app) terminal() bool { return a.display.Terminal() }

// note is say for what --quiet leaves out.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		a.say(format, args...)
	}
}

// printf writes to stdout.
func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format, args...)
	return err
}

// printJSON writes v to stdout as indented JSON.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printJSONLine writes v to stdout as one line of JSON.
func (a *app) printJSONLine(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// connect returns a client of this home's daemon, which is started if needed.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	h, err := home.Find()
	if err != nil {
		return nil, err
	}
	return client.Connect(ctx, h)
}
