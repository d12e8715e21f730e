package qcow2

import (
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// extendedImage makes an image with subclusters by the stock tools and returns
// it with the offsets of its first entries: data all over, data in the first
// subclusters, zero subclusters without a cluster, compressed.
func extendedImage(t *testing.T) (a anatomy, full, part, zero, packed int64) {
	t.Helper()
	name := memoryDir(t) + "/image.qcow2"
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", name, "1M")
	qemutest.IO(t, "qcow2", name, "write -P 1 0 16k", "write -P 2 16k 2k", "write -z 32k 1k", "write -c -P 3 48k 16k", "write -P 5 64k 512")
	a = dissect(t, name)
	return a, a.l2[0], a.l2[0] + 16, a.l2[0] + 32, a.l2[0] + 48
}

// TestCheckSubclusterDamage compares with stock on one damage of each kind.
func TestCheckSubclusterDamage(t *testing.T) {
	a, full, part, zero, packed := extendedImage(t)
	const all = uint64(allZero)
	for _, c := range []struct {
		name    string
		patches []patch
	}{
		{"whole", nil},
		{"both bits", []patch{be64(part+8, a.at(part+8)|0xf<<32)}},
		{"both bits, all", []patch{be64(full+8, 1<<64-1)}},
		{"allocated without a cluster", []patch{be64(zero+8, a.at(zero+8)|0xff00)}},
		{"both bits without a cluster", []patch{be64(zero+8, a.at(zero+8)|1)}},
		{"unaligned data", []patch{be64(part, a.at(part)|0x200)}},
		{"unaligned zeros", []patch{be64(part, a.at(part)|0x200), be64(part+8, all)}},
		{"unaligned, a few zeros", []patch{be64(part, a.at(part)|0x200), be64(part+8, 3<<32)}},
		{"unaligned, nothing", []patch{be64(part, a.at(part)|0x200), be64(part+8, 0)}},
		{"unaligned, both bits", []patch{be64(part, a.at(part)|0x200), be64(part+8, a.at(part+8)|0xf<<32)}},
		{"zero bit", []patch{be64(part, a.at(part)|1), be64(full, a.at(full)|1)}},
		{"zero bit without a cluster", []patch{be64(zero, 1)}},
		{"COPIED missing", []patch{be64(part, a.at(part)&^entryCopied)}},
		{"COPIED missing, zero bit", []patch{be64(part, a.at(part)&^entryCopied|1)}},
		{"reserved bits", []patch{be64(part, a.at(part)|2)}},
		{"COPIED on compressed", []patch{be64(packed, a.at(packed)|entryCopied)}},
		{"leak", []patch{be64(part, 0), be64(part+8, 0)}},
		{"leak of preallocated", []patch{be64(part, 0), be64(part+8, all)}},
		{"outside", []patch{be64(part, entryCopied|1<<40)}},
		{"dirty", []patch{be64(offIncompatFeatures, incompatDirty|incompatExtendedL2)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			compareChecks(t, func() string { return damaged(t, a.content, 0, c.patches...) })
		})
	}
}

// TestCheckCompressedBitmap holds that a compressed cluster with a bitmap, which
// it cannot have, is found, and that no repair frees what can still be read:
// stock's does.
func TestCheckCompressedBitmap(t *testing.T) {
	a, _, _, _, packed := extendedImage(t)
	for _, mode := range []block.Repair{block.RepairNone, block.RepairLeaks, block.RepairAll} {
		name := damaged(t, a.content, 0, be64(packed+8, 5))
		o := checkOurs(t, name, mode)
		if o.res.Corruptions != 1 || o.res.Leaks+o.res.LeaksFixed != 0 || len(o.lines) == 0 || o.lines[0] != checkStock(t, name, block.RepairNone).lines[0] {
			t.Errorf("repair %d: %+v", mode, o)
		}
		n := openChain(t, name, true)
		p := make([]byte, 1<<20)
		if _, err := n.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		// Whatever is allocated now does not destroy it.
		if _, err := n.(block.Writer).WriteAt(p[:512<<10], 512<<10); err != nil {
			t.Fatal(err)
		}
		closeNode(t, n)
		qemutest.IO(t, "qcow2", name, "read -P 3 48k 16k")
	}
}
