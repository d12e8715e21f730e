package advice

import "github.com/lamina-vm/lamina/internal/vm"

// CacheFacts are what a cache mode is.
type CacheFacts struct {
	Mode       vm.Cache `json:"mode"`
	HostCache  bool     `json:"hostCache"`  // reads and writes go through the host's page cache
	Direct     bool     `json:"direct"`     // O_DIRECT: the file system must take it, requests are whole sectors
	WriteCache bool     `json:"writeCache"` // the guest sees a volatile write cache, which it must flush
	NoFlush    bool     `json:"noFlush"`    // the guest's flushes are dropped
	// Durable says when a write is safe from a power loss of the host.
	Durable string `json:"durable"`
	// Migratable: live migration is safe on every storage that both hosts
	// reach; else on a coherent cluster file system only.
	Migratable bool   `json:"migratable"`
	Speed      string `json:"speed"`
	text       string
}

// Caches returns the facts of every cache mode. Direct, WriteCache and NoFlush
// are the columns of the table at -drive cache= in qemu-system's manual.
func Caches() []CacheFacts {
	return []CacheFacts{
		{Mode: vm.CacheNone, Direct: true, WriteCache: true, Durable: "when the guest has flushed", Migratable: true, Speed: "fast; reads are never served from the host's memory",
			text: "The image is opened with O_DIRECT, so nothing is cached twice, in the guest and in the host. The guest is told of a write cache (the disk's own) and flushes it; flushed data survives a power loss of the host. The file system must take O_DIRECT; where the host's sectors are larger than those that the guest sees, QEMU reads and rewrites what is smaller, which is slower. It is what live migration wants."},
		{Mode: vm.CacheWriteback, HostCache: true, WriteCache: true, Durable: "when the guest has flushed", Speed: "fast; reads may come from the host's memory",
			text: "Writes are done when they are in the host's page cache. The guest is told of a write cache and flushes it, so a guest whose file system uses barriers (all of today's do) loses no flushed data in a power loss of the host. It works on every file system. Two copies of the data compete for memory, the guest's and the host's."},
		{Mode: vm.CacheWritethrough, HostCache: true, Durable: "at once", Speed: "slow writes, fast reads",
			text: "Every write is flushed to the disk before the guest is told that it is done, so even a guest that never flushes loses nothing. Reads may come from the host's page cache. Small writes are as slow as the disk's flush."},
		{Mode: vm.CacheDirectsync, Direct: true, Durable: "at once", Migratable: true, Speed: "slow",
			text: "Writethrough without the host's page cache: O_DIRECT, and every write is flushed before it is done. For guests that do not flush, on hosts that migrate machines."},
		{Mode: vm.CacheUnsafe, HostCache: true, WriteCache: true, NoFlush: true, Durable: "never: a power loss of the host can destroy the disk", Speed: "fastest",
			text: "Writeback whose flushes are dropped. If the host loses power or crashes, the order in which data reached the disk is nobody's, and the guest's file systems can be lost whole. For machines that are thrown away: builds, tests, installations that can be repeated."},
	}
}

// Cache returns the facts of one mode; ok is false for an unknown one.
func Cache(mode vm.Cache) (f CacheFacts, ok bool) {
	for _, c := range Caches() {
		if c.Mode == mode {
			return c, true
		}
	}
	return CacheFacts{}, false
}

func cacheTable() Table {
	t := Table{
		Topic:   TopicCache,
		Summary: "How a disk's reads and writes reach the host's disk: whether the host's memory holds them too, and when a write is safe.",
		Columns: []string{"cache", "host page cache", "O_DIRECT", "safe on power loss", "live migration", "speed"},
		Notes: []string{
			"O_DIRECT needs a file system that takes it (not tmpfs, some FUSE and network ones) and requests of whole sectors of the host's disk: on a host disk with sectors of 4096 bytes, QEMU copies what is smaller.",
			"Live migration with the host's page cache is safe only where both hosts' caches are coherent (GFS2, OCFS2, Ceph RBD): else the target reads what its own cache still holds.",
			"io=native needs none or directsync.",
		},
		Sources: []string{
			"QEMU, qemu-system(1), -drive cache= and -blockdev cache.direct, cache.no-flush",
			"libvirt, formatdomain: disk driver cache",
			"libvirt, virsh(1): migrate --unsafe",
		},
	}
	for _, c := range Caches() {
		migration := "safe"
		if !c.Migratable {
			migration = "cluster storage only"
		}
		t.Rows = append(t.Rows, Row{
			Name:    string(c.Mode),
			Cells:   []string{yesNo(c.HostCache), yesNo(c.Direct), c.Durable, migration, c.Speed},
			Default: c.Mode == vm.CacheWriteback,
			Text:    c.text,
		})
	}
	return t
}
