package qcow2

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/raw"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// chainOpener opens backing files by the format that the overlay records.
type chainOpener struct{ dir string }

func (o chainOpener) OpenBacking(ctx context.Context, name, as string) (block.Node, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(o.dir, name)
	}
	f, err := file.Open(name, file.Options{})
	if err != nil {
		return nil, err
	}
	var d format.Driver = Driver{}
	if as == "raw" {
		d = raw.Driver{}
	}
	return d.Open(ctx, f, format.OpenOptions{Filename: name, Opener: o})
}

// openChain opens an image file with its backing chain.
func openChain(t testing.TB, name string, writable bool) block.Node {
	t.Helper()
	f, err := file.Open(name, file.Options{Writable: writable, Growable: writable})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Driver{}.Open(t.Context(), f, format.OpenOptions{Writable: writable, Filename: name, Opener: chainOpener{filepath.Dir(name)}})
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func closeNode(t testing.TB, n block.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// variant is a kind of image: every cluster size, version, refcount width and
// compression.
type variant struct {
	cluster int64
	compat  string
	bits    int
	packing string // "none" for no compressed clusters
	sub     bool   // extended L2 entries
}

func (v variant) String() string {
	s := fmt.Sprintf("%d-%s-%d-%s", v.cluster, v.compat, v.bits, v.packing)
	if v.sub {
		s += "-extended"
	}
	return s
}

// values returns the creation options.
func (v variant) values() map[string]string {
	m := map[string]string{"cluster_size": fmt.Sprint(v.cluster), "compat": v.compat}
	if v.sub {
		m["extended_l2"] = "on"
	}
	if v.compat != "0.10" {
		m["refcount_bits"] = fmt.Sprint(v.bits)
		if v.packing != "none" {
			m["compression_type"] = v.packing
		}
	}
	return m
}

func (v variant) options() string {
	var s []string
	for k, value := range v.values() {
		s = append(s, k+"="+value)
	}
	return strings.Join(s, ",")
}

// size is a size of at least eight clusters that is no whole number of them.
func (v variant) size() int64 { return max(8*v.cluster, 96<<10) + 512 }

// variants returns the whole product: every cluster size with both versions,
// every refcount width and every compression that the version has; and those
// with subclusters, with one refcount width each.
func variants() []variant {
	var all []variant
	for i := range 13 {
		cluster := int64(512) << i
		all = append(all, variant{cluster, "0.10", 16, "none", false}, variant{cluster, "0.10", 16, "zlib", false})
		for k, packing := range []string{"none", "zlib", "zstd"} {
			if cluster >= minSubclusterSize*subclustersPerCluster {
				all = append(all, variant{cluster, "1.1", 1 << ((i + k) % 7), packing, true})
			}
		}
		for order := range 7 {
			for _, packing := range []string{"none", "zlib", "zstd"} {
				all = append(all, variant{cluster, "1.1", 1 << order, packing, false})
			}
		}
	}
	return all
}

// memoryDir returns a directory in memory where there is one with room: the
// stock tools sync a lot, which costs a disk more time than all the rest.
func memoryDir(t testing.TB) string {
	t.Helper()
	const shm, room = "/dev/shm", 256 << 20
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || int64(st.Bavail)*st.Bsize < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "lamina-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// compressible fills p with text that shrinks to about a third, but for what
// lies behind the first 128 KiB of each cluster, which would only cost time.
func compressible(p []byte, cluster, seed int64) {
	for i := range p {
		if n := int64(i); n%cluster < 128<<10 {
			p[i] = byte(n*7%251) ^ byte(seed+n/64)
		}
	}
}

// writeRaw writes the expected content as a file for the stock tools, with
// holes where there are zeros.
func writeRaw(t testing.TB, name string, content []byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	const step = 4096
	for off := 0; off < len(content); off += step {
		p := content[off:min(off+step, len(content))]
		if bytes.Equal(p, make([]byte, len(p))) {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// change changes an open image in every way and want with it.
func change(t testing.TB, n block.Node, v variant, want []byte) {
	t.Helper()
	w := n.(block.Writer)
	put := func(off, length int64) {
		length = max(0, min(length, int64(len(want))-off))
		p := want[off : off+length]
		blocktest.Pattern(p, uint64(off+length))
		if k, err := w.WriteAt(p, off); k != len(p) || err != nil {
			t.Fatalf("write %d bytes at %d: %d, %v", len(p), off, k, err)
		}
	}
	zero := func(off, length int64, flags block.ZeroFlags) {
		if err := n.(block.Zeroer).WriteZeroes(off, length, flags); err != nil {
			t.Fatalf("zero %d+%d: %v", off, length, err)
		}
		clear(want[off : off+length])
	}
	put(1, 700)
	put(3*v.cluster-100, v.cluster+200)
	put(int64(len(want))-9, 9)
	if v.sub {
		step := v.cluster / subclustersPerCluster
		put(2*v.cluster+3*step, step)
		put(2*v.cluster+9*step-5, 10)
		put(4*v.cluster+step/2, 5*step)
		zero(2*v.cluster+9*step, 4*step, block.ZeroMayUnmap)
		zero(4*v.cluster+2*step, 4*step, 0)
		zero(6*v.cluster+step, 9*step, 0) // perhaps of a compressed cluster
	}
	zero(5*v.cluster, v.cluster, 0)
	zero(3*v.cluster, v.cluster/2, block.ZeroMayUnmap)
	put(5*v.cluster+3, 17)
	if err := n.(block.Discarder).Discard(4*v.cluster, v.cluster); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ReadAt(want[4*v.cluster:5*v.cluster], 4*v.cluster); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestInteropOurs writes images of every kind; the stock tools have to find
// them whole and read what was written.
func TestInteropOurs(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			dir := memoryDir(t)
			name, rawName := filepath.Join(dir, "ours.qcow2"), filepath.Join(dir, "want.raw")
			createFile(t, name, v.size(), v.values(), "", "")
			n := openChain(t, name, true)
			want := make([]byte, v.size())
			for _, at := range []int64{0, 1, 2, 6, v.size() / v.cluster} {
				p := want[at*v.cluster : min((at+1)*v.cluster, v.size())]
				compressible(p, v.cluster, at)
				var err error
				if v.packing == "none" {
					_, err = n.(block.Writer).WriteAt(p, at*v.cluster)
				} else {
					err = n.(block.CompressedWriter).WriteCompressed(p, at*v.cluster)
				}
				if err != nil {
					t.Fatalf("write %s at %d: %v", v.packing, at*v.cluster, err)
				}
			}
			change(t, n, v, want)
			blocktest.RequireContent(t, n, want)
			closeNode(t, n)
			writeRaw(t, rawName, want)
			qemutest.RequireClean(t, name)
			qemutest.RequireSame(t, "qcow2", name, "raw", rawName)
		})
	}
}

// stockChange returns commands of qemu-io that change an image, with the runs
// that they change, and changes want with it.
func stockChange(v variant, want []byte) (cmds []string, runs [][2]int64) {
	add := func(kind string, value byte, off, n int64) {
		cmds = append(cmds, fmt.Sprintf("%s %d %d", kind, off, n))
		runs = append(runs, [2]int64{off, n})
		copy(want[off:], bytes.Repeat([]byte{value}, int(n)))
	}
	add("write -P 17", 17, v.cluster+3, v.cluster+500)
	add("write -P 18", 18, 7*v.cluster, 512)
	if v.compat == "0.10" {
		return cmds, runs
	}
	if v.sub {
		step := v.cluster / subclustersPerCluster
		add("write -z", 0, 6*v.cluster+step, 7*step)
		add("write -zu", 0, v.cluster+8*step, 24*step)
	}
	add("write -z", 0, 2*v.cluster, v.cluster)
	add("write -zu", 0, 5*v.cluster, v.cluster)
	return cmds, runs
}

// TestInteropStock reads images of every kind that the stock tools wrote, and
// changes them; the stock tools have to find them whole and read the changes.
func TestInteropStock(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			dir := memoryDir(t)
			name, rawName := filepath.Join(dir, "stock.qcow2"), filepath.Join(dir, "want.raw")
			want := make([]byte, v.size())
			compressible(want[:3*v.cluster+100], v.cluster, 1)
			compressible(want[6*v.cluster:], v.cluster, 2)
			writeRaw(t, rawName, want)
			args := []string{"convert", "-f", "raw", "-O", "qcow2", "-o", v.options(), rawName, name}
			if v.packing != "none" {
				args = append(args, "-c")
			}
			qemutest.Img(t, args...)
			cmds, _ := stockChange(v, want)
			qemutest.IO(t, "qcow2", name, cmds...)
			n := openChain(t, name, false)
			blocktest.RequireContent(t, n, want)
			blocktest.RequireExtents(t, n, 0, n.Size())
			closeNode(t, n)
			n = openChain(t, name, true)
			change(t, n, v, want)
			blocktest.RequireContent(t, n, want)
			closeNode(t, n)
			writeRaw(t, rawName, want)
			qemutest.RequireClean(t, name)
			qemutest.RequireSame(t, "qcow2", name, "raw", rawName)
		})
	}
}

// TestInteropChain stacks images of both makers and of different kinds over a
// raw file that is shorter than some overlays, and writes the top by both.
func TestInteropChain(t *testing.T) {
	dir := memoryDir(t)
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("layer%d", i)) }
	const size = 4<<20 + 512
	want := make([]byte, size)
	blocktest.Pattern(want[:1<<20+512], 1)
	writeRaw(t, path(0), want[:1<<20+512])
	layers := []struct {
		ours   bool
		values map[string]string
	}{
		{true, map[string]string{"cluster_size": "512"}},
		{false, map[string]string{"cluster_size": "65536", "compat": "0.10"}},
		{true, map[string]string{"cluster_size": "2M", "refcount_bits": "64"}},
		{false, map[string]string{"cluster_size": "4096", "compression_type": "zstd"}},
		{true, map[string]string{"cluster_size": "65536", "lazy_refcounts": "on"}},
		{false, map[string]string{"cluster_size": "1024", "refcount_bits": "1"}},
		{true, map[string]string{"cluster_size": "32768", "extended_l2": "on"}},
		{false, map[string]string{"extended_l2": "on", "preallocation": "metadata"}},
		{true, nil},
	}
	backing := "raw"
	for i, l := range layers {
		name := path(i + 1)
		if l.ours {
			createFile(t, name, size, l.values, path(i), backing)
		} else {
			args := []string{"create", "-q", "-f", "qcow2", "-b", path(i), "-F", backing}
			for k, v := range l.values {
				args = append(args, "-o", k+"="+v)
			}
			qemutest.Img(t, append(args, name, fmt.Sprint(size))...)
		}
		backing = "qcow2"
		off := int64(i) * 300_001
		if l.ours {
			n := openChain(t, name, true)
			blocktest.Pattern(want[off:off+70_000], uint64(i+2))
			if _, err := n.(block.Writer).WriteAt(want[off:off+70_000], off); err != nil {
				t.Fatal(err)
			}
			if err := n.(block.Zeroer).WriteZeroes(off+80_000, 9000, block.ZeroMayUnmap); err != nil {
				t.Fatal(err)
			}
			closeNode(t, n)
		} else {
			qemutest.IO(t, "qcow2", name, fmt.Sprintf("write -P %d %d 70000", i+1, off), fmt.Sprintf("write -z %d 9000", off+80_000))
			copy(want[off:], bytes.Repeat([]byte{byte(i + 1)}, 70_000))
		}
		clear(want[off+80_000 : off+89_000])
		qemutest.RequireClean(t, name)
		n := openChain(t, name, false)
		blocktest.RequireContent(t, n, want)
		requireMap(t, n, name)
		closeNode(t, n)
		writeRaw(t, filepath.Join(dir, "want"), want)
		qemutest.RequireSame(t, "qcow2", name, "raw", filepath.Join(dir, "want"))
	}
}

