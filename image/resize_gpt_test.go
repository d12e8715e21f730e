package image

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/partition"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// A qcow2 disk with a GPT grows and shrinks; sgdisk finds the table whole.
func TestResizeFixGPT(t *testing.T) {
	dir := t.TempDir()
	raw, disk := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "raw", raw, "64M")
	part := exec.Command("sfdisk", "-q", raw)
	part.Stdin = strings.NewReader("label: gpt\nstart=2048, size=8M\nstart=20M, size=30M\n")
	if out, err := part.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	qemutest.Img(t, "convert", "-f", "raw", "-O", "qcow2", raw, disk)
	for _, c := range []struct {
		opts  ResizeOptions
		size  int64
		moved bool
	}{
		{ResizeOptions{Size: 100 << 20, FixGPT: true}, 100 << 20, true},
		{ResizeOptions{Size: 100 << 20, FixGPT: true}, 100 << 20, false},
		{ResizeOptions{Size: 56 << 20, Shrink: true, FixGPT: true}, 56 << 20, true},
	} {
		c.opts.Format = "qcow2"
		res, err := Resize(t.Context(), disk, c.opts)
		if err != nil || res.New != c.size || res.MovedGPT != c.moved {
			t.Fatalf("%+v: %+v, %v", c.opts, res, err)
		}
		qemutest.RequireClean(t, disk)
		qemutest.Img(t, "convert", "-f", "qcow2", "-O", "raw", disk, raw)
		out, err := exec.Command("sgdisk", "-v", raw).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No problems found") {
			t.Errorf("sgdisk -v after %+v: %v\n%s", c.opts, err, out)
		}
	}
	// 50 MiB is the end of the last partition: the backup needs room behind it.
	_, err := Resize(context.Background(), disk, ResizeOptions{Format: "qcow2", Size: 50 << 20, Shrink: true, FixGPT: true})
	if err == nil || !strings.Contains(err.Error(), partition.ErrNoRoom.Error()) {
		t.Errorf("no room: %v", err)
	}
}
