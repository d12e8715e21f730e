package qemu

import (
	"context"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestFlattenKilled kills QEMU in the middle of a flattening, and right behind it:
// the disk shows the same at each instant.
func TestFlattenKilled(t *testing.T) {
	for _, stage := range []string{"copied", "flushed", "flat"} {
		t.Run(stage, func(t *testing.T) {
			dir := t.TempDir()
			base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
			qemutest.Img(t, "create", "-f", "qcow2", base, strconv.Itoa(8<<20))
			qemutest.IO(t, "qcow2", base, "write -q -P 0x42 0 8M")
			qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
			spec := vmtest.Spec(t)
			spec.Disks = []vm.Disk{{Path: top, Format: "qcow2"}}
			m := vmtest.Start(t, New(Options{}), spec, t.TempDir()).(*machine)
			kill := func() {
				if err := syscall.Kill(m.proc.PID, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				<-m.proc.done
			}
			if stage == "flat" {
				if err := m.FlattenDisk(t.Context(), "vda", nil); err != nil {
					t.Fatal(err)
				}
				kill()
			} else {
				node, _, err := m.beginFlatten(t.Context(), "disk0")
				if err != nil {
					t.Fatal(err)
				}
				err = m.awaitJob(t.Context(), flattenJob("disk0"), func(ctx context.Context) error {
					if stage == "flushed" {
						if err := m.flushNode(ctx, node, top); err != nil {
							t.Error(err)
						}
					}
					kill()
					return nil
				}, nil)
				if err == nil {
					t.Error("flattened by a dead QEMU")
				}
			}
			qemutest.RequireSame(t, "qcow2", base, "qcow2", top)
		})
	}
}
