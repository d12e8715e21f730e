package file_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// image makes an image of the given format by the stock tool.
func image(t *testing.T, format string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk."+format)
	qemutest.Img(t, "create", "-q", "-f", format, name, "4M")
	return name
}

// holdIO keeps a stock qemu-io with the image open until the end of the test.
func holdIO(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(qemutest.Path(t, "qemu-io"), args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	// An answer says that the image is open.
	if _, err := fmt.Fprintln(in, "length"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if strings.Contains(line, "4 MiB") {
			return
		}
		if err != nil {
			t.Fatalf("qemu-io %s: %q, %v", strings.Join(args, " "), line, err)
		}
	}
}

// holdSystem keeps a stopped stock machine with the image as a disk until the
// end of the test.
func holdSystem(t *testing.T, drive string) {
	t.Helper()
	cmd := exec.Command(qemutest.Path(t, "qemu-system-x86_64"), "-S", "-display", "none", "-nodefaults", "-M", "pc,accel=tcg", "-m", "16",
		"-drive", drive+",if=virtio", "-qmp", "stdio")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	// The greeting comes early, the answer when the devices exist.
	if _, err := fmt.Fprintln(in, `{"execute":"qmp_capabilities"}`); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if strings.Contains(line, `"return"`) {
			return
		}
		if err != nil {
			t.Fatalf("qemu-system: %q, %v", line, err)
		}
	}
}

// modes are how this package opens images, by the name in the tables below.
var modes = map[string]file.Options{
	"no lock":      {NoLock: true},
	"read raw":     {Locks: new(file.SharedReadLocks())},
	"read":         {},
	"write raw":    {Writable: true, Locks: new(file.SharedWriteLocks())},
	"resize raw":   {Writable: true, Locks: new(file.RawResizeLocks())},
	"create":       {Writable: true, Locks: new(file.CreateLocks())},
	"write":        {Writable: true},
	"growing file": {Writable: true, Growable: true},
}

