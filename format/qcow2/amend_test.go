package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// amendSteps are what the tests change, in this order: every width, up and
// down, both versions.
var amendSteps = []map[string]string{
	{"compat": "0.10"}, {"compat": "1.1", "lazy_refcounts": "on"}, {"refcount_bits": "64"}, {"refcount_bits": "8", "lazy_refcounts": "off"},
	{"refcount_bits": "1"}, {"refcount_bits": "2"}, {"lazy_refcounts": "on"}, {"refcount_bits": "32"}, {"refcount_bits": "4"},
	{"refcount_bits": "16"}, {"compat": "v2"}, {"compat": "v3"},
}

// amended opens the file, through its backing file if m has one, amends and
// closes it.
func (m *model) amended(t *testing.T, file block.Node, values map[string]string) error {
	img, err := m.openOther(file)
	if err != nil {
		return err
	}
	return errors.Join(img.Amend(t.Context(), format.AmendOptions{Values: values}), img.Close())
}

func (m *model) openOther(file block.Node) (*Image, error) {
	opts := format.OpenOptions{Writable: true, Filename: "amend"}
	if m.c.backing > 0 {
		opts.Opener = modelOpener{m.back}
	}
	n, err := (Driver{}).Open(context.Background(), file, opts)
	if err != nil {
		return nil, err
	}
	return n.(*Image), nil
}

// holds fails unless the file is an image with the model's content whose
// refcounts cover its references.
func (m *model) holds(d *memory.Disk) error {
	img, err := m.openOther(d)
	if err != nil {
		return err
	}
	if err := requireRefcounts(img); err != nil {
		return err
	}
	got := make([]byte, img.Size())
	if _, err := img.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, m.want) {
		return fmt.Errorf("the content has changed (%d bytes, want %d)", len(got), len(m.want))
	}
	return nil
}

// TestAmend changes random images step by step, with power loss and faults in
// each step: the content stays, the refcounts cover the references, and both
// checks find nothing at the end of each.
func TestAmend(t *testing.T) {
	seed := newSeed(t)
	for _, c := range []geometryCase{
		{"512", 40 << 10, map[string]string{"cluster_size": "512"}, 0},
		{"512-backing", 40 << 10, map[string]string{"cluster_size": "512"}, 60 << 10},
		{"4k-backing", 200 << 10, map[string]string{"cluster_size": "4k"}, 100 << 10},
		{"64k", 3 << 20, map[string]string{"cluster_size": "64k"}, 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			states, faults := 0, 0
			m := newModel(t, c, seed)
			m.fixed = true
			for _, step := range amendSteps {
				for range 12 {
					m.step()
				}
				// Zero clusters of both kinds, also over the backing file.
				cs := m.img.ClusterSize()
				n := int64(len(m.want)) / cs * cs
				at := m.r.Int64N(n/cs) * cs
				for k, flags := range []block.ZeroFlags{0, block.ZeroMayUnmap, block.ZeroExplicit} {
					off := (at + int64(k)*cs) % n
					if err := m.img.WriteZeroes(off, cs, flags); err != nil {
						t.Fatal(err)
					}
					clear(m.want[off : off+cs])
				}
				if err := m.img.Close(); err != nil {
					t.Fatal(err)
				}
				full := m.file.Reopen()
				base, rec := full.Clone(), record.Wrap(full)
				if err := m.amended(t, rec, step); err != nil {
					t.Fatalf("%v: %v", step, err)
				}
				log := rec.Log()
				if c.name != "64k" {
					states += eachCrash(t, log, base, seed, func(_ int, d *memory.Disk) error { return m.holds(d) })
					faults += eachFault(t, base, func(f block.Node) error { return m.amended(t, f, step) }, m.holds)
				}
				m.file = full.Reopen()
				m.open()
				if v, ok := step["refcount_bits"]; ok && fmt.Sprint(m.img.g.refcountBits()) != v {
					t.Errorf("refcounts have %d bits, want %s", m.img.g.refcountBits(), v)
				}
				if v := step["compat"]; v != "" && (v == "0.10" || v == "v2") != (m.img.version == 2) {
					t.Errorf("version %d after compat=%s", m.img.version, v)
				}
				m.verify()
				requireClean(t, m)
			}
			t.Logf("%d states, %d faults", states, faults)
		})
	}
}

