package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// snapshotChange is one change of the snapshots of an image.
type snapshotChange struct {
	name string
	do   func(img *Image) error
}

var snapshotChanges = []snapshotChange{
	{"create", func(img *Image) error {
		_, err := img.CreateSnapshot(context.Background(), "new", time.Time{})
		return err
	}},
	{"apply the first", func(img *Image) error { return img.ApplySnapshot(context.Background(), 0) }},
	{"apply the last", func(img *Image) error { return img.ApplySnapshot(context.Background(), 2) }},
	{"delete the first", func(img *Image) error { return img.DeleteSnapshot(context.Background(), 0) }},
	{"delete the last", func(img *Image) error { return img.DeleteSnapshot(context.Background(), 2) }},
}

// snapshotBase makes an image with three snapshots, data of all kinds that
// they share in part, and other sizes of the disk in version 3.
func snapshotBase(t testing.TB, values map[string]string) *memory.Disk {
	t.Helper()
	disk := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), disk, 96<<10, format.CreateOptions{Values: values}); err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, disk)
	p := make([]byte, 20000)
	fillRandom(rand.New(rand.NewPCG(1, 2)), p)
	cs := img.g.clusterSize()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(off int64) {
		_, err := img.WriteAt(p, off)
		must(err)
	}
	snap := func() {
		_, err := img.CreateSnapshot(t.Context(), "s", time.Time{})
		must(err)
	}
	write(0)
	must(img.WriteCompressed(p[:cs], 64<<10))
	must(img.WriteCompressed(p[:cs], 64<<10+cs))
	snap()
	write(10000)
	must(img.Discard(0, cs))
	if img.version >= 3 {
		must(img.WriteZeroes(2*cs, cs, 0))
		must(img.Resize(t.Context(), 80<<10, block.ResizeOptions{AllowShrink: true}))
	}
	snap()
	write(30000)
	snap()
	write(0)
	if img.version >= 3 {
		must(img.Resize(t.Context(), 128<<10, block.ResizeOptions{}))
	}
	write(70 << 10)
	must(img.Close())
	return disk.Reopen()
}

func openWritable(t testing.TB, disk block.Node) *Image {
	t.Helper()
	n, err := Driver{}.Open(t.Context(), disk, format.OpenOptions{Writable: true, Filename: "image"})
	if err != nil {
		t.Fatal(err)
	}
	return n.(*Image)
}

// state is what an image holds: the disk and every snapshot.
type state struct {
	disk  []byte
	snaps []modelSnapshot
}

