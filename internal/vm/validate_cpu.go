package vm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxCPUCount is how many CPUs there can be, hot plug included.
func (s Spec) MaxCPUCount() int { return max(s.CPUs, s.Processor.MaxCPUs) }

// Count is the number of CPUs of a topology, 0 for its zero value.
func (t Topology) Count() int {
	if t == (Topology{}) {
		return 0
	}
	return max(t.Sockets, 1) * max(t.Dies, 1) * max(t.Cores, 1) * max(t.Threads, 1)
}

func (s Spec) validateCPUs(f *findings) {
	p := s.Processor
	oneOf(f, "processor.mode", p.Mode, "", CPUHostPassthrough, CPUHostModel, CPUMaximum, CPUCustom)
	word(f, "processor.model", p.Model)
	word(f, "processor.vendor", p.Vendor)
	toggle(f, "processor.migratable", p.Migratable)
	oneOf(f, "processor.cache", p.Cache, "", "passthrough", "emulate", "disable")
	if p.Mode == CPUCustom && p.Model == "" {
		f.add("processor.model", "mode custom has no model", "name one that `qemu-system-x86_64 -cpu help` lists")
	}
	if p.PhysBits != "" && p.PhysBits != "passthrough" {
		if n, err := strconv.Atoi(p.PhysBits); err != nil || n < 32 || n > 52 {
			f.add("processor.physBits", fmt.Sprintf("%q is not a number of address bits", p.PhysBits), "use 32 to 52, or passthrough")
		}
	}
	for i, x := range p.Features {
		field := fmt.Sprintf("processor.features[%d]", i)
		if x.Name == "" {
			f.add(field+".name", "is empty", "name a CPU feature")
		}
		word(f, field+".name", x.Name)
		oneOf(f, field+".policy", x.Policy, "", FeatureForce, FeatureRequire, FeatureOptional, FeatureDisable, FeatureForbid)
	}
	s.validateTopology(f)
	s.validateNUMA(f)
}

func (s Spec) validateTopology(f *findings) {
	t, most := s.Processor.Topology, s.MaxCPUCount()
	if m := s.Processor.MaxCPUs; m < 0 || m > MaxCPUs || m > 0 && m < s.CPUs {
		f.add("processor.maxCpus", fmt.Sprintf("%d virtual CPUs at most, and %d at the start", m, s.CPUs), fmt.Sprintf("use the number at the start or more, up to %d", MaxCPUs))
		return
	}
	parts := []int{t.Sockets, t.Dies, t.Cores, t.Threads}
	if slices.Min(parts) < 0 || slices.Max(parts) > MaxCPUs {
		f.add("processor.topology", fmt.Sprintf("%+v", t), fmt.Sprintf("use parts of 1 to %d", MaxCPUs))
		return
	}
	if n := t.Count(); n != 0 && n != most {
		f.add("processor.topology", fmt.Sprintf("sockets x dies x cores x threads are %d CPUs, and the machine has %d", n, most), "make the two the same")
	}
}

func (s Spec) validateNUMA(f *findings) {
	var sum int64
	ids := map[int]bool{}
	for i, c := range s.Processor.NUMA {
		field := fmt.Sprintf("processor.numa[%d]", i)
		if c.ID < 0 || c.ID >= len(s.Processor.NUMA) || ids[c.ID] {
			f.add(field+".id", fmt.Sprintf("%d", c.ID), "number the cells from 0, each once")
		}
		ids[c.ID] = true
		if strings.Trim(c.CPUs, "0123456789-,") != "" {
			f.add(field+".cpus", fmt.Sprintf("%q is not a list of CPUs", c.CPUs), "write it as in 0-3,6")
		}
		if c.Memory <= 0 || c.Memory%MinMemory != 0 {
			f.add(field+".memory", fmt.Sprintf("%d bytes", c.Memory), "use whole MiB")
		}
		sum += c.Memory
	}
	if sum != 0 && sum != s.Memory {
		f.add("processor.numa", fmt.Sprintf("the cells have %d bytes and the machine %d", sum, s.Memory), "make the two the same")
	}
}

func (s Spec) validateMemory(f *findings) {
	m := s.MemoryConfig
	oneOf(f, "memoryConfig.source", m.Source, "", "anonymous", "memfd", "file")
	atLeastZero(f, "memoryConfig.pageSize", m.PageSize)
	switch {
	case m.Max == 0 && m.Slots == 0:
	case m.Max < s.Memory || m.Max > MaxMemory || m.Max%MinMemory != 0:
		f.add("memoryConfig.max", fmt.Sprintf("%d bytes", m.Max), "use whole MiB, from the machine's memory to 4T")
	case m.Max > s.Memory && (m.Slots < 1 || m.Slots > 256):
		f.add("memoryConfig.slots", fmt.Sprintf("%d slots for more memory", m.Slots), "use 1 to 256")
	}
	if m.PageSize > 0 && m.PageSize&(m.PageSize-1) != 0 {
		f.add("memoryConfig.pageSize", fmt.Sprintf("%d is not a power of 2", m.PageSize), "use 2M or 1G")
	}
	if m.PageSize > 0 && m.HugePages && s.Memory%m.PageSize != 0 {
		f.add("memory", fmt.Sprintf("%d bytes are not whole huge pages of %d", s.Memory, m.PageSize), "use a multiple")
	}
	if m.Source == "file" && m.HugePages {
		f.add("memoryConfig.source", "file and huge pages do not go together", "use memfd")
	}
}
