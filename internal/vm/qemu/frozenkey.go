package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// binaryFacts are what a QEMU says of itself without running a machine.
type binaryFacts struct {
	Version  string            `json:"version"`  // "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"
	Build    string            `json:"build"`    // [buildID]
	Machines map[string]string `json:"machines"` // "pc" is "pc-i440fx-7.2"
}

// factsMemory keeps them for as long as the binary is the same.
type factsMemory struct {
	path string // "" keeps them in memory only

	mu    sync.Mutex
	known map[string]binaryFacts // by hostKey
}

func newFactsMemory(cacheDir string) *factsMemory {
	if cacheDir == "" {
		return &factsMemory{}
	}
	return &factsMemory{path: filepath.Join(cacheDir, home.QEMUFile)}
}

// of asks a QEMU for its facts. It runs it twice, for some 20 ms each, if it was not
// asked before.
func (m *factsMemory) of(ctx context.Context, binary string) (binaryFacts, error) {
	key, err := hostKey(binary)
	if err != nil {
		return binaryFacts{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]binaryFacts{}
		if b, err := os.ReadFile(m.path); m.path == "" || err != nil || json.Unmarshal(b, &m.known) != nil {
			m.known = map[string]binaryFacts{} // a damaged file is nothing known
		}
	}
	if f, ok := m.known[key]; ok {
		return f, nil
	}
	f, err := askBinary(ctx, binary)
	if err != nil {
		return f, err
	}
	if len(m.known) >= maxFacts { // of binaries that are long gone
		clear(m.known)
	}
	m.known[key] = f
	if m.path != "" && os.MkdirAll(filepath.Dir(m.path), 0o700) == nil {
		_ = writeJSON(m.path, m.known) // else the next process asks again
	}
	return f, nil
}

// maxFacts bounds the memory.
const maxFacts = 16

func askBinary(ctx context.Context, binary string) (f binaryFacts, err error) {
	f.Machines = map[string]string{}
	if f.Build, err = buildID(binary); err != nil {
		return f, err
	}
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return f, fmt.Errorf("%s --version: %w", binary, err)
	}
	if f.Version, err = parseVersion(out); err != nil {
		return f, fmt.Errorf("%s --version: %w", binary, err)
	}
	if out, err = exec.CommandContext(ctx, binary, "-machine", "help").Output(); err != nil {
		return f, fmt.Errorf("%s -machine help: %w", binary, err)
	}
	for _, alias := range machineAlias.FindAllSubmatch(out, -1) {
		f.Machines[string(alias[1])] = string(alias[2])
	}
	return f, nil
}

var (
	versionLine  = regexp.MustCompile(`^QEMU emulator version ([0-9]+\.[0-9]+\.[0-9]+)(?: \((.*)\))?`)
	machineAlias = regexp.MustCompile(`(?m)^(\S+)\s.*\(alias of (\S+)\)\s*$`)
)

func parseVersion(out []byte) (string, error) {
	f := versionLine.FindSubmatch(out)
	if f == nil {
		line, _, _ := bytes.Cut(out, []byte("\n"))
		return "", fmt.Errorf("%.80q is no version of QEMU", line)
	}
	return versionText(string(f[1]), string(f[2])), nil
}

// versionText is a version with the distribution's suffix.
func versionText(version, suffix string) string {
	if suffix = strings.TrimSpace(suffix); suffix == "" {
		return version
	}
	return version + " (" + suffix + ")"
}

