package raw_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/raw"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
	"github.com/lamina-vm/lamina/protocol/memory"
)

func open(t *testing.T, f block.Node, writable bool) *raw.Disk {
	t.Helper()
	n, err := raw.Driver{}.Open(t.Context(), f, format.OpenOptions{Writable: writable, Filename: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	return n.(*raw.Disk)
}

// image creates an image in a file of its own and opens it.
func image(t *testing.T, size int64, values map[string]string) (*raw.Disk, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	f, err := file.Create(name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := (raw.Driver{}).Create(t.Context(), f, size, format.CreateOptions{Values: values, Filename: name}); err != nil {
		t.Fatal(err)
	}
	d := open(t, f, true)
	t.Cleanup(func() { _ = d.Close() })
	return d, name
}

func TestConformanceFile(t *testing.T) {
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer {
			d, _ := image(t, size, nil)
			return d
		},
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			f, _ := block.As[*file.File](n)
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			g, err := file.Open(f.Name(), file.Options{Writable: !readOnly})
			if err != nil {
				t.Fatal(err)
			}
			return open(t, g, !readOnly)
		},
		Zeroer: true, Discarder: true, Resizer: true,
	})
}

// plain hides every optional ability of a node.
type plain struct{ block.Writer }

// TestConformancePlain runs the suite over storage that can only be read and
// written: zeroing and discarding have to do without it. (Resize cannot.)
func TestConformancePlain(t *testing.T) {
	for _, c := range []struct {
		name string
		wrap func(block.Writer) block.Writer
	}{
		{"memory", func(w block.Writer) block.Writer { return w }},
		{"no abilities", func(w block.Writer) block.Writer { return plain{w} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, c.wrap(memory.New(1<<20)), true)
			want := make([]byte, 1<<20)
			blocktest.Pattern(want, 1)
			if _, err := d.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if err := d.WriteZeroes(1000, 200_000, 0); err != nil {
				t.Fatal(err)
			}
			clear(want[1000:201_000])
			if err := d.Discard(1<<20-10, 10); err != nil {
				t.Fatal(err)
			}
			blocktest.RequireAt(t, d, 0, want[:1<<20-10])
			err := d.WriteZeroes(0, 512, block.ZeroNoFallback)
			if fast := c.name == "memory"; fast != (err == nil) || !fast && !errors.Is(err, block.ErrUnsupported) {
				t.Errorf("zeroing without fallback: %v", err)
			}
			err = d.Resize(t.Context(), 2<<20, block.ResizeOptions{})
			if fast := c.name == "memory"; fast != (err == nil) || !fast && !errors.Is(err, block.ErrUnsupported) {
				t.Errorf("resize: %v", err)
			}
		})
	}
}

