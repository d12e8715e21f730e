package virtinstall

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
)

// asTool in the environment makes the test binary the tool itself, which runs
// one command line after another: it must be in the mount namespace of the
// private libvirtd, where qemu:///system is that daemon.
const asTool = "LAMINA_TEST_AS_VIRT_INSTALL"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	libvirttest.Main(m)
}

// request is a command line, result what came of it: the protocol of serve and
// of testdata/stock.py, a line of JSON each.
type request struct {
	Args []string `json:"args"`
}

type result struct {
	Status int    `json:"status"`
	Out    string `json:"out"`
	Err    string `json:"err"`
}

// serve answers requests with what ours does.
func serve(in io.Reader, out io.Writer) error {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q request
		if err := questions.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var stdout, stderr bytes.Buffer
		status := mainRecovered(q.Args, Streams{strings.NewReader(""), &stdout, &stderr})
		if err := answers.Encode(result{status, stdout.String(), stderr.String()}); err != nil {
			return err
		}
	}
}

// panicked is the exit status of a run that panics.
const panicked = 97

func mainRecovered(args []string, std Streams) (status int) {
	defer func() {
		if r := recover(); r != nil {
			status = panicked
			_, _ = fmt.Fprintf(std.Err, "panic: %v\n", r)
		}
	}()
	return Main(context.Background(), args, std)
}

// tool is one that answers requests, in the folder of the fixtures.
type tool struct {
	name    string
	in      io.WriteCloser
	answers *bufio.Reader
	err     *bytes.Buffer
}

// startTool starts one that ends with the test.
func startTool(t testing.TB, d *libvirttest.Daemon, dir, name string, args []string, env ...string) *tool {
	t.Helper()
	cmd := d.Command(t, args[0], args[1:]...)
	for i, a := range cmd.Args {
		if strings.HasPrefix(a, "--wd=") {
			cmd.Args[i] = "--wd=" + dir
		}
	}
	// The folder was opened outside of the namespace, where getcwd cannot name it.
	cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+toolCache(t), "PWD="+dir)
	cmd.Env = append(cmd.Env, env...)
	x := &tool{name: name, err: &bytes.Buffer{}}
	var err error
	if x.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	x.answers = bufio.NewReader(out)
	cmd.Stderr = x.err
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = x.in.Close() // this ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, x.err)
		}
	})
	return x
}

// toolCache is the folder that the tools have for their caches, so that tests
// neither depend on that of the user nor write logs there.
func toolCache(t testing.TB) string {
	t.Helper()
	return t.TempDir()
}

// run has a command line run.
func (x *tool) run(args []string) (result, error) {
	b, err := json.Marshal(request{args})
	if err != nil {
		return result{}, err
	}
	if _, err := x.in.Write(append(b, '\n')); err != nil {
		return result{}, fmt.Errorf("%s: %w\n%s", x.name, err, x.err)
	}
	line, err := x.answers.ReadBytes('\n')
	if err != nil {
		return result{}, fmt.Errorf("%s: %q: %w\n%s", x.name, args, err, x.err)
	}
	var r result
	return r, json.Unmarshal(line, &r)
}

// pair is the stock tool and ours over one private libvirtd.
type pair struct{ stock, ours *tool }

// startPair starts both; the fixtures of the daemon are made before.
func startPair(t testing.TB, d *libvirttest.Daemon, dir string) pair {
	t.Helper()
	script, err := filepath.Abs("testdata/stock.py")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{stockPython, stockTool} {
		if _, err := exec.LookPath(path); err != nil {
			t.Fatalf("%s is not installed: run make deps", path)
		}
	}
	return pair{
		stock: startTool(t, d, dir, "stock", []string{stockPython, script}),
		ours:  startTool(t, d, dir, "ours", []string{self}, asTool+"=1"),
	}
}

// The stock tool, and the Python that its modules are installed for.
const (
	stockTool   = "/usr/bin/virt-install"
	stockPython = "/usr/bin/python3"
)

// run has both run a command line, at the same time.
func (p pair) run(args []string) (stock, ours result, err error) {
	var stockErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		stock, stockErr = p.stock.run(args)
	}()
	ours, err = p.ours.run(args)
	<-done
	return stock, ours, errors.Join(stockErr, err)
}