// atLeast reports whether a version is one or a later one.
func atLeast(version string, major, minor int) bool {
	words := strings.SplitN(version, ".", 3)
	if len(words) < 2 {
		return false
	}
	a, err := strconv.Atoi(words[0])
	b, err2 := strconv.Atoi(words[1])
	return err == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// buildID tells builds of one version apart: a hash of the linker's build id, or of
// the whole file where it has none.
func buildID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if note := buildNote(f); note != nil {
		h.Write(note)
	} else if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// maxNote is more than any build id has.
const maxNote = 4096

func buildNote(f *os.File) []byte {
	e, err := elf.NewFile(f)
	if err != nil {
		return nil
	}
	s := e.Section(".note.gnu.build-id")
	if s == nil || s.Size == 0 || s.Size > maxNote {
		return nil
	}
	b, err := s.Data()
	if err != nil {
		return nil
	}
	return b
}

// frozenCPU is the CPU as a frozen machine depends on it.
func frozenCPU(s vm.Spec, accel vm.Accel) (string, error) {
	cpu := config{spec: s, accel: accel}.cpu()
	if accel != vm.AccelKVM {
		return cpu, nil
	}
	// Of a named model too: what KVM makes of it depends on the host (clocks, microcode).
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	return cpu + " of " + hostCPU(b), nil
}

// hostCPU names the host's first CPU, by what the guest sees of it.
func hostCPU(cpuinfo []byte) string {
	first, _, _ := bytes.Cut(cpuinfo, []byte("\n\n"))
	h := sha256.New()
	name := "unknown"
	for line := range strings.Lines(string(first)) {
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch key {
		case "model name":
			name = value
		case "vendor_id", "cpu family", "model", "stepping", "flags", "microcode":
		default:
			continue
		}
		_, _ = fmt.Fprintf(h, "%s %s\n", key, value)
	}
	return fmt.Sprintf("%s (%x)", name, h.Sum(nil)[:8])
}

// FrozenKey implements [vm.Thawer].
func (d *Driver) FrozenKey(ctx context.Context, spec vm.Spec) (vm.FrozenKey, error) {
	spec = spec.WithDefaults()
	binary, err := d.binaryOf(spec)
	if err != nil {
		return vm.FrozenKey{}, err
	}
	accel := spec.Accel
	if accel == vm.AccelAuto {
		if accel, err = d.likelyAccel(binary, spec, d.kvm.likely); err != nil {
			return vm.FrozenKey{}, err
		}
	}
	return d.keyWith(ctx, spec, binary, accel)
}

// likelyAccel is what a machine would be started with, as far as is known by recall.
func (d *Driver) likelyAccel(binary string, spec vm.Spec, recall func(host, cpu string) (kvmVerdict, bool)) (vm.Accel, error) {
	if openKVM(d.kvmDevice) != nil {
		return vm.AccelTCG, nil
	}
	host, err := hostKey(binary)
	if err != nil {
		return "", err
	}
	if v, known := recall(host, cpuKey(spec)); known && !v.Works {
		return vm.AccelTCG, nil
	}
	return vm.AccelKVM, nil
}

func (d *Driver) keyWith(ctx context.Context, spec vm.Spec, binary string, accel vm.Accel) (vm.FrozenKey, error) {
	facts, err := d.facts.of(ctx, binary)
	if err != nil {
		return vm.FrozenKey{}, err
	}
	cpu, err := frozenCPU(spec, accel)
	if err != nil {
		return vm.FrozenKey{}, err
	}
	machine := spec.Machine
	if full := facts.Machines[machine]; full != "" {
		machine = full
	}
	return vm.FrozenKey{QEMU: facts.Version, Binary: facts.Build, Machine: machine, Accel: accel, CPU: cpu, CPUs: spec.CPUs, Memory: spec.Memory}, nil
}

// binaryOf is the QEMU that a machine runs with.
func (d *Driver) binaryOf(spec vm.Spec) (string, error) {
	if spec.QEMU.Binary != "" {
		return findBinary(spec.QEMU.Binary)
	}
	return findBinary(d.opts.Binary)
}

// frozenKey is that of a machine which runs, but for its machine type, which the
// stream tells. The binary that runs may not be the installed one any more.
func (m *machine) frozenKey(s vm.Spec) (vm.FrozenKey, error) {
	v := m.monitor().Version()
	build, err := buildID(fmt.Sprintf("/proc/%d/exe", m.proc.PID))
	if errors.Is(err, fs.ErrNotExist) {
		return vm.FrozenKey{}, vm.ErrNotRunning
	}
	if err != nil {
		return vm.FrozenKey{}, err
	}
	cpu, err := frozenCPU(s, m.record.Info.Accel)
	return vm.FrozenKey{QEMU: versionText(v.String(), v.Package), Binary: build, Accel: m.record.Info.Accel, CPU: cpu, CPUs: s.CPUs, Memory: s.Memory}, err
}

// differences lists in what two keys differ.
func differences(frozen, here vm.FrozenKey) string {
	var all []string
	add := func(what, a, b string) {
		if a != b {
			all = append(all, fmt.Sprintf("%s %s, here %s", what, a, b))
		}
	}
	add("QEMU", frozen.QEMU, here.QEMU)
	if frozen.QEMU == here.QEMU && frozen.Binary != here.Binary {
		all = append(all, "another build of QEMU "+here.QEMU)
	}
	add("machine type", frozen.Machine, here.Machine)
	add("accelerator", string(frozen.Accel), string(here.Accel))
	add("CPU", frozen.CPU, here.CPU)
	add("CPUs", strconv.Itoa(frozen.CPUs), strconv.Itoa(here.CPUs))
	add("memory in bytes", strconv.FormatInt(frozen.Memory, 10), strconv.FormatInt(here.Memory, 10))
	return strings.Join(slices.Clip(all), "; ")
}
