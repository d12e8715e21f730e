// Package qemutest is the only door through which tests run the stock tools:
// qemu-img, qemu-io and qemu-system-x86_64. A missing tool fails the test and
// names `make deps`; nothing is skipped for lack of it.
package qemutest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Path returns where a tool is, or fails the test.
func Path(t testing.TB, tool string) string {
	t.Helper()
	p, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%s is not installed: run make deps", tool)
	}
	return p
}

// Result is what a tool printed and how it ended.
type Result struct {
	Stdout, Stderr string
	Status         int
}

// Run runs a tool with the C locale and returns what it did. Only a tool that
// could not be run, or was killed, fails the test.
func Run(t testing.TB, tool string, args ...string) Result {
	t.Helper()
	cmd := exec.Command(Path(t, tool), args...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errb.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		r.Status = exit.ExitCode()
	case err != nil:
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, r.Stderr)
	}
	return r
}

// Img runs the stock qemu-img, which must succeed, and returns its stdout.
func Img(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "qemu-img", args)
}

// IO runs the stock qemu-io on an image of the given format with one command
// for each of cmds; all must succeed. It returns what it printed.
func IO(t testing.TB, format, file string, cmds ...string) string {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out := must(t, "qemu-io", append(args, file))
	// qemu-io ends with 0 even where a command failed in old versions.
	for _, bad := range []string{"failed:", "Pattern verification failed", "can't open"} {
		if strings.Contains(out, bad) {
			t.Fatalf("qemu-io %s: %s", strings.Join(cmds, "; "), out)
		}
	}
	return out
}

func must(t testing.TB, tool string, args []string) string {
	t.Helper()
	r := Run(t, tool, args...)
	if r.Status != 0 {
		t.Fatalf("%s %s: status %d\n%s%s", tool, strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Check is what `qemu-img check --output=json` says.
type Check struct {
	ImageEndOffset int64 `json:"image-end-offset"`
	CheckErrors    int64 `json:"check-errors"`
	Corruptions    int64 `json:"corruptions"`
	Leaks          int64 `json:"leaks"`
	Allocated      int64 `json:"allocated-clusters"`
	Total          int64 `json:"total-clusters"`
	Fragmented     int64 `json:"fragmented-clusters"`
	Compressed     int64 `json:"compressed-clusters"`
	Status         int   `json:"-"`
}

// CheckImage runs the stock check and returns its findings.
func CheckImage(t testing.TB, format, file string) Check {
	t.Helper()
	r := Run(t, "qemu-img", "check", "--output=json", "-f", format, file)
	var c Check
	if err := json.Unmarshal([]byte(r.Stdout), &c); err != nil {
		t.Fatalf("qemu-img check %s: status %d: %v\n%s%s", file, r.Status, err, r.Stdout, r.Stderr)
	}
	c.Status = r.Status
	return c
}

// RequireClean fails the test unless the stock check finds neither an error
// nor a leak in a qcow2 image.
func RequireClean(t testing.TB, file string) {
	t.Helper()
	c := CheckImage(t, "qcow2", file)
	if c.Status != 0 || c.Corruptions != 0 || c.Leaks != 0 || c.CheckErrors != 0 {
		full := Run(t, "qemu-img", "check", "-f", "qcow2", file)
		t.Fatalf("stock check of %s: %+v\n%s%s", file, c, full.Stdout, full.Stderr)
	}
}

// RequireSame fails the test unless the stock tool finds the same guest
// content in both images.
func RequireSame(t testing.TB, format1, file1, format2, file2 string) {
	t.Helper()
	r := Run(t, "qemu-img", "compare", "-f", format1, "-F", format2, file1, file2)
	if r.Status != 0 {
		t.Fatalf("qemu-img compare %s %s: status %d: %s%s", file1, file2, r.Status, r.Stdout, r.Stderr)
	}
}

// Version returns the version of a QEMU tool, "7.2.22".
func Version(t testing.TB, tool string) string {
	t.Helper()
	var v string
	out := must(t, tool, []string{"--version"})
	for _, f := range strings.Fields(out) {
		if _, err := fmt.Sscanf(f, "%s", &v); err == nil && len(v) > 0 && v[0] >= '0' && v[0] <= '9' {
			return v
		}
	}
	t.Fatalf("%s --version: %q", tool, out)
	return ""
}
