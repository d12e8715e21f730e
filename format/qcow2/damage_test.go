package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// openDamaged opens a file and collects what is reported of it.
func openDamaged(t *testing.T, name string, writable, forCheck bool) (*Image, *[]string, error) {
	t.Helper()
	f, err := file.Open(name, file.Options{Writable: writable, Growable: writable})
	if err != nil {
		t.Fatal(err)
	}
	lines := &[]string{}
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{
		Writable: writable, ForCheck: forCheck, Filename: name, Damage: func(l string) { *lines = append(*lines, l) },
	})
	if err != nil {
		_ = f.Close()
		return nil, lines, err
	}
	return n.(*Image), lines, nil
}

// corruptBit reads the bit from the file.
func corruptBit(t *testing.T, name string) bool {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b[offIncompatFeatures+7]&incompatCorrupt != 0
}

// TestCorruptBit holds that damage which is found while an image is open is
// reported in stock's words, that the corrupt bit is set at once where stock
// sets it, that each side then refuses to write what the other marked and goes
// on reading it, and that a repair by either one clears the bit.
func TestCorruptBit(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", good, "4M")
	qemutest.IO(t, "qcow2", good, "write -P 1 0 64k")
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l1, rt := int64(be.Uint64(image[40:])), int64(be.Uint64(image[48:]))
	rb := be.Uint64(image[rt:])
	l2 := be.Uint64(image[l1:]) & entryOffsetMask
	const copied = uint64(entryCopied)
	for name, c := range map[string]struct {
		at       int64
		entry    uint64
		repaired bool // by a check
		readLine bool // a read finds it too
		write    string
	}{
		"L1 entry unaligned":      {l1, copied | l2 | 0x200, false, true, ""},
		"L2 entry unaligned":      {int64(l2) + 8, copied | 0x7200, false, true, "Cluster allocation offset"}, // stock's words differ from those of a read
		"data on the L1 table":    {int64(l2) + 8, copied | uint64(l1), true, false, ""},
		"data on an L2 table":     {int64(l2) + 8, copied | l2, true, false, ""},
		"data on the refcounts":   {int64(l2) + 8, copied | rb, true, false, ""},
		"data on refcount table":  {int64(l2) + 8, copied | uint64(rt), true, false, ""},
		"reserved bit, no damage": {int64(l2) + 8, copied | 0x7000 | 0x10, false, false, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, stock := filepath.Join(t.TempDir(), "ours"), filepath.Join(t.TempDir(), "stock")
			bad := append([]byte(nil), image...)
			be.PutUint64(bad[c.at:], c.entry)
			for _, n := range []string{ours, stock} {
				if err := os.WriteFile(n, bad, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// Reading marks nothing.
			img, lines, err := openDamaged(t, ours, false, false)
			if err != nil {
				t.Fatal(err)
			}
			_, readErr := img.ReadAt(make([]byte, 4096), 4096)
			r := qemutest.Run(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read 4096 4096", stock)
			if c.readLine {
				if want := firstLine(r.Stderr); readErr == nil || len(*lines) != 1 || (*lines)[0] != want {
					t.Errorf("read: %v, reported %q, stock %q", readErr, *lines, want)
				}
			}
			if err := img.Close(); err != nil || corruptBit(t, ours) || corruptBit(t, stock) {
				t.Errorf("after reading: %v, corrupt bit %v, stock %v", err, corruptBit(t, ours), corruptBit(t, stock))
			}
			// Writing does.
			if img, lines, err = openDamaged(t, ours, true, false); err != nil {
				t.Fatal(err)
			}
			_, writeErr := img.WriteAt(make([]byte, 4096), 4096)
			r = qemutest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write 4096 4096", stock)
			if c.write == "none" {
				if corruptBit(t, ours) || corruptBit(t, stock) || len(*lines) > 0 {
					t.Errorf("marked for a reserved bit: %q", *lines)
				}
				_ = img.Close()
				return
			}
			want := firstLine(r.Stderr)
			if !errors.Is(writeErr, block.ErrCorrupt) || len(*lines) != 1 || (*lines)[0] != want && (c.write == "" || !strings.Contains((*lines)[0], c.write)) {
				t.Errorf("write: %v, reported %q, stock %q", writeErr, *lines, want)
			}
			if !corruptBit(t, ours) || !corruptBit(t, stock) {
				t.Errorf("corrupt bit %v, stock %v", corruptBit(t, ours), corruptBit(t, stock))
			}
			if _, err := img.WriteAt([]byte{1}, 0); err == nil {
				t.Error("a later write is accepted")
			}
			_ = img.Close() // says again why nothing was written
			crossCheck(t, ours, stock, c.repaired)
		})
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// crossCheck has each side look at the image that the other marked.
func crossCheck(t *testing.T, ours, stock string, repaired bool) {
	t.Helper()
	const refused = "qcow2: Image is corrupt; cannot be opened read/write"
	if r := qemutest.Run(t, "qemu-io", "-f", "qcow2", "-c", "read 0 512", ours); r.Status == 0 || !strings.Contains(r.Stderr+r.Stdout, refused) {
		t.Errorf("stock opens what we marked: %s", r.Stderr)
	}
	if r := qemutest.Run(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read 3M 512", ours); r.Status != 0 {
		t.Errorf("stock does not read what we marked: %s", r.Stderr)
	}
	if _, _, err := openDamaged(t, stock, true, false); err == nil || err.Error() != refused {
		t.Errorf("we open what stock marked: %v", err)
	}
	img, _, err := openDamaged(t, stock, false, false)
	if err != nil {
		t.Fatalf("we do not read what stock marked: %v", err)
	}
	_ = img.Close()
	if img, _, err = openDamaged(t, stock, true, true); err != nil {
		t.Fatal(err)
	}
	if _, err := img.Check(t.Context(), block.CheckOptions{Repair: block.RepairAll}); err != nil {
		t.Error(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	_ = qemutest.Run(t, "qemu-img", "check", "-r", "all", ours)
	if corruptBit(t, ours) == repaired || corruptBit(t, stock) == repaired {
		t.Errorf("after the repair the corrupt bit is %v by stock, %v by us", corruptBit(t, ours), corruptBit(t, stock))
	}
}