func stateOf(t testing.TB, disk *memory.Disk) state {
	t.Helper()
	s := state{disk: content(t, disk)}
	err := snapshotContents(disk, nil, func(f format.Snapshot, data []byte) error {
		s.snaps = append(s.snaps, modelSnapshot{f.ID, f.Name, data})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s state) equal(o state) bool {
	return bytes.Equal(s.disk, o.disk) && slices.EqualFunc(s.snaps, o.snaps, func(a, b modelSnapshot) bool {
		return a.id == b.id && a.name == b.name && bytes.Equal(a.data, b.data)
	})
}

// requireWhole fails unless a check finds neither an error nor a leak.
func requireWhole(t testing.TB, disk *memory.Disk) {
	t.Helper()
	n, err := Driver{}.Open(t.Context(), disk.ReadOnly(), format.OpenOptions{ForCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	res, err := n.(*Image).Check(t.Context(), block.CheckOptions{Report: func(line string) { lines = append(lines, line) }})
	if err != nil || res.Corruptions+res.CheckErrors+res.Leaks > 0 {
		t.Fatalf("check: %+v, %v\n%s", res, err, excerpt(lines))
	}
}

var snapshotGeometries = []map[string]string{
	{"cluster_size": "512"},
	{"cluster_size": "1k", "compat": "0.10"},
	{"cluster_size": "4k", "refcount_bits": "64"},
	{"cluster_size": "4k", "lazy_refcounts": "on"},
	{"cluster_size": "8k", "refcount_bits": "4"},
}

// TestSnapshotFaults makes each request of each change fail: the error comes
// out, the disk and all snapshots are as before, without a leak, and the
// change can be repeated.
func TestSnapshotFaults(t *testing.T) {
	runs := 0
	for _, values := range snapshotGeometries {
		base := snapshotBase(t, values)
		before := stateOf(t, base)
		for _, c := range snapshotChanges {
			done := base.Clone()
			img := openWritable(t, done)
			if err := errors.Join(c.do(img), img.Close()); err != nil {
				t.Fatal(err)
			}
			after := stateOf(t, done.Reopen())
			for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read} {
				for n := 0; ; n++ {
					disk := base.Clone()
					bad := fault.Wrap(disk)
					img := openWritable(t, bad)
					start := bad.Count(op)
					bad.Add(fault.Rule{Op: op, After: n, Times: 1, Err: syscall.ENOSPC, Short: 100})
					err := c.do(img)
					if bad.Count(op)-start <= n {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					runs++
					where := fmt.Sprintf("%v, %s, %v %d", values, c.name, op, n)
					if !errors.Is(err, syscall.ENOSPC) {
						t.Fatalf("%s: error %v", where, err)
					}
					checkAfterFault(t, where, img, disk, before, after, c)
				}
			}
		}
	}
	if runs < 300 {
		t.Errorf("only %d faults struck", runs)
	}
}

func checkAfterFault(t *testing.T, where string, img *Image, disk *memory.Disk, before, after state, c snapshotChange) {
	t.Helper()
	if img.refuse.Load() != nil {
		// A failed barrier or header: which of the two the file has is not
		// known, but it is one of them.
		_ = img.Close()
		d := disk.Reopen()
		if s := stateOf(t, d); !s.equal(before) && !s.equal(after) {
			t.Fatalf("%s: neither the old nor the new content", where)
		}
		if err := requireSound(d, nil); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		return
	}
	got := make([]byte, img.Size())
	if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, before.disk) {
		t.Fatalf("%s: the disk reads otherwise than before (%v)", where, err)
	}
	if err := c.do(img); err != nil {
		t.Fatalf("%s: again: %v", where, err)
	}
	if err := img.Close(); err != nil {
		t.Fatalf("%s: close: %v", where, err)
	}
	requireWhole(t, disk.Reopen())
}

// TestSnapshotPowerLoss cuts the power at every write of every change, with
// what no barrier covers lost, reordered or torn: the image is the old one or
// the new one as a whole, and a check finds no error.
func TestSnapshotPowerLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 9))
	states := 0
	for _, values := range snapshotGeometries {
		base := snapshotBase(t, values)
		before := stateOf(t, base)
		for _, c := range snapshotChanges {
			rec := record.Wrap(base.Clone())
			img := openWritable(t, rec)
			if err := c.do(img); err != nil {
				t.Fatal(err)
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			log := rec.Log()
			var after state
			for n, d := range log.Prefixes(base) {
				if n == len(log) {
					after = stateOf(t, d)
				}
			}
			for n, d := range log.Prefixes(base) {
				for k := range 4 {
					if k > 0 {
						d = log.Crash(base, n, r)
					}
					if err := requireSound(d, nil); err != nil {
						t.Fatalf("%v, %s, after %d of %d events: %v", values, c.name, n, len(log), err)
					}
					if s := stateOf(t, d); !s.equal(before) && !s.equal(after) {
						t.Fatalf("%v, %s, after %d of %d events: neither the old nor the new content", values, c.name, n, len(log))
					}
					states++
				}
			}
		}
	}
	t.Logf("%d states", states)
}

// TestSnapshotRefcountFull holds that refcounts which cannot count another
// reference refuse the change before anything of the image changes.
func TestSnapshotRefcountFull(t *testing.T) {
	for _, bits := range []string{"1", "2"} {
		disk := memory.NewFile()
		opts := format.CreateOptions{Values: map[string]string{"cluster_size": "4k", "refcount_bits": bits}}
		if err := (Driver{}).Create(t.Context(), disk, 1<<20, opts); err != nil {
			t.Fatal(err)
		}
		img := openWritable(t, disk)
		if _, err := img.WriteAt(make([]byte, 300<<10), 5000); err != nil {
			t.Fatal(err)
		}
		made := 0
		for err := error(nil); err == nil; made++ {
			if err = img.Flush(); err != nil {
				t.Fatal(err)
			}
			before := disk.Bytes()
			_, err = img.CreateSnapshot(t.Context(), "s", time.Time{})
			if err == nil {
				continue
			}
			if !errors.Is(err, syscall.EINVAL) || !errors.Is(err, block.ErrUnsupported) {
				t.Errorf("%s bits: error %v", bits, err)
			}
			if !bytes.Equal(before, disk.Bytes()) {
				t.Errorf("%s bits: the image was changed", bits)
			}
		}
		if want := map[string]int{"1": 1, "2": 3}[bits]; made != want {
			t.Errorf("%s bits: refused after %d tries, not %d", bits, made, want)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		requireWhole(t, disk.Reopen())
	}
}

// TestSnapshotCancelled holds that a change that is cancelled is undone.
func TestSnapshotCancelled(t *testing.T) {
	base := snapshotBase(t, snapshotGeometries[0])
	before := stateOf(t, base)
	img := openWritable(t, base)
	for n := 0; ; n++ {
		ctx := &expiring{Context: t.Context(), left: n}
		err := img.DeleteSnapshot(ctx, 1)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if n > 1000 {
			t.Fatal("it never ends")
		}
		if n%10 == 0 {
			requireWhole(t, base)
			if !stateOf(t, base).equal(before) {
				t.Fatalf("after %d steps: the image was changed", n)
			}
		}
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	requireWhole(t, base.Reopen())
}

// expiring is a context that is cancelled after a number of looks at it.
type expiring struct {
	context.Context
	left int
}

func (e *expiring) Err() error {
	if e.left--; e.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestSnapshotLimits holds the limits on the number and the names.
func TestSnapshotLimits(t *testing.T) {
	disk := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), disk, 0, format.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, disk)
	if _, err := img.CreateSnapshot(t.Context(), strings.Repeat("x", 256), time.Time{}); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("a name that is too long: %v", err)
	}
	for _, i := range []int{-1, 0} {
		if err := img.DeleteSnapshot(t.Context(), i); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("delete snapshot %d of none: %v", i, err)
		}
		if err := img.ApplySnapshot(t.Context(), i); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("apply snapshot %d of none: %v", i, err)
		}
	}
	s, err := img.CreateSnapshot(t.Context(), strings.Repeat("x", 255), time.Unix(7, 8999))
	if err != nil || s.ID != "1" || s.DateSec != 7 || s.DateNsec != 8000 {
		t.Errorf("%+v, %v", s, err)
	}
	img.snapshots = slices.Repeat(img.snapshots, maxSnapshots)
	if _, err := img.CreateSnapshot(t.Context(), "x", time.Time{}); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("one snapshot too many: %v", err)
	}
}

