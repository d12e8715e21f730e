package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lamina":   main,
		"qemu-img": main,
		"laminad":  runFakeDaemon,
		"ssh":      fakeSSH,
	})
}

// fakeSSH prints its command line and ends with the status that the command
// "exit N" asks for.
func fakeSSH() {
	_, _ = os.Stdout.WriteString(strings.Join(os.Args[1:], "\n") + "\n")
	if last := os.Args[len(os.Args)-1]; last == "exit 7" {
		os.Exit(7)
	}
}

// TestScripts runs the command lines of testdata/script against a daemon that
// keeps the contract of the API without guests.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			// A socket's path is short; the script's own folder may not be.
			dir, err := os.MkdirTemp("", "lamina-cli-")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(dir) })
			env.Setenv("LAMINA_HOME", dir)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "user"))
			env.Setenv("NO_COLOR", "1")
			return os.MkdirAll(filepath.Join(env.WorkDir, "user", ".ssh"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"json":   cmdJSON,
			"status": cmdStatus,
		},
		RequireExplicitExec: true,
	})
}

// cmdStatus runs a program and requires its exit status: status N PROGRAM ...
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// cmdJSON requires stdout to be one JSON value in which a path, such as
// "0.name", has a value that a regular expression matches.
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json PATH REGEXP")
	}
	text := ts.ReadFile("stdout")
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		ts.Fatalf("stdout is not JSON: %v", err)
	}
	for key := range strings.SplitSeq(args[0], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			var i int
			if err := json.Unmarshal([]byte(key), &i); err != nil || i >= len(at) {
				ts.Fatalf("%s: the list has %d entries", args[0], len(at))
			}
			v = at[i]
		default:
			ts.Fatalf("%s: nothing there at %s", args[0], key)
		}
	}
	got, err := json.Marshal(v)
	ts.Check(err)
	ok, err := regexp.Match("^(?:"+args[1]+")$", got)
	ts.Check(err)
	if !ok {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}