// requireClean has both checks look at the file.
func requireClean(t *testing.T, m *model) {
	t.Helper()
	if err := m.img.Flush(); err != nil {
		t.Fatal(err)
	}
	d := m.file.Clone()
	img, err := m.openOther(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	d = d.Reopen()
	path := toDisk(t, d, "check.qcow2")
	if m.c.backing > 0 {
		writeFile(t, filepath.Join(filepath.Dir(path), "base.raw"), m.back)
	}
	if r := qemutest.Run(t, "qemu-img", "check", path); r.Status != 0 {
		t.Errorf("stock check: %s%s", r.Stdout, r.Stderr)
	}
}

// TestAmendSnapshots amends images with snapshots that share tables and
// clusters; what each snapshot holds stays.
func TestAmendSnapshots(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 5))
	for _, c := range []struct {
		options string
		backing bool
	}{{"cluster_size=512,lazy_refcounts=on", true}, {"cluster_size=4k", false}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			dir := t.TempDir()
			want := makeSnapshots(t, dir, snapshotCase{options: c.options}, r)
			path := filepath.Join(dir, "d.qcow2")
			if !c.backing {
				qemutest.Img(t, "rebase", "-b", "", path)
			}
			// Zero clusters in tables that are shared, and in those that are not.
			qemutest.IO(t, "qcow2", path, "write -z 0 300k", "write -z -u 400k 100k")
			qemutest.Img(t, "snapshot", "-c", "z1", path)
			qemutest.Img(t, "snapshot", "-c", "z2", path)
			qemutest.IO(t, "qcow2", path, "write -P 3 100k 20k", "write -z 600k 100k", "write -z 10k 5k")
			raws := func() [][]byte {
				var out [][]byte
				for _, s := range []string{"", "s0", "s1", "s2", "s3", "z1", "z2"} {
					raw := filepath.Join(dir, "raw")
					args := []string{"convert", "-O", "raw", path, raw}
					if s != "" {
						args = []string{"convert", "-l", "snapshot.name=" + s, "-O", "raw", path, raw}
					}
					qemutest.Img(t, args...)
					out = append(out, readFile(t, raw))
				}
				return out
			}
			before := raws()
			for _, step := range []map[string]string{{"compat": "0.10"}, {"compat": "1.1"}, {"refcount_bits": "64"}, {"refcount_bits": "32"}} {
				img := openLayers(t, dir, "d.qcow2", true)
				if err := errors.Join(img.Amend(t.Context(), format.AmendOptions{Values: step}), img.Close()); err != nil {
					t.Fatalf("%v: %v", step, err)
				}
				if r := qemutest.Run(t, "qemu-img", "check", path); r.Status != 0 {
					t.Fatalf("%v: stock check: %s%s", step, r.Stdout, r.Stderr)
				}
				after := raws()
				for i := range before {
					if !bytes.Equal(before[i], after[i]) {
						t.Errorf("%v: disk %d has changed", step, i)
					}
				}
			}
			// What ours reads of the first four.
			img := openLayers(t, dir, "d.qcow2", false)
			defer func() { _ = img.Close() }()
			for i := range want {
				d, err := img.OpenSnapshot(t.Context(), i)
				if err != nil {
					t.Fatal(err)
				}
				if c.backing {
					blocktest.RequireContent(t, d, want[i])
				}
			}
		})
	}
}

// TestAmendRefused holds the words of refusals, and that nothing is changed.
func TestAmendRefused(t *testing.T) {
	for _, c := range []struct {
		create, amend map[string]string
		want          string
	}{
		{nil, map[string]string{"compat": "9"}, "Unknown compatibility level 9"},
		{nil, map[string]string{"refcount_bits": "3"}, "Refcount width must be a power of two and may not exceed 64 bits"},
		{nil, map[string]string{"cluster_size": "512"}, "Invalid parameter 'cluster_size'"},
		{nil, map[string]string{"refcount_bits": "8", "compat": "v2"}, "Refcount widths other than 16 bits"},
		{map[string]string{"refcount_bits": "8"}, map[string]string{"compat": "v2"}, "compat=0.10 requires refcount_bits=16"},
		{map[string]string{"compat": "v2"}, map[string]string{"refcount_bits": "8"}, "Refcount widths other than 16 bits"},
		{nil, map[string]string{"backing_file": "x"}, "Cannot amend the backing file"},
		{nil, map[string]string{"size": "1000"}, "multiple of 512"},
		{nil, map[string]string{"size": "9223372036854775808"}, "Image size cannot be negative"},
		{nil, map[string]string{"data_file": "x"}, "data-file can only be set"},
		{nil, map[string]string{"data_file_raw": "on"}, "data-file-raw cannot be set on existing images"},
	} {
		file := newFile(t, 1<<20, c.create)
		before := file.Clone()
		err := openMemory(t, file).Amend(t.Context(), format.AmendOptions{Values: c.amend})
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("%v of %v: %v, want %q", c.amend, c.create, err, c.want)
		}
		requireSameDisk(t, file, before)
	}
}
