package advice

import (
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

func preallocationTable() Table {
	return Table{
		Topic:   TopicPreallocation,
		Summary: "How much of a new disk's space is taken when it is made.",
		Columns: []string{"preallocation", "raw", "qcow2", "time to make", "host full later", "first writes"},
		Rows: []Row{
			{Name: "off", Cells: []string{"a file with one hole", "tables for nothing yet", "at once", "the machine pauses", "allocate"}, Default: true,
				Text: "Nothing is taken before it is written. The sum of all disks may be larger than the host's: watch it. When the host is full, QEMU stops the machine at the write, and goes on when there is space."},
			{Name: "metadata", Cells: []string{"(as off)", "all tables, data as a hole", "seconds", "the machine pauses", "no table writes"},
				Text: "qcow2's tables are written for the whole disk, so that later writes only allocate in the file system. For qcow2 only; backing files and this do not go together before QEMU 5.1."},
			{Name: "falloc", Cells: []string{"reserved blocks", "tables and reserved blocks", "at once on ext4, XFS, btrfs", "cannot happen", "fast"},
				Text: "The file system reserves every block (posix_fallocate) and writes none: the space is there for certain. File systems without it write zeros, which takes as long as full."},
			{Name: "full", Cells: []string{"zeros written", "tables and zeros written", "as long as writing it all", "cannot happen", "fastest"},
				Text: "Zeros are written to every block. On a disk whose file system has to convert reserved blocks it saves that at the first write; on a copy-on-write file system (btrfs, ZFS) it gains nothing."},
		},
		Notes:   []string{"A thin clone has nothing to preallocate: its unwritten parts are the template's.", "discard=unmap gives space back, and so undoes falloc and full."},
		Sources: []string{"QEMU, qemu-img(1): the preallocation option of raw and qcow2"},
	}
}

// formatFacts are what an image format can do for a machine.
type formatFacts struct {
	name, writable, features, speed, text string
}

func formats() []formatFacts {
	return []formatFacts{
		{"qcow2", "yes", "backing files, snapshots, compression, encryption, bitmaps", "near raw once allocated",
			"QEMU's own format, and the one for machines: thin clones, snapshots, discard. Space is taken as it is written on every file system."},
		{"raw", "yes", "none; holes of the file system", "fastest",
			"The disk's bytes as they are. Every tool reads it; the file system's holes keep it small. Never let its format be guessed: a guest could write another format's header."},
		{"luks", "yes", "encryption", "raw with encryption", "A raw disk inside a LUKS1 container, as cryptsetup opens it. It needs its passphrase at each start."},
		{"qed", "yes", "backing files", "as qcow2, no advantage", "QEMU's short-lived successor of qcow2, from before qcow2 version 3. Convert it."},
		{"vmdk", "yes", "VMware's; backing files, streamed variants read-only", "medium", "VMware's format. QEMU writes the monolithic variants; stream-optimized ones (of OVA files) are to be converted."},
		{"vdi", "yes", "VirtualBox's; dynamic size", "medium", "VirtualBox's format, without its snapshots."},
		{"vhdx", "yes", "Hyper-V's; a log of metadata", "medium", "Hyper-V's format. An image that was not closed well has its log replayed, which needs it writable."},
		{"vpc", "yes", "Hyper-V's older VHD, up to 2 TB", "medium", "The old VHD of Virtual PC, Azure and Xen."},
		{"parallels", "yes", "Parallels' hdd", "medium", "Parallels' format."},
		{"dmg", "no", "Apple's compressed disk images", "slow", "Read-only."},
		{"cloop", "no", "compressed CD images", "slow", "Read-only."},
		{"bochs", "no", "Bochs' growing images", "slow", "Read-only."},
	}
}

func formatTable() Table {
	t := Table{
		Topic:   TopicFormat,
		Summary: "What an image file looks like inside. A machine is always told its disk's format: it is never guessed.",
		Columns: []string{"format", "writable", "features", "speed"},
		Notes: []string{
			"lamina run keeps what it imports as qcow2; convert others with `lamina img convert`.",
			"A machine runs from: " + strings.Join(vm.Formats(), ", ") + ".",
		},
		Sources: []string{"QEMU, qemu-block-drivers(7)", "libvirt, formatdomain: disk driver type"},
	}
	for _, f := range formats() {
		t.Rows = append(t.Rows, Row{Name: f.name, Cells: []string{f.writable, f.features, f.speed}, Default: f.name == "qcow2", Text: f.text})
	}
	return t
}
