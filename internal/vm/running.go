package vm

import (
	"context"
	"errors"
)

// Sentinels of what is done to a running machine.
var (
	// ErrNoDevice: the machine has no such drive or card.
	ErrNoDevice = errors.New("no such device")
	// ErrNoHotplug: this device cannot come or go while the machine runs; the
	// wrapping error says why and what to do.
	ErrNoHotplug = errors.New("not while the machine runs")
)

// The interfaces below are what a [Machine] may be able to do beside. A drive
// is named as [Spec.FindDisk] finds it, a card as [Spec.FindNIC] does. The spec
// that runs follows each change: see [Described].

// Described is a [Machine] that tells what it runs with, hot-plugged devices
// included.
type Described interface {
	// RunningSpec returns a copy of the spec that runs.
	RunningSpec() Spec
}

// DiskPlugger is a [Machine] that takes and gives back disks while it runs:
// virtio, virtio-scsi, usb and (where there is a port) nvme ones.
type DiskPlugger interface {
	// PlugDisk adds a drive and returns it with its defaults. It is there for
	// the guest when PlugDisk returns; on an error nothing has changed.
	// [ErrNoHotplug] for a bus that cannot, or without a free port.
	PlugDisk(ctx context.Context, d Disk) (Disk, error)
	// UnplugDisk asks the guest to let go of a drive and returns when it is
	// gone and the image closed. Where the guest does not answer before ctx
	// ends, the drive stays and can be unplugged again; a guest that answers
	// later is heard, and the drive is gone then.
	UnplugDisk(ctx context.Context, name string) (Disk, error)
}

// NICPlugger is the same for network cards.
type NICPlugger interface {
	PlugNIC(ctx context.Context, n NIC) (NIC, error)
	UnplugNIC(ctx context.Context, name string) (NIC, error)
	// SetLink pulls or plugs the cable.
	SetLink(ctx context.Context, name string, state LinkState) error
}

// DiskResizer is a [Machine] whose disks can grow while it runs.
type DiskResizer interface {
	// ResizeDisk grows the image to size bytes, a multiple of 512, and tells the
	// guest. A size below the present one is refused.
	ResizeDisk(ctx context.Context, name string, size int64) error
}

// Medium is what a drive with a tray holds.
type Medium struct {
	Path     string // absolute
	Format   string // "raw", ...; never probed
	ReadOnly bool   // a floppy's write protection; CD-ROMs are read-only anyway
}

// MediaChanger is a [Machine] whose CD-ROM and floppy drives can be emptied
// and filled while it runs.
type MediaChanger interface {
	// ChangeMedium puts a medium in, in place of the present one. force
	// takes a medium away that the guest has locked; without it that is an
	// error.
	ChangeMedium(ctx context.Context, name string, m Medium, force bool) error
	// EjectMedium leaves the drive empty.
	EjectMedium(ctx context.Context, name string, force bool) error
}

// DiskThrottler is a [Machine] whose disks' bounds can change while it runs.
type DiskThrottler interface {
	ThrottleDisk(ctx context.Context, name string, t Throttle) error
}

// PasswordSetter is a [Machine] whose displays' passwords can change while it
// runs.
type PasswordSetter interface {
	// SetDisplayPassword is for viewers that come from now on. It does not
	// outlive the run.
	SetDisplayPassword(ctx context.Context, d DisplayType, password string) error
}

// Channeled is a [Machine] whose channels have sockets on the host.
type Channeled interface {
	// ChannelSocket returns the path of the unix socket by which this process talks
	// to the guest's end of the channel with that target, "" where there is none. It
	// takes one client at a time, from the machine's start on.
	ChannelSocket(target string) string
}
