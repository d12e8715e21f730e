package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// outcome is what a check, with the second check after a repair, found.
type outcome struct {
	lines  []string
	failed bool // the check could not be carried out
	res    block.CheckResult
}

// checkOurs checks an image file as `qemu-img check` does: after a repair that
// changed something once more, without repair.
func checkOurs(t testing.TB, name string, repair block.Repair) outcome {
	t.Helper()
	f, err := file.Open(name, file.Options{Writable: repair != block.RepairNone, Growable: repair != block.RepairNone})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Driver{}.Open(t.Context(), f, format.OpenOptions{Writable: repair != block.RepairNone, ForCheck: true, Filename: name})
	if err != nil {
		_ = f.Close()
		return outcome{failed: true, lines: []string{err.Error()}}
	}
	var o outcome
	opts := block.CheckOptions{Repair: repair, Report: func(line string) { o.lines = append(o.lines, strings.Split(line, "\n")...) }}
	o.res, err = n.(block.Checker).Check(t.Context(), opts)
	o.failed = err != nil
	if err == nil && o.res.LeaksFixed+o.res.CorruptionsFixed > 0 {
		fixed := o.res
		opts.Repair = block.RepairNone
		o.res, err = n.(block.Checker).Check(t.Context(), opts)
		o.failed = err != nil
		o.res.LeaksFixed, o.res.CorruptionsFixed = fixed.LeaksFixed, fixed.CorruptionsFixed
	}
	if err := n.Close(); err != nil {
		t.Errorf("close %s: %v", name, err)
	}
	return o
}

