package file_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// conformance runs the suite on files in dir with the given options.
func conformance(t *testing.T, dir string, opts file.Options) {
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer {
			f, err := os.CreateTemp(dir, "disk")
			if err != nil {
				t.Fatal(err)
			}
			name := f.Name()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			n, err := file.Create(name, opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Resize(t.Context(), size, block.ResizeOptions{}); err != nil {
				t.Fatal(err)
			}
			return n
		},
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			o := opts
			o.Writable = !readOnly
			f, err := file.Open(n.(*file.File).Name(), o)
			if err != nil {
				t.Fatal(err)
			}
			return f
		},
		Zeroer: true, Discarder: true, Resizer: true,
	})
}

func TestConformance(t *testing.T) {
	conformance(t, t.TempDir(), file.Options{})
}

// TestConformanceDirect runs every unaligned request through the bounce
// buffers.
func TestConformanceDirect(t *testing.T) {
	conformance(t, t.TempDir(), file.Options{Direct: true})
}

// create makes a file of its own.
func create(t *testing.T, size int64, opts file.Options) *file.File {
	t.Helper()
	f, err := file.Create(filepath.Join(t.TempDir(), "disk"), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Resize(t.Context(), size, block.ResizeOptions{}); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSync holds that each write of a Sync file is one to the disk: the file
// is open with O_DSYNC, and not without being asked.
func TestSync(t *testing.T) {
	for _, sync := range []bool{false, true} {
		f := create(t, 4096, file.Options{Sync: sync})
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		if got := openFlags(t, f.Name())&unix.O_DSYNC != 0; got != sync {
			t.Errorf("Sync %v: O_DSYNC is %v", sync, got)
		}
	}
}

// openFlags returns the flags of this process's descriptor of a file.
func openFlags(t *testing.T, name string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + d.Name()); err != nil || to != name {
			continue
		}
		var fd int
		for _, c := range d.Name() {
			fd = fd*10 + int(c-'0')
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags
	}
	t.Fatalf("%s is not open", name)
	return 0
}

// TestDirectFlag holds that direct I/O is what is used.
func TestDirectFlag(t *testing.T) {
	f := create(t, 4096, file.Options{Direct: true})
	if openFlags(t, f.Name())&unix.O_DIRECT == 0 {
		t.Error("the file is not open with O_DIRECT")
	}
}

// TestDirectOddSize writes the last, partial block of a file of an odd size,
// which must not become longer.
func TestDirectOddSize(t *testing.T) {
	f := create(t, 10_007, file.Options{Direct: true})
	want := make([]byte, 10_007)
	blocktest.Pattern(want, 1)
	for _, r := range [][2]int{{0, 10_007}, {10_000, 10_007}, {8192, 10_007}, {8191, 8193}} {
		if _, err := f.WriteAt(want[r[0]:r[1]], int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	blocktest.RequireContent(t, f, want)
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("file of %d bytes, %v; want the %d written", len(got), err, len(want))
	}
}

// TestGrowable holds that writes past the end extend the file only where that
// was asked for.
func TestGrowable(t *testing.T) {
	for _, direct := range []bool{false, true} {
		f := create(t, 0, file.Options{Growable: true, Direct: direct})
		p := make([]byte, 3000)
		blocktest.Pattern(p, 2)
		if _, err := f.WriteAt(p, 70_001); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteZeroes(80_000, 20_000, block.ZeroMayUnmap); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 100_000)
		copy(want[70_001:], p)
		blocktest.RequireContent(t, f, want)
		st, err := os.Stat(f.Name())
		if err != nil || st.Size() != 100_000 {
			t.Fatalf("stat: %v, %v", st, err)
		}
		if _, err := f.WriteAt(p, 1<<63-2); !errors.Is(err, block.ErrOutOfRange) {
			t.Fatalf("write at the largest offset: %v", err)
		}
	}
}

// TestOpenRefuses holds the errors of what cannot be opened.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		want error
		text string
	}{
		{filepath.Join(dir, "none"), fs.ErrNotExist, "no such file or directory"},
		{dir, block.ErrUnsupported, "'file' driver requires '" + dir + "' to be a regular file"},
		{fifo, block.ErrUnsupported, "'file' driver requires '" + fifo + "' to be a regular file"},
		{"/dev/ptmx", block.ErrUnsupported, "'file' driver requires '/dev/ptmx' to be a regular file"},
	} {
		f, err := file.Open(c.path, file.Options{})
		if f != nil || !errors.Is(err, c.want) || !bytes.Contains([]byte(err.Error()), []byte(c.text)) {
			t.Errorf("open %s: %v; want %q", c.path, err, c.text)
		}
	}
	for _, name := range []string{"/dev/null", "/dev/zero"} {
		f, err := file.Open(name, file.Options{Writable: true, Growable: true, Locks: &file.Locks{}})
		if err != nil {
			t.Fatal(err)
		}
		_, write := f.WriteAt([]byte{1}, 0)
		grow := f.Resize(t.Context(), 512, block.ResizeOptions{})
		exact := f.Resize(t.Context(), 512, block.ResizeOptions{Exact: true})
		if !f.IsDevice() || f.Size() != 0 || !errors.Is(write, unix.ENOSPC) || !errors.Is(grow, block.ErrUnsupported) || grow.Error() == exact.Error() {
			t.Errorf("%s: %d bytes; writing: %v, growing: %v, %v", name, f.Size(), write, grow, exact)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := file.Open(dir, file.Options{NoLock: true, Writable: true}); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("writing without locks: %v", err)
	}
}

