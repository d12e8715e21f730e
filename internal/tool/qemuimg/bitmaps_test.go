package qemuimg

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
)

// sameBitmaps requires the same bitmaps with the same bits in two images.
func sameBitmaps(t *testing.T, ours, stock string) {
	t.Helper()
	if a, b := bitmapText(t, ours), bitmapText(t, stock); a != b {
		t.Errorf("bitmaps of %s:\n%s\nstock:\n%s", ours, a, b)
	}
}

// bitmapText describes an image's bitmaps with all their dirty runs.
func bitmapText(t *testing.T, name string) string {
	t.Helper()
	im, err := image.Open(t.Context(), name, image.Options{NoBacking: true, NoLock: true})
	if err != nil {
		return "" // the test of the content says what is wrong
	}
	defer func() { _ = im.Close() }()
	k, ok := block.As[format.BitmapKeeper](im.Node())
	if !ok {
		return ""
	}
	text := ""
	for _, b := range k.Bitmaps() {
		text += fmt.Sprintf("%+v", b)
		if !b.Inconsistent {
			for run, err := range k.DirtyRuns(b.Name, 0, im.Node().Size()) {
				text += fmt.Sprint(run, err)
			}
		}
		text += "\n"
	}
	return text
}

// bitmapParts finds the bitmaps extension's data, the directory's entries, and
// the first bitmap's table in an image.
func bitmapParts(t *testing.T, name string) (ext int64, dir []int64, table int64) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	i := bytes.Index(b, []byte{0x23, 0x85, 0x28, 0x75})
	if i < 0 {
		t.Fatalf("%s has no bitmaps", name)
	}
	at := int64(be.Uint64(b[i+24:]))
	table = int64(be.Uint64(b[at:]))
	for range be.Uint32(b[i+8:]) {
		dir = append(dir, at)
		at += (24 + int64(be.Uint16(b[at+18:])) + 7) &^ 7
	}
	return int64(i + 8), dir, table
}

// damageBitmaps makes an image with a bitmap in use, and images that break the
// specification, out of bm.qcow2.
func damageBitmaps(t *testing.T, dir string) {
	t.Helper()
	good, err := os.ReadFile(dir + "/bm.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	ext, entries, table := bitmapParts(t, dir+"/bm.qcow2")
	for _, d := range []struct {
		name  string
		at    int64
		bytes []byte
	}{
		{"inuse", entries[0] + 15, []byte{3}},
		{"nobit", 95, []byte{0}},
		{"count3", ext, []byte{0, 0, 0, 3}},
		{"count1", ext, []byte{0, 0, 0, 1}},
		{"count0", ext, []byte{0, 0, 0, 0}},
		{"count64k", ext, []byte{0, 1, 0, 0}},
		{"extres", ext + 4, []byte{1}},
		{"extsize", ext + 15, []byte{0x41}},
		{"exthuge", ext + 8, []byte{0, 0, 0, 0, 0x10, 0, 0, 0}},
		{"extzero", ext + 8, []byte{0, 0, 0, 0, 0, 0, 0, 0}},
		{"extoff", ext + 23, []byte{1}},
		{"extlen", ext - 1, []byte{23}},
		{"dirtable", entries[0] + 7, []byte{1}},
		{"dirtable0", entries[0], make([]byte, 8)},
		{"dirsize", entries[0] + 11, []byte{2}},
		{"dirsize0", entries[0] + 11, []byte{0}},
		{"dirflags", entries[0] + 15, []byte{4}},
		{"dirtype", entries[0] + 16, []byte{2}},
		{"dirgran8", entries[0] + 17, []byte{8}},
		{"dirgran32", entries[0] + 17, []byte{32}},
		{"dirgran9", entries[0] + 17, []byte{9}},
		{"dirextra", entries[0] + 23, []byte{8}},
		{"dirname", entries[0] + 18, []byte{7, 255}},
		{"tabodd", table + 6, []byte{2, 0}},
		{"tabres", table + 7, []byte{2}},
		{"tabones", table, []byte{0, 0, 0, 0, 0, 0, 0, 1}},
		{"tabboth", table + 7, []byte{1}},
		{"tabfar", table + 2, []byte{0x10}},
	} {
		name := dir + "/" + d.name + ".qcow2"
		put(t, name, good)
		poke(t, name, d.at, d.bytes...)
	}
	name := dir + "/inusebad.qcow2"
	put(t, name, good)
	poke(t, name, entries[0]+15, 3)
	poke(t, name, table+7, 2)
}
