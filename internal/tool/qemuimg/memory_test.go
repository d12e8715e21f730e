package qemuimg

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// peakFile in the environment names a file in which the tool that the test
// binary is leaves its peak resident set, in KiB. What wait4 reports will not
// do: it counts what the parent had before the exec too.
const peakFile = "LAMINA_TEST_PEAK"

// maxPeak is what a verb may take, whatever the size of the image.
const maxPeak = 64 << 20

// writePeak writes the peak so far, if it is asked for.
func writePeak() {
	name := os.Getenv(peakFile)
	if name == "" {
		return
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if err := os.WriteFile(name, []byte(strings.Fields(rest)[0]), 0o600); err != nil {
		panic(err)
	}
}

// TestMemory holds that no verb needs more memory for a large image: 8 TiB with
// data all over it (and an L1 table that is small beside that; it may have
// 32 MiB, which are held whole), and 96 MiB of data in one piece.
func TestMemory(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 96<<20)
	for i := range data {
		data[i] = byte(i*i>>9) ^ byte(i>>16)
	}
	put(t, filepath.Join(dir, "full.raw"), data)
	stock := func(line string) {
		t.Helper()
		if r := runTool(t, false, dir, words(line)); r.status != 0 {
			t.Fatalf("qemu-img %s: %s", line, r.stderr)
		}
	}
	stock("create -q -f qcow2 huge.qcow2 8T")
	var writes []string
	for i := range 600 {
		writes = append(writes, fmt.Sprintf("write -P %d %dM 64k", i%255+1, i*13981))
	}
	qemutest.IO(t, "qcow2", filepath.Join(dir, "huge.qcow2"), writes...)
	stock("convert -f raw -O qcow2 -c -W full.raw comp.qcow2")
	stock("create -q -f qcow2 -b comp.qcow2 -F qcow2 over.qcow2")
	stock("bench -w -c 1000 -s 64k -S 128k --pattern 7 over.qcow2")
	for _, line := range []string{
		"info huge.qcow2", "check huge.qcow2", "map --output=json huge.qcow2", "map huge.qcow2", "measure -O qcow2 huge.qcow2",
		"compare huge.qcow2 huge.qcow2", "convert -O qcow2 huge.qcow2 x.qcow2", "convert huge.qcow2 x.raw", "compare x.raw x.qcow2", "map --output=json x.raw",
		"convert -c -O qcow2 huge.qcow2 x.qcow2", "convert -O qcow2 -o cluster_size=16k huge.qcow2 small.qcow2", "check small.qcow2",
		"dd -O qcow2 bs=1M skip=10 if=huge.qcow2 of=x.qcow2", "bench -c 2000 -s 64k -S 2000M huge.qcow2", "bench -w -c 1000 -S 2000M huge.qcow2",
		"snapshot -c one huge.qcow2", "bench -w -c 1000 -S 2000M huge.qcow2", "snapshot -a one huge.qcow2", "snapshot -d one huge.qcow2",
		"amend -o refcount_bits=32 huge.qcow2", "resize huge.qcow2 +1T", "check -r all huge.qcow2", "bitmap --add -g 1M huge.qcow2 b", "bench -w -c 1000 -S 2000M huge.qcow2",
		"convert --bitmaps -O qcow2 huge.qcow2 x.qcow2", "check x.qcow2",
		"convert -f raw -O qcow2 full.raw y.qcow2", "convert -f raw -O qcow2 -c full.raw y.qcow2", "convert -f raw -O qcow2 -c -o compression_type=zstd full.raw z.qcow2",
		"convert -m 16 -W comp.qcow2 y.raw", "convert z.qcow2 y.raw", "compare full.raw comp.qcow2", "compare z.qcow2 comp.qcow2", "bench -c 3000 -s 64k comp.qcow2",
		"rebase -b y.raw -F raw over.qcow2", "rebase -b '' over.qcow2", "rebase -u -b comp.qcow2 -F qcow2 over.qcow2", "commit over.qcow2",
		"convert -O qcow2 -o cluster_size=2M -c full.raw y.qcow2", "convert y.qcow2 y.raw",
	} {
		t.Run(line, func(t *testing.T) {
			if peak := peakOf(t, dir, words(line)); peak > maxPeak {
				t.Errorf("took %d MiB of memory", peak>>20)
			} else {
				t.Logf("%d MiB", peak>>20)
			}
		})
	}
}

// peakOf runs our tool and returns its peak resident set in bytes.
func peakOf(t *testing.T, dir string, args []string) int64 {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "peak")
	cmd := exec.Command(self, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asTool+"=1", peakFile+"="+name)
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, words.String())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
