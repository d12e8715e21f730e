package advice

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm"
)

// TestTables: every table is whole, and knows every choice that a spec has.
func TestTables(t *testing.T) {
	for _, topic := range Topics() {
		table, err := Explain(topic)
		if err != nil || table.Summary == "" || len(table.Sources) == 0 {
			t.Errorf("%s: %+v, %v", topic, table, err)
		}
		defaults := 0
		for _, r := range table.Rows {
			if len(r.Cells) != len(table.Columns)-1 || slices.Contains(r.Cells, "") || r.Text == "" {
				t.Errorf("%s: %+v", topic, r)
			}
			if r.Default {
				defaults++
			}
			if _, err := table.Row(r.Name); err != nil {
				t.Error(err)
			}
		}
		if defaults != 1 {
			t.Errorf("%s has %d defaults", topic, defaults)
		}
	}
	if _, err := Explain("colour"); err == nil || !strings.Contains(err.Error(), "preallocation") {
		t.Errorf("unknown topic: %v", err)
	}
	formatTable, err := Explain(TopicFormat)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range vm.Formats() {
		if _, err := formatTable.Row(f); err != nil {
			t.Error(err)
		}
	}
	for _, m := range []vm.Cache{vm.CacheNone, vm.CacheWriteback, vm.CacheWritethrough, vm.CacheDirectsync, vm.CacheUnsafe} {
		// QEMU's manual: none and directsync open with O_DIRECT.
		if c, ok := Cache(m); !ok || c.Direct == c.HostCache || c.Migratable != c.Direct {
			t.Errorf("%s: %+v", m, c)
		}
	}
}

// find returns the level of the finding with those words.
func find(found []Finding, text string) Level {
	i := slices.IndexFunc(found, func(f Finding) bool { return strings.Contains(f.Text, text) })
	if i < 0 {
		return ""
	}
	return found[i].Level
}

// TestCheck: the verdicts by what the host has.
func TestCheck(t *testing.T) {
	spec := func(cache vm.Cache) vm.Spec {
		return vm.Spec{Name: "m", Memory: 1 << 30, Disks: []vm.Disk{{Path: "/nonexistent/d", Format: "raw", Cache: cache}}}.WithDefaults()
	}
	for name, c := range map[string]struct {
		cache vm.Cache
		host  DiskHost
		text  string
		want  Level
	}{
		"unsafe":             {vm.CacheUnsafe, DiskHost{FS: "ext4"}, "destroy the disk", Warning},
		"safe":               {vm.CacheWriteback, DiskHost{FS: "ext4"}, "when the guest has flushed", OK},
		"at once":            {vm.CacheDirectsync, DiskHost{FS: "ext4"}, "safe from a power loss at once", OK},
		"tmpfs":              {vm.CacheWriteback, DiskHost{FS: "tmpfs"}, "host's memory", Warning},
		"twice":              {vm.CacheWriteback, DiskHost{FS: "ext4"}, "caches what the guest caches", Note},
		"sectors":            {vm.CacheNone, DiskHost{FS: "xfs", Sector: 4096}, "sectors of 4096", Note},
		"no sectors":         {vm.CacheNone, DiskHost{FS: "xfs", Sector: 512}, "sectors of", ""},
		"local":              {vm.CacheNone, DiskHost{FS: "xfs"}, "on this host only", Note},
		"nfs":                {vm.CacheNone, DiskHost{FS: "nfs"}, "live migration: safe", OK},
		"nfs, writeback":     {vm.CacheWriteback, DiskHost{FS: "nfs"}, "live migration: not safe", Note},
		"cluster, writeback": {vm.CacheWriteback, DiskHost{FS: "gfs2"}, "live migration: safe", OK},
		"missing":            {vm.CacheWriteback, DiskHost{Missing: true}, "does not exist", Problem},
		"full":               {vm.CacheWriteback, DiskHost{FS: "ext4", Size: 10 << 30, Allocated: 1 << 30, Free: 2 << 30}, "can grow by", Warning},
	} {
		if got := find(Check(spec(c.cache), Host{Disks: []DiskHost{c.host}}), c.text); got != c.want {
			t.Errorf("%s: level %q, want %q", name, got, c.want)
		}
	}
	found := Check(spec(vm.CacheWriteback), Host{MemoryAvailable: 1 << 29, CPUs: 1})
	if find(found, "has 512 MiB to give") != Warning {
		t.Errorf("memory: %+v", found)
	}
}

// TestInspect: this host's own files.
func TestInspect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	h := Inspect(vm.Spec{Disks: []vm.Disk{{Path: path}, {Path: path + ".not"}, {}, {Path: "/dev/shm/not/there"}}})
	if d := h.Disks[0]; d.Missing || d.Size != 1<<16 || d.Free == 0 || d.BlockDevice {
		t.Errorf("%+v", d)
	}
	if d := h.Disks[1]; !d.Missing || d.FS != h.Disks[0].FS {
		t.Errorf("a missing file: %+v", d)
	}
	if d := h.Disks[3]; !d.Missing || d.FS != "tmpfs" {
		t.Errorf("in memory: %+v", d)
	}
	if h.CPUs < 1 || h.MemoryAvailable < 1<<20 {
		t.Errorf("%+v", h)
	}
}
