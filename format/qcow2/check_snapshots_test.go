package qcow2

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// snapshotAnatomy is where the tables of an image's snapshots lie.
type snapshotAnatomy struct {
	anatomy
	table   int64   // the snapshot table
	entries []int64 // its entries
	l1      []int64 // the snapshots' L1 tables
	l2s     []int64 // their L2 tables
}

func dissectSnapshots(t testing.TB, name string) snapshotAnatomy {
	t.Helper()
	a := snapshotAnatomy{anatomy: dissect(t, name)}
	a.table = int64(a.h.snapshotsOffset)
	at := a.table
	for range a.h.snapshotCount {
		at = (at + 7) &^ 7
		a.entries = append(a.entries, at)
		b := a.content[at:]
		s := decodeSnapshot(b)
		a.l1 = append(a.l1, int64(s.l1Offset))
		for i := range int64(s.l1Size) {
			if e := l1Entry(a.at(int64(s.l1Offset) + i*8)); e.l2Table() != 0 {
				a.l2s = append(a.l2s, int64(e.l2Table()))
			}
		}
		at += 40 + int64(b[12])<<8 + int64(b[13]) + int64(b[14])<<8 + int64(b[15]) + int64(b[38])<<8 + int64(b[39])
	}
	return a
}

// snapshotImage makes an image with three snapshots that share with the disk
// and with each other, by the stock tools.
func snapshotImage(t testing.TB, options string) string {
	t.Helper()
	name := stockImage(t, options, "snapshot -c one FILE")
	qemutest.IO(t, "qcow2", name, "write -P 9 100k 300k", "discard 0 64k")
	qemutest.Img(t, "snapshot", "-c", "two", name)
	qemutest.IO(t, "qcow2", name, "write -P 10 1M 64k")
	qemutest.Img(t, "snapshot", "-c", "three", name)
	qemutest.IO(t, "qcow2", name, "write -P 11 1200k 30k")
	return name
}

// TestCheckSnapshotDamage compares with stock on one damage of each kind of
// the snapshots and their table.
func TestCheckSnapshotDamage(t *testing.T) {
	a := dissectSnapshots(t, snapshotImage(t, "cluster_size=4096"))
	e, end := a.entries, int64(len(a.content))
	cases := []struct {
		name    string
		patches []patch
	}{
		{"whole", nil},
		{"too much extra data", []patch{be32(e[1]+36, 0x10000)}},
		{"a little too much extra data", []patch{be32(e[2]+36, 1104)}},
		{"no extra data", []patch{be32(e[2]+36, 0)}},
		{"little extra data", []patch{be32(e[2]+36, 8)}},
		{"no extra data first", []patch{be32(e[0]+36, 0)}},
		{"all extra data", []patch{be32(e[0]+36, 1024)}},
		{"huge extra data", []patch{be32(e[0]+36, 1<<32-1)}},
		{"long name", []patch{be16(e[2]+14, 65535)}},
		{"one more", []patch{be32(offSnapshotCount, 4)}},
		{"one less", []patch{be32(offSnapshotCount, 2)}},
		{"none", []patch{be32(offSnapshotCount, 0)}},
		{"table unaligned", []patch{be64(offSnapshotCount+4, uint64(a.table)+8)}},
		{"table outside", []patch{be64(offSnapshotCount+4, uint64(end)+1<<24)}},
		{"table right behind", []patch{be64(offSnapshotCount+4, uint64(end+4095)&^4095)}},
		{"table far outside", []patch{be64(offSnapshotCount+4, 1<<63)}},
		{"table on the header", []patch{be64(offSnapshotCount+4, 0)}},
		{"table on the L1 table", []patch{be64(offSnapshotCount+4, uint64(a.h.l1Offset))}},
		{"L1 unaligned", []patch{be64(e[1], uint64(a.l1[1])|0x200)}},
		{"L1 too large", []patch{be32(e[1]+8, 0x7fffffff)}},
		{"L1 larger", []patch{be32(e[1]+8, 514)}},
		{"L1 none", []patch{be32(e[1]+8, 0)}},
		{"L1 outside", []patch{be64(e[1], 1<<40)}},
		{"L1 on that of another", []patch{be64(e[1], uint64(a.l1[0]))}},
		{"L1 on the active one", []patch{be64(e[1], uint64(a.h.l1Offset))}},
		{"L1 on the header", []patch{be64(e[1], 0)}},
		{"L1 on the refcount table", []patch{be64(e[1], uint64(a.h.refTableOffset))}},
		{"L1 entry reserved bits", []patch{be64(a.l1[1], a.at(a.l1[1])|1)}},
		{"L1 entry unaligned", []patch{be64(a.l1[1], a.at(a.l1[1])|0x200)}},
		{"L1 entry outside", []patch{be64(a.l1[1], 1<<40)}},
		{"L1 entry gone", []patch{be64(a.l1[1], 0)}},
		{"L2 entry reserved bits", []patch{be64(a.l2s[0], a.at(a.l2s[0])|2)}},
		{"L2 entry outside", []patch{be64(a.l2s[0], 1<<40)}},
		{"incomplete, and a refcount too low", []patch{be32(e[2]+36, 8), be16(a.blocks[0]+2*a.g.cluster(a.l1[0]), 0)}},
		{"incomplete, and a leak", []patch{be32(e[2]+36, 8), be16(a.blocks[0]+2*a.g.cluster(a.l1[0]), 5)}},
		{"COPIED set", []patch{be64(a.l2[0], a.at(a.l2[0])^entryCopied)}},
		{"dirty", []patch{be64(offIncompatFeatures, incompatDirty), be32(e[2]+36, 0)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			compareChecks(t, func() string { return damaged(t, a.content, 0, c.patches...) })
		})
	}
}

