package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/home"
)

// kvmDevice is the host's door to hardware virtualization.
const kvmDevice = "/dev/kvm"

// kvmVerdict is what a start under KVM taught about this host. It holds until
// the host is booted anew, or its kernel or QEMU is another one.
type kvmVerdict struct {
	Host   string `json:"host"`             // boot id, kernel, QEMU binary
	Works  bool   `json:"works"`            // a guest has run
	Reason string `json:"reason,omitempty"` // why not
}

// kvmMemory keeps the verdict, so that only the first start on a host pays
// for finding out that KVM does not run machines there.
type kvmMemory struct {
	path string // "" keeps it in memory only

	mu      sync.Mutex
	verdict kvmVerdict
}

// hostKey names the host as it runs now, with one QEMU binary.
func hostKey(binary string) (string, error) {
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	st, err := os.Stat(binary) // an upgrade changes both size and time
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %s %d %d", boot, strings.TrimSpace(string(kernel)), binary, st.Size(), st.ModTime().UnixNano()), nil
}

// recall returns what is known of the host, known false where it is nothing.
// A damaged or foreign file is nothing known.
func (m *kvmMemory) recall(host string) (v kvmVerdict, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verdict.Host == host {
		return m.verdict, true
	}
	if m.path == "" {
		return kvmVerdict{}, false
	}
	b, err := os.ReadFile(m.path)
	if err != nil || json.Unmarshal(b, &v) != nil || v.Host != host {
		return kvmVerdict{}, false
	}
	m.verdict = v
	return v, true
}

// learn keeps a verdict. That it could not be written costs the next process
// another try, so the error only matters where it means a wrong set-up.
func (m *kvmMemory) learn(v kvmVerdict) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verdict == v {
		return nil
	}
	m.verdict = v
	if m.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return err
	}
	return writeJSON(m.path, v)
}

func newKVMMemory(cacheDir string) *kvmMemory {
	if cacheDir == "" {
		return &kvmMemory{}
	}
	return &kvmMemory{path: filepath.Join(cacheDir, home.KVMFile)}
}

// openKVM says why this process cannot use KVM at all, nil if it may be able to.
func openKVM(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s: enable virtualization in the firmware and load the module kvm_intel or kvm_amd", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no access to %s: add your user to the group kvm and log in again", path)
	case err != nil:
		return err
	}
	return f.Close()
}
