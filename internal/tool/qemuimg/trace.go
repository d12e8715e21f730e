package qemuimg

import (
	"bufio"
	"errors"
	"os"
	"strings"
)

// tracing is what --trace asked for. The stock tool's trace events are places
// in its C code; here are none, so every event that is named is one that does
// not exist, for which the stock tool has a warning, and every pattern with
// wildcards fits nothing, which is no error there either.
type tracing struct {
	file string // "" for none: events would go to standard error
}

// traceOption reads one --trace: [enable=]PATTERN, events=FILE, file=FILE.
// done says that the tool ends with status.
func (t *tool) traceOption(arg string) (status int, done bool) {
	var enable, events string
	hasEnable := false
	for _, kv := range parseKeyvals(arg, "enable") {
		switch kv.key {
		case "enable":
			enable = kv.value
		case "events":
			events = kv.value
		case "file":
			t.trace.file = kv.value
		default:
			t.errorf("Invalid parameter '%s'", kv.key)
			return exitFailed, true
		}
		hasEnable = hasEnable || kv.key == "enable"
	}
	switch {
	case enable == "help" || enable == "?":
		return exitOK, true // the list of events, which is empty
	case hasEnable:
		t.traceEvent("", enable)
	}
	if events != "" {
		if err := t.traceEvents(events); err != nil {
			t.stderrf("%s:%s: %s\n", t.prog, events, errnoText(err))
			return exitFailed, true
		}
	}
	return exitOK, false
}

// traceEvents reads a file with one pattern a line.
func (t *tool) traceEvents(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if line := lines.Text(); line != "" && line[0] != '#' {
			t.traceEvent(":"+name+":"+formatInt(int64(n)), line)
		}
	}
	return lines.Err()
}

// traceEvent warns of an event that does not exist; where is the line of a
// file that names it.
func (t *tool) traceEvent(where, name string) {
	switch {
	case name == "help" || name == "?" || strings.ContainsAny(name, "*?"):
	case where != "":
		t.stderrf("%s%s: warning: trace event '%s' does not exist\n", t.prog, where, strings.TrimPrefix(name, "-"))
	default:
		t.errorf("warning: trace event '%s' does not exist", strings.TrimPrefix(name, "-"))
	}
}

// startTrace makes the file that events would go to.
func (t *tool) startTrace() bool {
	if t.trace.file == "" {
		return true
	}
	f, err := os.Create(t.trace.file)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		t.errorf("Error opening logfile %s: %s", t.trace.file, errnoText(err))
	}
	return err == nil
}
