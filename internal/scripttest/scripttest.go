// Package scripttest is the commands that Lamina's test scripts (testscript)
// have beyond the usual ones.
package scripttest

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands returns the commands: status and json.
func Commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"status": status, "json": jsonPath}
}

// status runs a program and requires its exit status: status N PROGRAM ARG...
func status(ts *testscript.TestScript, neg bool, args []string) {
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

// jsonPath requires stdout to be one JSON value in which a path, such as
// "0.name", has a value that a regular expression matches as a whole.
func jsonPath(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: json PATH REGEXP")
	}
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("stdout is not JSON: %v", err)
	}
	for key := range strings.SplitSeq(args[0], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(at) {
				ts.Fatalf("%s: the list has %d entries", args[0], len(at))
			}
			v = at[i]
		default:
			ts.Fatalf("%s: there is nothing at %s", args[0], key)
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
