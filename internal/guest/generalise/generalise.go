// Package generalise makes of a machine's disk one that many machines can be
// made of: the script that runs in the guest, the user-data that runs it where
// there is no agent, and the reader of its report.
//
// The script removes the machine-id, SSH host keys, cloud-init's state, DHCP
// leases, stored random seeds, udev's names for cards, shell histories, known
// hosts, temporary files and logs. It keeps users, their passwords and keys, and
// says so. Whether it was done can be seen from outside, too: package inspect
// looks for the same traces in the image.
package generalise

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

//go:embed script.sh
var script string

// Options are how the script is to run.
type Options struct {
	// Token tells the report of this run from that of any other that the same
	// console shows: 1 to 64 letters and digits. Required.
	Token string
	// PowerOff makes all file systems read-only and switches the guest off at the
	// end, so that nothing can write what was removed. Without it the caller has
	// to see to that.
	PowerOff bool
	// Detach, with PowerOff, ends the script with its report; the guest goes off
	// some seconds later. For an agent, which could not hand the report on else.
	Detach bool
	// Console has the report written to /dev/console and the first serial port,
	// too.
	Console bool
	// Caches removes what the package manager has downloaded.
	Caches bool
}

// Script returns the script, for a POSIX shell: it runs as root, reports on its
// standard output, and exits with 0 also when single things failed, which the
// report says. It needs no arguments and no standard input.
func Script(o Options) (string, error) {
	if o.Token == "" || len(o.Token) > 64 || strings.ContainsFunc(o.Token, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return "", fmt.Errorf("generalise: the token %q is not 1 to 64 letters and digits", o.Token)
	}
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	return fmt.Sprintf("#!/bin/sh\ntoken=%s poweroff=%s detach=%s console=%s caches=%s\n%s", o.Token, yes(o.PowerOff), yes(o.Detach), yes(o.Console), yes(o.Caches), script), nil
}

// UserData returns user-data with which a boot of an image that has cloud-init
// runs the script, reports on the console, and powers off. The seed must have a
// new instance-id, and nothing else in it that would stay: no users, keys or
// passwords.
func UserData(token string) ([]byte, error) {
	s, err := Script(Options{Token: token, PowerOff: true, Console: true})
	return []byte(s), err
}

// Report is what the script has done.
type Report struct {
	Steps []Step
	// Kept and Failed are what it left, with reasons: because it is not to be
	// removed, and because it could not be.
	Kept, Failed []Remark
	Added        []Remark
	Done         bool // it came to its end, and everything is on the disk
}

// Step is a kind of trace, such as "ssh-host-keys", and how many were removed.
type Step struct {
	Name    string
	Removed int
}

// Remark is a path in the guest, or the name of a program, and what there is to
// say of it.
type Remark struct{ Path, Text string }

func (r Remark) String() string {
	if r.Text == "" {
		return r.Path
	}
	return r.Path + ": " + r.Text
}

// Bounds of what is read from a console that the guest writes.
const (
	maxLine    = 1024 // bytes
	maxRemarks = 64   // of a kind
)

// ErrNotRun is returned for an output without the script's report.
var ErrNotRun = errors.New("the guest did not run the script that generalises it")

// ErrNotDone is returned with the report of a script that did not come to its
// end.
var ErrNotDone = errors.New("the script that generalises the guest did not come to its end")

// Parse reads the report with that token from what the guest has written: the
// script's output, or a serial console with all else that is on it. Lines may come
// more than once. The report of a script that ended half way comes with
// [ErrNotDone], no report at all is [ErrNotRun]. Where things could not be removed
// the report says so; that is no error.
func Parse(output []byte, token string) (Report, error) {
	var r Report
	begun := false
	prefix := []byte("lamina-generalise[" + token + "]: ")
	for line := range bytes.Lines(output) {
		// The kernel may have begun the line.
		_, text, ok := bytes.Cut(line, prefix)
		if !ok || len(text) > maxLine {
			continue
		}
		what, rest, _ := strings.Cut(printable(text), " ")
		path, remark, _ := strings.Cut(rest, " ")
		switch what {
		case "begin":
			begun = true
		case "removed":
			if n, err := strconv.Atoi(remark); err == nil && n >= 0 && path != "" && len(r.Steps) < maxRemarks &&
				!slices.ContainsFunc(r.Steps, func(s Step) bool { return s.Name == path }) {
				r.Steps = append(r.Steps, Step{path, n})
			}
		case "kept":
			r.Kept = add(r.Kept, Remark{path, remark})
		case "failed":
			r.Failed = add(r.Failed, Remark{path, remark})
		case "added":
			r.Added = add(r.Added, Remark{path, remark})
		case "done":
			r.Done = begun
		}
	}
	switch {
	case !begun:
		return Report{}, ErrNotRun
	case !r.Done:
		return r, ErrNotDone
	}
	return r, nil
}

func add(list []Remark, r Remark) []Remark {
	if r.Path == "" || len(list) == maxRemarks || slices.Contains(list, r) {
		return list
	}
	return append(list, r)
}

// printable is a line as it can be shown.
func printable(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, string(b)))
}