// TestCheckTooManySnapshots compares with stock on more snapshots than there
// can be. The repair is looked at alone: stock takes half a minute for it. In
// version 2 entries without anything are whole.
func TestCheckTooManySnapshots(t *testing.T) {
	a := dissectSnapshots(t, snapshotImage(t, "cluster_size=64k,compat=0.10"))
	content := append(slices.Clone(a.content), make([]byte, 4<<20)...)
	name := damaged(t, content, 0, be32(offSnapshotCount, 70000))
	for _, repair := range []block.Repair{block.RepairNone, block.RepairLeaks} {
		ours, stocks := checkOurs(t, name, repair), checkStock(t, name, repair)
		if !ours.failed || !stocks.failed || !slices.Equal(ours.lines, stocks.lines) {
			t.Errorf("ours\n%s\nstock\n%s", excerpt(ours.lines), excerpt(stocks.lines))
		}
	}
	ours := checkOurs(t, name, block.RepairAll)
	if ours.failed || ours.lines[0] != "Discarding 4464 overhanging snapshots" || ours.res.CorruptionsFixed < 4464 || ours.res.Corruptions+ours.res.Leaks > 0 {
		t.Errorf("%+v\n%s", ours.res, excerpt(ours.lines))
	}
}

// TestCheckRandomSnapshotDamage damages the tables of snapshots at random and
// compares with stock.
func TestCheckRandomSnapshotDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 7))
	var bases []snapshotAnatomy
	for _, options := range []string{"cluster_size=4096", "cluster_size=512,refcount_bits=32", "cluster_size=1024,compat=0.10", "cluster_size=16k"} {
		bases = append(bases, dissectSnapshots(t, snapshotImage(t, options)))
	}
	for round := range randomRounds(t) {
		a := bases[r.IntN(len(bases))]
		b := slices.Clone(a.content)
		var what []string
		for range 1 + r.IntN(3) {
			off, table := a.anywhere(r)
			if off < 104 { // the count, or the place of the table
				at := offSnapshotCount + 3 + r.Int64N(9)
				b[at] ^= 1 << r.IntN(8)
				what = append(what, fmt.Sprintf("%#x: %x instead of %x", at, b[at], a.content[at]))
				continue
			}
			if off+16 > int64(len(b)) {
				continue
			}
			if slices.Contains(a.entries, off-8) { // a longer L1 table, but not one that takes data for tables
				b[off+3] ^= 1 << r.IntN(4)
				what = append(what, fmt.Sprintf("%#x: %x instead of %x", off, b[off:off+4], a.content[off:off+4]))
				continue
			}
			switch r.IntN(4) {
			case 0, 1: // of a refcount table no bit that makes stock extend the file to TiB
				at := off + r.Int64N(8)
				if table {
					at = off + 5 + r.Int64N(3)
				}
				b[at] ^= 1 << r.IntN(8)
			case 2:
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

// anywhere returns the offset of something of the snapshots, or of the image,
// and whether that is the refcount table.
func (a snapshotAnatomy) anywhere(r *rand.Rand) (off int64, refTable bool) {
	switch r.IntN(7) {
	case 0:
		return offSnapshotCount, false
	case 1, 2:
		return a.entries[r.IntN(len(a.entries))] + 8*r.Int64N(8), false
	case 3:
		return a.l1[r.IntN(len(a.l1))] + 8*r.Int64N(max(1, int64(a.h.l1Size))), false
	case 4:
		return a.l2s[r.IntN(len(a.l2s))] + 8*r.Int64N(a.g.clusterSize()/8), false
	}
	return a.somewhere(r)
}

// randomRounds is how many random damages a test looks at: a few, or as many
// as the environment says.
func randomRounds(t testing.TB) int {
	n := 25
	if s := os.Getenv("QCOW2_DAMAGE_ROUNDS"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}
