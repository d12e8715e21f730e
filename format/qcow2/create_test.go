package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
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
