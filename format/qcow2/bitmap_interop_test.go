package qcow2

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// storageDaemon runs QMP commands in a QEMU storage daemon that has the image
// open for writing as node "disk", lets it end properly, and returns what each
// command returned. options are more of the node's, ",key=value" each; the
// key of an encrypted image is the secret s.
func storageDaemon(t *testing.T, file, options string, commands ...string) []json.RawMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemutest.Path(t, "qemu-storage-daemon"), "--chardev", "stdio,id=c", "--monitor", "c",
		"--object", "secret,id=s,data="+testKeys["s"],
		"--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename="+strings.ReplaceAll(file, ",", ",,")+options)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errText strings.Builder
	cmd.Stderr = &errText
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(out)
	var results []json.RawMessage
	var greeting json.RawMessage
	fail := func(err error) {
		_ = in.Close()
		_ = cmd.Wait()
		t.Fatalf("storage daemon: %v: %s", err, errText.String())
	}
	if err := dec.Decode(&greeting); err != nil {
		fail(err)
	}
	for _, c := range append(append([]string{`{"execute": "qmp_capabilities"}`}, commands...), `{"execute": "quit"}`) {
		if _, err := io.WriteString(in, c+"\n"); err != nil {
			fail(err)
		}
		for {
			var r struct {
				Return json.RawMessage
				Error  json.RawMessage
				Event  string
			}
			if err := dec.Decode(&r); err != nil {
				fail(err)
			}
			if r.Event != "" {
				continue
			}
			if r.Error != nil {
				fail(errors.New(c + ": " + string(r.Error)))
			}
			results = append(results, r.Return)
			break
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("storage daemon: %v: %s", err, errText.String())
	}
	return results[1 : len(results)-1]
}

// bitmapHash is what QEMU's x-debug-block-dirty-bitmap-sha256 says of a bitmap
// with these runs: the hash of its bits in 64-bit words.
func bitmapHash(runs []format.DirtyRun, size, granularity int64) string {
	p := make([]byte, ceilDiv(ceilDiv(size, granularity), 64)*8)
	for _, r := range runs {
		setBits(p, r.Start/granularity, ceilDiv(r.Start+r.Length, granularity))
	}
	return fmt.Sprintf("%x", sha256.Sum256(p))
}

// TestBitmapsWithQEMU has QEMU load bitmaps that we wrote and compare every
// bit, write with stock qemu-io under them, and add ones of its own; and reads
// all that QEMU stored.
func TestBitmapsWithQEMU(t *testing.T) {
	for i, options := range []string{"cluster_size=64k", "cluster_size=512", "cluster_size=2M,lazy_refcounts=on", "cluster_size=16k,extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(i), 3))
			path := filepath.Join(t.TempDir(), "a.qcow2")
			size := int64(37<<20) + 512*r.Int64N(100)
			qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
			models := map[string]*bitModel{}
			img, err := openFile(path, true)
			if err != nil {
				t.Fatal(err)
			}
			for k := range 4 {
				g := int64(512) << (3*k + r.IntN(3))
				name := fmt.Sprintf("ours %d", k)
				if err := img.AddBitmap(name, format.BitmapOptions{Granularity: g, Disabled: k == 3}); err != nil {
					t.Fatal(err)
				}
				models[name] = newBitModel(size, g)
				models[name].enabled = k != 3
			}
			for range 60 {
				off := r.Int64N(size)
				n := min(1+r.Int64N(1<<uint(r.IntN(21))), size-off)
				if _, err := img.WriteAt(make([]byte, n), off); err != nil {
					t.Fatal(err)
				}
				for _, m := range models {
					if m.enabled {
						m.set(off, n)
					}
				}
			}
			if err := errors.Join(img.MarkDirty("ours 3", oneRun(1<<20, 30<<20)), img.Close()); err != nil {
				t.Fatal(err)
			}
			models["ours 3"].set(1<<20, 30<<20)
			requireHashes(t, path, models, size, `{"execute": "block-dirty-bitmap-add", "arguments": {"node": "disk", "name": "theirs", "persistent": true, "granularity": 8192}}`)
			models["theirs"] = newBitModel(size, 8192)
			// Stock writes under our bitmaps.
			var cmds []string
			for range 10 {
				off := r.Int64N(size/512) * 512
				n := min(512+512*r.Int64N(300), size-off)
				cmds = append(cmds, fmt.Sprintf("write %d %d", off, n))
				for _, m := range models {
					if m.enabled {
						m.set(off, n)
					}
				}
			}
			qemutest.IO(t, "qcow2", path, cmds...)
			if img, err = openFile(path, true); err != nil {
				t.Fatal(err)
			}
			compareBitmaps(t, img, models, size)
			if err := errors.Join(img.RemoveBitmap("ours 1"), img.ClearBitmap("ours 0"), img.Close()); err != nil {
				t.Fatal(err)
			}
			delete(models, "ours 1")
			clear(models["ours 0"].bits)
			requireHashes(t, path, models, size)
			qemutest.RequireClean(t, path)
		})
	}
}