// checkStock runs the stock tool.
func checkStock(t testing.TB, name string, repair block.Repair) outcome {
	t.Helper()
	args := []string{"check", "--output=json", "-f", "qcow2"}
	switch repair {
	case block.RepairLeaks:
		args = append(args, "-r", "leaks")
	case block.RepairAll:
		args = append(args, "-r", "all")
	}
	r := qemutest.Run(t, "qemu-img", append(args, name)...)
	var o outcome
	for _, line := range strings.Split(strings.TrimRight(r.Stderr, "\n"), "\n") {
		if rest, ok := strings.CutPrefix(line, "qemu-img: ERROR "); ok {
			line = "ERROR " + rest
		}
		if line != "" && !strings.HasPrefix(line, "qemu-img: ") {
			o.lines = append(o.lines, line)
		}
	}
	if strings.Contains(r.Stderr, "qemu-img: Check failed:") || strings.Contains(r.Stderr, "Could not open") {
		o.failed = true
		return o
	}
	var v struct {
		qemutest.Check
		LeaksFixed       int64 `json:"leaks-fixed"`
		CorruptionsFixed int64 `json:"corruptions-fixed"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
		t.Fatalf("qemu-img check: status %d, %v\n%s%s", r.Status, err, r.Stdout, r.Stderr)
	}
	o.res = block.CheckResult{
		ImageEndOffset: v.ImageEndOffset, Corruptions: v.Corruptions, Leaks: v.Leaks, CheckErrors: v.CheckErrors,
		CorruptionsFixed: v.CorruptionsFixed, LeaksFixed: v.LeaksFixed,
		AllocatedClusters: v.Allocated, TotalClusters: v.Total, FragmentedClusters: v.Fragmented, CompressedClusters: v.Compressed,
		HasClusterCounts: true,
	}
	return o
}

// patch is a change of some bytes of an image.
type patch struct {
	off  int64
	data []byte
}

func be64(off int64, v uint64) patch { return patch{off, binary.BigEndian.AppendUint64(nil, v)} }
func be32(off int64, v uint32) patch { return patch{off, binary.BigEndian.AppendUint32(nil, v)} }
func be16(off int64, v uint16) patch { return patch{off, binary.BigEndian.AppendUint16(nil, v)} }

// damaged writes a copy of an image with some bytes changed, cut to a size if
// that is not 0.
func damaged(t testing.TB, image []byte, cut int64, patches ...patch) string {
	t.Helper()
	b := slices.Clone(image)
	for _, p := range patches {
		copy(b[p.off:], p.data)
	}
	if cut > 0 {
		b = b[:cut]
	}
	name := filepath.Join(memoryDir(t), "damaged.qcow2")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// anatomy is where the tables of an image lie.
type anatomy struct {
	h       *header
	g       geometry
	l2      []int64
	blocks  []int64
	content []byte
}

func dissect(t testing.TB, name string) anatomy {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	a := anatomy{h: h, g: h.geometry(), content: b}
	for i := range int64(h.l1Size) {
		if e := l1Entry(binary.BigEndian.Uint64(b[int64(h.l1Offset)+i*8:])); e.l2Table() != 0 {
			a.l2 = append(a.l2, int64(e.l2Table()))
		}
	}
	for i := range int64(h.refTableClusters) << h.clusterBits / 8 {
		if e := refTableEntry(binary.BigEndian.Uint64(b[int64(h.refTableOffset)+i*8:])); e.block() != 0 {
			a.blocks = append(a.blocks, int64(e.block()))
		}
	}
	return a
}

func (a anatomy) at(off int64) uint64 { return binary.BigEndian.Uint64(a.content[off:]) }

// stockImage makes an image with data, zeros of both kinds, and compressed
// clusters, by the stock tools.
func stockImage(t testing.TB, options string, extra ...string) string {
	t.Helper()
	dir := memoryDir(t)
	src, name := filepath.Join(dir, "source.raw"), filepath.Join(dir, "image.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "raw", src, "2M")
	qemutest.IO(t, "raw", src, "write -P 7 0 100k", "write -P 8 1M 20k")
	qemutest.Img(t, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, src, name)
	cmds := []string{"write -P 1 300k 64k", "write -P 2 1536k 64k", "write -z 400k 8k", "write -z 304k 8k", "write -P 3 2040k 8k"}
	if strings.Contains(options, "0.10") {
		cmds = []string{"write -P 1 300k 64k", "write -P 2 1536k 64k", "write -P 3 2040k 8k"}
	}
	qemutest.IO(t, "qcow2", name, cmds...)
	for _, e := range extra {
		qemutest.Img(t, strings.Fields(strings.ReplaceAll(e, "FILE", name))...)
	}
	return name
}

// compareChecks runs both checks in all three modes on equal images.
func compareChecks(t *testing.T, make func() string) {
	t.Helper()
	for _, repair := range []block.Repair{block.RepairNone, block.RepairLeaks, block.RepairAll} {
		ours, stocks := make(), make()
		a, b := checkOurs(t, ours, repair), checkStock(t, stocks, repair)
		if repair == block.RepairAll && strings.Contains(strings.Join(b.lines, "\n"), "Table is not cluster aligned") {
			// Stock changes the data there; all that we may do is not to.
			requireUntouched(t, make(), ours)
			continue
		}
		if strings.Contains(strings.Join(b.lines, "\n"), "non-zero subcluster allocation bitmap") {
			// Stock frees what a compressed cluster refers to.
			if a.failed || !strings.Contains(strings.Join(a.lines, "\n"), "non-zero subcluster allocation bitmap") {
				t.Errorf("repair %d: a bitmap of a compressed cluster was not found:\n%s", repair, excerpt(a.lines))
			}
			continue
		}
		if repair == block.RepairAll && (b.failed || rebuilt(b)) {
			requireRepaired(t, make(), ours, stocks, a, b)
			continue
		}
		if repair != block.RepairNone && !a.failed && tableOutside(t, make(), b) {
			continue
		}
		if a.failed != b.failed {
			t.Errorf("repair %d: ours failed %v, stock %v\nours\n%s\nstock\n%s", repair, a.failed, b.failed, excerpt(a.lines), excerpt(b.lines))
			continue
		}
		if !slices.Equal(normal(a.lines), normal(b.lines)) {
			t.Errorf("repair %d: %s", repair, lineDiff(normal(a.lines), normal(b.lines)))
		}
		if !a.failed && a.res != b.res {
			t.Errorf("repair %d: results differ\nours  %+v\nstock %+v\n%s", repair, a.res, b.res, excerpt(a.lines))
		}
		if repair != block.RepairNone && !a.failed {
			// Each finds in its own repaired image the same as the other.
			if c := checkStock(t, ours, block.RepairNone); c.res.Corruptions != a.res.Corruptions || c.res.Leaks != a.res.Leaks {
				t.Errorf("repair %d: after our repair we find %+v, stock %+v", repair, a.res, c.res)
			}
		}
	}
}

// tableOutside reports whether the snapshot table does not lie in the file as a
// whole: stock does not count it then, gives away the part that is there, and
// finds zeros or something else in its place, which we keep.
func tableOutside(t *testing.T, name string, o outcome) bool {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		return false
	}
	line := fmt.Sprintf("exceeding the end of the file by one cluster or more: offset 0x%x size ", h.snapshotsOffset)
	return slices.ContainsFunc(o.lines, func(l string) bool { return strings.Contains(l, line) })
}

// lineDiff says where two lists of lines part.
func lineDiff(a, b []string) string {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	return fmt.Sprintf("%d lines, stock %d; from line %d on\nours\n%s\nstock\n%s", len(a), len(b), i, excerpt(a[i:]), excerpt(b[i:]))
}

func excerpt(lines []string) string { return strings.Join(lines[:min(len(lines), 8)], "\n") }

// requireUntouched holds that all changes of an image lie in its refcounts and
// L1 table.
func requireUntouched(t *testing.T, before, after string) {
	t.Helper()
	a, b := dissect(t, before), dissect(t, after)
	free := map[int64]bool{0: true, a.g.cluster(int64(a.h.l1Offset)): true, a.g.cluster(int64(a.h.refTableOffset)): true}
	for _, off := range []uint64{b.h.l1Offset, b.h.refTableOffset, b.h.snapshotsOffset} {
		free[a.g.cluster(int64(off))] = true
	}
	for _, off := range b.blocks {
		free[a.g.cluster(off)] = true
	}
	for _, off := range append(a.blocks, a.l2...) {
		free[a.g.cluster(off)] = off&(a.g.clusterSize()-1) == 0
	}
	for i := range min(len(a.content), len(b.content)) {
		if a.content[i] != b.content[i] && !free[a.g.cluster(int64(i))] {
			t.Fatalf("byte %#x was changed", i)
		}
	}
}

// normal takes out what may differ: whether a broken image is also marked as
// corrupt by the mere check, and that stock tried to free what it must not.
func normal(lines []string) []string {
	var out []string
	for _, l := range lines {
		if !strings.HasPrefix(l, "qcow2: ") && !strings.HasPrefix(l, "qcow2_free_clusters failed: ") {
			out = append(out, l)
		}
	}
	return out
}

func rebuilt(o outcome) bool { return slices.Contains(o.lines, "Rebuilding refcount structure") }

// requireRepaired holds what a rebuild has to reach: no less than stock's.
func requireRepaired(t *testing.T, before, ours, stocks string, a, b outcome) {
	t.Helper()
	if a.failed && !b.failed {
		t.Errorf("our repair failed, stock's did not:\n%s", excerpt(a.lines))
		return
	}
	if a.failed {
		return
	}
	if c := checkStock(t, ours, block.RepairNone); c.failed || c.res.Corruptions != a.res.Corruptions || c.res.Leaks != a.res.Leaks {
		t.Errorf("after our rebuild we find %+v, stock %v %+v\n%s", a.res, c.failed, c.res, excerpt(c.lines))
	}
	if b.failed {
		return
	}
	// Stock counts a cluster that it adds to the file in order to lose it.
	sameFixed := a.res.CorruptionsFixed == b.res.CorruptionsFixed || strings.Contains(strings.Join(b.lines, "\n"), "is outside image")
	if a.res.Corruptions > b.res.Corruptions || a.res.Leaks > b.res.Leaks || !sameFixed {
		t.Errorf("after the rebuild\nours  %+v\nstock %+v\nours\n%s\nstock\n%s", a.res, b.res, excerpt(a.lines), excerpt(b.lines))
	}
	if b.res.Corruptions == 0 && !hasUnreadable(t, before) {
		qemutest.RequireSame(t, "qcow2", ours, "qcow2", stocks)
	}
}

// hasUnreadable reports whether stock cannot read a cluster of an image that it
// can open. The entry of such a compressed cluster points at whatever is there,
// which need not be the same after two different rebuilds.
func hasUnreadable(t *testing.T, name string) bool {
	r := qemutest.Run(t, "qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", name, name)
	return strings.Contains(r.Stderr, "Error while reading")
}

// TestCheckNamedDamage compares with stock on one damage of each kind.
func TestCheckNamedDamage(t *testing.T) {
	a := dissect(t, stockImage(t, "cluster_size=4096"))
	l1, rt, rb := int64(a.h.l1Offset), int64(a.h.refTableOffset), a.blocks[0]
	l2 := a.l2[0]
	// The first entry of each kind.
	find := func(kind clusterKind) int64 {
		for _, table := range a.l2 {
			for i := range a.g.l2Entries() {
				if l2Entry(a.at(table+i*8)).kind(a.g) == kind {
					return table + i*8
				}
			}
		}
		t.Fatalf("the image has no cluster of kind %d", kind)
		return 0
	}
	data, zero, packed := find(clusterData), find(clusterZeroAlloc), find(clusterCompressed)
	dataCluster := a.g.cluster(int64(l2Entry(a.at(data)).host()))
	packedOff, _ := l2Entry(a.at(packed)).compressedRange(a.g)
	cases := []struct {
		name    string
		cut     int64
		patches []patch
	}{
		{"whole", 0, nil},
		{"leak", 0, []patch{be16(rb+dataCluster*2, 2)}},
		{"leak of a cluster nobody uses", 0, []patch{be64(data, 0)}},
		{"refcount zero", 0, []patch{be16(rb+dataCluster*2, 0)}},
		{"refcount zero of the header", 0, []patch{be16(rb, 0)}},
		{"refcount of compressed too high", 0, []patch{be16(rb+a.g.cluster(int64(packedOff))*2, 99)}},
		{"refcount of compressed too low", 0, []patch{be16(rb+a.g.cluster(int64(packedOff))*2, 1)}},
		{"COPIED missing, data", 0, []patch{be64(data, a.at(data)&^entryCopied)}},
		{"COPIED missing, L2", 0, []patch{be64(l1, a.at(l1)&^entryCopied)}},
		{"COPIED on compressed", 0, []patch{be64(packed, a.at(packed)|entryCopied)}},
		{"L2 entry reserved bits", 0, []patch{be64(data, a.at(data)|2)}},
		{"L2 entry unaligned", 0, []patch{be64(data, a.at(data)|0x200)}},
		{"L2 entry unaligned zero", 0, []patch{be64(zero, a.at(zero)|0x200)}},
		{"L2 entry outside", 0, []patch{be64(data, entryCopied|1<<40)}},
		{"compressed outside", 0, []patch{be64(packed, l2Compressed|1<<40)}},
		{"two entries, one cluster", 0, []patch{be64(data, a.at(data+8))}},
		{"data on the L2 table", 0, []patch{be64(data, uint64(l2)|entryCopied)}},
		{"data on the header", 0, []patch{be64(data, entryCopied|1<<12), be64(data+8, 1<<12)}},
		{"L1 entry reserved bits", 0, []patch{be64(l1, a.at(l1)|1)}},
		{"L1 entry unaligned", 0, []patch{be64(l1, a.at(l1)|0x200)}},
		{"L1 entry outside", 0, []patch{be64(l1, entryCopied|1<<40)}},
		{"L1 entry gone", 0, []patch{be64(l1, 0)}},
		{"L2 table on the refcount table", 0, []patch{be64(l1, uint64(rt)|entryCopied)}},
		{"refcount table reserved bits", 0, []patch{be64(rt, uint64(rb)|1)}},
		{"refcount block unaligned", 0, []patch{be64(rt, uint64(rb)|0x200)}},
		{"refcount block outside", 0, []patch{be64(rt, 1<<24)}},
		{"refcount block far outside", 0, []patch{be64(rt, 1<<63|1<<40)}},
		{"refcount block gone", 0, []patch{be64(rt, 0)}},
		{"refcount block twice", 0, []patch{be64(rt+8, uint64(rb))}},
		{"refcount block on data", 0, []patch{be64(rt+8, uint64(dataCluster<<12))}},
		{"dirty", 0, []patch{be64(offIncompatFeatures, incompatDirty)}},
		{"dirty with leak", 0, []patch{be64(offIncompatFeatures, incompatDirty), be16(rb+dataCluster*2, 5)}},
		{"dirty with refcount zero", 0, []patch{be64(offIncompatFeatures, incompatDirty), be16(rb+dataCluster*2, 0)}},
		{"corrupt bit", 0, []patch{be64(offIncompatFeatures, incompatCorrupt)}},
		{"corrupt bit with damage", 0, []patch{be64(offIncompatFeatures, incompatCorrupt), be64(data, a.at(data)|2)}},
		{"cut behind a cluster", int64(len(a.content)) - 3*4096, nil},
		{"cut inside a cluster", int64(len(a.content)) - 3*4096 - 100, nil},
		{"refcount table at nothing", 0, []patch{be64(offRefTableOffset, uint64(len(a.content)))}},
		{"no refcount table", 0, []patch{be32(offRefTableOffset+8, 0)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			compareChecks(t, func() string { return damaged(t, a.content, c.cut, c.patches...) })
		})
	}
}

// TestCheckWholeImages holds that whole images of every kind are found whole,
// with stock's numbers, and that a repair does not change a byte of them.
func TestCheckWholeImages(t *testing.T) {
	images := map[string]string{
		"snapshots":      stockImage(t, "cluster_size=4096", "snapshot -c one FILE", "snapshot -c two FILE"),
		"bitmaps":        stockImage(t, "cluster_size=4096", "bitmap --add -g 4096 FILE b0"),
		"version 2":      stockImage(t, "cluster_size=4096,compat=0.10"),
		"512":            stockImage(t, "cluster_size=512"),
		"2M":             stockImage(t, "cluster_size=2M"),
		"zstd":           stockImage(t, "compression_type=zstd"),
		"lazy refcounts": stockImage(t, "lazy_refcounts=on"),
		"extended L2":    stockImage(t, "extended_l2=on"),
		"extended 16k":   stockImage(t, "extended_l2=on,cluster_size=16k", "snapshot -c one FILE"),
	}
	for _, bits := range []int{1, 2, 4, 8, 16, 32, 64} {
		images[fmt.Sprintf("%d refcount bits", bits)] = stockImage(t, fmt.Sprintf("cluster_size=1024,refcount_bits=%d", bits))
	}
	for kind, name := range images {
		t.Run(kind, func(t *testing.T) {
			before, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, repair := range []block.Repair{block.RepairNone, block.RepairLeaks, block.RepairAll} {
				a, b := checkOurs(t, name, repair), checkStock(t, name, block.RepairNone)
				if a.failed || len(a.lines) > 0 || a.res != b.res {
					t.Errorf("ours %+v %q\nstock %+v", a.res, a.lines, b.res)
				}
			}
			after, err := os.ReadFile(name)
			if err != nil || !slices.Equal(before, after) {
				t.Errorf("the image was changed (%v)", err)
			}
		})
	}
}

// TestCheckRandomDamage changes a few random bits of the tables and compares
// with stock.
func TestCheckRandomDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 5))
	bases := []anatomy{
		dissect(t, stockImage(t, "cluster_size=4096")),
		dissect(t, stockImage(t, "cluster_size=512,refcount_bits=64")),
		dissect(t, stockImage(t, "cluster_size=1024,refcount_bits=1")),
		dissect(t, stockImage(t, "cluster_size=4096,compat=0.10")),
		dissect(t, stockImage(t, "cluster_size=4096", "snapshot -c one FILE")),
		dissect(t, stockImage(t, "cluster_size=16k,extended_l2=on")),
		dissect(t, stockImage(t, "cluster_size=2048,refcount_bits=32", "bitmap --add -g 4096 FILE b0")),
	}
	for round := range randomRounds(t) {
		a := bases[r.IntN(len(bases))]
		b := slices.Clone(a.content)
		var what []string
		for range 1 + r.IntN(2) {
			off, table := a.somewhere(r)
			switch r.IntN(3) {
			case 0: // one bit; of a refcount table none that makes stock extend the file to TiB
				at := off + r.Int64N(8)
				if table {
					at = off + 5 + r.Int64N(3)
				}
				b[at] ^= 1 << r.IntN(8)
			case 1: // the entry of a neighbour
				copy(b[off:off+8], b[off+8:off+16])
			default:
				clear(b[off : off+8])
			}
			what = append(what, fmt.Sprintf("%#x: %x instead of %x", off, b[off:off+8], a.content[off:off+8]))
		}
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Log(strings.Join(what, ", "))
			compareChecks(t, func() string { return damaged(t, b, 0) })
		})
	}
}

// somewhere returns the offset of a random entry of a random table that is in
// use, and whether that is the refcount table.
func (a anatomy) somewhere(r *rand.Rand) (int64, bool) {
	for {
		var off int64
		kind := r.IntN(6)
		switch kind {
		case 0:
			off = int64(a.h.l1Offset) + 8*r.Int64N(int64(a.h.l1Size))
		case 1:
			off = int64(a.h.refTableOffset) + 8*r.Int64N(int64(len(a.blocks)))
		case 2, 3:
			used := int64(len(a.content)) >> a.g.clusterBits << a.g.refcountOrder >> 3
			off = a.blocks[r.IntN(len(a.blocks))] + r.Int64N(min(used, a.g.clusterSize()))&^7
		default:
			off = a.l2[r.IntN(len(a.l2))] + 8*r.Int64N(a.g.clusterSize()/8)
			if a.at(off) == 0 {
				continue
			}
		}
		if off+16 <= int64(len(a.content)) {
			return off, kind == 1
		}
	}
}
