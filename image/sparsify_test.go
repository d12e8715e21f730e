package image

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

func TestSparsify(t *testing.T) {
	for _, c := range []struct {
		name, format, options string
		backed, compressed    bool
	}{
		{name: "raw", format: "raw"},
		{name: "v3", format: "qcow2"},
		{name: "small clusters", format: "qcow2", options: "cluster_size=512"},
		{name: "preallocated", format: "qcow2", options: "preallocation=full"},
		{name: "metadata", format: "qcow2", options: "preallocation=metadata"},
		{name: "v2", format: "qcow2", options: "compat=0.10"},
		{name: "v2 over a base", format: "qcow2", options: "compat=0.10", backed: true},
		{name: "over a base", format: "qcow2", backed: true},
		{name: "compressed zeros", format: "qcow2", compressed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			base, disk, before := filepath.Join(dir, "base"), filepath.Join(dir, "disk"), filepath.Join(dir, "before")
			args := []string{"create", "-q", "-f", c.format}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			if c.backed {
				qemutest.Img(t, "create", "-q", "-f", "raw", base, "16M")
				qemutest.IO(t, "raw", base, "write -P 7 0 8M")
				args = append(args, "-b", base, "-F", "raw")
			}
			qemutest.Img(t, append(args, disk, "16777000")...)
			write := "write"
			if c.compressed {
				write = "write -c"
			}
			cmds := []string{"write -P 1 64k 1M", write + " -P 0 2M 1M", "write -P 0 4000k 100k", "write -P 3 5M 3k", "write -P 0 15M 1048064"}
			if c.compressed {
				cmds[2], cmds[4] = "write -P 0 4032k 64k", "write -P 0 15M 1M"
			}
			qemutest.IO(t, c.format, disk, cmds...)
			qemutest.Img(t, "convert", "-f", c.format, "-O", "raw", disk, before)
			done := int64(0)
			res, err := Sparsify(t.Context(), disk, SparsifyOptions{Format: c.format, Progress: func(d, total int64) {
				if d < done || d > total {
					t.Errorf("progress %d of %d after %d", d, total, done)
				}
				done = d
			}})
			if err != nil {
				t.Fatal(err)
			}
			// Version 2 cannot hide what the base has in its first 8 MiB.
			want := int64(2 << 20)
			if c.name == "v2 over a base" {
				want = 15 << 16
			}
			if res.Zeroed < want || res.After > res.Before || (!c.compressed && res.After > res.Before-want+256<<10) {
				t.Errorf("%+v", res)
			}
			qemutest.RequireSame(t, c.format, disk, "raw", before)
			if c.format == "qcow2" {
				qemutest.RequireClean(t, disk)
			}
			again, err := Sparsify(t.Context(), disk, SparsifyOptions{Format: c.format})
			if err != nil || again.Zeroed != 0 {
				t.Errorf("a second time: %+v, %v", again, err)
			}
		})
	}
}

func TestSparsifyCancelled(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", disk, "64M")
	qemutest.IO(t, "qcow2", disk, "write -P 0 0 32M", "write -P 5 40M 1M")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Sparsify(ctx, disk, SparsifyOptions{Format: "qcow2", Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	qemutest.RequireClean(t, disk)
	qemutest.IO(t, "qcow2", disk, "read -P 0 0 40M", "read -P 5 40M 1M")
}
