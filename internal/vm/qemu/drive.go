package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// cacheModes is QEMU's table of cache modes (qemu-options, -drive cache=):
// what the host does, and whether the drive tells the guest of a write cache
// that it must flush.
var cacheModes = map[vm.Cache]struct {
	host       blockCache
	writeCache bool
}{
	vm.CacheWriteback:    {blockCache{false, false}, true},
	vm.CacheNone:         {blockCache{true, false}, true},
	vm.CacheWritethrough: {blockCache{false, false}, false},
	vm.CacheDirectsync:   {blockCache{true, false}, false},
	vm.CacheUnsafe:       {blockCache{false, true}, true},
}

// driveID is what QEMU calls the drive that was the index-th of its machine:
// its top node. Its device has "-device" behind it.
func driveID(index int) string { return fmt.Sprintf("disk%d", index) }

// deviceID is the id of the device of a drive or card.
func deviceID(id string) string { return id + "-device" }

// diskArgs are the controllers that the drives need, then the drives.
func (c config) diskArgs() []string {
	var args []string
	seats := newSeating(c)
	for _, controller := range seats.named() {
		args = append(args, "-device", controller)
	}
	for i, d := range c.spec.Disks {
		id := c.diskID(i)
		if s := c.secret(d, id); s != nil {
			args = append(args, "-object", object(s))
		}
		if d.Path != "" {
			args = append(args, "-blockdev", encode(c.blockdev(d, id)))
		}
		controller, at := seats.next(d, id)
		if controller != "" {
			args = append(args, "-device", controller)
		}
		if d.Bus == vm.BusFDC {
			args = append(args, floppyBoot(d, at.unit)...)
		}
		for _, dev := range driveDevices(d, id, at) {
			args = append(args, "-device", object(dev))
		}
	}
	return args
}

// secret is the object with an encrypted image's passphrase, nil for others.
func (c config) secret(d vm.Disk, id string) []string {
	if d.SecretFile == "" {
		return nil
	}
	return []string{"qom-type", "secret", "id", id + "-secret", "file", d.SecretFile}
}

// driveDevices are what the guest sees of a drive, as properties: the first is
// its driver.
func driveDevices(d vm.Disk, id string, at seat) [][]string {
	var boot string
	if d.BootIndex > 0 {
		boot = strconv.Itoa(d.BootIndex)
	}
	p := append([]string{"driver", driveDriver(d)}, at.place...)
	if d.Path != "" {
		p = append(p, "drive", id)
	}
	p = append(p, "id", deviceID(id))
	if d.Bus == vm.BusFDC {
		return [][]string{p}
	}
	var writeCache string
	if d.Device == vm.DeviceDisk {
		writeCache = onOff(cacheModes[d.Cache].writeCache)
	}
	errors := []string{"werror", string(d.WriteError), "rerror", string(d.ReadError)}
	if d.Device == vm.DeviceLUN {
		return [][]string{append(append(p, "bootindex", boot, "share-rw", onIf(d.Shareable)), errors...)}
	}
	physical := d.PhysicalBlock
	if physical == 0 && d.LogicalBlock > 512 {
		physical = d.LogicalBlock // which is never the larger one
	}
	p = append(p, "write-cache", writeCache, "serial", d.Serial, "bootindex", boot)
	p = append(p, errors...)
	p = append(p, "logical_block_size", number(d.LogicalBlock), "physical_block_size", number(physical), "share-rw", onIf(d.Shareable))
	p = append(p, busProperties(d)...)
	if d.Bus == vm.BusUSB && d.Device == vm.DeviceCDROM { // usb-storage knows disks only
		bot := []string{"driver", "usb-bot", "id", id + "-usb", "bus", usbBus}
		return [][]string{bot, p}
	}
	return [][]string{p}
}

// busProperties are those that only some buses have.
func busProperties(d vm.Disk) []string {
	removable, wwn := string(d.Removable), d.WWN
	if wwn != "" && !strings.HasPrefix(wwn, "0x") {
		wwn = "0x" + wwn
	}
	switch d.Bus {
	case vm.BusVirtio:
		return []string{"iothread", ioThread(d.IOThread), "num-queues", number(d.Queues)}
	case vm.BusNVMe:
		return []string{"max_ioqpairs", number(d.Queues)}
	case vm.BusIDE, vm.BusSATA:
		if d.Device == vm.DeviceCDROM {
			return []string{"wwn", wwn}
		}
		return []string{"wwn", wwn, "rotation_rate", number(d.RotationRate)}
	case vm.BusUSB:
		if d.Device == vm.DeviceCDROM {
			return nil
		}
		return []string{"removable", removable}
	}
	p := []string{"wwn", wwn, "vendor", d.Vendor, "product", d.Product}
	if d.Device == vm.DeviceCDROM {
		return p
	}
	return append(p, "removable", removable, "rotation_rate", number(d.RotationRate))
}

// driveDriver is QEMU's name of the device.
func driveDriver(d vm.Disk) string {
	switch d.Bus {
	case vm.BusVirtio:
		return "virtio-blk-pci"
	case vm.BusNVMe:
		return "nvme"
	case vm.BusFDC:
		return "floppy"
	case vm.BusUSB:
		if d.Device == vm.DeviceCDROM {
			return "scsi-cd"
		}
		return "usb-storage"
	case vm.BusIDE, vm.BusSATA:
		if d.Device == vm.DeviceCDROM {
			return "ide-cd"
		}
		return "ide-hd"
	}
	switch d.Device {
	case vm.DeviceCDROM:
		return "scsi-cd"
	case vm.DeviceLUN:
		return "scsi-block"
	}
	return "scsi-hd"
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
