package advice

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
)

// Host is what [Check] needs to know of the host: facts for each disk of the
// spec, in order.
type Host struct {
	Disks []DiskHost
	// MemoryAvailable in bytes is what the host can give without swapping; 0
	// if unknown.
	MemoryAvailable int64
	CPUs            int // 0 if unknown
}

// DiskHost is what the host has at a disk's path.
type DiskHost struct {
	Missing     bool   // there is nothing; the other facts are of its folder
	BlockDevice bool   //
	FS          string // "ext4", "xfs", "btrfs", "tmpfs", "nfs", ...; "" if unknown
	// DirectError says why O_DIRECT does not work, "" if it does.
	DirectError string
	// Sector in bytes is what O_DIRECT requests must be multiples of; 0 if
	// unknown.
	Sector int
	// Size and Allocated in bytes are of the file, Free of its file system.
	Size, Allocated, Free int64
}

// Kinds of file systems.
func (d DiskHost) inMemory() bool { return d.FS == "tmpfs" || d.FS == "ramfs" }

func (d DiskHost) shared() bool {
	switch d.FS {
	case "nfs", "cifs", "smb2", "ceph", "gfs2", "ocfs2", "lustre", "9p", "virtiofs":
		return true
	}
	return false
}

// coherent file systems keep the page caches of all hosts the same. libvirt
// counts these among the shared ones on which no cache mode makes migration
// unsafe.
func (d DiskHost) coherent() bool { return d.FS == "gfs2" || d.FS == "ocfs2" || d.FS == "ceph" }

// Inspect finds the facts of this host for a spec. It opens the images for
// reading and writes nothing. What cannot be found stays unknown.
func Inspect(s vm.Spec) Host {
	h := Host{Disks: make([]DiskHost, len(s.Disks)), CPUs: hostCPUs(), MemoryAvailable: memoryAvailable()}
	for i, d := range s.Disks {
		if d.Path != "" {
			h.Disks[i] = inspectDisk(d.Path)
		}
	}
	return h
}

func inspectDisk(path string) DiskHost {
	var d DiskHost
	at := path
	for {
		st, err := os.Stat(at)
		if err == nil {
			if at == path {
				d.BlockDevice = st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
				d.Size = st.Size()
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(at) == at {
			return d
		}
		d.Missing, at = true, filepath.Dir(at)
	}
	var st unix.Stat_t
	if unix.Stat(at, &st) == nil && at == path && !d.BlockDevice {
		d.Allocated = st.Blocks * 512
	}
	var sfs unix.Statfs_t
	if unix.Statfs(at, &sfs) == nil && !d.BlockDevice {
		d.FS, d.Free = fsName(int64(sfs.Type)), int64(sfs.Bavail)*sfs.Bsize
	}
	if err := vm.TryDirect(path); err != nil {
		d.DirectError = err.Error()
	}
	d.Sector = directAlignment(at, d.BlockDevice)
	return d
}

// directAlignment asks the kernel (statx since 6.1, or the block device).
func directAlignment(path string, device bool) int {
	const dioAlign = 0x2000 // STATX_DIOALIGN
	var stx unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, dioAlign, &stx) == nil && stx.Mask&dioAlign != 0 {
		return int(stx.Dio_offset_align)
	}
	if !device {
		return 0
	}
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return 0
	}
	return n
}

// fsName translates a magic number of statfs(2).
func fsName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC:      "ext4", // ext2 and ext3 have the same
		unix.XFS_SUPER_MAGIC:       "xfs",
		unix.BTRFS_SUPER_MAGIC:     "btrfs",
		unix.TMPFS_MAGIC:           "tmpfs",
		unix.RAMFS_MAGIC:           "ramfs",
		unix.NFS_SUPER_MAGIC:       "nfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
		unix.FUSE_SUPER_MAGIC:      "fuse",
		unix.V9FS_MAGIC:            "9p",
		unix.OCFS2_SUPER_MAGIC:     "ocfs2",
		unix.CEPH_SUPER_MAGIC:      "ceph",
		0x01161970:                 "gfs2",
		0x2fc12fc1:                 "zfs",
		0xff534d42:                 "cifs",
		0xfe534d42:                 "smb2",
		0x0bd00bd0:                 "lustre",
		0xf2f52010:                 "f2fs",
		0xca451a4e:                 "bcachefs",
	}
	return names[magic&0xffffffff]
}