// TestOddSize holds that a file that ends within a sector is a disk with the
// whole sector, and that the file is completed only when it is written there.
func TestOddSize(t *testing.T) {
	name := filepath.Join(t.TempDir(), "odd")
	content := strings.Repeat("x", 4096) + "hello"
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	want := append([]byte(content), make([]byte, 507)...)
	for _, writable := range []bool{false, true} {
		f, err := file.Open(name, file.Options{Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		d := open(t, f, writable)
		blocktest.RequireContent(t, d, want)
		p := make([]byte, 20)
		if k, err := d.ReadAt(p, 4600); k != 8 || err != io.EOF {
			t.Errorf("read across the end: %d, %v", k, err)
		}
		e := blocktest.RequireExtents(t, d, 0, 4608)
		if len(e) != 2 || e[1] != (block.Extent{Start: 4101, Length: 507, Kind: block.Zero, HostOffset: 4101}) {
			t.Errorf("extents %+v", e)
		}
		blocktest.RequireExtents(t, d, 4100, 500)
		blocktest.RequireExtents(t, d, 4200, 100)
		if !writable {
			_, err := d.WriteAt([]byte{1}, 4500)
			if !errors.Is(err, block.ErrReadOnly) {
				t.Errorf("write: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := d.Discard(4000, 600); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(name); err != nil || st.Size() != 4101 {
			t.Errorf("before the write the file has %d bytes, %v", st.Size(), err)
		}
		blocktest.RequireAt(t, d, 0, want[:4000])
		if _, err := d.WriteAt([]byte{9}, 4500); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(name); err != nil || st.Size() != 4608 {
			t.Errorf("after the write the file has %d bytes, %v", st.Size(), err)
		}
		blocktest.RequireAt(t, d, 4500, []byte{9})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(p, 4600); !errors.Is(err, block.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
	}
}

// TestLargestFile: the size of the largest file that there can be cannot be
// rounded up to sectors.
func TestLargestFile(t *testing.T) {
	for n, ok := range map[int64]bool{math.MaxInt64: false, math.MaxInt64 - 511: true} {
		d, err := raw.Driver{}.Open(t.Context(), memory.New(n), format.OpenOptions{Filename: "disk"})
		if (err == nil) != ok || !ok && !errors.Is(err, syscall.EFBIG) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if ok && d.Size() != n {
			t.Errorf("%d bytes: size %d", n, d.Size())
		}
	}
}

// TestCreateAsStock compares images with those of the stock tool: the file's
// size, what it takes on disk, and the map.
func TestCreateAsStock(t *testing.T) {
	for _, prealloc := range []string{"", "off", "falloc", "full"} {
		for _, size := range []int64{0, 1, 512, 1000, 4096, 5000, 100_000, 3 << 20} {
			values := map[string]string{}
			args := []string{"create", "-q", "-f", "raw"}
			if prealloc != "" {
				values["preallocation"] = prealloc
				args = append(args, "-o", "preallocation="+prealloc)
			}
			d, ours := image(t, size, values)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			stock := filepath.Join(t.TempDir(), "disk.raw")
			qemutest.Img(t, append(args, stock, fmt.Sprint(size))...)
			a, b := describe(t, ours), describe(t, stock)
			if a != b {
				t.Errorf("preallocation %q, %d bytes: ours\n%s\nstock\n%s", prealloc, size, a, b)
			}
		}
	}
}

func describe(t *testing.T, name string) string {
	t.Helper()
	f, err := file.Open(name, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n, err := f.DiskSize()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("size %d, disk size %d, map %s", f.Size(), n, qemutest.Img(t, "map", "-f", "raw", "--output=json", name))
}

// TestOptionErrors holds the stock tool's words for wrong options.
func TestOptionErrors(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []string{
		"preallocation=metadata", "preallocation=bla", "bla=1", "nocow=4", "extent_size_hint=8G",
	} {
		key, value, _ := strings.Cut(o, "=")
		err := raw.Driver{}.Create(t.Context(), memory.NewFile(), 1<<20, format.CreateOptions{Values: map[string]string{key: value}})
		if !errors.Is(err, block.ErrUnsupported) {
			t.Errorf("%s: %v", o, err)
			continue
		}
		name := filepath.Join(dir, "disk.raw")
		r := qemutest.Run(t, "qemu-img", "create", "-q", "-f", "raw", "-o", o, name, "1M")
		if r.Status != 1 || r.Stderr != "qemu-img: "+name+": "+err.Error()+"\n" {
			t.Errorf("%s: ours %q, stock %q", o, err, r.Stderr)
		}
	}
	err := raw.Driver{}.Create(t.Context(), memory.NewFile(), 1<<20, format.CreateOptions{BackingFile: "base"})
	if !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("backing file: %v", err)
	}
	err = raw.Driver{}.Create(t.Context(), memory.NewFile(), 1<<63-1, format.CreateOptions{})
	if !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("largest size: %v", err)
	}
}

// TestHints holds that the two file system hints are taken where the file
// system does not know them.
func TestHints(t *testing.T) {
	d, _ := image(t, 4096, map[string]string{"extent_size_hint": "1M", "nocow": "on", "size": "4096"})
	blocktest.RequireContent(t, d, make([]byte, 4096))
}

// TestOptionTable compares the table with the stock tool's help.
func TestOptionTable(t *testing.T) {
	var ours []string
	for _, o := range (raw.Driver{}).Options() {
		ours = append(ours, fmt.Sprintf("%s=<%s> - %s", o.Name, o.Type, o.Help))
	}
	var stock []string
	for _, line := range strings.Split(qemutest.Img(t, "create", "-f", "raw", "-o", "help", "disk"), "\n")[1:] {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			stock = append(stock, line)
		}
	}
	if !slices.Equal(ours, stock) {
		t.Errorf("ours %q\nstock %q", ours, stock)
	}
}

// TestUnsafe holds that flushes do not reach the file in cache mode unsafe.
func TestUnsafe(t *testing.T) {
	m := &flushes{Writer: memory.New(4096)}
	for _, unsafe := range []bool{false, true} {
		m.n = 0
		n, err := raw.Driver{}.Open(t.Context(), m, format.OpenOptions{Writable: true, Unsafe: unsafe})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.(block.Writer).Flush(); err != nil {
			t.Fatal(err)
		}
		if (m.n == 0) != unsafe {
			t.Errorf("unsafe %v: %d flushes", unsafe, m.n)
		}
	}
}

type flushes struct {
	block.Writer
	n int
}

func (f *flushes) Flush() error { f.n++; return f.Writer.Flush() }