// requireHashes compares the bitmaps with what QEMU loads, then runs more
// commands in the same daemon.
func requireHashes(t *testing.T, path string, models map[string]*bitModel, size int64, more ...string) {
	t.Helper()
	requireHashesOf(t, path, "", models, size, more...)
}

// requireHashesOf is requireHashes for an image opened with more options.
func requireHashesOf(t *testing.T, path, options string, models map[string]*bitModel, size int64, more ...string) {
	t.Helper()
	var names, cmds []string
	for name := range models {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		cmds = append(cmds, fmt.Sprintf(`{"execute": "x-debug-block-dirty-bitmap-sha256", "arguments": {"node": "disk", "name": %q}}`, name))
	}
	for i, raw := range storageDaemon(t, path, options, append(cmds, more...)...)[:len(names)] {
		var got struct{ Sha256 string }
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		m := models[names[i]]
		if want := bitmapHash(m.runs(size), size, m.granularity); got.Sha256 != want {
			t.Errorf("bitmap %q: QEMU sees %s, want %s", names[i], got.Sha256, want)
		}
	}
}

// TestBitmapCrashSeenByQEMU holds that an image which was not closed has its
// bitmaps in use for QEMU, and that QEMU's own are for us.
func TestBitmapCrashSeenByQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "10M")
	qemutest.Img(t, "bitmap", "--add", path, "b0")
	img, err := openFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.WriteAt([]byte("x"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := img.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := img.file.Close(); err != nil { // the end of the program
		t.Fatal(err)
	}
	if out := qemutest.Img(t, "info", path); !strings.Contains(out, "[0]: in-use") {
		t.Errorf("info of an image that was not closed:\n%s", out)
	}
	qemutest.RequireClean(t, path)
	if r := qemutest.Run(t, "qemu-img", "bitmap", "--clear", path, "b0"); !strings.Contains(r.Stderr, "inconsistent") {
		t.Errorf("stock on a bitmap in use: %+v", r)
	}
	// One that QEMU has open right now is in use for who looks.
	qemutest.Img(t, "bitmap", "--remove", "--add", path, "b0")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemutest.Path(t, "qemu-io"), "-f", "qcow2", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "write 0 64k\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 200)
	for seen := ""; !strings.Contains(seen, "64 KiB"); {
		n, err := out.Read(buf)
		if err != nil {
			t.Fatalf("qemu-io: %v: %s", err, seen)
		}
		seen += string(buf[:n])
	}
	f, err := file.Open(path, file.Options{NoLock: true})
	if err != nil {
		t.Fatal(err)
	}
	node, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img = node.(*Image)
	if list := img.Bitmaps(); len(list) != 1 || !list[0].Inconsistent {
		t.Errorf("bitmaps while QEMU writes: %+v", list)
	}
	var broken *format.InconsistentBitmapError
	for _, err := range img.DirtyRuns("b0", 0, 1<<20) {
		if !errors.As(err, &broken) {
			t.Errorf("reading it: %v", err)
		}
	}
	if err := errors.Join(img.Close(), in.Close()); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if img, err = openFile(path, false); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = img.Close() }()
	if runs := dirtyRuns(t, img, "b0"); !slices.Equal(runs, []format.DirtyRun{{Start: 0, Length: 64 << 10}}) {
		t.Errorf("runs after QEMU closed it: %v", runs)
	}
}
