package agent

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

// fakeQGA answers as qemu-guest-agent would.
type fakeQGA struct {
	polls    int                   // before a program has ended
	exec     string                // the answer to guest-exec
	status   string                // the answer to guest-exec-status when the program has ended
	gotInput func(script string)   //
	before   func(nc net.Conn) int // noise at the start of each connection
}

func (f *fakeQGA) serve(nc net.Conn) {
	if f.before != nil {
		f.before(nc)
	}
	_, _ = nc.Write([]byte("{\"return\": {\"half an ans"))
	polls := f.polls
	lines := newLineReader(nc)
	for line, ok := lines(); ok; line, ok = lines() {
		line, delimited := strings.CutPrefix(line, "\xff")
		var req struct {
			Execute   string
			Arguments struct {
				ID    int64
				Input []byte `json:"input-data"`
			}
		}
		if err := json.Unmarshal([]byte(line), &req); err != nil {
			_, _ = fmt.Fprintf(nc, `{"error": {"class": "GenericError", "desc": "%s"}}`+"\n", "JSON")
			continue
		}
		switch req.Execute {
		case "guest-sync-delimited":
			if delimited {
				// The answer to a client before this one comes first.
				_, _ = fmt.Fprintf(nc, "ping\"}}\n\xff{\"return\": 17}\n")
			}
			_, _ = fmt.Fprintf(nc, "\xff{\"return\": %d}\n", req.Arguments.ID)
		case "guest-exec":
			if f.gotInput != nil {
				f.gotInput(string(req.Arguments.Input))
			}
			_, _ = fmt.Fprintln(nc, or(f.exec, `{"return": {"pid": 5}}`))
		case "guest-exec-status":
			if polls > 0 {
				polls--
				_, _ = fmt.Fprintln(nc, `{"return": {"exited": false}}`)
				continue
			}
			_, _ = fmt.Fprintln(nc, or(f.status, `{"return": {"exited": true, "exitcode": 0, "out-data": "cmFuCg=="}}`))
		}
	}
}

func or(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

func TestQGA(t *testing.T) {
	ctx := testContext(t)
	big := base64.StdEncoding.EncodeToString(make([]byte, MaxOutput))
	more := base64.StdEncoding.EncodeToString(make([]byte, MaxOutput+1))
	for _, tc := range []struct {
		name   string
		fake   fakeQGA
		status int
		output string
		size   int
		err    error
		text   string
	}{
		{name: "runs", fake: fakeQGA{polls: 3}, output: "ran\n"},
		{name: "status", fake: fakeQGA{status: `{"return": {"exited": true, "exitcode": 3}}`}, status: 3},
		{name: "signal", fake: fakeQGA{status: `{"return": {"exited": true, "signal": 9}}`}, status: 137},
		{name: "much", fake: fakeQGA{status: `{"return": {"exited": true, "out-data": "` + big + `"}}`}, size: MaxOutput},
		{name: "forbidden", fake: fakeQGA{exec: `{"error": {"class": "CommandNotFound", "desc": "The command guest-exec has been disabled"}}`}, err: ErrNoExec},
		{name: "error", fake: fakeQGA{exec: `{"error": {"class": "GenericError", "desc": "Guest agent: no fork"}}`}, text: "no fork"},
		{name: "too much", fake: fakeQGA{status: `{"return": {"exited": true, "out-data": "` + more + `"}}`}, err: ErrOutput},
		{name: "cut", fake: fakeQGA{status: `{"return": {"exited": true, "out-data": "AA==", "out-truncated": true}}`}, err: ErrOutput},
		{name: "endless", fake: fakeQGA{status: strings.Repeat("x", maxReply+1)}, err: ErrProtocol},
		{name: "no JSON", fake: fakeQGA{exec: "hello"}, err: ErrProtocol},
		{name: "nothing", fake: fakeQGA{exec: "{}"}, err: ErrProtocol},
		{name: "no base64", fake: fakeQGA{status: `{"return": {"exited": true, "out-data": "***"}}`}, err: ErrProtocol},
		{name: "odd status", fake: fakeQGA{status: `{"return": {"exited": true, "exitcode": 4000000}}`}, err: ErrProtocol},
		{name: "another type", fake: fakeQGA{status: `{"return": [1]}`}, err: ErrProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Dial(ctx, "", peer(t, tc.fake.serve))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			r, err := c.Run(ctx, "echo", nil)
			switch {
			case tc.err != nil:
				if !errors.Is(err, tc.err) {
					t.Fatalf("error %v, want %v", err, tc.err)
				}
			case tc.text != "":
				if err == nil || !strings.Contains(err.Error(), tc.text) {
					t.Fatalf("error %v, want one that says %q", err, tc.text)
				}
			case err != nil:
				t.Fatal(err)
			case r.Status != tc.status || tc.size == 0 && string(r.Output) != tc.output || tc.size > 0 && len(r.Output) != tc.size:
				t.Errorf("status %d, %d bytes %q, want %d, %q", r.Status, len(r.Output), clip(string(r.Output)), tc.status, tc.output)
			}
		})
	}
}

// The script that QEMU's agent is given is what a shell runs.
func TestQGAScript(t *testing.T) {
	ctx := testContext(t)
	var script string
	fake := fakeQGA{gotInput: func(s string) { script = s }}
	c, err := Dial(ctx, "", peer(t, fake.serve))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(ctx, "cat; pwd; echo to stderr >&2; exit 3", []byte("in\n")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	for _, shell := range shells {
		out, status := runShell(t, shell, script)
		if out != "in\n/\nto stderr\n" || status != 3 {
			t.Errorf("%v: status %d, %q", shell, status, out)
		}
	}
}
