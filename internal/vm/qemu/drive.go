package qemu

import (
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
)

// blockNode is a -blockdev value. Its JSON form needs no escaping of paths.
type blockNode struct {
	Driver       string     `json:"driver"`
	NodeName     string     `json:"node-name,omitempty"`
	Filename     string     `json:"filename,omitempty"`
	ReadOnly     bool       `json:"read-only"`
	Cache        blockCache `json:"cache"`
	Discard      string     `json:"discard"`
	DetectZeroes string     `json:"detect-zeroes,omitempty"`
	File         *blockNode `json:"file,omitempty"`
}

// blockCache is the host's half of a cache mode. The backing chain inherits it.
type blockCache struct {
	Direct  bool `json:"direct"`   // O_DIRECT
	NoFlush bool `json:"no-flush"` // flushes are ignored
}

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

// diskArgs are the controllers that the drives need, then the drives.
func (c config) diskArgs() []string {
	var args []string
	seats := seating{machine: c.spec.Machine, used: map[vm.Bus]int{}}
	for i, d := range c.spec.Disks {
		id := fmt.Sprintf("disk%d", i)
		args = append(args, "-blockdev", encode(c.blockdev(d, id)))
		controller, place := seats.next(d.Bus)
		if controller != "" {
			args = append(args, "-device", controller)
		}
		args = append(args, "-device", driveDevice(d, id, place))
	}
	return args
}

// blockdev opens the image and, through the names in its header, its backing
// chain.
func (c config) blockdev(d vm.Disk, id string) blockNode {
	file := "file"
	if c.isBlockDevice(d.Path) {
		file = "host_device"
	}
	discard := "ignore"
	var detect string
	if d.Discard && !d.ReadOnly {
		discard = "unmap"
		detect = "unmap" // zeros that the guest writes give space back too
	}
	cache := cacheModes[d.Cache].host
	return blockNode{
		Driver:       d.Format,
		NodeName:     id,
		ReadOnly:     d.ReadOnly,
		Cache:        cache,
		Discard:      discard,
		DetectZeroes: detect,
		File: &blockNode{
			Driver:   file,
			Filename: d.Path,
			ReadOnly: d.ReadOnly,
			Cache:    cache,
			Discard:  discard,
		},
	}
}

// seating hands out the places on each bus.
type seating struct {
	machine string
	used    map[vm.Bus]int
}

// next returns the next place on a bus as device properties, and the
// controller to add before it where the machine does not have one.
func (s *seating) next(bus vm.Bus) (controller string, place []string) {
	n := s.used[bus]
	s.used[bus]++
	switch bus {
	case vm.BusIDE: // two channels of the PIIX chipset, two drives each
		return "", []string{"bus", fmt.Sprintf("ide.%d", n/2), "unit", strconv.Itoa(n % 2)}
	case vm.BusSATA:
		if s.machine == vm.MachineQ35 { // whose own AHCI controller is called ide
			return "", []string{"bus", fmt.Sprintf("ide.%d", n)}
		}
		if n == 0 {
			controller = "ich9-ahci,id=sata0"
		}
		return controller, []string{"bus", fmt.Sprintf("sata0.%d", n)}
	case vm.BusVirtioSCSI:
		if n == 0 {
			controller = "virtio-scsi-pci,id=scsi0"
		}
		return controller, []string{"bus", "scsi0.0", "channel", "0", "scsi-id", strconv.Itoa(n), "lun", "0"}
	}
	return "", nil
}

// driveDevice is what the guest sees of a drive.
func driveDevice(d vm.Disk, id string, place []string) string {
	driver := map[vm.Bus]string{vm.BusIDE: "ide-", vm.BusSATA: "ide-", vm.BusVirtioSCSI: "scsi-"}[d.Bus]
	var writeCache string
	switch {
	case d.Bus == vm.BusVirtio:
		driver = "virtio-blk-pci"
	case d.Device == vm.DeviceCDROM:
		driver += "cd"
	default:
		driver += "hd"
	}
	if d.Device == vm.DeviceDisk {
		writeCache = onOff(cacheModes[d.Cache].writeCache)
	}
	var boot string
	if d.BootIndex > 0 {
		boot = strconv.Itoa(d.BootIndex)
	}
	properties := append(place, "drive", id, "id", id+"-device", "write-cache", writeCache, "serial", d.Serial, "bootindex", boot)
	return device(driver, properties...)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