// mapEntry is an entry of `qemu-img map --output=json`.
type mapEntry struct {
	Start, Length int64
	Depth         int
	Present, Zero bool
	Data          bool
	Offset        *int64
}

func (m mapEntry) String() string {
	off := "none"
	if m.Offset != nil {
		off = fmt.Sprint(*m.Offset)
	}
	return fmt.Sprintf("%d+%d depth %d present %v zero %v data %v offset %s", m.Start, m.Length, m.Depth, m.Present, m.Zero, m.Data, off)
}

// requireMap compares the extents with what the stock tool prints.
func requireMap(t *testing.T, n block.Node, name string) {
	t.Helper()
	var stock []mapEntry
	if err := json.Unmarshal([]byte(qemutest.Img(t, "map", "-f", "qcow2", "--output=json", name)), &stock); err != nil {
		t.Fatal(err)
	}
	var a, b strings.Builder
	for _, e := range stock {
		fmt.Fprintln(&b, e)
	}
	var last mapEntry
	emit := func() {
		if last.Length > 0 {
			fmt.Fprintln(&a, last)
		}
	}
	for _, e := range blocktest.Extents(t, n, 0, n.Size()) {
		m := mapEntry{Start: e.Start, Length: e.Length, Depth: e.Depth, Present: e.Kind != block.Unallocated, Zero: e.IsZero(), Data: e.Kind == block.Data || e.Kind == block.Compressed}
		if e.HostOffset != block.NoHostOffset {
			m.Offset = &e.HostOffset
		}
		// What map does not tell apart is one entry there.
		same := last.Length > 0 && last.Depth == m.Depth && last.Present == m.Present && last.Zero == m.Zero && last.Data == m.Data &&
			(last.Offset == nil) == (m.Offset == nil) && (m.Offset == nil || *m.Offset == *last.Offset+last.Length)
		if same {
			last.Length += m.Length
			continue
		}
		emit()
		last = m
	}
	emit()
	if a.String() != b.String() {
		t.Errorf("map of %s\nours\n%sstock\n%s", name, a.String(), b.String())
	}
}

