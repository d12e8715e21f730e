package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Affect says what a change of a domain's devices concerns.
type Affect uint32

// The choices; they can be combined.
const (
	AffectLive   Affect = 1 // the domain as it runs: ErrInvalid where it does not
	AffectConfig Affect = 2 // what the next start takes
)

// AttachDevice adds a device, given as its element of the domain document.
func (d *Domain) AttachDevice(ctx context.Context, xml string, a Affect) error {
	return d.do(ctx, "attach a device to", func(l *golibvirt.Libvirt) error { return l.DomainAttachDeviceFlags(d.dom, xml, uint32(a)) })
}

// DetachDevice takes a device away. On a running domain the guest must let go
// of it: it is gone when [EventRemoved] comes.
func (d *Domain) DetachDevice(ctx context.Context, xml string, a Affect) error {
	return d.do(ctx, "detach a device from", func(l *golibvirt.Libvirt) error { return l.DomainDetachDeviceFlags(d.dom, xml, uint32(a)) })
}

// UpdateDevice changes a device: the medium of a drive, the password of a
// graphics server, the link of a card. With force a locked tray is opened.
func (d *Domain) UpdateDevice(ctx context.Context, xml string, a Affect, force bool) error {
	flags := golibvirt.DomainDeviceModifyFlags(a)
	if force {
		flags |= golibvirt.DomainDeviceModifyForce
	}
	return d.do(ctx, "update a device of", func(l *golibvirt.Libvirt) error { return l.DomainUpdateDeviceFlags(d.dom, xml, flags) })
}

// BlockInfo is what a disk of a domain takes, in bytes.
type BlockInfo struct{ Capacity, Allocation, Physical int64 }

// BlockInfo asks for a disk's sizes, by its target or its path.
func (d *Domain) BlockInfo(ctx context.Context, disk string) (BlockInfo, error) {
	return call(ctx, d.conn, d.op("size of a disk of"), func(l *golibvirt.Libvirt) (BlockInfo, error) {
		allocation, capacity, physical, err := l.DomainGetBlockInfo(d.dom, disk, 0)
		return BlockInfo{Capacity: int64(capacity), Allocation: int64(allocation), Physical: int64(physical)}, err
	})
}

// BlockResize makes a running domain's disk (its target, "vda", or its path)
// size bytes long.
func (d *Domain) BlockResize(ctx context.Context, disk string, size int64) error {
	if size < 0 {
		return fmt.Errorf("%s: %d bytes for %s", d.op("resize a disk of"), size, disk)
	}
	return d.do(ctx, "resize a disk of", func(l *golibvirt.Libvirt) error {
		return l.DomainBlockResize(d.dom, disk, uint64(size), golibvirt.DomainBlockResizeBytes)
	})
}

// SendKeys presses Linux key codes (linux/input-event-codes.h) all at once
// and lets go of them after a moment.
func (d *Domain) SendKeys(ctx context.Context, codes ...uint32) error {
	const linux, hold = 0, 50 // virKeycodeSet; milliseconds
	return d.do(ctx, "send keys to", func(l *golibvirt.Libvirt) error { return l.DomainSendKey(d.dom, linux, hold, codes, 0) })
}

// MonitorCommand runs a command of QEMU's monitor: a line of the human one
// with hmp, else JSON. Libvirt marks the domain as tainted by it.
func (d *Domain) MonitorCommand(ctx context.Context, command string, hmp bool) (string, error) {
	var flags uint32
	if hmp {
		flags = 1 // VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
	}
	return call(ctx, d.conn, d.op("monitor of"), func(l *golibvirt.Libvirt) (string, error) {
		return l.QEMUDomainMonitorCommand(d.dom, command, flags)
	})
}
