package virtinstall

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// emulator is one of QEMU's programs. What it can is read out of its constants:
// the names of machine types and devices stand there, ended by a zero byte.
// That takes 3 ms, where QEMU needs 40 to 100 to list them itself, so nothing
// has to be cached. A program that is no ELF file with such constants, such as
// a script, is asked.
type emulator struct {
	path     string
	read     func() constants
	machines func() []string          // the machine types that a guest can have, sorted
	aliases  func() map[string]string // the names that stand for the newest version of a family
}

// constants are what a program holds: its read-only data, or what it listed.
type constants struct {
	data  []byte
	asked bool
}

func newEmulator(path string) *emulator {
	e := &emulator{path: path}
	e.read = sync.OnceValue(func() constants {
		if data := readOnlyData(path); bytes.Contains(data, machineSuffix) {
			return constants{data: data}
		}
		return constants{askQEMU(path), true}
	})
	e.machines = sync.OnceValue(func() []string { return machineNames(e.read().data) })
	e.aliases = sync.OnceValue(func() map[string]string { return newest(e.machines()) })
	return e
}

// binary reports whether the program itself is one, without reading it.
func (e *emulator) binary() bool {
	f, err := os.Open(e.path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, len(elf.ELFMAG))
	_, err = f.Read(magic)
	return err == nil && string(magic) == elf.ELFMAG
}

// maxReadOnlyData bounds what is read of a program; QEMU's constants are some
// MiB.
const maxReadOnlyData = 64 << 20

// readOnlyData returns a program's constants, nil where it has none to be seen.
func readOnlyData(path string) []byte {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	s := f.Section(".rodata")
	if s == nil || s.Type != elf.SHT_PROGBITS || s.Size > maxReadOnlyData {
		return nil
	}
	data, err := s.Data()
	if err != nil {
		return nil
	}
	return data
}

// machineSuffix ends the names that QEMU gives to its machine types inside.
var machineSuffix = []byte("-machine\x00")

// askLimit bounds how long a program may take to list what it can.
const askLimit = 10 * time.Second

// askQEMU has a program list its machine types and devices, and gives them the
// form of constants.
func askQEMU(path string) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	var b bytes.Buffer
	machines, err := exec.CommandContext(ctx, path, "-machine", "help").Output()
	if err != nil {
		return nil // it will say what is wrong when it is to run
	}
	_, list, _ := strings.Cut(string(machines), "\n")
	for _, line := range strings.Split(list, "\n") {
		if name, rest, ok := strings.Cut(line, " "); ok && !strings.Contains(rest, "(alias of ") {
			b.WriteString("\x00" + name)
			b.Write(machineSuffix)
		}
	}
	devices, err := exec.CommandContext(ctx, path, "-device", "help").Output()
	if err == nil {
		for _, m := range regexp.MustCompile(`(?m)^name "([^"]+)"`).FindAllSubmatch(devices, -1) {
			b.Write(m[1])
			b.WriteByte(0)
		}
	}
	return b.Bytes()
}

// machineNames are the machine types among a program's constants.
func machineNames(data []byte) []string {
	var list []string
	for at := 0; ; {
		n := bytes.Index(data[at:], machineSuffix)
		if n < 0 {
			break
		}
		end := at + n
		start := bytes.LastIndexByte(data[:end], 0) + 1
		name := string(data[start:end])
		at = end + len(machineSuffix)
		if isMachineName(name) && !slices.Contains(abstractMachines, name) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func isMachineName(s string) bool {
	return s != "" && len(s) < 64 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._,+-") == "" &&
		!strings.ContainsAny(s, " %")
}

// abstractMachines are names inside QEMU that no guest can have.
var abstractMachines = []string{"generic-pc", "x86", "query-current", "virt-generic", "pseries-common"}

// families are machine types of which each QEMU has many versions, with the
// name that stands for the newest.
var families = []struct{ alias, prefix string }{
	{"pc", "pc-i440fx-"}, {"q35", "pc-q35-"}, {"virt", "virt-"}, {"pseries", "pseries-"}, {"s390-ccw-virtio", "s390-ccw-virtio-"},
}

// newest returns the names that stand for the newest version of a family.
func newest(machines []string) map[string]string {
	out, best := map[string]string{}, map[string][]int{}
	for _, name := range machines {
		for _, f := range families {
			text, ok := strings.CutPrefix(name, f.prefix)
			if !ok {
				continue
			}
			version := numbers(strings.TrimPrefix(text, "rhel"))
			if version != nil && slices.Compare(best[f.alias], version) < 0 {
				out[f.alias], best[f.alias] = name, version
			}
		}
	}
	return out
}

// numbers reads a dotted version, nil where it is none.
func numbers(version string) []int {
	var out []int
	for _, part := range strings.Split(version, ".") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return nil
		}
		out = append(out, int(n))
	}
	return out
}

// canonical is the machine type that a name stands for; of "" the default.
func (e *emulator) canonical(machine string) string {
	aliases := e.aliases()
	if machine == "" {
		for _, first := range []string{"pc", "virt", "pseries", "s390-ccw-virtio"} {
			if aliases[first] != "" {
				return aliases[first]
			}
		}
	}
	if full := aliases[machine]; full != "" {
		return full
	}
	return machine
}

// has reports whether the program has a device of that name.
func (e *emulator) has(device string) bool {
	return bytes.Contains(e.read().data, append([]byte(device), 0))
}

// hasModule reports whether a device is there that some distributions keep in a
// file beside the program, which need not be installed.
func (e *emulator) hasModule(device, module string) bool {
	if !e.has(device) {
		return false
	}
	if module == "" || e.read().asked || !e.has(module) {
		return true // it lists only what it can load, or is built as one
	}
	return slices.ContainsFunc(moduleDirs(), func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, module+".so"))
		return err == nil
	})
}
