package vm

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Sentinels of frozen machines.
var (
	// ErrOtherHost: a frozen machine cannot go on here, as another QEMU, machine
	// type, CPU or accelerator made it; the wrapping error says what differs. A
	// cold start is the remedy.
	ErrOtherHost = errors.New("frozen by another QEMU or CPU")
	// ErrNoFreeze: this machine cannot be frozen; the wrapping error names the
	// device that keeps it from that, and what to do.
	ErrNoFreeze = errors.New("cannot be frozen")
)

// Frozen is a machine at one instant: its RAM, the state of its devices and its
// disks. The files are never written again once they are made; any number of
// machines go on from them at the same time.
type Frozen struct {
	// RAM is the absolute path of the guest's memory: a file of Spec.Memory
	// bytes, sparse, in the order of guest RAM. Machines map it privately.
	RAM string `json:"ram"`
	// State is the absolute path of the devices' state: a QEMU migration stream
	// without the pages of RAM.
	State string `json:"state"`
	// Spec is the machine as it ran, hot-plugged devices included, without
	// passwords. Disks[i].Path is the frozen layer.
	Spec Spec `json:"spec"`
	// Key is what a machine that goes on must agree in.
	Key FrozenKey `json:"key"`
	// Layout is the driver's own note of where each device was.
	Layout json.RawMessage `json:"layout,omitempty"`
}

// FrozenKey says what a frozen machine depends on beside its template. Two keys
// that are equal fit.
type FrozenKey struct {
	QEMU    string `json:"qemu"`    // version, with the distribution's suffix
	Binary  string `json:"binary"`  // tells builds of one version apart: SHA-256 of what identifies the file
	Machine string `json:"machine"` // with its version: "pc-i440fx-7.2"
	Accel   Accel  `json:"accel"`   // AccelKVM or AccelTCG
	CPU     string `json:"cpu"`     // -cpu as it ran; with KVM and a host model, of which host
	CPUs    int    `json:"cpus"`
	Memory  int64  `json:"memory"` // bytes
}

// FreezeRequest says where a frozen machine goes. All paths are absolute; RAM and
// State must not exist yet.
type FreezeRequest struct {
	RAM, State string
	// Layers are, by drive (as [Spec.FindDisk] takes it), new overlays of the
	// drive's present image, made by the caller: from the instant on the machine
	// writes there, and the present image is the frozen layer. Every
	// writable drive of the machine must be named, unless End is set.
	Layers map[string]string
	// End ends the machine at the instant, in place of letting it go on. Layers is
	// empty then: the present images are the frozen layers.
	End bool
	// Durable makes RAM, State and the frozen layers survive a power loss of the host
	// once Freeze has returned, which takes the time to write them to the disk. Leave
	// it out for what is gone with the host's power anyway.
	Durable bool
}

// FreezeResult says how it went.
type FreezeResult struct {
	Frozen Frozen
	// Pause is how long the guest did not execute; 0 with End. Written is how many
	// bytes of RAM were written meanwhile, Total those of all.
	Pause          time.Duration
	Written, Total int64
}

// Freezer is a [Machine] that can be frozen while it runs.
type Freezer interface {
	// Freeze keeps the machine's present instant and lets it go on (or ends it:
	// FreezeRequest.End). RAM is written while the guest runs, and what it changed
	// meanwhile in the pause. One that is paused stays so, and does not execute a
	// moment; it can be frozen again when it has gone on since. On an error, and when
	// ctx ends before the instant, the machine goes on as it was, on its present
	// images, and what was written is removed; should a drive's overlay not be taken
	// off again, which the error says, [Described] tells that the machine uses it. RAM
	// and State appear when they are complete, never before. [ErrNoFreeze] for a machine
	// with a device that has state on the host (vfio, 9p, virtiofs, a TPM, ...),
	// [ErrNoLayer] for a drive that takes no overlay.
	//
	// Where this process dies in the middle, [Driver.Adopt] lets the machine go on;
	// RunningSpec tells on which images. Where QEMU dies too, the overlay is the right
	// image to go on from if it is there and not empty, and the present image if not:
	// an overlay that the guest wrote to and that is taken off again is removed before the
	// guest writes to the image below.
	Freeze(ctx context.Context, r FreezeRequest) (FreezeResult, error)
}

// Thawer is a [Driver] that can start machines from frozen ones.
type Thawer interface {
	// FrozenKey is the key that a machine of this spec would be frozen with, if
	// it were started here and now. It starts no QEMU.
	FrozenKey(ctx context.Context, spec Spec) (FrozenKey, error)

	// Thaw is [Driver.Start], but the guest goes on from the frozen instant. Spec
	// is the frozen one but for Name, UUID, GenerationID, the paths of Disks
	// (overlays of the frozen layers), NVRAM, Displays, and the host's half of cards
	// (network, forwards); what is to be there beside it the caller plugs in
	// afterwards. RAM is mapped privately: the file is only read, and may be removed
	// once Thaw has returned. (A QEMU before 8.2 opens it for writing all the same:
	// neither its mode nor an immutable flag may forbid that.)
	// [ErrOtherHost] where the key does not fit; an error that says which file
	// is missing, cut or not of the key's size.
	Thaw(ctx context.Context, spec Spec, from Frozen, dir string) (Machine, error)
}
