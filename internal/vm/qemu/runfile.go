package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// record is the content of home.RunFile: what another process needs to adopt
// a machine. It is written without a process just before one is started, so
// that a starter's death in between leaves a trace, and has the version of QEMU
// before the guest may execute.
type record struct {
	Process identity   `json:"process"`
	Info    vm.RunInfo `json:"info"`
	Spec    vm.Spec    `json:"spec"`
	// Helpers are processes that serve this one and end with it.
	Helpers []identity `json:"helpers,omitempty"`
	// DiskIDs and NICIDs are what QEMU calls the drives and cards of the
	// spec; empty while they are those of the start, in order.
	DiskIDs []string `json:"diskIds,omitempty"`
	NICIDs  []string `json:"nicIds,omitempty"`
	// Freeze is set while the machine is being frozen.
	Freeze *freezeNote `json:"freeze,omitempty"`
}

// errDamaged: the record cannot be read.
var errDamaged = errors.New("damaged")

// readRecord returns fs.ErrNotExist where no machine was started, and
// errDamaged for a record that is none.
func readRecord(dir string) (record, error) {
	var r record
	path := filepath.Join(dir, home.RunFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s is %w: %w", path, errDamaged, err)
	}
	return r, nil
}

// write replaces the record as one step.
func (r record) write(dir string) error {
	return writeJSON(filepath.Join(dir, home.RunFile), r)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// removeRuntime removes what only a machine on record has, here and elsewhere.
func (r record) removeRuntime(ctx context.Context, dir string) error {
	if err := endHelpers(ctx, r.Helpers); err != nil {
		return err
	}
	removeSockets(r.Spec)
	return removeRuntime(dir)
}

// removeRuntime removes what only a running machine has. The folder's lock
// must be held and no QEMU run in it.
func removeRuntime(dir string) error {
	names := []string{home.PIDFile, home.RunFile + ".new"}
	var errs []error
	for _, pattern := range []string{home.ScreenFiles, home.Sockets, memoryFiles} {
		found, err := filepath.Glob(filepath.Join(escapeGlob(dir), pattern))
		errs = append(errs, err)
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	// The record goes last: while it is there, a next look cleans up again.
	for _, n := range append(names, home.RunFile) {
		if err := os.Remove(filepath.Join(dir, n)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// wordPrefix is the program's name before its messages.
var wordPrefix = regexp.MustCompile(`^qemu[-a-z0-9_]*: (error: )?`)

// lastWords returns the last lines of QEMU's log as one, "" for an empty log.
// Warnings, and the lines of QEMU's source that gave up, are left out unless
// there is nothing else.
func lastWords(dir string) string {
	f, err := os.Open(filepath.Join(dir, home.QEMULogFile))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const window, most = 8192, 5
	if st, err := f.Stat(); err == nil && st.Size() > window {
		if _, err := f.Seek(-window, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, window))
	if err != nil {
		return ""
	}
	if _, whole, found := bytes.Cut(b, []byte("\n")); found && len(b) == window {
		b = whole // the first line may be the end of a long one
	}
	var words, warnings []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(strings.ToValidUTF8(line, "?"))
		line = wordPrefix.ReplaceAllString(line, "")
		switch {
		case line == "" || strings.HasPrefix(line, logMark):
		case strings.HasPrefix(line, "warning: "), strings.Contains(line, "Assertion `"):
			warnings = append(warnings, line)
		default:
			words = append(words, line)
		}
	}
	if len(words) == 0 {
		words = warnings
	}
	return strings.Join(words[max(0, len(words)-most):], "; ")
}