// TestInteropPreallocation reads, maps, writes and checks images with every
// preallocation of both makers.
func TestInteropPreallocation(t *testing.T) {
	const size = 4<<20 + 512
	for _, mode := range []string{"off", "metadata", "falloc", "full", "extended", "metadata extended", "falloc extended", "full extended"} {
		for _, maker := range []string{"ours", "stock"} {
			t.Run(mode+" by "+maker, func(t *testing.T) {
				dir := memoryDir(t)
				name, backing, format := filepath.Join(dir, "image.qcow2"), "", ""
				want := make([]byte, size)
				mode, extended := strings.CutSuffix(mode, "extended")
				values := map[string]string{"preallocation": cmp.Or(strings.TrimSpace(mode), "off")}
				if extended { // only then there may be a backing file
					backing, format, values["extended_l2"] = filepath.Join(dir, "base"), "raw", "on"
					blocktest.Pattern(want[:3<<20], 9)
					writeRaw(t, backing, want[:3<<20])
				}
				if maker == "ours" {
					createFile(t, name, size, values, backing, format)
				} else {
					args := []string{"create", "-q", "-f", "qcow2"}
					if extended {
						args = append(args, "-b", backing, "-F", format)
					}
					for k, v := range values {
						args = append(args, "-o", k+"="+v)
					}
					qemutest.Img(t, append(args, name, fmt.Sprint(size))...)
				}
				qemutest.RequireClean(t, name)
				n := openChain(t, name, true)
				blocktest.RequireContent(t, n, want)
				requireMapOpen(t, n, name)
				blocktest.Pattern(want[100_000:200_000], 3)
				if _, err := n.(block.Writer).WriteAt(want[100_000:200_000], 100_000); err != nil {
					t.Fatal(err)
				}
				closeNode(t, n)
				qemutest.RequireClean(t, name)
				writeRaw(t, name+".raw", want)
				qemutest.RequireSame(t, "qcow2", name, "raw", name+".raw")
			})
		}
	}
}