// TestHoles holds what is known of the file's storage: holes have the host
// offset that stock map prints for them.
func TestHoles(t *testing.T) {
	f := create(t, 1<<20, file.Options{})
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 65536), 512<<10); err != nil {
		t.Fatal(err)
	}
	want := []block.Extent{
		{Start: 0, Length: 4096, Kind: block.Data, HostOffset: 0},
		{Start: 4096, Length: 520192, Kind: block.Zero, HostOffset: 4096},
		{Start: 524288, Length: 65536, Kind: block.Data, HostOffset: 524288},
		{Start: 589824, Length: 458752, Kind: block.Zero, HostOffset: 589824},
	}
	if got := blocktest.Extents(t, f, 0, 1<<20); !slices.Equal(got, want) {
		t.Errorf("extents %+v\nwant %+v", got, want)
	}
	if n, err := f.DiskSize(); err != nil || n != 4096+65536 {
		t.Errorf("disk size %d, %v; want %d", n, err, 4096+65536)
	}
	if err := f.Discard(512<<10, 65536); err != nil {
		t.Fatal(err)
	}
	if n, err := f.DiskSize(); err != nil || n != 4096 {
		t.Errorf("after the discard the disk size is %d, %v; want 4096", n, err)
	}
}

// TestZeroKeepsSpace holds the difference that ZeroMayUnmap makes.
func TestZeroKeepsSpace(t *testing.T) {
	for _, flags := range []block.ZeroFlags{0, block.ZeroMayUnmap} {
		f := create(t, 1<<20, file.Options{})
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteZeroes(0, 1<<20, flags); err != nil {
			t.Fatal(err)
		}
		n, err := f.DiskSize()
		if err != nil || (n >= 1<<20) != (flags == 0) {
			t.Errorf("flags %d: disk size %d, %v", flags, n, err)
		}
	}
}

func TestPreallocation(t *testing.T) {
	const size = 3 << 20
	for _, p := range []block.Preallocation{block.PreallocFalloc, block.PreallocFull} {
		f := create(t, 0, file.Options{})
		if err := f.Resize(t.Context(), size, block.ResizeOptions{Prealloc: p}); err != nil {
			t.Fatal(err)
		}
		if n, err := f.DiskSize(); err != nil || n < size {
			t.Errorf("%s: disk size %d, %v; want at least %d", p, n, err, size)
		}
		blocktest.RequireContent(t, f, make([]byte, size))
		err := f.Resize(t.Context(), size-512, block.ResizeOptions{Prealloc: p, AllowShrink: true})
		if !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("%s: shrinking: %v", p, err)
		}
	}
	f := create(t, 4096, file.Options{})
	if err := f.Resize(t.Context(), size, block.ResizeOptions{Prealloc: block.PreallocMetadata}); !errors.Is(err, block.ErrUnsupported) || f.Size() != 4096 {
		t.Errorf("metadata: %v, size %d", err, f.Size())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Resize(ctx, size, block.ResizeOptions{Prealloc: block.PreallocFull}); !errors.Is(err, context.Canceled) || f.Size() != 4096 {
		t.Errorf("cancelled: %v, size %d", err, f.Size())
	}
}

// TestFull holds that a full disk is said to be one and that the size stays.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small tmpfs (needs root): %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	f, err := file.Create(filepath.Join(dir, "disk"), file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range []block.Preallocation{block.PreallocFalloc, block.PreallocFull} {
		err := f.Resize(t.Context(), 4<<20, block.ResizeOptions{Prealloc: p})
		if !errors.Is(err, syscall.ENOSPC) || f.Size() != 0 {
			t.Errorf("%s on a full disk: %v, size %d", p, err, f.Size())
		}
	}
	if err := f.Resize(t.Context(), 4<<20, block.ResizeOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 4<<20), 0)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write on a full disk: %v", err)
	}
}

