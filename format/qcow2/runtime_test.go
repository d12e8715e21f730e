package qcow2

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestRuntimeOptions compares what options of an open image give with the
// stock tool's words.
func TestRuntimeOptions(t *testing.T) {
	dir := t.TempDir()
	for _, compat := range []string{"1.1", "0.10"} {
		name := filepath.Join(dir, compat)
		createFile(t, name, 1<<20, map[string]string{"compat": compat}, "", "")
		for _, o := range []string{
			"lazy-refcounts=on", "lazy-refcounts=off", "lazy-refcounts=maybe", "lazy_refcounts=on", "foo=bar",
			"pass-discard-request=on", "pass-discard-snapshot=off", "pass-discard-other=x",
			"overlap-check=all", "overlap-check=foo", "overlap-check.template=cached", "overlap-check.main-header=off",
			"overlap-check.active-l1=x", "overlap-check.foo=on", "overlap-check.bitmap-directory=on",
			"cache-size=1M", "cache-size=abc", "l2-cache-size=0", "refcount-cache-size=1", "cache-clean-interval=10",
			"cache-clean-interval=x", "l2-cache-entry-size=1000", "l2-cache-entry-size=256", "l2-cache-entry-size=128k",
			"l2-cache-entry-size=4096", "cache-size=1M,l2-cache-size=2M", "cache-size=1M,refcount-cache-size=2M",
			"cache-size=1M,l2-cache-size=512k,refcount-cache-size=512k",
		} {
			values := map[string]string{}
			for _, kv := range strings.Split(o, ",") {
				k, v, _ := strings.Cut(kv, "=")
				values[k] = v
			}
			got := ""
			if err := openError(t, name, values); err != nil {
				got = err.Error()
			}
			want := strings.TrimSuffix(qemutest.Run(t, "qemu-img", "info", "--image-opts", "driver=qcow2,file.filename="+name+","+o).Stderr, "\n")
			if _, rest, ok := strings.Cut(want, "': "); ok {
				want = rest
			}
			if got != want {
				t.Errorf("%s, %s: %q, stock says %q", compat, o, got, want)
			}
		}
		err := openError(t, name, map[string]string{"discard-no-unref": "on"})
		if (err != nil) != (compat == "0.10") || err != nil && !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("%s, discard-no-unref: %v", compat, err)
		}
	}
}

// openError opens an image with runtime options and returns what comes of it.
func openError(t *testing.T, name string, values map[string]string) error {
	t.Helper()
	f, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{Filename: name, Values: values})
	if err != nil {
		_ = f.Close()
		return err
	}
	return n.Close()
}

// TestLazyRefcountsOption holds that the option overrides the image's own
// choice, in both directions.
func TestLazyRefcountsOption(t *testing.T) {
	for _, image := range []string{"on", "off"} {
		for _, opened := range []string{"", "on", "off"} {
			f := memory.NewFile()
			if err := (Driver{}).Create(context.Background(), f, 1<<20, format.CreateOptions{Values: map[string]string{"lazy_refcounts": image}}); err != nil {
				t.Fatal(err)
			}
			opts := format.OpenOptions{Writable: true}
			want := image == "on"
			if opened != "" {
				opts.Values = map[string]string{"lazy-refcounts": opened}
				want = opened == "on"
			}
			n, err := (Driver{}).Open(context.Background(), f, opts)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.(block.Writer).WriteAt([]byte("x"), 0); err != nil {
				t.Fatal(err)
			}
			if dirty := f.Bytes()[79]&incompatDirty != 0; dirty != want {
				t.Errorf("image %s, opened with %q: dirty %t", image, opened, dirty)
			}
			closeNode(t, n)
			if f.Bytes()[79]&incompatDirty != 0 {
				t.Error("dirty after closing")
			}
		}
	}
}

// TestDiscardKeepsPlace holds that with discard-no-unref a discarded cluster
// keeps its place, but not its space; that a snapshot's clusters keep their
// bytes; and that the next write goes to the same place.
func TestDiscardKeepsPlace(t *testing.T) {
	for _, values := range []map[string]string{{}, {"extended_l2": "on"}} {
		for _, zero := range []bool{false, true} {
			dir := t.TempDir()
			name := filepath.Join(dir, "disk")
			createFile(t, name, 1<<20, values, "", "")
			f, err := file.Open(name, file.Options{Writable: true, Growable: true})
			if err != nil {
				t.Fatal(err)
			}
			n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{Writable: true, Values: map[string]string{"discard-no-unref": "on"}})
			if err != nil {
				t.Fatal(err)
			}
			img := n.(*Image)
			want := bytes.Repeat([]byte{7}, 1<<20)
			if _, err := img.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			before := place(t, img, 0)
			give := img.Discard
			if zero {
				give = func(off, n int64) error { return img.WriteZeroes(off, n, block.ZeroMayUnmap) }
			}
			if err := give(64<<10, 512<<10); err != nil {
				t.Fatal(err)
			}
			clear(want[64<<10 : 576<<10])
			if err := img.Flush(); err != nil {
				t.Fatal(err)
			}
			if after := place(t, img, 0); after != before {
				t.Errorf("%v: the clusters moved from %#x to %#x", values, before, after)
			}
			if size, err := f.DiskSize(); err != nil || size > 900<<10 {
				t.Errorf("%v: the file takes %d bytes, %v", values, size, err)
			}
			if _, err := img.CreateSnapshot(t.Context(), "one", time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := give(0, 1<<20); err != nil {
				t.Fatal(err)
			}
			closeNode(t, n)
			qemutest.RequireClean(t, name)
			writeRaw(t, name+".raw", want)
			qemutest.Img(t, "convert", "-f", "qcow2", "-O", "raw", "-l", "one", name, name+".one")
			qemutest.RequireSame(t, "raw", name+".one", "raw", name+".raw")
		}
	}
}

// place returns the host offset of the first cluster, if all of the disk's lie
// behind it in order, else -1.
func place(t *testing.T, img *Image, off int64) hostOffset {
	t.Helper()
	first := hostOffset(-1)
	for ; off < img.Size(); off += img.ClusterSize() {
		m, err := img.mappingAt(off)
		if err != nil {
			t.Fatal(err)
		}
		if off == 0 {
			first = m.entry.host()
		}
		if m.entry.host() != first+hostOffset(off) {
			return -1
		}
	}
	return first
}