// TestAgainstHolders opens images that a running stock tool holds: what it
// refuses to its own tools, it must be able to refuse to us.
func TestAgainstHolders(t *testing.T) {
	const (
		write  = "Failed to get \"write\" lock"
		shared = "Failed to get shared \"write\" lock"
	)
	holders := []struct {
		name, format string
		hold         func(t *testing.T, name string)
		refused      map[string]string // by mode; the others work
	}{
		{"qemu-io writes qcow2", "qcow2", func(t *testing.T, name string) { holdIO(t, "-f", "qcow2", name) },
			map[string]string{"read": shared, "write raw": write, "resize raw": write, "create": write, "write": write, "growing file": write}},
		{"qemu-io reads qcow2", "qcow2", func(t *testing.T, name string) { holdIO(t, "-r", "-f", "qcow2", name) },
			map[string]string{"write raw": write, "resize raw": write, "create": write, "write": write, "growing file": write}},
		{"qemu-io writes raw", "raw", func(t *testing.T, name string) { holdIO(t, "-f", "raw", name) },
			map[string]string{"read": shared, "write": shared, "growing file": shared}},
		{"qemu-io reads raw", "raw", func(t *testing.T, name string) { holdIO(t, "-r", "-f", "raw", name) },
			map[string]string{}},
		{"machine on qcow2", "qcow2", func(t *testing.T, name string) { holdSystem(t, "format=qcow2,file="+name) },
			map[string]string{"read": shared, "write raw": write, "resize raw": write, "create": write, "write": write, "growing file": write}},
		{"machine on raw", "raw", func(t *testing.T, name string) { holdSystem(t, "format=raw,file="+name) },
			map[string]string{"read": shared, "write raw": write, "resize raw": write, "create": write, "write": write, "growing file": write}},
		{"machine reads raw", "raw", func(t *testing.T, name string) { holdSystem(t, "format=raw,readonly=on,file="+name) },
			map[string]string{"write raw": write, "resize raw": write, "create": write, "write": write, "growing file": write}},
	}
	for _, h := range holders {
		t.Run(h.name, func(t *testing.T) {
			name := image(t, h.format)
			h.hold(t, name)
			for mode, opts := range modes {
				f, err := file.Open(name, opts)
				text := h.refused[mode]
				switch {
				case text == "" && err != nil:
					t.Errorf("%s: %v", mode, err)
				case text != "" && err == nil:
					t.Errorf("%s: opened, want %s", mode, text)
				case text != "":
					want := text + "\nIs another process using the image [" + name + "]?"
					if !errors.Is(err, block.ErrInUse) || err.Error() != want {
						t.Errorf("%s: error %q, want %q", mode, err, want)
					}
				}
				if err == nil {
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// TestAgainstUs runs stock tools on images that we hold.
func TestAgainstUs(t *testing.T) {
	const lock = "Failed to get "
	tools := []struct {
		name, format string
		args         []string // qemu-img, with FILE and NEW
		refused      map[string]bool
	}{
		{"info", "qcow2", []string{"info", "FILE"}, map[string]bool{"write": true, "write raw": true, "resize raw": true, "create": true}},
		{"info -U", "qcow2", []string{"info", "-U", "FILE"}, nil},
		{"check", "qcow2", []string{"check", "FILE"}, map[string]bool{"write": true, "write raw": true, "resize raw": true, "create": true}},
		{"check -r", "qcow2", []string{"check", "-r", "all", "FILE"}, map[string]bool{"read": true, "write": true, "write raw": true, "resize raw": true, "create": true}},
		{"resize", "qcow2", []string{"resize", "-f", "qcow2", "FILE", "5M"}, map[string]bool{"read": true, "write": true, "write raw": true, "resize raw": true, "create": true}},
		{"create", "qcow2", []string{"create", "-f", "qcow2", "FILE", "4M"}, map[string]bool{"read": true, "write": true, "write raw": true, "resize raw": true, "create": true}},
		{"resize raw", "raw", []string{"resize", "-f", "raw", "FILE", "5M"}, map[string]bool{"read": true, "write": true, "create": true}},
		{"convert from raw", "raw", []string{"convert", "-f", "raw", "-O", "raw", "FILE", "NEW"}, map[string]bool{"write": true, "write raw": true, "resize raw": true, "create": true}},
		{"create over", "raw", []string{"create", "-f", "raw", "FILE", "4M"}, map[string]bool{"read": true, "write": true, "resize raw": true, "create": true}},
	}
	for _, tool := range tools {
		for _, mode := range []string{"no lock", "read raw", "read", "write raw", "resize raw", "create", "write"} {
			t.Run(tool.name+" while we "+mode, func(t *testing.T) {
				name := image(t, tool.format)
				f, err := file.Open(name, modes[mode])
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = f.Close() }()
				var args []string
				for _, a := range tool.args {
					a = strings.ReplaceAll(a, "FILE", name)
					args = append(args, strings.ReplaceAll(a, "NEW", name+".new"))
				}
				r := qemutest.Run(t, "qemu-img", args...)
				refused := r.Status != 0 && strings.Contains(r.Stderr, lock)
				if refused != tool.refused[mode] || r.Status != 0 && !refused {
					t.Errorf("refused %v, want %v: status %d, %s", refused, tool.refused[mode], r.Status, r.Stderr)
				}
			})
		}
	}
}

// TestMachineAgainstUs starts a stock machine on an image that we write.
func TestMachineAgainstUs(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		name := image(t, format)
		f, err := file.Open(name, file.Options{Writable: true})
		if err != nil {
			t.Fatal(err)
		}
		r := qemutest.Run(t, "qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-M", "pc,accel=tcg", "-m", "16",
			"-drive", "if=virtio,format="+format+",file="+name)
		if r.Status != 1 || !strings.Contains(r.Stderr, `Failed to get "write" lock`) && !strings.Contains(r.Stderr, `Failed to get shared "write" lock`) {
			t.Errorf("%s: status %d, %s", format, r.Status, r.Stderr)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBackingShared holds that one backing file serves a stock machine and us
// at the same time, and that neither side may then write it.
func TestBackingShared(t *testing.T) {
	base := image(t, "raw")
	overlay := filepath.Join(t.TempDir(), "overlay.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
	holdSystem(t, "format=qcow2,file="+overlay)
	f, err := file.Open(base, file.Options{})
	if err != nil {
		t.Fatalf("the backing file of a running machine cannot be read: %v", err)
	}
	defer func() { _ = f.Close() }()
	if _, err := file.Open(base, file.Options{Writable: true}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("the backing file of a running machine can be written: %v", err)
	}
	r := qemutest.Run(t, "qemu-img", "resize", "-f", "raw", base, "8M")
	if r.Status != 1 || !strings.Contains(r.Stderr, "lock") {
		t.Errorf("stock resize of a backing file in use: status %d, %s", r.Status, r.Stderr)
	}
}

// TestChangeLocks holds that a change that is refused leaves what was held.
func TestChangeLocks(t *testing.T) {
	name := image(t, "raw")
	a, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	b, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.ChangeLocks(file.WriteLocks()); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("upgrade beside a reader: %v", err)
	}
	c, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatalf("the refused upgrade left a lock behind: %v", err)
	}
	if err := errors.Join(b.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	if err := a.ChangeLocks(file.WriteLocks()); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Open(name, file.Options{}); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("read beside the upgraded one: %v", err)
	}
	if err := a.ChangeLocks(file.SharedReadLocks()); err != nil {
		t.Fatal(err)
	}
	d, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatalf("read beside the downgraded one: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLocksEndWithClose: a process that somebody starts at the same moment has
// a copy of every descriptor until it executes; the locks must not last as
// long, or the next to open the image finds it in use.
func TestLocksEndWithClose(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 3000 {
		f, err := file.Create(name, file.Options{})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
