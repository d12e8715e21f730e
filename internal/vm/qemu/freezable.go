package qemu

import (
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/internal/vm"
)

// unfreezable says which part of a machine keeps it from being frozen, as its
// state, or a part of it, is the host's or another process's, or as copies of it
// would get into each other's way. What QEMU itself cannot migrate it says later.
func unfreezable(s vm.Spec) error {
	no := func(what, remedy string) error {
		return fmt.Errorf("%w: %s: %s", vm.ErrNoFreeze, what, remedy)
	}
	c := config{spec: s}
	switch {
	case len(s.HostDevices) > 0:
		return no("it has a device of the host", "unplug it, or start the machine without it")
	case len(s.Filesystems) > 0:
		return no("it has a folder of the host", "start it without, and copy files over SSH")
	case len(s.Redirects) > 0:
		return no("it has USB redirection", "start it without")
	case s.TPM != nil:
		return no("it has a TPM, whose secrets every copy would have", "start it without")
	case s.Balloon != nil && s.Balloon.Model != "none":
		// What a guest gives back QEMU cuts out of the file that is mapped, also where it is
		// mapped privately (ram_block_discard_range): one guest would empty the memory of
		// all that go on from it. A guest may do so unasked.
		return no("it has a balloon, by which a copy would take memory from all others", "start it without")
	case s.VSock != nil:
		return no("it has a vsock, whose address every copy would have", "start it without")
	case c.sharedMemory():
		return no("its memory is shared with another process", "start it without shared memory")
	case s.MemoryConfig.HugePages:
		return no("its memory is of huge pages, which no file of it could have", "start it without")
	case len(s.Processor.NUMA) > 0:
		return no("its memory is divided into NUMA cells", "start it with plain memory")
	}
	for _, in := range s.Inputs {
		if in.Type == "evdev" || in.Type == "passthrough" {
			return no("it has an input device of the host", "start it without")
		}
	}
	for _, c := range allChars(s) {
		if c.Type == vm.CharDev {
			return no("it has a port that is the host's "+c.Path, "start it without")
		}
	}
	for _, v := range s.Videos {
		if v.Accel3D == vm.On {
			return no("its graphics card draws on the host's", "start it without 3D acceleration")
		}
	}
	for _, d := range s.Displays {
		if d.GL == vm.On {
			return no("its display draws on the host's graphics card", "start it without GL")
		}
	}
	for i, d := range s.Disks {
		name := s.DiskNames()[i]
		switch {
		case d.Device == vm.DeviceLUN:
			return no("drive "+name+" is a device of the host", "give it an image")
		case d.Bus == vm.BusNVMe:
			return no("drive "+name+" is on nvme, whose state QEMU does not keep", "use virtio or virtio-scsi")
		case d.SecretFile != "" && !d.ReadOnly:
			return no("drive "+name+" is encrypted, and what is written over it would not be", "use one that is not")
		}
	}
	return nil
}

// allChars are the character devices of a machine.
func allChars(s vm.Spec) []vm.Char {
	all := slices.Concat(s.Serials, s.Parallels, s.Consoles)
	for _, c := range s.Channels {
		all = append(all, c.Char)
	}
	return all
}
