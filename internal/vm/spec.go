// Package vm says what a machine is: plain data that both back ends (QEMU's
// command line, libvirt's XML) are derived from, its defaults, and the rules
// that a machine must keep to be able to work.
package vm

// Accel is what runs the guest's instructions.
type Accel string

const (
	AccelAuto Accel = "auto" // KVM where it really works, else TCG
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Toggle is a choice that may be left to the hypervisor: "" is its default.
type Toggle string

const (
	On  Toggle = "on"
	Off Toggle = "off"
)

// Machine types. A type with a version, such as pc-q35-7.2 or
// pc-i440fx-7.2, is accepted too: see [Spec.Chipset].
const (
	MachinePC  = "pc"
	MachineQ35 = "q35"
)

// Spec describes a machine. The zero value of each field means the default
// that [Spec.WithDefaults] fills in, or where it fills in nothing, the
// default that the field's comment names. Fields that only say more than
// `lamina run` ever does are left out of the JSON while they are zero.
type Spec struct {
	Name        string `json:"name"`
	UUID        string `json:"uuid"`
	Title       string `json:"title,omitempty"`       // for people; one line
	Description string `json:"description,omitempty"` // for people
	// OS is the short id of the guest's system in osinfo-db ("debian12"), ""
	// if unknown. It changes nothing by itself: see package tailor.
	OS string `json:"os,omitempty"`

	CPUs    int    `json:"cpus"`    // that run at the start; at least 1
	Memory  int64  `json:"memory"`  // bytes at the start
	Machine string `json:"machine"` // MachinePC, MachineQ35, or one of them with a version
	Accel   Accel  `json:"accel"`
	// CPU is a model and its flags as QEMU's -cpu takes them; "" is host for KVM,
	// max for TCG. Processor says more, and its Model and Mode replace this.
	CPU          string       `json:"cpu,omitempty"`
	Processor    Processor    `json:"processor,omitzero"`
	MemoryConfig MemoryConfig `json:"memoryConfig,omitzero"`

	Boot     Boot     `json:"boot,omitzero"`
	Features Features `json:"features,omitzero"`
	Clock    Clock    `json:"clock,omitzero"`
	SysInfo  SysInfo  `json:"sysinfo,omitzero"`

	Disks []Disk `json:"disks"`
	NICs  []NIC  `json:"nics"`

	Graphics Graphics `json:"graphics"`
	// Displays are the ways to see the screen; where there is any, Graphics
	// is not looked at.
	Displays []Display `json:"displays,omitempty"`
	Videos   []Video   `json:"videos,omitempty"` // nil: one VGA

	Devices

	// GenerationID is the id that tells a guest that it is another copy than it
	// was (vmgenid): a UUID, new for each clone and after each thaw; "" is no
	// such device.
	GenerationID string `json:"generationID,omitempty"`

	RNG bool `json:"rng"` // a virtio-rng device fed from the host's /dev/urandom
	// NoReboot makes a guest's reboot end the machine; the same as OnReboot
	// "destroy".
	NoReboot bool `json:"noReboot,omitempty"`
	Events
}

// Events say what happens when the guest ends in one way or another. "" is
// QEMU's and libvirt's default.
type Events struct {
	OnPoweroff Action `json:"onPoweroff,omitempty"` // destroy (default), restart, preserve
	OnReboot   Action `json:"onReboot,omitempty"`   // restart (default), destroy, preserve
	// OnCrash is for a guest's panic: preserve (the default), destroy, restart.
	OnCrash Action `json:"onCrash,omitempty"`
}

// Action is what becomes of a machine, in libvirt's words.
type Action string

const (
	ActionDestroy  Action = "destroy"  // the machine ends
	ActionRestart  Action = "restart"  // it starts again
	ActionPreserve Action = "preserve" // it stays as it is, stopped
)