// TestNoDirect holds the message where the file system has no direct I/O.
func TestNoDirect(t *testing.T) {
	f, err := file.Open("/proc/self/status", file.Options{Direct: true, NoLock: true})
	if f != nil || !errors.Is(err, block.ErrUnsupported) {
		t.Fatalf("direct I/O in /proc: %v", err)
	}
}

// TestCutBehind holds that a file that became shorter is an error, not zeros.
func TestCutBehind(t *testing.T) {
	f := create(t, 8192, file.Options{})
	if err := os.Truncate(f.Name(), 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4096), 4096); err == nil || errors.Is(err, block.ErrClosed) {
		t.Fatalf("read behind the new end: %v", err)
	}
}

func TestCopyFrom(t *testing.T) {
	src, dst := create(t, 1<<20, file.Options{}), create(t, 1<<20, file.Options{})
	want := make([]byte, 1<<20)
	p := make([]byte, 300_000)
	blocktest.Pattern(p, 3)
	if _, err := src.WriteAt(p, 1000); err != nil {
		t.Fatal(err)
	}
	if err := dst.CopyFrom(src, 1000, 5000, 300_000); err != nil {
		t.Fatal(err)
	}
	copy(want[5000:], p)
	blocktest.RequireContent(t, dst, want)
	if err := dst.CopyFrom(src, 1<<20-1, 0, 2); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("copy from behind the end: %v", err)
	}
	if err := dst.Reflink(src); err != nil && !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("reflink: %v", err)
	} else if err == nil {
		blocktest.RequireSame(t, dst, src)
	}
}

// TestCreateTakesOver holds that an existing file is emptied, after its locks
// were looked at and not before.
func TestCreateTakesOver(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, bytes.Repeat([]byte("old"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(name, file.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Create(name, file.Options{}); !errors.Is(err, block.ErrInUse) {
		t.Fatalf("create over a file in use: %v", err)
	}
	if f.Size() != 300 {
		t.Fatal("the file in use was emptied")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	g, err := file.Create(name, file.Options{})
	if err != nil || g.Size() != 0 {
		t.Fatalf("create: %v", err)
	}
	if err := g.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBlockDevice runs the file's abilities on a loop device.
func TestBlockDevice(t *testing.T) {
	backing := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, 1<<20); err != nil {
		t.Fatal(err)
	}
	dev := attachLoop(t, backing)
	for _, direct := range []bool{false, true} {
		f, err := file.Open(dev, file.Options{Writable: true, Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		if f.Size() != 1<<20 || !f.IsDevice() {
			t.Fatalf("size %d, device %v", f.Size(), f.IsDevice())
		}
		want := make([]byte, 1<<20)
		blocktest.Pattern(want, 4)
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int64{{1, 2}, {4095, 4098}, {100_000, 200_001}} {
			if err := f.WriteZeroes(r[0], r[1]-r[0], block.ZeroMayUnmap); err != nil {
				t.Fatal(err)
			}
			clear(want[r[0]:r[1]])
		}
		blocktest.RequireContent(t, f, want)
		if err := f.Discard(65536, 65536); err != nil {
			t.Fatal(err)
		}
		if err := f.Resize(t.Context(), 2<<20, block.ResizeOptions{}); !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("growing a device: %v", err)
		}
		if e := blocktest.Extents(t, f, 0, 1<<20); len(e) != 1 || e[0].Kind != block.Data {
			t.Errorf("extents %+v", e)
		}
		if err := errors.Join(f.Flush(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// attachLoop makes a block device of a file until the end of the test.
func attachLoop(t *testing.T, backing string) string {
	t.Helper()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("loop devices (needs root): %v", err)
	}
	defer func() { _ = ctl.Close() }()
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	name := "/dev/loop" + strconv.Itoa(n)
	f, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0), dev.Close()); err != nil {
			t.Error(err)
		}
	})
	return name
}

// TestFlushFailureStays writes to a device whose storage is full: the kernel
// says so once, at the first flush, and then forgets what it could not write.
func TestFlushFailureStays(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	backing := filepath.Join(dir, "backing")
	if err := os.WriteFile(backing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(backing, 4<<20); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(attachLoop(t, backing), file.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := f.Flush(); err == nil {
			t.Fatalf("flush %d is said to have worked on a full disk", i)
		}
	}
}
