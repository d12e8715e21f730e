package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// addressSpace is what OpenStack, KubeVirt's importer and vdsm leave to
// qemu-img (`prlimit --as`), in KiB.
const addressSpace = "1048576"

// TestAddressSpace runs the verbs of the static binary, called qemu-img, in
// 1 GiB of address space, which a Go program reserves most of.
func TestAddressSpace(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "lamina")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	tool := filepath.Join(dir, "qemu-img")
	if err := os.Symlink("lamina", tool); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * i >> 9)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.raw"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"convert -O qcow2 a.raw a.qcow2", "convert -c -W -m 16 -O qcow2 -o compression_type=zstd a.raw z.qcow2", "convert -c -m 16 -O qcow2 -o cluster_size=2M a.raw c.qcow2",
		"convert -m 16 z.qcow2 x", "info --force-share --output=json a.qcow2", "check c.qcow2", "map --output=json a.qcow2", "measure -O qcow2 a.raw", "compare a.raw c.qcow2",
		"create -f qcow2 -b a.qcow2 -F qcow2 o.qcow2", "bench -w -c 60 -s 64k -f qcow2 o.qcow2", "bench -c 60 c.qcow2", "snapshot -c s o.qcow2", "bitmap --add o.qcow2 b",
		"create -f qcow2 huge.qcow2 100T", "check huge.qcow2", "resize huge.qcow2 +1T", "amend -o refcount_bits=32 a.qcow2", "dd -O qcow2 bs=1M if=o.qcow2 of=d.qcow2",
		"rebase -b '' o.qcow2", "create -f qcow2 -b a.qcow2 -F qcow2 p.qcow2", "bench -w -c 60 -s 64k p.qcow2", "commit p.qcow2",
		"create -f luks --object secret,id=s,data=abc -o key-secret=s,iter-time=10 l.luks 4M",
	} {
		cmd := exec.Command("sh", "-c", "ulimit -v "+addressSpace+"; exec "+tool+" "+line)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			text, _, _ := strings.Cut(string(out), "\n\n") // not every goroutine's stack
			t.Errorf("qemu-img %s: %v\n%s", line, err, text)
		}
	}
}