// TestSnapshotEntriesKept holds that what is not known in other entries stays
// when the table is written, and that old entries get what they lack.
func TestSnapshotEntriesKept(t *testing.T) {
	list := []snapshot{
		{id: "1", name: "a", l1Size: 1, l1Offset: 0x10000, icount: 1<<64 - 1, vmStateSize: 5},
		{id: "7x", name: "b", extra: append(make([]byte, 24), "unknown"...), diskSize: 512, vmStateSize: 1 << 40, icount: 9},
	}
	for i := range list {
		list[i] = list[i].complete(1024)
	}
	b := encodeSnapshots(list)
	if int64(len(b)) != snapshotTableSize(list) {
		t.Errorf("%d bytes instead of %d", len(b), snapshotTableSize(list))
	}
	table, err := readSnapshotTable(bytes.NewReader(b), 0, 2, maxSnapshotBytes, nil)
	if err != nil || table.bytes != int64(len(b)) {
		t.Fatal(table.bytes, err)
	}
	got := table.list
	for i := range list {
		if fmt.Sprint(got[i]) != fmt.Sprint(list[i]) {
			t.Errorf("%+v instead of %+v", got[i], list[i])
		}
	}
	if got[0].diskSize != 1024 || string(got[1].extra[24:]) != "unknown" {
		t.Errorf("%+v", got)
	}
	if s := newSnapshot(list, "c", time.Time{}, 0); s.id != "8" {
		t.Errorf("ID %q", s.id)
	}
}

