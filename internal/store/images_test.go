package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// realStore opens a store that works with package image.
func realStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), home.At(dir), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// stockImage makes an image with some content by the stock tools.
func stockImage(t testing.TB, path, format string, options ...string) string {
	t.Helper()
	qemutest.Img(t, append(append([]string{"create", "-q", "-f", format}, options...), path, "64M")...)
	qemutest.IO(t, format, path, "write -q -P 0x11 0 1M", "write -q -P 0x22 40M 300k", "write -q -z 2M 1M")
	return path
}

// TestImportFormats: the same content is one template, whatever it comes in.
func TestImportFormats(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	raw := stockImage(t, filepath.Join(dir, "a.img"), "raw")
	v3 := stockImage(t, filepath.Join(dir, "b.qcow2"), "qcow2")
	v2 := stockImage(t, filepath.Join(dir, "c.qcow2"), "qcow2", "-o", "compat=0.10,cluster_size=4k")
	packed := filepath.Join(dir, "d.qcow2")
	qemutest.Img(t, "convert", "-q", "-c", "-O", "qcow2", raw, packed)
	var first api.Template
	for i, path := range []string{raw, v3, v2, packed} {
		var last, total int64
		got, cached, err := s.Import(t.Context(), Import{Path: path, Name: fmt.Sprintf("n%d", i)}, func(a, b int64) { last, total = a, b })
		if err != nil || cached {
			t.Fatalf("%s: %v, %v", path, cached, err)
		}
		if i == 0 {
			first = got
		}
		if got.Digest != first.Digest || got.VirtualSize != 64<<20 {
			t.Errorf("%s: %+v", path, got)
		}
		if last != total || total == 0 {
			t.Errorf("%s: progress ended at %d of %d", path, last, total)
		}
	}
	// Stored in another way it is another one, which is the same again too.
	for _, compress := range []string{"zlib", "zstd"} {
		a, _, err1 := s.Import(t.Context(), Import{Path: raw, Compress: compress}, nil)
		b, _, err2 := s.Import(t.Context(), Import{Path: v2, Compress: compress}, nil)
		if err := errors.Join(err1, err2); err != nil || a.Digest != b.Digest || a.Digest == first.Digest || a.Compress != compress {
			t.Fatalf("%s: %+v, %+v, %v", compress, a, b, err)
		}
		qemutest.RequireSame(t, "raw", raw, "qcow2", s.Home().TemplateDisk(a.Digest))
		if _, cached, err := s.Import(t.Context(), Import{Path: v2, Compress: compress}, nil); err != nil || !cached {
			t.Errorf("%s again: %v, %v", compress, cached, err)
		}
	}
	disk := s.Home().TemplateDisk(first.Digest)
	qemutest.RequireClean(t, disk)
	qemutest.RequireSame(t, "raw", raw, "qcow2", disk)
	if first.DiskSize > 2<<20 {
		t.Errorf("the template takes %d bytes: holes are lost", first.DiskSize)
	}
	if err := s.Verify(t.Context(), first.Digest, nil); err != nil {
		t.Error(err)
	}
}

// TestImportRefuses: an image may not name another file, nor be damaged.
func TestImportRefuses(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	base := stockImage(t, filepath.Join(dir, "base.qcow2"), "qcow2")
	at := func(name string) string { return filepath.Join(dir, name) }
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", at("overlay"))
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("external"), "1M")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-u", "-b", `json:{"driver":"raw","file.filename":"/etc/passwd"}`, "-F", "raw", at("json"), "1M")
	b, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	// The refcount table's first entry, where the header says.
	table := int(b[48])<<56 | int(b[53])<<16 | int(b[54])<<8 | int(b[55])
	damaged := append([]byte{}, b...)
	copy(damaged[table:], []byte{0, 0, 0, 0, 0, 0, 0, 0})
	for name, content := range map[string][]byte{"damaged": damaged, "short": b[:100], "huge": append(append([]byte{}, b[:24]...), append([]byte{0x7f, 0, 0, 0, 0, 0, 0, 0}, b[32:]...)...), "empty": nil} {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]error{"overlay": block.ErrUntrusted, "external": nil, "json": block.ErrUntrusted,
		"damaged": block.ErrCorrupt, "short": nil, "huge": nil, "empty": ErrInvalid} {
		_, _, err := s.Import(t.Context(), Import{Path: at(name)}, nil)
		if err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), at(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := s.Templates(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%d templates, %v", len(list), err)
	}
	if entries, err := os.ReadDir(s.Home().Templates()); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestHundredClones holds the promises for thin clones: a hundred in under a
// second, each with at most 16 KiB for its layer.
func TestHundredClones(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm := importImage(t, s, stockImage(t, filepath.Join(dir, "i"), "qcow2"), "one")
	var made []Machine
	took := time.Hour
	// What else the host does can only add to the time: the best of three.
	for round := 0; round < 3 && took > slowdown*time.Second; round++ {
		var list []NewMachine
		for i := range 100 {
			list = append(list, NewMachine{Name: fmt.Sprintf("w-%d-%03d", round, i), Size: 10 << 30, Spec: vm.Spec{Disks: make([]vm.Disk, 2)},
				Seed: func() ([]byte, error) { return make([]byte, 64<<10), nil }})
		}
		began := time.Now()
		var err error
		if made, err = s.CreateMachines(t.Context(), tm, list, nil); err != nil {
			t.Fatal(err)
		}
		took = time.Since(began)
	}
	var most int64
	for _, m := range made {
		most = max(most, s.DiskSize(m))
	}
	t.Logf("100 clones took %s, the layer of each at most %d bytes", took.Round(time.Millisecond), most)
	if most > 16<<10 || most == 0 {
		t.Errorf("a layer takes %d bytes", most)
	}
	if took > slowdown*time.Second {
		t.Errorf("100 clones took %s", took)
	}
	disk := made[99].Spec.Disks[0].Path
	qemutest.RequireClean(t, disk)
	qemutest.IO(t, "qcow2", disk, "read -q -P 0x11 0 1M", "read -q -P 0 64M 1M", "write -q -P 0x33 0 64k", "read -q -P 0x33 0 64k")
	qemutest.IO(t, "qcow2", made[98].Spec.Disks[0].Path, "read -q -P 0x11 0 1M")
	if err := s.Verify(t.Context(), tm.Digest, nil); err != nil {
		t.Errorf("after a write to a clone: %v", err)
	}
	began := time.Now()
	for _, m := range made[:10] {
		if err := s.RemoveMachine(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("removal of one machine takes %s", time.Since(began)/10)
}
