package qemu

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
)

const (
	memoryID   = "ram0"
	memoryFile = "memory.ram" // in the machine's folder
	// memoryFiles is the pattern of that and of those of the NUMA cells. QEMU leaves
	// them behind, and takes none that has another size than its memory.
	memoryFiles = "memory*.ram"
)

// sharedMemory reports whether another process maps the guest's memory.
func (c config) sharedMemory() bool {
	return c.spec.MemoryConfig.Shared || slices.ContainsFunc(c.spec.Filesystems, func(f vm.Filesystem) bool { return f.Driver == "virtiofs" })
}

// needsBackend reports whether plain -m does not say enough.
func (c config) needsBackend() bool {
	m := c.spec.MemoryConfig
	return m.HugePages || m.Source == "memfd" || m.Source == "file" || m.Prealloc || c.sharedMemory()
}

// memoryArgs are the amount, and where it comes from if that was said.
func (c config) memoryArgs() []string {
	s, m := c.spec, c.spec.MemoryConfig
	amount := fmt.Sprintf("%dM", s.Memory>>20)
	if m.Max > s.Memory {
		amount = fmt.Sprintf("size=%s,slots=%d,maxmem=%dM", amount, m.Slots, m.Max>>20)
	}
	args := []string{"-m", amount}
	if m.Locked {
		args = append(args, "-overcommit", "mem-lock=on")
	}
	if c.thaw != nil {
		return append(args, "-object", c.thaw.backend(c))
	}
	if len(s.Processor.NUMA) == 0 {
		if c.needsBackend() {
			args = append(args, "-object", c.backend(memoryID, s.Memory, memoryFile))
		}
		return args
	}
	for _, cell := range s.Processor.NUMA {
		id := fmt.Sprintf("ram%d", cell.ID)
		args = append(args, "-object", c.backend(id, cell.Memory, fmt.Sprintf("memory%d.ram", cell.ID)))
		node := "node,nodeid=" + strconv.Itoa(cell.ID)
		for _, r := range splitList(cell.CPUs) {
			node += ",cpus=" + r
		}
		args = append(args, "-numa", node+",memdev="+id)
	}
	return args
}

// backend is a memory object.
func (c config) backend(id string, size int64, file string) string {
	m := c.spec.MemoryConfig
	kind, extra := "memory-backend-ram", []string(nil)
	switch {
	case m.Source == "file":
		kind, extra = "memory-backend-file", []string{"mem-path", file, "discard-data", onIf(m.Discard)}
	case m.Source == "memfd" || m.HugePages || c.sharedMemory():
		kind = "memory-backend-memfd"
		if m.HugePages {
			extra = []string{"hugetlb", "on"}
			if m.PageSize > 0 {
				extra = append(extra, "hugetlbsize", strconv.FormatInt(m.PageSize, 10))
			}
		}
	}
	props := append([]string{"id", id, "size", fmt.Sprintf("%dM", size>>20), "share", onIf(c.sharedMemory()), "prealloc", onIf(m.Prealloc)}, extra...)
	if m.NoMerge {
		props = append(props, "merge", "off")
	}
	return device(kind, props...)
}

// onIf is on, or left out.
func onIf(b bool) string {
	if b {
		return "on"
	}
	return ""
}

// splitList splits "0-3,6".
func splitList(s string) []string {
	var parts []string
	for _, p := range splitComma(s) {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}
