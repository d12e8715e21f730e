package libvirt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// record is the content of home.RunFile: what another process needs to adopt
// a machine. It is written before the domain is created, and has the version of
// QEMU before the guest may execute.
type record struct {
	URI  string     `json:"libvirt"`
	Name string     `json:"name"`
	UUID string     `json:"uuid"`
	Info vm.RunInfo `json:"info"`
	Spec vm.Spec    `json:"spec"`
	// Link is a symbolic link to the folder, where the folder's path is too long
	// for a socket's.
	Link string `json:"link,omitempty"`
}

// place is the folder by a path that is short enough for sockets.
func (r record) place(dir string) string {
	if r.Link != "" {
		return r.Link
	}
	return dir
}

// maxSocketPath is sun_path of unix(7) less its final zero.
const maxSocketPath = 107

// shortLink is the name of a link to a folder with a long path, "" for others.
func shortLink(dir string) string {
	if len(filepath.Join(dir, home.SerialSock)) <= maxSocketPath {
		return ""
	}
	return filepath.Join(os.TempDir(), "lamina-"+vm.NewUUID())
}

func readRecord(dir string) (record, error) {
	var r record
	path := filepath.Join(dir, home.RunFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil || r.UUID == "" {
		return r, fmt.Errorf("%s is damaged (%w): see with virsh what runs there, and remove the file", path, errors.Join(err, fs.ErrInvalid))
	}
	return r, nil
}

// write replaces the record as one step, and makes the link.
func (r record) write(dir string) error {
	if r.Link != "" {
		if err := os.Symlink(dir, r.Link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, home.RunFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// findRunning returns the domain that runs in dir, nil if none does; then what
// a dead one left is gone. The folder's lock must be held.
func findRunning(ctx context.Context, conn *Conn, dir string) (*Domain, record, error) {
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, r, nil
	}
	if err != nil {
		return nil, r, err
	}
	dom, err := conn.LookupDomainByUUID(ctx, r.UUID)
	if errors.Is(err, ErrNotFound) {
		return nil, r, removeRuntime(dir, r)
	}
	if err != nil {
		return nil, r, err
	}
	if r.Info.QEMU == "" { // its starter died before the guest executed
		return nil, r, undo(ctx, conn, dir, r)
	}
	state, _, err := dom.State(ctx)
	if err == nil && !state.Active() {
		return nil, r, removeRuntime(dir, r)
	}
	return dom, r, err
}

// removeRuntime removes what only a running machine has, the record last.
func removeRuntime(dir string, r record) error {
	var errs []error
	for _, n := range []string{home.SerialSock, home.VNCSocket, home.RunFile + ".new"} {
		if err := os.Remove(filepath.Join(dir, n)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if r.Link != "" {
		if to, err := os.Readlink(r.Link); err == nil && to == dir { // no other's
			errs = append(errs, os.Remove(r.Link))
		}
	}
	if err := os.Remove(filepath.Join(dir, home.RunFile)); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// findProcess returns the process of this host's QEMU that has a UUID on its
// command line: libvirt tells nobody the process, and its pid files are not
// everybody's to read.
func findProcess(uuid string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	want := []byte("\x00-uuid\x00" + uuid + "\x00")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, want) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of this host runs machine %s", uuid)
}
