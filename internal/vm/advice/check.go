package advice

import (
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
)

// Check says what there is to say of a machine on a host: first what cannot
// work, then each disk's cache, bus and image, then memory and CPUs. The spec
// is complete (see [vm.Spec.WithDefaults]).
func Check(s vm.Spec, h Host) []Finding {
	found := invalid(s)
	for i, name := range s.DiskNames() {
		d := s.Disks[i]
		if d.Path == "" {
			continue
		}
		var dh DiskHost
		if i < len(h.Disks) {
			dh = h.Disks[i]
		}
		found = append(found, checkDisk(s, d, name, dh)...)
	}
	return append(found, checkResources(s, h)...)
}

// invalid are the problems that keep the machine from starting.
func invalid(s vm.Spec) []Finding {
	var found []Finding
	var e *vm.InvalidError
	if errors.As(s.Validate(), &e) {
		for _, p := range e.Problems {
			found = append(found, Finding{Problem, p.Field, p.Text, p.Remedy})
		}
	}
	return found
}

func checkDisk(s vm.Spec, d vm.Disk, name string, h DiskHost) []Finding {
	found := cacheFindings(d, "disk "+name+": cache "+string(d.Cache), h)
	found = append(found, busFindings(s, d, "disk "+name+": bus "+string(d.Bus))...)
	return append(found, imageFindings(d, "disk "+name+": image", h)...)
}

// cacheFindings: durability, O_DIRECT, migration.
func cacheFindings(d vm.Disk, subject string, h DiskHost) []Finding {
	c, ok := Cache(d.Cache)
	if !ok {
		return nil // Validate has said so
	}
	var found []Finding
	add := func(l Level, text, remedy string) { found = append(found, Finding{l, subject, text, remedy}) }
	switch {
	case d.ReadOnly:
		add(OK, "the disk is read-only: nothing can be lost", "")
	case c.NoFlush:
		add(Warning, "the guest's flushes are dropped: a power loss of the host can destroy the disk", "use writeback, unless the machine is thrown away")
	case h.inMemory():
		add(Warning, "the image lies in the host's memory ("+h.FS+"): it is gone when the host ends", "keep it on a disk")
	default:
		add(OK, "writes are safe from a power loss "+c.Durable, "")
	}
	if c.Direct && h.DirectError == "" && h.Sector > 512 {
		sector := max(d.LogicalBlock, 512)
		if sector < h.Sector {
			add(Note, fmt.Sprintf("the host's disk has sectors of %d bytes and the guest's %d: QEMU reads and rewrites what is smaller", h.Sector, sector), fmt.Sprintf("a new guest may have logicalBlock %d", h.Sector))
		}
	}
	if !c.Direct && !h.Missing && h.DirectError == "" && !h.inMemory() {
		add(Note, "the host caches what the guest caches too", "none saves that memory; O_DIRECT works on this file system")
	}
	found = append(found, migrationFinding(d, subject, c, h))
	return found
}

// migrationFinding is libvirt's rule: without the host's page cache, or on
// storage whose caches are coherent.
func migrationFinding(d vm.Disk, subject string, c CacheFacts, h DiskHost) Finding {
	switch {
	case d.ReadOnly:
		return Finding{OK, subject, "live migration: safe, nothing is written", ""}
	case h.coherent():
		return Finding{OK, subject, "live migration: safe, " + h.FS + " keeps the caches of all hosts the same", ""}
	case !c.Migratable:
		return Finding{Note, subject, "live migration: not safe, as the other host may read what its own page cache still holds", "use none or directsync before you migrate"}
	case !h.shared() && !h.BlockDevice:
		return Finding{Note, subject, "live migration: the cache mode is safe, but the image lies on this host only", "copy the storage with it, or keep the image on shared storage"}
	}
	return Finding{OK, subject, "live migration: safe", ""}
}

func busFindings(s vm.Spec, d vm.Disk, subject string) []Finding {
	b, ok := Bus(d.Bus)
	if !ok {
		return nil
	}
	found := []Finding{{OK, subject, "the guest needs the driver: " + b.Guests, ""}}
	if d.Discard && !b.Discard {
		found = append(found, Finding{Note, subject, "the bus has no discard: what the guest frees stays allocated, zeros aside", "use virtio-scsi, virtio or sata"})
	}
	if d.Bus == vm.BusVirtio && d.Device == vm.DeviceDisk && s.Chipset() == vm.MachineQ35 && s.HotplugPorts == 0 {
		found = append(found, Finding{Note, subject, "no more virtio disks can be added while the machine runs, as it has no free PCIe port", "give it hotplugPorts, or add disks on virtio-scsi"})
	}
	return found
}

func imageFindings(d vm.Disk, subject string, h DiskHost) []Finding {
	var found []Finding
	add := func(l Level, text, remedy string) { found = append(found, Finding{l, subject, text, remedy}) }
	if h.Missing {
		add(Problem, d.Path+" does not exist", "make it, or name another")
		return found
	}
	if !h.BlockDevice && !d.ReadOnly && d.Format == "raw" && h.Size > h.Allocated && h.Size-h.Allocated > h.Free {
		add(Warning, fmt.Sprintf("the image can grow by %d MiB, and its file system has %d MiB left", (h.Size-h.Allocated)>>20, h.Free>>20), "when it is full the machine pauses: make space in time")
	}
	if h.FS == "btrfs" && !d.ReadOnly {
		add(Note, "on btrfs, writes in the middle of an image fragment it", "chattr +C on the folder before the image is made")
	}
	return found
}

func checkResources(s vm.Spec, h Host) []Finding {
	var found []Finding
	if h.MemoryAvailable > 0 && s.Memory > h.MemoryAvailable {
		found = append(found, Finding{Warning, "memory", fmt.Sprintf("the machine may use %d MiB and the host has %d MiB to give", s.Memory>>20, h.MemoryAvailable>>20), "give it less, or end other machines"})
	}
	if h.CPUs > 0 && s.CPUs > h.CPUs {
		found = append(found, Finding{Note, "cpus", fmt.Sprintf("%d virtual CPUs on %d of the host take turns", s.CPUs, h.CPUs), fmt.Sprintf("more than %d do not make it faster", h.CPUs)})
	}
	return found
}
