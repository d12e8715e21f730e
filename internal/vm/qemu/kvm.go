package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/home"
)

// kvmDevice is the host's door to hardware virtualization.
const kvmDevice = "/dev/kvm"

// kvmVerdict is what a start under KVM taught about a host.
type kvmVerdict struct {
	Works  bool   `json:"works"`            // a guest has run
	Reason string `json:"reason,omitempty"` // why not
}

// kvmVerdicts are those of one host, by CPU model, as one may work where
// another does not. They hold until the host is booted anew, or its kernel or
// QEMU is another one.
type kvmVerdicts struct {
	Host string                `json:"host"` // boot id, kernel, QEMU binary
	CPUs map[string]kvmVerdict `json:"cpus"`
	// Earlier are those of the boots before, of the same processor, kernel and QEMU:
	// what is likely, until a start has found out.
	Processor string                `json:"processor,omitempty"`
	Earlier   map[string]kvmVerdict `json:"earlier,omitempty"`
}

// kvmMemory keeps the verdicts, so that only the first start on a host pays
// for finding out that KVM does not run machines there.
type kvmMemory struct {
	path string // "" keeps them in memory only

	mu       sync.Mutex
	verdicts kvmVerdicts
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
	st, err := os.Stat(binary) // an upgrade changes size or time
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %s %s %d %d", boot, strings.TrimSpace(string(kernel)), binary, st.Size(), st.ModTime().UnixNano()), nil
}

// recall returns what is known of a CPU model on the host.
func (m *kvmMemory) recall(host, cpu string) (v kvmVerdict, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.load(host)
	v, known = m.verdicts.CPUs[cpu]
	return v, known
}

// load makes the verdicts those of host. A damaged file, or one of another
// host, is nothing known.
func (m *kvmMemory) load(host string) {
	if m.verdicts.Host == host {
		return
	}
	m.verdicts = kvmVerdicts{}
	if m.path != "" {
		b, err := os.ReadFile(m.path)
		if err != nil || json.Unmarshal(b, &m.verdicts) != nil {
			m.verdicts = kvmVerdicts{}
		}
	}
	if m.verdicts.Host != host {
		m.verdicts = m.verdicts.afterBoot(host, processor())
	}
	if m.verdicts.Processor == "" { // of an earlier version
		m.verdicts.Processor = processor()
	}
	if m.verdicts.CPUs == nil {
		m.verdicts.CPUs = map[string]kvmVerdict{}
	}
}

// afterBoot is what is left of the verdicts on a host that was booted anew.
func (v kvmVerdicts) afterBoot(host, processor string) kvmVerdicts {
	now := kvmVerdicts{Host: host, Processor: processor}
	_, was, _ := strings.Cut(v.Host, " ")
	if _, is, _ := strings.Cut(host, " "); is == was && v.Processor == processor {
		now.Earlier = map[string]kvmVerdict{}
		maps.Copy(now.Earlier, v.Earlier)
		maps.Copy(now.Earlier, v.CPUs)
	}
	return now
}

// likely is recall, or what was found before the host was booted anew, where nothing
// else has changed: no reason to leave KVM untried, but the better guess of what a start
// will come to.
func (m *kvmMemory) likely(host, cpu string) (v kvmVerdict, known bool) {
	if v, known = m.recall(host, cpu); known {
		return v, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, known = m.verdicts.Earlier[cpu]
	return v, known
}

// processor names the host's processor, as far as KVM depends on it; "" if it cannot be
// told.
var processor = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return hostCPU(b)
})

// learn keeps a verdict. An error means that other processes will not know it
// and find out again.
func (m *kvmMemory) learn(host, cpu string, v kvmVerdict) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.load(host)
	if old, known := m.verdicts.CPUs[cpu]; known && old == v {
		return nil
	}
	m.verdicts.CPUs[cpu] = v
	if m.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return err
	}
	return writeJSON(m.path, m.verdicts)
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
