package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// createFile makes an image file with our driver.
func createFile(t testing.TB, path string, size int64, values map[string]string, backing, backingFormat string) {
	t.Helper()
	f, err := file.Create(path, file.Options{Growable: true})
	if err != nil {
		t.Fatal(err)
	}
	err = Driver{}.Create(context.Background(), f, size, format.CreateOptions{Values: values, Filename: path, BackingFile: backing, BackingFormat: backingFormat})
	if err != nil {
		t.Fatalf("create %v: %v", values, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCreateLikeStock compares new images byte for byte with stock's.
func TestCreateLikeStock(t *testing.T) {
	for i, o := range []struct {
		size   int64
		values map[string]string
	}{
		{1 << 30, nil},
		{0, nil},
		{1 << 20, map[string]string{"cluster_size": "512"}},
		{1 << 30, map[string]string{"cluster_size": "4k"}},
		{1 << 40, map[string]string{"cluster_size": "2M", "refcount_bits": "64"}},
		{1 << 30, map[string]string{"compat": "0.10"}},
		{1 << 30, map[string]string{"compat": "v3", "lazy_refcounts": "on", "refcount_bits": "1"}},
		{1 << 30, map[string]string{"compression_type": "zstd"}},
		{1 << 41, map[string]string{"cluster_size": "16k"}},
	} {
		dir := t.TempDir()
		ours, stock := filepath.Join(dir, "ours"), filepath.Join(dir, "stock")
		createFile(t, ours, o.size, o.values, "", "")
		args := []string{"create", "-q", "-f", "qcow2"}
		for k, v := range o.values {
			args = append(args, "-o", k+"="+v)
		}
		qemutest.Img(t, append(args, stock, fmt.Sprint(o.size))...)
		a, err := os.ReadFile(ours)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(stock)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			at := 0
			for at < min(len(a), len(b)) && a[at] == b[at] {
				at++
			}
			t.Errorf("%d: %v: %d bytes, stock %d; first difference at %#x", i, o.values, len(a), len(b), at)
		}
		qemutest.RequireClean(t, ours)
	}
}

// TestOverlayIsSmall holds that a new overlay takes at most 16 KiB of disk,
// and the first write into it little more than what it writes.
func TestOverlayIsSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlay")
	createFile(t, path, 20<<30, nil, "base.qcow2", "qcow2")
	taken := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if n := taken(); n > 16<<10 {
		t.Errorf("a new overlay takes %d bytes", n)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	createFile(t, plain, 20<<30, nil, "", "")
	path = plain
	img, err := openFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.WriteAt(make([]byte, 4096), 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if n := taken(); n > 32<<10 {
		t.Errorf("after a write of 4 KiB the image takes %d bytes", n)
	}
	qemutest.RequireClean(t, path)
}

// TestCreateMessages compares refusals with the stock tool's.
func TestCreateMessages(t *testing.T) {
	for _, o := range []string{
		"cluster_size=100", "cluster_size=4M", "cluster_size=abc", "refcount_bits=3", "refcount_bits=128", "refcount_bits=abc",
		"compat=9", "compat=0.10,refcount_bits=8", "compat=0.10,lazy_refcounts=on", "compat=0.10,compression_type=zstd",
		"preallocation=foo", "compression_type=foo", "lazy_refcounts=maybe", "foo=bar",
		"data_file_raw=on", "data_file=ext,compat=0.10", "encryption=on", "encrypt.format=foo", "encrypt.key-secret=s", "encrypt.format=luks",
	} {
		values := map[string]string{}
		for _, kv := range strings.Split(o, ",") {
			k, v, _ := strings.Cut(kv, "=")
			values[k] = v
		}
		err := Driver{}.Create(context.Background(), memory.NewFile(), 1<<20, format.CreateOptions{Values: values})
		r := qemutest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", o, "disk", "1M")
		want := strings.TrimSuffix(strings.TrimPrefix(r.Stderr, "qemu-img: disk: "), "\n")
		if err == nil || err.Error() != want || !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("%s: %v, stock says %q", o, err, want)
		}
	}
}