// requireMapOpen compares the map of an image that is open for writing, whose
// locks the stock tool has to pass by: through a copy of the reference.
func requireMapOpen(t *testing.T, n block.Node, name string) {
	t.Helper()
	link := name + ".link"
	f, _ := block.As[*file.File](n.(*Image).file)
	if err := f.ChangeLocks(file.SharedReadLocks()); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(name, link); err != nil {
		t.Fatal(err)
	}
	requireMap(t, n, link)
	if err := f.ChangeLocks(file.WriteLocks()); err != nil {
		t.Fatal(err)
	}
}

// TestInteropResize resizes by turns; what was cut must not come back.
func TestInteropResize(t *testing.T) {
	for _, options := range []map[string]string{
		{"cluster_size": "512"}, {"cluster_size": "4096", "compat": "0.10"}, {"cluster_size": "65536"}, {"cluster_size": "2M", "refcount_bits": "8"},
		{"cluster_size": "16384", "extended_l2": "on"}, {"cluster_size": "256k", "extended_l2": "on"},
	} {
		t.Run(options["cluster_size"], func(t *testing.T) {
			name := filepath.Join(memoryDir(t), "image.qcow2")
			createFile(t, name, 1<<20, options, "", "")
			want := make([]byte, 1<<20)
			for i, size := range []int64{9<<20 + 512, 700<<10 + 512, 6 << 20, 512, 3 << 20} {
				if i%2 == 0 {
					n := openChain(t, name, true)
					p := want[len(want)/2:]
					blocktest.Pattern(p, uint64(size))
					if _, err := n.(block.Writer).WriteAt(p, int64(len(want)/2)); err != nil {
						t.Fatal(err)
					}
					if err := n.(block.Resizer).Resize(t.Context(), size, block.ResizeOptions{AllowShrink: true}); err != nil {
						t.Fatal(err)
					}
					closeNode(t, n)
				} else {
					qemutest.Img(t, "resize", "-q", "--shrink", "-f", "qcow2", name, fmt.Sprint(size))
				}
				want = append(want[:min(int64(len(want)), size)], make([]byte, max(0, size-int64(len(want))))...)
				qemutest.RequireClean(t, name)
				n := openChain(t, name, false)
				blocktest.RequireContent(t, n, want)
				closeNode(t, n)
				writeRaw(t, name+".raw", want)
				qemutest.RequireSame(t, "qcow2", name, "raw", name+".raw")
			}
		})
	}
}

func (o chainOpener) OpenData(context.Context, string, bool) (block.Node, error) { return nil, nil }