// TestSnapshotInterop lets ours and the stock tools change the snapshots of
// one image by turns, and compares every snapshot with what it held.
func TestSnapshotInterop(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 11))
	for _, options := range []string{"cluster_size=512", "cluster_size=64k,compat=0.10", "cluster_size=4k,refcount_bits=8,lazy_refcounts=on", "cluster_size=2M"} {
		t.Run(options, func(t *testing.T) {
			dir := memoryDir(t)
			path := filepath.Join(dir, "disk.qcow2")
			qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", options, path, "3M")
			want := map[string][]byte{} // by name
			disk := make([]byte, 3<<20)
			for round := range 14 {
				ours := r.IntN(2) == 0
				off, fill := r.Int64N(2<<20), byte(r.IntN(255)+1)
				qemutest.IO(t, "qcow2", path, fmt.Sprintf("write -P %d %d 50000", fill, off))
				copy(disk[off:], bytes.Repeat([]byte{fill}, 50000))
				names := make([]string, 0, len(want))
				for n := range want {
					names = append(names, n)
				}
				slices.Sort(names)
				switch k := r.IntN(4); {
				case k < 2 || len(names) == 0:
					name := fmt.Sprint("s", round)
					changeSnapshot(t, ours, path, "-c", name)
					want[name] = bytes.Clone(disk)
				case k == 2:
					name := names[r.IntN(len(names))]
					changeSnapshot(t, ours, path, "-a", name)
					disk = bytes.Clone(want[name])
				default:
					name := names[r.IntN(len(names))]
					changeSnapshot(t, ours, path, "-d", name)
					delete(want, name)
				}
				qemutest.RequireClean(t, path)
			}
			requireDisk(t, path, "", disk)
			for name, data := range want {
				requireDisk(t, path, name, data)
			}
		})
	}
}

// requireDisk compares the disk, or a snapshot, as the stock tool reads it.
func requireDisk(t *testing.T, path, snapshot string, want []byte) {
	t.Helper()
	raw := path + ".raw"
	args := []string{"convert", "-f", "qcow2", "-O", "raw"}
	if snapshot != "" {
		args = append(args, "-l", "snapshot.name="+snapshot)
	}
	qemutest.Img(t, append(args, path, raw)...)
	got, err := os.ReadFile(raw)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("snapshot %q: other content (%v)", snapshot, err)
	}
}

// changeSnapshot does by ours what `qemu-img snapshot OP NAME` does, or runs it.
func changeSnapshot(t *testing.T, ours bool, path, op, name string) {
	t.Helper()
	if !ours {
		qemutest.Img(t, "snapshot", op, name, path)
		return
	}
	f, err := file.Open(path, file.Options{Writable: true, Growable: true})
	if err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, f)
	i := slices.IndexFunc(img.snapshots, func(s snapshot) bool { return s.name == name })
	switch op {
	case "-c":
		_, err = img.CreateSnapshot(t.Context(), name, time.Time{})
	case "-a":
		err = img.ApplySnapshot(t.Context(), i)
	default:
		err = img.DeleteSnapshot(t.Context(), i)
	}
	if err := errors.Join(err, img.Close()); err != nil {
		t.Fatalf("%s %s: %v", op, name, err)
	}
}

// TestSnapshotVMState makes snapshots of running machines by QEMU itself, and
// others by ours around them: QEMU can still load each, also after its disk
// was gone back to by ours, and the disk shows no state when it grows.
func TestSnapshotVMState(t *testing.T) {
	path := filepath.Join(memoryDir(t), "disk.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "1M")
	qemutest.IO(t, "qcow2", path, "write -P 1 0 1M")
	qemutest.SaveVM(t, path, "vm1")
	qemutest.IO(t, "qcow2", path, "write -P 2 0 500k")
	changeSnapshot(t, true, path, "-c", "between")
	qemutest.SaveVM(t, path, "vm2")
	changeSnapshot(t, true, path, "-a", "vm1")
	qemutest.RequireClean(t, path)
	requireDisk(t, path, "", bytes.Repeat([]byte{1}, 1<<20))
	qemutest.LoadVM(t, path, "vm2")
	changeSnapshot(t, true, path, "-d", "between")
	qemutest.LoadVM(t, path, "vm1")
	changeSnapshot(t, true, path, "-a", "vm2")
	changeSnapshot(t, true, path, "-d", "vm2")
	qemutest.LoadVM(t, path, "vm1")
	qemutest.RequireClean(t, path)
	// Stock leaves the state in the active table, where the disk would grow.
	changeSnapshot(t, false, path, "-a", "vm1")
	f, err := file.Open(path, file.Options{Writable: true, Growable: true})
	if err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, f)
	grown := int64(1 << 30)
	if err := img.Resize(t.Context(), grown, block.ResizeOptions{}); err != nil {
		t.Fatal(err)
	}
	for e, err := range img.Extents(1<<20, grown-1<<20) {
		if err != nil || !e.IsZero() {
			t.Errorf("%+v, %v: the state of the machine shows in the disk", e, err)
		}
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	qemutest.RequireClean(t, path)
	changeSnapshot(t, true, path, "-a", "vm1")
	qemutest.LoadVM(t, path, "vm1")
}
