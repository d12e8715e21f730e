package vm

// CPUMode is how a CPU model is chosen.
type CPUMode string

const (
	// CPUHostPassthrough is the host's CPU as it is (QEMU's host). Under TCG, where
	// it does not exist, it is max.
	CPUHostPassthrough CPUMode = "host-passthrough"
	// CPUHostModel is libvirt's nearest named model; QEMU alone takes host, or
	// max under TCG.
	CPUHostModel CPUMode = "host-model"
	CPUMaximum   CPUMode = "maximum" // QEMU's max
	CPUCustom    CPUMode = "custom"  // Processor.Model
)

// Processor says more of the CPUs than Spec.CPUs and Spec.CPU.
type Processor struct {
	Mode     CPUMode      `json:"mode,omitempty"`  // "": custom with a Model, else Spec.CPU
	Model    string       `json:"model,omitempty"` // "Skylake-Server", ...
	Vendor   string       `json:"vendor,omitempty"`
	Features []CPUFeature `json:"features,omitempty"`
	Topology Topology     `json:"topology,omitzero"`
	// MaxCPUs is how many there can be, by CPU hot plug; 0 is Spec.CPUs.
	MaxCPUs int `json:"maxCpus,omitempty"`
	// Migratable off shows the guest what cannot be migrated; host-passthrough only.
	Migratable Toggle `json:"migratable,omitempty"`
	// Cache is "passthrough" (the host's cache layout, host-passthrough only),
	// "emulate" (QEMU's L3) or "disable".
	Cache string `json:"cache,omitempty"`
	// PhysBits is the number of physical address bits: a number, or
	// "passthrough" for the host's.
	PhysBits string     `json:"physBits,omitempty"`
	NUMA     []NUMACell `json:"numa,omitempty"`
	// Check and Match are libvirt's words ("none", "partial", "full"; "exact",
	// "minimum", "strict"): QEMU is told to enforce with full.
	Check string `json:"check,omitempty"`
	Match string `json:"match,omitempty"`
}

// FeaturePolicy says how a CPU feature is wanted.
type FeaturePolicy string

const (
	FeatureForce    FeaturePolicy = "force"    // on, whatever the host has
	FeatureRequire  FeaturePolicy = "require"  // on, and no start without it
	FeatureOptional FeaturePolicy = "optional" // on where the host has it
	FeatureDisable  FeaturePolicy = "disable"  // off
	FeatureForbid   FeaturePolicy = "forbid"   // off; libvirt refuses a host that has it
)

// CPUFeature is a flag of the CPU, in QEMU's or libvirt's spelling.
type CPUFeature struct {
	Name   string        `json:"name"`
	Policy FeaturePolicy `json:"policy"` // "": require
}

// Topology is the shape of the CPUs; the product of the parts (0 counts as 1)
// is the number of CPUs that there can be. Its zero value is sockets of
// one core.
type Topology struct {
	Sockets int `json:"sockets,omitempty"`
	Dies    int `json:"dies,omitempty"`
	Cores   int `json:"cores,omitempty"`
	Threads int `json:"threads,omitempty"`
}

// NUMACell is a node of the guest's memory.
type NUMACell struct {
	ID     int    `json:"id"`
	CPUs   string `json:"cpus,omitempty"`   // "0-3,6"
	Memory int64  `json:"memory,omitempty"` // bytes
}

// MemoryConfig says more of the memory than Spec.Memory.
type MemoryConfig struct {
	// Max is the most there can be, in bytes, by memory hot plug into Slots
	// slots; 0 is Spec.Memory.
	Max   int64 `json:"max,omitempty"`
	Slots int   `json:"slots,omitempty"`

	HugePages bool  `json:"hugepages,omitempty"`
	PageSize  int64 `json:"pageSize,omitempty"` // bytes, of the huge pages; 0 is the host's default
	Locked    bool  `json:"locked,omitempty"`   // never swapped out
	// Source is "anonymous" (the default), "memfd", or "file" (in the machine's
	// folder). Shared lets another process (virtiofsd) map it; it implies memfd.
	Source  string `json:"source,omitempty"`
	Shared  bool   `json:"shared,omitempty"`
	NoMerge bool   `json:"noMerge,omitempty"` // by the host's KSM
	// Prealloc touches every page at the start.
	Prealloc bool `json:"prealloc,omitempty"`
	Discard  bool `json:"discard,omitempty"` // its contents at the end
}
