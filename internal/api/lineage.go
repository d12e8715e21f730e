package api

import (
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// LayerKind is what an immutable disk image is for.
type LayerKind string

const (
	// LayerTemplate: imported, or made of a machine by a person. Kept until it
	// is removed.
	LayerTemplate LayerKind = "template"
	// LayerFrozen: what a machine was at the instant when it was cloned or
	// forked. Goes with the last machine or layer that needs it.
	LayerFrozen LayerKind = "frozen"
	// LayerWarm: the disk of a [WarmUnit]. Goes with the unit, but not while a
	// machine needs it.
	LayerWarm LayerKind = "warm"
)

// ImageInfo is what looking into an image has found. Empty fields are what was not
// found; Note says why where there is a reason.
type ImageInfo struct {
	OS       string `json:"os,omitempty"`       // osinfo-db's short id: "debian12"
	Name     string `json:"name,omitempty"`     // PRETTY_NAME of os-release
	Arch     string `json:"arch,omitempty"`     // "x86_64", "aarch64"
	BootMode string `json:"bootMode,omitempty"` // "bios", "uefi", "bios+uefi"
	Table    string `json:"table,omitempty"`    // "mbr", "gpt", "none"
	// CloudInit and Agent: cloud-init, and QEMU's guest agent, are installed.
	CloudInit bool        `json:"cloudInit,omitempty"`
	Agent     bool        `json:"agent,omitempty"`
	Volumes   []ImagePart `json:"volumes,omitempty"`
	Note      string      `json:"note,omitempty"`
}

// ImagePart is a partition, or the whole of a disk without a table (Number 0).
type ImagePart struct {
	Number int    `json:"number"`
	Offset int64  `json:"offset"` // bytes
	Size   int64  `json:"size"`   // bytes
	Type   string `json:"type"`   // file system: "ext4", "xfs", "vfat", "swap", "lvm2", "luks", ..., "" unknown
	Label  string `json:"label,omitempty"`
	Root   bool   `json:"root,omitempty"` // the system was found here
}

// LineageNode is a layer or machine in the tree of who lies over whom. A
// node's parent comes before it.
type LineageNode struct {
	ID      string    `json:"id"`               // digest or id of a layer, id of a machine
	Parent  string    `json:"parent,omitempty"` // ID of a layer; "" is a root
	Machine bool      `json:"machine,omitempty"`
	Kind    LayerKind `json:"kind,omitempty"`  // of a layer
	Names   []string  `json:"names,omitempty"` // of a template; of a machine its name
	Depth   int       `json:"depth"`           // 0 is a root
	// DiskSize is what its own image takes on the host, VirtualSize what a guest sees.
	DiskSize    int64        `json:"diskSize"`
	VirtualSize int64        `json:"virtualSize,omitempty"`
	CreatedAt   time.Time    `json:"createdAt"`
	State       MachineState `json:"state,omitempty"`  // of a machine
	Warm        []string     `json:"warm,omitempty"`   // ids of the warm units of a template
	Advice      string       `json:"advice,omitempty"` // what to do about a long chain
}

// MaxDepth is how many images a machine may lie over (its own layer not
// counted); AdviseDepth is from where flattening is advised.
const (
	MaxDepth    = 32
	AdviseDepth = 8
)

// TagRequest gives a template one more name. Move takes the name from another
// template that has it.
type TagRequest struct {
	Name string `json:"name"`
	Move bool   `json:"move,omitempty"`
}

// ExportRequest writes a template, with all its layers, as one image. Path is
// absolute and must not exist unless Force is set; then it is replaced as a whole.
type ExportRequest struct {
	Path     string `json:"path"`
	Format   string `json:"format,omitempty"`   // "qcow2" if empty; "raw"
	Compress string `json:"compress,omitempty"` // "" none, "zlib", "zstd" (qcow2)
	Force    bool   `json:"force,omitempty"`
}

// TemplateFromRequest makes a template of a stopped machine, which stays as it is.
type TemplateFromRequest struct {
	Machine string `json:"machine"`
	Name    string `json:"name,omitempty"`
	// Generalise removes what must not be the same in two machines: machine-id,
	// SSH host keys, logs, cloud-init's state. It boots a copy of the machine.
	Generalise bool `json:"generalise,omitempty"`
	// Flatten makes one image; else the template is a layer over the machine's
	// template.
	Flatten  bool          `json:"flatten,omitempty"`
	Compress string        `json:"compress,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"` // of the boot of Generalise
}

// CommitRequest makes a stopped machine's own layer a template, over which the
// machine goes on.
type CommitRequest struct {
	Name string `json:"name,omitempty"`
	Move bool   `json:"move,omitempty"` // as TagRequest.Move: the next version under the old name
}

// FlattenRequest gives a machine a disk of its own, without any layer below. A
// running one goes on meanwhile.
type FlattenRequest struct{}

// RebaseRequest puts a stopped machine over another template. What its guest sees
// stays the same: what differs is kept in its own layer.
type RebaseRequest struct {
	Template string `json:"template"`
}

// CloneMachineRequest makes machines of a machine, which becomes a frozen layer
// that all go on over. A running one is paused for a moment; its clones are
// started cold, as after a power failure.
type CloneMachineRequest struct {
	Names []string `json:"names"` // patterns
	MachineConfig
	Start   bool          `json:"start,omitempty"`
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Identity is who a machine is to its guest, as the guest itself has confirmed it.
type Identity struct {
	Hostname  string    `json:"hostname"`
	MachineID string    `json:"machineID"`
	Addresses []string  `json:"addresses,omitempty"` // of the guest, without loopback
	HostKeys  []string  `json:"hostKeys,omitempty"`  // SSH, as in known_hosts without the host
	User      string    `json:"user,omitempty"`      // who has the keys and the password
	At        time.Time `json:"at"`
}

// Warmth is how a machine was started warm.
type Warmth struct {
	Unit string `json:"unit"` // id of the WarmUnit, "" of a fork
	// Prompt and Ready are from the start to the first answer of the console, and
	// to the confirmed identity; 0 is not yet.
	Prompt time.Duration `json:"prompt,omitempty"`
	Ready  time.Duration `json:"ready,omitempty"`
	// Problem says why the identity is not confirmed, "" while it is on its way
	// or done.
	Problem string `json:"problem,omitempty"`
}

// WarmRequest boots a template once and freezes it.
type WarmRequest struct {
	CPUs    int           `json:"cpus,omitempty"`
	Memory  int64         `json:"memory,omitempty"`
	Accel   vm.Accel      `json:"accel,omitempty"`
	Machine string        `json:"machine,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // until it is ready to be frozen
	Again   bool          `json:"again,omitempty"`   // also where a fitting unit is there
}

// WarmUnit is a booted template: RAM, devices and disk of one instant.
type WarmUnit struct {
	ID        string       `json:"id"`
	Template  string       `json:"template"` // name, or digest if it has none
	Digest    string       `json:"digest"`   // of the template
	Layer     string       `json:"layer"`    // of its disk
	Key       vm.FrozenKey `json:"key"`
	Fits      bool         `json:"fits"`           // it can be used on this host now
	Note      string       `json:"note,omitempty"` // why not
	RAMSize   int64        `json:"ramSize"`        // bytes on the host
	DiskSize  int64        `json:"diskSize"`       // bytes on the host
	BootTime  int64        `json:"bootTime"`       // ns from start to ready
	Agent     string       `json:"agent"`          // "lamina", "qemu"
	Machines  []string     `json:"machines"`       // that were made of it
	CreatedAt time.Time    `json:"createdAt"`
	UsedAt    time.Time    `json:"usedAt,omitzero"`
}

// WaitTo is what the making of a machine waits for.
type WaitTo string

const (
	WaitDefault WaitTo = ""       // login for a cold start, ready for a warm one
	WaitPrompt  WaitTo = "prompt" // the console answers
	WaitReady   WaitTo = "ready"  // the guest has confirmed its identity
)

// Warm says whether a machine is started from a warm unit.
type Warm string

const (
	WarmAuto  Warm = ""     // where a unit fits
	WarmNever Warm = "cold" //
	WarmMust  Warm = "warm" // an error, with the reason, where none fits
)

// ForkRequest makes running copies of a running machine, from this instant.
type ForkRequest struct {
	// Names are patterns; or Count makes NAME-1, NAME-2, ...
	Names   []string      `json:"names,omitempty"`
	Count   int           `json:"count,omitempty"`
	Wait    WaitTo        `json:"wait,omitempty"` // WaitDefault is WaitReady
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// ForkResult says what became of a fork.
type ForkResult struct {
	Machines []Machine `json:"machines"`
	// Pause is how long the original did not execute; Written the bytes of RAM that
	// were written meanwhile.
	Pause   time.Duration `json:"pause"`
	Written int64         `json:"written"`
}
